"""What is wrong in any worker, with the evidence for it.

``WorkerRun`` puts tasks into a queue, hands the slow work to an answer, and so knows what was
really done and when. What was delivered and acknowledged it reads off the wire, and what is left it
takes from the queue. Its headings are those of page 04.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from time import perf_counter, sleep, time
from typing import Any

import pika
import pika.exceptions

from mqlab.exercises.engine.bench import Bench
from mqlab.exercises.engine.call import Call, DidNotReturn, counted, show, some
from mqlab.exercises.engine.exercise import Findings, Incorrect, NotChecked
from mqlab.exercises.engine.wire import Method
from mqlab.exercises.rules.inputs import ODD_TEXTS, draw
from mqlab.exercises.rules.leaving import check_nothing_is_left, check_objects

TIMEOUT_S = 8.0
LINGER_S = 0.6
"""Seconds that a task still takes which is being worked on when the last one should be."""
REACT_S = 0.3
"""Seconds in which another thread may begin one more task before it can know. A worker that does
one after the other cannot begin one so soon: its last task lingers."""
BY_HAND, OWNER = "A worker, by hand", "How does it stop?"
LIBRARY, FAULTS = "The same from the library", "What can go wrong"


@dataclass
class Work:
    """One call of ``work``. Times in seconds, as the wire's."""

    task_id: Any
    started: float
    ended: float | None = None


