"""What one queue is doing, as plain data: its depth, its workers' tasks, rates, what went wrong.

A ``QueueWatch`` asks the broker about the queue, never waits for the answer, and puts it together
with what the workers it knows have told. Drawing is left to ``dashboard``, the work to ``worker``
and ``consumer``. Watching declares nothing: the queue may be there or not.
"""

from __future__ import annotations

import contextlib
import queue as queues
import threading
import time
import urllib.error
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mqlab.broker import management
from mqlab.connection import Connection
from mqlab.consumer import BackgroundConsumer, running_consumers
from mqlab.dashboard.process import WorkerProcess
from mqlab.errors import MqlabError
from mqlab.records import TaskRecord
from mqlab.settings import Settings

WINDOW_S = 60.0
"""Seconds that a snapshot looks back."""
ANSWER_S = 0.05
"""Seconds that a look waits for the broker's answer; after that the one before has to do."""
RATE_S = 5.0
"""Seconds over which a rate is taken."""
SILENT_S = 3.0
"""Seconds without an answer after which the broker is said not to answer."""
MANAGEMENT_S = 2.0
"""Seconds that the management page has for an answer."""
LISTED_S = 7.0
"""Seconds until the management page has surely heard of a connection: it is told every 5."""
TASKS_SHOWN = 200
"""The newest tasks of a lane; more cannot be told apart in 60 s anyway."""

Depth = tuple[float, int | None, int | None]


