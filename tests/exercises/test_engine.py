"""The frame of the exercises and their bench: they survive whatever an answer does.

Whatever it was, the check ends within its bound, says what happened, and leaves no queue, no
consumer, no thread, and the environment as it was.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pika
import pytest

from mqlab import BackgroundConsumer, Producer
from mqlab.commands import command
from mqlab.exercises.engine import call as calls
from mqlab.exercises.engine.bench import Bench
from mqlab.exercises.engine.call import some
from mqlab.exercises.engine.exercise import (
    CORRECT,
    INCORRECT,
    NOT_ATTEMPTED,
    NOT_CHECKED,
    Exercise,
    Incorrect,
    NotAttempted,
    NotChecked,
    Result,
)
from mqlab.settings import Settings
from tests.conftest import PrivateBroker
from tests.helpers import eventually, free_port, management

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
RETURN_WITHIN_S = 0.7
END_WITHIN_S = 0.3


@pytest.fixture(autouse=True)
def each_leaves_nothing(
    broker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Each test begins with the tests' broker in AMQP_URL, and ends as it began."""
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    monkeypatch.setattr(calls, "END_WITHIN_S", END_WITHIN_S)
    threads, hook = set(threading.enumerate()), threading.excepthook
    queues = names_on(broker_settings)
    yield
    assert os.environ["AMQP_URL"] == broker_settings.url
    assert threading.excepthook is hook
    assert names_on(broker_settings) <= queues
    with contextlib.suppress(AssertionError):
        eventually(lambda: set(threading.enumerate()) <= threads)
    assert set(threading.enumerate()) - threads == set()


def names_on(settings: Settings) -> set[str]:
    return {queue["name"] for queue in management(settings, "queues")}


def judge(answer: Any) -> Sequence[str]:
    """A judge with no opinion: it calls the answer with what every exercise gives it."""
    with Bench() as bench:
        queue = bench.new_queue()
        called = bench.call(answer, bench.connect, queue, timeout_s=RETURN_WITHIN_S)
        called.raise_if_failed("A heading")
        messages = len(bench.take_all(queue))
        return [f"value {called.value}", f"messages {messages}", f"left {bench.end_all()}"]


def exercise(judge: Callable[[Any], Sequence[str]] = judge) -> Exercise:
    return Exercise("99", 1, judge, hints=["first", "second"])


def check(answer: Any) -> Result:
    """Check one answer, and see that it did not take longer than it may."""
    started = time.monotonic()
    result = exercise().check(answer)
    # its time, what may follow to end its threads, and the check's own look at the broker
    assert time.monotonic() - started < RETURN_WITHIN_S + 6 * END_WITHIN_S + 8
    return result


def consume(connect: Any, queue: str) -> None:
    channel = connect().channel()
    channel.basic_consume(queue, lambda *_: None)
    channel.start_consuming()


# ---- the four outcomes, and how they look


def refuse(error: Exception) -> Callable[[Any], Sequence[str]]:
    def judge(_answer: Any) -> Sequence[str]:
        raise error

    return judge


NASTY = "<script>alert(1)</script> & 'x'"
OUTCOMES = {
    CORRECT: lambda _answer: [NASTY],
    INCORRECT: refuse(Incorrect(NASTY, NASTY, evidence=[NASTY], look_at="A 'heading' & more")),
    NOT_ATTEMPTED: refuse(NotAttempted()),
    NOT_CHECKED: refuse(NotChecked(NASTY, NASTY)),
}
every_outcome = pytest.mark.parametrize("outcome", OUTCOMES)


@every_outcome
def test_each_outcome_is_said_in_text_and_in_html(outcome: str) -> None:
    result = exercise(OUTCOMES[outcome]).check(None)
    assert result.outcome == outcome
    assert repr(result).startswith(f"Exercise 1: {outcome}.")
    html = result._repr_html_()
    assert f"Exercise 1: {outcome}." in html
    assert 'role="status"' in html  # a screen reader reads it out
    assert not re.search(r"[^-]color:|background", html)  # the theme's own: dark ones, too


