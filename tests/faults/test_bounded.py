"""Deliveries that keep coming back, memory and waiting: all of them have a bound."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pytest

from mqlab import BackgroundConsumer, Producer, Task, TaskRecord
from mqlab.cli import main
from mqlab.dead import list_dead, requeue_dead
from mqlab.errors import MqlabError
from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings
from tests.conftest import PrivateBroker
from tests.faults.tools import publish, task_body, wait_for_outcomes, within
from tests.helpers import assert_depth, eventually, rabbitmqctl, raw_channel, take_all


def quickly(task: Task) -> object:
    return task.data


def run_script(script: str, settings: Settings, *arguments: str, timeout_s: float = 90) -> Any:
    """Run Python code in a process of its own; its last line is JSON, which is returned."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "AMQP_URL": settings.url},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert ran.returncode == 0, ran.stdout[-1000:] + ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    print(found)
    return found


# ---- row 44: longer than the broker waits for an ack

ACK_TIMEOUT_MS = 1500
NAMES_IT = re.compile("timed out|time-?out")


@pytest.fixture
def impatient_node(own_node: PrivateBroker) -> Iterator[PrivateBroker]:
    """It waits 1.5 s for an ack, and looks every 0.3 s. As shipped: 30 minutes, every minute."""
    set_environment(own_node, consumer_timeout=ACK_TIMEOUT_MS, channel_tick_interval=300)
    yield own_node
    set_environment(own_node, consumer_timeout=1_800_000, channel_tick_interval=60_000)


def set_environment(broker: PrivateBroker, **values: int) -> None:
    sets = [f"application:set_env(rabbit, {name}, {value})" for name, value in values.items()]
    rabbitmqctl(broker.node, "eval", ", ".join(sets) + ".")


def test_row_44_a_task_over_the_ack_timeout_is_bounded_and_says_why(
    impatient_node: PrivateBroker,
) -> None:
    settings, queue = impatient_node.settings, "row-44"
    runs = Counter[str]()

    def work(task: Task) -> object:
        runs[task.task_id] += 1
        if task.data == "long":
            time.sleep(ACK_TIMEOUT_MS / 1000 + 1.5)
        return task.data

    # Since 4.3 only quorum queues have this time-out. Their channel is not closed with words: the
    # broker cancels the consumer (basic.cancel), and the task is back in the queue.
    arguments = {"x-queue-type": "quorum", "x-consumer-timeout": ACK_TIMEOUT_MS}
    with raw_channel(settings) as channel:
        channel.queue_declare(queue, durable=True, arguments=arguments)
        for task_id, data in (("long", '"long"'), ("good", "1")):
            properties = pika.BasicProperties(message_id=task_id)
            channel.basic_publish("", queue, task_body(task_id, data), properties)
    troubles: set[str] = set()
    with BackgroundConsumer(
        work, queue=queue, settings=settings, declare=False, max_attempts=2
    ) as consumer:

        def is_over() -> bool:
            troubles.add(consumer.status().trouble)
            outcomes = {(record.task_id, record.outcome) for record in consumer.records}
            return {("long", "dead"), ("good", "done")} <= outcomes

        eventually(is_over, within_s=40)
        status, records = consumer.status(), consumer.records
    print(dict(runs), status)
    assert any(NAMES_IT.search(trouble) for trouble in troubles), troubles
    lost = [record for record in records if (record.task_id, record.outcome) == ("long", "lost")]
    assert lost, "the broker has not taken it back"
    assert all(NAMES_IT.search(str(record.error)) for record in lost), lost
    assert runs["long"] <= 3
    assert runs["good"] >= 1
    [message] = list_dead(queue, settings=settings)
    assert NAMES_IT.search(message.reason)
    assert_depth(settings, queue, 0)


