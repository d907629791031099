"""What the commands print: no escape sequence from data, and no wait for a reader that is gone."""

from __future__ import annotations

import contextlib
import os
import queue as queues
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast


def printable(text: str, keep: str = "") -> str:
    r"""Escape all that is not printable, except what is in ``keep``: ESC becomes ``\x1b``.

    Data comes from others, and a terminal obeys escape sequences.
    """
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


class _Escaping:
    """A text stream that escapes control characters, and what its encoding cannot express.

    Flushing it raises the error of an earlier write again: argparse ignores those of its help.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._error: OSError | None = None
        with contextlib.suppress(AttributeError):  # a stream in memory has no encoding
            cast(Any, stream).reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(printable(text, keep="\n\t"))
        except OSError as error:
            self._error = error
            raise

    def flush(self) -> None:
        if self._error:
            raise self._error
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def escaped() -> Iterator[None]:
    """Escape whatever is printed in this block."""
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        if stream := getattr(sys, name):  # None if the process was started without it
            setattr(sys, name, _Escaping(stream))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class Output:
    """Prints lines from a thread of its own, so that a full pipe delays nothing but its lines.

    If nothing more can be written, because the pipe is closed or the disk is full, ``error`` is
    set and ``on_error`` called.
    """

    LINES_KEPT = 1_000
    """Lines that may wait for the reader. Further ones are dropped."""

    def __init__(self, on_error: Callable[[], object]) -> None:
        self.error: OSError | None = None
        self._on_error = on_error
        self._lines: queues.Queue[str | None] = queues.Queue(self.LINES_KEPT)
        self._thread = threading.Thread(target=self._write, name="mqlab output", daemon=True)
        if sys.stdout:  # None if the process was started without it
            # Not by sys.stdout: Python's exit would wait for its lock, which the thread may hold.
            self._descriptor, self._encoding = sys.stdout.fileno(), sys.stdout.encoding
            self._thread.start()

    def print(self, line: str = "") -> None:
        """Print the line soon, and return at once."""
        with contextlib.suppress(queues.Full):
            self._lines.put_nowait(line)

    def close(self, timeout_s: float = 2.0) -> None:
        """Wait until all is printed, for up to ``timeout_s`` seconds."""
        with contextlib.suppress(queues.Full):
            self._lines.put(None, timeout=timeout_s)
            if self._thread.ident:
                self._thread.join(timeout_s)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            rest = f"{printable(line)}\n".encode(self._encoding, "backslashreplace")
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                self.error = error
                self._on_error()
                return
