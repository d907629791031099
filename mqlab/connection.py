"""One pika connection with one channel, owned by one I/O thread, reopened when it is lost.

pika's connections and channels belong to the thread that runs their I/O loop. Here one thread runs
the loop, so heartbeats go out whatever the other threads do, and those hand it functions to call.

An interrupt (Ctrl-C, the stop button of a notebook) may strike the calling thread between any two
statements. So the calling thread changes nothing here but flags that only ever go up; the I/O
thread (``_io_thread``) looks at them twice a second, does everything else, and closes the socket
when it ends.
"""

from __future__ import annotations

import _thread
import atexit
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
"""Seconds that all connections together may take to close when the process ends."""


class Connection(IoThread):
    """A connection that is opened once and kept: ``open``, ``run``, ``close``.

    The callbacks are called in the I/O thread. ``on_channel(channel)`` gets every fresh channel,
    the first and each later one; it declares and subscribes, and calls ``mark_ready`` in the last
    callback. ``on_lost()`` is called when that channel is gone, ``on_ended(error)`` once, as the
    last of all: with None if the connection was closed, else with the error that ended it.
    ``owner`` is the object that events name as their source; it is not kept alive by this.
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
        raised immediately, because a caller is waiting; only a connection that was open once is
        reopened. Whatever is raised here, an interrupt too, nothing stays behind.
        """
        try:
            self._begun = True
            # Not Thread.start: interrupted, it may leave a lock that the new thread waits for.
            _thread.start_new_thread(self._start_thread, ())
            error = self._outcome.get(timeout=timeout_s)
        except queues.Empty:
            error = ConnectError(
                f"The broker at {self.settings.address} did not answer within {timeout_s:g} s.",
                why="it is busy, or the network drops what is sent",
                fix=start_a_broker(),
            )
        except BaseException:
            self.close_soon()
            raise
        if error is not None:
            self.close(timeout_s=1.0)
            raise error

    def run(self, function: Callable[[], object]) -> None:
        """Have ``function`` called in the I/O thread, soon. Returns at once."""
        loop = self._loop
        if loop is not None:
            loop.add_callback_threadsafe(function)

    def close_soon(self) -> None:
        """Have the I/O thread close the connection and end. Returns at once."""
        self._closing = True
        self.run(self._close_in_loop)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Close the connection and end the thread. True if it ended within ``timeout_s`` seconds.

        Whatever was delivered on it and not acknowledged, the broker puts back in its queue.
        """
        self._close_within_s = timeout_s
        self.close_soon()
        return self.join(timeout_s + 0.5)

    def join(self, timeout_s: float) -> bool:
        """Wait until the thread has ended, ``timeout_s`` seconds at most. True if it has."""
        if not self._begun or self._thread is threading.current_thread():
            return not self._begun
        if not self._ended and self._running.acquire(timeout=timeout_s):
            self._running.release()
        if self._ended:
            self._thread.join(1.0)  # what is left of it is a moment
        return self._ended

    def abandon(self, why: str) -> None:
        """Close the connection at once and fail everyone who waits for something on it."""
        self.run(lambda: self._give_up(MqlabError(why)))
        self.close(timeout_s=1.0)


def open_connections() -> list[Connection]:
    """The connections that this process has open, or is opening."""
    return list(registry.values())


def handshake(settings: Settings, timeout_s: float = 5.0) -> str:
    """Complete one AMQP handshake, close, and return the broker's version, such as ``3.10.8``.

    Raises ConnectError, or AccessRefused, within ``timeout_s`` seconds, whatever is at the address.
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


@atexit.register
def _close_all() -> None:
    left = open_connections()
    end = time.monotonic() + EXIT_S
    for connection in left:
        connection.close_soon()
    for connection in left:
        connection.join(max(0.0, end - time.monotonic()))
