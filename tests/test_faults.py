"""Faults of the broker, the network and the workers. Each test first asserts that it happened.

A node that is killed is the test's own. The numbers of a run are printed: see them with -rP.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mqlab import BackgroundConsumer, Producer, Task
from mqlab.broker.ports import is_free
from mqlab.errors import OutcomeUnknown
from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings
from tests.conftest import PrivateBroker
from tests.helpers import (
    QUEUE_ON_DISK_S,
    assert_depth,
    consumers,
    depth,
    eventually,
    rabbitmqctl,
    raw_channel,
    take_all,
)

QUEUE = "faults"
Start = Callable[[], PrivateBroker]


def quickly(task: Task) -> object:
    return task.data


def ids_in(settings: Settings, queue: str) -> Counter[str]:
    return Counter(properties.message_id for _, properties, _ in take_all(settings, queue))


# ---- the network


@contextmanager
def cut_at_random(proxy: Proxy, times: int, pause_s: tuple[float, float]) -> Iterator[None]:
    """Cut the connection ``times`` times while the block runs, and after it if need be."""

    def cut() -> None:
        while proxy.cuts < times:
            time.sleep(random.uniform(*pause_s))
            proxy.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    yield
    cutter.join(60)
    assert proxy.cuts == times


def test_row_15_3000_sends_over_20_random_cuts_lose_nothing(
    broker_settings: Settings, queue: str
) -> None:
    cuts, sent = 20, []
    with Proxy(broker_settings) as proxy, Producer(queue, settings=proxy.settings) as producer:
        with cut_at_random(proxy, cuts, (0.05, 0.3)):
            while len(sent) < 3000 or proxy.cuts < cuts:
                sent.append(producer.send(len(sent), timeout_s=30).task_id)
        status = producer.status()
    assert status.reconnected >= 1
    found = ids_in(broker_settings, queue)
    lost, doubled = set(sent) - set(found), sum(found.values()) - len(found)
    print(f"{len(sent)} sends, {cuts} cuts: {len(lost)} lost, {doubled} doubled, {status}")
    assert not lost
    assert set(found) == set(sent)
    assert doubled <= cuts


def test_row_15_bulk_sends_over_cuts_lose_nothing(broker_settings: Settings, queue: str) -> None:
    cuts, sent = 5, set[str]()
    repeated = 0
    with (
        Proxy(broker_settings) as proxy,
        Producer(queue, settings=proxy.settings) as producer,
        cut_at_random(proxy, cuts, (0.05, 0.2)),
    ):
        while proxy.cuts < cuts:
            record = producer.send_many(range(3_000), timeout_s=60)
            sent.update(record.task_ids)
            repeated += record.repeated
    found = ids_in(broker_settings, queue)
    print(
        f"{len(sent)} sends, {cuts} cuts: {repeated} repeated, {sum(found.values())} in the queue"
    )
    assert repeated > 0
    assert set(found) == sent


def test_row_16_a_silent_network_under_the_consumer_is_noticed_and_survived(
    broker_settings: Settings, queue: str
) -> None:
    with (
        Proxy(broker_settings) as proxy,
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(
            quickly, queue=queue, settings=proxy.settings, heartbeat_s=1
        ) as consumer,
    ):
        proxy.swallow = True
        producer.send("x")
        eventually(lambda: consumer.status().state == "reconnecting", within_s=20)
        proxy.swallow = False
        assert consumer.wait(1, timeout_s=20)[0].outcome == "done"


# ---- the broker


def test_row_14_a_broker_killed_in_a_confirmed_stream_loses_nothing_confirmed(
    private_broker: Start,
) -> None:
    broker = private_broker()
    confirmed: list[str] = []
    failed: list[str] = []
    enough = threading.Event()

    def stream() -> None:
        with Producer(QUEUE, settings=broker.settings, timeout_s=60) as producer:
            while not enough.is_set():
                try:
                    confirmed.append(producer.send("x").task_id)
                except OutcomeUnknown as error:
                    failed.extend(error.outcomes)

    thread = threading.Thread(target=stream)
    thread.start()
    eventually(lambda: len(confirmed) > 500)
    time.sleep(QUEUE_ON_DISK_S)
    broker.kill()
    assert not broker.node.processes()
    assert is_free(broker.node.port), "somebody of the node still has its port"
    at_kill = len(confirmed)
    broker.restart()
    eventually(lambda: len(confirmed) > at_kill + 500, within_s=60)
    enough.set()
    thread.join(60)
    assert not thread.is_alive()

    done: Counter[str] = Counter()

    def work(task: Task) -> None:
        done[task.task_id] += 1

    with BackgroundConsumer(work, queue=QUEUE, settings=broker.settings, prefetch=100):
        deadline = time.monotonic() + 30
        while set(confirmed) - set(done) and time.monotonic() < deadline:
            time.sleep(0.1)
    lost = set(confirmed) - set(done)
    print(f"{len(confirmed)} confirmed, {at_kill} before the kill: {len(lost)} lost")
    assert not failed
    assert not lost


def test_row_14_the_consumer_comes_back_to_a_broker_that_was_killed(private_broker: Start) -> None:
    broker = private_broker()
    with (
        Producer(QUEUE, settings=broker.settings) as producer,
        BackgroundConsumer(quickly, queue=QUEUE, settings=broker.settings) as consumer,
    ):
        producer.send("before")
        consumer.wait(1, timeout_s=10)
        broker.kill()
        assert not broker.node.processes()
        eventually(lambda: consumer.status().state == "reconnecting")
        assert producer.status().state == "reconnecting"
        broker.restart()
        producer.send("after", timeout_s=30)
        # An ack that the broker had not written to disk when it was killed is gone with it.
        while consumer.wait(1, timeout_s=30)[0].data != "after":
            pass
        assert consumer.status().reconnected == producer.status().reconnected == 1


def test_row_30_a_clean_restart_with_1000_waiting_keeps_them_all(private_broker: Start) -> None:
    broker = private_broker()
    with Producer(QUEUE, settings=broker.settings) as producer:
        sent = producer.send_many(range(1000)).task_ids
    broker.stop()
    assert not broker.node.processes()
    broker.restart()
    with BackgroundConsumer(
        quickly, queue=QUEUE, settings=broker.settings, prefetch=50
    ) as consumer:
        records = consumer.wait(1000, timeout_s=30, show_progress=False)
    assert tuple(record.task_id for record in records) == sent


@contextmanager
def memory_alarm(broker: PrivateBroker) -> Iterator[None]:
    rabbitmqctl(broker.node, "set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        rabbitmqctl(broker.node, "set_vm_memory_high_watermark", "0.4")


def test_row_24_in_a_memory_alarm_the_outcome_is_unknown_and_all_arrives_once(
    private_broker: Start,
) -> None:
    broker = private_broker()
    with Producer(QUEUE, settings=broker.settings) as producer:
        producer.send("before")
        with memory_alarm(broker):
            assert "Memory alarm on node" in rabbitmqctl(broker.node, "status")
            unknown: list[str] = []
            for _ in range(3):
                started = time.monotonic()
                with pytest.raises(OutcomeUnknown) as caught:
                    producer.send("during", timeout_s=1)
                assert time.monotonic() - started < 2
                unknown += caught.value.outcomes
            assert "blocks publishers" in str(caught.value)
            assert producer.status().blocked
        record = producer.send("after", timeout_s=30)
        assert producer.status().blocked is None
    found = ids_in(broker.settings, QUEUE)
    assert set(found.values()) == {1}
    assert set(unknown) | {record.task_id} <= set(found)
    assert len(found) == 5


# ---- the workers


WORKER = """
import sys, threading, time
from mqlab import BackgroundConsumer
done = open(sys.argv[2], "a", buffering=1)
def work(task):
    time.sleep(float(sys.argv[3]))
    print(task.task_id, file=done)
