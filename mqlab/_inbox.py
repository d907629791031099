"""The I/O half of a consumer: deliveries, acks, retries, and the dead-letter queue.

Only the I/O thread writes the fields, except where a comment names another thread. A task is
acknowledged once, after its work, on the channel that delivered it. A task that failed is moved to
the end of the queue, with the attempt in a header, or to the dead-letter queue, with the reason.
A task that waits for its next attempt, or cannot be moved, is held here. Meanwhile it takes no
prefetch slot, so other tasks continue.

Redeliveries are bounded. If a channel is lost while a task is running, and the task is the reason
(the broker's ack time-out, or a handler that held Python's GIL), the task is redelivered up to
``max_attempts`` times; if the network is the reason, up to LOST_LIMIT times. Then it is dead.
"""

from __future__ import annotations

import os
import queue as queues
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from copy import copy
from itertools import chain, islice, takewhile
from typing import Any

from pika import frame, spec

from mqlab import events
from mqlab._mover import Move, Mover
from mqlab._pika import UNDECODED_HEADER
from mqlab.connection import Connection
from mqlab.errors import MqlabError, TaskError
from mqlab.records import Outcome, StopReport, TaskRecord
from mqlab.task import Task

RECORDS_KEPT = 5_000
RECORDS_BYTES = 64 * 1024 * 1024
"""The newest records are kept, but their data and results only up to this many bytes in all."""
HEADER_PREFIX = "mqlab-"
ATTEMPTS_HEADER, REASON_HEADER = "mqlab-attempts", "mqlab-reason"
QUEUE_HEADER, WORKER_HEADER = "mqlab-queue", "mqlab-worker"

LONGEST_RETRY_DELAY_S = 3600.0
REFUSED_PAUSE_S, LONGEST_REFUSED_PAUSE_S = 1.0, 30.0
HELD_LIMIT, HELD_BYTES = 1_000, 32 * 1024 * 1024
"""How many deliveries, and how many bytes of them, may be held beyond the prefetch."""
LEAST_DELAY_HELD_S = 0.1
PARTS_MEASURED = 10_000
SIZE_UNKNOWN = 1024 * 1024
"""What a result counts for, in bytes, if it cannot be measured."""
STALLED_S = 1.0
"""Seconds without a turn after which the I/O thread counts as stalled."""
LOST_LIMIT = 20
"""How often a task that is not at fault may be redelivered: the default delivery limit of quorum
queues since RabbitMQ 4.0."""
LOSSES_KEPT = 10_000


Key = tuple[str | None, int]


