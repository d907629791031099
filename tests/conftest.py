"""Real brokers for the tests: never the learner's, always on free ports, gone at the end."""

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
    """What to call when a component that a test needs is not here: skip at home, fail in CI."""
    return _missing


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing")


class PrivateBroker:
    """A node of one test's own, which the test may kill and start again."""

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
        """kill -9 of the server and everything of it."""
        self.node.kill()

    def stop(self) -> None:
        """A clean stop, some 6 s."""
        self.node.stop()


@pytest.fixture(scope="session")
def broker_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The session's broker: the one in AMQP_URL, else a private node."""
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
    """After the last test and the last broker: no thread of mqlab, and no process of ours."""
    yield
    # Python lists a thread whose start was interrupted for ever, though it runs nothing.
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
                node = child.environ().get("MQLAB_NODE_DIR", "")  # its name has that of the test
                found.append(f"{' '.join(child.cmdline())[:80]} {node}".strip())
    return found


@pytest.fixture
def private_broker(tmp_path: Path) -> Iterator[Callable[[], PrivateBroker]]:
    """A function that starts a node of this test's own. Each start costs about 4 s."""
    started: list[PrivateBroker] = []

    def start() -> PrivateBroker:
        started.append(_private_broker(tmp_path / f"broker-{len(started)}"))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def queue(broker_settings: Settings) -> Iterator[str]:
    """The name of a queue of this test's own; it and its dead queue are deleted afterwards."""
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
