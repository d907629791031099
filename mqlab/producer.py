"""Sending tasks so that a task whose ``send`` returned is in a queue.

Three things make that true, and each alone is not enough: publisher confirms (the broker says that
it has taken the message over), ``mandatory`` (it returns the message if no queue would get it), and
repeating what was not confirmed, with the same ``message_id``, when the connection comes back.
Source: RabbitMQ's guides on publisher confirms and on reliability.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import pika

from mqlab.connection import Connection
from mqlab.errors import MqlabError, NotSent, OutcomeUnknown, Rejected, SendError, Unroutable
from mqlab.settings import HEARTBEAT_S, Settings
from mqlab.task import QUEUE, Task

WINDOW = 1000
"""Messages that may wait for their confirm at one time. Larger windows were not faster."""
RESUME_AT = WINDOW // 2
"""Publish on only when the window is half empty: short bursts cost more than long ones."""


@dataclass(frozen=True, slots=True, repr=False)
class SendRecord:
    """One task sent and confirmed, and where the time went. Times in seconds, as the caller waited.

    ``connect_s`` and ``declare_s`` are 0.0 on a connection that was open already. ``publish_s``
    ends when the message is handed to the network, ``confirm_s`` when the caller knows.
    ``repeated`` counts the times it was published again because a connection was lost.
    """

    task_id: str
    data: Any
    queue: str
    sent_at: float
    connect_s: float
    declare_s: float
    publish_s: float
    confirm_s: float
    repeated: int

    @property
    def wait_s(self) -> float:
        """All that the caller waited, in seconds."""
        return self.connect_s + self.declare_s + self.publish_s + self.confirm_s

    def __repr__(self) -> str:
        stages = ("connect", "declare", "publish", "confirm")
        seconds = {stage: getattr(self, f"{stage}_s") for stage in stages}
        times = ", ".join(f"{stage} {s * 1000:.2f} ms" for stage, s in seconds.items() if s)
        again = f", repeated {self.repeated} times" if self.repeated else ""
        return (
            f"Task {self.task_id[:8]} confirmed after {self.wait_s * 1000:.2f} ms: {times}{again}"
        )


@dataclass(frozen=True, slots=True, repr=False)
class SendManyRecord:
    """Many tasks sent and confirmed: their ids in order, and the seconds the caller waited."""

    task_ids: tuple[str, ...]
    queue: str
    wait_s: float
    repeated: int

    def __repr__(self) -> str:
        again = f", {self.repeated} repeated" if self.repeated else ""
        return f"{len(self.task_ids)} tasks confirmed after {self.wait_s * 1000:.2f} ms{again}"


@dataclass(frozen=True, slots=True, repr=False)
class ProducerStatus:
    """What the producer is doing: ``state`` is connected, reconnecting, closed or failed."""

    state: str
    queue: str
    sent: int
    waiting: int
    repeated: int
    reconnected: int
    blocked: str | None
    error: MqlabError | None

    def __repr__(self) -> str:
        text = f"{self.state}, sending to {self.queue!r}: {self.sent} sent"
        for count, name in ((self.waiting, "waiting"), (self.repeated, "repeated")):
            text += f", {count} {name}" * bool(count)
        text += f", reconnected {self.reconnected} times" * bool(self.reconnected)
        text += f", blocked by the broker: {self.blocked}" if self.blocked else ""
        return text + (f"\n{self.error}" if self.error else "")


class _Batch:
    """What one caller waits for: some messages, done when each has an outcome."""

    __slots__ = ("abandoned", "done", "failed", "open", "repeated")

    def __init__(self, size: int) -> None:
        self.open = size
        self.abandoned = False
        self.failed: dict[str, str] = {}
        self.repeated = 0
        self.done = threading.Event()


class _Message:
    __slots__ = ("batch", "body", "properties", "published_at", "returned")

    def __init__(self, task: Task, batch: _Batch) -> None:
        self.body = task.to_json()
        self.properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,  # persistent: written to disk, so it survives a restart of the broker
            message_id=task.task_id,
        )
        self.batch = batch
        self.published_at = 0.0
        self.returned = False


class Producer:
    """Sends tasks to one queue over a connection that is kept. Safe to use from many threads.

    The queue is declared as the walk-through does it: durable, without arguments. With
    ``declare=False`` it must be there already; sending to a queue that is not raises Unroutable.
    ``timeout_s`` bounds the opening and is the bound of each send that does not give its own.
    Raises ConnectError or AccessRefused if the broker cannot be reached, QueueMismatch if the queue
    exists with other properties.
    """

    def __init__(
        self,
        queue: str = QUEUE,
        *,
        settings: Settings | None = None,
        timeout_s: float = 10.0,
        declare: bool = True,
        heartbeat_s: int = HEARTBEAT_S,
    ) -> None:
        self.queue, self.timeout_s = queue, timeout_s
        self._declare = declare
        self._pending: deque[_Message] = deque()  # not on the wire; any thread appends
        self._in_flight: dict[int, _Message] = {}  # by delivery tag, in order; I/O thread only
        self._next_tag = 1
        self._drain_asked = self._window_full = False
        self._sent = self._repeated = 0
        self._connection = Connection(
            settings or Settings.from_env(),
            name=f"mqlab producer for {queue}",
            on_channel=self._set_up,
            on_lost=self._take_back,
            on_failed=self._fail_all,
            heartbeat_s=heartbeat_s,
        )
        self._connection.open(timeout_s)

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def send(
        self, data: Any, *, task_id: str | None = None, timeout_s: float | None = None
    ) -> SendRecord:
        """Send one task; return when the broker has confirmed that it is in the queue.

        Give ``task_id`` to send a task again whose outcome was unknown. Raises TaskError if
        ``data`` cannot be sent, Unroutable, Rejected or NotSent if the task is certainly not in the
        queue, OutcomeUnknown if no confirm came within ``timeout_s`` seconds.
        """
        started = time.perf_counter()
        task = Task(data) if task_id is None else Task(data, task_id)
        batch = _Batch(1)
        message = _Message(task, batch)
        self._send([message], batch, timeout_s)
        ended = time.perf_counter()
        published = message.published_at
        return SendRecord(
            task_id=task.task_id,
            data=data,
            queue=self.queue,
            sent_at=task.timestamp,
            connect_s=0.0,
            declare_s=0.0,
            publish_s=published - started,
            confirm_s=ended - published,
            repeated=batch.repeated,
        )

    def send_many(self, items: Iterable[Any], *, timeout_s: float | None = None) -> SendManyRecord:
        """Send a task for each of ``items``; return when the broker has confirmed all of them.

        All are turned into messages first: if one of them cannot be, TaskError is raised and
        nothing is sent. Raises what ``send`` raises, and its ``outcomes`` tells of each task that
        was not confirmed. ``timeout_s`` bounds the whole.
        """
        started = time.perf_counter()
        tasks = [Task(data) for data in items]
        batch = _Batch(len(tasks))
        self._send([_Message(task, batch) for task in tasks], batch, timeout_s)
        wait_s = time.perf_counter() - started
        return SendManyRecord(
            tuple(task.task_id for task in tasks), self.queue, wait_s, batch.repeated
        )

    def status(self) -> ProducerStatus:
        """Tell what the producer is doing now. Costs nothing and never blocks."""
        connection = self._connection
        if connection.error is not None:
            state = "failed"
        elif connection.is_closing:
            state = "closed"
        else:
            state = "connected" if connection.is_ready else "reconnecting"
        return ProducerStatus(
            state=state,
            queue=self.queue,
            sent=self._sent,
            waiting=len(self._pending) + len(self._in_flight),
            repeated=self._repeated,
            reconnected=max(0, connection.opened - 1),
            blocked=connection.blocked,
            error=connection.error,
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Close the connection. A send still waiting in another thread ends with its outcome."""
        if self._connection.close(timeout_s):
            self._settle_rest()

    # ---- the caller's thread

    def _send(self, messages: list[_Message], batch: _Batch, timeout_s: float | None) -> None:
        if not messages:
            return
        self._check_open()
        bound_s = self.timeout_s if timeout_s is None else timeout_s
        self._pending.extend(messages)
        if not self._drain_asked:
            self._drain_asked = True
            self._connection.run(self._drain)
        try:
            in_time = batch.done.wait(bound_s)
        except BaseException:  # Ctrl-C or a kernel interrupt: what is not sent yet is not sent
            self._connection.run(lambda: self._withdraw(batch))
            raise
        if not in_time:
            # Only the I/O thread knows what is on the wire, so it decides what became of the rest.
            self._connection.run(lambda: self._withdraw(batch))
            if not batch.done.wait(2.0):
                unknown = {m.properties.message_id: "unknown" for m in messages}
                batch.failed = {**unknown, **batch.failed}
        if batch.failed:
            raise self._error(batch, len(messages), bound_s)

    def _check_open(self) -> None:
        if self._connection.error is not None:
            raise self._connection.error
        if self._connection.is_closing:
            raise MqlabError(
                "This producer is closed.", fix="make another one: Producer(queue=...)"
            )

    def _error(self, batch: _Batch, size: int, bound_s: float) -> SendError | OutcomeUnknown:
        outcomes = batch.failed
        counts = Counter(outcomes.values())
        confirmed = size - len(outcomes)
        told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
        what = f"Of {size} task{'s' * (size > 1)} for queue {self.queue!r}: {told}"
        what += f", {confirmed} confirmed." if confirmed else "."
        if "unknown" in counts:
            blocked = self._connection.blocked
            return OutcomeUnknown(
                what,
                why=f"the broker blocks publishers ({blocked})"
                if blocked
                else f"no confirm came within {bound_s:g} s; the task may still arrive",
                fix="send again with the same task_id, and have the worker look at the id",
                outcomes=outcomes,
            )
        if "not sent" in counts:
            last = self._connection.last_error
            return NotSent(
                what,
                why=last.what if last else f"there was no connection within {bound_s:g} s",
                fix="send again when the broker is back: python -m mqlab broker status",
                outcomes=outcomes,
            )
        if "rejected" in counts:
            return Rejected(
                what,
                why="the broker could not take the message over; its log says why",
                fix="send again later",
                outcomes=outcomes,
            )
        return Unroutable(
            what,
            why="no queue of that name exists",
            fix="check the name, or start the consumer that declares it",
            outcomes=outcomes,
        )

    # ---- the I/O thread

    def _set_up(self, channel: Any) -> None:
        self._next_tag = 1
        self._window_full = False
        channel.add_on_return_callback(self._on_return)
        # The broker answers in order, so the answer to the last request is the answer to all.
        if self._declare:
            channel.queue_declare(self.queue, durable=True)
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._on_set_up())

    def _on_set_up(self) -> None:
        self._connection.mark_ready()
        self._drain()

    def _drain(self) -> None:
        self._drain_asked = False
        channel, in_flight, pending = self._connection.channel, self._in_flight, self._pending
        if self._connection.is_closing or not self._connection.is_ready or self._window_full:
            return
        while pending:
            if len(in_flight) >= WINDOW:
                self._window_full = True
                return
            message = pending.popleft()
            in_flight[self._next_tag] = message
            self._next_tag += 1
            channel.basic_publish("", self.queue, message.body, message.properties, mandatory=True)
            message.published_at = time.perf_counter()

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        outcome = "" if method.NAME == "Basic.Ack" else "rejected"
        in_flight = self._in_flight
        if method.multiple:  # this confirm settles every tag up to its own
            for tag in list(takewhile(lambda tag: tag <= method.delivery_tag, in_flight)):
                self._settle(in_flight.pop(tag), outcome)
        else:
            self._settle(in_flight.pop(method.delivery_tag), outcome)
        if self._window_full and len(in_flight) <= RESUME_AT:
            self._window_full = False
            self._drain()

    def _on_return(self, _channel: Any, _method: Any, properties: Any, _body: bytes) -> None:
        # basic.return comes before the confirm of the same message, which says only "handled".
        for message in self._in_flight.values():
            if message.properties.message_id == properties.message_id:
                message.returned = True

    def _settle(self, message: _Message, outcome: str) -> None:
        batch = message.batch
        if batch.abandoned:
            return
        outcome = outcome or ("unroutable" if message.returned else "")
        if outcome:
            batch.failed[message.properties.message_id] = outcome
        else:
            self._sent += 1
        batch.open -= 1
        if batch.open == 0:
            batch.done.set()

    def _withdraw(self, batch: _Batch) -> None:
        """The caller's time is up: what is not on the wire is not sent, the rest is unknown."""
        for message in [m for m in self._pending if m.batch is batch]:
            self._pending.remove(message)
            # A message that waits for its repetition was on the wire of the lost connection.
            self._settle(message, "unknown" if message.published_at else "not sent")
        for message in self._in_flight.values():
            if message.batch is batch:
                self._settle(message, "unknown")
        batch.abandoned = True  # the caller has its answer: later confirms change nothing

    def _take_back(self) -> None:
        """The channel is lost: repeat what was not confirmed, first of all, in the same order."""
        again = [m for m in self._in_flight.values() if not m.batch.abandoned]
        self._in_flight.clear()
        for message in again:
            message.returned = False
            message.batch.repeated += 1
        self._repeated += len(again)
        self._pending.extendleft(reversed(again))

    def _fail_all(self, _error: MqlabError) -> None:
        self._settle_rest()

    def _settle_rest(self) -> None:
        for message in [*self._in_flight.values(), *self._pending]:
            self._settle(message, "unknown" if message.published_at else "not sent")
        self._in_flight.clear()
        self._pending.clear()


def send_task_to_queue(
    task_data: Any,
    *,
    queue: str = QUEUE,
    settings: Settings | None = None,
    timeout_s: float = 10.0,
    quiet: bool = False,
) -> SendRecord:
    """Send one task over a connection of its own, as the walk-through does, and time each step.

    Prints the walk-through's lines unless ``quiet``; its "immediate wait time" is the publish
    alone, and the record has the rest. Raises what Producer and ``Producer.send`` raise.
    """
    started = time.perf_counter()
    with Producer(queue, settings=settings, timeout_s=timeout_s) as producer:
        opened_s = time.perf_counter() - started
        declare_s = producer._connection.declare_s
        sent = producer.send(task_data)
        record = replace(sent, connect_s=opened_s - declare_s, declare_s=declare_s)
    if not quiet:
        print(f"*** [API Server/Producer] Task ID {record.task_id[:8]} published successfully! ***")
        print(f"*** [API Server/Producer] Immediate wait time: {record.publish_s:.4f} seconds ***")
        print("*** [API Server/Producer] Full computation runs in the background. ***\n")
    return record
