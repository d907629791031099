"""Find, start, check and stop a broker.

``AMQP_URL`` wins: that broker is used, never started or stopped. Otherwise ``start`` takes the one
that runs already, else starts one in Docker if an engine answers, else a private node of this user.
``Docker`` and ``Local`` are these two ways, with the same methods.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from mqlab.broker import packages, system
from mqlab.broker.compose import Docker
from mqlab.broker.local import Local
from mqlab.broker.management import page_answers
from mqlab.broker.node import HOME, READY_TIMEOUT_S, Node
from mqlab.broker.ports import check_free, identify, is_open
from mqlab.broker.system import Say
from mqlab.connection import handshake
from mqlab.errors import BrokerError, ConnectError, NoBrokerFound, SettingsError, StartFailed
from mqlab.settings import AMQP_PORT, MANAGEMENT_PORT, Settings, read_port

ORIGINS = {
    "url": "from AMQP_URL",
    "docker": "in Docker",
    "local": "private node on this machine",
    "found": "it was there already; mqlab neither started it nor stops it",
}


@dataclass(frozen=True)
class Broker:
    """A broker that has just completed an AMQP handshake, and where it comes from.

    ``way`` is ``url``, ``docker``, ``local`` or ``found``; ``started`` is whether this call started
    it; ``checkout`` is the folder whose command started a private node.
    """

    settings: Settings
    way: str
    version: str
    started: bool = False
    checkout: str = ""

    def __str__(self) -> str:
        origin = ORIGINS[self.way]
        if self.checkout and self.checkout != str(HOME):
            origin += f", started from {self.checkout}"
        return f"RabbitMQ {self.version} answers at {self.settings.address} ({origin})."

    __repr__ = __str__


@dataclass(frozen=True)
class StartTimes:
    """Seconds from the launch of a broker until each of its doors answered."""

    port_s: float
    amqp_s: float
    management_s: float
    way: str


def require(settings: Settings | None = None, timeout_s: float = 5.0) -> Broker:
    """Return the broker that answers.

    Raises ConnectError, which names the command that starts one, within ``timeout_s`` seconds.
    """
    settings = settings or Settings.from_env()
    version = handshake(settings, timeout_s=timeout_s)
    if "AMQP_URL" in os.environ and settings == Settings.from_env():
        return Broker(settings, "url", version)
    local = Local(settings)
    if local.serves():
        return Broker(settings, local.name, version, checkout=local.node.started_by())
    return Broker(settings, "docker" if Docker(settings).serves() else "found", version)


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

    ``way`` (else ``MQLAB_BROKER``) forces ``docker`` or ``local``. With ``with_parent``, a private
    node ends with the thread that calls this, so call it from the main one (Linux). ``say`` gets a
    line for each step. Raises PortTaken within 2 s, NoBrokerFound, StartFailed with RabbitMQ's own
    words, or ConnectError if the broker in ``AMQP_URL`` does not answer. An interrupted start ends
    what it has started.
    """
    if way is None and "AMQP_URL" in os.environ:
        say("AMQP_URL is set: that broker is used, and nothing is started.")
        return require()
    settings = _settings_here(port, management_port)
    local, docker = Local(settings, state_dir), Docker(settings)
    allowed = _only(way, docker, local)
    with _one_at_a_time(local.node, say):
        if local in allowed and (version := local.join()):
            return Broker(local.settings, "local", version, checkout=local.node.started_by())
        listener = identify(settings.port) if docker in allowed and is_open(settings.port) else None
        if listener and listener.is_rabbitmq:
            with contextlib.suppress(ConnectError):
                return require(settings)
        check_free(settings.port, settings.management_port, listener)
        chosen = _first_that_works(allowed)
        version = chosen.start(with_parent=with_parent, say=say)
        checkout = str(HOME) if chosen is local else ""
        return Broker(settings, chosen.name, version, started=True, checkout=checkout)


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
    settings = _settings_here(port, None)
    local = Local(settings, state_dir)
    with _one_at_a_time(local.node, say):
        if any(each.stop(say) for each in _only(way, local, Docker(settings))):
            return
    if is_open(settings.port):
        listener = identify(settings.port)
        say(f"Port {settings.port} has {listener}, which mqlab did not start: left alone.")
    else:
        say(f"No broker runs at {settings.address}: nothing to stop.")


def status(*, port: int | None = None) -> Broker:
    """Return the broker that answers: the one in ``AMQP_URL``, or on that port of this machine.

    Raises ConnectError if none does.
    """
    return require(None if port is None else _settings_here(port, None))


def logs(*, port: int | None = None, state_dir: Path | None = None, lines: int = 40) -> str:
    """Return the last lines of the broker's own log. Raises BrokerError if there is none."""
    if "AMQP_URL" in os.environ:
        raise BrokerError(
            "The log of the broker in AMQP_URL is on that broker's machine.",
            fix="read it there, or unset AMQP_URL for the broker of this machine",
        )
    settings = _settings_here(port, None)
    local, docker = Local(settings, state_dir), Docker(settings)
    in_docker = not local.node.is_running() and docker.serves()
    return (docker if in_docker else local).logs(lines)


