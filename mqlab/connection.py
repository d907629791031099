"""One pika connection with one channel, owned by one I/O thread, that comes back when it is lost.

pika's connections and channels belong to the thread that runs their I/O loop. So here one thread
runs the loop, heartbeats go on whatever the others do, and every other thread hands it a function
with ``run``. What is sent or consumed on the channel is left to ``producer`` and ``consumer``.
"""

from __future__ import annotations

import atexit
import contextlib
import random
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pika.exceptions
from pika.adapters.select_connection import IOLoop

from mqlab.errors import AccessRefused, ConnectError, MqlabError, QueueMismatch
from mqlab.settings import HEARTBEAT_S, Settings

CONNECT_TIMEOUT_S = 4.5
"""Seconds for one attempt: name look-up, TCP and AMQP handshake together."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
START_A_BROKER = "python -m mqlab broker start   (python -m mqlab doctor tells what is wrong)"

_open_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection:
    """A connection that is opened once and kept: ``open``, ``run``, ``close``.

    ``on_channel(channel)`` is called in the I/O thread with every fresh channel, the first and
    each later one; it declares and subscribes, and calls ``mark_ready`` in the last callback.
    ``on_lost()`` is called there whenever that channel is gone, ``on_failed(error)`` when the
    connection is given up: the broker refused the login or the queue, or a callback raised.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        on_channel: Callable[[Any], None],
        on_lost: Callable[[], None],
        on_failed: Callable[[MqlabError], None],
        heartbeat_s: int = HEARTBEAT_S,
    ) -> None:
        self.settings, self.name = settings, name
        self.channel: Any = None  # I/O thread only; None while there is none
        self.error: MqlabError | None = None
        self.last_error: MqlabError | None = None
        self.blocked: str | None = None
        self.opened = 0
        self.server_version = ""
        self.connect_s = self.declare_s = 0.0
        self._on_channel, self._on_lost, self._on_failed = on_channel, on_lost, on_failed
        self._heartbeat_s = heartbeat_s
        self._connection: Any = None
        self._loop: Any = None  # made by open(), since it holds file descriptors
        self._changed = threading.Condition()
        self._ready = self._closing = False
        self._pauses = 0
        self._thread = threading.Thread(target=self._run_loop, name=name, daemon=True)

    # ---- for any thread

    @property
    def is_ready(self) -> bool:
        """Whether there is a channel that has been set up."""
        return self._ready

    @property
    def is_closing(self) -> bool:
        """Whether it is closed, or about to be, or given up."""
        return self._closing

    def open(self, timeout_s: float) -> None:
        """Start the thread and wait until the first channel is set up.

        Raises ConnectError, AccessRefused or QueueMismatch. The first failure counts: a person who
        waits wants to know. Only a connection that was open once is tried again and again.
        """
        self._loop = IOLoop()
        self._thread.start()
        _open_connections.add(self)
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self.error or self.last_error, timeout_s)
        if not self._ready:
            error = self.error or self.last_error
            self.close(timeout_s=1.0)
            raise error or ConnectError(
                f"The broker at {self.settings.address} did not answer within {timeout_s:g} s.",
                why="it is busy, or the network swallows what is sent",
                fix=START_A_BROKER,
            )

    def run(self, function: Callable[[], object]) -> None:
        """Have ``function`` called in the I/O thread, soon. Returns at once."""
        self._loop.add_callback_threadsafe(function)

    def run_later(self, delay_s: float, function: Callable[[], object]) -> None:
        """Have ``function`` called after ``delay_s`` seconds. Only for the I/O thread itself."""
        self._loop.call_later(delay_s, function)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Close the connection and end the thread. True if it ended within ``timeout_s`` seconds.

        Whatever was delivered on it and not acknowledged, the broker puts back in its queue.
        """
        _open_connections.discard(self)
        self._closing = True
        if not self._thread.is_alive():
            return True
        self.run(lambda: self._close_in_loop(timeout_s))
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s + 0.5)
        return not self._thread.is_alive()

    # ---- for the I/O thread

    def mark_ready(self) -> None:
        """Say that the channel's set-up is complete."""
        now = time.perf_counter()
        with self._changed:
            self.opened += 1
            self.declare_s = now - self._connected_at
            self._pauses, self._ready, self.last_error = 0, True, None
            self._changed.notify_all()

    @property
    def frame_max(self) -> int:
        """The largest frame, in bytes, that this connection and the broker have agreed on."""
        return int(self._connection.params.frame_max)

    def write(self, frames: bytes) -> None:
        """Hand whole frames of this connection's channel to the network, soon."""
        # The method that pika gives its adapters for that; basic_publish ends in it, three times.
        self._connection._adapter_emit_data(frames)

    def reopen_channel(self) -> None:
        """Close the channel; a fresh one follows."""
        if self.channel is not None and self.channel.is_open:
            self.channel.close()

    def _run_loop(self) -> None:
        try:
            self._connect()
            self._loop.start()
        except Exception as error:  # a callback raised: keep it where status() and stop() find it
            self._give_up(
                MqlabError(
                    f"The I/O thread of {self.name} ended: {type(error).__name__}: {error}",
                    why="an error in mqlab or pika",
                    fix="start it again; if it comes back, report the chained error",
                ),
                error,
            )
            with contextlib.suppress(Exception):
                self._connection.close()
        finally:
            self._ready, self.channel = False, None
            self._loop.close()

    def _connect(self) -> None:
        if self._closing:
            self._loop.stop()
            return
        self._started_at = time.perf_counter()
        self._connection = pika.SelectConnection(
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
        self._connection.channel(on_open_callback=self._on_channel_open)

    def _on_channel_open(self, channel: Any) -> None:
        self.channel = channel
        channel.add_on_close_callback(self._on_channel_close)
        self._on_channel(channel)

    def _on_channel_close(self, channel: Any, reason: Exception) -> None:
        if channel is not self.channel:
            return
        self._lose()
        mismatch = explain_mismatch(reason)
        if mismatch is not None:
            self._give_up(mismatch, reason)
            self._close_in_loop(1.0)
        elif self._connection.is_open and not self._closing:
            self.run_later(self._next_pause_s(), self._open_channel_again)

    def _open_channel_again(self) -> None:
        if self._connection.is_open and not self._closing:
            self._open_channel()

    def _on_open_error(self, _connection: Any, reason: Exception) -> None:
        self._retry(explain(reason, self.settings))

    def _on_close(self, _connection: Any, reason: Exception) -> None:
        self._lose()
        self._retry(explain(reason, self.settings))

    def _retry(self, error: ConnectError) -> None:
        with self._changed:
            self.last_error = error
            self._changed.notify_all()
        if self._closing:
            self._loop.stop()
        elif isinstance(error, AccessRefused):
            self._give_up(error, error.__cause__)  # the same password will not do better next time
            self._loop.stop()
        else:
            self.run_later(self._next_pause_s(), self._connect)

    def _next_pause_s(self) -> float:
        """Exponential backoff with jitter, so that many clients do not return in step."""
        pause_s: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._pauses)
        self._pauses = min(self._pauses + 1, 10)
        return pause_s * random.uniform(0.5, 1.0)

    def _lose(self) -> None:
        had_channel, self.channel, self._ready, self.blocked = self.channel, None, False, None
        if had_channel is not None:
            self._on_lost()

    def _give_up(self, error: MqlabError, cause: BaseException | None) -> None:
        error.__cause__ = cause
        with self._changed:
            self.error, self._closing = error, True
            self._changed.notify_all()
        self._on_failed(error)

    def _close_in_loop(self, timeout_s: float) -> None:
        self._closing = True
        connection = self._connection
        if connection is None or connection.is_closed:
            self._loop.stop()
            return
        if not connection.is_closing:
            connection.close()
        # A broker that does not answer the close must not keep the thread.
        self.run_later(timeout_s, self._loop.stop)

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self.blocked = frame.method.reason

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self.blocked = None


