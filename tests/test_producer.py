from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time

import pytest

from mqlab import Producer, send_task_to_queue
from mqlab._outbox import WINDOW, Outbox
from mqlab.errors import (
    AccessRefused,
    MqlabError,
    NotSent,
    OutcomeUnknown,
    QueueMismatch,
    Rejected,
    TaskError,
    Unroutable,
)
from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings
from tests.helpers import (
    assert_depth,
    depth,
    eventually,
    management,
    raw_channel,
    take_all,
)


def test_a_sent_task_is_in_the_queue_with_one_id_everywhere(
    broker_settings: Settings, queue: str
) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        record = producer.send("a report")
    [(_, properties, body)] = take_all(broker_settings, queue)
    fields = json.loads(body)
    assert fields == {"task_id": record.task_id, "data": "a report", "timestamp": record.sent_at}
    assert properties.message_id == record.task_id
    assert properties.delivery_mode == 2
    assert properties.content_type == "application/json"


def test_the_queue_is_declared_as_the_walk_through_declares_it(
    broker_settings: Settings, queue: str
) -> None:
    Producer(queue, settings=broker_settings).close()
    with raw_channel(broker_settings) as channel:
        channel.queue_declare(queue=queue, durable=True)  # 406 if anything else was asked for


def test_the_parts_of_the_wait_add_up_to_the_callers_wait(
    broker_settings: Settings, queue: str
) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        started = time.perf_counter()
        record = producer.send("x")
        waited = time.perf_counter() - started
    assert 0 < record.publish_s < record.wait_s <= waited
    assert record.connect_s == record.declare_s == 0
    assert record.wait_s > waited * 0.5


def test_send_many_confirms_all_in_order(broker_settings: Settings, queue: str) -> None:
    count = 3 * WINDOW + 7
    with Producer(queue, settings=broker_settings) as producer:
        record = producer.send_many(range(count))
    taken = [json.loads(body) for _, _, body in take_all(broker_settings, queue)]
    assert [fields["data"] for fields in taken] == list(range(count))
    assert tuple(fields["task_id"] for fields in taken) == record.task_ids