def test_row_44_a_task_that_costs_the_connection_each_time_is_bounded(
    broker_settings: Settings, queue: str
) -> None:
    """The connection is cut whenever this one task is at work, and at no other time.

    That may be the network's fault, so the bound is higher: at most 25 deliveries.
    """
    runs = Counter[str]()
    ended, worked = threading.Event(), threading.Event()
    with Proxy(broker_settings) as proxy:

        def work(task: Task) -> object:
            runs[str(task.data)] += 1
            if task.data == "cut":
                worked.clear()
                worked.wait(2)  # another task is done meanwhile, so the next pause is short
                proxy.cut()
            else:
                worked.set()
            return task.data

        def send_good_ones() -> None:
            with Producer(queue, settings=broker_settings) as producer:
                while not ended.wait(0.05):
                    producer.send("good")

        feeder = threading.Thread(target=send_good_ones)
        publish(broker_settings, queue, task_body("cut", '"cut"'), message_id="cut")
        feeder.start()
        try:
            with BackgroundConsumer(
                work, queue=queue, settings=proxy.settings, workers=2, max_attempts=2
            ) as consumer:
                wait_for_outcomes(consumer, {"cut": "dead"}, within_s=60)
                records = consumer.records
        finally:
            ended.set()
            feeder.join(20)
    print(dict(runs))
    assert runs["cut"] <= 25
    lost = [record for record in records if (record.task_id, record.outcome) == ("cut", "lost")]
    assert lost
    assert all(record.error for record in lost)
    [message] = list_dead(queue, settings=broker_settings)
    assert message.reason


def test_row_44_losing_a_connection_now_and_then_does_not_count_against_a_task(
    broker_settings: Settings, queue: str
) -> None:
    """The bound is each message's own, and only for what was at work when the channel was lost."""
    with (
        Proxy(broker_settings) as proxy,
        BackgroundConsumer(
            quickly, queue=queue, settings=proxy.settings, max_attempts=1, prefetch=5
        ) as consumer,
    ):
        for number in range(6):
            task_id = f"good-{number}"
            publish(broker_settings, queue, task_body(task_id))
            wait_for_outcomes(consumer, {task_id: "done"}, within_s=20)
            proxy.cut()
        # The last ack may have been cut off: then the task comes once more.
        eventually(lambda: consumer.status().state == "running" and not consumer.unacked)
        assert_depth(broker_settings, queue, 0)
        status = consumer.status()
    assert status.dead == 0
    assert take_all(broker_settings, queue) == []


# ---- row 45: it kills the process that works on it

KILLED = """
import os, sys, threading
from mqlab import BackgroundConsumer
def work(task):
    if task.data == "kill":
        os._exit(9)
BackgroundConsumer(work, queue=sys.argv[1], max_attempts=2).start()
threading.Event().wait(20)
"""


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="a classic queue counts no deliveries: the bound across processes comes with page 06",
)
def test_row_45_a_task_that_kills_its_process_every_time_ends_in_the_dead_queue(
    broker_settings: Settings, queue: str
) -> None:
    publish(broker_settings, queue, task_body("kill", '"kill"'), task_body("good"))
    killed = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, queue],
            env={**os.environ, "AMQP_URL": broker_settings.url},
        )
        try:
            deadline = time.monotonic() + 10
            while process.poll() is None and time.monotonic() < deadline:
                if dead_count(broker_settings, queue) == 1:
                    break
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait(10)
        killed += process.returncode == 9
    print(f"{killed} of 6 processes died")
    assert killed <= 3
    assert dead_count(broker_settings, queue) == 1


def dead_count(settings: Settings, queue: str) -> int:
    return len(list_dead(queue, settings=settings))


# ---- row 46: sending the dead back where nothing is taken


@pytest.fixture
def three_dead(own_node: PrivateBroker, request: pytest.FixtureRequest) -> Iterator[str]:
    queue = f"row-46-{request.node.name.split('[')[0][-20:]}"
    bodies = [task_body(f"dead-{n}") for n in range(3)]
    for number, body in enumerate(bodies):
        publish(
            own_node.settings, f"{queue}.dead", body, message_id=f"dead-{number}", delivery_mode=2
        )
    publish(own_node.settings, queue)
    yield queue
    with raw_channel(own_node.settings) as channel:
        channel.queue_delete(queue)
        channel.queue_delete(f"{queue}.dead")


@contextmanager
def memory_alarm(broker: PrivateBroker) -> Iterator[None]:
    rabbitmqctl(broker.node, "set_vm_memory_high_watermark", "0.00001")
    try:
        assert "Memory alarm on node" in rabbitmqctl(broker.node, "status")
        yield
    finally:
        rabbitmqctl(broker.node, "set_vm_memory_high_watermark", "0.4")


def ids_of(settings: Settings, queue: str) -> list[str]:
    return [properties.message_id for _, properties, _ in take_all(settings, queue)]