@dataclass(frozen=True, slots=True)
class Lane:
    """One worker: its state, and its tasks of the last 60 s, oldest first, the running one last.

    ``expected_s`` is how long a task takes, in seconds, where that is known.
    """

    name: str
    state: str
    tasks: tuple[TaskRecord, ...]
    expected_s: float | None

    @property
    def working(self) -> TaskRecord | None:
        """The task that is being worked on now."""
        last = self.tasks[-1] if self.tasks else None
        return last if last is not None and last.finished_at is None else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was known of the queue at one moment. Times are seconds since 1970.

    ``problem`` is empty when the broker answers; then ``ready`` is None if there is no such queue.
    ``unacked`` is None if nobody can tell, and not exact if it is the management page's number,
    which lags by some seconds. ``elsewhere`` counts the consumers of the queue that are neither
    the dashboard's nor in this process. ``depth`` is (time, ready, unacked) each, oldest first.
    """

    at: float
    queue: str
    problem: str
    ready: int | None
    unacked: int | None
    unacked_is_exact: bool
    elsewhere: int
    done: int
    sent_per_s: float | None
    done_per_s: float | None
    lanes: tuple[Lane, ...]
    depth: tuple[Depth, ...]
    troubles: tuple[tuple[float, str], ...]

    @property
    def workers(self) -> int:
        """How many workers are at the queue now, those of other processes included."""
        return sum(lane.state in ("running", "stopping") for lane in self.lanes) + self.elsewhere

    @property
    def is_busy(self) -> bool:
        """Whether something changes from one moment to the next."""
        changing = any(
            lane.working or lane.state in ("starting", "stopping") for lane in self.lanes
        )
        return bool(changing or self.unacked or self.sent_per_s or self.done_per_s)


@dataclass(slots=True)
class _Known:
    """A consumer that is followed, and what was told of it so far."""

    consumer: BackgroundConsumer | WorkerProcess
    name: str
    state: str = ""
    settled: TaskRecord | None = None
    redelivered_at: float = 0.0
    done: int = 0
    dead: int = 0
    last_words: str = ""


class Errands:
    """One thread that does what it is given, one after the other, so that nobody has to wait."""

    def __init__(self, name: str) -> None:
        self._errands: queues.SimpleQueue[Callable[[], object] | None] = queues.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, errand: Callable[[], object]) -> None:
        """Have ``errand`` done, soon. It must not raise."""
        self._errands.put(errand)

    def close(self, timeout_s: float) -> None:
        """Finish what was given, and end."""
        self._errands.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None:
            errand()


class QueueWatch:
    """Watches one queue: ``look`` gives a Snapshot. ``look`` and ``close`` are one thread's."""

    def __init__(self, queue: str, settings: Settings) -> None:
        self.queue, self.settings = queue, settings
        self.workers: list[WorkerProcess] = []  # any thread appends
        self._troubles: deque[tuple[float, str]] = deque(maxlen=8)
        self._noting = threading.Lock()  # any thread notes
        self._connection: Connection | None = None
        self._error: MqlabError | None = None
        self._open_at = 0.0
        # Written in the connection's I/O thread, each in one step: what the broker has answered.
        self._answer: tuple[int, int] | None = None  # ready, consumers; None: there is no queue
        self._refused_at, self._refusal = 0.0, ""
        self._asked_at = 0.0  # while an answer is awaited
        self._answered = threading.Event()
        self._problem = ""
        self._known: list[_Known] = []
        self._base_done = self._base_dead = 0  # of consumers that are not followed any more
        self._depth: list[Depth] = []
        self._totals: deque[tuple[float, int, int]] = deque()
        self._management = Errands(f"mqlab management of {queue}")
        self._elsewhere_since = self._managed_at = 0.0
        self._managed: dict[str, Any] | None = None
        self._managing = False

    def note(self, text: str) -> None:
        """Remember something that went wrong; what is said again takes no second line."""
        text = text[:1].upper() + text[1:]
        with self._noting:
            if self._troubles and self._troubles[-1][1] == text:
                self._troubles.pop()
            self._troubles.append((time.time(), text))

    def look(self) -> Snapshot:
        """Ask the broker again, and tell what is known now."""
        now = time.time()
        self._ask(now)
        problem = self._find_problem(now)
        if problem != self._problem:
            self.note(problem or f"The broker at {self.settings.address} answers.")
            self._problem = problem
        self._follow()
        answer = None if problem else self._answer
        ready, consumers = answer or (None, 0)
        elsewhere = self._count_elsewhere(now, consumers)
        here = sum(known.consumer.unacked for known in self._known)
        unacked: int | None = None
        sent_per_s = done_per_s = None
        if elsewhere:
            unacked, sent_per_s, done_per_s = self._ask_management(now)
            unacked = None if unacked is None else max(unacked, here)  # the page may not know yet
        elif not problem:
            unacked = here
            sent_per_s, done_per_s = self._find_rates(now, (ready or 0) + here)
        if elsewhere or problem:
            self._totals.clear()  # what happened meanwhile is not known
        self._note_depth((now, None, None) if problem else (now, ready or 0, unacked))
        return Snapshot(
            at=now,
            queue=self.queue,
            problem=problem,
            ready=ready,
            unacked=unacked,
            unacked_is_exact=not elsewhere,
            elsewhere=elsewhere,
            done=self._base_done + sum(known.done for known in self._known),
            sent_per_s=sent_per_s,
            done_per_s=done_per_s,
            lanes=tuple(lane for known in self._known for lane in _lanes(known, now)),
            depth=tuple(self._depth),
            troubles=tuple(self._troubles),
        )

    def cut(self) -> None:
        """Have the broker close every connection that consumes from the queue now. Returns at once.

        What came of it is noted. The management page hears of a new consumer up to 5 s late, so
        this goes on until it has listed as many as the broker has.
        """
        self._management.do(self._cut)

    def close(self) -> None:
        """End the connection, the thread, and the workers, whose tasks go back to the queue."""
        for worker in self.workers:
            worker.close()
        if self._connection is not None:
            self._connection.close(timeout_s=1.0)
        self._management.close(timeout_s=LISTED_S + 3)
        for worker in self.workers:
            worker.join(timeout_s=5.0)

    # ---- the broker, by AMQP

    def _ask(self, now: float) -> None:
        connection = self._connection
        if connection is None or connection.is_closing:
            if now >= self._open_at:
                self._open()
        elif now - self._refused_at >= 1.0:  # the broker logs each question that it refuses
            self._answered.clear()
            connection.run(self._declare)
            # It takes a millisecond or two. An older answer would not fit what the workers tell.
            self._answered.wait(ANSWER_S)

    def _open(self) -> None:
        self._asked_at = 0.0
        connection = self._connection = Connection(
            self.settings,
            name=f"mqlab dashboard of {self.queue}",
            on_channel=self._on_channel,
            on_lost=self._on_lost,
            on_ended=lambda _error: None,
        )
        try:
            connection.open(timeout_s=5.0)
            self._error = None
        except MqlabError as error:
            self._connection, self._error = None, error
        self._open_at = time.time() + 1.0

    def _on_channel(self, channel: Any) -> None:
        channel.add_on_close_callback(self._on_channel_close)
        assert self._connection is not None
        self._connection.mark_ready()

    def _declare(self) -> None:
        channel = self._connection.channel if self._connection is not None else None
        if channel is not None and channel.is_open and not self._asked_at:
            self._asked_at = time.time()
            channel.queue_declare(self.queue, passive=True, callback=self._on_declared)

    def _on_declared(self, frame: Any) -> None:
        self._asked_at, self._refused_at, self._refusal = 0.0, 0.0, ""
        self._answer = frame.method.message_count, frame.method.consumer_count
        self._answered.set()

    def _on_channel_close(self, _channel: Any, reason: Any) -> None:
        code = getattr(reason, "reply_code", 0)
        if code in (403, 404, 405):  # not allowed, no such queue, exclusive to another connection
            self._answer, self._refused_at = None, time.time()
            self._refusal = "" if code == 404 else str(reason.reply_text)
            self._answered.set()

    def _on_lost(self) -> None:
        self._asked_at = 0.0

    def _find_problem(self, now: float) -> str:
        """What keeps the broker from answering, and the next command; empty if nothing does."""
        connection, error = self._connection, self._error
        if connection is not None:
            asked_at = self._asked_at
            if asked_at and now - asked_at > SILENT_S:
                return f"The broker at {self.settings.address} is connected, and does not answer."
            if self._refusal:
                return f"The broker refused the question about this queue: {self._refusal}"
            lost = not connection.is_ready and now - self._refused_at > 2.0
            error = connection.error or (connection.last_error if lost else None)
        if error is None:
            return ""
        return f"{error.what} Next: {error.fix}" if error.fix else error.what

    def _note_depth(self, depth: Depth) -> None:
        kept = self._depth
        if len(kept) > 1 and kept[-1][1:] == kept[-2][1:] == depth[1:]:
            kept.pop()  # of a level stretch, both ends are enough
        kept.append(depth)
        while len(kept) > 1 and kept[1][0] < depth[0] - WINDOW_S:
            kept.pop(0)

    # ---- the workers that are known

    def _follow(self) -> None:
        """Find new consumers, note what became of each, and forget those that are over."""
        followed = {id(known.consumer) for known in self._known}
        here: Sequence[BackgroundConsumer | WorkerProcess]
        here = [*self.workers, *running_consumers(self.queue, self.settings)]
        for consumer in here:
            if id(consumer) not in followed:
                in_process = isinstance(consumer, BackgroundConsumer)
                name = f"{consumer.name} in this notebook" if in_process else consumer.name
                self._known.append(_Known(consumer, name))
                if in_process:
                    self._totals.clear()  # it may have done much before
        for known in list(self._known):
            self._note_changes(known)
            over = known.state in ("stopped", "killed", "failed")
            if over and not any(_lane.tasks for _lane in _lanes(known, time.time())):
                self._base_done += known.done
                self._base_dead += known.dead
                self._known.remove(known)
                if isinstance(known.consumer, WorkerProcess):
                    self.workers.remove(known.consumer)

    def _count_elsewhere(self, now: float, consumers: int) -> int:
        running = sum(known.state == "running" for known in self._known)
        elsewhere = max(0, consumers - running)
        # A worker that has just started is the broker's consumer before it has told us so.
        self._elsewhere_since = (self._elsewhere_since or now) if elsewhere else 0.0
        return elsewhere if now - self._elsewhere_since > 1.0 else 0

    def _note_changes(self, known: _Known) -> None:
        consumer, was = known.consumer, known.state
        if isinstance(consumer, BackgroundConsumer):
            status = consumer.status()
            known.state, known.done, known.dead = status.state, status.done, status.dead
            known.last_words = status.error.what if status.error else ""
        else:
            known.state, known.done, known.dead = consumer.state, consumer.done, consumer.dead
            known.last_words = consumer.last_words
        if known.state != was and (text := _told(known, was)):
            self.note(text)
        settled: list[TaskRecord] = []
        for record in reversed(consumer.records):
            if record is known.settled or len(settled) >= 20:
                break
            settled.append(record)
        for record in reversed(settled):
            self._note_outcome(known.name, record, killed=known.state == "killed")
            known.settled = record
        for record in consumer.working:
            started_at = record.started_at or 0.0
            if record.redelivered and started_at > known.redelivered_at:
                known.redelivered_at = started_at
                self.note(f"{_name(record)} came again (redelivered), to {known.name}.")

    def _note_outcome(self, name: str, record: TaskRecord, *, killed: bool) -> None:
        if record.outcome == "dead":
            self.note(f"{_name(record)} is in {self.queue}.dead now: {record.error}")
        elif record.outcome == "retry":
            self.note(f"{_name(record)} failed in {name}, and is tried again: {record.error}")
        elif record.outcome == "lost" and killed:
            self.note(f"{_name(record)} was not acknowledged, so it went back to the queue.")
        elif record.outcome == "lost":
            self.note(
                f"{name} lost its connection before the ack of {_name(record)}: it comes again."
            )

    def _find_rates(self, now: float, waiting: int) -> tuple[float, float]:
        """Tasks sent and done per second. What was sent is what is there plus what was settled."""
        done = self._base_done + sum(known.done for known in self._known)
        dead = self._base_dead + sum(known.dead for known in self._known)
        totals = self._totals
        totals.append((now, waiting + done + dead, done))
        while len(totals) > 1 and totals[1][0] <= now - RATE_S:
            totals.popleft()
        (then, sent_then, done_then), (_, sent_now, done_now) = totals[0], totals[-1]
        passed_s = max(now - then, 1.0)
        return max(0, sent_now - sent_then) / passed_s, max(0, done_now - done_then) / passed_s

    # ---- the broker, by its management page

    def _ask_management(self, now: float) -> tuple[int | None, float | None, float | None]:
        """Unacked, sent/s and done/s as the page said last. Asks again at most once a second."""
        if now - self._managed_at >= 1.0 and not self._managing:
            self._managing, self._managed_at = True, now
            self._management.do(self._fetch)
        found = self._managed
        if found is None:
            return None, None, None
        stats = found.get("message_stats", {})
        sent, done = (stats.get(f"{n}_details", {}).get("rate", 0.0) for n in ("publish", "ack"))
        return found.get("messages_unacknowledged"), sent, done

    def _fetch(self) -> None:
        found: dict[str, Any] | None = None
        with contextlib.suppress(MqlabError):
            found = _ask_page(self.settings, self._path())
        self._managed, self._managing = found, False

    def _cut(self) -> None:
        answer = self._answer
        expected = answer[1] if answer else 0
        if not expected:
            self.note("There is no connection to cut: nobody consumes from this queue.")
            return
        cut: set[str] = set()
        consumers = 0
        deadline = time.monotonic() + LISTED_S
        try:
            while consumers < expected and time.monotonic() < deadline:
                found = _ask_page(self.settings, self._path())
                channels = [c["channel_details"] for c in found.get("consumer_details", [])]
                names = [c["connection_name"] for c in channels if "connection_name" in c]
                consumers += sum(name not in cut for name in names)
                for name in set(names) - cut:
                    path = f"connections/{quote(name, safe='')}"
                    _ask_page(self.settings, path, "DELETE")
                    cut.add(name)
                if consumers < expected:
                    time.sleep(0.25)
        except MqlabError as error:
            self.note(f"Nothing was cut. {error.what} Next: {error.fix}")
            return
        self.note(
            f"The broker was told to close {_count(cut, 'connection')} that consumed from this "
            f"queue. What was unacked on {'it' if len(cut) == 1 else 'them'} is ready again."
        )

    def _path(self) -> str:
        return f"queues/{quote(self.settings.virtual_host, safe='')}/{quote(self.queue, safe='')}"


