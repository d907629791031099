"""Start real brokers for the tests, on free ports, and leave nothing running."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import psutil
import pytest

from mqlab import broker
from mqlab.broker import packages
from mqlab.broker.node import Node, find_server
from mqlab.errors import NoBrokerFound
from mqlab.settings import Settings
from tests.helpers import free_port, management


@pytest.fixture(scope="session")
def missing() -> Callable[[str], None]:
    """A function to call if a component is missing: it skips the test, or fails it in CI."""
    return _missing


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing")


class PrivateBroker:
    """A node of one test, which may kill and restart it."""

    def __init__(self, state_dir: Path) -> None:
        self.node = Node(state_dir.resolve(), free_port(), free_port())
        self.settings = self.node.settings
        self.restart()

    def restart(self) -> None:
        broker.start(
            way="local",
            port=self.node.port,
            management_port=self.node.management_port,
            state_dir=self.node.state_dir,
            with_parent=True,
            say=lambda _line: None,
        )

    def kill(self) -> None:
        """Kill the server and all its processes with SIGKILL."""
        self.node.kill()

    def stop(self) -> None:
        """Stop the node cleanly, which takes about 6 s."""
        self.node.stop()


@pytest.fixture(scope="session")
def broker_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The broker of the session: the one in AMQP_URL, or else a private node."""
    if "AMQP_URL" in os.environ:
        yield broker.require().settings
        return
    private = _private_broker(tmp_path_factory.mktemp("broker"))
    yield private.settings
    queues = management(private.settings, "queues")
    private.kill()
    assert [queue["name"] for queue in queues] == [], "a test has left a queue"


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Check that no mqlab thread and no child process is left after the last test."""
    yield
    # If its start was interrupted, Python lists a thread forever, although it never ran.
    alive = [thread for thread in threading.enumerate() if thread.is_alive()]
    threads = [thread.name for thread in alive if thread.name.startswith("mqlab")]
    deadline = time.monotonic() + 10
    while children := _living_children():
        assert time.monotonic() < deadline, f"a test has left a process: {children}"
        time.sleep(0.1)
    assert threads == [], "a test has left a thread"


def _living_children() -> list[str]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE:
                node = child.environ().get("MQLAB_NODE_DIR", "")  # the folder has the test's name
                found.append(f"{' '.join(child.cmdline())[:80]} {node}".strip())
    return found


@pytest.fixture
def private_broker(tmp_path: Path) -> Iterator[Callable[[], PrivateBroker]]:
    """A function that starts a private node for this test, in about 4 s."""
    started: list[PrivateBroker] = []

    def start() -> PrivateBroker:
        started.append(_private_broker(tmp_path / f"broker-{len(started)}"))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def queue(broker_settings: Settings) -> Iterator[str]:
    """The name of a queue for this test. It and its dead-letter queue are deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    with pika.BlockingConnection(broker_settings.parameters(name="tests clean up")) as connection:
        channel = connection.channel()
        channel.queue_delete(name)
        channel.queue_delete(f"{name}.dead")


@pytest.fixture(scope="session")
def server_script() -> Path:
    """The RabbitMQ server script that private nodes run."""
    script = find_server() or packages.find_unpacked()
    if script is None:
        if not packages.can_fetch():
            _missing("RabbitMQ")
        script = packages.fetch_server(say=lambda _line: None)
    return script


def _private_broker(folder: Path) -> PrivateBroker:
    try:
        return PrivateBroker(folder)
    except NoBrokerFound:
        _missing("RabbitMQ")
        raise
