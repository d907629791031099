"""What happens to producers, consumers and their tasks, reported once: to subscribers and a logger.

The logger is ``mqlab``: connections at INFO and WARNING, tasks at DEBUG. Subscribers are called in
the thread where it happened, mostly an I/O thread, so they must be quick and must not block.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

EventKind = Literal["opened", "lost", "failed", "closed", "sent", "received", "started", "settled"]

logger = logging.getLogger("mqlab")
logger.addHandler(logging.NullHandler())  # or Python's last resort would print from a thread
_LEVELS: dict[str, int] = {
    "opened": logging.INFO,
    "closed": logging.INFO,
    "lost": logging.WARNING,
    "failed": logging.ERROR,
}
_subscribers: list[Callable[[Event], object]] = []


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, ``at`` seconds since 1970.

    ``source`` is the Producer or BackgroundConsumer (None for a bare connection). ``record`` is a
    TaskRecord for received, started and settled, a SendRecord or SendManyRecord for sent.
    ``detail`` is what the broker or the network said, for lost and failed.
    """

    kind: EventKind
    source: Any
    queue: str
    record: Any = None
    detail: str = ""
    at: float = field(default_factory=time.time)


def subscribe(callback: Callable[[Event], object]) -> Callable[[], None]:
    """Have ``callback`` called with every event from now on; call the result to end that."""
    _subscribers.append(callback)

    def unsubscribe() -> None:
        if callback in _subscribers:
            _subscribers.remove(callback)

    return unsubscribe


def are_wanted() -> bool:
    """Whether anybody listens: a subscriber, or the logger at DEBUG. For what happens often."""
    return bool(_subscribers) or logger.isEnabledFor(logging.DEBUG)


def publish(kind: EventKind, source: Any, queue: str, record: Any = None, detail: str = "") -> None:
    """Report an event. An exception in a subscriber is logged and does no further harm."""
    level = _LEVELS.get(kind, logging.DEBUG)
    if logger.isEnabledFor(level):
        logger.log(level, "%s %s%s", queue, kind, f": {detail or record}" * bool(detail or record))
    if not _subscribers:
        return
    event = Event(kind, source, queue, record, detail)
    for callback in list(_subscribers):
        try:
            callback(event)
        except Exception:
            logger.exception("a subscriber to mqlab's events raised")
