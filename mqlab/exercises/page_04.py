"""The exercises of page 04: a worker that does each task once, and one that is told to stop.

A check hands out the slow work itself, so it knows what was really done and when; what was
acknowledged and when it reads off the wire, and what is left it asks the broker.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pika.exceptions

from mqlab.errors import MqlabError
from mqlab.exercises.bench import Bench, Call, DidNotReturn, Said, some
from mqlab.exercises.exercise import Exercise, Incorrect, NotChecked
from mqlab.producer import Producer

STOP_WITHIN_S = 2.0
QUIET_S = 0.4
"""Seconds without any work after which the check goes on: the queue has run empty."""
TIMEOUT_S = 8.0
CLOSE_ANYHOW_S = 4.0

BY_HAND, OWNER = "A worker, by hand", "How does it stop?"
GIVE_BACK, FAULTS = "Predict a last time: stop", "What can go wrong"


@dataclass
class _Work:
    """One call of ``work``. Times in seconds, as the wire's."""

    task_id: Any
    started: float
    ended: float | None = None


class _Shift:
    """One call of an answer: what was sent, worked on and said, and what was left."""

    def __init__(self, bench: Bench, least_s: float, most_s: float) -> None:
        self.bench, self.queue = bench, bench.new_queue()
        self._work_s = least_s, most_s
        self.works: list[_Work] = []
        self.sent: list[str] = []
        self.called: Call | None = None
        self.hung: DidNotReturn | None = None
        self.began = self.returned_at = time.perf_counter()
        self.consumers = 0
        self.left: Counter[str] = Counter()

    def work(self, task_id: Any) -> None:
        work = _Work(task_id, time.perf_counter())
        self.works.append(work)
        time.sleep(random.uniform(*self._work_s))
        work.ended = time.perf_counter()

    def run(self, answer: Any, third: Any, beside: Callable[[threading.Event], None]) -> None:
        """Call the answer, and ``beside`` in a thread beside it; then look at what is left.

        Raises what ``call`` raises, except that it did not return: that is kept in ``hung``.
        """
        over = threading.Event()
        helper = threading.Thread(target=beside, args=(over,), name="mqlab check", daemon=True)
        self.began = time.perf_counter()
        helper.start()
        bench = self.bench
        try:
            self.called = bench.call(
                answer, bench.connect, self.queue, third, self.work, timeout_s=TIMEOUT_S
            )
            self.returned_at = time.perf_counter()
            end = time.monotonic() + 1  # a consumer of a connection just closed may still be there
            while (consumers := bench.consumers(self.queue)) and time.monotonic() < end:
                time.sleep(0.05)
            self.consumers = consumers
        except DidNotReturn as wrong:
            self.returned_at = time.perf_counter()
            self.hung = wrong
        finally:
            over.set()
            helper.join()
        bench.end_all()
        self.left.update(_id_of(body) for _, body in bench.take_all(self.queue))

    def quiet_s(self) -> float:
        """Seconds since a work began or ended."""
        times = [time for work in self.works for time in (work.started, work.ended or 0.0)]
        return time.perf_counter() - max([self.began, *times])

    @property
    def done(self) -> set[str]:
        """The ids of the tasks whose work has ended."""
        return {work.task_id for work in self.works if work.ended is not None}

    def ended_in_time(self, work: _Work) -> bool:
        """Whether a work was over when the answer returned."""
        return work.ended is not None and work.ended < self.returned_at

    @property
    def last_end(self) -> float:
        return max((work.ended or 0.0 for work in self.works), default=0.0)

    def since_start(self, at: float) -> str:
        return f"{at - self.began:.2f} s"

    # ---- what is wrong in any worker

    def check_worker(self) -> None:
        """Raise Incorrect for what no worker may do, the most telling first."""
        said = self.bench.said
        delivered = Counter(
            each.properties.message_id
            for each in said
            if each.name in ("Basic.Deliver", "Basic.GetOk") and each.properties
        )
        if not delivered and self.done & set(self.sent):
            raise NotChecked(
                "your function took its tasks past the check, which saw nothing of it",
                "use the connect that your function is given, or BackgroundConsumer(queue=queue)",
            )
        self._check_threads()
        self._check_auto_ack(said)
        acked = _acks(said)
        self._check_work(acked)
        self._check_errors(said)
        self._check_unacknowledged(acked)
        [(worst, times)] = delivered.most_common(1) or [("", 0)]
        if times > 5:
            raise Incorrect(
                "A task goes round in circles.",
                "Your worker gives it back, the broker delivers it again at once, and so on.",
                evidence=[f"task {worst[:8]} was delivered {times} times"],
                look_at=FAULTS,
            )
        worked = Counter(work.task_id for work in self.works if isinstance(work.task_id, str))
        [(worst, times)] = worked.most_common(1) or [("", 0)]
        if times > 1:
            raise Incorrect(
                "A task was done twice.",
                f"You called work {len(self.works)} times for {len(worked)} tasks.",
                evidence=[
                    f"task {worst[:8]}: delivered {delivered[worst]} times, worked on {times} times"
                ],
                look_at=FAULTS,
            )
        if self.called is not None:
            self.called.raise_if_failed(FAULTS)

    def _check_threads(self) -> None:
        if not self.bench.shared:
            return
        (caller, owner), times = Counter(self.bench.shared).most_common(1)[0]
        raise Incorrect(
            "Two threads use one connection.",
            "It belongs to the thread that runs its loop. Any other leaves what it wants there "
            "with add_callback_threadsafe. That it seemed to work was luck.",
            evidence=[
                f"thread {caller!r} called on a connection that thread {owner!r} was in, {times} "
                f"time{'s' * (times > 1)}",
                *self._words_of_the_broker(),
            ],
            look_at=OWNER,
        )

    def _check_auto_ack(self, said: list[Said]) -> None:
        asked = [each for each in said if each.name in ("Basic.Consume", "Basic.Get")]
        automatic = [each for each in asked if each.method.no_ack]
        if not automatic:
            return
        lost = set(self.sent) - self.done - set(self.left)
        first_end = min((work.ended for work in self.works if work.ended), default=time.monotonic())
        handed = sum(each.name == "Basic.Deliver" and each.at < first_end for each in said)
        told = f"{automatic[0].name} came with no_ack = True"
        evidence = [told]
        if handed:
            evidence.append(
                f"when the first task was done, the broker had forgotten {handed}: all that it had "
                "handed out until then"
            )
        if lost and self.hung is None:
            evidence.append(f"{len(lost)} tasks are gone: neither done nor in the queue")
        raise Incorrect(
            "With auto_ack a task counts as done when it is sent to you.",
            "A worker that dies, or stops, loses what was handed out and is not done.",
            evidence=evidence,
            look_at=BY_HAND,
        )

    def _check_work(self, acked: dict[str, float]) -> None:
        known = set(self.sent)
        strange = [work.task_id for work in self.works if work.task_id not in known]
        if strange:
            raise _changed_id(f"work was called with {_short(strange[0])}, the id of no message")
        ended = {work.task_id: work.ended for work in self.works if work.ended is not None}
        if acked and not self.works:
            raise Incorrect(
                "Nobody did the work.",
                f"The broker was told that {len(acked)} tasks are done. Your function has not "
                "called work(task_id) once.",
                look_at=BY_HAND,
            )
        early = {task: at for task, at in acked.items() if at < ended.get(task, float("inf"))}
        if early:
            raise Incorrect(
                "You acknowledged before the work was done.",
                f"So it was with {len(early)} of {len(acked)} acknowledgements. A worker that dies "
                "in between loses the task: the broker has forgotten it.",
                evidence=[
                    f"task {task[:8]}: acknowledged at {self.since_start(at)}, "
                    + (
                        f"work ended at {self.since_start(ended[task])}"
                        if task in ended
                        else "never worked on"
                    )
                    for task, at in list(early.items())[:3]
                ],
                look_at=BY_HAND,
            )

    def _check_errors(self, said: list[Said]) -> None:
        unknown = [
            words for words in self._words_of_the_broker() if "unknown delivery tag" in words
        ]
        if unknown:
            raise Incorrect(
                "You acknowledged a delivery twice, or on another channel.",
                "A delivery tag is good once, and only on the channel that it came on. The broker "
                "has closed the channel for it.",
                evidence=unknown,
                look_at=FAULTS,
            )
        headers = [each.properties.headers or {} for each in said if each.properties]
        reasons = Counter(h["mqlab-reason"] for h in headers if "mqlab-reason" in h)
        for reason, times in reasons.most_common(1):
            raise Incorrect(
                "Your handler raised an error.",
                "The library tries such a task again, and in the end moves it to the dead queue.",
                evidence=[f"{reason} ({times} time{'s' * (times > 1)})"],
                look_at="The same from the library",
            )
        for error in self.bench.thread_errors:
            if not isinstance(error, pika.exceptions.AMQPError):
                Call(error=error).raise_if_failed(FAULTS)

    def _check_unacknowledged(self, acked: dict[str, float]) -> None:
        worked = {work.task_id for work in self.works if self.ended_in_time(work)}
        unheard = worked - set(acked)
        if unheard:
            raise Incorrect(
                "The broker never heard that your work is done.",
                f"{_tasks(len(worked))} done, {len(unheard)} of them never acknowledged. What is "
                "not acknowledged is delivered again.",
                evidence=[
                    f"{len(unheard & set(self.left))} of those you did were back in the queue when "
                    "your connection was closed"
                ],
                look_at=BY_HAND,
            )

    def _words_of_the_broker(self) -> list[str]:
        closes = ("Channel.Close", "Connection.Close")
        return list(
            dict.fromkeys(
                f"the broker: {each.method.reply_code} {each.method.reply_text}"
                for each in self.bench.said
                if each.name in closes and not each.from_client
            )
        )

    # ---- what is wrong in an answer

    def check_value(self) -> None:
        """Raise Incorrect unless the answer has returned the ids of just what it has done."""
        value = self.called.value if self.called else None
        if not isinstance(value, Collection) or isinstance(value, (str, bytes, dict)):
            raise Incorrect(
                "Your function does not return a list of ids.",
                f"It returned {type(value).__name__}.",
                evidence=[f"it did {_tasks(len(self.done))}"],
            )
        ids = Counter(value) if all(isinstance(each, str) for each in value) else None
        if ids is None:
            kinds = {type(each).__name__ for each in value}
            raise Incorrect(
                "Your list holds something other than ids.",
                f"It holds {some(kinds)}. An id is text: the task_id of a message.",
            )
        strange = [each for each in ids if each not in self.sent]
        if strange:
            raise _changed_id(f"you returned {_short(strange[0])}, the id of no message")
        double = [each for each, times in ids.items() if times > 1]
        claimed, kept = set(ids) - self.done, self.done - set(ids)
        if claimed or double:
            raise Incorrect(
                "You tell of more than was done.",
                f"You returned {len(value)} ids, and {_tasks(len(self.done))} were done.",
                evidence=[f"too much: {some(each[:8] for each in claimed or double)}"],
            )
        if kept:
            raise Incorrect(
                "You did more than you tell.",
                f"{_tasks(len(self.done))} were done, and you returned {len(value)} ids. Whoever "
                "waits for the rest will never hear of it.",
                evidence=[f"done, and not in your list: {some(each[:8] for each in kept)}"],
            )

    def check_nothing_is_left(self) -> None:
        """Raise Incorrect if the broker still had a consumer when the answer had returned."""
        if self.consumers:
            raise Incorrect(
                "You left a consumer behind.",
                "The next task goes to it, and nobody works on it. Each run of your cell leaves "
                "one more.",
                evidence=[
                    f"a second after your function had returned the broker had {self.consumers} "
                    f"consumer{'s' * (self.consumers > 1)} on the queue"
                ],
                look_at=OWNER,
            )

    def remarks(self) -> list[str]:
        """What is not wrong, and could be better."""
        opened = {each.connection for each in self.bench.said if each.name == "Connection.OpenOk"}
        closed = {each.connection for each in self.bench.said if each.name == "Connection.CloseOk"}
        if still := len(opened - closed):
            plural = "s" * (still > 1)
            return [f"to do better: {still} connection{plural} left open, close what you open"]
        return []


