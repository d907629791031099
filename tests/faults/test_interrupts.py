"""An interrupt may strike between any two statements: rows 37 and 38.

Whatever it hits: afterwards the object works, or it is closed and says so. No lock is held, and
``stop`` and ``close`` return in their time. There is no thread, connection or consumer that nobody
works for. MQLAB_LONG=1 strikes at more places, and more often.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mqlab import BackgroundConsumer, Producer, Task, send_task_to_queue
from mqlab.errors import MqlabError
from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings
from tests.faults.strike import LONG, Striker, strikes
from tests.faults.tools import (
    Inventory,
    count_consumers,
    fresh_queue,
    publish,
    task_body,
    within,
)
from tests.helpers import eventually


def quickly(task: Task) -> object:
    return task.data


def assert_producer_works_or_says_that_it_is_closed(producer: Producer) -> None:
    """Asked in another thread: a lock that the interrupted call still holds would block it."""
    state = within(5, producer.status).state
    refused = ""
    try:
        within(8, lambda: producer.send("after", timeout_s=5))
    except MqlabError as error:
        refused = str(error)
    assert not refused or state in ("closed", "failed"), f"{state}, and: {refused}"
    assert not refused or "closed" in refused, refused


def assert_consumer_works_or_has_stopped(
    consumer: BackgroundConsumer, settings: Settings, queue: str
) -> None:
    """A task that is sent now is done, or no consumer is there to swallow it."""
    task_id = f"after-{time.monotonic_ns()}"
    publish(settings, queue, task_body(task_id))

    def is_done() -> bool:
        return any(r.task_id == task_id and r.outcome == "done" for r in consumer.records)

    def has_stopped() -> bool:
        return count_consumers(settings, queue) == 0

    within(8, lambda: eventually(lambda: is_done() or has_stopped(), within_s=5))
    state = within(5, consumer.status).state
    assert is_done() or state in ("new", "stopped", "failed"), state


def assert_ends(inventory: Inventory, queue: str, end: Callable[[], object]) -> None:
    """``end`` returns within its time, twice, and leaves nothing."""
    for _ in range(2):
        with contextlib.suppress(MqlabError):
            within(12, end)
    inventory.assert_restored("after the end")
    assert count_consumers(inventory.settings, queue) == 0


def on_fresh_queues(
    settings: Settings, queue: str, scenario: Callable[[Striker, str], None]
) -> Callable[[Striker], None]:
    def run(striker: Striker) -> None:
        with fresh_queue(settings, queue) as own:
            scenario(striker, own)

    return run


# ---- row 37: while it opens


def test_row_37_an_interrupted_producer_leaves_no_thread_and_no_connection(
    broker_settings: Settings, queue: str
) -> None:
    publish(broker_settings, queue)

    def scenario(striker: Striker) -> None:
        inventory = Inventory.take(broker_settings)
        made: list[Producer] = []
        with striker.once():
            made.append(Producer(queue, settings=broker_settings))
        if made:
            made.pop().close()
        inventory.assert_restored("after Producer()", within_s=3)

    strikes(scenario, at_least=5)


def test_row_37_an_interrupted_start_leaves_no_consumer(
    broker_settings: Settings, queue: str
) -> None:
    def scenario(striker: Striker, queue: str) -> None:
        inventory = Inventory.take(broker_settings)
        consumer = BackgroundConsumer(quickly, queue=queue, settings=broker_settings, workers=2)
        started = False
        with striker.once():
            consumer.start()
            started = True
        if started:
            within(5, consumer.stop)
        inventory.assert_restored("after start()", within_s=3)
        assert count_consumers(broker_settings, queue) == 0
        assert within(5, consumer.status).state in ("new", "stopped", "failed")
        within(5, consumer.stop)

    strikes(on_fresh_queues(broker_settings, queue, scenario), at_least=5)


def test_row_37_a_start_interrupted_while_it_replaces_another_leaves_at_most_one(
    broker_settings: Settings, queue: str
) -> None:
    """The consumer that it replaces has stopped, or it goes on working."""

    def scenario(striker: Striker, queue: str) -> None:
        inventory = Inventory.take(broker_settings)
        first = BackgroundConsumer(quickly, queue=queue, settings=broker_settings).start()
        second = BackgroundConsumer(quickly, queue=queue, settings=broker_settings)
        with striker.once():
            second.start()
        eventually(lambda: count_consumers(broker_settings, queue) <= 1, within_s=3)
        if second.status().state != "running":
            assert_consumer_works_or_has_stopped(first, broker_settings, queue)
        assert_ends(inventory, queue, lambda: (first.stop(2), second.stop(2)))

    strikes(on_fresh_queues(broker_settings, queue, scenario), at_least=5)


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Any:
    """Interrupt the main thread; the block must have been left by that, and soon."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, previous)
    assert time.monotonic() - started < seconds + 4


