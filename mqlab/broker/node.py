"""A private RabbitMQ node: an ordinary user's own, everything in one folder, on loopback only.

What belongs to a node is recognised by ``MQLAB_NODE_DIR`` in the environment of its processes: it
cannot go stale as a pid file does. Choosing between the ways to get a broker is left to ``broker``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from mqlab.broker.ports import free_port, is_open
from mqlab.connection import handshake
from mqlab.errors import MqlabError, StartFailed
from mqlab.settings import Settings

READY_TIMEOUT_S = 60.0
"""Seconds. A start takes 3 to 5; a busy machine was seen to need 20."""
STOP_TIMEOUT_S = 20.0
"""Seconds. A clean stop takes about 6 with the management page."""
DISK_ALARM_MB = 50.0
"""RabbitMQ's own default: with less free space it lets nobody publish."""
SYSTEM_CODES = r"\b(enospc|edquot|erofs|eacces|eaddrinuse|emfile|enomem)\b"
MARK = "MQLAB_NODE_DIR"
HOME = Path(__file__).resolve().parents[2]
"""The checkout that this code is in: kept with a node, so that a second one can say whose it is."""

# A long-lived parent (a kernel, a test run) reaps its dead children through these.
_children: list[subprocess.Popen[bytes]] = []


class Node:
    """A node's state folder and its two ports. Making one starts nothing."""

    def __init__(self, state_dir: Path, port: int, management_port: int) -> None:
        self.state_dir, self.port, self.management_port = state_dir, port, management_port
        self._launched: list[subprocess.Popen[bytes]] = []  # empty: started by somebody else
        self._output = -1

    @property
    def settings(self) -> Settings:
        return Settings(port=self.port, management_url=f"http://127.0.0.1:{self.management_port}")

    @property
    def log(self) -> Path:
        return self.state_dir / "log/rabbitmq.log"

    def as_recorded(self) -> Node:
        """The same node with the ports of its last start."""
        with contextlib.suppress(OSError):
            text = (self.state_dir / "rabbitmq.conf").read_text()
            ports = [int(port) for port in re.findall(r"(?:127.0.0.1:|tcp.port = )(\d+)", text)]
            if len(ports) == 2:
                return Node(self.state_dir, *ports)
        return self

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to the node: the virtual machine, its helpers and epmd."""
        return [process for process, _ in _marked(self.state_dir)]

    def is_running(self) -> bool:
        """Whether there is more of it than an epmd left behind."""
        return any(_name(process) != "epmd" for process in self.processes())

    def started_by(self) -> str:
        """The checkout whose command started it, or "" if it does not run."""
        return next((env.get("MQLAB_NODE_HOME", "") for _, env in _marked(self.state_dir)), "")

    def launch(self, script: Path, *, with_parent: bool = False) -> None:
        """Start epmd and the server, and return at once.

        ``with_parent`` ends both when the thread that calls this ends, on Linux. Raises
        StartFailed if the state folder cannot be written or a program is missing.
        """
        self._launched = []
        try:
            self._write_files()
            environ = self._environ(script)
            # The node outlives the terminal, unless it is tied to its parent.
            tie = ["setpriv", "--pdeathsig", "KILL", "--"] if with_parent and _can_tie() else []
            self._output = _open_output()
            # An epmd of our own: the server's is left behind, and listens on every interface.
            epmd = _find_epmd(environ["PATH"])
            for command in ([epmd, "-port", environ["ERL_EPMD_PORT"]], [str(script)]):
                process = subprocess.Popen(
                    tie + command, env=environ, cwd=self.state_dir, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
                )  # fmt: skip
                self._launched.append(process)
                _children.append(process)
        except OSError as error:
            raise StartFailed(
                f"A node cannot be started in {self.state_dir}.",
                why=f"{error.strerror or error} {error.filename or ''}".strip(),
                fix="make room or give the right to write there, or set XDG_STATE_HOME",
            ) from error

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> str:
        """Wait until the node completes an AMQP handshake; return its version.

        Raises StartFailed with RabbitMQ's own words if the node ends, or is not ready in time.
        """
        try:
            deadline = time.monotonic() + timeout_s
            next_look = 0.0
            while time.monotonic() < deadline:
                server = self._launched[-1] if self._launched else None
                if server and server.poll() is not None:
                    raise self._failed(f"RabbitMQ ended with status {server.returncode}.")
                if time.monotonic() > next_look:
                    next_look = time.monotonic() + 1.0
                    if not server and not self.is_running():
                        raise self._failed("RabbitMQ ended while it started.")
                    # It may hang then, rather than end.
                    if re.search(r"\benospc\b|no space left", self._console()):
                        raise self._failed("RabbitMQ cannot start: the disk is full.")
                if is_open(self.port):
                    with contextlib.suppress(MqlabError):
                        return handshake(self.settings, timeout_s=5.0)
                time.sleep(0.05)
            raise self._failed(f"RabbitMQ was not ready after {timeout_s:.0f} s.")
        finally:
            self._close_output()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the node cleanly, then what is left of it by force, epmd last."""
        servers = [p for p in self.processes() if _name(p) == "beam.smp"]
        for server in servers:
            with contextlib.suppress(psutil.Error):
                server.terminate()
        psutil.wait_procs(servers, timeout=timeout_s)
        self.kill()

    def kill(self) -> None:
        """End everything of the node at once. Durable messages survive that, as a power cut."""
        self._close_output()
        for launched in self._launched:  # in its first instant a process has no environment yet
            launched.kill()
        servers: set[psutil.Process] = set()
        for _ in range(250):  # again, for a child that was born in between
            processes = self.processes()
            if not processes:
                # A zombie's threads may still end, and until the last one has its ports are taken.
                psutil.wait_procs(servers, timeout=2.0)
                return
            servers.update(process for process in processes if _name(process) == "beam.smp")
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.02)
        raise StartFailed(  # pragma: no cover - a process that the kernel cannot end
            f"Some processes of the node in {self.state_dir} cannot be ended.",
            fix="restart the machine, or choose another port",
        )

    def _console(self) -> str:
        """What the server and epmd have printed since ``launch``."""
        return (
            os.pread(self._output, 200_000, 0).decode(errors="replace") if self._output >= 0 else ""
        )

    def _close_output(self) -> None:
        if self._output >= 0:
            os.close(self._output)
            self._output = -1

    def _failed(self, what: str) -> StartFailed:
        words = pick_words(self._console())
        if not words:
            with contextlib.suppress(OSError):
                words = pick_words(self.log.read_text(errors="replace"))
        fix = f"put right what it names and start again; the whole log is in {self.log}"
        free = shutil.disk_usage(self.state_dir).free / 1e6
        if free < DISK_ALARM_MB:
            words.insert(0, f"only {free:.1f} MB are free on the disk of {self.state_dir}")
            fix = "make room on that disk, or set XDG_STATE_HOME to a folder on another one"
        return StartFailed(
            what, why="\n        ".join(words) or "it said nothing about it", fix=fix
        )

    def _write_files(self) -> None:
        for folder in ("home", "log"):
            (self.state_dir / folder).mkdir(parents=True, exist_ok=True)
        self.state_dir.chmod(0o700)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        (self.state_dir / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {self.management_port}\n"
            "log.file = rabbitmq.log\n"
            "log.console = true\nlog.console.level = error\n"
        )
        (self.state_dir / "enabled_plugins").write_text("[rabbitmq_management].\n")
        # Erlang writes its cookie in steps, and refuses to start with one that is cut short.
        cookie = self.state_dir / "home/.erlang.cookie"
        if not cookie.exists() or cookie.stat().st_size < 20:
            draft = cookie.with_name("cookie.draft")
            draft.unlink(missing_ok=True)
            draft.write_text(secrets.token_hex(20))
            draft.chmod(0o400)
            draft.replace(cookie)

    def _environ(self, script: Path) -> dict[str, str]:
        """A clean environment: RABBITMQ_ and ERL_ variables of the user would change the node."""
        state = str(self.state_dir)
        erlang = script.parents[2] / "erlang/bin"  # where a Debian tree has it
        path = [str(erlang)] if (erlang / "erl").exists() else []
        path += [os.environ.get("PATH", os.defpath), "/usr/bin", "/bin", "/opt/homebrew/bin"]
        kept = {key: os.environ[key] for key in ("LANG", "LC_ALL", "TMPDIR") if key in os.environ}
        return {
            **kept,
            MARK: state,
            "MQLAB_NODE_HOME": str(HOME),
            "PATH": os.pathsep.join(path),
            "HOME": f"{state}/home",
            "RABBITMQ_NODENAME": "mqlab@localhost",  # no clash: each node has an epmd of its own
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": f"{state}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{state}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{state}/{_data_folder(script)}",
            "RABBITMQ_LOG_BASE": f"{state}/log",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
            # With it the start script becomes the server: the pid and the exit status are the VM's.
            "NOTIFY_SOCKET": f"{state}/no-socket",
        }