def _judge_work_through(answer: Any) -> list[str]:
    with Bench() as bench:
        shift = _Shift(bench, 0.02, 0.04)
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
        in_time = {
            work.task_id for work in shift.works if 0 < (work.ended or 0) < shift.returned_at
        }
        told = f"{len(in_time)} of {count} tasks were done"
        returned = shift.since_start(shift.returned_at)
        if shift.hung:
            raise _never_stops(shift, f"{told}, the last at {shift.since_start(shift.last_end)}.")
        if not shift.works:
            raise Incorrect("Nobody did the work.", "Your function has not called work(task_id).")
        if len(in_time) < count:
            raise Incorrect(
                "You stopped before the work was done.",
                "Neither an empty queue nor the time on the clock tells that it is done: more may "
                "come, and a task may take longer. Count what is done.",
                evidence=[
                    f"{told} when your function returned, at {returned}",
                    f"{first} tasks were in the queue at the start, {count - first} were to follow",
                ],
                look_at=FAULTS,
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
        shift.check_value()
        return [
            f"{count} tasks sent, {first} at the start and {count - first} later: {count} done, "
            "each once, and the ids you returned are theirs",
            f"{len(_acks(bench.said))} acknowledged, each after its work",
            f"back {rest_s:.2f} s after the last; consumers: 0, left in the queue: 0",
            *shift.remarks(),
        ]


def _judge_work_until(answer: Any) -> list[str]:
    evidence = _close_in_the_middle(answer)
    return [*evidence, *_close_while_idle(answer)]


def _close_in_the_middle(answer: Any) -> list[str]:
    last = random.randint(3, 8)
    with Bench() as bench:
        shift = _Shift(bench, 0.05, 0.08)
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
        shift = _Shift(bench, 0.02, 0.04)
        is_idle = lambda: len(shift.done) >= count and shift.quiet_s() > QUIET_S  # noqa: E731
        closed_at = _close(shift, answer, count, is_idle)
        back_s = max(0.0, shift.returned_at - closed_at)
        return [f"closed with an empty queue: all {count} done, back {back_s:.2f} s later"]


def _close(shift: _Shift, answer: Any, count: int, is_time: Callable[[], bool]) -> float:
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
    if shift.hung and not shift.works:
        raise _never_stops(shift, "It has not called work(task_id) once.")
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
                f"{at_close}; {_tasks(len(after))} begun after it",
                f"your function was there for another {late_s:.1f} s; "
                f"{STOP_WITHIN_S:g} s are allowed",
            ],
            look_at=GIVE_BACK,
        )
    if not shift.works:
        raise Incorrect("Nobody did the work.", "Your function has not called work(task_id).")
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
    running = [work for work in shift.works if not shift.ended_in_time(work)]
    if running:
        raise Incorrect(
            "You left in the middle of a task.",
            "Your function had returned while work was still going on, so it cannot know whether "
            "that task was done.",
            evidence=[f"task {_short(work.task_id)} was being worked on" for work in running[:3]],
            look_at=GIVE_BACK,
        )
    shift.check_nothing_is_left()
    shift.check_value()
    return closed_at