def test_the_window_bounds_what_is_unconfirmed_and_reopens_for_a_whole_block(
    broker_settings: Settings, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_flight, blocks = [], []
    drain = Outbox.drain

    def watched(outbox: Outbox) -> None:
        before = len(outbox._in_flight)
        drain(outbox)
        in_flight.append(len(outbox._in_flight))
        if len(outbox._in_flight) > before:
            blocks.append(len(outbox._in_flight) - before)

    monkeypatch.setattr(Outbox, "drain", watched)
    with Producer(queue, settings=broker_settings) as producer:
        producer.send_many(range(10 * WINDOW))
    assert WINDOW // 2 <= max(in_flight) <= WINDOW
    assert sum(blocks) == 10 * WINDOW
    assert len(blocks) <= 60  # of 500 each, 20; without that rule, hundreds


def test_a_body_of_several_frames_arrives_whole(broker_settings: Settings, queue: str) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        producer.send_many(["x" * size for size in (131_000, 131_064, 300_000, 1_000_000)])
    sizes = [len(json.loads(body)["data"]) for _, _, body in take_all(broker_settings, queue)]
    assert sizes == [131_000, 131_064, 300_000, 1_000_000]


def test_sends_that_time_out_do_not_disturb_those_that_begin(
    broker_settings: Settings, queue: str
) -> None:
    with Proxy(broker_settings) as proxy:
        producer = Producer(queue, settings=proxy.settings)
    eventually(lambda: producer.status().state == "reconnecting")
    outcomes: list[type[BaseException]] = []
    deadline = time.monotonic() + 1.5

    def send() -> None:
        while time.monotonic() < deadline:
            try:
                producer.send_many(range(20), timeout_s=0.001)
            except (NotSent, OutcomeUnknown) as error:
                outcomes.append(type(error))

    threads = [threading.Thread(target=send) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns within a loop over what is pending
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    sys.setswitchinterval(interval)
    assert producer.status().state == "reconnecting"
    assert producer.status().waiting == 0
    assert len(outcomes) > 50
    assert set(outcomes) == {NotSent}
    producer.close()


def test_sending_nothing_is_fine(broker_settings: Settings, queue: str) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        assert producer.send_many([]).task_ids == ()


def test_many_threads_share_one_producer(broker_settings: Settings, queue: str) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        threads = [
            threading.Thread(target=lambda: [producer.send("x") for _ in range(25)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert producer.status().sent == 200
    taken = take_all(broker_settings, queue)
    assert len({properties.message_id for _, properties, _ in taken}) == len(taken) == 200


def test_row_08_a_bad_item_sends_nothing_and_leaves_the_connection(
    broker_settings: Settings, queue: str
) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        with pytest.raises(TaskError):
            producer.send_many(["fine", {1, 2}])
        with pytest.raises(TaskError):
            producer.send({1, 2})
        assert_depth(broker_settings, queue, 0)
        producer.send("still works")
        assert producer.status().reconnected == 0
    assert_depth(broker_settings, queue, 1)


def test_row_15_a_cut_is_survived_with_the_same_id(broker_settings: Settings, queue: str) -> None:
    with Proxy(broker_settings) as proxy, Producer(queue, settings=proxy.settings) as producer:
        producer.send("before")
        assert proxy.cut() == 1
        record = producer.send("after", timeout_s=20)
        assert producer.status().reconnected == 1
    ids = [properties.message_id for _, properties, _ in take_all(broker_settings, queue)]
    assert len(ids) in (2, 3)
    assert ids[-1] == record.task_id


def test_row_15_an_unconfirmed_send_is_repeated_with_the_same_id(
    broker_settings: Settings, queue: str
) -> None:
    with Proxy(broker_settings) as proxy, Producer(queue, settings=proxy.settings) as producer:
        proxy.swallow_answers = True  # the broker gets it, and its confirm gets lost
        done: list[object] = []
        thread = threading.Thread(target=lambda: done.append(producer.send("x", timeout_s=20)))
        thread.start()
        eventually(lambda: depth(broker_settings, queue) == 1)
        proxy.swallow_answers = False
        assert proxy.cut() == 1
        thread.join(20)
        [record] = done
        assert producer.status().repeated == 1
    assert record.repeated == 1  # type: ignore[attr-defined]
    ids = [properties.message_id for _, properties, _ in take_all(broker_settings, queue)]
    assert ids == [record.task_id] * 2  # type: ignore[attr-defined]


def test_row_11_a_login_that_is_no_longer_good_is_not_tried_again(
    broker_settings: Settings, queue: str
) -> None:
    user = queue  # a name of this test's own
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    management(broker_settings, f"users/{user}", "PUT", {"password": "topsecret", "tags": ""})
    management(broker_settings, f"permissions/%2F/{user}", "PUT", everything)
    theirs = dataclasses.replace(broker_settings, username=user, password="topsecret")
    with Proxy(theirs) as proxy, Producer(queue, settings=proxy.settings) as producer:
        producer.send("while it is good")
        management(broker_settings, f"users/{user}", "DELETE")
        proxy.cut()
        eventually(lambda: producer.status().state == "failed")
        accepted = proxy.accepted
        with pytest.raises(AccessRefused) as caught:
            producer.send("x")
        time.sleep(0.5)  # what is tested is that no further attempt comes
        assert proxy.accepted == accepted
    assert "topsecret" not in str(caught.value)


def test_row_16_a_silent_network_is_unknown_in_time(broker_settings: Settings, queue: str) -> None:
    with Proxy(broker_settings) as proxy, Producer(queue, settings=proxy.settings) as producer:
        proxy.swallow = True
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown) as caught:
            producer.send("x", timeout_s=1)
        assert time.monotonic() - started < 2
        assert list(caught.value.outcomes.values()) == ["unknown"]


def test_a_task_that_never_left_is_not_sent(broker_settings: Settings, queue: str) -> None:
    with Proxy(broker_settings) as proxy:
        producer = Producer(queue, settings=proxy.settings)
    # The proxy is gone: there is nothing to connect to any more.
    eventually(lambda: producer.status().state == "reconnecting")
    with pytest.raises(NotSent) as caught:
        producer.send("x", timeout_s=0.5)
    assert list(caught.value.outcomes.values()) == ["not sent"]
    producer.close()
    assert_depth(broker_settings, queue, 0)


def test_an_unknown_task_can_be_sent_again_with_its_id(
    broker_settings: Settings, queue: str
) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        record = producer.send("x", task_id="my-id")
    [(_, properties, body)] = take_all(broker_settings, queue)
    assert record.task_id == properties.message_id == json.loads(body)["task_id"] == "my-id"


def test_row_18_a_queue_with_other_properties_is_named_and_left(
    broker_settings: Settings, queue: str
) -> None:
    with raw_channel(broker_settings) as channel:
        channel.queue_declare(queue, durable=False)
        channel.basic_publish("", queue, b"keep me")
    with pytest.raises(QueueMismatch) as caught:
        Producer(queue, settings=broker_settings)
    assert f"'{queue}' exists with durable = 'false'; asked for was 'true'" in str(caught.value)
    assert "next:" in str(caught.value)
    assert_depth(broker_settings, queue, 1)


def test_row_20_a_queue_that_went_away_is_unroutable(broker_settings: Settings, queue: str) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        with raw_channel(broker_settings) as channel:
            channel.queue_delete(queue)
        with pytest.raises(Unroutable):
            producer.send("x")
        with pytest.raises(Unroutable, match="3 unroutable") as caught:
            producer.send_many(range(3))
        assert set(caught.value.outcomes.values()) == {"unroutable"}


def test_row_20_without_declaring_a_missing_queue_is_unroutable(
    broker_settings: Settings, queue: str
) -> None:
    with (
        Producer(queue, settings=broker_settings, declare=False) as producer,
        pytest.raises(Unroutable),
    ):
        producer.send("x")


def test_a_full_queue_that_refuses_is_rejected(broker_settings: Settings, queue: str) -> None:
    with raw_channel(broker_settings) as channel:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare(queue, durable=True, arguments=arguments)
    with Producer(queue, settings=broker_settings, declare=False) as producer:
        producer.send("fits")
        with pytest.raises(Rejected):
            producer.send("does not")
        with pytest.raises(Rejected) as caught:
            producer.send_many(range(5))
        assert list(caught.value.outcomes.values()) == ["rejected"] * 5


def test_row_23_queues_of_ones_own_do_not_meet(broker_settings: Settings, queue: str) -> None:
    other = f"{queue}.dead"  # deleted by the fixture
    with (
        Producer(queue, settings=broker_settings) as mine,
        Producer(other, settings=broker_settings) as yours,
    ):
        mine.send("mine")
        yours.send_many(["yours", "yours"])
    assert_depth(broker_settings, queue, 1)
    assert_depth(broker_settings, other, 2)


def test_a_closed_producer_says_so(broker_settings: Settings, queue: str) -> None:
    producer = Producer(queue, settings=broker_settings)
    producer.close()
    assert producer.status().state == "closed"
    with pytest.raises(MqlabError, match="closed"):
        producer.send("x")


def test_closing_leaves_no_thread(broker_settings: Settings, queue: str) -> None:
    before = threading.active_count()
    Producer(queue, settings=broker_settings).close()
    assert threading.active_count() == before


def test_idle_minutes_do_not_cost_the_connection(broker_settings: Settings, queue: str) -> None:
    """Heartbeats go on while nobody calls: with 1 s, the broker would close after 3 s."""
    with Producer(queue, settings=broker_settings, heartbeat_s=1) as producer:
        time.sleep(4)  # what is tested is that time passes and nothing happens
        producer.send("x")
        assert producer.status().reconnected == 0


def test_send_task_to_queue_prints_the_walk_throughs_lines(
    broker_settings: Settings, queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = send_task_to_queue("an audit", queue=queue, settings=broker_settings)
    assert capsys.readouterr().out.splitlines() == [
        f"*** [API Server/Producer] Task ID {record.task_id[:8]} published successfully! ***",
        f"*** [API Server/Producer] Immediate wait time: {record.publish_s:.4f} seconds ***",
        "*** [API Server/Producer] Full computation runs in the background. ***",
        "",
    ]
    [(_, properties, _)] = take_all(broker_settings, queue)
    assert properties.message_id == record.task_id


def test_send_task_to_queue_times_every_step(broker_settings: Settings, queue: str) -> None:
    started = time.perf_counter()
    record = send_task_to_queue("x", queue=queue, settings=broker_settings, quiet=True)
    waited = time.perf_counter() - started
    parts = (record.connect_s, record.declare_s, record.publish_s, record.confirm_s)
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(record.wait_s)
    assert waited * 0.3 < record.wait_s < waited


def test_a_producer_can_be_started_later_as_a_consumer_is(
    broker_settings: Settings, queue: str
) -> None:
    producer = Producer(queue, settings=broker_settings, start=False)
    assert producer.status().state == "new"
    with pytest.raises(MqlabError, match="start"):
        producer.send("too early")
    with producer:
        producer.send("x")
        with pytest.raises(MqlabError, match="before"):
            producer.start()
    assert producer.status().state == "closed"
    assert_depth(broker_settings, queue, 1)