@pytest.mark.parametrize("what", ["Producer", "start", "send_task_to_queue"])
@pytest.mark.parametrize("silent_from", ["the first byte", "the queue's declaration"])
def test_row_37_on_a_silent_network_that_speaks_again_nothing_comes_to_life(
    broker_settings: Settings, queue: str, what: str, silent_from: str
) -> None:
    publish(broker_settings, queue)
    speak, silent = threading.Event(), threading.Event()

    def hold(_connection: int, from_client: bool, frame: Any) -> None:
        name = getattr(getattr(frame, "method", None), "NAME", type(frame).__name__)
        first = silent_from == "the first byte" or name == "Queue.Declare"
        if from_client and first:
            silent.set()
            speak.wait(30)

    with Proxy(broker_settings, on_frame=hold) as proxy:
        inventory = Inventory.take(proxy.settings)
        consumer = BackgroundConsumer(quickly, queue=queue, settings=proxy.settings)
        calls: dict[str, Callable[[], object]] = {
            "Producer": lambda: Producer(queue, settings=proxy.settings, timeout_s=30),
            "start": lambda: consumer.start(timeout_s=30),
            "send_task_to_queue": lambda: send_task_to_queue(
                "x", queue=queue, settings=proxy.settings, timeout_s=30
            ),
        }
        with interrupted_after(0.7):
            calls[what]()
        assert silent.is_set(), "the network was not silent"
        inventory.assert_restored("on the silent network")
        accepted = proxy.accepted
        speak.set()
        # What is tested is that nothing happens: neither at once nor at a next attempt.
        time.sleep(1.5)
        assert inventory.left() == []
        assert proxy.accepted == accepted
        assert count_consumers(broker_settings, queue) == 0
        assert within(5, consumer.status).state in ("new", "stopped", "failed")


# ---- row 38: while it works


def test_row_38_a_producer_survives_an_interrupt_anywhere_in_send(
    broker_settings: Settings, queue: str
) -> None:
    def scenario(striker: Striker) -> None:
        inventory = Inventory.take(broker_settings)
        producer = Producer(queue, settings=broker_settings)
        try:
            with striker.once():
                producer.send("x", timeout_s=5)
            assert_producer_works_or_says_that_it_is_closed(producer)
        finally:
            assert_ends(inventory, queue, producer.close)

    strikes(scenario, at_least=5)


def test_row_38_a_producer_survives_an_interrupt_anywhere_in_send_many(
    broker_settings: Settings, queue: str
) -> None:
    def scenario(striker: Striker) -> None:
        inventory = Inventory.take(broker_settings)
        producer = Producer(queue, settings=broker_settings)
        try:
            with striker.once():
                producer.send_many(range(520), timeout_s=5)  # more than one block
            assert_producer_works_or_says_that_it_is_closed(producer)
        finally:
            assert_ends(inventory, queue, producer.close)

    strikes(scenario, at_least=5)


@pytest.mark.parametrize("call", ["send", "send_many"])
def test_row_38_so_does_one_whose_send_times_out(
    broker_settings: Settings, queue: str, call: str
) -> None:
    """The time is up, and then comes the interrupt: the way that withdraws what was not sent."""
    with Proxy(broker_settings) as proxy:

        def scenario(striker: Striker) -> None:
            inventory = Inventory.take(proxy.settings)
            producer = Producer(queue, settings=proxy.settings)
            try:
                producer.send("before")
                proxy.swallow_answers = True
                with striker.once(), contextlib.suppress(MqlabError):
                    if call == "send":
                        producer.send("x", timeout_s=0.02)
                    else:
                        producer.send_many(range(3), timeout_s=0.02)
                # Whatever the broker has said meanwhile is gone, so the connection must go as well.
                proxy.cut()
                assert_producer_works_or_says_that_it_is_closed(producer)
            finally:
                proxy.swallow_answers = False
                assert_ends(inventory, queue, producer.close)

        strikes(scenario, at_least=5)


