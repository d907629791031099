"""A publisher and a queue that does not take its tasks: missing, full, or deleted midway.

In each of them the broker says what became of a task, and an answer may claim no other.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import pika.exceptions

from mqlab.exercises.engine.bench import Bench
from mqlab.exercises.engine.call import DidNotReturn, show, some
from mqlab.exercises.engine.exercise import Findings, Incorrect
from mqlab.exercises.engine.wire import Method
from mqlab.exercises.rules.inputs import draw, some_texts
from mqlab.exercises.rules.leaving import check_nothing_is_left
from mqlab.exercises.rules.publishing import CONFIRMS, NOWHERE, TASK_1, WRONG, PublisherRun

BOUND_S = 5.0
"""Seconds for the runs in which an answer may try again without end."""


def send_to_a_missing_queue(send_all: Any) -> list[str]:
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


def send_to_a_full_queue(send_all: Any, left: Findings) -> list[str]:
    """A queue that refuses what it has no room for; after each refusal a worker takes one out."""
    texts = some_texts(14, 18)
    texts[9] = texts[8]  # the queue takes one of the two
    with Bench() as bench:
        run = full_queue(bench, texts, TASK_1)
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
        left.note(check_nothing_is_left, bench, run.queue, TASK_1)
        return [f"a full queue: {run.numbers}, refused {refused}"]


def full_queue(bench: Bench, tasks: list[str] | dict[str, str], look_at: str) -> PublisherRun:
    earlier = 2 * len(tasks)
    limits = {"x-max-length": earlier + draw.randint(3, 6), "x-overflow": "reject-publish"}
    # Exercise 2 may open a connection after each refusal: nothing was said about those.
    many = len(tasks) * 2 if isinstance(tasks, dict) else 1
    run = PublisherRun(bench, bench.new_queue(limits), tasks, look_at, many)
    run.fill(earlier)

    def make_room(method: Method) -> None:
        if method.name == "Basic.Nack" and not method.from_client:
            run.take_one()

    bench.on_method = make_room
    return run


def send_while_the_queue_is_deleted(send_all: Any) -> None:
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