def test_row_46_sending_the_dead_back_during_a_memory_alarm_is_bounded(
    own_node: PrivateBroker, three_dead: str
) -> None:
    settings = own_node.settings
    with memory_alarm(own_node):
        started = time.monotonic()
        with pytest.raises(MqlabError) as caught:
            within(30, lambda: requeue_dead(three_dead, settings=settings))
        took_s = time.monotonic() - started
    print(f"{took_s:.1f} s: {caught.value}")
    assert took_s < 20
    assert re.search(r"block(s|ed) publishers", str(caught.value))
    assert re.search(r"\b0 (of|messages)\b", str(caught.value)), "what was moved is not said"
    # When it clears: none is lost, and only the one that was on its way may be there twice.
    eventually(lambda: requeue_dead(three_dead, settings=settings) >= 2, within_s=15)
    found = Counter(ids_of(settings, three_dead))
    assert set(found) == {"dead-0", "dead-1", "dead-2"}
    assert sum(found.values()) <= 4


def test_row_46_the_dead_can_be_listed_during_a_memory_alarm(
    own_node: PrivateBroker, three_dead: str
) -> None:
    with memory_alarm(own_node):
        found = within(15, lambda: list_dead(three_dead, settings=own_node.settings))
    assert [message.task_id for message in found] == ["dead-0", "dead-1", "dead-2"]


def test_row_46_the_dead_that_a_full_queue_refuses_stay_and_the_error_says_what_was_moved(
    broker_settings: Settings,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in range(3):
        publish(broker_settings, f"{queue}.dead", task_body(), message_id=f"dead-{number}")
    with raw_channel(broker_settings) as channel:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare(queue, durable=True, arguments=arguments)
    with pytest.raises(MqlabError, match=r"\b1 (of|message)\b") as caught:
        within(20, lambda: requeue_dead(queue, settings=broker_settings))
    print(caught.value)
    assert "full" in str(caught.value)
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    assert main(["dead", "requeue", "--queue", queue]) == 1
    assert re.search(r"\b0 (of|messages)\b", capsys.readouterr().err)
    assert ids_of(broker_settings, queue) == ["dead-0"]
    assert sorted(ids_of(broker_settings, f"{queue}.dead")) == ["dead-1", "dead-2"]


def test_row_46_a_connection_lost_while_the_dead_are_sent_back_is_told_in_words(
    broker_settings: Settings, queue: str
) -> None:
    for number in range(3):
        publish(broker_settings, f"{queue}.dead", task_body(), message_id=f"dead-{number}")
    publish(broker_settings, queue)
    proxy_of: list[Proxy] = []
    acks: list[int] = []

    def cut_at_the_second_copy(_connection: int, from_client: bool, frame: Any) -> None:
        if from_client and getattr(getattr(frame, "method", None), "NAME", "") == "Basic.Publish":
            acks.append(1)
            if len(acks) == 2:
                proxy_of[0].cut()

    with Proxy(broker_settings, on_frame=cut_at_the_second_copy) as proxy:
        proxy_of.append(proxy)
        with pytest.raises(MqlabError, match=r"\b1 (of|message)\b") as caught:
            within(20, lambda: requeue_dead(queue, settings=proxy.settings))
    print(caught.value)
    eventually(lambda: dead_count(broker_settings, queue) == 2)
    assert requeue_dead(queue, settings=broker_settings) == 2
    assert set(ids_of(broker_settings, queue)) == {"dead-0", "dead-1", "dead-2"}


# ---- rows 47 and 65: memory

MEASURE = """
import json, sys, threading, time
import psutil
from mqlab import BackgroundConsumer, MqlabError, Producer

def rss_mb():
    return psutil.Process().memory_info().rss / 1e6

def answer(**found):
    print(json.dumps(found), flush=True)
"""

RECORDS = (
    MEASURE
    + """
queue, kind = sys.argv[1:]
large = "x" * 1_000_000
def work(task):
    if kind == "errors" and task.data != "first":
        raise RuntimeError(large)
    if kind == "results" and task.data != "first":
        return large.encode() + str(task.data).encode()
    if kind == "nested results" and task.data != "first":
        return {"parts": [large + str(task.data), [large.upper() + str(task.data)]]}
    return "short"
data = large if kind == "data" else "short"
with Producer(queue) as producer, BackgroundConsumer(
    work, queue=queue, max_attempts=1, prefetch=5) as consumer:
    producer.send("first")
    consumer.wait(1, timeout_s=10, show_progress=False)
    for _ in range(5):
        producer.send_many([data + str(n) for n in range(4)])
        consumer.wait(4, timeout_s=30, show_progress=False)
    before = rss_mb()
    for _ in range(40):
        producer.send_many([data + str(n) for n in range(5)])
        consumer.wait(5, timeout_s=30, show_progress=False)
    status = consumer.status()
    newest = consumer.records[-1]
    answer(grown_mb=round(rss_mb() - before), records=len(consumer.records),
           tasks=status.done + status.dead, outcome=newest.outcome, task_id=newest.task_id,
           shown=len(repr(newest)))
"""
)


@pytest.mark.parametrize("kind", ["data", "results", "nested results", "errors"])
def test_row_47_records_are_bounded_by_bytes(
    broker_settings: Settings, queue: str, kind: str
) -> None:
    found = run_script(RECORDS, broker_settings, queue, kind)
    assert found["tasks"] == 221
    assert found["outcome"] == ("dead" if kind == "errors" else "done")
    assert found["task_id"]
    assert found["shown"] < 2000
    assert found["grown_mb"] < 120


def test_row_47_small_records_are_still_kept(broker_settings: Settings, queue: str) -> None:
    """The bound is for what is large: thousands of short tasks keep their data and results."""
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(quickly, queue=queue, settings=broker_settings, prefetch=50) as consumer,
    ):
        producer.send_many(range(3000))
        consumer.wait(3000, timeout_s=30, show_progress=False)
        records = consumer.records
    assert [(record.data, record.result) for record in records] == [(n, n) for n in range(3000)]


