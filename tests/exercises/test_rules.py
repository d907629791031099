"""What the rules read off the wire: what the broker took, what was settled, what was changed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

from mqlab.exercises.engine.bench import Bench
from mqlab.exercises.engine.exercise import Findings, Incorrect
from mqlab.exercises.rules.inputs import ODD_TEXTS, some_texts
from mqlab.exercises.rules.leaving import check_nothing_is_left, check_objects
from mqlab.exercises.rules.publishing import publications
from mqlab.exercises.rules.working import settlements
from mqlab.settings import Settings
from tests.helpers import eventually


@pytest.fixture(autouse=True)
def on_the_tests_broker(broker_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    monkeypatch.setenv("MQLAB_MANAGEMENT_URL", broker_settings.management_url)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def outcomes(bench: Bench) -> list[tuple[bytes, str, str, bool]]:
    found = publications(bench.wire.methods)
    return [(each.method.body, each.asked, each.answer, each.is_taken()) for each in found]


def test_only_what_was_confirmed_on_its_channel_counts_as_taken(bench: Bench) -> None:
    queue = bench.new_queue()
    for confirms in (False, True):
        with bench.connect() as connection:
            channel = connection.channel()
            if confirms:
                channel.confirm_delivery()
            channel.basic_publish("", queue, b"x" * confirms)
    assert outcomes(bench) == [(b"", "", "", False), (b"x", "confirms", "ack", True)]


def test_a_return_a_nack_and_a_commit_are_told_apart(bench: Bench) -> None:
    full = bench.new_queue({"x-max-length": 1, "x-overflow": "reject-publish"})
    with bench.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with contextlib.suppress(pika.exceptions.UnroutableError):
            channel.basic_publish("", "no-such-queue", b"a", mandatory=True)
        channel.basic_publish("", full, b"b")
        with contextlib.suppress(pika.exceptions.NackError):
            channel.basic_publish("", full, b"c")
    with bench.connect() as connection:
        channel = connection.channel()
        channel.tx_select()
        for body, settle in ((b"d", channel.tx_commit), (b"e", channel.tx_rollback)):
            channel.basic_publish("", bench.new_queue(), body)
            settle()
    assert outcomes(bench) == [
        (b"a", "confirms", "ack", False),
        (b"b", "confirms", "ack", True),
        (b"c", "confirms", "nack", False),
        (b"d", "a transaction", "commit", True),
        (b"e", "a transaction", "", False),
    ]


def test_a_confirm_that_was_lost_with_its_connection_is_none(bench: Bench) -> None:
    queue = bench.new_queue()
    bench.cut_after(2)
    channel = bench.connect().channel()
    channel.confirm_delivery()
    with contextlib.suppress(pika.exceptions.AMQPError):
        for body in (b"a", b"b", b"c"):
            channel.basic_publish("", queue, body)
    assert outcomes(bench) == [(b"a", "confirms", "ack", True), (b"b", "confirms", "", False)]
    assert [body for _, body in bench.take_all(queue)] == [b"a", b"b"]


def test_each_way_to_settle_a_delivery_is_told_apart(bench: Bench) -> None:
    queue = bench.new_queue()
    with bench.channel() as straight:
        for body in (b"a", b"b", b"c", b"d", b"e"):
            straight.basic_publish("", queue, body)
    with bench.connect() as connection:
        channel = connection.channel()
        tags = [channel.basic_get(queue)[0].delivery_tag for _ in range(5)]
        channel.basic_ack(tags[1], multiple=True)
        channel.basic_reject(tags[2], requeue=False)
        channel.basic_nack(tags[3])
    found = [(each.body, kind) for each, kind, _ in settlements(bench.wire.methods)]
    assert found == [(b"a", "ack"), (b"b", "ack"), (b"c", "thrown away"), (b"d", "given back")]
    assert [body for _, body in bench.take_all(queue)] == [b"d", b"e"]


def leaves_a_consumer(connect: Any, queue: str) -> str:
    kept.append(connect())
    kept[-1].channel().basic_consume(queue, lambda *_: None)
    return "done"


def leaves_a_connection(connect: Any, _queue: str) -> str:
    kept.append(connect())
    return "done"


def leaves_a_thread(_connect: Any, _queue: str) -> str:
    threading.Thread(target=over.wait, args=(20,)).start()
    return "done"


kept: list[Any] = []
over = threading.Event()


@pytest.mark.parametrize(
    ("answer", "headline"),
    [
        (leaves_a_consumer, "You left a consumer behind."),
        (leaves_a_connection, "You left a connection open."),
        (leaves_a_thread, "You left a thread running."),
    ],
)
def test_what_an_answer_leaves_is_named(
    answer: Callable[..., str], headline: str, bench: Bench
) -> None:
    over.clear()
    queue = bench.new_queue()
    check_nothing_is_left(bench, queue, "")
    bench.call(answer, bench.connect, queue)
    with pytest.raises(Incorrect, match=headline):
        check_nothing_is_left(bench, queue, "")
    over.set()


def test_an_object_that_an_answer_declares_is_named_and_removed() -> None:
    def declares(connect: Any, queue: str) -> str:
        with connect() as connection:
            connection.channel().queue_declare(queue, durable=True)  # it is there: no change
            connection.channel().queue_declare("exercise-test-left", durable=True)
        return "done"

    with Bench() as bench:
        bench.call(declares, bench.connect, bench.new_queue())
        with bench.channel() as channel:
            channel.queue_declare("test-of-somebody-else")  # at the same time
        with pytest.raises(Incorrect) as found:
            check_objects(bench, "")
    assert found.value.evidence == ("queue exercise-test-left in /: added",)
    with Bench() as bench, bench.channel() as channel:
        assert not bench.exists("exercise-test-left")
        assert bench.exists("test-of-somebody-else")
        channel.queue_delete("test-of-somebody-else")


def test_texts_of_every_kind_are_drawn_some_of_them_twice() -> None:
    texts = some_texts(25, 45)
    assert set(ODD_TEXTS) <= set(texts)
    assert len(set(texts)) < len(texts)
    assert some_texts(25, 45) != texts
    assert len(some_texts(1, 1)) == 1


def test_the_first_of_the_lesser_faults_is_raised_last() -> None:
    findings = Findings()
    for headline in ("first", "second"):
        findings.note(lambda headline: (_ for _ in ()).throw(Incorrect(headline)), headline)
    eventually(lambda: len(findings) == 1)
    with pytest.raises(Incorrect, match="first"):
        findings.raise_first()
