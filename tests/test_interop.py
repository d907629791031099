"""The walk-through's own scripts, as they stand, on the broker that ``mqlab broker start`` gives.

They know one address, localhost:5673, so these tests need that port. Where a learner's broker has
it they are skipped, since its queue is not ours to empty; CI must have the port free.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mqlab import QUEUE, BackgroundConsumer, Producer, Task, broker, perform_heavy_task
from mqlab.errors import NoBrokerFound, PortTaken
from mqlab.settings import Settings
from tests.helpers import assert_depth, consumers, depth, eventually, raw_channel, take_all

SCRIPTS = Path(__file__).parent / "walkthrough"
quick_task = partial(perform_heavy_task, duration_s=0.1)


@pytest.fixture(scope="module")
def walkthrough_broker(
    tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]
) -> Iterator[Settings]:
    from mqlab.broker.node import Node

    state_dir = tmp_path_factory.mktemp("walkthrough").resolve()
    node = Node(state_dir, 5673, 15673)
    try:
        broker.start(
            way="local",
            port=node.port,
            management_port=node.management_port,
            state_dir=state_dir,
            with_parent=True,
            say=lambda _line: None,
        )
    except PortTaken:
        missing("a free port 5673 (a broker of yours may run there)")
    except NoBrokerFound:
        missing("RabbitMQ")
    yield node.settings
    node.kill()


@pytest.fixture
def settings(walkthrough_broker: Settings) -> Iterator[Settings]:
    with raw_channel(walkthrough_broker) as channel:
        channel.queue_delete(QUEUE)
    return walkthrough_broker


def run_script(name: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-u", name], cwd=SCRIPTS, capture_output=True, text=True, timeout=30
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture
def their_consumer(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    assert settings.port == 5673, "the address that the scripts know"
    process = subprocess.Popen(
        [sys.executable, "-u", "async_consumer.py"],
        cwd=SCRIPTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate(timeout=10)


def output_when_done(process: subprocess.Popen[str], settings: Settings, count: int) -> str:
    """Wait until their consumer has acked ``count`` tasks of 5 s each, and return what it said."""
    eventually(lambda: consumers(settings, QUEUE) == 1)
    assert process.stdout is not None
    lines = []
    while sum("Finished" in line for line in lines) < count:
        line = process.stdout.readline()
        assert line, "their consumer ended: " + "".join(lines)
        lines.append(line)
    eventually(lambda: depth(settings, QUEUE) == 0)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    return "".join(lines)


def test_their_producer_then_our_consumer(settings: Settings) -> None:
    said = run_script("async_prodcuer.py")
    shown = re.search(r"Task ID (\w{8}) published", said)
    assert shown
    with BackgroundConsumer(settings=settings) as consumer:
        [record] = consumer.wait(1, timeout_s=20)
    assert record.task_id is not None
    assert record.task_id[:8] == shown[1]
    assert record.result == "COMPLETED: Report generated for 'End-of-Year Audit Report (ASYNC)'"
    assert_depth(settings, QUEUE, 0)


def test_our_consumer_then_their_producer(settings: Settings) -> None:
    def work(task: Task) -> str:
        return quick_task(task.data, task_id=task.task_id)[1]

    with BackgroundConsumer(work, settings=settings) as consumer:
        shown = re.search(r"Task ID (\w{8}) published", run_script("async_prodcuer.py"))
        [record] = consumer.wait(1, timeout_s=20)
    assert shown
    assert record.task_id is not None
    assert record.task_id[:8] == shown[1]


def test_our_producer_then_their_consumer(
    settings: Settings, request: pytest.FixtureRequest
) -> None:
    with Producer(settings=settings) as producer:
        task_id = producer.send("from ours").task_id
    [(_, properties, body)] = take_all(settings, QUEUE)
    assert properties.message_id == Task.from_json(body).task_id == task_id
    with Producer(settings=settings) as producer:
        producer.send("from ours")
    process = request.getfixturevalue("their_consumer")
    said = output_when_done(process, settings, 1)
    assert "Received task for: from ours." in said
    assert "COMPLETED: Report generated for 'from ours'" in said


def test_their_consumer_then_our_producer(
    settings: Settings, their_consumer: subprocess.Popen[str]
) -> None:
    eventually(lambda: _declared(settings))
    with Producer(settings=settings) as producer:
        producer.send("ours, later")
    said = output_when_done(their_consumer, settings, 1)
    assert "COMPLETED: Report generated for 'ours, later'" in said


def test_their_synchronous_client_still_runs() -> None:
    said = run_script("sync_client.py")
    assert "Main thread will be blocked now!" in said
    assert re.search(r"Total time waited: 5\.\d\d seconds", said)


def _declared(settings: Settings) -> bool:
    import pika.exceptions

    try:
        return consumers(settings, QUEUE) == 1
    except pika.exceptions.ChannelClosedByBroker:
        return False