class WorkerRun:
    """One call of an answer: what was sent, done and acknowledged, and what was left.

    When ``enough_begun`` works have begun, or ``enough_ended`` have ended, no other should begin:
    ``on_enough()`` is called, and the works that are still going on linger.
    """

    def __init__(
        self,
        bench: Bench,
        least_s: float,
        most_s: float,
        *,
        enough_begun: int | None = None,
        enough_ended: int | None = None,
        on_enough: Callable[[], object] = lambda: None,
    ) -> None:
        self.bench, self.queue = bench, bench.new_queue()
        self._work_s, self._on_enough = (least_s, most_s), on_enough
        self._enough_begun, self._enough_ended = enough_begun, enough_ended
        self.is_enough = threading.Event()
        self.enough_at = float("inf")
        self.works: list[Work] = []
        self.sent: dict[str, bytes] = {}
        self.called: Call | None = None
        self.hung: DidNotReturn | None = None
        self.began = self.returned_at = perf_counter()
        self.left: list[tuple[Any, bytes]] = []
        self.later = Findings()

    def send(self, count: int) -> None:
        """Put tasks of all kinds into the queue, shaped as the page's are."""
        with self.bench.channel() as channel:
            channel.confirm_delivery()
            for _ in range(count):
                task_id = draw.choice([str(uuid.uuid4()), f"bericht-ä-{draw.randrange(10**9)}"])
                short = [text for text in ODD_TEXTS if len(text) < 100]
                data = draw.choice([draw.choice(short), draw.random(), None, ["a", {"b": 1}]])
                task = {"task_id": task_id, "data": data, "timestamp": time()}
                body = json.dumps(task, ensure_ascii=draw.random() < 0.5).encode()
                properties = pika.BasicProperties(message_id=task_id, delivery_mode=2)
                self.sent[task_id] = body
                channel.basic_publish("", self.queue, body, properties, mandatory=True)

    def work(self, task_id: Any) -> None:
        """The slow work that the answer is given."""
        work = Work(task_id, perf_counter())
        self.works.append(work)
        if len(self.works) == self._enough_begun:
            self.say_enough()
        if self.is_enough.wait(draw.uniform(*self._work_s)):
            sleep(LINGER_S)
        work.ended = perf_counter()
        if sum(each.ended is not None for each in self.works) == self._enough_ended:
            self.say_enough()

    def say_enough(self) -> None:
        """From now on no work should begin."""
        if not self.is_enough.is_set():
            self.enough_at = perf_counter()
            self.is_enough.set()
            self._on_enough()

    def run(self, answer: Any, third: Any, beside: Callable[[threading.Event], None]) -> None:
        """Call the answer, and ``beside`` in a thread beside it; then look at what is left.

        Raises what ``call`` raises, except that it did not return: that is kept in ``hung``.
        """
        over, bench = threading.Event(), self.bench
        helper = threading.Thread(target=beside, args=(over,), name="mqlab check", daemon=True)
        self.began = perf_counter()
        helper.start()
        try:
            self.called = bench.call(
                answer, bench.connect, self.queue, third, self.work, timeout_s=TIMEOUT_S
            )
            self.returned_at = self.called.returned_at
            sleep(0.1)  # the last acknowledgement may be on its way, on an open connection
            if self.called.error is None:
                self.later.note(check_nothing_is_left, bench, self.queue, OWNER)
                self.later.note(check_objects, bench, FAULTS)
        except DidNotReturn as wrong:
            self.returned_at = self.began + TIMEOUT_S
            self.hung = wrong
        finally:
            over.set()
            helper.join()
        bench.end_all()
        self.left = bench.take_all(self.queue)

    def quiet_s(self) -> float:
        """Seconds since a work began or ended."""
        times = [at for work in self.works for at in (work.started, work.ended or 0.0)]
        return perf_counter() - max([self.began, *times])

    @property
    def done(self) -> set[str]:
        """The ids of the tasks whose work was over when the answer returned."""
        return {work.task_id for work in self.works if self.ended_in_time(work)}

    @property
    def late(self) -> list[Work]:
        """The works that began when it was enough, and could have been left."""
        return [work for work in self.works if work.started > self.enough_at + REACT_S]

    def ended_in_time(self, work: Work) -> bool:
        """Whether a work was over when the answer returned."""
        return work.ended is not None and work.ended < self.returned_at

    @property
    def last_end(self) -> float:
        """When the last work was over."""
        return max((work.ended or 0.0 for work in self.works), default=0.0)

    def since_start(self, at: float) -> str:
        """A time as evidence."""
        return f"{at - self.began:.2f} s"

    # ---- what is wrong in any worker

    def check_worker(self, *, all_acked: bool = True) -> None:
        """Raise Incorrect for what no worker may do, the most telling first.

        Without ``all_acked``, what was done and not acknowledged is no fault.
        """
        methods = list(self.bench.wire.methods)
        delivered = Counter(
            id_of(each.body) for each in methods if each.name in ("Basic.Deliver", "Basic.GetOk")
        )
        if not delivered and self.done & set(self.sent):
            raise NotChecked(
                "your function took its tasks past the check, which saw nothing of it",
                "use the connect that your function is given, or BackgroundConsumer(queue=queue)",
            )
        self._check_queue(methods)
        self._check_threads()
        self._check_auto_ack(methods)
        self._check_handler(methods)
        settled = settlements(methods)
        acked = {id_of(each.body): at for each, kind, at in reversed(settled) if kind == "ack"}
        self._check_ids()
        self._check_early(acked)
        self._check_tags()
        self._check_given_back(settled)
        if all_acked:
            self._check_unacknowledged(acked)
        self._check_circles(delivered)
        self._check_other_methods()
        for error in self.bench.thread_errors:
            if not isinstance(error, pika.exceptions.AMQPError):
                self._raise_for(Call(error=error))
        if self.called is not None:
            self._raise_for(self.called)

    def _raise_for(self, called: Call) -> None:
        empty = isinstance(called.error, TypeError | AttributeError) and (
            self.bench.count("Basic.GetEmpty", from_client=False) > 0
        )
        hint = "The queue was empty, and basic_get then returns (None, None, None)."
        called.raise_if_failed(FAULTS, hint * empty)

    def _check_queue(self, methods: list[Method]) -> None:
        names = ("Basic.Consume", "Basic.Get")
        asked = [m.method.queue for m in methods if m.name in names and m.from_client]
        others = {name for name in asked if name not in (self.queue, "")}
        if others and self.queue not in asked:
            raise Incorrect(
                "You work on another queue than the one that you are given.",
                "Use the argument queue, not a name from the page: the check has its own queue.",
                evidence=[
                    f"given: {self.queue}, asked for: {some(map(repr, others))}",
                    *self._words_of_the_broker(),
                ],
                look_at=BY_HAND,
            )

    def _check_threads(self) -> None:
        if not self.bench.shared:
            return
        (caller, owner), times = Counter(self.bench.shared).most_common(1)[0]
        raise Incorrect(
            "Two threads use one connection.",
            "A connection belongs to the thread that runs its loop. Any other thread asks that one "
            "with add_callback_threadsafe. If it seemed to work, that was luck.",
            evidence=[
                f"thread {caller!r} called on a connection that thread {owner!r} was using, "
                f"{counted(times, 'time')}",
                *self._words_of_the_broker(),
            ],
            look_at=OWNER,
        )

    def _check_auto_ack(self, methods: list[Method]) -> None:
        asked = [each for each in methods if each.name in ("Basic.Consume", "Basic.Get")]
        automatic = [each for each in asked if each.method.no_ack]
        if not automatic:
            return
        left = {id_of(body) for _, body in self.left}
        lost = set(self.sent) - {work.task_id for work in self.works if work.ended} - left
        raise Incorrect(
            "With auto_ack a task counts as done when it is sent to you.",
            "A worker that dies, or stops, loses what was handed out and is not done.",
            evidence=[
                f"{automatic[0].name} came with no_ack = True",
                *[f"{counted(len(lost))} gone: neither done nor in the queue"] * bool(lost),
            ],
            look_at=BY_HAND,
        )

    def _check_handler(self, methods: list[Method]) -> None:
        headers = [each.properties.headers or {} for each in methods if each.properties]
        reasons = Counter(h["mqlab-reason"] for h in headers if "mqlab-reason" in h)
        for reason, times in reasons.most_common(1):
            raise Incorrect(
                "Your handler raised an error.",
                "The library tries such a task again, and in the end moves it to the dead-letter "
                "queue.",
                evidence=[f"{reason} ({counted(times, 'time')})"],
                look_at=LIBRARY,
            )

    def _check_ids(self) -> None:
        given = [work.task_id for work in self.works]
        if objects := [each for each in given if type(each) is not str]:
            raise Incorrect(
                "You handed work something other than an id.",
                "work needs the task_id that is in the message, a text.",
                evidence=[f"it got {type(objects[0]).__name__}: {show(objects[0])}"],
                look_at=BY_HAND,
            )
        if strange := [each for each in given if each not in self.sent]:
            raise changed_id(f"work was called with {short(strange[0])}, the id of no message")

    def _check_early(self, acked: dict[str, float]) -> None:
        if acked:
            self.check_any_work()
        ended: dict[str, float] = {}
        for work in self.works:
            if work.ended is not None:
                ended.setdefault(work.task_id, work.ended)
        early = {task: at for task, at in acked.items() if at < ended.get(task, float("inf"))}
        if early:
            raise Incorrect(
                "You acknowledged before the work was done.",
                f"{len(early)} of {len(acked)} acknowledgements came too early. A worker that dies "
                "in between loses the task: the broker no longer has it.",
                evidence=[
                    f"task {short(task)}: acknowledged at {self.since_start(at)}, "
                    + (
                        f"work ended at {self.since_start(ended[task])}"
                        if task in ended
                        else "never worked on"
                    )
                    for task, at in list(early.items())[:3]
                ],
                look_at=BY_HAND,
            )

    def _check_tags(self) -> None:
        unknown = [text for text in self._words_of_the_broker() if "unknown delivery tag" in text]
        if unknown:
            raise Incorrect(
                "You acknowledged a delivery twice, or on another channel.",
                "A delivery tag is good once, and only on the channel that it came on. The broker "
                "has closed the channel for it.",
                evidence=unknown,
                look_at=FAULTS,
            )

    def _check_given_back(self, settled: list[tuple[Method, str, float]]) -> None:
        thrown = [short(id_of(each.body)) for each, kind, _ in settled if kind == "thrown away"]
        if thrown:
            raise Incorrect(
                "You rejected tasks, and the broker threw them away.",
                "That is what basic_reject and basic_nack do with requeue=False, unless the queue "
                "has a dead-letter exchange. basic_ack says that a task is done.",
                evidence=[f"{counted(len(thrown))} rejected: {some(thrown)}"],
                look_at=BY_HAND,
            )
        ended = {work.task_id: work.ended for work in self.works if work.ended is not None}
        again = [
            short(id_of(each.body))
            for each, kind, at in settled
            if kind == "given back" and ended.get(id_of(each.body), float("inf")) < at
        ]
        if again:
            raise Incorrect(
                "You gave back tasks that you had done.",
                "basic_nack and basic_reject put a task back into the queue, and it is done once "
                "more. basic_ack says that it is done.",
                evidence=[f"{counted(len(again), 'time')}: {some(set(again))}"],
                look_at=BY_HAND,
            )

    def _check_unacknowledged(self, acked: dict[str, float]) -> None:
        end = self.returned_at - bool(self.hung)  # what it did right before it was stopped
        worked = {w.task_id for w in self.works if w.ended is not None and w.ended < end}
        if unheard := worked - set(acked):
            more = ", and while a prefetch is full of it nothing more comes." * bool(self.hung)
            left = {id_of(body) for _, body in self.left}
            raise Incorrect(
                "The broker never heard that your work is done.",
                f"{counted(len(worked))} done, {len(unheard)} of them never acknowledged. What is "
                f"not acknowledged is delivered again{more or '.'}",
                evidence=[
                    f"{len(unheard & left)} of those that you did were back in the queue when your "
                    "connection was closed"
                ],
                look_at=BY_HAND,
            )

    def _check_circles(self, delivered: Counter[str]) -> None:
        [(worst, times)] = delivered.most_common(1) or [("", 0)]
        if times > 5:
            raise Incorrect(
                "A task goes round in circles.",
                "Your worker gives it back, the broker delivers it again at once, and so on.",
                evidence=[f"task {short(worst)} was delivered {times} times"],
                look_at=FAULTS,
            )
        worked = Counter(work.task_id for work in self.works)
        [(worst, times)] = worked.most_common(1) or [("", 0)]
        if times > 1:
            raise Incorrect(
                "A task was done twice.",
                f"You called work {len(self.works)} times for {len(worked)} tasks.",
                evidence=[
                    f"task {short(worst)}: delivered {delivered[worst]} times, worked on "
                    f"{times} times"
                ],
                look_at=FAULTS,
            )

    def _check_other_methods(self) -> None:
        for name, what in (("Queue.Purge", "emptied"), ("Queue.Delete", "deleted")):
            if self.bench.count(name):
                raise Incorrect(
                    f"You {what} the queue.",
                    "Tasks that come later, or that another worker has given back, would be lost.",
                    evidence=[f"{name}: {counted(self.bench.count(name), 'time')}"],
                    look_at=FAULTS,
                )
        if sent := self.bench.count("Basic.Publish"):
            raise Incorrect(
                "You sent messages of your own.",
                "A worker takes tasks and acknowledges them. What it sends is work for somebody.",
                evidence=[f"Basic.Publish: {counted(sent, 'time')}"],
                look_at=FAULTS,
            )

    def _words_of_the_broker(self) -> list[str]:
        closes = ("Channel.Close", "Connection.Close")
        return list(
            dict.fromkeys(
                f"the broker: {each.method.reply_code} {each.method.reply_text}"
                for each in list(self.bench.wire.methods)
                if each.name in closes and not each.from_client
            )
        )

    # ---- what is wrong in an answer

    def check_any_work(self) -> None:
        """Raise Incorrect if the answer has not called ``work`` at all."""
        if not self.works:
            acked = self.bench.count("Basic.Ack")
            raise Incorrect(
                "Nobody did the work.",
                "Your function has not called work(task_id) once.",
                evidence=[
                    f"acknowledgements: {acked}",
                    *(self.hung.evidence if self.hung else ()),
                ],
                look_at=BY_HAND,
            )

    def check_rest(self, look_at: str) -> None:
        """Raise Incorrect unless what was not done is in the queue: as it was, once, in order."""
        done = {work.task_id for work in self.works if work.ended is not None}
        left = [id_of(body) for _, body in self.left]
        numbers = f"{len(self.sent)} sent, {len(done)} done, {len(left)} in the queue"
        if lost := set(self.sent) - done - set(left):
            raise Incorrect(
                "Tasks are gone.",
                "They were neither done nor given back.",
                evidence=[numbers, f"gone: {some(map(short, lost))}"],
                look_at=look_at,
            )
        changed = [
            task_id
            for task_id, (properties, body) in zip(left, self.left, strict=True)
            if self.sent.get(task_id) != body
            or (properties.message_id, properties.delivery_mode) != (task_id, 2)
        ]
        if changed or len(set(left)) < len(left):
            raise Incorrect(
                "What you gave back is not what you got.",
                "Each task that is not done goes back once, and unchanged. The broker sees to that "
                "when you nack it, or close the connection without an acknowledgement.",
                evidence=[numbers, f"changed, or there twice: {some(map(short, changed or left))}"],
                look_at=look_at,
            )
        if left != [task_id for task_id in self.sent if task_id in set(left)]:
            raise Incorrect(
                "You gave the tasks back in another order.",
                "What was first in the queue should be first again.",
                evidence=[numbers, f"now first: {short(left[0])}"],
                look_at=look_at,
            )

    def check_value(self, task: str, at_least: int | None = None) -> None:
        """Raise Incorrect unless the answer returned the ids of just what it did.

        With ``at_least``, it may leave out what it did beyond that number. ``task`` is the heading
        of the exercise, which says what is to be returned.
        """
        value = self.called.value if self.called else None
        if not isinstance(value, Collection) or isinstance(value, (str, bytes, dict)):
            raise Incorrect(
                "Your function does not return a list of ids.",
                f"It returned {show(value)}.",
                evidence=[f"it did {counted(len(self.done))}"],
                look_at=task,
            )
        if kinds := {type(each).__name__ for each in value if not isinstance(each, str)}:
            raise Incorrect(
                "Your list holds something other than ids.",
                "An id is text: the task_id of a message.",
                evidence=[f"it holds {some(kinds)}"],
                look_at=task,
            )
        ids = Counter(str.__str__(each) for each in value)
        if strange := [each for each in ids if each not in self.sent]:
            raise changed_id(f"you returned {short(strange[0])}, the id of no message")
        double = [each for each, times in ids.items() if times > 1]
        claimed, kept = set(ids) - self.done, self.done - set(ids)
        if claimed or double:
            raise Incorrect(
                "Your list has more in it than was done.",
                f"You returned {counted(len(value), 'id')}, and did {counted(len(self.done))}.",
                evidence=[f"too much: {some(short(each) for each in claimed or double)}"],
                look_at=task,
            )
        if kept and (at_least is None or len(ids) < at_least):
            raise Incorrect(
                "You did more than your list says.",
                f"You did {counted(len(self.done))}, and returned {counted(len(value), 'id')}. "
                "Whoever waits for the others will never hear of them.",
                evidence=[f"done, and not in your list: {some(short(each) for each in kept)}"],
                look_at=task,
            )


