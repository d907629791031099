"""One message that cannot be read, moved or reported must not stop the queue it is in."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import types
from functools import partial
from typing import Any

import pika
import pytest

from mqlab import BackgroundConsumer, Producer, Task
from mqlab.dead import list_dead, requeue_dead
from mqlab.errors import MqlabError
from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings
from tests.conftest import PrivateBroker
from tests.faults import raw
from tests.faults.iothread import IoThreadFault, io_functions
from tests.faults.tools import (
    Inventory,
    count_consumers,
    publish,
    task_body,
    wait_for_outcomes,
    within,
)
from tests.helpers import (
    assert_depth,
    eventually,
    management,
    rabbitmqctl,
    raw_channel,
    take_all,
)


def quickly(task: Task) -> object:
    return task.data


# ---- row 39: headers that the client cannot decode

UNREADABLE = {
    "a timestamp in milliseconds": raw.timestamp(1_700_000_000_000),
    "the largest timestamp": raw.timestamp(2**64 - 1),
    "a table nested 900 deep": raw.nested(900),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_row_39_a_message_with_unreadable_headers_is_moved_and_the_next_task_runs(
    broker_settings: Settings, queue: str, kind: str
) -> None:
    table = UNREADABLE[kind]
    assert not raw.decodes(table)
    raw.publish_with_table(broker_settings, queue, table, message_id="odd", body=b"its body")
    publish(broker_settings, queue, task_body("good"))
    with BackgroundConsumer(quickly, queue=queue, settings=broker_settings) as consumer:
        records = within(25, lambda: consumer.wait(2, timeout_s=20, show_progress=False))
        status = consumer.status()
    assert {record.outcome for record in records} == {"dead", "done"}
    [bad] = [record for record in records if record.outcome == "dead"]
    assert bad.error
    assert status.reconnected <= 3
    assert_depth(broker_settings, queue, 0)
    # Everyone must be able to read the copy, so the header table is kept as bytes.
    [(_, properties, body)] = take_all(broker_settings, f"{queue}.dead")
    assert (properties.message_id, body) == ("odd", b"its body")
    assert "decode" in properties.headers["mqlab-reason"]
    kept = [value for value in properties.headers.values() if isinstance(value, bytes)]
    assert any(table in value for value in kept)


def test_row_39_an_unreadable_task_is_not_lost_among_good_ones(
    broker_settings: Settings, queue: str
) -> None:
    """It arrives between others, several at a time, with more deliveries on their way."""
    with Producer(queue, settings=broker_settings) as producer:
        sent = list(producer.send_many(range(50)).task_ids)
        for number in range(3):
            table = UNREADABLE["a timestamp in milliseconds"]
            raw.publish_with_table(
                broker_settings, queue, table, message_id=f"odd-{number}", body=task_body("odd")
            )
            sent += producer.send_many(range(50)).task_ids
    with BackgroundConsumer(
        quickly, queue=queue, settings=broker_settings, workers=2, prefetch=20
    ) as consumer:
        wait_for_outcomes(consumer, dict.fromkeys(sent, "done"), within_s=25)
        eventually(lambda: consumer.status().dead == 3)
    ids = {properties.message_id for _, properties, _ in take_all(broker_settings, f"{queue}.dead")}
    assert ids == {"odd-0", "odd-1", "odd-2"}


def test_row_39_the_dead_queue_can_be_read_where_a_message_in_it_cannot(
    broker_settings: Settings, queue: str
) -> None:
    """As when a policy of the broker has dead-lettered it."""
    table = UNREADABLE["a timestamp in milliseconds"]
    publish(broker_settings, f"{queue}.dead", task_body("first"), message_id="first")
    raw.publish_with_table(
        broker_settings, f"{queue}.dead", table, message_id="odd", body=b"its body"
    )
    publish(broker_settings, queue)
    for function in (list_dead, requeue_dead):
        said = ""
        try:
            within(15, partial(function, queue, settings=broker_settings))
        except MqlabError as error:
            said = str(error)
        # In words, where it cannot be done; pika says "year 55840 is out of range".
        assert not said or "decode" in said


# ---- row 40: whatever a handler raises; whatever happens in the I/O thread


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class TextOfAnotherKind(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class EndsTheThread(Exception):
    def __str__(self) -> str:
        raise SystemExit


class Nameless(type):
    """A class that does not give its name to anyone."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class NoName(Exception, metaclass=Nameless):
    pass


def with_notes(notes: object) -> Exception:
    error = RuntimeError("with notes")
    error.__notes__ = notes  # type: ignore[assignment]
    return error