def test_row_47_a_large_result_reaches_who_waits_for_it(
    broker_settings: Settings, queue: str
) -> None:
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(
            lambda _task: "x" * 3_000_000, queue=queue, settings=broker_settings
        ) as consumer,
    ):
        producer.send("x" * 1_000_000)
        [record] = consumer.wait(1, timeout_s=10, show_progress=False)
    assert len(record.data) == 1_000_000
    assert len(record.result) == 3_000_000


WAITING = (
    MEASURE
    + """
queue = sys.argv[1]
producer = Producer(queue, timeout_s=10)
producer.send("x" * 1_000_000)
print("ready", flush=True)
sys.stdin.readline()  # from now on the network is silent
before, peak, outcomes = rss_mb(), [0.0], []
def send():
    for _ in range(20):
        try:
            producer.send("x" * 1_000_000, timeout_s=0.3)
            outcomes.append("confirmed")
        except MqlabError as error:
            outcomes.append(type(error).__name__)
        except BaseException as error:
            outcomes.append(repr(error))
threads = [threading.Thread(target=send) for _ in range(16)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    peak[0] = max(peak[0], rss_mb() - before)
    time.sleep(0.02)
time.sleep(0.5)
stays = rss_mb() - before
answer(peak_mb=round(peak[0]), stays_mb=round(stays), waiting=producer.status().waiting,
       outcomes={name: outcomes.count(name) for name in set(outcomes)})
sys.stdin.readline()  # it speaks again
producer.send("after", timeout_s=40)
producer.close()
"""
)


