"""What cannot work is refused at the door, in words: nothing is opened, nothing is sent."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from mqlab import BackgroundConsumer, Producer, Task, send_task_to_queue
from mqlab.dead import list_dead, requeue_dead
from mqlab.errors import ConnectError, MqlabError, TaskError
from mqlab.settings import Settings
from tests.faults.tools import Inventory, publish, task_body, within
from tests.helpers import assert_depth

NOWHERE = Settings(port=1)
"""Whatever connects instead of refusing raises ConnectError."""


def quickly(task: Task) -> object:
    return task.data


def refuse(function: Callable[[], object], *words: str) -> None:
    with pytest.raises(MqlabError) as caught:
        within(10, function)
    assert not isinstance(caught.value, ConnectError), "it has tried to connect"
    text = str(caught.value)
    text.encode()  # it can be printed
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


# ---- row 63: handlers that are called and have not run


async def coroutine(_task: Task) -> None: ...


def generator(_task: Task) -> Iterator[int]:
    yield 1


async def async_generator(_task: Task) -> AsyncIterator[int]:
    yield 1


class AsyncCallable:
    async def __call__(self, _task: Task) -> None: ...


class GeneratorCallable:
    def __call__(self, _task: Task) -> Iterator[int]:
        yield 1


class Methods:
    async def coroutine(self, _task: Task) -> None: ...

    def generator(self, _task: Task) -> Iterator[int]:
        yield 1

    @staticmethod
    async def static(_task: Task) -> None: ...


NOT_RUN: dict[str, Any] = {
    "coroutine function": coroutine,
    "generator function": generator,
    "async generator function": async_generator,
    "partial of a coroutine function": functools.partial(coroutine),
    "partial of a generator function": functools.partial(generator),
    "partial of a partial": functools.partial(functools.partial(coroutine)),
    "object with an async __call__": AsyncCallable(),
    "object with a generator __call__": GeneratorCallable(),
    "partial of such an object": functools.partial(AsyncCallable()),
    "coroutine method": Methods().coroutine,
    "generator method": Methods().generator,
    "static coroutine method": Methods.static,
}


@pytest.mark.parametrize("kind", NOT_RUN)
def test_row_63_a_handler_that_would_not_run_is_refused(kind: str) -> None:
    word = "generator" if "generator" in kind else "async"
    refuse(lambda: BackgroundConsumer(NOT_RUN[kind], settings=NOWHERE), word, "next:")


@pytest.mark.parametrize("kind", ["a text", "a number", "a module", "a task"])
def test_row_63_what_cannot_be_called_is_refused(kind: str) -> None:
    handler: Any = {"a text": "work", "a number": 5, "a module": os, "a task": Task(1)}[kind]
    refuse(lambda: BackgroundConsumer(handler, settings=NOWHERE), "handler")


@pytest.mark.parametrize("made", [coroutine, generator, async_generator])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_row_63_what_is_found_out_only_later_is_not_done(
    broker_settings: Settings, queue: str, made: Callable[[Task], object]
) -> None:
    """A plain function that returns a coroutine or a generator: the work has not been done."""
    publish(broker_settings, queue, task_body())
    with BackgroundConsumer(
        lambda task: made(task), queue=queue, settings=broker_settings, max_attempts=1
    ) as consumer:
        [record] = consumer.wait(1, timeout_s=10, show_progress=False)
    assert record.outcome == "dead"
    assert "generator" in str(record.error) or "coroutine" in str(record.error)


# ---- row 64: time-outs, numbers, names

BAD_TIMES: dict[str, Any] = {
    "infinite": math.inf,
    "not a number": math.nan,
    "negative": -1,
    "a little negative": -0.001,
    "text": "5",
    "bytes": b"5",
    "bool": True,
    "list": [5],
    "complex": 5j,
    "a very large int": 10**400,
    "beyond what a lock can wait": 1e300,
}


class Everything:
    """A producer and a consumer that work, to call with what they cannot use."""

    def __init__(self, settings: Settings, queue: str) -> None:
        self.settings, self.queue = settings, queue
        self.producer = Producer(queue, settings=settings)
        self.consumer = BackgroundConsumer(quickly, queue=f"{queue}.dead", settings=settings)
        self.consumer.start()


@pytest.fixture
def everything(broker_settings: Settings, queue: str) -> Iterator[Everything]:
    made = Everything(broker_settings, queue)
    yield made
    made.consumer.stop()
    made.producer.close()


CALLS_WITH_A_TIME: dict[str, Callable[[Everything, Any], object]] = {
    "send": lambda it, s: it.producer.send("x", timeout_s=s),
    "send_many": lambda it, s: it.producer.send_many([1, 2], timeout_s=s),
    "close": lambda it, s: it.producer.close(s),
    "wait": lambda it, s: it.consumer.wait(1, timeout_s=s),
    "stop": lambda it, s: it.consumer.stop(s),
    "start": lambda it, s: BackgroundConsumer(
        quickly, queue=f"{it.queue}.dead", name="other", settings=it.settings
    ).start(s),
}


@pytest.mark.parametrize("call", CALLS_WITH_A_TIME)
@pytest.mark.parametrize("kind", BAD_TIMES)
def test_row_64_a_time_that_cannot_be_used_is_refused_and_nothing_happens(
    everything: Everything, call: str, kind: str
) -> None:
    inventory = Inventory.take(everything.settings)
    refuse(lambda: CALLS_WITH_A_TIME[call](everything, BAD_TIMES[kind]), "timeout_s")
    inventory.assert_restored(within_s=2)
    assert everything.producer.status().state == "connected"
    assert everything.consumer.status().state == "running"
    assert_depth(everything.settings, everything.queue, 0)
    everything.producer.send("still works", timeout_s=5)


@pytest.mark.parametrize("kind", BAD_TIMES)
def test_row_64_a_time_that_cannot_be_used_is_refused_by_constructors_and_functions(
    kind: str,
) -> None:
    bad = BAD_TIMES[kind]
    refuse(lambda: Producer(settings=NOWHERE, timeout_s=bad), "timeout_s")
    refuse(lambda: send_task_to_queue("x", settings=NOWHERE, timeout_s=bad), "timeout_s")
    if kind != "beyond what a lock can wait":
        refuse(lambda: BackgroundConsumer(settings=NOWHERE, retry_delay_s=bad), "retry_delay_s")


def test_row_64_no_time_at_all_is_a_time(everything: Everything) -> None:
    """0 asks without waiting; None means the producer's own bound, where that is the default."""
    everything.producer.send("x", timeout_s=None)
    with pytest.raises(MqlabError, match="0 of 1"):
        everything.consumer.wait(1, timeout_s=0)
    everything.consumer.stop(timeout_s=0)
    everything.producer.close(timeout_s=0)


