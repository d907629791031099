"""A real broker: find one, start one, stop it. Three ways, chosen in this order.

1. ``AMQP_URL`` is set: that broker is used, never started or stopped.
2. A Docker engine answers: ``docker compose up`` with the docker-compose.yml of this checkout.
3. RabbitMQ is on this machine, or its packages can be fetched: a private node of this user.

A RabbitMQ that already answers on the port is used as it is (way ``found``). How a private node
runs is in ``node``, where its packages come from in ``packages``, Docker Compose in ``compose``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import filelock

from mqlab.broker import compose, packages
from mqlab.broker.node import DISK_ALARM_MB, HOME, READY_TIMEOUT_S, Node, find_server
from mqlab.broker.ports import check_free, free_port, identify, is_open
from mqlab.connection import handshake
from mqlab.errors import BrokerError, ConnectError, NoBrokerFound, SettingsError, StartFailed
from mqlab.settings import AMQP_PORT, MANAGEMENT_PORT, Settings, read_port

Say = Callable[[str], object]
WAYS = ("docker", "local")


@dataclass(frozen=True)
class Broker:
    """A broker that has just completed an AMQP handshake, and how it came to be there.

    ``way`` is ``url``, ``docker``, ``local`` or ``found``; ``started`` says whether this call
    started it; ``checkout`` is the folder whose command started a private node.
    """

    settings: Settings
    way: str
    version: str
    started: bool = False
    checkout: str = ""

    def __str__(self) -> str:
        how = {
            "url": "from AMQP_URL",
            "docker": "in Docker",
            "local": "private node on this machine",
            "found": "it was there already; mqlab neither started it nor stops it",
        }[self.way]
        if self.checkout and self.checkout != str(HOME):
            how += f", started from {self.checkout}"
        return f"RabbitMQ {self.version} answers at {self.settings.address} ({how})."

    __repr__ = __str__


@dataclass(frozen=True)
class StartTimes:
    """Seconds from the launch of a broker until each of its doors answered."""

    port_s: float
    amqp_s: float
    management_s: float
    way: str


def require(settings: Settings | None = None, timeout_s: float = 5.0) -> Broker:
    """Give the broker that answers. Raises ConnectError, with how to start one, within the time."""
    if settings is None:
        settings = Settings.from_env()
    version = handshake(settings, timeout_s=timeout_s)
    if "AMQP_URL" in os.environ and settings == Settings.from_env():
        return Broker(settings, "url", version)
    if settings.host in ("127.0.0.1", "localhost", "::1"):
        node = _node(settings, None)
        if node.is_running():
            return Broker(settings, "local", version, checkout=node.started_by())
        if compose.is_up(settings.port):
            return Broker(settings, "docker", version)
    return Broker(settings, "found", version)


def start(
    *,
    way: str | None = None,
    port: int | None = None,
    management_port: int | None = None,
    state_dir: Path | None = None,
    with_parent: bool = False,
    say: Say = print,
) -> Broker:
    """Start a broker, or find the one that is there, and return it once AMQP answers.

    ``way`` (else ``MQLAB_BROKER``) forces ``docker`` or ``local``. ``with_parent`` makes a private
    node end with the thread that starts it, so call it from the main one (Linux). ``say`` gets a
    line for each step. Raises PortTaken within 2 s, NoBrokerFound, StartFailed with RabbitMQ's own
    words, or ConnectError for an ``AMQP_URL`` that does not answer. Whatever an interrupted start
    has started, it ends.
    """
    if way is None and "AMQP_URL" in os.environ:
        say("AMQP_URL is set: that broker is used, and nothing is started.")
        settings = Settings.from_env()
        return Broker(settings, "url", handshake(settings))
    way = _forced(way)
    settings = _local_settings(port, management_port)
    node = _node(settings, state_dir)
    with _only_one(node, say):
        if way != "docker" and (running := _adopt(node)):
            return running
        found = identify(settings.port) if way != "local" and is_open(settings.port) else None
        if found and found.is_rabbitmq:
            with contextlib.suppress(ConnectError):
                version = handshake(settings)
                there = "docker" if compose.is_up(settings.port) else "found"
                return Broker(settings, there, version)
        check_free(node.port, node.management_port, found)
        if way == "docker" or (way is None and not compose.why_not()):
            return _start_docker(node, say)
        return _start_node(node, with_parent, say)


def stop(
    *,
    way: str | None = None,
    port: int | None = None,
    state_dir: Path | None = None,
    say: Say = print,
) -> None:
    """Stop the broker that ``start`` started, cleanly; leave alone what mqlab did not start."""
    if way is None and "AMQP_URL" in os.environ:
        say("AMQP_URL is set: mqlab did not start that broker, and does not stop it.")
        return
    way = _forced(way)
    settings = _local_settings(port, None)
    node = _node(settings, state_dir)
    with _only_one(node, say):
        if way != "docker" and node.processes():
            say("Stopping RabbitMQ (some 6 s) ...")
            node.stop()
            say(f"Stopped. Queues and durable messages are kept in {node.state_dir}.")
        elif way != "local" and compose.is_up(settings.port):
            say("Stopping RabbitMQ in Docker ...")
            compose.down()
            say("Stopped. Queues and durable messages are kept in the Docker volume.")
        elif is_open(settings.port):
            what = identify(settings.port)
            say(f"Port {settings.port} has {what}, which mqlab did not start: left alone.")
        else:
            say(f"No broker runs at {settings.address}: nothing to stop.")


def status(*, port: int | None = None) -> Broker:
    """Give the broker that answers: the one in ``AMQP_URL``, else on this machine's port.

    Raises ConnectError if none does.
    """
    if port is None:
        return require()
    return require(_local_settings(port, None))


def logs(*, port: int | None = None, state_dir: Path | None = None, lines: int = 40) -> str:
    """Give the last lines of the broker's own log. Raises BrokerError where there is none."""
    if "AMQP_URL" in os.environ:
        raise BrokerError(
            "The log of the broker in AMQP_URL is on its own machine.",
            fix="look there, or unset AMQP_URL to see the one on this machine",
        )
    node = _node(_local_settings(port, None), state_dir)
    if not node.is_running() and compose.is_up(node.port):
        return compose.logs(lines)
    if not node.log.exists():
        raise BrokerError(
            f"There is no log for port {node.port}: no node was started there yet.",
            fix="python -m mqlab broker start",
        )
    return "\n".join(node.log.read_text(errors="replace").splitlines()[-lines:])