def test_row_38_other_threads_go_on_sending(broker_settings: Settings, queue: str) -> None:
    """An interrupt in one caller is no concern of the others."""
    with Producer(queue, settings=broker_settings) as producer:
        end, errors, sent = threading.Event(), list[BaseException](), [0]

        def go_on() -> None:
            while not end.is_set():
                try:
                    producer.send("other", timeout_s=5)
                    sent[0] += 1
                except BaseException as error:
                    errors.append(error)

        thread = threading.Thread(target=go_on, name="the other caller")
        thread.start()

        def scenario(striker: Striker) -> None:
            with striker.once():
                producer.send_many(range(20), timeout_s=5)
            before = sent[0]
            eventually(lambda: sent[0] > before or errors, within_s=6)
            assert not errors, errors[0]

        try:
            strikes(scenario, at_least=5)
        finally:
            end.set()
            thread.join(10)
    assert not errors


def test_row_38_a_producer_is_closed_or_works_after_an_interrupted_close(
    broker_settings: Settings, queue: str
) -> None:
    def scenario(striker: Striker) -> None:
        inventory = Inventory.take(broker_settings)
        producer = Producer(queue, settings=broker_settings)
        try:
            with striker.once():
                producer.close()
            assert_producer_works_or_says_that_it_is_closed(producer)
        finally:
            assert_ends(inventory, queue, producer.close)

    strikes(scenario, at_least=5)


def test_row_38_an_interrupted_close_needs_no_second_one(
    broker_settings: Settings, queue: str
) -> None:
    """The caller may have gone: what was to be closed closes."""

    def scenario(striker: Striker) -> None:
        inventory = Inventory.take(broker_settings)
        producer = Producer(queue, settings=broker_settings)
        with striker.once():
            producer.close()
        if within(5, producer.status).state == "connected":
            producer.close()
        inventory.assert_restored("after close()", within_s=5)

    strikes(scenario, at_least=5)


def test_row_38_a_producer_as_context_manager_leaves_nothing(
    broker_settings: Settings, queue: str
) -> None:
    def scenario(striker: Striker) -> None:
        inventory = Inventory.take(broker_settings)
        with striker.once(), Producer(queue, settings=broker_settings) as producer:
            producer.send("x", timeout_s=5)
        inventory.assert_restored("after the with block")

    strikes(scenario, at_least=5)


def test_row_38_send_task_to_queue_leaves_nothing(broker_settings: Settings, queue: str) -> None:
    def scenario(striker: Striker, queue: str) -> None:
        inventory = Inventory.take(broker_settings)
        with striker.once():
            send_task_to_queue("x", queue=queue, settings=broker_settings, quiet=True)
        inventory.assert_restored("after send_task_to_queue")

    strikes(on_fresh_queues(broker_settings, queue, scenario), at_least=5)


CALLS: dict[str, Callable[[BackgroundConsumer], object]] = {
    "wait": lambda consumer: consumer.wait(3, timeout_s=5, show_progress=True),
    "wait in vain": lambda consumer: consumer.wait(9, timeout_s=0.05),
    "status": lambda consumer: repr(consumer.status()),
    "records": lambda consumer: consumer.records,
    "working and unacked": lambda consumer: (consumer.working, consumer.unacked, repr(consumer)),
    "stop": lambda consumer: consumer.stop(timeout_s=2),
}