BackgroundConsumer(work, queue=sys.argv[1], workers=2, prefetch=10).start()
print("ready", flush=True)
threading.Event().wait()
"""


class WorkerProcess:
    def __init__(self, settings: Settings, queue: str, log: Path, work_s: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, queue, str(log), str(work_s)],
            env={**os.environ, "AMQP_URL": settings.url},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        assert self.process.returncode == -signal.SIGKILL


def test_row_26_1000_tasks_survive_a_worker_killed_every_second(
    broker_settings: Settings, queue: str, tmp_path: Path
) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        sent = producer.send_many(range(1000)).task_ids
    log = tmp_path / "done"
    log.touch()
    workers = [WorkerProcess(broker_settings, queue, log, 0.03) for _ in range(4)]
    kills = 0
    try:
        deadline = time.monotonic() + 60
        while set(sent) - set(log.read_text().split()):
            assert time.monotonic() < deadline
            time.sleep(1)
            victim = random.choice(workers)
            victim.kill()
            kills += 1
            workers.remove(victim)
            workers.append(WorkerProcess(broker_settings, queue, log, 0.03))
        eventually(lambda: depth(broker_settings, queue) == 0)
    finally:
        for worker in workers:
            worker.kill()
    done = Counter(log.read_text().split())
    lost = set(sent) - set(done)
    print(f"1000 tasks, {kills} kills: {len(lost)} lost, {sum(done.values()) - 1000} done again")
    assert kills >= 2
    assert not lost
    # What a dead worker had taken comes back to the queue: at most its prefetch.
    assert sum(done.values()) <= 1000 + 10 * kills


def test_row_26_the_task_of_a_killed_worker_is_with_another_within_a_second(
    broker_settings: Settings, queue: str, tmp_path: Path
) -> None:
    log = tmp_path / "done"
    doomed = WorkerProcess(broker_settings, queue, log, 30)
    with Producer(queue, settings=broker_settings) as producer:
        task_id = producer.send("x").task_id
    eventually(lambda: depth(broker_settings, queue) == 0)
    with BackgroundConsumer(quickly, queue=queue, settings=broker_settings) as consumer:
        doomed.kill()
        killed_at = time.time()
        [record] = consumer.wait(1, timeout_s=10)
    assert (record.task_id, record.redelivered) == (task_id, True)
    assert record.started_at is not None
    assert record.started_at - killed_at < 1


def test_row_10_an_8_s_task_at_heartbeat_2_is_done_once(
    broker_settings: Settings, queue: str
) -> None:
    def work(_task: Task) -> None:
        time.sleep(8)

    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(work, queue=queue, settings=broker_settings, heartbeat_s=2) as consumer,
    ):
        producer.send("long")
        [record] = consumer.wait(1, timeout_s=20)
        status = consumer.status()
    assert (record.redelivered, status.reconnected, status.done) == (False, 0, 1)
    assert_depth(broker_settings, queue, 0)


# ---- the move to the dead queue, killed at each of its steps


STEPS = {  # where the worker is killed -> copies in the queue, in the dead queue
    "before the copy": (1, 0),
    "before its confirm is read": (1, 1),
    "before the ack": (1, 1),
    "after the ack": (0, 1),
}

MOVER = """
import os, sys, threading
from mqlab import BackgroundConsumer
from mqlab._inbox import Inbox
from mqlab._mover import Mover
queue, step = sys.argv[1:]
move, on_confirm, ack = Mover.move, Mover._on_confirm, Inbox._ack
def die():
    os.kill(os.getpid(), 9)
