"""A private node as a way to get a broker: the RabbitMQ of this machine, or fetched packages."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mqlab.broker import packages, system
from mqlab.broker.node import DISK_ALARM_MB, Node, find_server
from mqlab.broker.ports import free_port
from mqlab.broker.system import Say
from mqlab.commands import command
from mqlab.errors import BrokerError, StartFailed
from mqlab.settings import Settings


class Local:
    """The private node of this user at the ports in ``settings``."""

    name = "local"

    def __init__(self, settings: Settings, state_dir: Path | None = None) -> None:
        self.settings = settings
        state_dir = state_dir or system.state_dir() / f"broker-{settings.port}"
        self.node = Node(state_dir.resolve(), settings.port, settings.management_port)

    def serves(self) -> bool:
        """Return whether the broker that answers at this address is this one."""
        return self.settings.is_local and self.node.is_listening()

    def why_not(self) -> str:
        """Return why it cannot be started here, in words; "" if it can."""
        if sys.platform == "win32":
            return "a private node does not run on Windows"
        if packages.can_fetch() or find_server() or packages.find_unpacked():
            return ""
        return "no rabbitmq-server in PATH or the usual places, nor Debian or Ubuntu to fetch one"

    def join(self) -> str:
        """Wait for a node that runs or is starting; return its version, "" if there is none."""
        if not self.node.is_running():
            return ""
        node = self.node.as_recorded()
        self.node, self.settings = node, node.settings
        try:
            return node.wait_ready()
        except BrokerError:
            if node.is_running():
                raise
            return ""

    def start(self, *, with_parent: bool, say: Say) -> str:
        """Start it, wait until AMQP answers and return its version.

        Raises BrokerError. A start that fails or is interrupted ends what it has started.
        """
        node = self.node
        node.check_path()  # before anything is downloaded
        script = _find_script(say)
        say("Starting RabbitMQ as a private node of this user (3 to 10 s) ...")
        try:
            node.kill()  # an epmd that a killed node has left behind
            node.launch(script, with_parent=with_parent)
            version = node.wait_ready()
        except BaseException:  # Ctrl-C included
            node.kill()
            raise
        free = shutil.disk_usage(node.state_dir).free / 1e6
        if free < DISK_ALARM_MB:
            say(
                f"Only {free:.0f} MB are free on the disk of {node.state_dir}: RabbitMQ's disk "
                f"alarm blocks all publishers until {DISK_ALARM_MB:.0f} MB are free."
            )
        return version

    def stop(self, say: Say) -> bool:
        """Stop it cleanly; return False if there is nothing to stop."""
        if not self.node.processes():
            return False
        say("Stopping RabbitMQ (about 6 s) ...")
        self.node.stop()
        say(f"Stopped. Queues and durable messages are kept in {self.node.state_dir}.")
        return True

    def logs(self, lines: int) -> str:
        """Return the last lines of its log, from the last run if it does not run now."""
        if not self.node.log.exists():
            raise BrokerError(
                f"There is no log for port {self.node.port}: no node was started there yet.",
                fix=command("broker start"),
            )
        return "\n".join(self.node.log.read_text(errors="replace").splitlines()[-lines:])

    @contextlib.contextmanager
    def throw_away(self, say: Say) -> Iterator[tuple[Settings, float]]:
        """Launch a second one on free ports, give its address and launch time, and remove it."""
        script = _find_script(say)
        with tempfile.TemporaryDirectory("-mqlab", ignore_cleanup_errors=True) as folder:
            node = Node(Path(folder).resolve(), free_port(), free_port())
            try:
                launched = time.monotonic()
                node.launch(script, with_parent=True)
                yield node.settings, launched
            finally:
                node.kill()


def _find_script(say: Say) -> Path:
    """The server script to run: the machine's own, else an unpacked one, fetched if necessary."""
    script = find_server()
    if script is None and packages.can_fetch():
        script = packages.fetch_server(say=say)
    script = script or packages.find_unpacked()
    if script is None:  # pragma: no cover - gone since why_not
        raise StartFailed("The RabbitMQ of this machine is gone.")
    return script