def test_row_65_large_messages_that_wait_on_a_silent_network_are_bounded_by_bytes(
    broker_settings: Settings, queue: str
) -> None:
    with Proxy(broker_settings) as proxy:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING, queue],
            env={**os.environ, "AMQP_URL": proxy.settings.url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "ready\n"
            proxy.swallow = True
            print("silent", file=process.stdin, flush=True)
            found = json.loads(process.stdout.readline())
            print(found)
            proxy.cut()
            print("it speaks again", file=process.stdin, flush=True)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait(10)
            process.stdin.close()
            process.stdout.close()
    outcomes = found["outcomes"]
    assert sum(outcomes.values()) == 320
    assert set(outcomes) <= {"NotSent", "OutcomeUnknown"}
    assert found["peak_mb"] < 200
    assert found["stays_mb"] < 100


def test_row_65_large_messages_still_go_out_together(broker_settings: Settings, queue: str) -> None:
    """A bound in bytes must not turn 60 large messages into 60 round trips one after another."""
    with Proxy(broker_settings) as proxy, Producer(queue, settings=proxy.settings) as producer:
        producer.send_many(["x" * 500_000] * 4)
        proxy.delay_s = 0.02  # for each piece, so that a round trip costs
        started = time.monotonic()
        sent = producer.send_many(["x" * 100] * 400).task_ids
        took_s = time.monotonic() - started
    print(f"{took_s:.2f} s")
    assert len(set(sent)) == 400
    assert took_s < 5


# ---- row 48: a handler that does not let Python run anything else

GIL_HELD = """
import ctypes, json, sys, time
from mqlab import BackgroundConsumer

runs = 0

def work(task):
    global runs
    if task.data == "hold":
        runs += 1
        # PyDLL keeps the GIL during the call, as a regular expression does. 7 s.
        ctypes.PyDLL(None).poll(None, 0, 7000)
    return task.data

consumer = BackgroundConsumer(work, queue=sys.argv[1], heartbeat_s=1, max_attempts=2).start()
troubles, ends = set(), time.monotonic() + 80

def outcomes(task_id):
    return [r.outcome for r in consumer.records if r.task_id == task_id]

while time.monotonic() < ends and not ("dead" in outcomes("hold") and "done" in outcomes("good")):
    troubles.add(getattr(consumer.status(), "trouble", ""))
    time.sleep(0.02)
lost = [r.error for r in consumer.records if r.outcome == "lost" and r.task_id == "hold"]
found = {"runs": runs, "hold": outcomes("hold"), "good": outcomes("good"), "lost": lost,
         "troubles": sorted(troubles), "status": str(consumer.status())}
consumer.stop()
print(json.dumps(found))
"""


def test_row_48_a_handler_that_holds_the_gil_beyond_the_heartbeats_is_bounded_and_says_why(
    broker_settings: Settings, queue: str
) -> None:
    publish(broker_settings, queue, task_body("hold", '"hold"'), message_id="hold")
    publish(broker_settings, queue, task_body("good"), message_id="good")
    found = run_script(GIL_HELD, broker_settings, queue)
    assert found["lost"], "the broker has not closed the connection"
    assert found["runs"] <= 3
    assert "dead" in found["hold"]
    assert "done" in found["good"]
    assert all("heartbeat" in str(error) for error in found["lost"])
    assert any("heartbeat" in trouble for trouble in found["troubles"])
    [message] = list_dead(queue, settings=broker_settings)
    assert "heartbeat" in message.reason


# ---- row 54: the end of the process while the broker is silent

EXITING = """
import sys
from mqlab import BackgroundConsumer, Producer
queue = sys.argv[1]
producers = [Producer(queue) for _ in range(30)]
consumers = [BackgroundConsumer(lambda t: 1, queue=queue, name=str(n)).start() for n in range(3)]
print("ready", flush=True)
sys.stdin.readline()
"""


def test_row_54_a_process_with_30_producers_ends_soon_on_a_silent_network(
    broker_settings: Settings, queue: str
) -> None:
    with Proxy(broker_settings) as proxy:
        process = subprocess.Popen(
            [sys.executable, "-c", EXITING, queue],
            env={**os.environ, "AMQP_URL": proxy.settings.url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert proxy.accepted == 33
            proxy.swallow = True
            process.stdin.close()
            started = time.monotonic()
            assert process.wait(60) == 0
            took_s = time.monotonic() - started
        finally:
            process.kill()
            process.wait(10)
            process.stdout.close()
    print(f"it ended after {took_s:.1f} s")
    assert took_s < 7  # five, and some for a loaded machine


# ---- row 61: more than the records that are kept


def test_row_61_waiting_for_6000_gives_6000_records_or_says_how_many_are_kept(
    broker_settings: Settings, queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(
            quickly, queue=queue, settings=broker_settings, prefetch=200
        ) as consumer,
    ):
        sent = producer.send_many(range(6000)).task_ids
        records = consumer.wait(6000, timeout_s=60, show_progress=False)
    assert_all_or_a_limit(records, sent, capsys.readouterr().out)


def test_row_61_so_does_a_wait_that_begins_when_all_are_done(
    broker_settings: Settings, queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(
            quickly, queue=queue, settings=broker_settings, prefetch=200
        ) as consumer,
    ):
        sent = producer.send_many(range(6000)).task_ids
        eventually(lambda: consumer.status().done == 6000, within_s=60)
        records = consumer.wait(5500, timeout_s=5, show_progress=False)
    assert_all_or_a_limit(records, sent[:5500], capsys.readouterr().out)


def assert_all_or_a_limit(records: list[TaskRecord], sent: tuple[str, ...], printed: str) -> None:
    found = [record.task_id for record in records]
    if len(found) == len(sent):
        assert found == list(sent)
    else:  # the newest of those that were waited for, and a line that says so
        assert found == list(sent[-len(found) :])
        assert str(len(found)) in printed
        assert str(len(sent)) in printed
        assert len(found) >= 4000