def handshake(settings: Settings, timeout_s: float = 5.0) -> str:
    """Complete one AMQP handshake, close, and return the broker's version, such as ``3.10.8``.

    Raises ConnectError, or AccessRefused, within ``timeout_s`` seconds, whatever is at the address.
    """
    connection = Connection(
        settings,
        name="mqlab handshake",
        on_channel=lambda _channel: connection.mark_ready(),
        on_lost=lambda: None,
        on_failed=lambda _error: None,
    )
    connection.open(timeout_s)
    connection.close(timeout_s=1.0)
    return connection.server_version


def explain(error: BaseException, settings: Settings) -> ConnectError:
    """Turn what pika or the network raised into one kind of error that says what to do."""
    causes = list(_causes(error))

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    text = "; ".join(dict.fromkeys(str(cause) for cause in causes if str(cause)))
    address, fix = settings.address, START_A_BROKER
    other_server = "it is another kind of server: the management page is on 15673, AMQP on 5673"
    set_port = "set the broker's AMQP port in MQLAB_AMQP_PORT or AMQP_URL"
    what = f"No broker could be reached at {address}."
    kind = ConnectError
    # Only the broker's own words count: pika's "probable authentication error" is also what a
    # connection cut in the middle of the handshake looks like.
    if "ACCESS_REFUSED" in text:
        kind = AccessRefused
        what = f"The broker at {address} refused the login of user {settings.username!r}."
        why = "the user or the password is wrong, or guest is used from another machine"
        fix = "set AMQP_URL=amqp://user:password@host:port/vhost to a user that the broker knows"
    elif "connection limit" in text:
        what = f"The broker at {address} takes no more connections from you."
        why = f"virtual host {settings.virtual_host!r}, or the broker, has as many as it may have"
        fix = "close some: restart the kernels that you do not need, and look for a loop"
    elif "NOT_ALLOWED" in text:
        kind = AccessRefused
        vhost = settings.virtual_host
        what = f"The broker at {address} refused the virtual host {vhost!r}."
        why = f"it does not exist, or user {settings.username!r} has no permission on it"
        fix = "set the virtual host at the end of AMQP_URL, or have it created on the broker"
    elif any_is(socket.gaierror):
        what = f"The name {settings.host!r} cannot be found."
        why, fix = "a typing error in AMQP_URL, or no network", "check the host in AMQP_URL"
    elif any_is(ConnectionRefusedError):
        why = "nothing listens there: the broker is not started, or it is on another port"
    elif any_is(pika.exceptions.IncompatibleProtocolError):
        what, why, fix = f"What answers at {address} is no AMQP broker.", other_server, set_port
    elif "Timeout" in text or any("Timeout" in type(cause).__name__ for cause in causes):
        what = f"What listens at {address} did not complete an AMQP handshake in time."
        why, fix = f"the host is out of reach, or {other_server}", set_port
    elif any_is(pika.exceptions.ConnectionClosed):
        what, why = f"The broker at {address} closed the connection.", text
    else:
        why = f"the connection was lost ({text or type(error).__name__})"
    explained = kind(what, why=why, fix=fix)
    explained.__cause__ = error
    return explained


def explain_mismatch(error: BaseException) -> QueueMismatch | None:
    """Turn the broker's 406 on a queue's properties into a QueueMismatch; None for all else."""
    text = str(getattr(error, "reply_text", ""))
    found = re.search(
        r"inequivalent arg '(.+?)' for queue '(.+?)' in vhost '.*?': "
        r"received (.+?) but current is (.+)",
        text,
        re.DOTALL,
    )
    if found is None:
        return None
    name, queue, asked, current = found.groups()
    return QueueMismatch(
        f"The queue {queue!r} exists with {name} = {current.removeprefix('the value ')}; "
        f"asked for was {asked.removeprefix('the value ')}.",
        why="somebody declared it in another way, and a queue's properties cannot be changed",
        fix="use another queue name; or, if its messages may go, delete it on the management page",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Give an error and the ones that pika has wrapped in it."""
    yield error
    inner = [*getattr(error, "exceptions", ()), getattr(error, "exception", None), *error.args]
    for cause in [*inner, error.__cause__]:
        if isinstance(cause, BaseException):
            yield from _causes(cause)


@atexit.register
def _close_all() -> None:
    for connection in list(_open_connections):
        connection.close(timeout_s=1.0)