def measure_start(*, way: str | None = None, say: Say | None = None) -> StartTimes:
    """Start a second broker on free ports, time it until each door answers, and remove it.

    ``way`` is ``local`` or ``docker``, by default Docker where an engine answers. Raises as
    ``start`` does.
    """
    tell = say or (lambda _line: None)
    if _forced(way) == "docker" or (_forced(way) is None and not compose.why_not()):
        name = f"mqlab-measure-{os.getpid()}"
        node = Node(Path(os.devnull), free_port(), free_port())
        try:
            started = time.monotonic()
            compose.run_throw_away(name, node.port, node.management_port)
            return _time_doors(node, started, "docker", tell)
        finally:
            compose.remove_throw_away(name)
    script = _server(tell)
    with tempfile.TemporaryDirectory(prefix="mqlab-measure-", ignore_cleanup_errors=True) as folder:
        node = Node(Path(folder).resolve(), free_port(), free_port())
        try:
            started = time.monotonic()
            node.launch(script, with_parent=True)
            return _time_doors(node, started, "local", tell)
        finally:
            node.kill()


def _time_doors(node: Node, started: float, way: str, tell: Say) -> StartTimes:
    seen: dict[str, float] = {}
    told, answering = started, 0
    tell("A second broker is launched on free ports ...")
    while len(seen) < 3:
        now = time.monotonic() - started
        if now > READY_TIMEOUT_S:
            raise StartFailed(f"The second broker was not ready after {READY_TIMEOUT_S:.0f} s.")
        if "port" not in seen and is_open(node.port):
            seen["port"] = time.monotonic() - started
        if "port" in seen and "amqp" not in seen:
            with contextlib.suppress(ConnectError):
                handshake(node.settings, timeout_s=1.0)
                seen["amqp"] = time.monotonic() - started
        if "management" not in seen and page_answers(node.settings.management_url, timeout_s=1.0):
            seen["management"] = time.monotonic() - started
        while answering < len(seen):
            answering += 1
            tell(f"{answering} of 3 doors answer")
        if not seen and time.monotonic() - told >= 2:
            told = time.monotonic()
            tell("  nothing answers yet")
        time.sleep(0.02)
    return StartTimes(seen["port"], seen["amqp"], seen["management"], way)


def page_answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether RabbitMQ's management page is at that address."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return b"RabbitMQ" in answer.read(4096)
    except (OSError, ValueError):
        return False


def _start_docker(node: Node, say: Say) -> Broker:
    if reason := compose.why_not():
        raise NoBrokerFound(
            f"The Docker way does not work here: {reason}.", fix="python -m mqlab broker start"
        )
    say("A Docker engine answers: docker compose up (the first time it fetches the image) ...")
    compose.up(node.settings, node.management_port)
    # The container's health check asks the Erlang node, which answers before AMQP does.
    version = handshake(node.settings, timeout_s=READY_TIMEOUT_S)
    return Broker(node.settings, "docker", version, started=True)


