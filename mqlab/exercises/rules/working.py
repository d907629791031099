"""What can be wrong with any worker, and the evidence for it.

``WorkerRun`` puts tasks into a queue and gives an answer the slow work, so it knows what was really
done and when. It reads off the wire what was delivered and acknowledged, and takes what is left
from the queue. Its headings are those of page 04.
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

    # ---- what can be wrong with any worker

    def check_worker(self, *, all_acked: bool = True) -> None:
        """Raise Incorrect for what no worker may do, the most telling first.

        Without ``all_acked``, work that was not acknowledged is no fault.
        """
        methods = list(self.bench.wire.methods)
        delivered = Counter(
            id_of(each.body) for each in methods if each.name in ("Basic.Deliver", "Basic.GetOk")
        )
        if not delivered and self.done & set(self.sent):
            raise NotChecked(
                "your function received its tasks in a way that the check cannot see",
                "use the connect that your function is given, or BackgroundConsumer(queue=queue)",
            )
        self._check_queue(methods)
        self._check_threads()
        self._check_auto_ack(methods)
        self._check_handler(methods)
        settled = settlements(methods)
        acked = {id_of(each.body): at for each, kind, at in reversed(settled) if kind == "ack"}
        self._check_ids()
        self._check_other_methods()
        self._check_early(acked)
        self._check_rejected(settled)
        if all_acked:
            self._check_unacknowledged(acked)
        self._check_repeated(delivered)
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
        asked = {m.method.queue for m in methods if m.name in names and m.from_client}
        if asked - {""} and self.queue not in asked:
            raise wrong(
                "You work on another queue than the one that you are given.",
                "Use the argument queue, not a name from the page: the check has its own queue.",
                BY_HAND,
                f"given: {self.queue}, used: {some(map(repr, asked))}",
                *self._words_of_the_broker(),
            )

    def _check_threads(self) -> None:
        for (caller, owner), times in Counter(self.bench.shared).most_common(1):
            raise wrong(
                "Two threads use one connection.",
                "A connection belongs to the thread that runs its loop. Other threads hand that "
                "one a function with add_callback_threadsafe. If it seemed to work, it was luck.",
                OWNER,
                f"thread {caller!r} called on a connection that thread {owner!r} was using, "
                f"{counted(times, 'time')}",
                *self._words_of_the_broker(),
            )

    def _check_auto_ack(self, methods: list[Method]) -> None:
        asked = [each for each in methods if each.name in ("Basic.Consume", "Basic.Get")]
        if automatic := [each for each in asked if each.method.no_ack]:
            left = {id_of(body) for _, body in self.left}
            lost = set(self.sent) - {work.task_id for work in self.works if work.ended} - left
            raise wrong(
                "With auto_ack a task counts as done when it is sent to you.",
                "A worker that dies, or stops, loses what it was sent and has not done.",
                BY_HAND,
                f"{automatic[0].name} came with no_ack = True",
                f"neither done nor in the queue: {counted(len(lost))}",
            )

    def _check_handler(self, methods: list[Method]) -> None:
        headers = [each.properties.headers or {} for each in methods if each.properties]
        reasons = Counter(h["mqlab-reason"] for h in headers if "mqlab-reason" in h)
        for reason, times in reasons.most_common(1):
            raise wrong(
                "Your handler raised an error.",
                "The library tries such a task again, and in the end moves it to the dead-letter "
                "queue.",
                LIBRARY,
                f"{reason} ({counted(times, 'time')})",
            )

    def _check_ids(self) -> None:
        given = [work.task_id for work in self.works]
        if objects := [each for each in given if type(each) is not str]:
            raise wrong(
                "You handed work something other than an id.",
                "work needs the task_id that is in the message, a text.",
                BY_HAND,
                f"it got {type(objects[0]).__name__}: {show(objects[0])}",
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
        if early := {task for task, at in acked.items() if at < ended.get(task, float("inf"))}:
            raise wrong(
                "You acknowledged before the work was done.",
                "A worker that dies in between loses the task: the broker no longer has it.",
                BY_HAND,
                f"{len(early)} of {counted(len(acked), 'acknowledgement')} came too early",
                *(
                    f"task {short(task)}: acknowledged at {self.since_start(acked[task])}, work "
                    f"ended {'at ' + self.since_start(ended[task]) if task in ended else 'never'}"
                    for task in sorted(early)[:3]
                ),
            )

    def _check_rejected(self, settled: list[tuple[Method, str, float]]) -> None:
        if unknown := [text for text in self._words_of_the_broker() if "delivery tag" in text]:
            raise wrong(
                "You acknowledged a delivery twice, or on another channel.",
                "A delivery tag is valid once, and only on the channel of the delivery. The broker "
                "has closed the channel because of it.",
                FAULTS,
                *unknown,
            )
        thrown = [short(id_of(each.body)) for each, kind, _ in settled if kind == "thrown away"]
        ended = {work.task_id: work.ended for work in self.works if work.ended is not None}
        again = [
            short(id_of(each.body))
            for each, kind, at in settled
            if kind == "given back" and ended.get(id_of(each.body), float("inf")) < at
        ]
        if thrown or again:
            raise wrong(
                "You rejected tasks instead of acknowledging them.",
                "Only basic_ack says that a task is done. With requeue=False, basic_reject and "
                "basic_nack drop it, unless the queue has a dead-letter exchange; with "
                "requeue=True it is done once more.",
                BY_HAND,
                f"dropped: {some(thrown) or 'none'}; returned after their work: "
                f"{some(set(again)) or 'none'}",
            )

    def _check_unacknowledged(self, acked: dict[str, float]) -> None:
        end = self.returned_at - bool(self.hung)  # what it did right before it was stopped
        worked = {w.task_id for w in self.works if w.ended is not None and w.ended < end}
        if unheard := worked - set(acked):
            left = {id_of(body) for _, body in self.left}
            raise wrong(
                "The broker never heard that your work is done.",
                "What is not acknowledged is delivered again. While a prefetch is full of it, "
                "nothing more arrives.",
                BY_HAND,
                f"{counted(len(worked))} done, {len(unheard)} of them not acknowledged, "
                f"{len(unheard & left)} of those in the queue again",
            )

    def _check_repeated(self, delivered: Counter[str]) -> None:
        worked = Counter(work.task_id for work in self.works)
        for task_id in self.sent:
            if delivered[task_id] > 5 or worked[task_id] > 1:
                raise wrong(
                    "Your worker repeats a task.",
                    "Either work is called twice for it, or it goes round in circles: your worker "
                    "returns it, and the broker delivers it again at once.",
                    FAULTS,
                    f"task {short(task_id)}: delivered {counted(delivered[task_id], 'time')}, "
                    f"worked on {counted(worked[task_id], 'time')}",
                )

    def _check_other_methods(self) -> None:
        names = ("Queue.Purge", "Queue.Delete", "Basic.Publish")
        if used := [name for name in names if self.bench.count(name)]:
            raise wrong(
                "Your worker does more than take tasks and acknowledge them.",
                "Other workers' tasks are in the queue, too, and more may come. What you purge or "
                "delete is lost, and what you send is new work for someone.",
                FAULTS,
                *(f"{name}: {counted(self.bench.count(name), 'time')}" for name in used),
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

    # ---- what can be wrong with an answer

    def check_any_work(self) -> None:
        """Raise Incorrect if the answer has not called ``work`` at all."""
        if not self.works:
            raise wrong(
                "Nobody did the work.",
                "Your function has not called work(task_id) once.",
                BY_HAND,
                f"acknowledgements: {self.bench.count('Basic.Ack')}",
                *(self.hung.evidence if self.hung else ()),
            )

    def check_rest(self, look_at: str) -> None:
        """Raise Incorrect unless what was not done is in the queue: as it was, once, in order."""
        done = {work.task_id for work in self.works if work.ended is not None}
        left = [id_of(body) for _, body in self.left]
        numbers = f"{len(self.sent)} sent, {len(done)} done, {len(left)} in the queue"
        if lost := set(self.sent) - done - set(left):
            raise wrong(
                "Tasks are gone.",
                "They were neither done nor returned to the queue.",
                look_at,
                numbers,
                f"gone: {some(map(short, lost))}",
            )
        changed = [
            task_id
            for task_id, (properties, body) in zip(left, self.left, strict=True)
            if self.sent.get(task_id) != body
            or (properties.message_id, properties.delivery_mode) != (task_id, 2)
        ]
        if changed or left != [task_id for task_id in self.sent if task_id in set(left)]:
            raise wrong(
                "What you returned to the queue is not what you got.",
                "Each task that is not done goes back once, unchanged, and in its old order. The "
                "broker sees to that when you nack it, or close the connection without "
                "acknowledging it.",
                look_at,
                numbers,
                f"changed: {some(map(short, changed)) or 'none'}; now first: {short(left[0])}",
            )

    def check_value(self, task: str, at_least: int | None = None) -> None:
        """Raise Incorrect unless the answer returned the ids of exactly what it did.

        With ``at_least``, it may leave out what it did beyond that number. ``task`` is the heading
        of the exercise, which says what to return.
        """
        value = self.called.value if self.called else None
        is_list = isinstance(value, Collection) and not isinstance(value, (str, bytes, dict))
        if not is_list or not all(isinstance(each, str) for each in value):  # type: ignore[union-attr]
            raise wrong(
                "Your function does not return a list of ids.",
                "An id is text: the task_id of a message.",
                task,
                f"it returned {show(value)}, and did {counted(len(self.done))}",
            )
        ids = Counter(str.__str__(each) for each in value)  # type: ignore[union-attr]
        strange, kept = [each for each in ids if each not in self.sent], self.done - set(ids)
        if strange and kept:
            raise changed_id(f"you returned {short(strange[0])}, the id of no message")
        if claimed := [each for each in ids if ids[each] > 1 or each not in self.done]:
            raise wrong(
                "Your list has more in it than was done.",
                "It should hold the tasks of this call that are done, each once.",
                task,
                f"returned: {counted(ids.total(), 'id')}, done: {counted(len(self.done))}",
                f"too much: {some(map(short, claimed))}",
            )
        if kept and (at_least is None or len(ids) < at_least):
            raise wrong(
                "You did more than your list says.",
                "Whoever waits for the others will never hear of them.",
                task,
                f"done: {counted(len(self.done))}, returned: {counted(ids.total(), 'id')}",
                f"done, and not in your list: {some(map(short, kept))}",
            )


def wrong(headline: str, message: str, look_at: str, *evidence: str) -> Incorrect:
    """An Incorrect, in the order in which it is read."""
    return Incorrect(headline, message, evidence=evidence, look_at=look_at)


def changed_id(evidence: str) -> Incorrect:
    """The id of a task is not the one in its message."""
    return wrong(
        "The id has changed on the way.",
        "Whoever sent the task asks with the id that is in the message, and will not find it.",
        BY_HAND,
        evidence,
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
