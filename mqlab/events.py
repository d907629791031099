"""Report what happens to producers, consumers and their tasks, to subscribers and to a logger.

The logger is ``mqlab``: connections at INFO, WARNING and ERROR, tasks at DEBUG. Subscribers are
called in the thread that reports the event, often an I/O thread, so they must not block.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

EventKind = Literal["opened", "lost", "failed", "closed", "sent", "received", "started", "settled"]

logger = logging.getLogger("mqlab")
logger.addHandler(
    logging.NullHandler()
)  # otherwise Python's default handler would print from a thread
_LEVELS: dict[str, int] = {
    "opened": logging.INFO,
    "closed": logging.INFO,
    "lost": logging.WARNING,
    "failed": logging.ERROR,
}
_subscribers: list[Callable[[Event], object]] = []


@dataclass(frozen=True, slots=True)
class Event:
    """One event, at the time ``at`` (seconds since 1970).

    ``source`` is the Producer or BackgroundConsumer, or None if there is none. ``record`` is a
    TaskRecord for received, started and settled; a SendRecord or SendManyRecord for sent.
    ``detail`` is the error of the broker or the network, for lost and failed.
    """

    kind: EventKind
    source: Any
    queue: str
    record: Any = None
    detail: str = ""
    at: float = field(default_factory=time.time)


def subscribe(callback: Callable[[Event], object]) -> Callable[[], None]:
    """Call ``callback`` with every event from now on. The returned function unsubscribes it."""
    _subscribers.append(callback)

    def unsubscribe() -> None:
        if callback in _subscribers:
            _subscribers.remove(callback)

    return unsubscribe


def are_wanted() -> bool:
    """Whether there is a subscriber or the logger is at DEBUG. Check it before frequent events."""
    return bool(_subscribers) or logger.isEnabledFor(logging.DEBUG)


def publish(kind: EventKind, source: Any, queue: str, record: Any = None, detail: str = "") -> None:
    """Report an event. If a subscriber or the logging raises an exception, it is only logged."""
    level = _LEVELS.get(kind, logging.DEBUG)
    if logger.isEnabledFor(level):
        text = "%s %s%s", queue, kind, f": {detail or record}" * bool(detail or record)
        _call(partial(logger.log, level, *text))
    if not _subscribers:
        return
    event = Event(kind, source, queue, record, detail)
    for callback in list(_subscribers):
        _call(partial(callback, event))


def _call(function: Callable[[], object]) -> None:
    """Call a function of the user's, which must not end the thread of a worker or a connection."""
    try:
        function()
    except BaseException as error:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and not isinstance(error, Exception):  # Ctrl-C
            raise
        with contextlib.suppress(Exception):
            logger.exception("a subscriber to mqlab's events, or the logging, raised")
