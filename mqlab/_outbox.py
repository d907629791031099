"""The I/O half of a producer: frames, confirms, returns, and publishing again.

Only the I/O thread writes the fields and calls the methods; a caller hands over messages with
``connection.run`` and waits for its batch. If the connection is lost, messages that were not
confirmed are published again on the next one, with the same ``message_id``. If the broker closed
the channel, one of the messages was the reason. Then they are published one at a time until the
message that closes the channel is found: it is rejected, and the others are published as usual.
"""

from __future__ import annotations

import queue as queues
import re
import time
from collections import deque
from itertools import takewhile
from typing import Any

import pika
from pika import frame, spec

from mqlab.connection import Connection
from mqlab.errors import MqlabError, SendOutcome

WINDOW, WINDOW_BYTES = 1000, 8 * 1024 * 1024
"""How many messages and bytes may wait for confirms. Larger windows were not faster."""
BLOCK, BLOCK_BYTES = WINDOW // 2, 1024 * 1024
"""How many messages and bytes are written at a time. The next block is prepared while the broker
works, and goes out when the window has room for all of it, because short bursts cost more."""
FULL_BYTES = 32 * 1024 * 1024
"""Callers have to wait while more bytes than this are waiting for the window."""
FRAME_OVERHEAD = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE


class Batch:
    """The messages of one caller, who waits until each has an outcome."""

    __slots__ = ("abandoned", "failed", "open", "repeated", "settled", "words")

    def __init__(self, size: int) -> None:
        self.open = size
        self.abandoned = False
        self.failed: dict[str, SendOutcome] = {}
        self.repeated = 0
        self.words = ""  # the broker's, if it rejected a message
        # A SimpleQueue, because an interrupt cannot leave it locked.
        self.settled: queues.SimpleQueue[None] = queues.SimpleQueue()

    def wait(self, timeout_s: float) -> bool:
        """Wait until each message has an outcome. Return False if the time runs out first."""
        try:
            if self.open:
                self.settled.get(timeout=max(0.0, timeout_s))
        except queues.Empty:
            return self.open == 0
        return True


class Message:
    """One message, and what is known about it."""

    __slots__ = ("batch", "body", "properties", "published_at", "returned", "task_id")

    def __init__(self, task_id: str, body: bytes, batch: Batch) -> None:
        self.task_id, self.body, self.batch = task_id, body, batch
        self.properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,  # persistent: written to disk, so it survives a restart of the broker
            message_id=task_id,
        )
        self.published_at = 0.0
        self.returned = False


