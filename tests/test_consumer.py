from __future__ import annotations

import json
import random
import threading
import time
from typing import Any

import pika
import pytest

from mqlab import BackgroundConsumer, Producer, Task, TaskRecord
from mqlab.errors import ConsumerError, QueueMismatch, SettingsError, WaitTimeout
from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings
from tests.helpers import assert_depth, consumers, eventually, raw_channel, take_all


def quickly(task: Task) -> str:
    return f"did {task.data}"


def publish(settings: Settings, queue: str, *bodies: bytes, **properties: Any) -> None:
    with raw_channel(settings) as channel:
        channel.queue_declare(queue, durable=True)
        for body in bodies:
            channel.basic_publish("", queue, body, pika.BasicProperties(**properties))


def watch_acks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list that grows by one for each ack that is sent: whether it was for several tags."""
    acks: list[bool] = []
    basic_ack = pika.channel.Channel.basic_ack

    def watched(channel: Any, tag: int, multiple: bool = False) -> None:
        acks.append(multiple)
        basic_ack(channel, tag, multiple)

    monkeypatch.setattr(pika.channel.Channel, "basic_ack", watched)
    return acks


def task_body(task_id: str = "an-id", data: object = "x") -> bytes:
    return json.dumps({"task_id": task_id, "data": data, "timestamp": 1.0}).encode()


def test_row_31_tasks_sent_before_it_starts_are_done_with_their_ids(
    broker_settings: Settings, queue: str
) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        sent = producer.send_many(range(1000)).task_ids
    with BackgroundConsumer(
        quickly, queue=queue, settings=broker_settings, prefetch=50
    ) as consumer:
        records = consumer.wait(1000, timeout_s=30, show_progress=False)
    assert tuple(record.task_id for record in records) == sent
    assert [record.result for record in records] == [f"did {n}" for n in range(1000)]
    assert_depth(broker_settings, queue, 0)


def test_a_record_has_every_time_in_order(broker_settings: Settings, queue: str) -> None:
    def work(_task: Task) -> None:
        time.sleep(0.05)

    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(work, queue=queue, settings=broker_settings) as consumer,
    ):
        sent = producer.send({"report": [1, 2]})
        [record] = consumer.wait(1, timeout_s=10)
    times = [
        record.sent_at,
        record.received_at,
        record.started_at,
        record.finished_at,
        record.acked_at,
    ]
    assert times == sorted(times)
    assert times[0] == sent.sent_at
    assert record.finished_at - record.started_at >= 0.05
    assert (record.task_id, record.data) == (sent.task_id, {"report": [1, 2]})
    assert (record.outcome, record.attempt, record.redelivered) == ("done", 1, False)


def test_the_ack_comes_after_the_work(
    broker_settings: Settings, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, go_on = threading.Event(), threading.Event()
    acks = watch_acks(monkeypatch)

    def work(_task: Task) -> None:
        at_work.set()
        assert go_on.wait(10)

    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(work, queue=queue, settings=broker_settings) as consumer,
    ):
        producer.send("x")
        assert at_work.wait(10)
        time.sleep(0.3)  # what is tested is that nothing happens meanwhile
        assert acks == []
        go_on.set()
        assert consumer.wait(1, timeout_s=10)[0].acked_at is not None
        assert len(acks) == 1


def test_workers_share_the_tasks_and_nothing_is_done_twice(
    broker_settings: Settings, queue: str
) -> None:
    def work(_task: Task) -> None:
        time.sleep(0.002)

    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(
            work, queue=queue, settings=broker_settings, workers=4, prefetch=8
        ) as consumer,
    ):
        sent = producer.send_many(range(300)).task_ids
        records = consumer.wait(300, timeout_s=30, show_progress=False)
    assert sorted(r.task_id or "" for r in records) == sorted(sent)
    assert {record.worker for record in records} == {f"worker-{n}" for n in (1, 2, 3, 4)}
    assert_depth(broker_settings, queue, 0)


def test_out_of_order_acks_settle_only_what_is_done(broker_settings: Settings, queue: str) -> None:
    """The first task is still at work when the others are done: it alone may come back."""
    go_on = threading.Event()

    def work(task: Task) -> None:
        if task.data == 0:
            assert go_on.wait(20)

    with Producer(queue, settings=broker_settings) as producer:
        producer.send_many(range(20))
    consumer = BackgroundConsumer(
        work, queue=queue, settings=broker_settings, workers=2, prefetch=10
    ).start()
    consumer.wait(19, timeout_s=10, show_progress=False)
    report = consumer.stop(timeout_s=0.2)
    go_on.set()
    assert (report.done, len(report.may_run_twice)) == (19, 1)
    [(method, _, body)] = take_all(broker_settings, queue)
    assert json.loads(body)["data"] == 0
    assert method.redelivered


def test_only_the_io_threads_touch_a_channel(
    broker_settings: Settings, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pika's channels belong to the thread that runs their loop."""
    publish(broker_settings, queue, b"junk")
    callers: dict[str, set[str]] = {}

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            callers.setdefault(name, set()).add(threading.current_thread().name)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    for name in ("basic_ack", "basic_consume", "basic_cancel", "queue_declare", "basic_publish"):
        watch(pika.channel.Channel, name)
    watch(pika.SelectConnection, "_adapter_emit_data")
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(quickly, queue=queue, settings=broker_settings, workers=3) as consumer,
    ):
        producer.send_many(range(50))
        consumer.wait(51, timeout_s=10, show_progress=False)
    io_threads = {f"mqlab {who} {queue}" for who in ("producer for", "consumer of")}
    assert set(callers) >= {"basic_ack", "basic_consume", "basic_cancel", "basic_publish"}
    assert callers["_adapter_emit_data"] == set().union(*callers.values()) == io_threads
    assert callers["basic_ack"] == callers["basic_consume"] == {f"mqlab consumer of {queue}"}