BAD_NUMBERS: dict[str, list[Any]] = {
    "workers": [0, -1, "2", 1.5, True, None, math.nan, 10**9],
    "prefetch": [0, -1, "2", 1.5, True, 65_536],
    "max_attempts": [0, -1, "2", 1.5, True, None],
    "heartbeat_s": [-1, "2", 1.5, None, 65_536, math.nan],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_NUMBERS.items() for value in values]
)
def test_row_64_a_number_that_cannot_be_used_is_refused(name: str, value: Any) -> None:
    refuse(lambda: BackgroundConsumer(settings=NOWHERE, **{name: value}), name)
    if name == "heartbeat_s":
        refuse(lambda: Producer(settings=NOWHERE, heartbeat_s=value), name)


@pytest.mark.parametrize("count", [-1, "3", 1.5, None, True, math.nan])
def test_row_64_wait_refuses_a_count_that_is_none(everything: Everything, count: Any) -> None:
    refuse(lambda: everything.consumer.wait(count, timeout_s=1), "count")


BAD_NAMES: dict[str, Any] = {
    "empty": "",
    "reserved": "amq.gen-mine",
    "256 bytes": "q" * 256,
    "256 bytes of UTF-8": "é" * 128,
    "a lone surrogate": "q\udcff",
    "bytes": b"q",
    "None": None,
    "a number": 5,
}

CALLS_WITH_A_NAME: dict[str, Callable[[Any], object]] = {
    "Producer": lambda queue: Producer(queue, settings=NOWHERE),
    "BackgroundConsumer": lambda queue: BackgroundConsumer(queue=queue, settings=NOWHERE),
    "send_task_to_queue": lambda queue: send_task_to_queue("x", queue=queue, settings=NOWHERE),
    "list_dead": lambda queue: list_dead(queue, settings=NOWHERE),
    "requeue_dead": lambda queue: requeue_dead(queue, settings=NOWHERE),
}


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (call, kind)
        for call in CALLS_WITH_A_NAME
        for kind in BAD_NAMES
        if not (kind == "reserved" and call.endswith("_dead"))  # reading there is harmless
    ],
)
def test_row_64_a_queue_name_that_cannot_be_used_is_refused(call: str, kind: str) -> None:
    refuse(lambda: CALLS_WITH_A_NAME[call](BAD_NAMES[kind]), "queue")