def doomed_move(self, what):
    if step == "before the copy":
        die()
    move(self, what)
def doomed_on_confirm(self, channel, frame):
    if step == "before its confirm is read":
        die()
    on_confirm(self, channel, frame)
def doomed_ack(self, deliveries):
    if deliveries and step == "before the ack":
        die()
    ack(self, deliveries)
    if deliveries and step == "after the ack":
        self.connection.run_later(0.1, die)
Mover.move, Mover._on_confirm, Inbox._ack = doomed_move, doomed_on_confirm, doomed_ack
BackgroundConsumer(lambda task: None, queue=queue).start()
threading.Event().wait(20)
"""


@pytest.mark.parametrize("step", STEPS)
def test_row_27_the_move_to_the_dead_queue_cannot_lose_the_message(
    broker_settings: Settings, queue: str, step: str
) -> None:
    with raw_channel(broker_settings) as channel:
        channel.queue_declare(queue, durable=True)
        channel.queue_declare(f"{queue}.dead", durable=True)
        channel.basic_publish("", queue, b"junk")
    doomed = subprocess.run(
        [sys.executable, "-c", MOVER, queue, step],
        env={**os.environ, "AMQP_URL": broker_settings.url},
        timeout=30,
    )
    assert doomed.returncode == -signal.SIGKILL
    eventually(lambda: consumers(broker_settings, queue) == 0)
    left = [body for _, _, body in take_all(broker_settings, queue)]
    dead = [body for _, _, body in take_all(broker_settings, f"{queue}.dead")]
    print(f"killed {step}: {len(left)} in the queue, {len(dead)} in the dead queue")
    assert (len(left), len(dead)) == STEPS[step]
    assert set(left + dead) == {b"junk"}