def test_acks_of_short_tasks_go_out_together(
    broker_settings: Settings, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush acks all that was finished since the last one: one frame where there is no gap."""
    acks = watch_acks(monkeypatch)
    with Producer(queue, settings=broker_settings) as producer:
        producer.send_many(range(2000))
    with BackgroundConsumer(
        quickly, queue=queue, settings=broker_settings, prefetch=100
    ) as consumer:
        consumer.wait(2000, timeout_s=30, show_progress=False)
    assert any(acks)
    assert len(acks) < 1000
    assert_depth(broker_settings, queue, 0)


# ---- messages that are no tasks, tasks that fail


BAD_BODIES = {
    "not json": b"hello",
    "no object": b"[1]",
    "null": b"null",
    "no task_id": b'{"data": 1, "timestamp": 1}',
    "no data": b'{"task_id": "a", "timestamp": 1}',
    "no timestamp": b'{"task_id": "a", "data": 1}',
    "bool": b'{"task_id": "a", "data": 1, "timestamp": true}',
    "NaN": b'{"task_id": "a", "data": NaN, "timestamp": 1}',
    "negative": b'{"task_id": "a", "data": 1, "timestamp": -1}',
    "empty id": b'{"task_id": "", "data": 1, "timestamp": 1}',
    "utf-8": b"\xff",
    "utf-16": task_body().decode().encode("utf-16"),
    "bom": b"\xef\xbb\xbf" + task_body(),
    "deep": b"[" * 100_000,
    "long number": b"1" * 5_000,
    "large": b'"' + b"x" * 10_000_000 + b'"',
}


def test_rows_01_to_07_what_is_no_task_goes_to_the_dead_queue_and_the_next_runs(
    broker_settings: Settings, queue: str
) -> None:
    publish(broker_settings, queue, *BAD_BODIES.values(), task_body("good"))
    with BackgroundConsumer(quickly, queue=queue, settings=broker_settings) as consumer:
        records = consumer.wait(len(BAD_BODIES) + 1, timeout_s=30, show_progress=False)
    assert [r.outcome for r in records].count("dead") == len(BAD_BODIES)
    assert [r.task_id for r in records if r.outcome == "done"] == ["good"]
    dead = take_all(broker_settings, f"{queue}.dead")
    assert [body for _, _, body in dead] == list(BAD_BODIES.values())
    for _, properties, _ in dead:
        assert properties.headers["mqlab-reason"].startswith("not a task: ")
    assert "'task_id'" in dead[3][1].headers["mqlab-reason"]
    assert_depth(broker_settings, queue, 0)


def random_bodies(count: int, seed: int) -> list[bytes]:
    """Random bytes, random text, and good bodies with bytes changed, dropped, doubled or cut."""
    source = random.Random(seed)
    bodies = []
    while len(bodies) < count:
        body = bytearray(task_body(str(len(bodies)), source.choice(["x", 1, None, [1], {"a": 2}])))
        kind = source.randrange(6)
        at = source.randrange(len(body))
        if kind == 0:
            body = bytearray(source.randbytes(source.randrange(200)))
        elif kind == 1:
            body = bytearray("".join(map(chr, source.choices(range(0xD800), k=50))).encode())
        elif kind == 2:
            body[at] = source.randrange(256)
        elif kind == 3:
            del body[at : at + source.randrange(1, 5)]
        elif kind == 4:
            body[at:at] = body[at : at + source.randrange(1, 30)]
        else:
            del body[at:]
        bodies.append(bytes(body))
    return bodies


def test_20000_random_and_mutated_bodies_are_done_or_dead_and_the_consumer_goes_on(
    broker_settings: Settings, queue: str
) -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    bodies = random_bodies(20_000, seed)
    publish(broker_settings, queue, *bodies)
    with BackgroundConsumer(
        quickly, queue=queue, settings=broker_settings, prefetch=200
    ) as consumer:
        consumer.wait(20_000, timeout_s=90, show_progress=False)
        publish(broker_settings, queue, task_body("the good one"))
        assert consumer.wait(1, timeout_s=10)[0].task_id == "the good one"
        status = consumer.status()
    print(status)
    assert status.done + status.dead == 20_001
    assert status.dead > 10_000  # the bodies were bad indeed
    assert (status.retried, status.lost, status.redelivered, status.reconnected) == (0, 0, 0, 0)
    assert_depth(broker_settings, queue, 0)
    assert_depth(broker_settings, f"{queue}.dead", status.dead)


def test_the_dead_keep_their_body_and_properties(broker_settings: Settings, queue: str) -> None:
    given = {
        "content_type": "text/plain",
        "headers": {"mine": "yes"},
        "delivery_mode": 2,
        "priority": 3,
        "correlation_id": "c",
        "reply_to": "r",
        "message_id": "m",
        "timestamp": 17,
        "type": "t",
        "app_id": "a",
    }
    # These three would delete it, close the channel or copy it elsewhere on the way.
    publish(
        broker_settings,
        queue,
        b"junk",
        **{**given, "headers": {"mine": "yes", "CC": [f"{queue}.cc"]}},
        expiration="60000",
        user_id=broker_settings.username,
    )
    with BackgroundConsumer(quickly, queue=queue, settings=broker_settings) as consumer:
        consumer.wait(1, timeout_s=10)
    [(_, properties, body)] = take_all(broker_settings, f"{queue}.dead")
    assert body == b"junk"
    kept = {name: getattr(properties, name) for name in given}
    headers = kept["headers"]
    assert {**kept, "headers": {"mine": "yes"}} == given
    assert headers["mine"] == "yes"
    assert headers["mqlab-queue"] == queue
    assert headers["mqlab-attempts"] == 1
    assert headers["mqlab-worker"].startswith("worker-1, pid ")
    assert headers["mqlab-expiration"] == "60000"
    assert headers["mqlab-user-id"] == broker_settings.username
    assert headers["mqlab-cc"] == [f"{queue}.cc"]
    assert (properties.expiration, properties.user_id) == (None, None)


def test_row_27_a_task_that_raises_is_tried_three_times_and_then_dead(
    broker_settings: Settings, queue: str
) -> None:
    def work(task: Task) -> str:
        if task.data == "bad":
            raise RuntimeError("the printer is on fire")
        return "fine"

    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(
            work, queue=queue, settings=broker_settings, retry_delay_s=0.05
        ) as consumer,
    ):
        bad = producer.send("bad").task_id
        producer.send("good")
        consumer.wait(2, timeout_s=10)
        tries = [r for r in consumer.records if r.task_id == bad]
        status = consumer.status()
    assert [(r.outcome, r.attempt) for r in tries] == [("retry", 1), ("retry", 2), ("dead", 3)]
    assert (status.done, status.retried, status.dead, status.state) == (1, 2, 1, "running")
    [(_, properties, body)] = take_all(broker_settings, f"{queue}.dead")
    assert properties.headers["mqlab-reason"] == "RuntimeError: the printer is on fire"
    assert properties.headers["mqlab-attempts"] == 3
    assert properties.message_id == json.loads(body)["task_id"] == bad


def test_a_dead_queue_that_is_full_is_asked_again_and_nothing_is_lost(
    broker_settings: Settings, queue: str
) -> None:
    with raw_channel(broker_settings) as channel:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare(f"{queue}.dead", durable=True, arguments=arguments)
    publish(broker_settings, queue, b"junk 1", b"junk 2", task_body("good"))
    with BackgroundConsumer(quickly, queue=queue, settings=broker_settings, prefetch=3) as consumer:
        outcomes = [record.outcome for record in consumer.wait(2, timeout_s=10)]
        assert sorted(outcomes) == ["dead", "done"]
        with pytest.raises(WaitTimeout):
            consumer.wait(1, timeout_s=2.5)  # asked twice more, the second finds no room
        [(_, _, first)] = take_all(broker_settings, f"{queue}.dead")
        assert consumer.wait(1, timeout_s=10)[0].outcome == "dead"
    [(_, _, second)] = take_all(broker_settings, f"{queue}.dead")
    assert {first, second} == {b"junk 1", b"junk 2"}
    assert_depth(broker_settings, queue, 0)


def test_row_27_a_handler_that_exits_does_not_end_its_worker(
    broker_settings: Settings, queue: str
) -> None:
    def work(task: Task) -> None:
        if task.data == "exit":
            raise SystemExit(3)

    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(work, queue=queue, settings=broker_settings, max_attempts=1) as consumer,
    ):
        producer.send_many(["exit", "good"])
        assert [r.outcome for r in consumer.wait(2, timeout_s=10)] == ["dead", "done"]


# ---- connections and queues that go away


def test_row_09_however_many_wait_only_the_prefetch_is_taken(
    broker_settings: Settings, queue: str
) -> None:
    go_on = threading.Event()

    def work(_task: Task) -> None:
        assert go_on.wait(20)

    with Producer(queue, settings=broker_settings) as producer:
        producer.send_many(range(5000))
    with BackgroundConsumer(
        work, queue=queue, settings=broker_settings, workers=2, prefetch=7
    ) as consumer:
        assert_depth(broker_settings, queue, 5000 - 7)
        assert (consumer.status().working, consumer.status().prefetched) == (2, 5)
        go_on.set()
        consumer.wait(5000, timeout_s=30, show_progress=False)


def test_row_10_a_task_longer_than_three_heartbeats_is_done_once(
    broker_settings: Settings, queue: str
) -> None:
    def work(_task: Task) -> None:
        time.sleep(4)

    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(work, queue=queue, settings=broker_settings, heartbeat_s=1) as consumer,
    ):
        producer.send("long")
        [record] = consumer.wait(1, timeout_s=15)
        assert (record.redelivered, consumer.status().reconnected) == (False, 0)
    assert_depth(broker_settings, queue, 0)


def test_row_14_a_cut_connection_comes_back_and_the_unacked_are_redelivered(
    broker_settings: Settings, queue: str
) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def work(_task: Task) -> None:
        at_work.set()
        assert go_on.wait(20)

    with (
        Proxy(broker_settings) as proxy,
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(work, queue=queue, settings=proxy.settings) as consumer,
    ):
        task_id = producer.send("x").task_id
        assert at_work.wait(10)
        assert proxy.cut() == 1
        eventually(lambda: consumer.status().reconnected == 1)
        go_on.set()
        [record] = consumer.wait(1, timeout_s=10)
        first, second = consumer.records
    assert (first.outcome, second.outcome) == ("lost", "done")
    assert first.task_id == second.task_id == record.task_id == task_id
    assert second.redelivered
    assert_depth(broker_settings, queue, 0)


def test_row_17_a_closed_channel_is_replaced(broker_settings: Settings, queue: str) -> None:
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(quickly, queue=queue, settings=broker_settings) as consumer,
    ):
        connection = consumer._connection
        connection.run(lambda: connection.channel.basic_ack(4711))  # 406 unknown delivery tag
        eventually(lambda: consumer.status().reconnected == 1)
        producer.send("x")
        assert consumer.wait(1, timeout_s=10)[0].outcome == "done"


def test_row_18_a_queue_with_other_properties_is_named_and_left(
    broker_settings: Settings, queue: str
) -> None:
    with raw_channel(broker_settings) as channel:
        channel.queue_declare(queue, durable=True, arguments={"x-max-length": 5})
        channel.basic_publish("", queue, b"keep me")
    with pytest.raises(QueueMismatch, match="x-max-length = '5'"):
        BackgroundConsumer(quickly, queue=queue, settings=broker_settings).start()
    assert_depth(broker_settings, queue, 1)


def test_row_19_a_deleted_queue_is_declared_again(broker_settings: Settings, queue: str) -> None:
    with BackgroundConsumer(quickly, queue=queue, settings=broker_settings) as consumer:
        with raw_channel(broker_settings) as channel:
            channel.queue_delete(queue)
        eventually(lambda: consumer.status().reconnected == 1)
        with Producer(queue, settings=broker_settings, declare=False) as producer:
            producer.send("x")
        assert consumer.wait(1, timeout_s=10)[0].outcome == "done"


def test_row_25_the_same_task_twice_shows_by_its_id(broker_settings: Settings, queue: str) -> None:
    publish(broker_settings, queue, task_body("twice"), task_body("twice"))
    with BackgroundConsumer(quickly, queue=queue, settings=broker_settings) as consumer:
        assert [r.task_id for r in consumer.wait(2, timeout_s=10)] == ["twice", "twice"]


# ---- waiting and stopping


def test_row_28_stop_returns_in_time_and_says_what_went_back(
    broker_settings: Settings, queue: str
) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def never_ends(_task: Task) -> None:
        at_work.set()
        go_on.wait(30)

    with Producer(queue, settings=broker_settings) as producer:
        first, second = (producer.send(n).task_id for n in range(2))
    consumer = BackgroundConsumer(
        never_ends, queue=queue, settings=broker_settings, prefetch=2
    ).start()
    assert at_work.wait(10)
    eventually(lambda: consumer.status().prefetched == 1)
    started = time.monotonic()
    report = consumer.stop(timeout_s=0.5)
    assert time.monotonic() - started < 2.5
    assert (report.may_run_twice, report.returned) == ((first,), (second,))
    assert "may run twice" in repr(report)
    assert_depth(broker_settings, queue, 2)
    assert consumers(broker_settings, queue) == 0
    go_on.set()


def test_stopping_while_a_failed_task_waits_for_its_next_attempt_is_quick(
    broker_settings: Settings, queue: str
) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def work(_task: Task) -> None:
        at_work.set()
        go_on.wait(10)
        raise RuntimeError("later, perhaps")

    with Producer(queue, settings=broker_settings) as producer:
        task_id = producer.send("x").task_id
    consumer = BackgroundConsumer(
        work, queue=queue, settings=broker_settings, retry_delay_s=60
    ).start()
    assert at_work.wait(10)
    threading.Timer(0.2, go_on.set).start()
    started = time.monotonic()
    report = consumer.stop(timeout_s=10)
    assert time.monotonic() - started < 3
    assert report.returned == (task_id,)
    assert_depth(broker_settings, queue, 1)


def test_row_29_an_error_in_the_background_is_shown_and_raised(
    broker_settings: Settings, queue: str
) -> None:
    consumer = BackgroundConsumer(quickly, queue=queue, settings=broker_settings).start()
    consumer._connection.run(lambda: 1 / 0)
    eventually(lambda: consumer.status().state == "failed")
    assert "ZeroDivisionError" in str(consumer.status().error)
    with pytest.raises(ConsumerError, match="ZeroDivisionError"):
        consumer.wait(1, timeout_s=5)
    with pytest.raises(ConsumerError, match="ZeroDivisionError") as caught:
        consumer.stop()
    assert isinstance(caught.value.__cause__.__cause__, ZeroDivisionError)


def test_row_22_starting_again_replaces_the_first_and_says_so(
    broker_settings: Settings, queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        consumer = BackgroundConsumer(quickly, queue=queue, settings=broker_settings).start()
    assert capsys.readouterr().out.count("Replaced the consumer") == 2
    assert consumers(broker_settings, queue) == 1
    consumer.stop()
    assert consumers(broker_settings, queue) == 0


def test_consumers_of_different_names_stand_side_by_side(
    broker_settings: Settings, queue: str
) -> None:
    with (
        BackgroundConsumer(quickly, queue=queue, settings=broker_settings, name="one"),
        BackgroundConsumer(quickly, queue=queue, settings=broker_settings, name="two"),
    ):
        assert consumers(broker_settings, queue) == 2


def test_wait_counts_each_task_once(broker_settings: Settings, queue: str) -> None:
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(quickly, queue=queue, settings=broker_settings) as consumer,
    ):
        producer.send_many(["a", "b", "c"])
        assert [r.data for r in consumer.wait(2, timeout_s=10)] == ["a", "b"]
        assert [r.data for r in consumer.wait(1, timeout_s=10)] == ["c"]
        with pytest.raises(WaitTimeout, match="0 of 1"):
            consumer.wait(1, timeout_s=0.1)


@pytest.mark.parametrize(
    ("count", "lines"),
    [
        (3, ["1 of 3 done", "2 of 3 done", "3 of 3 done"]),
        (25, [f"{n} of 25 done" for n in (*range(2, 25, 2), 25)]),
    ],
)
def test_wait_shows_progress_in_a_fixed_number_of_lines(
    broker_settings: Settings,
    queue: str,
    capsys: pytest.CaptureFixture[str],
    count: int,
    lines: list[str],
) -> None:
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(quickly, queue=queue, settings=broker_settings) as consumer,
    ):
        producer.send_many(range(count))
        consumer.wait(count, timeout_s=10)
    assert capsys.readouterr().out.splitlines() == lines


def test_stopping_twice_or_before_the_start_is_fine(broker_settings: Settings, queue: str) -> None:
    consumer = BackgroundConsumer(quickly, queue=queue, settings=broker_settings)
    assert consumer.stop().done == 0
    consumer.start()
    consumer.stop()
    assert consumer.stop().done == 0
    with pytest.raises(ConsumerError, match="started before"):
        consumer.start()


def test_stopping_leaves_no_thread(broker_settings: Settings, queue: str) -> None:
    before = threading.active_count()
    with BackgroundConsumer(quickly, queue=queue, settings=broker_settings, workers=3):
        assert threading.active_count() == before + 4
    eventually(lambda: threading.active_count() == before)


def test_the_newest_records_are_kept_and_waiting_needs_no_more(
    broker_settings: Settings, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqlab._inbox.RECORDS_KEPT", 10)
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(quickly, queue=queue, settings=broker_settings) as consumer,
    ):
        producer.send_many(range(30))
        consumer.wait(30, timeout_s=10, show_progress=False)
        assert [record.data for record in consumer.records] == list(range(20, 30))
        assert consumer.status().done == 30


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"prefetch": -1}, {"prefetch": 70_000}])
def test_numbers_that_cannot_work_are_refused(broker_settings: Settings, wrong: Any) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        BackgroundConsumer(settings=broker_settings, **wrong)


def test_a_record_reads_as_a_sentence() -> None:
    record = TaskRecord("12345678-9", "x", 1.0, 1.1, False, 1, "worker-1", 1.25, 2.25, 2.3, "done")
    assert repr(record) == "Task 12345678 done: 0.250 s waiting, 1.000 s at work in worker-1"
