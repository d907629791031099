"""A private RabbitMQ node of an ordinary user: everything in one folder, on loopback only.

The processes of a node are recognised by ``MQLAB_NODE_DIR`` in their environment, which cannot go
stale as a pid file does.
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

from mqlab.broker import system
from mqlab.broker.ports import free_port, is_open
from mqlab.connection import handshake
from mqlab.errors import MqlabError, PortTaken, StartFailed
from mqlab.settings import Settings

READY_TIMEOUT_S = 60.0
"""Seconds. A start takes 3 to 5; a busy machine was seen to need 20."""
STOP_TIMEOUT_S = 20.0
"""Seconds. A clean stop takes about 6 with the management plugin."""
DISK_ALARM_MB = 50.0
"""RabbitMQ's default limit: with less free space a disk alarm blocks all publishers."""
SYSTEM_CODES = r"\b(enospc|edquot|erofs|eacces|eaddrinuse|emfile|enomem)\b"
MARK = "MQLAB_NODE_DIR"
HOME = Path(__file__).resolve().parents[2]
"""The checkout that contains this code. A node records it, so that another can name it."""

# A long-lived parent (a kernel, a test run) reaps its children through these.
_children: list[subprocess.Popen[bytes]] = []


class Node:
    """A node's state folder and its two ports. The constructor starts nothing."""

    def __init__(self, state_dir: Path, port: int, management_port: int) -> None:
        self.state_dir, self.port, self.management_port = state_dir, port, management_port
        self._launched: list[subprocess.Popen[bytes]] = []  # empty: another process started it
        self._output = -1

    @property
    def settings(self) -> Settings:
        return Settings.on_this_machine(self.port, self.management_port)

    @property
    def log(self) -> Path:
        return self.state_dir / "log/rabbitmq.log"

    def as_recorded(self) -> Node:
        """Return the same node with the ports of its last start."""
        with contextlib.suppress(OSError):
            text = (self.state_dir / "rabbitmq.conf").read_text()
            ports = [int(port) for port in re.findall(r"(?:127.0.0.1:|tcp.port = )(\d+)", text)]
            if len(ports) == 2:
                return Node(self.state_dir, *ports)
        return self

    def processes(self) -> list[psutil.Process]:
        """Return every process of the node: the virtual machine, its helpers and epmd."""
        return [process for process, _ in _marked(self.state_dir)]

    def is_running(self) -> bool:
        """Return whether it runs or is starting, with more processes than an epmd left behind."""
        return any(_name(process) != "epmd" for process in self.processes())

    def is_listening(self) -> bool:
        """Return whether this node, and not some other server, listens on its AMQP port."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                for socket in process.net_connections("tcp"):
                    if socket.status == psutil.CONN_LISTEN and socket.laddr.port == self.port:
                        return True
        return False

    def started_by(self) -> str:
        """Return the checkout whose command started it, or "" if it does not run."""
        return next((env.get("MQLAB_NODE_HOME", "") for _, env in _marked(self.state_dir)), "")

    def launch(self, script: Path, *, with_parent: bool = False) -> None:
        """Start epmd and the server, and return at once.

        With ``with_parent``, both end when the calling thread ends (Linux). Raises StartFailed if
        a program is missing or the state folder cannot be used.
        """
        self._launched = []
        self.check_path()
        with system.explaining(self.state_dir, system.STATE):
            system.make_private(self.state_dir, system.STATE)
            self._write_files()
            environ = self._environ(script)
            # Otherwise the node outlives the terminal.
            tie = system.ends_with_parent() if with_parent else []
            self._output = _open_output()
            # The epmd that the server starts would stay behind and listen on every interface.
            epmd = _find_epmd(environ["PATH"])
            for command in ([epmd, "-port", environ["ERL_EPMD_PORT"]], [str(script)]):
                process = subprocess.Popen(
                    tie + command, env=environ, cwd=self.state_dir, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
                )  # fmt: skip
                self._launched.append(process)
                _children.append(process)

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> str:
        """Wait until the node completes an AMQP handshake; return its version.

        Raises StartFailed with RabbitMQ's own words if the node ends or is not ready in time, and
        PortTaken if another server was faster to listen on its port.
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
                    # RabbitMQ may hang then instead of ending.
                    if re.search(r"\benospc\b|no space left", self._console()):
                        raise self._failed("RabbitMQ cannot start: the disk is full.")
                if version := self._shake_hands():
                    return version
                time.sleep(0.05)
            raise self._failed(f"RabbitMQ was not ready after {timeout_s:.0f} s.")
        finally:
            self._close_output()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the node cleanly, then end by force what is left of it, epmd included."""
        servers = [p for p in self.processes() if _name(p) == "beam.smp"]
        for server in servers:
            with contextlib.suppress(psutil.Error):
                server.terminate()
        psutil.wait_procs(servers, timeout=timeout_s)
        self.kill()

    def kill(self) -> None:
        """End every process of the node at once. Durable messages survive, as in a power cut."""
        self._close_output()
        for launched in self._launched:  # a process just spawned may not expose its environment yet
            launched.kill()
        servers: set[psutil.Process] = set()
        for _ in range(250):  # again, for children started in between
            processes = self.processes()
            if not processes:
                # The threads of a zombie may still be ending: its ports stay taken until then.
                psutil.wait_procs(servers, timeout=2.0)
                return
            servers.update(process for process in processes if _name(process) == "beam.smp")
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.02)
        raise StartFailed(  # pragma: no cover - a process that the kernel cannot end
            f"Some processes of the node in {self.state_dir} cannot be killed.",
            fix="restart the machine, or choose another port",
        )

    def _shake_hands(self) -> str:
        """Return the version of this node if it completes a handshake, else ""."""
        if not is_open(self.port):
            return ""
        try:
            version = handshake(self.settings, timeout_s=5.0)
        except MqlabError:
            return ""
        if self.is_listening():
            return version
        raise PortTaken(
            f"Another RabbitMQ took port {self.port} while this one was starting.",
            why="two were started at the same moment, perhaps by two users of this machine",
            fix=f"choose another port: export MQLAB_AMQP_PORT={free_port()}, or use that broker: "
            "run the command again",
        )

    def _console(self) -> str:
        """Return what the server and epmd have printed since ``launch``."""
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
        fix = f"correct what it names and start again; the whole log is in {self.log}"
        free = shutil.disk_usage(self.state_dir).free / 1e6
        if free < DISK_ALARM_MB:
            words.insert(0, f"only {free:.1f} MB are free on the disk of {self.state_dir}")
            fix = f"make room on that disk, or set {system.STATE} to a folder on another one"
        return StartFailed(
            what, why="\n        ".join(words) or "RabbitMQ printed no error", fix=fix
        )

    def check_path(self) -> None:
        """Raise StartFailed if RabbitMQ cannot work in the state folder because of its path."""
        # RabbitMQ puts the path between quotes, to ask `df` for the free space.
        if not str(self.state_dir).isprintable() or set(str(self.state_dir)) & set("'\""):
            raise StartFailed(
                f"A node cannot keep its data in {str(self.state_dir)!r}.",
                why="RabbitMQ does not start in a folder with a quote or an unprintable character "
                "in its path",
                fix=f"export {system.STATE}=/a/plain/path  and run the command again",
            )

    def _write_files(self) -> None:
        self.state_dir.chmod(0o700)
        for folder in ("home", "log"):
            (self.state_dir / folder).mkdir(exist_ok=True)
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
        # Erlang writes its cookie in several steps and does not start with a truncated one.
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
        if not f"{state}{script}".isascii():  # in UTF-8, RabbitMQ 3.10 cannot pass it to `df`
            kept["LC_ALL"] = "C"
        return {
            **kept,
            MARK: state,
            "MQLAB_NODE_HOME": str(HOME),
            "PATH": os.pathsep.join(path),
            "HOME": f"{state}/home",
            "RABBITMQ_NODENAME": "mqlab@localhost",  # unique: each node has its own epmd
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": f"{state}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{state}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{state}/{data_folder(script)}",
            "RABBITMQ_LOG_BASE": f"{state}/log",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
            # Makes the start script exec the server: pid and exit status are those of the VM.
            "NOTIFY_SOCKET": f"{state}/no-socket",
        }


def find_server() -> Path | None:
    """Return the RabbitMQ server script of this machine that an ordinary user may run, or None.

    ``MQLAB_RABBITMQ`` names one in another place. Raises StartFailed if that is not a file.
    """
    if named := os.environ.get("MQLAB_RABBITMQ"):
        if not Path(named).is_file():
            raise StartFailed(
                f"MQLAB_RABBITMQ is {named}, but there is no such file.",
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
        # Debian's wrapper in sbin runs for root and rabbitmq only.
        if script.is_file() and script.resolve().name != "rabbitmq-script-wrapper":
            return script.absolute()
    return None


def pick_words(text: str) -> list[str]:
    """Pick the errors from what RabbitMQ printed, without banner and time stamps."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text)  # colours
    text = re.sub(r"\n\s+##  ##.*?Starting broker\.\.\.", "\n", text, flags=re.DOTALL)  # its banner
    picked: list[str] = []
    for line in text.splitlines():
        stamped = re.match(r"\d{4}-\d\d-\d\d \S+ \[(\w+)\] <[\d.]+> ?(.*)", line)
        level, words = stamped.groups() if stamped else ("error", line)
        words = words.strip(" =-")
        if level in ("error", "critical", "alert", "emergency") and words and words not in picked:
            picked.append(words)
    # The operating system's error code matters most; Erlang buries it in a long report.
    codes = [n for n, words in enumerate(picked) if re.search(SYSTEM_CODES, words)]
    first = max(0, codes[0] - 4) if codes else 0
    return picked[first : first + 8]


def _open_output() -> int:
    """Open a file for what is printed until the node is ready; a full disk does not affect it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mqlab-node")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def data_folder(script: Path) -> str:
    """Name a data folder for each series, as one version cannot always read another's data."""
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


def _find_epmd(path: str) -> str:
    """Find epmd beside erl, or in the runtime system's own folder below it."""
    if found := shutil.which("epmd", path=path):
        return found
    erl = shutil.which("erl", path=path)
    if erl is None:
        raise StartFailed(
            "RabbitMQ is installed, but Erlang, which it runs on, is not.",
            why="there is no `erl` in PATH",
            fix="install Erlang, or add the folder that contains `erl` to PATH",
        )
    for folder in (Path(erl).resolve().parents[1], Path(erl).resolve().parents[1] / "lib/erlang"):
        for epmd in folder.glob("erts-*/bin/epmd"):
            return str(epmd)
    raise StartFailed("Erlang's epmd was not found.", fix=f"add its folder to PATH (erl is {erl})")