class Delivery:
    """One delivery, and its outcome."""

    __slots__ = (
        "body", "channel", "held", "lost_words", "pause_s",
        "properties", "record", "refused", "settled", "size", "tag",
    )  # fmt: skip

    def __init__(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self.channel, self.tag = channel, method.delivery_tag
        self.properties, self.body, self.size = properties, body, len(body)
        self.settled = self.held = self.refused = False
        self.pause_s, self.lost_words = REFUSED_PAUSE_S, ""
        attempts = (properties.headers or {}).get(ATTEMPTS_HEADER, 0)
        attempt = attempts + 1 if type(attempts) is int and 0 <= attempts < 1_000_000 else 1
        now, redelivered = time.time(), method.redelivered
        self.record = TaskRecord(properties.message_id, None, None, now, redelivered, attempt)

    @property
    def key(self) -> Key:
        """Identifies the message when it is redelivered."""
        return self.properties.message_id, hash(self.body)

    def find_id(self) -> str | None:
        """Return the task's id, or else the id of the message."""
        try:
            return Task.from_json(self.body).task_id
        except TaskError:
            message_id: str | None = self.properties.message_id
            return message_id


class Waiter:
    """A waiting caller: the bell wakes it, and ``settled`` collects the records from now on."""

    def __init__(self) -> None:
        # A SimpleQueue, because an interrupt cannot leave it locked.
        self.bell: queues.SimpleQueue[None] = queues.SimpleQueue()
        self.settled: dict[int, TaskRecord] = {}  # by number; the I/O thread adds to it


class Inbox:
    """The deliveries of one consumer, from the broker to a worker and back."""

    connection: Connection

    def __init__(
        self,
        queue: str,
        *,
        declare: bool,
        prefetch: int,
        max_attempts: int,
        retry_delay_s: float,
        start_worker: Callable[[int], threading.Thread],
        workers: int,
    ) -> None:
        self.queue, self.dead_queue = queue, f"{queue}.dead"
        self._declare, self._prefetch = declare, prefetch
        self.max_attempts, self._retry_delay_s = max_attempts, retry_delay_s
        self._start_worker, self.workers = start_worker, workers
        self.todo: queues.SimpleQueue[Delivery | None] = queues.SimpleQueue()
        self.working: list[Delivery | None] = [None] * workers  # each worker writes its own item
        self._finished: deque[Delivery] = deque()  # workers append
        self._flush_asked = False
        self._unacked: dict[int, Delivery] = {}  # by delivery tag, in order
        self._mover = Mover(self._on_moved, self._on_refused)
        self._consumer_tag = ""
        self._is_subscribing = False
        self._held = self._held_bytes = self._freed = self._refused = 0
        self._waiting: dict[int, Move] = {}  # for their time to come, by number
        self._waits = 0
        self._cancelled = ""
        # By message: how many more redeliveries are allowed, and the reason for the last one.
        self._losses: OrderedDict[Key, tuple[int, str]] = OrderedDict()
        self._acked: deque[Key] = deque(maxlen=1_000)  # the newest on this channel
        self._doubtful: OrderedDict[Key, tuple[int, str]] = OrderedDict()  # on earlier channels
        self._stop_at: float | None = None
        self.stopping = False
        self.report: StopReport | None = None
        self.trouble = ""
        self.counts = Counter[str]()
        self.records: deque[TaskRecord] = deque(maxlen=RECORDS_KEPT)
        self.settled: deque[tuple[int, TaskRecord]] = deque(maxlen=RECORDS_KEPT)  # done or dead
        self._sizes: deque[tuple[int, TaskRecord]] = deque()  # of records that still hold data
        self._bytes = 0
        # Callers append. Weak, because an interrupt may keep a caller from removing its own.
        self.waiters: list[weakref.ref[Waiter]] = []

    def bind(self, connection: Connection) -> None:
        """Set the connection, whose callbacks are ``set_up``, ``forget`` and ``end``."""
        self.connection = self._mover.connection = connection

    @property
    def unacked(self) -> int:
        """How many deliveries are not acknowledged yet."""
        return len(self._unacked)

    def count_settled(self) -> int:
        """Return how many tasks are done or dead in all."""
        return self.counts["done"] + self.counts["dead"]

    # ---- called by the connection

    def set_up(self, channel: Any) -> None:
        """Prepare a new channel: declare the queue, set the prefetch, subscribe."""
        channel.add_on_cancel_callback(lambda _frame: self._on_cancelled())
        # The broker replies in order, so the reply to the last request completes all of them.
        if self._declare:
            channel.queue_declare(self.queue, durable=True)
        channel.basic_qos(prefetch_count=self._prefetch)
        self._consumer_tag = channel.basic_consume(
            self.queue, self._on_message, callback=lambda _frame: self._on_subscribed()
        )

    def forget(self) -> None:
        """Handle a lost channel: the broker requeues everything that was not acknowledged on it."""
        stalled_s = self.connection.stalled_s
        words = self.connection.refusal or self._cancelled or self.connection.trouble
        if stalled_s > STALLED_S:
            words = (
                f"no heartbeat could be sent for {stalled_s:.1f} s, because a handler kept every "
                f"other thread from running: {words}"
            )
        self.connection.trouble = words
        was_its_fault = bool(self.connection.refusal or self._cancelled) or stalled_s > STALLED_S
        limit = self.max_attempts if was_its_fault else LOST_LIMIT
        for delivery in self._unacked.values():
            delivery.lost_words = words
            if delivery.record.started_at is not None and not delivery.held:
                self._note_loss(delivery.key, limit, words)
        for key in self._acked:  # acks are not confirmed: these may not have arrived
            self._doubtful[key] = (limit, words)
            _bound(self._doubtful)
        self._acked.clear()
        self._cancelled = ""
        moving = [move.subject for move in self._mover.moves]
        held = [each for each in self._unacked.values() if each.held and each not in moving]
        self._unacked.clear()
        self._held = self._held_bytes = self._freed = self._refused = 0
        self.trouble = ""
        self._is_subscribing = False
        self._waiting.clear()
        self._mover.forget()
        self._note_lost([*moving, *held])

    def end(self, _error: MqlabError | None) -> None:
        """Stop the workers and wake all waiting callers: there will be no further channel."""
        if self.report is None:
            self._make_report()
        self.stopping = True
        self._unacked.clear()
        for _ in range(self.workers):
            self.todo.put(None)
        self._ring()

    # ---- requested by a caller, through connection.run

    def stop(self, timeout_s: float) -> None:
        """Start no more tasks, let running ones finish within ``timeout_s``, then close."""
        stop_at = time.monotonic() + timeout_s
        if self._stop_at is None or stop_at < self._stop_at:
            self._stop_at = stop_at
            self.connection.run_later(timeout_s, self._finish_stop)
        if not self.stopping:
            self.stopping = True
            if self.connection.is_writable and self.connection.is_ready:
                self.connection.channel.basic_cancel(self._consumer_tag)
            for _ in range(self.workers):
                self.todo.put(None)
        self._flush()

    def ask_depth(self, answer: queues.SimpleQueue[tuple[int, int]]) -> None:
        """Put the number of ready messages and the number of consumers into ``answer``."""

        def ask(channel: Any) -> None:
            def on_answer(declared: Any) -> None:
                answer.put((declared.method.message_count, declared.method.consumer_count))
                if channel.is_open:
                    channel.close()

            channel.queue_declare(self.queue, passive=True, callback=on_answer)

        if self.connection.is_ready:  # on a channel of its own, so that a refusal does no harm
            self.connection.open_channel(ask)

    def _finish_stop(self) -> None:
        if self.report is None:
            self._flush_finished()
            self._make_report()
            self.connection.close_soon()

    def _make_report(self) -> None:
        running = tuple(str(each.find_id()) for each in self.working if each is not None)
        left = [str(delivery.find_id()) for delivery in self._unacked.values()]
        returned = tuple(task_id for task_id in left if task_id not in running)
        self.report = StopReport(self.counts["done"], returned, running)

    @property
    def _is_idle(self) -> bool:
        return not (any(self.working) or self._finished or self._mover.moves)

    # ---- deliveries

    def _on_subscribed(self) -> None:
        if self.connection.opened == 0:
            for number in range(self.workers):
                self._start_worker(number).start()
        self.connection.mark_ready()

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        delivery = Delivery(channel, method, properties, body)
        record = delivery.record
        self._unacked[delivery.tag] = delivery
        if events.are_wanted():
            events.publish("received", self.connection.owner, self.queue, record)
        reason = ""
        if method.redelivered:
            self.counts["redelivered"] += 1
            if delivery.key in self._doubtful:  # its ack was lost
                self._note_loss(delivery.key, *self._doubtful.pop(delivery.key))
            reason = self._find_reason_to_end(delivery.key)
        if properties.headers and UNDECODED_HEADER in properties.headers:
            reason = "its headers cannot be decoded"
        if reason:
            record.outcome, record.error = "dead", reason
            record.task_id = delivery.find_id()
            self._move(delivery)
        else:
            self.todo.put(delivery)

    def _find_reason_to_end(self, key: Key) -> str:
        left, words = self._losses.get(key, (LOST_LIMIT, ""))
        if left > 0:
            return ""
        del self._losses[key]
        return f"redelivered too often without being acknowledged: {words}"

    def _note_loss(self, key: Key, limit: int, words: str) -> None:
        left, _ = self._losses.pop(key, (LOST_LIMIT, ""))
        self._losses[key] = (min(left, limit) - 1, words)
        _bound(self._losses)

    def _on_cancelled(self) -> None:
        self._cancelled = (
            "basic.cancel: the queue was deleted, its node went down, or a task ran longer than "
            "the broker's ack time-out"
        )
        self.connection.reopen_channel()

    def finish(self, delivery: Delivery) -> None:
        """Take back a delivery from a worker, with the outcome in its record."""
        self._finished.append(delivery)

    def ask_for_flush(self) -> None:
        """Have the I/O thread settle what the workers have finished. Called by a worker."""
        if not self._flush_asked:
            self._flush_asked = True
            self.connection.run(self._flush)

    def _flush(self) -> None:
        if self.connection.late_s > STALLED_S:
            # The broker may have closed the connection: read that first, so that no ack is lost.
            self.connection.run_later(0.1, self._flush)
            return
        self._flush_finished()
        if self.stopping and self._is_idle:
            self._finish_stop()

    def _flush_finished(self) -> None:
        """Settle everything that the workers have finished, with as few ack frames as possible."""
        self._flush_asked = False
        acks: list[Delivery] = []
        while self._finished:
            delivery = self._finished.popleft()
            if delivery.record.outcome == "done":
                acks.append(delivery)
            else:
                self._move(delivery)
        if acks:
            self._ack(acks)

    def _ack(self, deliveries: list[Delivery]) -> None:
        now = time.time()
        channel, is_writable = self.connection.channel, self.connection.is_writable
        alive: list[Delivery] = []
        lost: list[Delivery] = []
        for delivery in deliveries:
            delivery.settled = is_writable and delivery.channel is channel
            (alive if delivery.settled else lost).append(delivery)
        self._note_lost(lost)
        run = list(takewhile(lambda tag: self._unacked[tag].settled, self._unacked))
        if run:  # `multiple` acknowledges every tag up to this one, so there may be no gap
            channel.basic_ack(run[-1], multiple=len(run) > 1)
            for tag in run:
                del self._unacked[tag]
        for delivery in alive:
            if self._unacked.pop(delivery.tag, None) is not None:
                channel.basic_ack(delivery.tag)
            delivery.record.acked_at = now
            self._acked.append(delivery.key)
        if alive:
            if self.connection.trouble:
                self.connection.mark_progress()
            self._note([delivery for delivery in alive if delivery.record.outcome != "retry"])
            self._free_slots()

    def _is_current(self, delivery: Delivery) -> bool:
        # A delivery tag is valid only on the channel that delivered it.
        return delivery.channel is self.connection.channel and self.connection.is_writable

    # ---- moving: to the end of the queue for another attempt, or to the dead-letter queue

    def _move(self, delivery: Delivery) -> None:
        record = delivery.record
        properties = mark(delivery.properties, record, self.queue, self.connection.frame_max)
        if record.outcome == "retry" and ATTEMPTS_HEADER not in properties.headers:
            record.outcome = "dead"  # without the header, attempts cannot be counted
        if record.outcome == "dead":
            self._move_now(Move(delivery, self.dead_queue, properties, delivery.body))
            return
        doubled = 2 ** min(record.attempt - 1, 30)
        delay_s = min(LONGEST_RETRY_DELAY_S, self._retry_delay_s * doubled)
        move = Move(delivery, self.queue, properties, delivery.body)
        self._note([delivery])
        if delay_s >= LEAST_DELAY_HELD_S:
            self._hold(delivery)
        self._move_later(delay_s, move)

    def _move_later(self, delay_s: float, move: Move) -> None:
        # The timer may outlive the channel by an hour, so it does not hold the message.
        self._waits += 1
        number = self._waits
        self._waiting[number] = move

        def go_on() -> None:
            if number in self._waiting:
                self._move_now(self._waiting.pop(number))

        self.connection.run_later(delay_s, go_on)

    def _move_now(self, move: Move) -> None:
        if not self._is_current(move.subject):
            self._note_lost([move.subject])
        else:
            self._mover.move(move)

    def _on_moved(self, move: Move) -> None:
        delivery: Delivery = move.subject
        if delivery.held:
            delivery.held = False
            self._held -= 1
            self._held_bytes -= len(delivery.body)
        if delivery.refused:
            self._refused -= 1
            self.trouble = self.trouble if self._refused else ""
        self._ack([delivery])
        self._flush()

    def _on_refused(self, move: Move, words: str) -> None:
        """Hold the delivery, and try to move it again later."""
        delivery: Delivery = move.subject
        self.trouble = f"a task could not be moved to {move.target!r}: {words}"
        self._refused += not delivery.refused
        delivery.refused = True
        self._hold(delivery)
        delay_s, delivery.pause_s = delivery.pause_s, delivery.pause_s * 2
        delivery.pause_s = min(delivery.pause_s, LONGEST_REFUSED_PAUSE_S)
        self._move_later(delay_s, move)
        self._flush()

    def _hold(self, delivery: Delivery) -> None:
        """Keep the delivery unacknowledged for a while, but free its prefetch slot."""
        if delivery.held:
            return
        delivery.held = True
        self._held += 1
        self._held_bytes += len(delivery.body)
        self._freed += 1
        self._free_slots()

    def _free_slots(self) -> None:
        """Subscribe anew if held deliveries take too many prefetch slots.

        The prefetch limits unacknowledged deliveries per consumer tag, and a new tag has none. So
        there may be few others yet, or they would become ever more.
        """
        need = max(min(self.workers, self._prefetch), self._prefetch // 2 + 1)
        others = len(self._unacked) - self._held
        is_short = self._prefetch - self._freed < need and others < need
        has_room = self._held <= HELD_LIMIT and self._held_bytes <= HELD_BYTES
        may_subscribe = not (self._is_subscribing or self.stopping)
        if is_short and has_room and may_subscribe and self.connection.is_writable:
            self._freed = 0
            channel = self.connection.channel
            # Not channel.basic_cancel: pika would reject deliveries that are on their way, and
            # quorum queues count that towards their delivery limit.
            cancel = spec.Basic.Cancel(consumer_tag=self._consumer_tag, nowait=True)
            self.connection.write(frame.Method(channel.channel_number, cancel).marshal())
            self._is_subscribing = True  # RabbitMQ fails if it is to cancel it before it replies
            self._consumer_tag = channel.basic_consume(
                self.queue, self._on_message, callback=lambda _frame: self._on_subscribed_anew()
            )

    def _on_subscribed_anew(self) -> None:
        self._is_subscribing = False
        self._free_slots()

    # ---- records

    def _note_lost(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.record.outcome != "retry":  # a retry was recorded when it failed
                delivery.record.outcome = "lost"
                delivery.record.error = delivery.lost_words or delivery.record.error
                self._note([delivery])

    def _note(self, deliveries: list[Delivery]) -> None:
        wanted = events.are_wanted()
        number = self.count_settled()
        waiters = [waiter for ref in self.waiters if (waiter := ref()) is not None]
        for delivery in deliveries:
            record = delivery.record
            outcome: Outcome | None = record.outcome
            self.records.append(record)
            self._weigh(delivery)
            if outcome in ("done", "dead"):  # before the count, which callers read first
                number += 1
                self.settled.append((number, record))
                for waiter in waiters:
                    waiter.settled[number] = record
            self.counts[outcome or ""] += 1
            if wanted:
                events.publish("settled", self.connection.owner, self.queue, record)
        self._ring()

    def _weigh(self, delivery: Delivery) -> None:
        """Drop the oldest data and results while the records take too many bytes."""
        record = delivery.record
        size = delivery.size
        self._sizes.append((size, record))
        self._bytes += size
        while len(self._sizes) > RECORDS_KEPT or (self._bytes > RECORDS_BYTES and self._sizes):
            size, record = self._sizes.popleft()
            self._bytes -= size
            if size > 1024 and record is not delivery.record:
                record.data = record.result = None

    def _ring(self) -> None:
        for ref in list(self.waiters):
            waiter = ref()
            if waiter is None:
                self.waiters.remove(ref)
            elif waiter.bell.empty():
                waiter.bell.put(None)


def _bound(memory: OrderedDict[Key, Any]) -> None:
    if len(memory) > LOSSES_KEPT:
        memory.popitem(last=False)


def size_of(result: Any) -> int:
    """Estimate the bytes that a result takes, from at most PARTS_MEASURED of its parts."""
    if type(result) is str:  # the common cases, measured fast
        return len(result)
    if result is None or type(result) in (bool, int, float):
        return 32
    size, measured, skipped, parts = 0, 0, 0, [result]
    try:
        while parts:
            part = parts.pop()
            measured += 1
            if isinstance(part, (str, bytes, bytearray)):
                size += len(part)
            elif isinstance(part, (list, tuple, set, frozenset, dict)):
                inside = chain(part, part.values()) if isinstance(part, dict) else part
                count = len(part) * (2 if isinstance(part, dict) else 1)
                room = max(0, PARTS_MEASURED - measured - len(parts))
                parts.extend(islice(inside, room))
                size += 8 * count
                skipped += max(0, count - room)
            else:
                nbytes = getattr(part, "nbytes", 32)  # of arrays
                size += nbytes if isinstance(nbytes, int) else 32
    except BaseException:  # the result's own code may raise anything; another thread may change it
        return max(size, SIZE_UNKNOWN)
    return size * (measured + skipped) // measured


def mark(properties: Any, record: TaskRecord, queue: str, frame_max: int) -> Any:
    """Copy the properties of a message that is moved, and add headers with the reason.

    Three properties become headers, because they must not take effect: an expiration would delete
    the message in the dead-letter queue, a foreign user id closes the channel, and CC would send
    copies elsewhere.
    """
    headers = dict(properties.headers or {})
    for name in ("CC", "BCC"):
        if name in headers:
            headers[f"{HEADER_PREFIX}{name.lower()}"] = headers.pop(name)
    for name in ("expiration", "user_id"):
        if getattr(properties, name) is not None:
            headers[f"{HEADER_PREFIX}{name.replace('_', '-')}"] = getattr(properties, name)
    headers[ATTEMPTS_HEADER] = record.attempt
    headers[REASON_HEADER] = record.error
    headers[QUEUE_HEADER] = queue
    headers[WORKER_HEADER] = f"{record.worker}, pid {os.getpid()}"
    moved = copy(properties)
    moved.headers, moved.expiration, moved.user_id = headers, None, None
    _fit(moved, frame_max)
    return moved


def _fit(properties: Any, frame_max: int) -> None:
    """Drop or shorten headers until the header frame fits: mqlab's own first, then the largest."""
    headers = properties.headers

    def excess() -> int:
        return len(frame.Header(1, 0, properties).marshal()) - frame_max

    def drop(name: str) -> None:
        if (over := excess()) <= 0 or name not in headers:
            return
        value = headers[name]
        kept = value[: max(0, len(value) - over)] if isinstance(value, (str, bytes)) else b""
        if kept and kept.isascii():
            headers[name] = kept
        else:
            del headers[name]

    for name in (WORKER_HEADER, QUEUE_HEADER, REASON_HEADER, ATTEMPTS_HEADER):
        drop(name)
    for name in sorted(headers, key=lambda name: -len(repr(headers[name]))):
        drop(name)
