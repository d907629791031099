"""The exercises of page 03: a publisher that claims only what is in the queue, a cut included.

True for every right answer to exercise 1, whatever its style and library:
- Each task is the body of one message in the queue: its text in UTF-8, byte for byte, as often and
  in the order given, persistent and without an expiration. This holds for no task, one and many,
  for texts of all kinds and for texts that occur twice.
- The list has exactly the tasks that the broker had confirmed (or committed) and not returned on
  that connection by the time the function returned, each as often, in any order. That also holds
  where the queue is missing, is deleted midway, or takes only a part.
- One connection, closed at the end. Nothing else on the broker has changed: no queue was declared,
  nothing was taken out, and what was in the queue before is still there.

And to exercise 2:
- In the end each task is in the queue, as above and with its id as ``message_id``. It is published
  again only if its outcome is unknown, or bad: never after its confirm has reached the client.
- The list has each id once, and only ids that were confirmed on the connection that carried them.
- A second connection is opened when the first is lost; none stays open.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pika.exceptions

from mqlab.exercises.engine.bench import Bench
from mqlab.exercises.engine.call import DidNotReturn, show, some
from mqlab.exercises.engine.exercise import Exercise, Findings
from mqlab.exercises.engine.wire import Method
from mqlab.exercises.rules.inputs import draw, some_texts
from mqlab.exercises.rules.publishing import (
    CONFIRMS,
    CUT,
    LIBRARY,
    NOWHERE,
    WRONG,
    Publication,
    PublisherRun,
)

BOUND_S = 5.0
"""Seconds for the runs in which an answer may try again without end."""


def judge_send_all(send_all: Any) -> list[str]:
    """Exercise 1, in runs where all is well and in runs where something fails."""
    later = Findings()
    evidence = [
        _send(send_all, some_texts(25, 45), later),
        _send_to_a_missing_queue(send_all, later),
        *_send_to_a_full_queue(send_all, later),
    ]
    _send_while_the_queue_is_deleted(send_all, later)
    for texts in ([], some_texts(1, 1), some_texts(80, 120)):
        _send(send_all, texts, later)
    later.raise_first()
    return evidence


def _send(send_all: Any, texts: list[str], later: Findings) -> str:
    with Bench() as bench:
        run = PublisherRun(bench, bench.new_queue(), texts, later)
        run.fill(draw.randint(2, 5))
        run.call(send_all)
        run.collect()
        run.called.raise_if_failed(WRONG)
        run.check()
        return run.numbers


def _send_to_a_missing_queue(send_all: Any, later: Findings) -> str:
    with Bench() as bench:
        run = PublisherRun(bench, bench.new_queue(declare=False), some_texts(5, 10), later)
        try:
            run.call(send_all, BOUND_S)
        except DidNotReturn as endless:
            raise run.wrong(
                "You try again until a queue takes the task, and there is none.",
                f"A queue was named that does not exist. {endless.message}",
                NOWHERE,
                *endless.evidence,
            ) from None
        _raise_if_ended(run)
        declared = [m.method for m in bench.wire.named("Queue.Declare")]
        mine = [each for each in declared if each.queue == run.queue and not each.passive]
        if mine or bench.exists(run.queue):
            raise run.wrong(
                "You created the queue that was missing.",
                "If its name is a spelling mistake, nobody reads it. Send without declaring, and "
                "report what was returned.",
                NOWHERE,
                f"Queue.Declare, not passive: {len(mine)}",
            )
        run.check_way()
        run.check_list()
        run.check_told("The queue did not exist.")
        returned = bench.count("Basic.Return", from_client=False)
        return f"no such queue: sent {len(run.sent)}, returned {returned}"


def _send_to_a_full_queue(send_all: Any, later: Findings) -> list[str]:
    texts = some_texts(14, 18)
    texts[9] = texts[8]  # the queue takes one of the two
    with Bench() as bench:
        run = _full_queue(bench, texts, later)
        run.call(send_all)
        run.collect()
        if any(p.asked == "a transaction" for p in run.sent):
            run.check_told_if_any()
            return []  # the broker closes the channel, and never says which of the tasks it took
        _raise_if_ended(run)
        run.check(is_limited=True)
        refused = bench.count("Basic.Nack", from_client=False)
        return [f"a full queue: {run.numbers}, refused {refused}"]


def _full_queue(bench: Bench, tasks: list[str] | dict[str, str], later: Findings) -> PublisherRun:
    """A queue that refuses what it has no room for; after each refusal a worker takes one out."""
    earlier = 2 * len(tasks)
    limits = {"x-max-length": earlier + draw.randint(3, 6), "x-overflow": "reject-publish"}
    # Exercise 2 does not mention refusals, so it may open a connection after each.
    many = len(tasks) * 2 if isinstance(tasks, dict) else 1
    run = PublisherRun(bench, bench.new_queue(limits), tasks, later, many)
    run.fill(earlier)

    def make_room(method: Method) -> None:
        if method.name == "Basic.Nack" and not method.from_client:
            run.take_one()

    bench.on_method = make_room
    return run


def _send_while_the_queue_is_deleted(send_all: Any, later: Findings) -> None:
    """Checking first that the queue exists says nothing about a moment later."""
    last = draw.randint(3, 15)
    with Bench() as bench:
        run = PublisherRun(bench, bench.new_queue(), some_texts(20, 30), later)

        def delete(method: Method) -> None:
            if method.name == "Basic.Publish" and bench.count("Basic.Publish") == last + 1:
                with bench.channel() as channel:
                    channel.queue_delete(run.queue)

        bench.on_method = delete
        with contextlib.suppress(DidNotReturn):
            run.call(send_all, BOUND_S)
            run.check_way()
            run.check_told_if_any(f"The queue was deleted after {last} tasks.")


def _raise_if_ended(run: PublisherRun) -> None:
    """Raise Incorrect if the answer let a refusal end it, or raised another error."""
    error = run.called.error
    if isinstance(error, pika.exceptions.UnroutableError | pika.exceptions.NackError):
        is_back = isinstance(error, pika.exceptions.UnroutableError)
        raise run.wrong(
            "The first task that is not taken ends your function.",
            "A task was returned because there is no queue, or refused because the queue is full. "
            "Nobody caught the error, so the list is lost. If nothing was taken, the truthful "
            "answer is the empty list.",
            NOWHERE if is_back else CONFIRMS,
            show(error),
        )
    run.called.raise_if_failed(WRONG)


def judge_through_a_cut(send_all_through_a_cut: Any) -> list[str]:
    """Exercise 2: with a cut after a random message, whose confirm is lost, and without."""
    later = Findings()
    tasks = _with_ids(some_texts(20, 40))
    cut_at = draw.randint(len(tasks) // 4, 3 * len(tasks) // 4)
    evidence = _send_through(send_all_through_a_cut, tasks, cut_at, later)
    _send_through(send_all_through_a_cut, _with_ids(some_texts(1, 1)), 1, later)
    for texts in (some_texts(5, 60), []):
        _send_through(send_all_through_a_cut, _with_ids(texts), None, later)
    with Bench() as bench:  # the exercise does not mention refusals: only what is claimed counts
        run = _full_queue(bench, _with_ids(some_texts(10, 15)), Findings())
        with contextlib.suppress(DidNotReturn):
            run.call(send_all_through_a_cut, BOUND_S)
            run.check_told_if_any()
    later.raise_first()
    return evidence


def _with_ids(texts: list[str]) -> dict[str, str]:
    return {f"{draw.randrange(16**8):08x}": text for text in texts}


def _send_through(
    function: Any, tasks: dict[str, str], cut_at: int | None, later: Findings
) -> list[str]:
    with Bench() as bench:
        run = PublisherRun(bench, bench.new_queue(), tasks, later, max(2, len(tasks) // 2))
        if cut_at:
            bench.cut_after(cut_at)
        where = f"cut after message {cut_at} of {len(tasks)}" if cut_at else "no cut"
        try:
            run.call(function, BOUND_S + 2)
        except DidNotReturn as endless:
            if bench.cuts != 1 or bench.connections != 1:
                raise
            raise run.wrong(
                "You try again on the connection that is gone.",
                "After a cut, neither the connection nor its channels come back: each new attempt "
                f"fails at once. Open a new one with connect(). {endless.message}",
                WRONG,
                where,
                *endless.evidence,
            ) from None
        where += f"; connections opened: {bench.connections}"
        error = run.called.error
        if isinstance(error, OSError) or (
            error is not None and bench.cuts and type(error).__module__ != "builtins"
        ):
            raise run.wrong(
                "The cut ends your function.",
                "Now nobody knows which tasks are in the queue. Catch the error where you send, "
                "and go on with a new connection.",
                WRONG,
                where,
                show(error),
            )
        run.called.raise_if_failed(CUT)
        run.collect()
        run.check_way()
        run.check_list()
        run.check_messages()
        _check_sent_again(run, where)
        run.check_told()
        if left_out := set(run.keys) - set(run.claimed):
            raise run.wrong(
                "Your list is true, but tasks are missing from it.",
                "After the cut, open a new connection and send everything that was not confirmed. "
                "That includes the task that was on its way: it may be in the queue or not, and "
                "with the same id it may be there twice.",
                LIBRARY,
                where,
                f"not claimed: {some(left_out)}",
            )
        twice = [key for key, times in run.keys_of(run.sent).items() if times > 1]
        return [
            where,
            run.numbers,
            *(f"{each} was sent twice, with the same id" for each in twice[:3]),
        ]


def _check_sent_again(run: PublisherRun, where: str) -> None:
    """Raise Incorrect if a task was sent again that was confirmed, or may still be confirmed."""
    first: dict[str, Publication] = {}
    for each in run.sent:
        key = run.key_of(each.method.properties, each.method.body)
        if key is None:
            continue
        earlier = first.get(key)
        first[key] = each
        if earlier is None or earlier.returned or earlier.answer == "nack":
            continue
        if earlier.method.connection == each.method.connection or (
            earlier.is_taken(each.method.at)
        ):
            raise run.wrong(
                "You send a task again that was not lost.",
                "What is confirmed is safe, and on the same connection a confirm may still be on "
                "its way. A worker would have to recognise each copy.",
                LIBRARY,
                where,
                f"sent again: {key}",
            )


ex1 = Exercise(
    "03",
    1,
    judge_send_all,
    hints=[
        "Open one connection with `connect()` and one channel on it, before the loop. A task is in "
        "the queue when the broker has taken it *and* a queue wanted it: which two safety nets "
        "tell you so?",
        '`channel.confirm_delivery()` once, then for each task `channel.basic_publish("", queue, '
        "task, PERSISTENT, mandatory=True)`. One of two things happens: it returns, or it raises.",
        "Put `try` around the publish of *one* task, inside the loop, and append the task to your "
        "list only if nothing was raised. It raises `pika.exceptions.UnroutableError` if no queue "
        "wanted the task, and `pika.exceptions.NackError` if the queue refused it, for example "
        "because it is full.",
    ],
)

ex2 = Exercise(
    "03",
    2,
    judge_through_a_cut,
    hints=[
        "Start from exercise 1, and keep two things: the ids that are confirmed, and the tasks "
        "that are not yet. Only the second are sent after the cut.",
        "The cut shows as an exception from `basic_publish`: `pika.exceptions.AMQPConnectionError` "
        "covers its kinds. Put `try` around everything that happens on one connection, from "
        "`connect()` on, and a loop of a few attempts around that. Confirms have to be asked for "
        "on every connection.",
        "Each message gets `pika.BasicProperties(message_id=task_id, "
        "delivery_mode=pika.DeliveryMode.Persistent)`. When its publish has returned, append the "
        "id to the confirmed ones and remove it from those that wait. The one that was on its way "
        "at the cut still waits: it is sent again, with the same id.",
    ],
)
