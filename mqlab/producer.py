"""Sending tasks so that a task whose ``send`` returned is in a queue.

Three things make that true, and each alone is not enough: publisher confirms (the broker says that
it has taken the message over), ``mandatory`` (it returns the message if no queue would get it), and
repeating what was not confirmed, with the same ``message_id``, when the connection comes back.
Source: RabbitMQ's guides on publisher confirms and on reliability.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import Any

import pika
from pika import frame, spec

from mqlab.connection import Connection
from mqlab.errors import MqlabError, NotSent, OutcomeUnknown, Rejected, SendError, Unroutable
from mqlab.records import ProducerStatus, SendManyRecord, SendRecord
from mqlab.settings import HEARTBEAT_S, Settings
from mqlab.task import QUEUE, Task, encode_body, encode_data

WINDOW = 1000
"""Messages that may wait for their confirm at one time. Larger windows were not faster."""
BLOCK = WINDOW // 2
"""Messages written at one time. The next block goes out when the window has room for all of it:
short bursts cost more than long ones. It is made ready while the broker works on those before."""
FRAME_OVERHEAD = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE


class _Batch:
    """What one caller waits for: some messages, done when each has an outcome."""

    __slots__ = ("abandoned", "failed", "open", "repeated", "unsettled")

    def __init__(self, size: int) -> None:
        self.open = size
        self.abandoned = False
        self.failed: dict[str, str] = {}
        self.repeated = 0
        # Held until all is settled: a seventh of the cost of a threading.Event, one for each send.
        self.unsettled = threading.Lock()
        self.unsettled.acquire()

    def wait(self, timeout_s: float) -> bool:
        return self.open == 0 or self.unsettled.acquire(timeout=max(0.0, timeout_s))


class _Message:
    __slots__ = ("batch", "body", "properties", "published_at", "returned")

    def __init__(self, task_id: str, body: bytes, batch: _Batch) -> None:
        self.body = body
        self.properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,  # persistent: written to disk, so it survives a restart of the broker
            message_id=task_id,
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
        self._method_frame = b""
        self._block: tuple[list[_Message], bytes] | None = None  # ready to go; I/O thread only
        self._drain_asked = False
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
        message = _Message(task.task_id, task.to_json(), batch)
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
        data = [encode_data(item) for item in items]
        batch = _Batch(len(data))
        messages = self._send(self._make_messages(data, batch), batch, timeout_s)
        task_ids = tuple(message.properties.message_id for message in messages)
        wait_s = time.perf_counter() - started
        return SendManyRecord(task_ids, self.queue, wait_s, batch.repeated)

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
            waiting=len(self._pending) + len((self._block or [[]])[0]) + len(self._in_flight),
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

    @staticmethod
    def _make_messages(data: list[str], batch: _Batch) -> Iterator[_Message]:
        for text in data:
            task_id = str(uuid.uuid4())
            yield _Message(task_id, encode_body(task_id, text, time.time()), batch)

    def _send(
        self, messages: Iterable[_Message], batch: _Batch, timeout_s: float | None
    ) -> list[_Message]:
        self._check_open()
        bound_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + bound_s
        given: list[_Message] = []
        try:
            # In pieces: the I/O thread publishes the first while the next are being made.
            source = iter(messages)
            while piece := list(islice(source, BLOCK)):
                given += piece
                self._pending.extend(piece)
                self._ask_for_drain()
            in_time = batch.wait(deadline - time.monotonic())
        except BaseException:  # Ctrl-C or a kernel interrupt: what is not sent yet is not sent
            self._connection.run(lambda: self._withdraw(batch))
            raise
        if not in_time:
            # Only the I/O thread knows what is on the wire, so it decides what became of the rest.
            self._connection.run(lambda: self._withdraw(batch))
            if not batch.wait(2.0):
                unknown = {m.properties.message_id: "unknown" for m in given}
                batch.failed = {**unknown, **batch.failed}
        if batch.failed:
            raise self._error(batch, len(given), bound_s)
        return given

    def _ask_for_drain(self) -> None:
        if not self._drain_asked:
            self._drain_asked = True
            self._connection.run(self._drain)

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
        publish = spec.Basic.Publish(exchange="", routing_key=self.queue, mandatory=True)
        self._method_frame = frame.Method(channel.channel_number, publish).marshal()
        channel.add_on_return_callback(self._on_return)
        # The broker answers in order, so the answer to the last request is the answer to all.
        if self._declare:
            channel.queue_declare(self.queue, durable=True)
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._on_set_up())

    def _on_set_up(self) -> None:
        self._connection.mark_ready()
        self._drain()

    def _drain(self) -> None:
        """Publish a block if the window has room for one, else make the next block ready.

        One at a time: what is written leaves only when the I/O loop has its turn.
        """
        self._drain_asked = False
        if self._connection.is_closing or not self._connection.is_ready:
            return
        has_room = len(self._in_flight) <= WINDOW - BLOCK
        if self._block is None and self._pending:
            self._block = self._make_block()
        if self._block is None or not has_room:
            return
        (messages, frames), self._block = self._block, None
        self._connection.write(frames)
        now = time.perf_counter()
        for message in messages:
            message.published_at = now
            self._in_flight[self._next_tag] = message
            self._next_tag += 1
        if self._pending:
            self._ask_for_drain()

    def _make_block(self) -> tuple[list[_Message], bytes]:
        """Take a block of messages, and make the frames that ``channel.basic_publish`` would send.

        AMQP 0-9-1 sends a message as a method frame, a header frame and body frames. The method
        frame is the same for all of a queue, and all frames go out in one piece: half the
        work of as many calls, and one system call for fifteen hundred. Why: docs/decisions.
        """
        number = self._connection.channel.channel_number
        room = self._connection.frame_max - FRAME_OVERHEAD
        messages = [self._pending.popleft() for _ in range(min(BLOCK, len(self._pending)))]
        frames: list[bytes] = []
        for message in messages:
            body = message.body
            frames.append(self._method_frame)
            frames.append(frame.Header(number, len(body), message.properties).marshal())
            for start in range(0, len(body), room):
                frames.append(frame.Body(number, body[start : start + room]).marshal())
        return messages, b"".join(frames)

    def _undo_block(self) -> None:
        """Put back what was made ready and is not written: another channel needs other frames."""
        messages, _ = self._block or ([], b"")
        self._pending.extendleft(reversed(messages))
        self._block = None

    def _on_confirm(self, confirm: Any) -> None:
        method = confirm.method
        outcome = "" if method.NAME == "Basic.Ack" else "rejected"
        in_flight = self._in_flight
        if method.multiple:  # this confirm settles every tag up to its own
            for tag in list(takewhile(lambda tag: tag <= method.delivery_tag, in_flight)):
                self._settle(in_flight.pop(tag), outcome)
        else:
            self._settle(in_flight.pop(method.delivery_tag), outcome)
        if self._block is not None or self._pending:
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
            batch.unsettled.release()

    def _withdraw(self, batch: _Batch) -> None:
        """The caller's time is up: what is not on the wire is not sent, the rest is unknown."""
        pending = self._take_pending()
        for message in pending:
            if message.batch is batch:
                self._settle_unwritten(message)
        self._pending.extendleft(m for m in reversed(pending) if m.batch is not batch)
        for message in self._in_flight.values():
            if message.batch is batch:
                self._settle(message, "unknown")
        batch.abandoned = True  # the caller has its answer: later confirms change nothing

    def _take_back(self) -> None:
        """The channel is lost: repeat what was not confirmed, first of all, in the same order."""
        self._undo_block()
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
        for message in self._in_flight.values():
            self._settle(message, "unknown")
        self._in_flight.clear()
        for message in self._take_pending():
            self._settle_unwritten(message)

    def _settle_unwritten(self, message: _Message) -> None:
        # A message that waits for its repetition was on the wire of the lost connection.
        self._settle(message, "unknown" if message.published_at else "not sent")

    def _take_pending(self) -> list[_Message]:
        """Take all that is pending, one by one: other threads may append meanwhile."""
        self._undo_block()
        taken = []
        while self._pending:
            taken.append(self._pending.popleft())
        return taken