@every_outcome
def test_what_an_answer_says_is_text_and_no_html(outcome: str) -> None:
    result = exercise(OUTCOMES[outcome]).check(None)
    html = result._repr_html_()
    assert "<script" not in html
    if outcome != NOT_ATTEMPTED:
        assert NASTY in repr(result)
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#x27;x&#x27;" in html


def test_the_outcomes_differ_in_sign_and_colour() -> None:
    html = [exercise(judge).check(None)._repr_html_() for judge in OUTCOMES.values()]
    assert len({re.findall("#[0-9A-F]{6}", each)[0] for each in html}) == 4
    assert len({re.findall("<strong>(.) ", each)[0] for each in html}) == 4


def test_it_points_at_the_heading_on_the_page() -> None:
    result = exercise(OUTCOMES[INCORRECT]).check(None)
    assert repr(result).endswith("""Look again at "A 'heading' & more" on this page.""")
    assert 'href="#A-&#x27;heading&#x27;-&amp;-more"' in result._repr_html_()


def test_a_fault_of_the_check_itself_is_told_and_not_raised() -> None:
    result = exercise(refuse(ZeroDivisionError("of ours"))).check(None)
    assert result.outcome == NOT_CHECKED
    assert "ZeroDivisionError: of ours" in result.message


def test_each_hint_says_more_and_the_last_stays() -> None:
    asked = exercise()
    hints = [asked.hint() for _ in range(3)]
    assert [repr(hint).splitlines()[0] for hint in hints] == [
        "Hint 1 of 2: first",
        "Hint 2 of 2: second",
        "Hint 2 of 2: second",
    ]
    assert "Run the cell again" in repr(hints[0])
    assert hints[0]._repr_markdown_().startswith("**Hint 1 of 2.** first")


# ---- what is no answer


def starter(_connect: Any, _queue: str) -> None:
    return None  # your code goes here


def ellipsis(_connect: Any, _queue: str) -> Any:
    return ...


def not_implemented(_connect: Any, _queue: str) -> Any:
    raise NotImplementedError


@pytest.mark.parametrize("answer", [starter, ellipsis, not_implemented])
def test_a_starter_is_not_attempted(answer: Any) -> None:
    assert check(answer).outcome == NOT_ATTEMPTED


def test_who_has_spoken_to_the_broker_has_attempted() -> None:
    assert check(lambda connect, _queue: connect().close()).outcome == CORRECT


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda: None, "with 2 arguments"),
        (lambda _connect, _queue, _more: None, "with 2 arguments"),
        (["an", "id"], "check was given list, not a function"),
        (None, "check was given NoneType"),
    ],
    ids=["too few", "too many", "a called function", "a called starter"],
)
def test_what_cannot_be_called_is_not_checked(answer: Any, told: str) -> None:
    result = check(answer)
    assert result.outcome == NOT_CHECKED
    assert told.lower() in result.message.lower()
    assert "Next: " in result.message


# ---- what answers do


class Thing:
    """What returns it has returned a thing that does not even have a repr."""

    def __eq__(self, _other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def raises(error: BaseException) -> Any:
    def answer(_connect: Any, _queue: str) -> None:
        raise error

    return answer


def recursive(connect: Any, queue: str) -> None:
    recursive(connect, queue)


def publishes_on_a_closed_channel(connect: Any, queue: str) -> None:
    with connect() as connection:
        channel = connection.channel()
    channel.basic_publish("", queue, b"x")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (raises(ValueError("of theirs")), "ValueError"),
        (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
        (raises(SystemExit(3)), "SystemExit"),
        (raises(NotAttempted()), "NotAttempted"),
        (lambda _connect, _queue: sys.exit(), "SystemExit"),
        (recursive, "RecursionError"),
        (publishes_on_a_closed_channel, "ChannelWrongStateError"),
    ],
    ids=["error", "interrupt", "system exit", "ours", "sys.exit", "recursion", "closed channel"],
)
def test_what_an_answer_raises_is_told_with_its_line(answer: Any, kind: str) -> None:
    result = check(answer)
    assert (result.outcome, result.headline) == (INCORRECT, f"Your function raised {kind}.")
    assert "it happened in line" in result.evidence[0]
    assert result.look_at == "A heading"


