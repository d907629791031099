"""Handlers, results, subscribers, headers and queues that do what nobody expects."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mqlab import BackgroundConsumer, Producer, Task, events
from mqlab._inbox import PARTS_MEASURED, size_of
from mqlab.dead import list_dead
from mqlab.errors import ConnectError, ConsumerError, MqlabError
from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings
from tests.helpers import assert_depth, eventually, raw_channel


class _NoBytes:
    @property
    def nbytes(self) -> int:
        raise ValueError("not now")


class _Exits(list[int]):
    def __iter__(self) -> Iterator[int]:
        raise SystemExit(3)


def fail(_task: Task) -> None:
    raise ValueError("never works")


def test_a_result_that_cannot_be_measured_does_no_harm(
    broker_settings: Settings, queue: str
) -> None:
    loop: list[Any] = []
    loop.extend([loop] * 300)
    results: list[Any] = [_NoBytes(), _Exits([1]), loop]
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(
            lambda task: results[task.data], queue=queue, settings=broker_settings
        ) as consumer,
    ):
        producer.send_many(range(len(results)))
        records = consumer.wait(len(results), timeout_s=10)
    assert [record.outcome for record in records] == ["done"] * len(results)


def test_only_some_parts_of_a_large_result_are_measured() -> None:
    assert size_of(["x" * 1000] * 100) == pytest.approx(100_000, rel=0.1)
    assert size_of(["x" * 1000] * 10 * PARTS_MEASURED) == pytest.approx(1e8, rel=0.2)
    assert size_of({"key": b"1234"}) < 100


@pytest.mark.parametrize("kind", ["opened", "received", "started", "settled", "closed"])
def test_a_subscriber_that_exits_ends_no_thread(
    broker_settings: Settings, queue: str, kind: str
) -> None:
    def leave(event: events.Event) -> None:
        if event.kind == kind and threading.current_thread() is not threading.main_thread():
            raise SystemExit(1)

    unsubscribe = events.subscribe(leave)
    try:
        with (
            Producer(queue, settings=broker_settings) as producer,
            BackgroundConsumer(lambda _task: None, queue=queue, settings=broker_settings) as each,
        ):
            producer.send_many(range(3))
            assert len(each.wait(3, timeout_s=5)) == 3
            began = time.monotonic()
        assert time.monotonic() - began < 3
    finally:
        unsubscribe()


def test_an_interrupt_in_a_subscriber_reaches_the_main_thread() -> None:
    def interrupt(_event: events.Event) -> None:
        raise KeyboardInterrupt

    unsubscribe = events.subscribe(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            events.publish("sent", None, "a queue")
    finally:
        unsubscribe()


def test_a_logging_filter_that_raises_ends_no_thread(broker_settings: Settings, queue: str) -> None:
    def refuse(_record: logging.LogRecord) -> bool:
        raise OSError("no space left")

    events.logger.addFilter(refuse)
    events.logger.setLevel(logging.DEBUG)
    try:
        with (
            Producer(queue, settings=broker_settings) as producer,
            BackgroundConsumer(lambda _task: None, queue=queue, settings=broker_settings) as each,
        ):
            producer.send_many(range(3))
            assert len(each.wait(3, timeout_s=5)) == 3
    finally:
        events.logger.removeFilter(refuse)
        events.logger.setLevel(logging.NOTSET)


def test_a_held_task_and_a_long_one_leave_a_slot(broker_settings: Settings, queue: str) -> None:
    done = threading.Event()

    def work(task: Task) -> None:
        if task.data == "long":
            assert done.wait(20)
        if task.data == "bad":
            raise ValueError("never works")

    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(
            work, queue=queue, settings=broker_settings, workers=2, retry_delay_s=60
        ) as consumer,
    ):
        producer.send_many(["long", "bad", 1, 2, 3])
        try:
            assert len(consumer.wait(3, timeout_s=5)) == 3
        finally:
            done.set()
        consumer.wait(1, timeout_s=5)


def test_retries_do_not_make_the_broker_deliver_tasks_twice(
    broker_settings: Settings, queue: str
) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        producer.send_many(range(500))
    with BackgroundConsumer(
        fail, queue=queue, settings=broker_settings, prefetch=100, retry_delay_s=60
    ) as consumer:
        assert eventually(lambda: consumer.status().retried == 500)
        status = consumer.status()
    assert (status.redelivered, status.reconnected) == (0, 0)
    assert_depth(broker_settings, queue, 500)


def test_held_tasks_are_freed_when_the_channel_is_lost(
    broker_settings: Settings, queue: str
) -> None:
    def count_bodies() -> int:
        gc.collect()
        return sum(
            len(each.body) > 50_000 for each in gc.get_objects() if type(each).__name__ == "Move"
        )

    with (
        Proxy(broker_settings) as proxy,
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(
            fail, queue=queue, settings=proxy.settings, retry_delay_s=600
        ) as consumer,
    ):
        producer.send_many(["x" * 60_000] * 5)
        for times in range(1, 4):
            assert eventually(lambda n=5 * times: consumer.status().retried == n)  # type: ignore[misc]
            assert count_bodies() == 5
            proxy.cut()


def test_reading_the_dead_over_a_connection_that_is_cut(
    broker_settings: Settings, queue: str
) -> None:
    def cut(_connection: int, _from_client: bool, frame: Any) -> bool:
        if getattr(getattr(frame, "method", None), "NAME", "") == "Basic.Get":
            threading.Thread(target=proxy.cut).start()
            return False
        return True

    with raw_channel(broker_settings) as channel:
        channel.queue_declare(f"{queue}.dead", durable=True)
        channel.basic_publish("", f"{queue}.dead", b"x")
    with Proxy(broker_settings, cut) as proxy, pytest.raises(ConnectError):
        list_dead(queue, settings=proxy.settings)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_told_that_the_connection_is_its_parents(
    broker_settings: Settings, queue: str
) -> None:
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(lambda _task: None, queue=queue, settings=broker_settings) as consumer,
    ):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            began = time.monotonic()
            errors = []
            for use in (lambda: producer.send(1), consumer.stop, producer.close):
                try:
                    use()
                except MqlabError as error:
                    errors.append(
                        type(error).__name__ + " parent process" * ("parent" in str(error))
                    )
            os.write(writer, f"{errors} {time.monotonic() - began < 2}".encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answers:
            answer = answers.read()
        os.waitpid(child, 0)
        named = [f"{kind.__name__} parent process" for kind in (MqlabError, ConsumerError)]
        assert answer == f"{named} True"
        producer.send(2)
        assert len(consumer.wait(1, timeout_s=5)) == 1
