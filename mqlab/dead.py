"""Reading the dead queue, and sending what is in it back to work.

The consumer moves there what is no task, or has failed too often, and notes why in the headers.
Moving is left to ``consumer``; here a plain pika connection reads, and moves back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import pika
import pika.exceptions

from mqlab.connection import explain
from mqlab.consumer import ATTEMPTS_HEADER, HEADER_PREFIX, REASON_HEADER
from mqlab.errors import Unroutable
from mqlab.settings import Settings
from mqlab.task import QUEUE


@dataclass(frozen=True, slots=True, repr=False)
class DeadMessage:
    """One message of the dead queue: its AMQP ``message_id``, why it is dead, and its body."""

    task_id: str | None
    reason: str
    attempts: int | None
    worker: str
    body: bytes

    def __repr__(self) -> str:
        shown = self.body[:60].decode(errors="replace") + "…" * (len(self.body) > 60)
        tried = f"{self.attempts} attempt{'s' * (self.attempts != 1)}, {self.worker}"
        return f"{self.task_id or '(no id)'}  {self.reason}\n    {tried}: {shown}"


def list_dead(
    queue: str = QUEUE, *, settings: Settings | None = None, limit: int = 100
) -> list[DeadMessage]:
    """Read at most ``limit`` messages of the dead queue of ``queue``, and leave them there.

    Raises ConnectError or AccessRefused. A dead queue that does not exist is empty.
    """
    with _channel(settings) as channel:
        # Nothing is acked, so the broker puts all back when the channel closes.
        return [_read(*message) for message in _take(channel, f"{queue}.dead", limit)]


def requeue_dead(
    queue: str = QUEUE, *, settings: Settings | None = None, task_id: str | None = None
) -> int:
    """Send the messages of the dead queue back to ``queue``; return how many.

    With ``task_id``, which may be its beginning, only those. The count of attempts begins anew.
    Each is acked only after the broker has confirmed the copy: interrupted, there may be two, never
    none. Raises ConnectError or AccessRefused, and Unroutable if ``queue`` does not exist.
    """
    moved = 0
    with _channel(settings) as channel:
        channel.confirm_delivery()
        for method, properties, body in _take(channel, f"{queue}.dead"):
            if not (properties.message_id or "").startswith(task_id or ""):
                continue  # not acked: it stays
            try:
                channel.basic_publish("", queue, body, _unmarked(properties), mandatory=True)
            except pika.exceptions.UnroutableError as error:
                raise Unroutable(
                    f"There is no queue {queue!r} to send the dead back to.",
                    why="it was deleted, or the name is another one",
                    fix=f"start its consumer first: python -m mqlab work --queue {queue}",
                ) from error
            channel.basic_ack(method.delivery_tag)
            moved += 1
    return moved


@contextmanager
def _channel(settings: Settings | None) -> Iterator[Any]:
    settings = settings or Settings.from_env()
    try:
        connection = pika.BlockingConnection(settings.parameters(name="mqlab dead"))
    except (pika.exceptions.AMQPError, OSError) as error:
        raise explain(error, settings) from error
    with connection:
        yield connection.channel()


def _take(channel: Any, queue: str, limit: int | None = None) -> Iterator[tuple[Any, Any, bytes]]:
    """Give the messages that are in the queue now: one that dies again meanwhile is not met."""
    try:
        count = channel.queue_declare(queue, passive=True).method.message_count
    except pika.exceptions.ChannelClosedByBroker:  # 404: nothing has died yet
        return
    for _ in range(count if limit is None else min(count, limit)):
        method, properties, body = channel.basic_get(queue)
        if method is None:
            return
        yield method, properties, body


def _read(_method: Any, properties: Any, body: bytes) -> DeadMessage:
    headers = properties.headers or {}
    return DeadMessage(
        task_id=properties.message_id,
        reason=str(headers.get(REASON_HEADER, "(no reason noted)")),
        attempts=headers.get(ATTEMPTS_HEADER),
        worker=str(headers.get("mqlab-worker", "unknown worker")),
        body=body,
    )


def _unmarked(properties: Any) -> Any:
    headers = {
        name: value
        for name, value in (properties.headers or {}).items()
        if not name.startswith(HEADER_PREFIX)
    }
    plain = copy(properties)
    plain.headers = headers or None
    return plain