@pytest.mark.parametrize("call", CALLS)
def test_row_38_a_consumer_works_or_has_stopped_after_an_interrupt_anywhere_in(
    broker_settings: Settings, queue: str, call: str
) -> None:
    def scenario(striker: Striker, queue: str) -> None:
        inventory = Inventory.take(broker_settings)
        consumer = BackgroundConsumer(quickly, queue=queue, settings=broker_settings, workers=2)
        consumer.start()
        try:
            publish(broker_settings, queue, *[task_body(f"before-{n}") for n in range(3)])
            if call != "wait":
                eventually(lambda: consumer.status().done == 3)
            with striker.once(), contextlib.suppress(MqlabError):
                CALLS[call](consumer)
            assert_consumer_works_or_has_stopped(consumer, broker_settings, queue)
        finally:
            assert_ends(inventory, queue, lambda: consumer.stop(timeout_s=2))

    strikes(on_fresh_queues(broker_settings, queue, scenario), at_least=1)


@pytest.mark.parametrize("call", ["status", "close"])
def test_row_38_a_failed_or_closed_producer_can_be_asked(
    broker_settings: Settings, queue: str, call: str
) -> None:
    """The calls that need no connection leave no lock either."""

    def scenario(striker: Striker) -> None:
        with Producer(queue, settings=broker_settings) as producer:
            if call == "close":
                producer.close()
            with striker.once():
                getattr(producer, call)()
            within(5, producer.status)
            within(5, producer.close)

    strikes(scenario, at_least=1)


def test_row_38_an_interrupted_stop_needs_no_second_one(
    broker_settings: Settings, queue: str
) -> None:
    """While a task is at work: the stop goes on, or the consumer goes on working."""
    go_on = threading.Event()

    def work(task: Task) -> object:
        if task.data == "long":
            go_on.wait(20)
        return task.data

    def scenario(striker: Striker, queue: str) -> None:
        go_on.clear()
        inventory = Inventory.take(broker_settings)
        consumer = BackgroundConsumer(work, queue=queue, settings=broker_settings)
        consumer.start()
        try:
            publish(broker_settings, queue, task_body("long", '"long"'))
            eventually(lambda: consumer.working)
            with striker.once():
                consumer.stop(timeout_s=0.05)
            go_on.set()
            assert_consumer_works_or_has_stopped(consumer, broker_settings, queue)
            if within(5, consumer.status).state != "running":
                inventory.assert_restored("after stop()")
        finally:
            go_on.set()
            assert_ends(inventory, queue, lambda: consumer.stop(timeout_s=2))

    strikes(on_fresh_queues(broker_settings, queue, scenario), at_least=5)


def test_row_38_a_consumer_as_context_manager_leaves_nothing(
    broker_settings: Settings, queue: str
) -> None:
    def scenario(striker: Striker, queue: str) -> None:
        inventory = Inventory.take(broker_settings)
        publish(broker_settings, queue, task_body("before"))
        consumer = BackgroundConsumer(quickly, queue=queue, settings=broker_settings)
        with striker.once(), consumer:
            consumer.wait(1, timeout_s=5, show_progress=False)
        inventory.assert_restored("after the with block")
        assert count_consumers(broker_settings, queue) == 0

    strikes(on_fresh_queues(broker_settings, queue, scenario), at_least=5)


# ---- both rows: at random, for what is between the places above and in the code below them

