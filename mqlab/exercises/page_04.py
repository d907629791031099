"""The exercises of page 04: a worker that does each task once, and one that stops when asked.

True for every right answer to both, whatever its style and library:
- It works on the queue that it is given. Each task is handed to ``work`` once, by the id in its
  message, and acknowledged once, after its work, on the channel that it came on.
- What is not done is in the queue when it has returned: unchanged, once, in its old order. Nothing
  was emptied, rejected, sent or declared; nothing else on the broker has changed.
- It returns the ids of the tasks that were done by then: each once, and all of them.
- No consumer, connection, thread or unfinished work is left, and no connection was used by two
  threads at a time.

Exercise 1: exactly ``count`` tasks are done, those included that arrive when the queue has been
empty for a while; it returns within two seconds after the last. If there are more than ``count``,
no work begins once so many are done (but for the moment in which another thread learns of it).

Exercise 2: no work begins when ``closing`` is set (but for that moment), at any time, whether there
are many tasks, none any more, or none at all; it does not return before, and within two seconds.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

from mqlab.exercises.engine.bench import Bench
from mqlab.exercises.engine.call import counted, some
from mqlab.exercises.engine.exercise import Exercise
from mqlab.exercises.rules.inputs import draw
from mqlab.exercises.rules.working import OWNER, TIMEOUT_S, WorkerRun, short, wrong

STOP_WITHIN_S = 2.0
QUIET_S = 1.6
"""Seconds without any work after which the rest of the tasks is sent: the queue has run empty."""
CLOSE_ANYHOW_S = 5.0
STALLED_S = 2.5
"""Seconds in which a worker with tasks in its queue should have begun one."""
IN_BACKGROUND, GIVE_BACK = "In the background, by hand", "One last prediction: stop"
TASK_1, TASK_2 = "Exercise 1: for everyone", "Exercise 2: a stretch"


def _judge_work_through(answer: Any) -> list[str]:
    evidence = _work_through(answer)
    _work_with_more_than_asked(answer)
    return evidence


def _work_through(answer: Any) -> list[str]:
    count = draw.randint(12, 20)
    first = draw.randint(4, count // 2)
    with Bench() as bench:
        run = WorkerRun(bench, 0.02, 0.04)
        run.send(first)

        def send_the_rest(over: threading.Event) -> None:
            while run.quiet_s() <= QUIET_S:
                if over.wait(0.02):
                    return
            run.send(count - first)

        run.run(answer, count, send_the_rest)
        run.check_worker()
        sent = f"{counted(count)} sent, {first} at the start and {count - first} later"
        _check_count(run, count, sent)
        rest_s = run.returned_at - run.last_end
        if rest_s > STOP_WITHIN_S:
            raise wrong(
                "You went on waiting when the work was done.",
                f"A sleep is a guess, too short or too long. Stop after task {count}.",
                OWNER,
                f"your function returned {rest_s:.1f} s after the last; {STOP_WITHIN_S:g} s are "
                "allowed",
            )
        run.check_rest(GIVE_BACK)
        run.later.raise_first()
        run.check_value(TASK_1)
        return [
            f"{sent}: {count} done, each once, and the ids you returned are theirs",
            f"{counted(bench.count('Basic.Ack'), 'acknowledgement')}, each after its work",
            f"back {rest_s:.2f} s after the last; consumers: 0, left in the queue: 0",
        ]


def _work_with_more_than_asked(answer: Any) -> None:
    count, more = draw.randint(1, 5), draw.randint(10, 20)
    with Bench() as bench:
        run = WorkerRun(bench, 0.02, 0.04, enough_ended=count)
        run.send(count + more)
        run.run(answer, count, lambda _over: None)
        run.check_worker(all_acked=False)
        asked = f"{counted(count)} asked for, {count + more} in the queue"
        if run.late:
            raise wrong(
                "You do more tasks than you were asked for.",
                "The others are there for another worker, or another day.",
                GIVE_BACK,
                f"{asked}, {len(run.works)} begun",
            )
        _check_count(run, count, asked)
        run.check_rest(GIVE_BACK)
        run.later.raise_first()
        run.check_value(TASK_1, at_least=count)


def _check_count(run: WorkerRun, count: int, sent: str) -> None:
    """Raise Incorrect if the answer did not return, or returned too early."""
    done = f"{sent}; {len(run.done)} done, the last at {run.since_start(run.last_end)}"
    if run.hung and run.works:
        raise wrong(
            "Your worker never stops.",
            f"After {TIMEOUT_S:g} s your function had not returned, and was stopped. "
            "start_consuming waits forever, unless something ends it.",
            OWNER,
            done,
            *run.hung.evidence,
        )
    run.check_any_work()
    if len(run.done) < count:
        raise wrong(
            "You stopped before the work was done.",
            "Neither an empty queue nor the clock can tell you that: more tasks may come, and a "
            "task may take longer. Count what is done.",
            IN_BACKGROUND,
            done,
            f"your function returned at {run.since_start(run.returned_at)}",
        )


def _judge_work_until(answer: Any) -> list[str]:
    evidence = _close(answer, draw.randint(2, 16), draw.randint(90, 110), 0.0)
    # So many that a small prefetch is full, if a worker acknowledges only at closing time.
    evidence += _close(answer, None, draw.randint(18, 22), draw.uniform(3.1, 3.8))
    return evidence + _close(answer, None, 0, draw.uniform(0.3, 1.0))


def _close(answer: Any, enough: int | None, count: int, idle_s: float) -> list[str]:
    """Call the answer with ``count`` tasks, close when it is time, and check.

    It is time when ``enough`` tasks have begun, or, without ``enough``, when all are done and there
    was nothing to do for ``idle_s`` seconds.
    """
    closing = threading.Event()
    with Bench() as bench:
        run = WorkerRun(bench, 0.02, 0.05, enough_begun=enough, on_enough=closing.set)
        run.send(count)
        stalled_s = 0.0

        def close(over: threading.Event) -> None:
            nonlocal stalled_s
            end = monotonic() + CLOSE_ANYHOW_S
            while enough or len(run.works) < count or run.quiet_s() <= idle_s:
                if over.wait(0.01) or run.is_enough.is_set():
                    return
                if monotonic() > end:
                    stalled_s = run.quiet_s()
                    break
            run.say_enough()

        run.run(answer, closing, close)
        run.check_worker()
        _check_closing(run, stalled_s if len(run.works) < (enough or count) else 0.0)
        back_s = max(0.0, run.returned_at - run.enough_at)
        when = "in the middle" if enough else "with an empty queue"
        return [
            f"closed {when}: {len(run.done)} done + {len(run.left)} in the queue = "
            f"{len(run.sent)} sent, back {back_s:.2f} s later"
        ]


def _check_closing(run: WorkerRun, stalled_s: float) -> None:
    at_close = (
        f"{len(run.done)} of {counted(len(run.sent))} done, closing time was at "
        f"{run.since_start(run.enough_at)}, your function returned at "
        f"{'no time' if run.hung else run.since_start(run.returned_at)}"
    )
    late_s = run.returned_at - run.enough_at
    if run.sent and late_s >= 0:
        run.check_any_work()
    if late_s < 0 or stalled_s > STALLED_S:
        raise wrong(
            "You stopped before closing time.",
            f"There were tasks in the queue, and for {stalled_s:.1f} s you began none. An "
            "acknowledgement that waits until the end keeps new tasks away."
            if late_s >= 0
            else "Neither an empty queue nor the clock can tell you: more tasks may come until "
            "closing.is_set() is true. An event itself is always true, and so is its method "
            "without the brackets.",
            OWNER,
            at_close,
        )
    if run.hung and not run.late:
        raise wrong(
            "Without a task, your loop never looks at the clock.",
            "Closing time came while there was no task. A callback is called for a task only, so "
            "it cannot be the only place that looks.",
            OWNER,
            at_close,
        )
    if run.late or late_s > STOP_WITHIN_S:
        handed = run.bench.count("Basic.Deliver", from_client=False)
        raise wrong(
            "You went on after closing time.",
            "Finish the task that is being worked on, begin no other, and return the rest."
            if run.bench.count("Basic.Qos") or not handed
            else f"Without basic_qos the broker sent you {counted(handed)} at once, and the loop "
            "calls your callback for each of them before it looks at anything else.",
            GIVE_BACK,
            at_close,
            f"begun after closing: {len(run.late)}; {STOP_WITHIN_S:g} s are allowed for leaving",
        )
    begun = [work for work in run.works if work.started < run.returned_at]
    if running := [short(work.task_id) for work in begun if not run.ended_in_time(work)]:
        raise wrong(
            "You left in the middle of a task.",
            "Your function returned while work was still going on, so it cannot know whether that "
            "task was done.",
            GIVE_BACK,
            f"being worked on: {some(running)}",
        )
    run.check_rest(GIVE_BACK)
    run.later.raise_first()
    run.check_value(TASK_2)


ex1 = Exercise(
    "04",
    1,
    _judge_work_through,
    hints=[
        "A worker is a function that is called for each task: look at worker_callback in "
        '"A worker, by hand". What does it do first, what last? And which id does it pass on?',
        "Keep a list of the ids that are done. Your callback runs in the thread that owns the "
        "channel, so it may call channel.stop_consuming() itself when the list is long enough. Or "
        "use BackgroundConsumer: start, wait(count, timeout_s=30), stop.",
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
        "There are two things to wait for: the next task, and closing time. start_consuming waits "
        'only for the first. How were the two shared out in "In the background, by hand"?',
        "Let a thread of its own run the loop and own the connection. Your function waits: "
        "closing.wait(). Then it does not stop the loop itself, but asks the owner to: "
        "add_callback_threadsafe. It returns when that thread has ended. And a task may arrive at "
        "that very moment: have the callback look at closing.is_set() before it begins.",
        "worker = threading.Thread(target=channel.start_consuming); worker.start(); "
        "closing.wait(60); connection.add_callback_threadsafe(channel.stop_consuming); "
        "worker.join(10); connection.close(). With basic_qos(prefetch_count=1) before it, and in "
        "on_task first: if closing.is_set(): return. What is not acknowledged goes back when the "
        "connection is closed. Or BackgroundConsumer: its stop() does all of that, and its records "
        "show what was done.",
    ],
)