def changed_id(evidence: str) -> Incorrect:
    """The id of a task is not the one in its message."""
    return Incorrect(
        "The id has changed on the way.",
        "Whoever sent the task asks with the id that is in the message, and will not find it.",
        evidence=[evidence],
        look_at=BY_HAND,
    )


def settlements(methods: list[Method]) -> list[tuple[Method, str, float]]:
    """Each delivery that was settled: how ("ack", "given back", "thrown away"), and when."""
    held: dict[tuple[int, int], dict[int, Method]] = {}
    found = []
    for each in methods:
        tags = held.setdefault((each.connection, each.channel), {})
        if each.name == "Channel.Open":
            tags.clear()
        elif each.name in ("Basic.Deliver", "Basic.GetOk"):
            tags[each.method.delivery_tag] = each
        elif each.name in ("Basic.Ack", "Basic.Nack", "Basic.Reject") and each.from_client:
            tag, multiple = each.method.delivery_tag, getattr(each.method, "multiple", False)
            back = "given back" if getattr(each.method, "requeue", False) else "thrown away"
            for settled in [t for t in tags if t == tag or (multiple and (t <= tag or tag == 0))]:
                kind = "ack" if each.name == "Basic.Ack" else back
                found.append((tags.pop(settled), kind, each.at))
    return found


def id_of(body: bytes) -> str:
    """The task_id in a message; of what is no task, its beginning."""
    try:
        return str(json.loads(body)["task_id"])
    except (ValueError, TypeError, KeyError):
        return show(body, 40)


def short(task_id: Any) -> str:
    """An id as evidence."""
    return task_id[:20] if isinstance(task_id, str) else show(task_id)
