"""What one queue is doing, as plain data: its depth, its workers' tasks, rates, and trouble.

A ``QueueWatch`` combines the broker's counts with the events of the workers that it can hear: the
consumers in this process, and the worker processes that it started. ``drawing`` draws the result.
Watching declares nothing, so the queue need not exist.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from mqlab.consumer import BackgroundConsumer, running_consumers
from mqlab.dashboard.ask import ASK_AGAIN_S, Probe, QueueList
from mqlab.dashboard.process import WorkerProcess, shorten
from mqlab.events import Event, subscribe
from mqlab.records import TaskRecord
from mqlab.settings import Settings

WINDOW_S = 60.0
"""Seconds that a snapshot looks back."""
RATE_S = 5.0
"""Seconds over which a rate is averaged."""
TRANSIT_S = 2.0
"""Seconds that a message may take from the broker to a worker's report, or back to the queue."""
LANE_TASKS = 200
"""The newest tasks of a lane that are kept. In 60 s more could not be told apart."""
DEAD_S = 10.0
"""Seconds until the broker is asked again for a dead queue that did not exist."""
ENDED = ("stopped", "killed", "failed")

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

    ``problem`` is empty while the broker responds; then ``ready`` is None if the queue does not
    exist. ``elsewhere`` counts the consumers in other notebooks and terminals: their tasks are not
    known, so ``unacked`` is then the management API's number, which lags by some seconds
    (``unacked_is_exact`` is False), or None without it. ``done``, ``retried``, ``dead`` and
    ``lost`` count what the other workers have settled; ``acked`` is the broker's own count of
    acks, if a consumer is elsewhere. ``in_dead_queue`` is None if there is no dead queue.
    ``depth`` holds (time, ready, unacked), oldest first.
    """

    at: float
    queue: str
    problem: str
    ready: int | None
    unacked: int | None
    unacked_is_exact: bool
    elsewhere: int
    done: int
    retried: int
    dead: int
    lost: int
    acked: int | None
    in_dead_queue: int | None
    sent_per_s: float | None
    done_per_s: float | None
    lanes: tuple[Lane, ...]
    depth: tuple[Depth, ...]
    troubles: tuple[tuple[float, str], ...]

    @property
    def workers(self) -> int:
        """How many workers the queue has now, including those of other processes."""
        return sum(lane.state in ("running", "stopping") for lane in self.lanes) + self.elsewhere

    @property
    def is_busy(self) -> bool:
        """Whether something changes from one moment to the next."""
        changing = any(
            lane.working or lane.state in ("starting", "stopping") for lane in self.lanes
        )
        return bool(changing or self.unacked or self.sent_per_s or self.done_per_s)


class _Worker:
    """A worker process or a consumer of this process, and its tasks of the last minute."""

    def __init__(self, source: BackgroundConsumer | WorkerProcess) -> None:
        self.source, self.ended_at, self.is_away = source, 0.0, False
        here = "" if isinstance(source, WorkerProcess) else " in this notebook"
        self.name = source.name + here
        self.state, self.unacked, self.prefetch = "starting", 0, 1
        self.counts: Counter[str] = Counter()
        self._tasks: dict[str, deque[TaskRecord]] = {}  # by thread, the running one last

    def update(self, now: float) -> None:
        """Read its state and its counts, which are exact however fast the tasks are."""
        source = self.source
        if isinstance(source, WorkerProcess):
            self.state, self.unacked, self.counts = source.state, source.unacked, source.counts
        else:
            status = source.status()
            self.state, self.unacked, self.prefetch = status.state, source.unacked, status.workers
            self.counts = Counter(
                done=status.done, retry=status.retried, dead=status.dead, lost=status.lost
            )
        if self.state in ENDED:
            self.ended_at = self.ended_at or now

    def add(self, record: TaskRecord) -> None:
        """Remember a task that has started or is settled."""
        if record.started_at is None:
            return
        tasks = self._tasks.setdefault(record.worker, deque(maxlen=LANE_TASKS))
        for place, known in enumerate(reversed(tasks), 1):
            if known.started_at == record.started_at:
                tasks[-place] = record
                return
            if place > 2:  # a thread works on one task at a time
                break
        tasks.append(record)

    def lanes(self, now: float) -> list[Lane]:
        """One lane for each of its threads that has had a task, but at least one."""
        for tasks in self._tasks.values():
            while tasks and (tasks[0].finished_at or now) < now - WINDOW_S:
                tasks.popleft()
        expected_s = self.source.expected_s if isinstance(self.source, WorkerProcess) else None
        threads = sorted((name, tuple(tasks)) for name, tasks in self._tasks.items() if tasks)
        if len(threads) < 2:
            return [Lane(self.name, self.state, threads[0][1] if threads else (), expected_s)]
        return [
            Lane(f"{thread} of {self.name}", self.state, tasks, expected_s)
            for thread, tasks in threads
        ]


class QueueWatch:
    """Watches one queue: ``look`` returns a Snapshot. One thread calls ``look`` and ``close``."""

    def __init__(self, queue: str, settings: Settings, probe: Probe, listed: QueueList) -> None:
        self.queue, self.dead_queue = queue, f"{queue}.dead"
        self._settings, self._probe, self._listed = settings, probe, listed
        self._starting = threading.Lock()  # guards the next two
        self._processes: list[WorkerProcess] = []
        self._closed = False
        self._troubles: deque[tuple[float, str, str, int]] = deque(maxlen=8)
        self._noting = threading.Lock()
        self._events: deque[Event] = deque()  # any thread appends, look() takes
        self._workers: list[_Worker] = []
        self._forgotten: Counter[str] = Counter()  # what workers that are over have settled
        self._problem, self._consumers = "", 0
        self._depth: list[Depth] = []
        self._totals: deque[tuple[float, int, int]] = deque()
        self._total, self._settled, self._steady_at = 0, 0, 0.0
        self._elsewhere_since = self._dead_at = 0.0
        self._unsubscribe = subscribe(self._on_event)

    # ---- for any thread

    @property
    def processes(self) -> list[WorkerProcess]:
        """The worker processes that run."""
        return [process for process in list(self._processes) if process.is_alive]

    def start_worker(self, name: str, task_s: float) -> None:
        """Start a worker process, unless this is closed."""
        with self._starting:
            if not self._closed:
                self._processes.append(
                    WorkerProcess(
                        name, queue=self.queue, settings=self._settings, task_s=task_s,
                        on_event=self._events.append,
                    )
                )  # fmt: skip

    def note(self, text: str, kind: str = "") -> None:
        """Remember trouble. Of one kind only the newest is kept, with the number so far."""
        text = text[:1].upper() + text[1:]
        kind, count = kind or text, 1
        with self._noting:
            for trouble in list(self._troubles):
                if trouble[2] == kind:
                    count = trouble[3] + 1
                    self._troubles.remove(trouble)
            self._troubles.append((time.time(), text, kind, count))

    def cut(self) -> None:
        """Have the broker close every connection that consumes from the queue. Does not wait."""
        if self._consumers:
            self._listed.cut(self.queue, self._consumers, self.note)
        else:
            self.note("There is no connection to cut: the queue has no consumer.")

    def _on_event(self, event: Event) -> None:
        if event.queue == self.queue and event.kind in ("opened", "lost", "started", "settled"):
            # Now, because a consumer that has stopped by the next look is not listed any more.
            known = any(worker.source is event.source for worker in list(self._workers))
            if known or event.source in running_consumers(self.queue, self._settings):
                self._events.append(event)

    # ---- for the thread that looks

    def look(self) -> Snapshot:
        """Ask the broker, take the events since the last look, and put everything together."""
        now = time.time()
        ready, self._consumers, in_dead_queue = self._ask(now)
        problem = self._probe.find_problem(self.queue)
        if problem != self._problem:
            self.note(problem or f"The broker at {self._settings.address} responds.")
            self._problem = problem
        if problem:
            ready, self._consumers = None, 0
        self._follow(now)
        counts = sum((worker.counts for worker in self._workers), Counter(self._forgotten))
        elsewhere = self._count_elsewhere(now)
        unacked: int | None = None
        acked: int | None = None
        sent_per_s = done_per_s = None
        if elsewhere:
            row = (self._listed.rows or {}).get(self.queue, {})
            unacked, stats = row.get("messages_unacknowledged"), row.get("message_stats", {})
            if unacked is not None:  # the API may not know of our own yet
                unacked = max(unacked, sum(worker.unacked for worker in self._workers))
                sent_per_s = stats.get("publish_details", {}).get("rate", 0.0)
                done_per_s = stats.get("ack_details", {}).get("rate", 0.0)
                acked = stats.get("ack", 0)
        elif not problem:
            unacked = self._find_unacked(now, ready or 0, counts["done"] + counts["dead"])
            sent_per_s, done_per_s = self._find_rates(now, (ready or 0) + unacked, counts)
        if elsewhere or problem:
            self._totals.clear()  # what happens meanwhile is not known
            self._total = 0
        self._note_depth((now, None, None) if problem else (now, ready or 0, unacked))
        return Snapshot(
            at=now,
            queue=self.queue,
            problem=problem,
            ready=ready,
            unacked=unacked,
            unacked_is_exact=not elsewhere,
            elsewhere=elsewhere,
            done=counts["done"],
            retried=counts["retry"],
            dead=counts["dead"],
            lost=counts["lost"],
            acked=acked,
            in_dead_queue=in_dead_queue,
            sent_per_s=sent_per_s,
            done_per_s=done_per_s,
            lanes=tuple(lane for worker in self._workers for lane in worker.lanes(now)),
            depth=tuple(self._depth),
            troubles=tuple(
                (at, text + f" ({count} so far)" * (count > 1))
                for at, text, _, count in self._troubles
            ),
        )

    def close(self) -> None:
        """End the workers; their tasks go back to the queue."""
        with self._starting:
            self._closed = True
        self._unsubscribe()
        for process in self._processes:
            process.close()
        for process in self._processes:
            process.join(timeout_s=5.0)

    def _ask(self, now: float) -> tuple[int | None, int, int | None]:
        """Ready messages, consumers, and ready messages of the dead queue."""
        # Most queues have no dead queue, and the broker logs each question about what is missing.
        is_likely = self.dead_queue in (self._listed.rows or {}) or now - self._dead_at < DEAD_S
        answer, dead = self._probe.ask(
            {self.queue: ASK_AGAIN_S, self.dead_queue: ASK_AGAIN_S if is_likely else DEAD_S}
        )
        ready, consumers = answer or (None, 0)
        return ready, consumers, dead[0] if dead else None

    def _follow(self, now: float) -> None:
        """Find new workers, note what has become of their tasks, and forget those that are over."""
        self._follow_new([*self._processes, *running_consumers(self.queue, self._settings)])
        was = {worker: worker.state for worker in self._workers}
        for worker in self._workers:
            worker.update(now)
        while self._events:
            event = self._events.popleft()
            self._follow_new([event.source])
            worker = next(w for w in self._workers if w.source is event.source)
            if event.kind in ("started", "settled"):
                self._note_task(worker, event.kind, shorten(event.record))
            elif event.kind == "lost" and worker.state not in ("stopping", *ENDED):
                worker.is_away = True
                self.note(f"{worker.name} lost its connection and reconnects by itself.")
            elif event.kind == "opened" and worker.is_away:
                worker.is_away = False
                self.note(f"{worker.name} is connected again.")
        for worker in list(self._workers):
            state = worker.state
            if state != was.get(worker) and state == "killed":
                self.note(f"{worker.name} was killed; its connection ended with it.")
            elif state != was.get(worker) and state == "failed":
                self.note(f"{worker.name} ended by itself: {_last_words(worker.source)}")
            is_over = state in ENDED and now - worker.ended_at > TRANSIT_S
            if is_over and not any(lane.tasks for lane in worker.lanes(now)):
                self._forgotten += worker.counts
                self._workers.remove(worker)
                if isinstance(worker.source, WorkerProcess):
                    self._processes.remove(worker.source)

    def _follow_new(self, sources: list[Any]) -> None:
        for source in sources:
            if not any(worker.source is source for worker in self._workers):
                self._workers.append(_Worker(source))
                self._workers[-1].update(time.time())
                if not isinstance(source, WorkerProcess):
                    self._totals.clear()  # it may have done much before

    def _note_task(self, worker: _Worker, kind: str, record: TaskRecord) -> None:
        worker.add(record)
        task = f"task {str(record.data)[:24]!r}" if record.task_id else "a message that is no task"
        outcome = record.outcome if kind == "settled" else "started"
        if outcome == "started" and record.redelivered:
            self.note(f"{task} came again (redelivered), to {worker.name}.", "redelivered")
        elif outcome == "dead":
            self._dead_at = time.time()
            self.note(f"{task} is in {self.dead_queue} now: {record.error}", "dead")
        elif outcome == "retry":
            self.note(f"{task} failed in {worker.name} and is tried again: {record.error}", "retry")
        elif outcome == "lost" and worker.state in ENDED:
            self.note(f"{task} was not acknowledged, so it went back to the queue.", "returned")
        elif outcome == "lost":
            self.note(
                f"{worker.name} lost its connection before the ack of {task}: it comes again.",
                "lost",
            )

    def _count_elsewhere(self, now: float) -> int:
        elsewhere = self._consumers - sum(worker.state == "running" for worker in self._workers)
        # The broker lists a new consumer before the worker reports it, and an old one after.
        self._elsewhere_since = (self._elsewhere_since or now) if elsewhere > 0 else 0.0
        return max(0, elsewhere) if now - self._elsewhere_since > 1.0 else 0

    def _find_unacked(self, now: float, ready: int, settled: int) -> int:
        """What the workers hold, and what is between them and the broker.

        A message leaves the queue only when it is settled. If more than that has gone, it is on its
        way to a worker that has room for it, or on its way back from a worker that was killed. The
        broker counts it as unacked until it is ready again, and so does the picture.
        """
        held = sum(worker.unacked for worker in self._workers if worker.state not in ENDED)
        room = sum(
            worker.unacked if worker.state in ENDED else max(0, worker.prefetch - worker.unacked)
            for worker in self._workers
            if worker.state not in ENDED or now - worker.ended_at < TRANSIT_S
        )
        missing = self._total - (settled - self._settled) - (ready + held)
        if missing <= 0:
            self._steady_at = now
        is_moving = missing > 0 and now - self._steady_at < TRANSIT_S
        in_transit = min(missing, room) if is_moving else 0
        self._total, self._settled = ready + held + in_transit, settled
        return held + in_transit

    def _find_rates(self, now: float, waiting: int, counts: Counter[str]) -> tuple[float, float]:
        """Tasks sent and done per second. What was sent is either there, or settled."""
        totals, done = self._totals, counts["done"]
        totals.append((now, waiting + done + counts["dead"], done))
        while len(totals) > 1 and totals[1][0] <= now - RATE_S:
            totals.popleft()
        (then, sent_then, done_then), (_, sent_now, done_now) = totals[0], totals[-1]
        passed_s = max(now - then, 1.0)
        return max(0, sent_now - sent_then) / passed_s, max(0, done_now - done_then) / passed_s

    def _note_depth(self, depth: Depth) -> None:
        kept = self._depth
        if len(kept) > 1 and kept[-1][1:] == kept[-2][1:] == depth[1:]:
            kept.pop()  # both ends of a level stretch are enough
        kept.append(depth)
        while len(kept) > 1 and kept[1][0] < depth[0] - WINDOW_S:
            kept.pop(0)


def _last_words(source: BackgroundConsumer | WorkerProcess) -> str:
    if isinstance(source, WorkerProcess):
        return source.last_words or "it printed nothing"
    error = source.status().error
    return error.what if error else "it gave no reason"
