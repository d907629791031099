"""The I/O half of a connection: open it, reopen it, notice what goes wrong, close it.

Only the I/O thread writes the fields, except where a comment names another thread. However the
thread ends, it closes its socket, wakes every waiting caller, and leaves the registry.
"""

from __future__ import annotations

import contextlib
import queue as queues
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pika.exceptions
from pika.adapters.select_connection import IOLoop

from mqlab import _pika, events
from mqlab._explain import broker_words, explain, explain_refusal
from mqlab.errors import AccessRefused, ConnectError, MqlabError, QueueMismatch, describe
from mqlab.settings import HEARTBEAT_S, Settings

CONNECT_TIMEOUT_S = 4.5
"""Seconds for one attempt: DNS, TCP, and the AMQP handshake, which opens the virtual host."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
TICK_S = 0.5
STABLE_S = 30.0
"""After this many seconds without a loss, pauses start again with the shortest."""

registry: dict[int, Any] = {}  # this process's connections; each I/O thread adds its own


class IoThread:
    """The I/O half of a Connection. Other threads only set ``_closing`` and call ``run``."""

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        on_channel: Callable[[Any], None],
        on_lost: Callable[[], None],
        on_ended: Callable[[MqlabError | None], None],
        queue: str = "",
        owner: Any = None,
        heartbeat_s: int = HEARTBEAT_S,
    ) -> None:
        self.settings, self.name, self.queue = settings, name, queue
        self._owner = weakref.ref(owner) if owner is not None else lambda: None
        self._on_channel, self._on_lost, self._on_ended = on_channel, on_lost, on_ended
        self._heartbeat_s = heartbeat_s
        self._closing = False  # set by any thread, never cleared
        self._close_within_s = 5.0
        self._outcome: queues.SimpleQueue[MqlabError | None] = queues.SimpleQueue()  # of open()
        # Only the I/O thread writes the rest.
        self.channel: Any = None
        self.error: MqlabError | None = None
        self.last_error: MqlabError | None = None
        self.refusal = ""  # the broker's words, if the broker closed the channel
        self.trouble = ""  # why the channel was lost; empty once something works again
        self.blocked: str | None = None
        self.opened = 0
        self.server_version = ""
        self.connect_s = self.declare_s = 0.0
        self._lost_because = ""
        self.stalled_s = 0.0  # seconds for which the thread could not run before the loss
        self._connection: Any = None
        self._loop: Any = None
        self._ready = False
        self._pauses = 0
        self._ready_at = self._ticked_at = self._stall_ended_at = self._stall_s = 0.0
        # Not Thread.join and is_alive: after an interrupt they report a running thread as ended.
        self._begun = self._ended = False
        self._running = threading.Lock()
        self._running.acquire()
        self._thread = threading.Thread(target=self._run_loop, name=name, daemon=True)

    @property
    def owner(self) -> Any:
        """The producer or consumer that uses the connection; None once it has been collected."""
        return self._owner()

    @property
    def is_ready(self) -> bool:
        """Whether the channel has been set up."""
        return self._ready

    @property
    def is_closing(self) -> bool:
        """Whether the connection is closed or closing."""
        return self._closing

    # ---- for the owner's callbacks, in this thread

    def mark_ready(self) -> None:
        """Note that the channel has been set up."""
        now = time.perf_counter()
        self.declare_s = now - self._connected_at
        self._ready_at = time.monotonic()
        self.opened += 1
        self._ready, self.last_error = True, None
        events.publish("opened", self.owner, self.queue, detail=str(self.settings))
        if self.opened == 1:
            self._outcome.put(None)

    def mark_progress(self) -> None:
        """Note that something works again: clear ``trouble``, and make the next pause short."""
        self.trouble, self._pauses = "", 0

    def run_later(self, delay_s: float, function: Callable[[], object]) -> None:
        """Call ``function`` after ``delay_s`` seconds."""
        self._loop.call_later(delay_s, function)

    @property
    def is_writable(self) -> bool:
        """Whether the channel and its connection are open."""
        channel = self.channel
        return channel is not None and channel.is_open and self._connection.is_open

    @property
    def frame_max(self) -> int:
        """The largest frame, in bytes, that was negotiated with the broker."""
        return int(self._connection.params.frame_max)

    def write(self, frames: bytes) -> None:
        """Queue whole frames of this connection's channels for writing."""
        _pika.write(self._connection, frames)

    def open_channel(self, on_open: Callable[[Any], None]) -> None:
        """Open another channel on the same connection."""
        if self._connection.is_open:
            self._connection.channel(on_open_callback=on_open)

    def reopen_channel(self) -> None:
        """Close the channel, so that a new one is opened."""
        if self.is_writable:
            self.channel.close()

    def _start_thread(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # the system allows no more threads
            self._note_bug(error)
            self._end()

    def _run_loop(self) -> None:
        registry[id(self)] = self
        try:
            self._loop = IOLoop()
            self._ticked_at = time.monotonic()
            self._tick()
            self._connect()
            self._loop.start()
        except BaseException as caught:  # a callback raised it: keep it for status()
            # pika also raises if it is closed while it opens, which is no error.
            if not self._closing:
                self._note_bug(getattr(self._connection, "bug", None) or caught)
        finally:
            self._end()

    def end_in_child(self) -> None:
        """Note, in a forked child process, that the connection belongs to the parent."""
        self.error = self.error or MqlabError(
            f"{self.name} belongs to the parent process, from which this process was forked.",
            why="threads do not survive a fork, so nothing here can use its connection",
            fix="create a Producer or BackgroundConsumer in this process",
        )
        # The socket is left alone: the parent uses it.
        self._closing, self._ended, self._ready, self._loop = True, True, False, None

    def _note_bug(self, bug: BaseException) -> None:
        error = MqlabError(
            f"The I/O thread of {self.name} ended: {describe(bug)}",
            why="an error in mqlab or pika",
            fix="start it again; if it fails again, report the chained error",
        )
        error.__cause__ = bug
        self.error = self.error or error

    def _end(self) -> None:
        """Clean up. An error in one step must not prevent the next."""
        self._closing, self._ready, self.channel = True, False, None
        error = self.error
        unopened = error or MqlabError(f"{self.name} was closed while it was being opened.")
        kind: events.EventKind = "failed" if error else "closed"
        detail = error.what if error else ""
        steps: list[Callable[[], object]] = [
            lambda: _pika.abort(self._connection),
            lambda: registry.pop(id(self), None),
            lambda: self._on_ended(error),
            lambda: self._loop.close(),
            lambda: events.publish(kind, self.owner, self.queue, detail=detail),
            lambda: self._outcome.put(unopened),
        ]
        for step in steps:
            with contextlib.suppress(BaseException):
                step()
        self._ended = True
        self._running.release()

    def _tick(self) -> None:
        """Measure stalls of this thread, and notice ``_closing`` if its caller was interrupted."""
        now = time.monotonic()
        late_s, self._ticked_at = now - self._ticked_at - TICK_S, now
        if late_s > TICK_S:
            self._stall_s, self._stall_ended_at = late_s, now
        if self._closing:
            self._close_in_loop()
        self.run_later(TICK_S, self._tick)

    @property
    def late_s(self) -> float:
        """Seconds by which this thread is late, because it could not run. Usually 0 or less."""
        return time.monotonic() - self._ticked_at - TICK_S

    def _find_stall(self) -> float:
        recent = time.monotonic() - self._stall_ended_at < 2 * TICK_S
        return max(self._stall_s if recent else 0.0, self.late_s)

    def _connect(self) -> None:
        if self._closing:
            self._loop.stop()
            return
        self._started_at = time.perf_counter()
        self._connection = _pika.SturdyConnection(
            self.settings.parameters(
                name=self.name, timeout_s=CONNECT_TIMEOUT_S, heartbeat=self._heartbeat_s
            ),
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_open_error,
            on_close_callback=self._on_close,
            custom_ioloop=self._loop,
        )

    def _on_open(self, connection: Any) -> None:
        self._connected_at = time.perf_counter()
        self.connect_s = self._connected_at - self._started_at
        self.server_version = str(connection.server_properties.get("version", "unknown"))
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._open_channel()

    def _open_channel(self) -> None:
        if self._closing:
            self._close_in_loop()
        elif self._connection.is_open:
            self._connection.channel(on_open_callback=self._on_channel_open)

    def _on_channel_open(self, channel: Any) -> None:
        self.channel = channel
        channel.add_on_close_callback(self._on_channel_close)
        self._on_channel(channel)

    def _on_channel_close(self, channel: Any, reason: Exception) -> None:
        if channel is not self.channel:
            return
        refused = isinstance(reason, pika.exceptions.ChannelClosedByBroker)
        self.refusal = broker_words(reason) if refused else ""
        self._lose("" if self._closing else self.refusal or explain(reason, self.settings).why)
        if not self._connection.is_open or self._closing:
            return
        if refused:
            error = explain_refusal(reason, self.name)
            if not self.opened or isinstance(error, QueueMismatch):
                self._give_up(error)
                return
        self.run_later(self._next_pause_s(), self._open_channel)

    def _on_open_error(self, _connection: Any, reason: Exception) -> None:
        error = explain(reason, self.settings)
        # Why the connection was lost says more than why it cannot be opened now.
        self.trouble = self._lost_because or f"{error.what} {error.why}".strip()
        self._retry(error)

    def _on_close(self, _connection: Any, reason: Exception) -> None:
        error = explain(reason, self.settings)
        self._lose(error.why or error.what)
        self._retry(error)

    def _retry(self, error: ConnectError) -> None:
        if self._connection.bug is not None:
            raise self._connection.bug
        self.last_error = error
        if self._closing:
            self._loop.stop()
        elif not self.opened or isinstance(error, AccessRefused):
            self._give_up(error)  # the same password would be refused again
        else:
            self.run_later(self._next_pause_s(), self._connect)

    def _next_pause_s(self) -> float:
        """Exponential backoff with jitter, so that many clients do not reconnect at the same time.

        A successful attempt does not reset it: only progress or time does.
        """
        if self._ready_at and time.monotonic() - self._ready_at > STABLE_S:
            self._pauses = 0
        pause_s: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._pauses)
        self._pauses = min(self._pauses + 1, 10)
        return pause_s * random.uniform(0.5, 1.0)

    def _lose(self, detail: str) -> None:
        had_channel, self.channel, self._ready, self.blocked = self.channel, None, False, None
        if had_channel is not None:
            self.stalled_s = self._find_stall()
            self.trouble = detail
            self._on_lost()
            self._lost_because = self.trouble
            if not self._closing:
                events.publish("lost", self.owner, self.queue, detail=detail)

    def _give_up(self, error: MqlabError) -> None:
        self.error = self.error or error
        self._outcome.put(self.error)
        self._closing, self._close_within_s = True, 1.0
        self._close_in_loop()

    def _close_in_loop(self) -> None:
        connection = self._connection
        if connection is None or connection.is_closed:
            self._loop.stop()
        elif not connection.is_closing:
            connection.close()
            # A broker that does not reply to the close must not hold up the thread.
            self.run_later(self._close_within_s, self._loop.stop)

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self.blocked = frame.method.reason

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self.blocked = None
