"""Send tasks so that, once ``send`` has returned, the task is in the queue.

It takes three things: publisher confirms (the broker confirms that it is responsible for the
message), ``mandatory`` (the broker returns a message that it cannot route to any queue), and
publishing unconfirmed messages again after a lost connection, with the same ``message_id``.
``_outbox`` does the publishing. See RabbitMQ's guides on publisher confirms and on reliability.
"""

from __future__ import annotations

import time
import uuid
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from mqlab import events
from mqlab._explain import explain_not_sent, explain_outcomes
from mqlab._outbox import BLOCK, BLOCK_BYTES, Batch, Message, Outbox
from mqlab.arguments import check_count, check_queue, check_seconds
from mqlab.connection import Connection
from mqlab.errors import MqlabError, OutcomeUnknown, SendError, SendOutcome
from mqlab.records import ProducerState, ProducerStatus, SendManyRecord, SendRecord
from mqlab.settings import HEARTBEAT_S, Settings
from mqlab.task import QUEUE, Task, encode_body, encode_data

STATES: dict[str, ProducerState] = {
    "new": "new",
    "connecting": "reconnecting",
    "ready": "connected",
    "closed": "closed",
    "failed": "failed",
}


class Producer:
    """Sends tasks to one queue over a connection that stays open. Thread-safe.

    The queue is declared as in the walk-through: durable, without arguments. With
    ``declare=False`` it is used as it is, and sending to a missing queue raises Unroutable.
    ``timeout_s`` is the time limit for connecting, and the default for each send.

    Raises SettingsError for an argument that is not valid, ConnectError if the broker cannot be
    reached, AccessRefused or QueueRefused if it refuses the login or the queue, and QueueMismatch
    if the queue exists with different properties.

    A producer starts in its constructor, because a caller wants to send now; with ``start=False``
    it starts like a BackgroundConsumer, in ``start`` or in a ``with`` block. Both are closed by
    ``close``, and by leaving the block.
    """

    def __init__(
        self,
        queue: str = QUEUE,
        *,
        settings: Settings | None = None,
        timeout_s: float = 10.0,
        declare: bool = True,
        heartbeat_s: int = HEARTBEAT_S,
        start: bool = True,
    ) -> None:
        self.queue = check_queue(queue, declare=declare)
        self.timeout_s = check_seconds("timeout_s", timeout_s)
        check_count("heartbeat_s", heartbeat_s, 0, 65535)
        self._outbox = Outbox(queue, declare=declare)
        self._connection = self._outbox.connection = Connection(
            settings or Settings.from_env(),
            name=f"mqlab producer for {queue}",
            on_channel=self._outbox.set_up,
            on_lost=self._outbox.take_back,
            on_ended=self._outbox.end,
            queue=queue,
            owner=self,
            heartbeat_s=heartbeat_s,
        )
        # An interrupt may strike before the caller has a reference to this object.
        weakref.finalize(self, self._connection.close_soon).atexit = False
        if start:
            self.start()

    def __enter__(self) -> Producer:
        return self.start() if self._connection.state == "new" else self

    def __exit__(self, *_exc: object) -> None:
        try:
            self.close()
        except BaseException:  # an interrupt: nobody will call close again
            self._connection.close_soon()
            raise

    def __repr__(self) -> str:
        return f"<producer for {self.queue!r}: {self.status().state}>"

    def start(self, timeout_s: float | None = None) -> Producer:
        """Connect, declare the queue and enable confirms, once. Raises what the class does."""
        bound_s = self.timeout_s if timeout_s is None else check_seconds("timeout_s", timeout_s)
        if self._connection.state != "new":
            raise MqlabError(
                "This producer was started before.", fix="create another one: Producer(queue=...)"
            )
        try:
            self._connection.open(bound_s)
        except BaseException:
            self._connection.close_soon()
            raise
        return self

    def send(
        self, data: Any, *, task_id: str | None = None, timeout_s: float | None = None
    ) -> SendRecord:
        """Send one task; return when the broker has confirmed that it is in the queue.

        To send a task again whose outcome was unknown, pass its ``task_id``. Raises TaskError if
        ``data`` cannot be sent; Unroutable, Rejected or NotSent if the task was not accepted; and
        OutcomeUnknown if no confirm arrived within ``timeout_s`` seconds.
        """
        started = time.perf_counter()
        deadline, bound_s = self._begin(timeout_s)
        task = Task(data) if task_id is None else Task(data, task_id)
        batch = Batch(1)
        message = Message(task.task_id, task.to_json(), batch)
        self._send([message], batch, deadline, bound_s)
        ended = time.perf_counter()
        published = message.published_at
        record = SendRecord(
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
        events.publish("sent", self, self.queue, record)
        return record

    def send_many(self, items: Iterable[Any], *, timeout_s: float | None = None) -> SendManyRecord:
        """Send a task for each of ``items``; return when the broker has confirmed all of them.

        All items are encoded first: if one cannot be, TaskError is raised and nothing is sent.
        Raises the errors of ``send``, with an entry in ``outcomes`` for each task that was not
        confirmed. ``timeout_s`` is the time limit for all of them together.
        """
        started = time.perf_counter()
        deadline, bound_s = self._begin(timeout_s)
        data = [encode_data(item) for item in items]
        batch = Batch(len(data))
        ids = self._send(_make_messages(data, batch), batch, deadline, bound_s)
        wait_s = time.perf_counter() - started
        record = SendManyRecord(tuple(ids), self.queue, wait_s, batch.repeated)
        events.publish("sent", self, self.queue, record)
        return record

    def status(self) -> ProducerStatus:
        """Return what the producer is doing now. Cheap, and never blocks."""
        connection, outbox = self._connection, self._outbox
        return ProducerStatus(
            state=STATES[connection.state],
            queue=self.queue,
            sent=outbox.sent,
            waiting=outbox.waiting,
            repeated=outbox.repeated,
            reconnected=max(0, connection.opened - 1),
            blocked=connection.blocked,
            trouble=connection.trouble,
            error=connection.error,
        )

    @property
    def declare_s(self) -> float:
        """Seconds that it took to open the channel, declare the queue and enable confirms."""
        return self._connection.declare_s

    def close(self, timeout_s: float = 5.0) -> None:
        """Close the connection. Sends that still wait in other threads end with their outcomes."""
        self._connection.close(check_seconds("timeout_s", timeout_s))

    def _begin(self, timeout_s: float | None) -> tuple[float, float]:
        """Check that a send may begin, and wait while too many unsent bytes are waiting."""
        bound_s = self.timeout_s if timeout_s is None else check_seconds("timeout_s", timeout_s)
        if self._connection.error is not None:
            raise self._connection.error
        if self._connection.state == "new":
            raise MqlabError("This producer is not started.", fix="call its start() first")
        if self._connection.is_closing:
            raise MqlabError(
                "This producer is closed.", fix="create a new one: Producer(queue=...)"
            )
        deadline = time.monotonic() + bound_s
        self._wait_for_room(deadline)
        if self._outbox.is_full:
            raise explain_not_sent(
                f"Nothing was sent to queue {self.queue!r}.", bound_s, self._connection.trouble
            )
        return deadline, bound_s

    def _wait_for_room(self, deadline: float) -> None:
        while self._outbox.is_full and time.monotonic() < deadline:
            time.sleep(0.01)

    def _send(
        self, messages: Iterable[Message], batch: Batch, deadline: float, bound_s: float
    ) -> list[str]:
        """Send, and return the tasks' ids."""
        connection, outbox = self._connection, self._outbox
        source, ids = iter(messages), list[str]()
        try:
            # In pieces: the I/O thread publishes one while the next is prepared.
            while piece := _take_piece(source):
                ids += [message.task_id for message in piece]
                connection.run(partial(outbox.accept, piece))
                self._wait_for_room(deadline)
            in_time = batch.wait(deadline - time.monotonic())
        except BaseException:  # Ctrl-C or a kernel interrupt: send nothing more
            connection.run(lambda: outbox.withdraw(batch))
            raise
        if not in_time:
            # Only the I/O thread knows what was written, so it decides the remaining outcomes.
            connection.run(lambda: outbox.withdraw(batch))
            if not batch.wait(2.0):  # the I/O thread has ended, or is too busy to decide
                rest: SendOutcome = "not sent" if connection.has_ended else "unknown"
                batch.failed = dict.fromkeys(ids, rest) | batch.failed
        if batch.failed:
            raise self._explain(batch, len(ids), bound_s)
        return ids

    def _explain(self, batch: Batch, size: int, bound_s: float) -> SendError | OutcomeUnknown:
        connection = self._connection
        return explain_outcomes(
            batch.failed,
            size=size,
            queue=self.queue,
            bound_s=bound_s,
            words=batch.words,
            blocked=connection.blocked,
            closed=connection.is_closing,
            trouble=connection.trouble,
        )


def _make_messages(data: list[str], batch: Batch) -> Iterator[Message]:
    for text in data:
        task_id = str(uuid.uuid4())
        yield Message(task_id, encode_body(task_id, text, time.time()), batch)


def _take_piece(source: Iterable[Message]) -> list[Message]:
    """Take the messages for the next block."""
    piece: list[Message] = []
    size = 0
    for message in islice(source, BLOCK):
        piece.append(message)
        size += len(message.body)
        if size >= BLOCK_BYTES:
            break
    return piece
