"""What an answer opens besides what it is given: sockets that it connects, programs that it starts.

Python reports both as audit events, in the thread that does it. A check learns from them whether an
answer may have changed something by other means than the check's own, and closes what is left open.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar


class Watch:
    """Notes which of ``ports`` an answer connects to, and the programs that it starts.

    A context manager, which closes the connections that are left. The answer's threads are those
    that begin while it is open; ``paused`` is for our own functions that run in one of them.
    """

    _open: ClassVar[list[Watch]] = []
    _hooked = False

    def __init__(self, *ports: int | None) -> None:
        self.ports = ports
        self.connected: list[int] = []
        self.programs = 0
        self._sockets: list[weakref.ref[socket.socket]] = []
        self._paused = threading.local()
        self._others: set[threading.Thread] = set()

    def __enter__(self) -> Watch:
        if not Watch._hooked:  # an audit hook stays for good, so there is one
            sys.addaudithook(Watch._on_event)
            Watch._hooked = True
        self._others = set(threading.enumerate())
        Watch._open.append(self)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()
        self.close()

    def stop(self) -> None:
        """Note nothing from now on. What is open stays open."""
        with contextlib.suppress(ValueError):  # stopped before
            Watch._open.remove(self)

    def close(self) -> None:
        """Close the connections that the answer has opened so far."""
        for reference in self._sockets:
            with contextlib.suppress(OSError, AttributeError):  # closed, or collected
                reference().shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Note nothing that the current thread does."""
        self._paused.is_on = True
        try:
            yield
        finally:
            self._paused.is_on = False

    @classmethod
    def _on_event(cls, event: str, args: tuple[Any, ...]) -> None:
        if cls._open and event in ("socket.connect", "subprocess.Popen", "os.system", "os.fork"):
            for watch in cls._open:
                watch.note(event, args)

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        """Note one audit event of the current thread."""
        if getattr(self._paused, "is_on", False) or threading.current_thread() in self._others:
            return
        if event == "socket.connect":
            if isinstance(args[1], tuple) and args[1][1] in self.ports:
                self.connected.append(args[1][1])
                self._sockets.append(weakref.ref(args[0]))
        else:
            self.programs += 1