def _ask_page(settings: Settings, path: str, method: str = "GET") -> Any:
    """What the management page answers; empty if it knows no such thing. Raises MqlabError."""
    try:
        return management.ask(settings, path, method, timeout_s=MANAGEMENT_S)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return {}
        raise MqlabError(
            f"The management page refused this ({error.code} {error.reason}).",
            fix=f"give user {settings.username!r} the tag management on the broker",
        ) from error
    except (OSError, ValueError) as error:
        raise MqlabError(
            f"The management page at {settings.management_url} does not answer.",
            fix="set MQLAB_MANAGEMENT_URL to its address, and restart the kernel",
        ) from error


def _lanes(known: _Known, now: float) -> list[Lane]:
    """The lanes of a consumer: one for each of its workers that has had a task, at least one."""
    consumer = known.consumer
    tasks: dict[str, list[TaskRecord]] = {}
    settled = consumer.records[-TASKS_SHOWN:]
    for record in (*settled, *consumer.working):
        if record.started_at and (record.finished_at or now) > now - WINDOW_S:
            tasks.setdefault(record.worker, []).append(record)
    expected_s = consumer.expected_s if isinstance(consumer, WorkerProcess) else None
    if len(tasks) < 2:
        only = tuple(next(iter(tasks.values()), ()))
        return [Lane(known.name, known.state, only, expected_s)]
    return [
        Lane(f"{worker} of {known.name}", known.state, tuple(records), expected_s)
        for worker, records in sorted(tasks.items())
    ]


def _told(known: _Known, was: str) -> str:
    """The sentence for a change of state; empty for one that is as it should be."""
    if known.state == "killed":
        return f"{known.name} was killed: its connection ended with it."
    if known.state == "failed":
        return f"{known.name} ended by itself: {known.last_words or 'it left no word'}"
    if known.state == "reconnecting":
        return f"{known.name} lost its connection, and connects again by itself."
    if was == "reconnecting" and known.state == "running":
        return f"{known.name} is connected again."
    return ""


def _name(record: TaskRecord) -> str:
    return f"Task {str(record.data)[:24]!r}" if record.task_id else "A message that is no task"


def _count(things: set[str], noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"