def default_node() -> Node:
    """Return the private node at the ports of the environment, whether it runs or not."""
    return Local(_settings_here(None, None)).node


def measure_start(*, way: str | None = None, say: Say | None = None) -> StartTimes:
    """Start a second broker on free ports, time it until each door answers, and remove it.

    ``way`` is ``docker`` or ``local``, by default Docker if an engine answers. Raises as ``start``
    does.
    """
    say = say or (lambda _line: None)
    here = _settings_here(None, None)
    chosen = _first_that_works(_only(way, Docker(here), Local(here)))
    with chosen.throw_away(say) as (settings, launched):
        return _time_doors(settings, launched, chosen.name, say)


def _time_doors(settings: Settings, launched: float, way: str, say: Say) -> StartTimes:
    doors: dict[str, Callable[[], bool]] = {
        "port": lambda: is_open(settings.port),
        "amqp": lambda: "port" in seen and _shakes_hands(settings),
        "management": lambda: page_answers(settings.management_url, timeout_s=1.0),
    }
    seen: dict[str, float] = {}
    shown = launched
    say("A second broker is launched on free ports ...")
    while len(seen) < len(doors):
        if time.monotonic() - launched > READY_TIMEOUT_S:
            raise StartFailed(f"The second broker was not ready after {READY_TIMEOUT_S:.0f} s.")
        for door, answers in doors.items():
            if door not in seen and answers():
                seen[door] = time.monotonic() - launched
                say(f"{len(seen)} of 3 doors answer")
        if not seen and time.monotonic() - shown >= 2:
            shown = time.monotonic()
            say("  nothing answers yet")
        time.sleep(0.02)
    return StartTimes(seen["port"], seen["amqp"], seen["management"], way)


def _shakes_hands(settings: Settings) -> bool:
    with contextlib.suppress(ConnectError):
        return bool(handshake(settings, timeout_s=1.0))
    return False


def _only(way: str | None, *ways: Docker | Local) -> list[Docker | Local]:
    """Return the one that ``way`` or ``MQLAB_BROKER`` names, else all of them in their order."""
    way = way or os.environ.get("MQLAB_BROKER") or None
    named = [each for each in ways if way in (None, each.name)]
    if not named:
        raise SettingsError(
            f"{way!r} is not a way to start a broker.", fix="use docker or local (MQLAB_BROKER)"
        )
    return named


def _first_that_works(ways: list[Docker | Local]) -> Docker | Local:
    reasons = []
    for each in ways:
        if not (reason := each.why_not()):
            return each
        reasons.append(reason)
    raise NoBrokerFound(
        "There is no RabbitMQ here, and none of the ways to get one works as it is.",
        why="; ".join(["AMQP_URL is not set", *reasons]),
        fix="""choose one of these, then run the command again
  Docker         install Docker Desktop or Docker Engine: https://docs.docker.com/get-docker
  macOS          brew install rabbitmq
  Fedora, RHEL   sudo dnf install rabbitmq-server
  Windows        Docker Desktop, or WSL with Ubuntu: wsl --install
  Debian, Ubuntu nothing to install: mqlab fetches it with apt-get download
  any script     export MQLAB_RABBITMQ=/path/to/sbin/rabbitmq-server
  elsewhere      export AMQP_URL=amqp://user:password@host:5672/vhost""",
    )


def _settings_here(port: int | None, management_port: int | None) -> Settings:
    """Return the address of the broker of this machine, whatever AMQP_URL is."""
    return Settings.on_this_machine(
        port or read_port(os.environ, "MQLAB_AMQP_PORT", AMQP_PORT),
        management_port or read_port(os.environ, "MQLAB_MANAGEMENT_PORT", MANAGEMENT_PORT),
    )


@contextlib.contextmanager
def _one_at_a_time(node: Node, say: Say) -> Iterator[None]:
    """Let one command at a time start or stop this node. The kernel drops a dead process's lock."""
    lock = filelock.FileLock(f"{node.state_dir}.lock")
    with system.explaining(node.state_dir.parent, system.STATE):
        system.make_private(node.state_dir.parent, system.STATE)
        if node.state_dir.exists():
            system.check_private(node.state_dir, system.STATE)
        try:
            lock.acquire(timeout=0.2)
        except filelock.Timeout:
            say("Another command is starting or stopping this broker: waiting for it ...")
            try:
                lock.acquire(timeout=packages.FETCH_TIMEOUT_S)
            except filelock.Timeout:
                raise BrokerError(
                    "Another command has been starting or stopping this broker for too long.",
                    fix="end that command, or choose another port with --port",
                ) from None
    try:
        yield
    finally:
        lock.release()