def find_server() -> Path | None:
    """The RabbitMQ server script of this machine that an ordinary user may run, or None.

    ``MQLAB_RABBITMQ`` names one that is elsewhere. Raises StartFailed if that is not a file.
    """
    if named := os.environ.get("MQLAB_RABBITMQ"):
        if not Path(named).is_file():
            raise StartFailed(
                f"MQLAB_RABBITMQ names {named}, and there is no such file.",
                fix="set it to the path of a rabbitmq-server script, or unset it",
            )
        return Path(named).absolute()
    places = [Path("/usr/lib/rabbitmq/bin")]
    places += [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    places += [Path("/opt/homebrew/sbin"), Path("/usr/local/sbin"), Path("/opt/rabbitmq/sbin")]
    places += [Path("/home/linuxbrew/.linuxbrew/sbin")]
    places += sorted(Path.home().glob("rabbitmq_server-*/sbin"), reverse=True)
    for place in places:
        script = place / "rabbitmq-server"
        # Debian's wrapper in sbin refuses everyone but root and rabbitmq.
        if script.is_file() and script.resolve().name != "rabbitmq-script-wrapper":
            return script.absolute()
    return None


def pick_words(text: str) -> list[str]:
    """From what RabbitMQ printed, the lines that a person would quote: errors, without stamps."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text)  # colours
    text = re.sub(r"\n\s+##  ##.*?Starting broker\.\.\.", "\n", text, flags=re.DOTALL)  # its banner
    picked: list[str] = []
    for line in text.splitlines():
        stamped = re.match(r"\d{4}-\d\d-\d\d \S+ \[(\w+)\] <[\d.]+> ?(.*)", line)
        level, words = stamped.groups() if stamped else ("error", line)
        words = words.strip(" =-")
        if level in ("error", "critical", "alert", "emergency") and words and words not in picked:
            picked.append(words)
    # The system's own code for what went wrong says most; Erlang buries it in a long report.
    codes = [n for n, words in enumerate(picked) if re.search(SYSTEM_CODES, words)]
    first = max(0, codes[0] - 4) if codes else 0
    return picked[first : first + 8]


def _open_output() -> int:
    """A file that a full disk does not touch, for what is printed until the node is ready."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mqlab-node")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _data_folder(script: Path) -> str:
    """A folder for each series: one version cannot always read what another wrote."""
    series = re.search(r"rabbitmq\D*(\d+\.\d+)\.\d", str(script.resolve()))
    return f"data-{series[1]}" if series else "data"


def _marked(state_dir: Path) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    for child in _children:
        child.poll()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environ = process.environ()
            if environ.get(MARK) == str(state_dir) and process.pid != os.getpid():
                yield process, environ


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""


def _can_tie() -> bool:
    return shutil.which("setpriv") is not None


def _find_epmd(path: str) -> str:
    """epmd is beside erl, or in a folder of the runtime system under it."""
    if found := shutil.which("epmd", path=path):
        return found
    erl = shutil.which("erl", path=path)
    if erl is None:
        raise StartFailed(
            "RabbitMQ is here, and Erlang, which it runs on, is not.",
            why="there is no `erl` in PATH",
            fix="install Erlang, or add the folder of `erl` to PATH",
        )
    for folder in (Path(erl).resolve().parents[1], Path(erl).resolve().parents[1] / "lib/erlang"):
        for epmd in folder.glob("erts-*/bin/epmd"):
            return str(epmd)
    raise StartFailed("Erlang's epmd was not found.", fix=f"add its folder to PATH (erl is {erl})")
