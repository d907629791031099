"""Read the dead-letter queue, and send its messages back to the original queue.

The consumer moves messages there that are not tasks, or have failed too often, and puts the reason
into a header.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import pika.exceptions

from mqlab._explain import NACKED, broker_words, explain
from mqlab._inbox import ATTEMPTS_HEADER, HEADER_PREFIX, REASON_HEADER, WORKER_HEADER
from mqlab._pika import blocking_connection
from mqlab.arguments import check_count, check_queue, check_seconds
from mqlab.commands import command
from mqlab.errors import (
    OutcomeUnknown,
    QueueRefused,
    Rejected,
    SettingsError,
    Unroutable,
    printable,
)
from mqlab.settings import Settings
from mqlab.task import QUEUE

HEARTBEAT_S = 5
"""Seconds. Short, because only the heartbeat shows here that the network has gone silent."""


@dataclass(frozen=True, slots=True, repr=False)
class DeadMessage:
    """A message in the dead-letter queue: its AMQP ``message_id``, the reason, and the body."""

    task_id: str | None
    reason: str
    attempts: int | None
    worker: str
    body: bytes

    def __repr__(self) -> str:
        body = printable(self.body[:60].decode(errors="replace")) + "…" * (len(self.body) > 60)
        tried = ""
        if self.attempts is not None:
            tried = f"{self.attempts} attempt{'s' * (self.attempts != 1)}, "
        task_id, reason = printable(self.task_id or "(no id)"), printable(self.reason)
        return f"{task_id}  {reason}\n    {tried}{printable(self.worker)}: {body}"


def list_dead(
    queue: str = QUEUE, *, settings: Settings | None = None, limit: int = 100
) -> list[DeadMessage]:
    """Read up to ``limit`` messages of the dead-letter queue of ``queue``, and leave them there.

    A dead-letter queue that does not exist counts as empty. Raises ConnectError, AccessRefused or
    QueueRefused, and SettingsError for an argument that is not valid.
    """
    dead_queue = f"{check_queue(queue, suffix='.dead')}.dead"
    check_count("limit", limit, 0, 1_000_000)
    settings = settings or Settings.from_env()
    try:
        with _channel(settings, dead_queue) as channel:
            # Nothing is acknowledged, so the broker requeues everything when the channel closes.
            return [_read(*message) for message in _take(channel, dead_queue, limit)]
    except (pika.exceptions.AMQPError, OSError) as error:
        raise explain(error, settings) from error


def requeue_dead(
    queue: str = QUEUE,
    *,
    settings: Settings | None = None,
    task_id: str | None = None,
    timeout_s: float = 10.0,
) -> int:
    """Send the messages of the dead-letter queue back to ``queue``, and return how many.

    With ``task_id``, send only tasks whose id starts with it. Attempts are counted from 1 again.
    Each message is acknowledged after the broker has confirmed its copy: an interrupt may leave two
    copies, but never none. ``timeout_s`` is how long a resource alarm may block publishing; a
    silent network is noticed within about 15 s. Raises the errors of ``list_dead``; Unroutable if
    ``queue`` does not exist; Rejected if it is full; and OutcomeUnknown if no confirm arrived. Each
    error includes how many messages had been moved.
    """
    dead_queue = f"{check_queue(queue, suffix='.dead')}.dead"
    bound_s = check_seconds("timeout_s", timeout_s)
    if task_id == "":  # every id begins with it
        raise SettingsError("task_id is empty.", fix="give its first characters, or leave it out")
    moved = 0

    def so_far(what: str) -> str:
        return (
            f"{what} {moved} message{'s' * (moved != 1)} had already been sent back to {queue!r}."
        )

    try:
        with _channel(settings, dead_queue, bound_s) as channel:
            channel.confirm_delivery()
            for method, properties, body in _take(channel, dead_queue):
                if not (properties.message_id or "").startswith(task_id or ""):
                    continue  # not acknowledged, so it stays
                channel.basic_publish("", queue, body, _unmark(properties), mandatory=True)
                channel.basic_ack(method.delivery_tag)
                moved += 1
    except pika.exceptions.UnroutableError as error:
        raise Unroutable(
            so_far(f"There is no queue {queue!r} to send the messages back to."),
            why="it was deleted, or the name is wrong",
            fix=f"start its consumer first: {command(f'work --queue {queue}')}",
        ) from error
    except pika.exceptions.NackError as error:
        raise Rejected(
            so_far(f"The queue {queue!r} refused a message, which stays in the dead-letter queue."),
            why=NACKED,
            fix="run it again when there is room in the queue",
        ) from error
    except pika.exceptions.ConnectionBlockedTimeout as error:
        raise OutcomeUnknown(
            so_far(f"The broker blocked publishers for {bound_s:g} s."),
            why="a resource alarm: its memory or disk is full; the last message is still in the "
            "dead-letter queue, and may reach the queue as well when the alarm clears",
            fix=f"{command('doctor')} shows the disk; run it again when there is room",
        ) from error
    except QueueRefused as error:
        raise QueueRefused(so_far(error.what), why=error.why, fix=error.fix) from error
    except (pika.exceptions.AMQPError, OSError) as error:
        raise OutcomeUnknown(
            so_far("The connection was lost."),
            why="the last message is still in the dead-letter queue, and may also be in the queue",
            fix=f"{command('broker status')}, then run it again",
        ) from error
    return moved


@contextmanager
def _channel(settings: Settings | None, queue: str, blocked_s: float = 10.0) -> Iterator[Any]:
    settings = settings or Settings.from_env()
    parameters = settings.parameters(
        name="mqlab dead",
        heartbeat=HEARTBEAT_S,
        blocked_connection_timeout=max(0.001, blocked_s),
    )
    try:
        connection = blocking_connection(parameters)
    except Exception as error:  # pika's errors of connecting are not all AMQPErrors
        raise explain(error, settings) from error
    with connection:
        try:
            yield connection.channel()
        except pika.exceptions.ChannelClosedByBroker as error:
            raise QueueRefused(
                f"The broker refused access to {queue!r}.",
                why=broker_words(error),
                fix="grant the permission on this virtual host (management UI, Admin, the user)",
            ) from error


def _take(channel: Any, queue: str, limit: int | None = None) -> Iterator[tuple[Any, Any, bytes]]:
    """Yield the messages that are in the queue now, but none that is dead-lettered meanwhile."""
    try:
        count = channel.queue_declare(queue, passive=True).method.message_count
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code == 404:  # nothing has been dead-lettered yet
            return
        raise
    for _ in range(count if limit is None else min(count, limit)):
        method, properties, body = channel.basic_get(queue)
        if method is None:
            return
        yield method, properties, body


def _read(_method: Any, properties: Any, body: bytes) -> DeadMessage:
    headers = properties.headers or {}
    attempts = headers.get(ATTEMPTS_HEADER)
    return DeadMessage(
        task_id=properties.message_id,
        reason=str(headers.get(REASON_HEADER, "(no reason noted)")),
        attempts=attempts if isinstance(attempts, int) else None,
        worker=str(headers.get(WORKER_HEADER, "unknown worker")),
        body=body,
    )


def _unmark(properties: Any) -> Any:
    headers = {
        name: value
        for name, value in (properties.headers or {}).items()
        if not name.startswith(HEADER_PREFIX)
    }
    plain = copy(properties)
    plain.headers = headers or None
    return plain
