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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from mqlab.connection import handshake
from mqlab.errors import MqlabError, StartFailed
from mqlab.ports import free_port, is_open
from mqlab.settings import Settings

READY_TIMEOUT_S = 60.0
"""Seconds. A start takes 3 to 5; a busy machine was seen to need 20."""
STOP_TIMEOUT_S = 20.0
"""Seconds. A clean stop takes about 6 with the management page."""
MARK = "MQLAB_NODE_DIR"
HOME = Path(__file__).resolve().parents[1]
"""The checkout that this code is in: kept with a node, so that a second one can say whose it is."""

# A long-lived parent (a kernel, a test run) reaps its dead children through these.
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Node:
    """A node's state folder and its two ports. Making one starts nothing."""

    state_dir: Path
    port: int
    management_port: int

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

    def launch(self, script: Path, *, with_parent: bool = False) -> subprocess.Popen[bytes]:
        """Start epmd and the server, and return the server's process at once.

        ``with_parent`` ends both when the calling thread's process ends, on Linux.
        """
        self._write_files()
        environ = self._environ(script)
        # The node outlives the terminal, unless it is tied to its parent.
        tie = ["setpriv", "--pdeathsig", "KILL", "--"] if with_parent and _can_tie() else []

        def run(command: list[str], output: str) -> subprocess.Popen[bytes]:
            with (self.state_dir / "log" / output).open("wb") as log:
                process = subprocess.Popen(
                    tie + command, env=environ, cwd=self.state_dir, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                )  # fmt: skip
            _children.append(process)
            return process

        # Our own epmd: one that the server starts is left behind, and listens on every interface.
        epmd = _find_epmd(environ["PATH"])
        run([epmd, "-port", environ["ERL_EPMD_PORT"], "-address", "127.0.0.1"], "epmd.out")
        return run([str(script)], "console.out")

    def wait_ready(
        self, process: subprocess.Popen[bytes] | None, timeout_s: float = READY_TIMEOUT_S
    ) -> str:
        """Wait until the node completes an AMQP handshake; return its version.

        ``process`` is what ``launch`` gave, None for a node that somebody else has started.
        Raises StartFailed with RabbitMQ's own words if the node ends, or is not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        next_look = 0.0
        while time.monotonic() < deadline:
            if process is not None and process.poll() is not None:
                raise self._failed(
                    f"RabbitMQ ended while it started (status {process.returncode})."
                )
            if process is None and time.monotonic() > next_look:  # a look costs some 30 ms
                next_look = time.monotonic() + 1.0
                if not self.is_running():
                    raise self._failed("RabbitMQ ended while it started.")
            if is_open(self.port):
                with contextlib.suppress(MqlabError):
                    return handshake(self.settings, timeout_s=5.0)
            time.sleep(0.05)
        raise self._failed(f"RabbitMQ was not ready after {timeout_s:.0f} s.")

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the node cleanly, then what is left of it by force, epmd last."""
        servers = [p for p in self.processes() if _name(p) == "beam.smp"]
        for server in servers:
            with contextlib.suppress(psutil.NoSuchProcess):
                server.terminate()
        psutil.wait_procs(servers, timeout=timeout_s)
        self.kill()

    def kill(self) -> None:
        """End everything of the node at once. Durable messages survive that, as a power cut."""
        for _ in range(250):  # again, for a child that was born in between
            processes = self.processes()
            if not processes:
                return
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.02)
        raise StartFailed(  # pragma: no cover - a process that the kernel cannot end
            f"Some processes of the node in {self.state_dir} cannot be ended.",
            fix="restart the machine, or choose another port",
        )

    def last_words(self, lines: int = 12) -> list[str]:
        """The lines of the last start's logs that tell what went wrong, in RabbitMQ's own words."""
        text = ""
        for name in ("console.out", "rabbitmq.log"):
            with contextlib.suppress(OSError):
                text += (self.state_dir / "log" / name).read_text(errors="replace") + "\n"
        return pick_words(text)[:lines]

    def _failed(self, what: str) -> StartFailed:
        words = "\n        ".join(self.last_words())
        return StartFailed(
            what, why=words or "it left no word in its log", fix=f"the whole log is in {self.log}"
        )

    def _write_files(self) -> None:
        for folder in ("home", "data", "log"):
            (self.state_dir / folder).mkdir(parents=True, exist_ok=True)
        self.state_dir.chmod(0o700)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        (self.state_dir / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {self.management_port}\n"
            "log.file = rabbitmq.log\n"
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
            "RABBITMQ_MNESIA_BASE": f"{state}/data",
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
    """From RabbitMQ's logs, the lines that a person would quote: errors, without their stamps."""
    picked: list[str] = []
    for line in text.splitlines():
        stamped = re.match(r"\d{4}-\d\d-\d\d \S+ \[(\w+)\] <[\d.]+> ?(.*)", line)
        level, words = stamped.groups() if stamped else ("error", line)
        words = words.strip(" =-")
        if level in ("error", "critical", "alert", "emergency") and words and words not in picked:
            picked.append(words)
    return picked


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
