"""One pika connection, owned by one I/O thread, reopened when it is lost.

pika's connections and channels belong to the thread that runs their I/O loop. A thread of its own
runs the loop here, so heartbeats are sent whatever other threads do. Other threads pass functions
to it.

An interrupt (Ctrl-C, a notebook's stop button) may strike the calling thread between any two
statements. So the calling thread only sets flags that are never cleared. The I/O thread
(``_io_thread``) checks them twice a second, does everything else, and closes the socket when it
ends.
"""

from __future__ import annotations

import _thread
import atexit
import os
import queue as queues
import threading
import time
from collections.abc import Callable
from typing import Literal

from mqlab._explain import start_a_broker
from mqlab._io_thread import IoThread, registry
from mqlab.errors import ConnectError, MqlabError
from mqlab.settings import Settings

ConnectionState = Literal["new", "connecting", "ready", "closed", "failed"]

EXIT_S = 4.0
"""Time limit, in seconds, for closing all connections when the process ends."""


class Connection(IoThread):
    """A connection that is opened once and kept open: ``open``, ``run``, ``close``.

    All callbacks run in the I/O thread. ``on_channel(channel)`` is called with each new channel; it
    declares and subscribes, and calls ``mark_ready`` when the last reply has arrived. ``on_lost()``
    is called when that channel is lost, and ``on_ended(error)`` once, at the end, with the error
    that ended the connection, or None if it was closed. ``owner`` is the source of events; the
    connection does not keep it alive.
    """

    @property
    def state(self) -> ConnectionState:
        """What the connection is doing."""
        if self.error is not None:
            return "failed"
        if self._closing:
            return "closed"
        if not self._begun:
            return "new"
        return "ready" if self._ready else "connecting"

    @property
    def has_ended(self) -> bool:
        """Whether the I/O thread has run and ended."""
        return self._ended

    def open(self, timeout_s: float) -> None:
        """Start the thread and wait until the first channel is set up.

        Raises ConnectError, AccessRefused, QueueRefused or QueueMismatch. The first failure is
        raised immediately, because a caller is waiting; only a connection that has been open is
        reopened. Whatever is raised, even an interrupt, nothing is left behind.
        """
        try:
            self._begun = True
            # Not Thread.start: an interrupt may leave a lock that the new thread waits for.
            _thread.start_new_thread(self._start_thread, ())
            error = self._outcome.get(timeout=timeout_s)
        except queues.Empty:
            error = ConnectError(
                f"The broker at {self.settings.address} did not answer within {timeout_s:g} s.",
                why="it is busy, or the network drops packets",
                fix=start_a_broker(),
            )
        except BaseException:
            self.close_soon()
            raise
        if error is not None:
            self.close(timeout_s=1.0)
            raise error

    def run(self, function: Callable[[], object]) -> None:
        """Have the I/O thread call ``function`` soon. Returns at once."""
        loop = self._loop
        if loop is not None:
            loop.add_callback_threadsafe(function)

    def close_soon(self) -> None:
        """Have the I/O thread close the connection and end. Returns at once."""
        self._closing = True
        self.run(self._close_in_loop)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Close the connection and return whether its thread ended within ``timeout_s`` seconds.

        The broker requeues deliveries that were not acknowledged.
        """
        self._close_within_s = timeout_s
        self.close_soon()
        return self.join(timeout_s + 0.5)

    def join(self, timeout_s: float) -> bool:
        """Wait at most ``timeout_s`` seconds for the thread to end. Return whether it has."""
        if not self._begun or self._thread is threading.current_thread():
            return not self._begun
        if not self._ended and self._running.acquire(timeout=timeout_s):
            self._running.release()
        if self._ended:
            self._thread.join(1.0)  # it is about to return
        return self._ended

    def abandon(self, why: str) -> None:
        """Close the connection at once. Whatever waits on it fails, with ``why`` as the reason."""
        self.run(lambda: self._give_up(MqlabError(why)))
        self.close(timeout_s=1.0)


def open_connections() -> list[Connection]:
    """Return the connections that this process has open or is opening."""
    return list(registry.values())


def handshake(settings: Settings, timeout_s: float = 5.0) -> str:
    """Complete one AMQP handshake, close, and return the broker's version, such as ``3.10.8``.

    Raises ConnectError or AccessRefused within ``timeout_s`` seconds, whatever is at the address.
    """
    connection = Connection(
        settings,
        name="mqlab handshake",
        on_channel=lambda _channel: connection.mark_ready(),
        on_lost=lambda: None,
        on_ended=lambda _error: None,
    )
    connection.open(timeout_s)
    connection.close(timeout_s=1.0)
    return connection.server_version


def _end_in_child() -> None:
    for connection in open_connections():
        connection.end_in_child()
    registry.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_end_in_child)


@atexit.register
def _close_all() -> None:
    left = open_connections()
    end = time.monotonic() + EXIT_S
    for connection in left:
        connection.close_soon()
    for connection in left:
        connection.join(max(0.0, end - time.monotonic()))