def in_a_circle() -> Exception:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def deep_group() -> Exception:
    error: Exception = ValueError("innermost")
    for _ in range(200):
        error = ExceptionGroup("group", [error])
    return error


def own_type(name: str) -> Exception:
    kind: type[Exception] = types.new_class(name, (Exception,))
    return kind("of a class with an odd name")


RAISED: dict[str, Any] = {
    "a lone surrogate": lambda: RuntimeError("\udcff"),
    "a text that cannot be made": NoText,
    "a text that is not text": TextOfAnotherKind,
    "a text that ends the thread": EndsTheThread,
    "a class name that cannot be made": NoName,
    "an odd class name": lambda: own_type("a\nb\x1b[31m"),
    "a module that is not text": lambda: type("Odd", (Exception,), {"__module__": 5})("x"),
    "10 MB of text": lambda: RuntimeError("x" * 10_000_000),
    "many-byte text": lambda: RuntimeError("\U0001f409" * 10_000),
    "NUL and escapes": lambda: RuntimeError("\0\x1b[2J\r\n"),
    "odd notes": lambda: with_notes(5),
    "notes with a surrogate": lambda: with_notes(["\udcff"]),
    "a circle of causes": in_a_circle,
    "a deep group": deep_group,
    "an odd SyntaxError": lambda: SyntaxError("x", (None, "y", -1, 5)),
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
}


def test_row_40_whatever_a_handler_raises_the_task_is_dead_with_a_reason(
    broker_settings: Settings, queue: str
) -> None:
    def work(task: Task) -> None:
        if task.data in RAISED:
            raise RAISED[task.data]()

    inventory = Inventory.take(broker_settings)
    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(work, queue=queue, settings=broker_settings, max_attempts=1) as consumer,
    ):
        for kind in RAISED:
            bad, good = producer.send(kind).task_id, producer.send("good").task_id
            try:
                wait_for_outcomes(consumer, {bad: "dead", good: "done"}, within_s=10)
            except AssertionError as error:
                raise AssertionError(f"{kind}: {consumer.status()}") from error
        status = consumer.status()
    assert (status.reconnected, status.error) == (0, None)
    inventory.assert_restored()
    dead = list_dead(queue, settings=broker_settings)
    reasons = [message.reason for message in dead]
    assert len(reasons) == len(RAISED)
    for kind, reason in zip(RAISED, reasons, strict=True):
        assert reason.strip(), kind
        assert reason != "(no reason noted)", kind
        reason.encode()  # a lone surrogate would raise
        assert len(reason) <= 600, kind
    assert "\\udcff" in reasons[0]


def io_scenario(settings: Settings, queue: str) -> BackgroundConsumer:
    """A consumer that has had everything: good, failing and junk messages."""
    publish(settings, queue, b"junk", task_body("fails", '"fail"'), task_body("good"))
    return BackgroundConsumer(
        fail_on_demand,
        queue=queue,
        settings=settings,
        prefetch=2,
        max_attempts=2,
        retry_delay_s=0,
        name=queue,
    )


def fail_on_demand(task: Task) -> None:
    if task.data == "fail":
        raise RuntimeError("as asked")


def test_row_40_an_error_anywhere_in_the_io_thread_fails_the_consumer_and_closes_its_socket(
    broker_settings: Settings, queue: str
) -> None:
    """Each function of mqlab that the I/O thread runs raises once, in a consumer of its own.

    Afterwards the consumer works on, or it is failed, says why, and has given everything back.
    """

    def run(fault: IoThreadFault | None) -> None:
        inventory = Inventory.take(broker_settings)
        consumer = io_scenario(broker_settings, queue)
        where = fault.name if fault else "nowhere"
        error: MqlabError | None = None
        try:
            within(10, lambda: consumer.start(timeout_s=5))
            eventually(lambda: consumer.status().state == "failed" or consumer.status().done)
            if fault and fault.raised:
                eventually(
                    lambda: (
                        consumer.status().state == "failed"
                        or (consumer.status().done, consumer.status().dead) == (1, 2)
                    ),
                    within_s=5,
                )
                error = consumer.status().error
        except MqlabError as refused:  # from start
            error = refused
        if error is not None:
            assert str(error), where  # pika may have made it an error of the connection
            # Without anyone calling stop: the socket is closed, so the broker has it all back.
            eventually(lambda: not open_left(inventory), within_s=3)
            eventually(lambda: count_consumers(broker_settings, queue) == 0, within_s=3)
        stop(consumer)
        inventory.assert_restored(f"after an error in {where}")
        with raw_channel(broker_settings) as channel:
            channel.queue_delete(queue)
            channel.queue_delete(f"{queue}.dead")

    functions = io_functions(lambda: run(None))
    assert len(functions) >= 10
    unharmed = []
    for name in functions:
        with IoThreadFault(name, RuntimeError("boom")) as fault:
            try:
                run(fault)
            except AssertionError as error:
                raise AssertionError(f"an error in {name}: {error}") from error
        if not fault.raised:
            unharmed.append(name)
    print(f"{len(functions)} functions, not reached again: {unharmed}")
    assert len(unharmed) <= len(functions) // 3