class Outbox:
    """The messages of one producer that have no outcome yet."""

    connection: Connection

    def __init__(self, queue: str, *, declare: bool) -> None:
        self._queue, self._declare = queue, declare
        self._pending: deque[Message] = deque()  # not written yet
        self._in_flight: dict[int, Message] = {}  # by delivery tag, in order
        self._block: tuple[list[Message], bytes] | None = None  # encoded, not written
        self._suspects = 0  # how many, at the front, go out one at a time
        self._next_tag = 1
        self._method_frame = b""
        self._drain_asked = False
        self.waiting_bytes = self._in_flight_bytes = 0
        self.sent = self.repeated = 0

    # ---- read by any thread

    @property
    def is_full(self) -> bool:
        """Whether a caller should wait before handing over more."""
        return self.waiting_bytes > FULL_BYTES

    @property
    def waiting(self) -> int:
        """How many messages have no outcome yet."""
        block = self._block
        return len(self._pending) + len(self._in_flight) + (len(block[0]) if block else 0)

    # ---- handed over by a caller

    def accept(self, messages: list[Message]) -> None:
        """Publish these messages when there is room."""
        if not self.waiting:
            self._suspects = 0
        self._pending.extend(messages)
        self.waiting_bytes += sum(len(message.body) for message in messages)
        if not self._drain_asked:
            self.drain()

    def withdraw(self, batch: Batch) -> None:
        """Give up a batch: what was not written is ``not sent``, the rest is ``unknown``."""
        self._undo_block()
        mine = [message for message in self._pending if message.batch is batch]
        self._pending = deque(m for m in self._pending if m.batch is not batch)
        self.waiting_bytes -= sum(len(message.body) for message in mine)
        for message in mine:
            self._settle_unwritten(message)
        for message in self._in_flight.values():
            if message.batch is batch:
                self._settle(message, "unknown")
        batch.abandoned = True  # the caller has the outcomes: later confirms change nothing

    # ---- called by the connection

    def set_up(self, channel: Any) -> None:
        """Prepare a new channel: declare the queue, enable confirms, publish what is waiting."""
        self._next_tag = 1
        publish = spec.Basic.Publish(exchange="", routing_key=self._queue, mandatory=True)
        self._method_frame = frame.Method(channel.channel_number, publish).marshal()
        channel.add_on_return_callback(self._on_return)
        # The broker replies in order, so the reply to the last request completes all of them.
        if self._declare:
            channel.queue_declare(self._queue, durable=True)
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._on_set_up())

    def take_back(self) -> None:
        """Handle a lost channel: unconfirmed messages go back to the front, in order."""
        self._undo_block()
        again = [message for message in self._in_flight.values() if not message.batch.abandoned]
        self._in_flight.clear()
        self._in_flight_bytes = 0
        words = self.connection.refusal
        culprit = _find_culprit(again, words)
        if culprit is not None:
            again.remove(culprit)
            culprit.batch.words = words
            self._settle(culprit, "rejected")
            self._suspects = max(0, self._suspects - 1)
        if words:
            self._suspects = max(self._suspects, len(again))
        if culprit is not None and self._suspects:  # do not delay their next channel
            self.connection.mark_progress()
        for message in again:
            message.returned = False
            message.batch.repeated += 1
        self.repeated += len(again)
        self.waiting_bytes += sum(len(message.body) for message in again)
        self._pending.extendleft(reversed(again))

    def end(self, _error: MqlabError | None = None) -> None:
        """Give every message its outcome: there will be no further channel."""
        self._undo_block()
        for message in self._in_flight.values():
            self._settle(message, "unknown")
        for message in self._pending:
            self._settle_unwritten(message)
        self._in_flight.clear()
        self._pending.clear()
        self.waiting_bytes = 0

    # ---- publishing

    def _on_set_up(self) -> None:
        self.connection.mark_ready()
        self.drain()

    def drain(self) -> None:
        """Publish a block if the window has room for one, else prepare the next block.

        Only one block: its bytes leave when the I/O loop gets its turn.
        """
        self._drain_asked = False
        if self.connection.is_closing or not self.connection.is_ready:
            return
        if self._block is None and self._pending:
            self._block = self._make_block()
        if self._block is None or not self._has_room:
            return
        (messages, frames), self._block = self._block, None
        self.connection.write(frames)
        now, tag, size = time.perf_counter(), self._next_tag, 0
        for message in messages:
            message.published_at = now
            self._in_flight[tag] = message
            tag += 1
            size += len(message.body)
        self._next_tag = tag
        self._in_flight_bytes += size
        self.waiting_bytes -= size
        if self._pending and not self._suspects:
            self._drain_asked = True
            self.connection.run(self.drain)

    @property
    def _has_room(self) -> bool:
        if self._suspects or self._in_flight_bytes > WINDOW_BYTES:
            return not self._in_flight
        return len(self._in_flight) <= WINDOW - BLOCK

    def _make_block(self) -> tuple[list[Message], bytes]:
        """Take a block of messages, and make the frames that ``channel.basic_publish`` would send.

        In AMQP 0-9-1, a message is a method frame, a header frame and body frames. The method frame
        is the same for every message of a queue, and all frames are written in one piece. That
        takes half the work, and one system call in place of 1,500. See docs/decisions.
        """
        number = self.connection.channel.channel_number
        room = self.connection.frame_max - FRAME_OVERHEAD
        most = 1 if self._suspects else BLOCK
        pending, method_frame = self._pending, self._method_frame
        messages: list[Message] = []
        frames: list[bytes] = []
        size = 0
        while pending and len(messages) < most and size < BLOCK_BYTES:
            message = pending.popleft()
            body = message.body
            messages.append(message)
            size += len(body)
            frames.append(method_frame)
            frames.append(frame.Header(number, len(body), message.properties).marshal())
            for start in range(0, len(body), room):
                frames.append(frame.Body(number, body[start : start + room]).marshal())
        return messages, b"".join(frames)

    def _undo_block(self) -> None:
        """Put back the messages of an unwritten block: its frames are valid on one channel only."""
        messages, _ = self._block or ([], b"")
        self._pending.extendleft(reversed(messages))
        self._block = None

    # ---- outcomes

    def _on_confirm(self, confirm: Any) -> None:
        method = confirm.method
        outcome: SendOutcome | None = None if method.NAME == "Basic.Ack" else "rejected"
        in_flight = self._in_flight
        if method.multiple:  # this confirm covers every tag up to its own
            for tag in list(takewhile(lambda tag: tag <= method.delivery_tag, in_flight)):
                self._confirm(in_flight.pop(tag), outcome)
        else:
            self._confirm(in_flight.pop(method.delivery_tag), outcome)
        if self.connection.trouble:
            self.connection.mark_progress()
        if self._block is not None or self._pending:
            self.drain()

    def _confirm(self, message: Message, outcome: SendOutcome | None) -> None:
        self._in_flight_bytes -= len(message.body)
        if self._suspects:
            self._suspects -= 1
        self._settle(message, outcome)

    def _on_return(self, _channel: Any, _method: Any, properties: Any, _body: bytes) -> None:
        # basic.return arrives before the message's ack, which only means that it was handled.
        for message in self._in_flight.values():
            if message.task_id == properties.message_id:
                message.returned = True

    def _settle(self, message: Message, outcome: SendOutcome | None) -> None:
        batch = message.batch
        if batch.abandoned:
            return
        if outcome is None and message.returned:
            outcome = "unroutable"
        if outcome is not None:
            batch.failed[message.task_id] = outcome
        else:
            self.sent += 1
        batch.open -= 1
        if batch.open == 0:
            batch.settled.put(None)

    def _settle_unwritten(self, message: Message) -> None:
        # A message that is to be published again was written to the lost connection.
        self._settle(message, "unknown" if message.published_at else "not sent")


def _find_culprit(messages: list[Message], words: str) -> Message | None:
    """Return the message because of which the broker closed the channel, if it is known.

    It is known if it was the only one, or if the broker's words name its size.
    """
    if words and len(messages) == 1:
        return messages[0]
    size = re.search(r"message size (\d+) is larger", words)
    if size is None:
        return None
    return next((m for m in messages if len(m.body) == int(size[1])), None)
