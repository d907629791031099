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
from typing import Any

from mqlab.exercises.engine.bench import Bench
from mqlab.exercises.engine.call import DidNotReturn, some
from mqlab.exercises.engine.exercise import Exercise, Findings, Incorrect
from mqlab.exercises.rules.inputs import draw, some_texts
from mqlab.exercises.rules.leaving import check_nothing_is_left, check_objects
from mqlab.exercises.rules.publishing import (
    CUT,
    LIBRARY,
    TASK_1,
    TASK_2,
    WRONG,
    Publication,
    PublisherRun,
)
from mqlab.exercises.rules.refusing import (
    BOUND_S,
    full_queue,
    send_to_a_full_queue,
    send_to_a_missing_queue,
    send_while_the_queue_is_deleted,
)


def judge_send_all(send_all: Any) -> list[str]:
    """Exercise 1, in runs where all is well and in runs where something fails."""
    untold, left = Findings(), Findings()
    evidence = _send(send_all, some_texts(25, 45), untold, left)
    evidence += send_to_a_missing_queue(send_all)
    untold.raise_first()
    evidence += send_to_a_full_queue(send_all, left)
    send_while_the_queue_is_deleted(send_all)
    for texts in ([], some_texts(1, 1), some_texts(80, 120)):
        _send(send_all, texts, untold, left)
        untold.raise_first()
    left.raise_first()
    return evidence


def _send(send_all: Any, texts: list[str], untold: Findings, left: Findings) -> list[str]:
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
        untold.note(run.check_told)
        left.note(check_nothing_is_left, bench, run.queue, TASK_1)
        left.note(check_objects, bench, TASK_1)
        return [run.numbers]


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
        run = full_queue(bench, _with_ids(some_texts(10, 15)), TASK_2)
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
        run = PublisherRun(bench, bench.new_queue(), tasks, TASK_2, max(2, len(tasks) // 2))
        if cut_at:
            bench.cut_after(cut_at)
        where = f"cut after message {cut_at} of {len(tasks)}" if cut_at else "no cut"
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
        run.check_way()
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