@pytest.mark.parametrize("limit", [-1, "3", 1.5, None, True])
def test_row_64_list_dead_refuses_a_limit_that_is_none(limit: Any) -> None:
    refuse(lambda: list_dead(settings=NOWHERE, limit=limit), "limit")


@pytest.mark.parametrize("task_id", ["", "x" * 256, "\udcff", 5, b"x"])
def test_row_64_a_task_id_that_cannot_be_used_is_refused(
    everything: Everything, task_id: Any
) -> None:
    with pytest.raises(TaskError, match="task_id"):
        everything.producer.send("x", task_id=task_id)
    assert_depth(everything.settings, everything.queue, 0)


@pytest.mark.parametrize("items", [None, 5, {"a": 1}.items])
def test_row_64_what_is_no_iterable_is_refused(everything: Everything, items: Any) -> None:
    """A TypeError of Python's own says it as well, if nothing has been sent."""
    with pytest.raises((MqlabError, TypeError)):
        everything.producer.send_many(items)
    everything.producer.send("still works", timeout_s=5)


# ---- row 64 on the command line

COMMANDS: dict[str, list[str]] = {
    "work, empty queue": ["work", "--queue", ""],
    "work, reserved queue": ["work", "--queue", "amq.mine"],
    "work, long queue": ["work", "--queue", "q" * 252],
    "work, no UTF-8": ["work", "--queue", "q\udcff"],
    "work, no workers": ["work", "--workers", "0"],
    "work, workers in words": ["work", "--workers", "two"],
    "work, very many workers": ["work", "--workers", "1000000000"],
    "work, negative time": ["work", "--duration", "-1"],
    "work, infinite time": ["work", "--duration", "inf"],
    "work, no number": ["work", "--duration", "nan"],
    "work, text": ["work", "--duration", "soon"],
    "send, empty queue": ["send", "x", "--queue", ""],
    "send, reserved queue": ["send", "x", "--queue", "amq.mine"],
    "send, long queue": ["send", "x", "--queue", "q" * 256],
    "send, no UTF-8": ["send", "x", "--queue", "q\udcff"],
    "dead list, empty queue": ["dead", "list", "--queue", ""],
    "dead list, long queue": ["dead", "list", "--queue", "q" * 300],
    "dead list, no UTF-8": ["dead", "list", "--queue", "q\udcff"],
    "dead list, negative limit": ["dead", "list", "--limit", "-1"],
    "dead list, limit in words": ["dead", "list", "--limit", "all"],
    "dead requeue, empty queue": ["dead", "requeue", "--queue", ""],
    "dead requeue, long queue": ["dead", "requeue", "--queue", "q" * 300],
    "dead requeue, no UTF-8": ["dead", "requeue", "--queue", "q\udcff"],
    "dead requeue, empty id": ["dead", "requeue", "--id", ""],
    "broker logs, negative lines": ["broker", "logs", "--lines", "-1"],
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_row_64_a_command_refuses_in_words(kind: str) -> None:
    ran = subprocess.run(
        [os.fsencode(part) for part in [sys.executable, "-m", "mqlab", *COMMANDS[kind]]],
        env={**os.environ, "AMQP_URL": "amqp://guest:guest@127.0.0.1:1/%2F"},
        capture_output=True,
        timeout=30,
    )
    said = (ran.stdout + ran.stderr).decode(errors="replace")
    assert "Traceback" not in said, said
    assert ran.returncode in (1, 2), said
    assert "could be reached" not in said, "it has tried to connect"
    assert said.strip()


def test_row_64_a_refused_consumer_leaves_nothing(broker_settings: Settings, queue: str) -> None:
    inventory = Inventory.take(broker_settings)
    publish(broker_settings, queue)
    for number in (0, "x", math.inf):
        with pytest.raises(MqlabError):
            BackgroundConsumer(
                queue=queue, settings=broker_settings, retry_delay_s=number, workers=0
            )
    assert inventory.left() == []
