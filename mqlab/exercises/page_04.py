"""The exercises of page 04: a worker that does each task once, and one that is told to stop."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from mqlab.errors import MqlabError
from mqlab.exercises.engine.bench import Bench, some
from mqlab.exercises.engine.exercise import Exercise, Incorrect
from mqlab.exercises.rules.working import (
    OWNER,
    TIMEOUT_S,
    Shift,
    acks_of,
    short,
    tasks,
)
from mqlab.producer import Producer

STOP_WITHIN_S = 2.0
QUIET_S = 1.6
"""Seconds without any work after which the check goes on: the queue has run empty."""
IDLE_S = 1.5
"""The same before closing time. Who takes an empty queue for the end has left by then."""
CLOSE_ANYHOW_S = 4.0

IN_BACKGROUND, GIVE_BACK = "In the background, by hand", "One last prediction: stop"


def _judge_work_through(answer: Any) -> list[str]:
    with Bench() as bench:
        shift = Shift(bench, 0.02, 0.04)
        count = random.randint(12, 20)
        first = random.randint(4, count // 2)
        with Producer(shift.queue, settings=bench.settings) as producer:
            shift.sent += producer.send_many(range(first)).task_ids

            def send_the_rest(over: threading.Event) -> None:
                while not over.wait(0.02):
                    if shift.quiet_s() > QUIET_S:
                        with contextlib.suppress(MqlabError):  # the answer may do anything
                            rest = producer.send_many(range(first, count))
                            shift.sent += rest.task_ids
                        return

            shift.run(answer, count, send_the_rest)
        shift.check_worker()
        in_time = {work.task_id for work in shift.works if shift.ended_in_time(work)}
        told = f"{len(in_time)} of {count} tasks were done"
        returned = shift.since_start(shift.returned_at)
        if shift.hung and shift.works:
            raise _never_stops(shift, f"{told}, the last at {shift.since_start(shift.last_end)}.")
        shift.check_any_work()
        if len(in_time) < count:
            raise Incorrect(
                "You stopped before the work was done.",
                "Neither an empty queue nor the time on the clock tells that it is done: more may "
                "come, and a task may take longer. Count what is done.",
                evidence=[
                    f"{told} when your function returned, at {returned}",
                    f"{first} tasks were in the queue at the start, {count - first} were to follow",
                ],
                look_at=IN_BACKGROUND,
            )
        rest_s = shift.returned_at - shift.last_end
        if rest_s > STOP_WITHIN_S:
            raise Incorrect(
                "You went on waiting when the work was done.",
                f"A sleep is a guess, too short or too long. Stop at task {count}.",
                evidence=[
                    f"{told}, the last at {shift.since_start(shift.last_end)}",
                    f"your function returned {rest_s:.1f} s later; {STOP_WITHIN_S:g} s are allowed",
                ],
                look_at=OWNER,
            )
        shift.check_nothing_is_left()
        shift.check_value("Exercise 1: for everyone")
        return [
            f"{count} tasks sent, {first} at the start and {count - first} later: {count} done, "
            "each once, and the ids you returned are theirs",
            f"{len(acks_of(bench.said))} acknowledged, each after its work",
            f"back {rest_s:.2f} s after the last; consumers: 0, left in the queue: 0",
            *shift.remarks(),
        ]


def _judge_work_until(answer: Any) -> list[str]:
    evidence = _close_in_the_middle(answer)
    return [*evidence, *_close_while_idle(answer)]


def _close_in_the_middle(answer: Any) -> list[str]:
    last = random.randint(3, 8)
    with Bench() as bench:
        shift = Shift(bench, 0.05, 0.08)
        _close(shift, answer, random.randint(90, 110), lambda: len(shift.works) >= last)
        sent, done, left = set(shift.sent), shift.done, set(shift.left)
        if lost := sent - done - left:
            raise Incorrect(
                "Tasks are gone.",
                f"Of {len(sent)} tasks {len(done)} were done and {len(left)} are in the queue. "
                f"{len(lost)} are nowhere.",
                evidence=[f"gone: {some(each[:8] for each in lost)}"],
                look_at=GIVE_BACK,
            )
        return [
            f"closed in the middle: {len(done)} done + {len(left)} in the queue = {len(sent)} sent",
            *shift.remarks(),
        ]


def _close_while_idle(answer: Any) -> list[str]:
    count = random.randint(2, 5)
    with Bench() as bench:
        shift = Shift(bench, 0.02, 0.04)
        is_idle = lambda: len(shift.done) >= count and shift.quiet_s() > IDLE_S  # noqa: E731
        closed_at = _close(shift, answer, count, is_idle)
        back_s = max(0.0, shift.returned_at - closed_at)
        return [f"closed with an empty queue: all {count} done, back {back_s:.2f} s later"]


def _close(shift: Shift, answer: Any, count: int, is_time: Callable[[], bool]) -> float:
    """Call the answer, close as soon as it is time, and check; return when it was closed."""
    closing = threading.Event()
    closed_at = float("inf")

    def close(over: threading.Event) -> None:
        nonlocal closed_at
        end = time.monotonic() + CLOSE_ANYHOW_S
        while not (is_time() or time.monotonic() > end):
            if over.wait(0.01):
                return
        closed_at = time.perf_counter()
        closing.set()

    with Producer(shift.queue, settings=shift.bench.settings) as producer:
        shift.sent += producer.send_many(range(count)).task_ids
        shift.run(answer, closing, close)
    shift.check_worker()
    after = [work for work in shift.works if work.started > closed_at]
    at_close = f"closing time was at {shift.since_start(closed_at)}"
    if shift.hung and not after and shift.done:
        raise Incorrect(
            "Without a task, your loop never looks at the clock.",
            "Closing time came while no task did. A callback is called for a task only, so it "
            "cannot be the one place that asks.",
            evidence=[
                f"all {len(shift.done)} tasks were done, {at_close}, and "
                f"{shift.returned_at - closed_at:.1f} s later your function was still there"
            ],
            look_at=OWNER,
        )
    shift.check_any_work()
    late_s = shift.returned_at - closed_at
    if shift.hung or late_s > STOP_WITHIN_S:
        handed = shift.bench.count("Basic.Deliver", from_client=False)
        has_limit = shift.bench.count("Basic.Qos") > 0
        raise Incorrect(
            "You went on after closing time.",
            "Finish the task that is being worked on, and give the others back."
            if has_limit
            else f"Without basic_qos the broker handed you {handed} tasks at once, and the loop "
            "calls your callback for all of them before it looks at anything else.",
            evidence=[
                f"{at_close}; {tasks(len(after))} begun after it",
                f"your function was there for another {late_s:.1f} s; "
                f"{STOP_WITHIN_S:g} s are allowed",
            ],
            look_at=GIVE_BACK,
        )
    if late_s < 0:
        raise Incorrect(
            "You stopped before closing time.",
            "Neither an empty queue nor some seconds that have passed mean that it is time: "
            "more tasks may come until closing is set.",
            evidence=[
                f"your function returned at {shift.since_start(shift.returned_at)}, with "
                f"{len(shift.done)} of {count} tasks done, and closing was not set"
            ],
            look_at=OWNER,
        )
    begun = [work for work in shift.works if work.started < shift.returned_at]
    running = [work for work in begun if not shift.ended_in_time(work)]
    if running:
        raise Incorrect(
            "You left in the middle of a task.",
            "Your function had returned while work was still going on, so it cannot know whether "
            "that task was done.",
            evidence=[f"task {short(work.task_id)} was being worked on" for work in running[:3]],
            look_at=GIVE_BACK,
        )
    shift.check_nothing_is_left()
    shift.check_value("Exercise 2: a stretch")
    return closed_at


def _never_stops(shift: Shift, told: str) -> Incorrect:
    hung = shift.hung
    return Incorrect(
        "Your worker never stops.",
        f"{told} After {TIMEOUT_S:g} s your function had not returned, and was stopped. "
        "start_consuming waits for ever: somebody must end it.",
        evidence=hung.evidence if hung else (),
        look_at=OWNER,
    )


ex1 = Exercise(
    "04",
    1,
    _judge_work_through,
    hints=[
        "A worker is a function that is called for each task: look at worker_callback in "
        '"A worker, by hand". What does it do first, what last? And which id is it to hand on?',
        "Keep a list of the ids that are done. Your callback runs in the thread that owns the "
        "channel, so it may call channel.stop_consuming() itself when the list is long enough. Or "
        "take BackgroundConsumer: start, wait(count, timeout_s=30), stop.",
        "By hand: with connect() as connection, then basic_qos(prefetch_count=1), "
        "basic_consume(queue, on_task), start_consuming(). In on_task(channel, method, properties, "
        'body): task_id = json.loads(body)["task_id"], work(task_id), '
        "basic_ack(method.delivery_tag), done.append(task_id), and stop when there are count.",
    ],
)
ex2 = Exercise(
    "04",
    2,
    _judge_work_until,
    hints=[
        "Two have to wait: the loop for tasks, and somebody for closing. One thread cannot do both "
        'with start_consuming. Who did what in "In the background, by hand"?',
        "Let a thread of its own run the loop and own the connection. Your function waits: "
        "closing.wait(). Then it must not stop the loop itself, but ask its owner: "
        "add_callback_threadsafe. And it must not return before that thread has ended.",
        "worker = threading.Thread(target=channel.start_consuming); worker.start(); "
        "closing.wait(60); connection.add_callback_threadsafe(channel.stop_consuming); "
        "worker.join(10); connection.close(). With basic_qos(prefetch_count=1) before it. Or "
        "BackgroundConsumer: its stop() does all of that, and its records tell what was done.",
    ],
)
