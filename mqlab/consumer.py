"""A consumer in the background: one I/O thread that owns the channel, and worker threads.

The I/O thread receives deliveries and sends acks; a worker does the work and touches no channel.
So heartbeats go on however long a task takes, and a task is acknowledged only after its work, by
the thread that may. What cannot be understood, or keeps failing, is moved to the dead queue.
Source: RabbitMQ's guides on consumer acknowledgements and on reliability.
"""

from __future__ import annotations

import os
import queue as queues
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

from mqlab.connection import Connection
from mqlab.errors import ConsumerError, MqlabError, TaskError, WaitTimeout
from mqlab.records import ConsumerStatus, StopReport, TaskRecord
from mqlab.settings import HEARTBEAT_S, Settings
from mqlab.task import QUEUE, Task
from mqlab.walkthrough import perform_heavy_task

RECORDS_KEPT = 5_000
"""The newest records are kept, so that a consumer may run for weeks in the same memory."""
HEADER_PREFIX = "mqlab-"
ATTEMPTS_HEADER, REASON_HEADER = "mqlab-attempts", "mqlab-reason"

REFUSED_PAUSE_S = 1.0
"""Before a queue that has refused a message is asked again."""

Handler = Callable[[Task], Any]


class _Delivery:
    __slots__ = ("body", "channel", "properties", "record", "settled", "tag")

    def __init__(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self.channel, self.tag = channel, method.delivery_tag
        self.properties, self.body = properties, body
        self.settled = False  # may be acked
        attempts = (properties.headers or {}).get(ATTEMPTS_HEADER, 0)
        attempt = attempts + 1 if type(attempts) is int and 0 <= attempts < 1_000_000 else 1
        now, redelivered = time.time(), method.redelivered
        self.record = TaskRecord(properties.message_id, None, None, now, redelivered, attempt)

    def find_id(self) -> str:
        try:
            return Task.from_json(self.body).task_id
        except TaskError:
            return str(self.properties.message_id)


@dataclass(slots=True)
class _Move:
    """A message on its way to another queue; its delivery is acked when this is confirmed."""

    delivery: _Delivery
    target: str
    returned: bool = False


class BackgroundConsumer:
    """Works through a queue in the background: ``start``, ``wait``, ``stop``.

    ``handler(task)`` does the work in one of ``workers`` threads and returns a result; without one,
    ``perform_heavy_task`` is called. ``prefetch`` (default: ``workers``) is how many deliveries may
    be here unacknowledged: more is faster for short tasks, and takes tasks from other consumers.
    A handler that raises is tried again up to ``max_attempts`` times, ``retry_delay_s`` seconds
    after the first failure and twice as long after each further one; then the task goes to
    the queue ``<queue>.dead`` with the reason in its headers, as does a body that is no task.

    A second start with the same ``name`` and ``queue`` in one process replaces the first.
    A context manager; leaving it stops it.
    """

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        queue: str = QUEUE,
        settings: Settings | None = None,
        workers: int = 1,
        prefetch: int | None = None,
        name: str = "consumer",
        max_attempts: int = 3,
        retry_delay_s: float = 1.0,
        heartbeat_s: int = HEARTBEAT_S,
    ) -> None:
        if workers < 1 or max_attempts < 1 or not 1 <= (prefetch or workers) <= 65535:
            raise ConsumerError(
                "workers and max_attempts are at least 1, prefetch is from 1 to 65535.",
                fix="leave prefetch out to have one delivery for each worker",
            )
        self.queue, self.dead_queue, self.name = queue, f"{queue}.dead", name
        self._settings = settings or Settings.from_env()
        self._handler = handler or _do_heavy_task
        self._workers, self._prefetch = workers, prefetch or workers
        self._max_attempts, self._retry_delay_s = max_attempts, retry_delay_s
        self._connection = Connection(
            self._settings,
            name=f"mqlab {name} of {queue}",
            on_channel=self._set_up,
            on_lost=self._forget_channel,
            on_failed=self._on_failed,
            heartbeat_s=heartbeat_s,
        )
        self._started = self._stopping = False
        self._inbox: queues.SimpleQueue[_Delivery | None] = queues.SimpleQueue()
        self._working: list[_Delivery | None] = [None] * workers  # each worker writes its own place
        self._finished: deque[_Delivery] = deque()  # workers append, the I/O thread takes
        self._flush_asked = False
        self._changed = threading.Condition()  # guards the two below, and tells the waiting
        self._records: deque[TaskRecord] = deque(maxlen=RECORDS_KEPT)
        self._counts = Counter[str]()
        self._waited_for = 0
        # The rest belongs to the I/O thread.
        self._unacked: dict[int, _Delivery] = {}  # by delivery tag, in order
        self._moves: dict[int, _Move] = {}  # by publish tag, in order
        self._next_publish_tag = 1
        self._left: tuple[str, ...] = ()

    def __enter__(self) -> BackgroundConsumer:
        return self if self._started else self.start()

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        report = self.stop(timeout_s=10.0 if kind is None else 2.0)
        if report.returned or report.may_run_twice:
            print(report)

    def __repr__(self) -> str:
        status = self.status()
        return f"<consumer of {self.queue!r}: {status.state}, {status.done} tasks done>"

    # ---- for the caller's thread

    def start(self, timeout_s: float = 10.0) -> BackgroundConsumer:
        """Connect, declare the queue, subscribe, and return; the work goes on in the background.

        Raises ConnectError, AccessRefused or QueueMismatch within ``timeout_s`` seconds, and
        ConsumerError if this object was started before.
        """
        if self._started:
            raise ConsumerError(
                "This consumer was started before.", fix="make a new one: BackgroundConsumer(...)"
            )
        self._replace_previous()
        self._started = True
        self._connection.open(timeout_s)
        _running[self._key] = self
        for number in range(self._workers):
            name = f"mqlab worker-{number + 1} of {self.queue}"
            threading.Thread(target=self._work, args=(number,), name=name, daemon=True).start()
        return self

    def wait(self, count: int, timeout_s: float, *, show_progress: bool = True) -> list[TaskRecord]:
        """Wait until ``count`` tasks are done or dead; return their records, oldest first.

        Each task is counted by one wait only, so send 3, wait for 3, can be repeated. Prints
        ``1 of 3 done`` and so on, and how many of them went to the dead queue. Raises WaitTimeout
        after ``timeout_s`` seconds (nothing is lost: waiting again goes on), ConsumerError if the
        consumer fails or is stopped meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        step = max(1, count // 10)
        for goal in (*range(step, count, step), count):
            with self._changed:
                self._changed.wait_for(
                    partial(self._has_reached, goal), max(0.0, deadline - time.monotonic())
                )
                ready = self._unwaited
                settled = [r for r in self._records if r.outcome in ("done", "dead")]
            records = settled[max(0, len(settled) - ready) :][:count]
            if ready < goal and self._has_ended:
                raise self._failure(f"The consumer ended with {ready} of {count} tasks done.")
            if ready < goal:
                raise WaitTimeout(
                    f"{ready} of {count} tasks were done within {timeout_s:g} s.",
                    why="they take longer, or fewer were sent",
                    fix="wait again, or look at status()",
                )
            if show_progress:
                dead = sum(record.outcome == "dead" for record in records[:goal])
                print(f"{goal} of {count} done" + f", {dead} of them dead" * bool(dead))
        self._waited_for += count
        return records

    def stop(self, timeout_s: float = 10.0) -> StopReport:
        """Take no more tasks, let the running ones finish for ``timeout_s`` seconds, and close.

        What is not done by then goes back to the queue, and the report says which. Raises the
        error if the consumer had failed before. Stopping twice is fine.
        """
        connection, deadline = self._connection, time.monotonic() + timeout_s
        if not self._started:
            return StopReport(0, (), ())
        if _running.get(self._key) is self:
            del _running[self._key]
        if not self._stopping:
            self._stopping = True
            connection.run(self._cancel)
            self._end_workers()
        with self._changed:
            self._changed.wait_for(self._is_idle, timeout_s)
        running = tuple(d.find_id() for d in self._working if d is not None)
        flushed = threading.Event()
        connection.run(lambda: self._flush_last(flushed))
        flushed.wait(1.0)
        connection.close(max(1.0, min(5.0, deadline - time.monotonic())))
        with self._changed:
            self._changed.notify_all()
        left = tuple(task_id for task_id in self._left if task_id not in running)
        report = StopReport(self._counts["done"], left, running)
        if connection.error is not None:
            raise self._failure(f"The consumer had failed before it was stopped. {report}")
        return report

    def status(self) -> ConsumerStatus:
        """Tell what the consumer is doing now. Costs little and never blocks."""
        connection = self._connection
        if connection.error is not None:
            state = "failed"
        elif not self._started or self._stopping:
            state = "stopped"
        else:
            state = "running" if connection.is_ready else "reconnecting"
        counts = self._counts
        return ConsumerStatus(
            state=state,
            queue=self.queue,
            workers=self._workers,
            prefetched=self._inbox.qsize() if state != "stopped" else 0,
            working=sum(delivery is not None for delivery in self._working),
            done=counts["done"],
            retried=counts["retry"],
            dead=counts["dead"],
            lost=counts["lost"],
            redelivered=counts["redelivered"],
            reconnected=max(0, connection.opened - 1),
            error=connection.error,
        )

    @property
    def records(self) -> list[TaskRecord]:
        """The records of the newest deliveries that were worked on, oldest first."""
        with self._changed:
            return list(self._records)

    @property
    def working(self) -> list[TaskRecord]:
        """The records of the deliveries that are being worked on now."""
        return [delivery.record for delivery in self._working if delivery is not None]

    @property
    def unacked(self) -> int:
        """How many deliveries are here that the broker has no ack for yet."""
        return len(self._unacked)

    # ---- shared

    @property
    def _key(self) -> tuple[str, str, str, str]:
        return self.name, self.queue, self._settings.address, self._settings.virtual_host

    @property
    def _unwaited(self) -> int:
        return self._counts["done"] + self._counts["dead"] - self._waited_for

    @property
    def _has_ended(self) -> bool:
        return not self._started or self._stopping or self._connection.error is not None

    def _has_reached(self, goal: int) -> bool:
        return self._unwaited >= goal or self._has_ended

    def _is_idle(self) -> bool:
        return not (any(self._working) or self._finished or self._moves)

    def _replace_previous(self) -> None:
        previous = _running.pop(self._key, None)
        if previous is None or previous._has_ended:
            return
        report = previous.stop(timeout_s=6.0)
        print(f"Replaced the consumer that was running on {self.queue!r}. {report}")

    def _failure(self, what: str) -> ConsumerError:
        error = self._connection.error
        failure = ConsumerError(
            what,
            why=error.what if error else "it was stopped, or not started",
            fix=(error.fix if error else "") or "start a new one: BackgroundConsumer(...).start()",
        )
        failure.__cause__ = error
        return failure

    def _end_workers(self) -> None:
        for _ in range(self._workers):
            self._inbox.put(None)

    # ---- the worker threads

    def _work(self, number: int) -> None:
        connection = self._connection
        while True:
            delivery = self._inbox.get()
            if delivery is None or self._stopping:
                return
            if delivery.channel is not connection.channel:
                continue  # its connection is lost: the broker delivers it again
            self._working[number] = delivery
            self._process(delivery, f"worker-{number + 1}")
            self._finished.append(delivery)
            self._working[number] = None
            if not self._flush_asked:
                self._flush_asked = True
                connection.run(self._flush)

    def _process(self, delivery: _Delivery, worker: str) -> None:
        record = delivery.record
        record.worker, record.started_at = worker, time.time()
        try:
            task = Task.from_json(delivery.body)
        except TaskError as error:
            record.outcome, record.error = "dead", f"not a task: {error}"
        else:
            record.task_id, record.data, record.sent_at = task.task_id, task.data, task.timestamp
            try:
                record.result = self._handler(task)
                record.outcome = "done"
            except BaseException as error:  # SystemExit too: a task must not end its worker
                record.error = traceback.format_exception_only(error)[-1].strip()[:500]
                record.outcome = "retry" if record.attempt < self._max_attempts else "dead"
        record.finished_at = time.time()

    # ---- the I/O thread

    def _set_up(self, channel: Any) -> None:
        channel.add_on_cancel_callback(self._on_cancelled_by_broker)
        channel.add_on_return_callback(self._on_return)
        # The broker answers in order, so the answer to the last request is the answer to all.
        channel.confirm_delivery(self._on_confirm)
        channel.queue_declare(self.queue, durable=True)
        channel.basic_qos(prefetch_count=self._prefetch)
        self._consumer_tag = channel.basic_consume(
            self.queue, self._on_message, callback=lambda _frame: self._connection.mark_ready()
        )

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        delivery = _Delivery(channel, method, properties, body)
        if method.redelivered:
            self._counts["redelivered"] += 1
        self._unacked[delivery.tag] = delivery
        self._inbox.put(delivery)

    def _flush(self) -> None:
        """Ack all that the workers have finished since the last time, in as few frames as possible.

        A task's ack goes out after its work: the worker has put it into ``_finished`` by then.
        """
        self._flush_asked = False
        finished: list[_Delivery] = []
        while self._finished:
            finished.append(self._finished.popleft())
        acks: list[_Delivery] = []
        for delivery in finished:
            outcome = delivery.record.outcome
            if outcome == "done":
                acks.append(delivery)
            elif outcome == "dead":
                self._move(delivery, self.dead_queue)
            else:
                delay_s = self._retry_delay_s * 2 ** (delivery.record.attempt - 1)
                self._move_later(delay_s, delivery, self.queue)
        self._ack(acks)
        with self._changed:  # stop() waits for this, too, where nothing could be acked
            self._changed.notify_all()

    def _ack(self, deliveries: list[_Delivery]) -> None:
        now = time.time()
        alive: list[_Delivery] = []
        lost: list[_Delivery] = []
        for delivery in deliveries:
            delivery.settled = self._is_current(delivery)
            (alive if delivery.settled else lost).append(delivery)
        self._note_lost(lost)
        run = list(takewhile(lambda tag: self._unacked[tag].settled, self._unacked))
        channel = self._connection.channel
        if run:  # with multiple, one ack settles every tag up to its own: so only without a gap
            channel.basic_ack(run[-1], multiple=len(run) > 1)
            for tag in run:
                del self._unacked[tag]
        for delivery in alive:
            if self._unacked.pop(delivery.tag, None) is not None:
                channel.basic_ack(delivery.tag)
            delivery.record.acked_at = now
        if alive:
            self._note(alive)

    def _is_current(self, delivery: _Delivery) -> bool:
        # A delivery tag is only valid on the channel that it came on.
        return delivery.channel is self._connection.channel and delivery.channel.is_open

    def _note(self, deliveries: list[_Delivery]) -> None:
        with self._changed:
            for delivery in deliveries:
                self._records.append(delivery.record)
                self._counts[delivery.record.outcome or ""] += 1
            self._changed.notify_all()

    def _note_lost(self, deliveries: list[_Delivery]) -> None:
        for delivery in deliveries:
            delivery.record.outcome = "lost"
        if deliveries:
            self._note(deliveries)

    def _flush_last(self, flushed: threading.Event) -> None:
        self._flush()
        self._left = tuple(delivery.find_id() for delivery in self._unacked.values())
        flushed.set()

    # Moving a message to the end of its queue, or to the dead queue: publish a copy, and ack the
    # original when the broker has confirmed the copy. Killed in between, there are two, never none.

    def _move_later(self, delay_s: float, delivery: _Delivery, target: str) -> None:
        self._connection.run_later(delay_s, lambda: self._move(delivery, target))

    def _move(self, delivery: _Delivery, target: str) -> None:
        if not self._is_current(delivery):
            self._note_lost([delivery])
            return
        self._moves[self._next_publish_tag] = _Move(delivery, target)
        self._next_publish_tag += 1
        delivery.channel.basic_publish(
            "", target, delivery.body, _marked(delivery, self.queue), mandatory=True
        )

    def _on_return(self, _channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        for move in self._moves.values():
            is_it = move.target == method.routing_key and move.delivery.body == body
            if is_it and not move.returned:
                move.returned = True
                return

    def _on_confirm(self, confirm: Any) -> None:
        method = confirm.method
        tags = [method.delivery_tag]
        if method.multiple:
            tags = list(takewhile(lambda tag: tag <= method.delivery_tag, self._moves))
        for tag in tags:
            move = self._moves.pop(tag)
            if method.NAME == "Basic.Nack":  # the queue is full, say: keep the task, ask again
                self._move_later(REFUSED_PAUSE_S, move.delivery, move.target)
            elif move.returned:  # there is no such queue yet
                move.delivery.channel.queue_declare(move.target, durable=True)
                self._move(move.delivery, move.target)
            else:
                self._ack([move.delivery])

    def _on_cancelled_by_broker(self, _frame: Any) -> None:
        # The queue was deleted, or its node went away: a fresh channel declares and subscribes.
        self._connection.reopen_channel()

    def _cancel(self) -> None:
        if self._connection.is_ready and self._connection.channel.is_open:
            self._connection.channel.basic_cancel(self._consumer_tag)

    def _forget_channel(self) -> None:
        """The channel is lost, and the broker puts back all that was not acked on it."""
        moving = [move.delivery for move in self._moves.values()]
        self._unacked.clear()
        self._moves.clear()
        self._next_publish_tag = 1
        self._note_lost(moving)

    def _on_failed(self, _error: MqlabError) -> None:
        self._end_workers()
        with self._changed:
            self._changed.notify_all()


_running: dict[tuple[str, str, str, str], BackgroundConsumer] = {}


def running_consumers(queue: str, settings: Settings) -> list[BackgroundConsumer]:
    """Give the consumers of this process that were started on that queue and not stopped."""
    place = (queue, settings.address, settings.virtual_host)
    return [consumer for key, consumer in list(_running.items()) if key[1:] == place]


def _do_heavy_task(task: Task) -> str:
    return perform_heavy_task(task.data, task_id=task.task_id)[1]


def _marked(delivery: _Delivery, queue: str) -> Any:
    """Copy the properties of a message that moves, and note in its headers why.

    Three things must not go along: an expiration would delete it in the dead queue, a user id that
    is not ours closes the channel, and CC would send copies elsewhere. They are kept as headers.
    """
    properties, record = delivery.properties, delivery.record
    headers = dict(properties.headers or {})
    for name in ("CC", "BCC"):
        if name in headers:
            headers[f"mqlab-{name.lower()}"] = headers.pop(name)
    for name in ("expiration", "user_id"):
        if getattr(properties, name) is not None:
            headers[f"mqlab-{name.replace('_', '-')}"] = getattr(properties, name)
    headers[ATTEMPTS_HEADER] = record.attempt
    headers[REASON_HEADER] = record.error
    headers["mqlab-queue"], headers["mqlab-worker"] = queue, f"{record.worker}, pid {os.getpid()}"
    moved = copy(properties)
    moved.headers, moved.expiration, moved.user_id = headers, None, None
    return moved