def _never_stops(shift: _Shift, told: str) -> Incorrect:
    hung = shift.hung
    return Incorrect(
        "Your worker never stops.",
        f"{told} After {TIMEOUT_S:g} s your function had not returned, and was stopped. "
        "start_consuming waits for ever: somebody must end it.",
        evidence=hung.evidence if hung else (),
        look_at=OWNER,
    )


def _changed_id(evidence: str) -> Incorrect:
    return Incorrect(
        "The id has changed on the way.",
        "Whoever sent the task asks with the id that is in the message, and will not find it.",
        evidence=[evidence],
        look_at=BY_HAND,
    )


def _acks(said: Iterable[Said]) -> dict[str, float]:
    """When each task was acknowledged first, by its id."""
    held: dict[tuple[int, int], dict[int, str]] = {}
    acked: dict[str, float] = {}
    for each in said:
        tags = held.setdefault((each.connection, each.channel), {})
        if each.name in ("Basic.Deliver", "Basic.GetOk") and each.properties:
            tags[each.method.delivery_tag] = each.properties.message_id
        elif each.name == "Basic.Ack" and each.from_client:
            tag, multiple = each.method.delivery_tag, each.method.multiple
            settled = [t for t in tags if t == tag or (multiple and (t <= tag or tag == 0))]
            for settled_tag in settled:
                acked.setdefault(tags.pop(settled_tag), each.at)
    return acked


def _id_of(body: str) -> str:
    try:
        return str(json.loads(body)["task_id"])
    except (ValueError, TypeError, KeyError):
        return body[:40]


def _short(task_id: Any) -> str:
    return task_id[:8] if isinstance(task_id, str) else repr(task_id)[:60]


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"


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