def open_left(inventory: Inventory) -> list[str]:
    return [what for what in inventory.left() if what.startswith("socket")]


def stop(consumer: BackgroundConsumer) -> None:
    """Stop it within its time; one that has failed raises that again."""
    with contextlib.suppress(MqlabError):
        within(15, lambda: consumer.stop(timeout_s=2))


@pytest.mark.parametrize("method", ["basic_ack", "basic_publish"])
def test_row_40_an_io_thread_that_dies_gives_its_tasks_back_at_once(
    broker_settings: Settings, queue: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """While its socket is open, the broker keeps them for this consumer."""
    publish(broker_settings, queue, b"junk", *[task_body(f"good-{n}") for n in range(9)])
    original = getattr(pika.channel.Channel, method)
    broken: list[str] = []

    def boom(*args: Any, **options: Any) -> Any:
        if threading.current_thread().name.startswith("mqlab") and not broken:
            broken.append(threading.current_thread().name)
            raise RuntimeError("boom")
        return original(*args, **options)

    monkeypatch.setattr(pika.channel.Channel, method, boom)
    first = BackgroundConsumer(
        quickly, queue=queue, settings=broker_settings, prefetch=10, name="first"
    ).start()
    eventually(lambda: broken)
    started = time.monotonic()
    with BackgroundConsumer(
        quickly, queue=queue, settings=broker_settings, name="second"
    ) as second:
        eventually(
            lambda: first.status().state == "failed" or second.status().done == 9, within_s=10
        )
        if first.status().state == "failed":
            status = first.status()
            assert "boom" in f"{status.error} {status.trouble}"
            eventually(lambda: second.status().done + first.status().done >= 9, within_s=3)
    assert time.monotonic() - started < 8
    stop(first)


@pytest.mark.parametrize(
    "step", ["Connection.Start", "Connection.Tune", "Connection.OpenOk", "Channel.OpenOk"]
)
@pytest.mark.parametrize("then", ["it is cut", "it goes on", "nothing comes"])
def test_row_40_closing_while_it_connects_again_is_no_error(
    broker_settings: Settings, queue: str, step: str, then: str
) -> None:
    """At each step of the handshake, and whatever the network does next."""
    holding, held, go_on = threading.Event(), threading.Event(), threading.Event()

    def hold(_connection: int, from_client: bool, frame: Any) -> None:
        name = getattr(getattr(frame, "method", None), "NAME", "")
        if holding.is_set() and not from_client and name == step:
            held.set()
            go_on.wait(5)

    with Proxy(broker_settings, on_frame=hold) as proxy:
        inventory = Inventory.take(proxy.settings)
        producer = Producer(queue, settings=proxy.settings)
        consumer = BackgroundConsumer(quickly, queue=queue, settings=proxy.settings).start()
        holding.set()
        proxy.cut()
        assert held.wait(10), "the handshake did not come so far"
        closing = [
            threading.Thread(target=lambda: producer.close(timeout_s=2)),
            threading.Thread(target=lambda: stop(consumer)),
        ]
        for thread in closing:
            thread.start()
        eventually(lambda: producer.status().state == "closed")
        if then == "it is cut":
            proxy.cut()
        if then != "nothing comes":
            go_on.set()
        for thread in closing:
            thread.join(15)
        assert (producer.status().error, consumer.status().error) == (None, None)
        inventory.assert_restored()
        go_on.set()


# ---- row 41: the copy would not fit into a frame

SLACK = [0, 14, 60]  # bytes of the frame that are free


@pytest.mark.parametrize("slack", SLACK)
def test_row_41_a_message_whose_headers_fill_a_frame_can_still_be_moved(
    broker_settings: Settings, queue: str, slack: int
) -> None:
    move_with_full_headers(broker_settings, queue, 131_072, slack)


@pytest.mark.parametrize("slack", SLACK)
def test_row_41_so_it_is_at_the_smallest_frame(own_node: PrivateBroker, slack: int) -> None:
    smallest = 8192 if int(server_major(own_node)) >= 4 else 4096
    with frame_max(own_node, smallest):
        move_with_full_headers(own_node.settings, f"row-41-{slack}", smallest, slack)


def move_with_full_headers(settings: Settings, queue: str, size: int, slack: int) -> None:
    """Move a task that always fails, and junk, both with headers that fill a frame."""
    tuned: list[int] = []

    def look(_connection: int, _from_client: bool, frame: Any) -> None:
        if getattr(getattr(frame, "method", None), "NAME", "") == "Connection.Tune":
            tuned.append(frame.method.frame_max)

    with Proxy(settings, on_frame=look) as proxy, raw_channel(proxy.settings) as channel:
        assert tuned == [size], "the broker offers another size"
        channel.queue_declare(queue, durable=True)
        sizes: dict[str, int] = {}
        bodies = {"junk": b"junk", "fails": task_body("fails", '"fail"')}
        for name, body in bodies.items():
            headers = raw.filling_headers(size, slack, message_id=name)
            sizes[name] = len(headers["big"])
            properties = pika.BasicProperties(headers=headers, message_id=name)
            channel.basic_publish("", queue, body, properties)
        channel.basic_publish("", queue, task_body("good"))
    with BackgroundConsumer(
        fail_on_demand, queue=queue, settings=settings, max_attempts=2, retry_delay_s=0
    ) as consumer:
        within(25, lambda: consumer.wait(3, timeout_s=20, show_progress=False))
        status = consumer.status()
    assert (status.done, status.dead, status.reconnected) == (1, 2, 0)
    moved = {p.message_id: (p, body) for _, p, body in take_all(settings, f"{queue}.dead")}
    assert set(moved) == set(bodies)
    for name, (properties, body) in moved.items():
        assert body == bodies[name]
        assert properties.headers["big"] == "x" * sizes[name]
    assert_depth(settings, queue, 0)


def server_major(broker: PrivateBroker) -> str:
    return str(management(broker.settings, "overview")["rabbitmq_version"]).split(".")[0]


class frame_max:
    def __init__(self, broker: PrivateBroker, size: int) -> None:
        self.broker, self.size = broker, size

    def __enter__(self) -> None:
        self.set(self.size)

    def __exit__(self, *_exc: object) -> None:
        self.set(131_072)

    def set(self, size: int) -> None:
        rabbitmqctl(self.broker.node, "eval", f"application:set_env(rabbit, frame_max, {size}).")


# ---- row 52: a delay that doubles 2,000 times


@pytest.mark.parametrize("delay_s", [0, 0.0])
def test_row_52_a_thousand_attempts_without_a_delay(
    broker_settings: Settings, queue: str, delay_s: float
) -> None:
    publish(broker_settings, queue, task_body("fails", '"fail"'))
    with BackgroundConsumer(
        fail_on_demand,
        queue=queue,
        settings=broker_settings,
        max_attempts=1100,
        retry_delay_s=delay_s,
    ) as consumer:
        eventually(
            lambda: consumer.status().state == "failed" or consumer.status().dead, within_s=40
        )
        status = consumer.status()
        publish(broker_settings, queue, task_body("good"))
        wait_for_outcomes(consumer, {"good": "done"}, within_s=10)
    assert (status.state, status.retried, status.dead) == ("running", 1099, 1)


def test_row_52_the_delay_has_a_ceiling(broker_settings: Settings, queue: str) -> None:
    """As after 1,100 attempts: the doubled delay is no number any more."""
    failed = threading.Event()

    def work(task: Task) -> None:
        if task.data == "fail":
            failed.set()
            raise RuntimeError("as asked")

    headers = {"mqlab-attempts": 1100}
    publish(broker_settings, queue, task_body("fails", '"fail"'), headers=headers)
    with BackgroundConsumer(
        work,
        queue=queue,
        settings=broker_settings,
        prefetch=2,
        max_attempts=5000,
        retry_delay_s=0.01,
    ) as consumer:
        assert failed.wait(10)
        publish(broker_settings, queue, task_body("good"))
        wait_for_outcomes(consumer, {"good": "done"}, within_s=10)
        assert consumer.status().state == "running"
        within(10, lambda: consumer.stop(timeout_s=2))
    # The task waited for its next attempt in the consumer, so it is back.
    [(_, _, body)] = take_all(broker_settings, queue)
    assert body == task_body("fails", '"fail"')