def test_a_name_that_a_restart_has_forgotten_is_not_called_a_wrong_answer() -> None:
    result = check(lambda connect, queue: of_a_cell_above(connect, queue))  # type: ignore[name-defined] # noqa: F821
    assert result.outcome == NOT_CHECKED
    assert "name 'of_a_cell_above' is not defined" in result.message
    assert "Run All Above Selected Cell" in result.message


def loops(_connect: Any, _queue: str) -> None:
    while True:
        pass


def sleeps_a_little(_connect: Any, _queue: str) -> None:
    while True:
        time.sleep(0.01)


def waits_for_a_worker_that_loops(connect: Any, queue: str) -> None:
    threads = [
        threading.Thread(target=sleeps_a_little, args=(connect, queue)),
        threading.Thread(target=consume, args=(connect, queue)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def waits_for_its_consumer(_connect: Any, queue: str) -> None:
    BackgroundConsumer(queue=queue).start().wait(1, timeout_s=60)


def sends_for_ever(_connect: Any, queue: str) -> None:
    with Producer(queue) as producer:
        while True:
            producer.send("x")


def connects_for_ever(connect: Any, _queue: str) -> None:
    while True:
        connect().close()


@pytest.mark.parametrize(
    "answer",
    [
        connects_for_ever,
        loops,
        sleeps_a_little,
        consume,
        waits_for_a_worker_that_loops,
        waits_for_its_consumer,
        sends_for_ever,
    ],
)
def test_what_does_not_return_is_ended(answer: Any) -> None:
    result = check(answer)
    assert (result.outcome, result.headline) == (
        INCORRECT,
        f"Your function did not return within {RETURN_WITHIN_S:g} s.",
    )
    assert "It was stopped." in result.message
    assert "when the time was up it was in line" in result.evidence[0]


def test_what_cannot_be_ended_is_told() -> None:
    go_on = threading.Event()
    result = check(lambda _connect, _queue: go_on.wait())
    go_on.set()
    assert result.outcome == INCORRECT
    assert "restart the kernel" in result.message


def leaves_a_connection(connect: Any, queue: str) -> str:
    connect().channel().basic_publish("", queue, b"x")
    return "done"


def leaves_a_consumer(connect: Any, queue: str) -> str:
    threading.Thread(target=consume, args=(connect, queue)).start()
    time.sleep(0.2)
    return "done"


def leaves_the_librarys(_connect: Any, queue: str) -> str:
    BackgroundConsumer(queue=queue, name="one").start()
    BackgroundConsumer(queue=queue, name="two").start()
    Producer(queue)
    return "done"


def leaves_one_that_reconnects(connect: Any, queue: str) -> str:
    consumer = BackgroundConsumer(queue=queue).start()
    consumer._connection.settings = Settings(port=free_port())
    consumer._connection.run(consumer._connection._connection.close)
    eventually(lambda: consumer.status().state == "reconnecting")
    return leaves_a_connection(connect, queue)


def leaves_a_thread_that_loops(connect: Any, queue: str) -> str:
    threading.Thread(target=loops, args=(connect, queue)).start()
    return "done"


def loses_a_thread(connect: Any, queue: str) -> str:
    threading.Thread(target=raises(ValueError()), args=(connect, queue)).start()
    return "done"


def changes_the_environment(_connect: Any, _queue: str) -> str:
    del os.environ["AMQP_URL"]
    threading.excepthook = lambda _: None
    return "done"


def deletes_the_queue_and_makes_another(connect: Any, queue: str) -> str:
    with connect() as connection:
        connection.channel().queue_delete(queue)
        connection.channel().queue_declare(queue, auto_delete=True)
    return "done"


@pytest.mark.parametrize(
    "answer",
    [
        leaves_a_connection,
        leaves_a_consumer,
        leaves_the_librarys,
        leaves_one_that_reconnects,
        leaves_a_thread_that_loops,
        loses_a_thread,
        changes_the_environment,
        deletes_the_queue_and_makes_another,
    ],
)
def test_what_an_answer_leaves_is_taken_away(
    answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    result = check(answer)
    assert result.outcome == CORRECT, result
    assert result.evidence[0] == "value done"
    assert result.evidence[2] == "left []"
    assert capsys.readouterr().err == ""


def test_a_thread_that_is_left_and_cannot_be_ended_is_told() -> None:
    go_on = threading.Event()

    def wait() -> None:
        with contextlib.suppress(SystemExit):
            go_on.wait()

    result = check(lambda _connect, _queue: threading.Thread(target=wait).start() or "done")
    go_on.set()
    assert (result.outcome, result.headline) == (INCORRECT, "You left a thread running.")
    assert "1 of your threads cannot be ended" in result.message


def test_a_deleted_queue_is_told() -> None:
    def deletes(connect: Any, queue: str) -> str:
        with connect() as connection:
            connection.channel().queue_delete(queue)
        return "done"

    result = check(deletes)
    assert (result.outcome, result.headline) == (INCORRECT, "The queue is not there.")
    assert "NOT_FOUND - no queue 'exercise-" in result.evidence[0]


def test_a_thing_that_cannot_even_be_shown_is_no_disaster() -> None:
    assert check(lambda connect, _queue: connect().close() or Thing()).outcome == NOT_CHECKED


def test_what_an_answer_prints_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    check(lambda _connect, _queue: print("of theirs") or "done")  # type: ignore[func-returns-value]
    assert capsys.readouterr().out == "of theirs\n"


def test_a_check_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "RETURN_WITHIN_S", 20.0)
    begun = threading.Event()

    def interrupt() -> None:
        begun.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    helper.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="You stopped the check") as stopped:
        exercise().check(lambda connect, queue: begun.set() or consume(connect, queue))  # type: ignore[func-returns-value]
    assert time.monotonic() - started < 10
    assert len(stopped.traceback) == 2, "the traceback leads into the depth of the check"
    assert stopped.value.__suppress_context__
    assert stopped.value._render_traceback_() == [f"KeyboardInterrupt: {stopped.value}"]  # type: ignore[attr-defined]
    helper.join()


def test_one_check_does_not_disturb_the_next() -> None:
    for answer in (consume, leaves_the_librarys, changes_the_environment):
        check(answer)
        result = check(leaves_a_connection)
        assert (result.outcome, result.evidence[1]) == (CORRECT, "messages 1")


# ---- the broker


def test_without_a_broker_it_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AMQP_URL", f"amqp://guest:guest@127.0.0.1:{free_port()}/%2F")
        result = check(leaves_a_connection)
    assert result.outcome == NOT_CHECKED
    assert "No broker could be reached at 127.0.0.1" in result.message
    assert f"Next: {command('broker start')}" in result.message


def test_through_tls_it_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AMQP_URL", "amqps://guest:guest@127.0.0.1/%2F")
        result = check(leaves_a_connection)
    assert result.outcome == NOT_CHECKED
    assert "TLS" in result.message


def test_a_broker_that_dies_in_the_middle_is_told(
    private_broker: Callable[[], PrivateBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    private = private_broker()

    def is_cut_off(connect: Any, queue: str) -> None:
        threading.Timer(0.2, private.kill).start()
        consume(connect, queue)

    with monkeypatch.context() as patch:
        patch.setenv("AMQP_URL", private.settings.url)
        result = check(is_cut_off)
    assert result.outcome == NOT_CHECKED  # and not incorrect, because of a StreamLostError
    assert "The broker went away in the middle" in result.message
    assert f"Next: {command('broker status')}" in result.message


# ---- what the bench sees


def test_the_bench_gives_a_watched_way_to_the_library_and_to_pika() -> None:
    with Bench() as bench:
        queue = bench.new_queue()
        with Producer(queue) as producer:
            sent = producer.send("a report")
        with bench.connect() as connection:
            method, _, _ = connection.channel().basic_get(queue)
            connection.channel().basic_get(queue)
        assert bench.connections == 2
        assert bench.count("Basic.Publish") == 1
        assert bench.count("Basic.Ack") == 0
        assert bench.count("Basic.Ack", from_client=False) == 1
        [published] = bench.wire.named("Basic.Publish")
        assert published.properties.message_id == sent.task_id
        [got] = bench.wire.named("Basic.GetOk", from_client=False)
        assert got.method.delivery_tag == method.delivery_tag
        assert got.properties.message_id == sent.task_id
        assert (got.connection, got.from_client) == (2, False)
        assert len(bench.take_all(queue)) == 1


def test_the_bench_sees_who_calls_on_whose_connection() -> None:
    with Bench() as bench:
        queue = bench.new_queue()
        connection = bench.connect()
        channel = connection.channel()
        owned, over = threading.Event(), threading.Event()

        def own() -> None:
            connection.call_later(0, owned.set)
            with contextlib.suppress(Exception):  # two threads in it break it
                while not over.is_set():
                    connection.process_data_events(time_limit=1)

        owner = threading.Thread(target=own, name="owner")
        owner.start()
        owned.wait(5)
        connection.add_callback_threadsafe(lambda: None)
        assert bench.shared == []

        def publish() -> bool:
            with contextlib.suppress(Exception):
                channel.basic_publish("", queue, b"x")
            return bool(bench.shared)

        eventually(publish)  # the owner may be between two calls
        over.set()
        assert set(bench.shared[0]) == {threading.current_thread().name, "owner"}
        bench.end_all()
        owner.join(5)


def test_a_connection_that_is_handed_over_is_not_shared() -> None:
    with Bench() as bench:
        queue = bench.new_queue()
        connection = bench.connect()
        channel = connection.channel()
        channel.basic_consume(queue, lambda *_: None)
        owner = threading.Thread(target=channel.start_consuming)
        owner.start()
        connection.add_callback_threadsafe(channel.stop_consuming)
        owner.join(5)
        connection.close()
        assert bench.shared == []


def test_the_bench_keeps_what_ended_a_thread() -> None:
    with Bench() as bench:
        called = bench.call(loses_a_thread, bench.connect, "")
        eventually(lambda: bench.thread_errors)
        assert [type(error) for error in bench.thread_errors] == [ValueError]
        assert called.value == "done"


def test_the_bench_does_not_keep_what_ended_an_earlier_thread() -> None:
    wake = threading.Event()

    def fail_later() -> None:
        wake.wait(10)
        raise SystemExit

    earlier = threading.Thread(target=fail_later)
    earlier.start()
    with Bench() as bench:
        wake.set()
        earlier.join(10)
        assert bench.thread_errors == []


def test_a_cut_takes_the_confirm_and_what_follows() -> None:
    with Bench() as bench:
        queue = bench.new_queue()
        bench.cut_after(3)
        channel = bench.connect().channel()
        channel.confirm_delivery()
        confirmed = 0
        with contextlib.suppress(pika.exceptions.AMQPError):
            for _ in range(10):
                channel.basic_publish("", queue, b"x")
                confirmed += 1
        with bench.connect() as connection:
            connection.channel().basic_publish("", queue, b"x")
        assert confirmed == 2
        assert bench.cuts == 1
        assert len(bench.take_all(queue)) == 3 + 1


def test_only_the_first_few_are_named() -> None:
    assert some("a") == "a"
    assert some("edcba") == "a, b, c and 2 more"
