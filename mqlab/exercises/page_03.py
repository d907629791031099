"""The exercises of page 03: a publisher that claims only what is in the queue, a cut included.

True for every right answer to exercise 1, whatever its style and library:
- Each task is the body of one message in the queue: its text in UTF-8, byte for byte, as many
  times as it was given, in the order given, persistent and without an expiration. This holds for
  no task, one and many, for texts of all kinds and for texts that come twice.
- The list has exactly the tasks that the broker said it had taken (a confirm, or a commit) and had
  not returned, on that connection, by the time the function returned; each as often as it was
  taken, in order. So it holds where the queue is missing, deleted midway, or takes only a part.
- One connection, closed at the end. Nothing else on the broker has changed: no queue was declared,
  nothing was taken out, what was in the queue before is still there.

And to exercise 2:
- In the end each task is in the queue, as above and with its id as ``message_id``. It is published
  again only if its outcome is unknown, or bad: never after its confirm has reached the client.
- The list has each id once, and only ids that were confirmed on the connection that carried them.
- A second connection is opened when the first is lost; none stays open.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import pika.exceptions

from mqlab.exercises.engine.bench import Bench
from mqlab.exercises.engine.call import DidNotReturn, show, some
from mqlab.exercises.engine.exercise import Exercise, Findings, Incorrect
from mqlab.exercises.engine.wire import Method
from mqlab.exercises.rules.inputs import draw, some_texts
from mqlab.exercises.rules.leaving import check_nothing_is_left, check_objects
from mqlab.exercises.rules.publishing import (
    CONFIRMS,
    CUT,
    LIBRARY,
    NOWHERE,
    TASK_1,
    TASK_2,
    Publication,
    PublisherRun,
)

WRONG = "What can go wrong"
BOUND_S = 5.0
"""Seconds for the runs in which an answer may try again without end."""


def judge_send_all(send_all: Any) -> list[str]:
    """Exercise 1, in runs where all is well and in runs where something fails."""
    later = Findings()
    evidence = _send(send_all, some_texts(25, 45), later)
    evidence += _send_to_a_missing_queue(send_all)
    later.raise_first()
    evidence += _send_to_a_full_queue(send_all, later)
    _send_while_the_queue_is_deleted(send_all)
    for texts in ([], some_texts(1, 1), some_texts(80, 120)):
        _send(send_all, texts, later)
    later.raise_first()
    return evidence


def _send(send_all: Any, texts: list[str], later: Findings) -> list[str]:
    with Bench() as bench:
        run = PublisherRun(bench, bench.new_queue(), texts, TASK_1)
        run.fill(draw.randint(2, 5))
        run.call(send_all)
        run.collect()
        run.called.raise_if_failed(WRONG)
        run.check_way()
        run.check_list()
        run.check_messages()
        run.check_number()
        run.check_complete()
        later.note(run.check_told)
        later.note(check_nothing_is_left, bench, run.queue, TASK_1)
        later.note(check_objects, bench, TASK_1)
        return [run.numbers]


def _send_to_a_missing_queue(send_all: Any) -> list[str]:
    with Bench() as bench:
        run = PublisherRun(bench, bench.new_queue(declare=False), some_texts(5, 10), TASK_1)
        try:
            run.call(send_all, BOUND_S)
        except DidNotReturn as endless:
            raise Incorrect(
                "You try again until a queue takes the task, and there is none.",
                f"A queue was named that does not exist. {endless.message}",
                evidence=[f"messages sent: {len(run.sent)}", *endless.evidence],
                look_at=NOWHERE,
            ) from None
        returned = bench.count("Basic.Return", from_client=False)
        numbers = f"no such queue: sent {len(run.sent)}, returned {returned}"
        if isinstance(run.called.error, pika.exceptions.UnroutableError):
            raise Incorrect(
                "The first task that comes back ends your function.",
                "There was no queue, and you were told: UnroutableError. Nobody caught it, so "
                "there is no list. The truthful answer is the empty list.",
                evidence=[numbers],
                look_at=NOWHERE,
            )
        run.called.raise_if_failed(NOWHERE)
        if bench.exists(run.queue):
            raise Incorrect(
                "You made the queue that was missing.",
                "Now it is there, and nobody reads it. A spelling mistake in the name would be "
                "a new queue full of lost work. Send without declaring, and report what came back.",
                evidence=[f"{len(bench.take_all(run.queue))} messages wait in a queue of your own"],
                look_at=NOWHERE,
            )
        run.check_list()
        _check_routed(run, f"{numbers}, claimed {len(run.claimed)}", "The queue did not exist.")
        return [numbers]


def _check_routed(run: PublisherRun, numbers: str, why: str) -> None:
    """Raise Incorrect if a task is claimed that no queue has got."""
    routed = run.keys_of(p for p in run.sent if p.is_taken() and p.method.method.mandatory)
    claimed = Counter(run.claimed) - routed
    if not claimed:
        return
    of_these = [p for p in run.sent if run.key_of(p.method.properties, p.method.body) in claimed]
    mandatory, asked = (any(p.method.method.mandatory for p in of_these),
                        all(p.asked for p in of_these))  # fmt: skip
    if mandatory and not asked:
        raise Incorrect(
            "The tasks came back, and you were not listening.",
            f"{why} With mandatory the broker returns what no queue wants, and without confirms "
            "basic_publish has returned by then.",
            evidence=[numbers],
            look_at=NOWHERE,
        )
    if not asked:
        run.check_told()
    if not mandatory:
        raise Incorrect(
            "Confirmed is not routed.",
            f"{why} The broker confirmed all the same: it has dealt with the messages, by throwing "
            "them away. It returns them only if you ask for that.",
            evidence=[numbers],
            look_at=NOWHERE,
        )
    raise Incorrect(
        "You are told that a task is lost, and claim it all the same.",
        f"{why} Each task came back, in pika as an UnroutableError. When you catch the error, "
        "leave that task out of the list.",
        evidence=[numbers],
        look_at=NOWHERE,
    )


def _send_to_a_full_queue(send_all: Any, later: Findings) -> list[str]:
    """A queue that refuses what it has no room for; after each refusal a worker takes one out."""
    texts = some_texts(14, 18)
    texts[9] = texts[8]  # the queue takes one of the two
    with Bench() as bench:
        run = _full_queue(bench, texts, TASK_1)
        run.call(send_all)
        run.collect()
        refused = bench.count("Basic.Nack", from_client=False)
        if any(p.asked == "a transaction" for p in run.sent):
            run.check_told_if_any()
            return []  # the broker closes the channel, and never says which of the tasks it took
        if run.called.error is not None:
            if refused and type(run.called.error).__module__ != "builtins":
                raise Incorrect(
                    "The first task that the broker refuses ends your function.",
                    "The queue was full, and you were told: a nack, in pika a NackError. Nobody "
                    "caught it, so the list of those that it took is lost.",
                    evidence=[f"{run.numbers}, refused {refused}", show(run.called.error)],
                    look_at=CONFIRMS,
                )
            run.called.raise_if_failed(WRONG)
        run.check_list()
        run.check_told()
        run.check_complete()
        if never := Counter(run.keys) - run.keys_of(run.sent):
            raise Incorrect(
                "You do not send all the tasks.",
                "The broker refused one, and you stopped. It had room again for later ones.",
                evidence=[run.numbers, f"never sent: {some(map(show, never))}"],
                look_at=TASK_1,
            )
        later.note(check_nothing_is_left, bench, run.queue, TASK_1)
        return [f"a full queue: {run.numbers}, refused {refused}"]


def _full_queue(bench: Bench, tasks: list[str] | dict[str, str], look_at: str) -> PublisherRun:
    earlier = 2 * len(tasks)
    limits = {"x-max-length": earlier + draw.randint(3, 6), "x-overflow": "reject-publish"}
    run = PublisherRun(bench, bench.new_queue(limits), tasks, look_at)
    run.fill(earlier)

    def make_room(method: Method) -> None:
        if method.name == "Basic.Nack" and not method.from_client:
            run.take_one()

    bench.on_method = make_room
    return run


def _send_while_the_queue_is_deleted(send_all: Any) -> None:
    """To look first whether the queue is there says nothing about a moment later."""
    texts = some_texts(20, 30)
    last = draw.randint(3, 15)
    with Bench() as bench:
        run = PublisherRun(bench, bench.new_queue(), texts, TASK_1)

        def delete(method: Method) -> None:
            if method.name == "Basic.Publish" and bench.count("Basic.Publish") == last + 1:
                with bench.channel() as channel:
                    channel.queue_delete(run.queue)

        bench.on_method = delete
        with contextlib.suppress(DidNotReturn):
            run.call(send_all, BOUND_S)
        if run.called.error is None and isinstance(run.called.value, list | tuple):
            run.check_list()
            numbers = f"deleted after {last} tasks: {run.numbers}"
            _check_routed(run, numbers, "The queue was deleted while you were sending.")


def judge_through_a_cut(send_all_through_a_cut: Any) -> list[str]:
    """Exercise 2: with a cut after a random message, whose confirm is lost, and without."""
    later = Findings()
    tasks = _with_ids(some_texts(20, 40))
    cut_at = draw.randint(len(tasks) // 4, 3 * len(tasks) // 4)
    evidence = _send_through(send_all_through_a_cut, tasks, cut_at, later)
    _send_through(send_all_through_a_cut, _with_ids(some_texts(1, 1)), 1, later)
    for texts in (some_texts(5, 60), []):
        _send_through(send_all_through_a_cut, _with_ids(texts), None, later)
    with Bench() as bench:  # a refusal was not announced: only what is claimed counts
        run = _full_queue(bench, _with_ids(some_texts(10, 15)), TASK_2)
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
        run = PublisherRun(bench, bench.new_queue(), tasks, TASK_2)
        if cut_at:
            bench.cut_after(cut_at)
        where = f"cut after message {cut_at} of {len(tasks)}"
        try:
            run.call(function, BOUND_S + 2)
        except DidNotReturn as endless:
            if bench.cuts != 1 or bench.connections != 1:
                raise
            raise Incorrect(
                "You try again on the connection that is gone.",
                "A connection that was cut does not come back, nor do its channels: each new "
                f"attempt fails at once. Open a new one with connect(). {endless.message}",
                evidence=[f"{where}; connections opened: 1", *endless.evidence],
                look_at=WRONG,
            ) from None
        error = run.called.error
        if isinstance(error, OSError) or (
            error is not None and bench.cuts and type(error).__module__ != "builtins"
        ):
            raise Incorrect(
                "The cut ends your function.",
                f"{type(error).__name__} came out of it, and nobody knows now which tasks are "
                "in the queue. Catch it where you send, and go on with a new connection.",
                evidence=[f"{where}; connections opened: {bench.connections}"],
                look_at=WRONG,
            )
        run.called.raise_if_failed(CUT)
        run.collect()
        run.check_way(connections=max(2, len(tasks) // 2))
        run.check_list()
        run.check_messages()
        _check_after_a_cut(run, where)
        run.check_number()
        run.check_told()
        run.check_complete()
        later.note(check_nothing_is_left, bench, run.queue, TASK_2)
        later.note(check_objects, bench, TASK_2)
        twice = [key for key, times in run.keys_of(run.sent).items() if times > 1]
        return [
            f"{where}; connections opened: {bench.connections}",
            run.numbers,
            *(f"{each} was sent twice, with the same id: a worker can tell" for each in twice[:3]),
        ]


def _check_after_a_cut(run: PublisherRun, where: str) -> None:
    """Raise Incorrect for what a cut makes people claim, drop or send again."""
    numbers = f"{where}: {run.numbers}"
    first: dict[str, Publication] = {}
    for each in run.sent:
        key = run.key_of(each.method.properties, each.method.body)
        earlier = first.get(key or "")
        if earlier is not None and earlier.answered_at < each.method.at and earlier.is_taken():
            raise Incorrect(
                "You send again what was confirmed already.",
                "What is confirmed is safe. A worker would have to recognise each copy.",
                evidence=[numbers, f"confirmed, and sent again: {key}"],
                look_at=LIBRARY,
            )
        is_same = earlier is not None and earlier.method.connection == each.method.connection
        if earlier is not None and is_same and not (earlier.returned or earlier.answer == "nack"):
            raise Incorrect(
                "You send a task again before its answer has come.",
                "On the same connection the answer to the first is still on its way.",
                evidence=[numbers, f"sent again: {key}"],
                look_at=LIBRARY,
            )
        if key is not None:
            first[key] = each
    asked = all(each.asked for each in run.sent)
    untold = set(run.claimed) - set(run.taken)
    unknown = {key for key, each in first.items() if each.method.reached and not each.answer}
    if asked and untold and untold <= unknown and len(untold) == 1:
        raise Incorrect(
            "You claim the task whose confirm was lost, without sending it again.",
            "This time it had arrived before the cut. Nobody told you so: the next time it is "
            "lost. Send it again with the same id, and claim it when that is confirmed.",
            evidence=[numbers, f"sent once, and its confirm never came: {some(untold)}"],
            look_at=LIBRARY,
        )
    if asked and untold:
        raise Incorrect(
            "You swallow the error and count the task as sent.",
            f"After the cut basic_publish raised an error for each of {len(untold)} tasks. They "
            "are in your list, and nobody has confirmed them.",
            evidence=[numbers, f"claimed and not confirmed: {some(untold)}"],
            look_at=CUT,
        )
    run.check_told()
    left_out = set(run.keys) - set(run.claimed) - set(run.taken)
    if left_out and left_out <= unknown and len(left_out) == 1:
        raise Incorrect(
            "You drop the task whose confirm was lost.",
            "It was on its way when the connection was cut, so it may be in the queue or not. "
            "Send it again with the same id: then it is there, once or twice, and a worker can "
            "tell that the two are one.",
            evidence=[numbers, f"not claimed: {some(left_out)}"],
            look_at=LIBRARY,
        )
    if left_out and set(run.claimed) <= set(run.taken) and run.bench.cuts:
        raise Incorrect(
            "Your list is true, and the rest was never sent.",
            "That is the harder half: you claim nothing that is not there. Now open a new "
            "connection after the cut, and send what was not confirmed.",
            evidence=[numbers, f"connections opened: {run.bench.connections}"],
            look_at=LIBRARY,
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
