"""One shift of a learner's worker: tasks and slow work for it, and what is wrong in any worker.

A shift hands out the slow work itself, so it knows what was really done and when. What was
acknowledged and when it reads off the wire, and what is left it asks the broker. The headings that
it points to are those of page 04.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pika.exceptions

from mqlab.exercises.engine.bench import Bench, Call, DidNotReturn, Said, some
from mqlab.exercises.engine.exercise import Incorrect, NotChecked

TIMEOUT_S = 8.0
BY_HAND, OWNER = "A worker, by hand", "How does it stop?"
LIBRARY, FAULTS = "The same from the library", "What can go wrong"


@dataclass
class Work:
    """One call of ``work``. Times in seconds, as the wire's."""

    task_id: Any
    started: float
    ended: float | None = None


class Shift:
    """One call of an answer: what was sent, worked on and said, and what was left."""

    def __init__(self, bench: Bench, least_s: float, most_s: float) -> None:
        self.bench, self.queue = bench, bench.new_queue()
        self._work_s = least_s, most_s
        self.works: list[Work] = []
        self.sent: list[str] = []
        self.called: Call | None = None
        self.hung: DidNotReturn | None = None
        self.began = self.returned_at = time.perf_counter()
        self.consumers = 0
        self.left: Counter[str] = Counter()

    def work(self, task_id: Any) -> None:
        work = Work(task_id, time.perf_counter())
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
            time.sleep(0.1)  # the last acknowledgement may be on its way, on an open connection
            end = time.monotonic() + 1  # a consumer of a connection just closed may still be there
            while (consumers := bench.consumers(self.queue)) and time.monotonic() < end:
                time.sleep(0.05)
            self.consumers = consumers
        except DidNotReturn as wrong:
            self.returned_at = self.began + TIMEOUT_S
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
        ended = [work.task_id for work in self.works if work.ended is not None]
        return {each for each in ended if isinstance(each, str)}

    def ended_in_time(self, work: Work) -> bool:
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
        self._check_handler(said)
        acked = acks_of(said)
        self._check_work(acked)
        self._check_errors()
        self._check_unacknowledged(acked)
        [(worst, times)] = delivered.most_common(1) or [("", 0)]
        if times > 5:
            raise Incorrect(
                "A task goes round in circles.",
                "Your worker gives it back, the broker delivers it again at once, and so on.",
                evidence=[f"task {worst[:8]} was delivered {times} times"],
                look_at=FAULTS,
            )
        worked = Counter(work.task_id for work in self.works)
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
        first_end = min(
            (work.ended for work in self.works if work.ended), default=time.perf_counter()
        )
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

    def _check_handler(self, said: list[Said]) -> None:
        headers = [each.properties.headers or {} for each in said if each.properties]
        reasons = Counter(h["mqlab-reason"] for h in headers if "mqlab-reason" in h)
        for reason, times in reasons.most_common(1):
            raise Incorrect(
                "Your handler raised an error.",
                "The library tries such a task again, and in the end moves it to the dead queue.",
                evidence=[f"{reason} ({times} time{'s' * (times > 1)})"],
                look_at=LIBRARY,
            )

    def _check_work(self, acked: dict[str, float]) -> None:
        known = set(self.sent)
        given = [work.task_id for work in self.works]
        if objects := [each for each in given if not isinstance(each, str)]:
            raise Incorrect(
                "You handed work something other than an id.",
                "work wants the task_id that is in the message, a text.",
                evidence=[f"it got {type(objects[0]).__name__}: {short(objects[0])}"],
                look_at=BY_HAND,
            )
        strange = [each for each in given if each not in known]
        if strange:
            raise changed_id(f"work was called with {short(strange[0])}, the id of no message")
        ended = {work.task_id: work.ended for work in self.works if work.ended is not None}
        if acked:
            self.check_any_work()
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

    def _check_errors(self) -> None:
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
        for error in self.bench.thread_errors:
            if not isinstance(error, pika.exceptions.AMQPError):
                Call(error=error).raise_if_failed(FAULTS)

    def _check_unacknowledged(self, acked: dict[str, float]) -> None:
        in_time = [work for work in self.works if self.ended_in_time(work)]
        if self.hung:  # what it did right before its end could not be acknowledged any more
            in_time = [work for work in in_time if (work.ended or 0) < self.returned_at - 1]
        worked = {work.task_id for work in in_time}
        unheard = worked - set(acked)
        if unheard:
            raise Incorrect(
                "The broker never heard that your work is done.",
                f"{tasks(len(worked))} done, {len(unheard)} of them never acknowledged. What is "
                "not acknowledged is delivered again"
                + (
                    ", and while a prefetch is full of it nothing more comes." * bool(self.hung)
                    or "."
                ),
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

    def check_any_work(self) -> None:
        """Raise Incorrect if the answer has not called ``work`` at all."""
        if not self.works:
            acked = len(acks_of(self.bench.said))
            raise Incorrect(
                "Nobody did the work.",
                "Your function has not called work(task_id) once.",
                evidence=[
                    f"acknowledged: {tasks(acked)}",
                    *(self.hung.evidence if self.hung else ()),
                ],
                look_at=BY_HAND,
            )

    def check_value(self, task: str) -> None:
        """Raise Incorrect unless the answer has returned the ids of just what it has done.

        ``task`` is the heading of the exercise, which says what is to be returned.
        """
        value = self.called.value if self.called else None
        if not isinstance(value, Collection) or isinstance(value, (str, bytes, dict)):
            raise Incorrect(
                "Your function does not return a list of ids.",
                f"It returned {type(value).__name__}.",
                evidence=[f"it did {tasks(len(self.done))}"],
                look_at=task,
            )
        ids = Counter(value) if all(isinstance(each, str) for each in value) else None
        if ids is None:
            kinds = {type(each).__name__ for each in value}
            raise Incorrect(
                "Your list holds something other than ids.",
                f"It holds {some(kinds)}. An id is text: the task_id of a message.",
                look_at=task,
            )
        strange = [each for each in ids if each not in self.sent]
        if strange:
            raise changed_id(f"you returned {short(strange[0])}, the id of no message")
        double = [each for each, times in ids.items() if times > 1]
        claimed, kept = set(ids) - self.done, self.done - set(ids)
        if claimed or double:
            raise Incorrect(
                "You tell of more than was done.",
                f"You returned {len(value)} ids, and {tasks(len(self.done))} were done.",
                evidence=[f"too much: {some(each[:8] for each in claimed or double)}"],
                look_at=task,
            )
        if kept:
            raise Incorrect(
                "You did more than you tell.",
                f"{tasks(len(self.done))} were done, and you returned {len(value)} ids. Whoever "
                "waits for the rest will never hear of it.",
                evidence=[f"done, and not in your list: {some(each[:8] for each in kept)}"],
                look_at=task,
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


def changed_id(evidence: str) -> Incorrect:
    return Incorrect(
        "The id has changed on the way.",
        "Whoever sent the task asks with the id that is in the message, and will not find it.",
        evidence=[evidence],
        look_at=BY_HAND,
    )


def acks_of(said: Iterable[Said]) -> dict[str, float]:
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


def short(task_id: Any) -> str:
    return task_id[:8] if isinstance(task_id, str) else repr(task_id)[:60]


def tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"