def _start_node(node: Node, with_parent: bool, say: Say) -> Broker:
    script = _server(say)
    say("Starting RabbitMQ as a private node of this user (3 to 10 s) ...")
    try:
        node.kill()  # an epmd left behind by a node that was killed
        node.launch(script, with_parent=with_parent)
        version = node.wait_ready()
    except BaseException:  # Ctrl-C too: what was started is ended
        node.kill()
        raise
    free = shutil.disk_usage(node.state_dir).free / 1e6
    if free < DISK_ALARM_MB:
        say(
            f"Only {free:.0f} MB are free on the disk of {node.state_dir}: RabbitMQ's disk alarm "
            f"is on, and nobody can send until there are {DISK_ALARM_MB:.0f}."
        )
    return Broker(node.settings, "local", version, started=True, checkout=str(HOME))


def _adopt(node: Node) -> Broker | None:
    """The node of this state folder if it runs, or is about to; None if it ends meanwhile."""
    if not node.is_running():
        return None
    node = node.as_recorded()
    try:
        version = node.wait_ready()
    except StartFailed:
        if node.is_running():
            raise
        return None
    return Broker(node.settings, "local", version, checkout=node.started_by())


def _server(say: Say) -> Path:
    """The server script to run: the machine's own, else the cached one, else fetched now."""
    if sys.platform != "win32":
        if (script := find_server() or packages.find_unpacked()) is not None:
            return script
        if packages.can_fetch():
            return packages.fetch_server(say=say)
    raise NoBrokerFound(
        "There is no RabbitMQ here, and none of the ways to get one works as it is.",
        why=f"AMQP_URL is not set; {compose.why_not() or 'Docker was not asked for'}; no "
        "rabbitmq-server in PATH or the usual places; not a Debian or Ubuntu to fetch one from",
        fix="""take one of these ways, then run the command again
  Docker         install Docker Desktop or Docker Engine: https://docs.docker.com/get-docker
  macOS          brew install rabbitmq
  Fedora, RHEL   sudo dnf install rabbitmq-server
  Windows        Docker Desktop, or WSL with Ubuntu: wsl --install
  Debian, Ubuntu nothing to install: mqlab fetches it with apt-get download
  by hand        export MQLAB_RABBITMQ=/path/to/sbin/rabbitmq-server
  elsewhere      export AMQP_URL=amqp://user:password@host:5672/vhost""",
    )


def _forced(way: str | None) -> str | None:
    way = way or os.environ.get("MQLAB_BROKER") or None
    if way is not None and way not in WAYS:
        raise SettingsError(
            f"{way!r} is not a way to start a broker.", fix="use docker or local (MQLAB_BROKER)"
        )
    return way


def default_node() -> Node:
    """The private node that the environment's ports name, whether it runs or not."""
    return _node(_local_settings(None, None), None)


def _local_settings(port: int | None, management_port: int | None) -> Settings:
    """The address of the broker of this machine, whatever AMQP_URL says."""
    port = port or read_port(os.environ, "MQLAB_AMQP_PORT", AMQP_PORT)
    if management_port is None:
        management_port = read_port(os.environ, "MQLAB_MANAGEMENT_PORT", MANAGEMENT_PORT)
    return Settings(port=port, management_url=f"http://127.0.0.1:{management_port}")


def _node(settings: Settings, state_dir: Path | None) -> Node:
    if state_dir is None:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
        state_dir = Path(base) / f"mqlab/broker-{settings.port}"
    management_port = urlsplit(settings.management_url).port or MANAGEMENT_PORT
    return Node(state_dir.resolve(), settings.port, management_port)


@contextlib.contextmanager
def _only_one(node: Node, say: Say) -> Iterator[None]:
    """Let one command at a time start or stop this node. The kernel drops a dead holder's lock."""
    lock = filelock.FileLock(f"{node.state_dir}.lock")
    try:
        node.state_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.2)
        except filelock.Timeout:
            say("Another command is starting or stopping this broker: waiting for it ...")
            lock.acquire(timeout=packages.FETCH_TIMEOUT_S)
    except filelock.Timeout:  # before OSError, which it is one of
        raise BrokerError(
            "Another command has been starting or stopping this broker for too long.",
            fix="end that command, or choose another port with --port",
        ) from None
    except OSError as error:
        raise BrokerError(
            f"The folder {node.state_dir.parent} cannot be used.",
            why=f"{error.strerror or error}",
            fix="make room or give the right to write there, or set XDG_STATE_HOME to another one",
        ) from error
    try:
        yield
    finally:
        lock.release()