STORM = """
import contextlib, json, random, signal, sys, threading, time
from mqlab import BackgroundConsumer, MqlabError, Producer
from mqlab.settings import Settings
from tests.faults.tools import Inventory, count_consumers, mqlab_threads, within

queue, what, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
settings = Settings.from_env()
armed, hits, bad, rounds = False, 0, [], 0

def interrupt(*_):
    global hits, armed
    if armed:
        armed = False
        hits += 1
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
random.seed(5)

def strike(least_s, most_s, function):
    # The interrupt comes after a random time, if the function still runs then.
    global armed
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(least_s, most_s))
        function()
        armed = False
    except KeyboardInterrupt:
        pass
    except RuntimeError as error:  # Python's own, when it is struck inside a Condition
        if "lock" not in str(error):
            raise
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

def check(name, holds):
    try:
        within(8, holds)
    except (AssertionError, MqlabError) as error:
        bad.append(f"{name}: {str(error).splitlines()[0]}")

def open_and_close():
    inventory = Inventory.take(settings)
    made = []
    def open_one():
        if what == "Producer":
            made.append(Producer(queue, settings=settings))
        else:
            made.append(BackgroundConsumer(lambda task: 1, queue=queue, settings=settings))
            made[0].start()
    strike(0.0005, 0.03, open_one)
    for each in made:
        with contextlib.suppress(MqlabError):
            each.close() if what == "Producer" else each.stop()
    check(what, lambda: inventory.assert_restored(within_s=3))
    if what == "start" and count_consumers(settings, queue):
        bad.append("a consumer is left")

def look():
    with contextlib.suppress(MqlabError):
        consumer.wait(1, timeout_s=0.001, show_progress=False)
    consumer.status(); consumer.records; consumer.working; consumer.unacked

if what not in ("Producer", "start"):
    producer = Producer(queue, settings=settings)
if what == "wait":
    consumer = BackgroundConsumer(lambda task: 1, queue=queue, settings=settings).start()

def work():
    if what in ("Producer", "start"):
        open_and_close()
    elif what == "send":
        strike(0.000005, 0.0003, lambda: producer.send("x", timeout_s=5))
        check("send", lambda: producer.send("after", timeout_s=3))
    elif what == "send_many":
        strike(0.000005, 0.003, lambda: producer.send_many(range(100), timeout_s=5))
        check("send_many", lambda: producer.send("after", timeout_s=3))
    else:
        producer.send("x", timeout_s=5)
        strike(0.000005, 0.002, look)
        done = consumer.status().done
        producer.send("after", timeout_s=3)
        def is_done():
            deadline = time.monotonic() + 4
            while consumer.status().done <= done:
                assert time.monotonic() < deadline, str(consumer.status())
                time.sleep(0.001)
        check("wait", is_done)

ends = time.monotonic() + seconds
while time.monotonic() < ends and len(bad) < 5:
    rounds += 1
    work()
if what == "wait":
    within(10, consumer.stop)
if what not in ("Producer", "start"):
    within(10, producer.close)
deadline = time.monotonic() + 3
while mqlab_threads() and time.monotonic() < deadline:
    time.sleep(0.01)
left = [thread.name for thread in mqlab_threads()]
print(json.dumps({"rounds": rounds, "hits": hits, "bad": bad, "left": left}))
"""


@pytest.mark.parametrize(
    ("row", "what", "hits"),
    [
        (37, "Producer", 50),
        (37, "start", 40),
        (38, "send", 200),
        (38, "send_many", 100),
        (38, "wait", 100),
    ],
)
def test_row_38_and_37_a_storm_of_interrupts(
    broker_settings: Settings, queue: str, row: int, what: str, hits: int
) -> None:
    assert row in (37, 38)
    publish(broker_settings, queue)
    seconds = 120 if LONG else 6
    ran = subprocess.run(
        [sys.executable, "-c", STORM, queue, what, str(seconds)],
        env={
            **os.environ,
            "AMQP_URL": broker_settings.url,
            "MQLAB_MANAGEMENT_URL": broker_settings.management_url,
        },
        capture_output=True,
        text=True,
        timeout=seconds + 60,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    print(what, found)
    assert (found["bad"], found["left"]) == ([], [])
    assert found["hits"] >= hits / 4, "the fault was hardly made"


def test_row_37_a_process_interrupted_at_random_ends_at_once(
    broker_settings: Settings, queue: str
) -> None:
    """SIGINT from outside, with Python's own handler, as in a terminal."""
    publish(broker_settings, queue)
    script = (
        "import signal; from mqlab import BackgroundConsumer, Producer\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        f"    Producer({queue!r}).close()\n"
        f"    BackgroundConsumer(lambda task: 1, queue={queue!r}).start().stop()\n"
    )
    slowest = 0.0
    for number in range(30 if LONG else 6):
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "AMQP_URL": broker_settings.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.011 * (number % 10 + 1))  # no luck is needed: each moment must do
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        try:
            process.wait(15)
        finally:
            process.kill()
            process.stdout.close()
        slowest = max(slowest, time.monotonic() - started)
        assert process.returncode in (-signal.SIGINT, 1, 130)
        eventually(lambda: count_consumers(broker_settings, queue) == 0)
    print(f"the slowest took {slowest:.1f} s")
    assert slowest < 6
