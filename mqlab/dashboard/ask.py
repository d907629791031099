"""Asking the broker about its queues, without ever keeping the picture waiting.

``Probe`` asks over AMQP for the exact counts of a queue. ``QueueList`` asks the management API,
whose numbers lag by some seconds, for all queues of the virtual host. Neither declares a queue.
"""

from __future__ import annotations

import threading
import time
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import quote

from mqlab.broker import management
from mqlab.connection import Connection
from mqlab.errors import MqlabError
from mqlab.settings import Settings

ANSWER_S = 0.05
"""Seconds to wait for the broker's answer; after that the previous one is used."""
SILENT_S = 3.0
"""Seconds without an answer after which the broker counts as not responding."""
ASK_AGAIN_S = 1.0
"""Seconds until a refused question is repeated: the broker logs every refusal."""
MANAGEMENT_S = 2.0
"""Seconds that the management API has for an answer."""
LISTED_S = 7.0
"""Seconds until the management API certainly lists a connection: it is updated every 5."""
ACTIVE_S = 6.0
"""Seconds without a change after which a queue that changes may take another's place."""
COLUMNS = (
    "name,consumers,messages,messages_unacknowledged,message_stats.publish,message_stats.ack,"
    "message_stats.publish_details.rate,message_stats.ack_details.rate"
)


class _Question:
    """How many messages and consumers does this queue have? Asked again and again.

    Each question has a channel of its own, because the broker closes the channel when it refuses.
    Everything but ``queue`` belongs to the connection's I/O thread; others only read.
    """

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.answer: tuple[int, int] | None = None  # ready, consumers
        self.refused_at, self.refusal = 0.0, ""
        self.asked_at = 0.0  # while an answer is awaited
        self._channel: Any = None

    def ask(self, connection: Connection, answered: threading.Event) -> None:
        if self.asked_at or not connection.is_ready:
            return
        self.asked_at = time.time()
        if self._channel is None or not self._channel.is_open:
            connection.open_channel(partial(self._on_open, answered))
        else:
            self._declare(answered)

    def drop(self) -> None:
        """The question is not asked any more."""
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def forget(self) -> None:
        """The connection is lost, and the channel with it: closing it now would raise."""
        self._channel, self.asked_at = None, 0.0

    def _on_open(self, answered: threading.Event, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_close)
        self._declare(answered)

    def _declare(self, answered: threading.Event) -> None:
        callback = partial(self._on_answer, answered)
        self._channel.queue_declare(self.queue, passive=True, callback=callback)

    def _on_answer(self, answered: threading.Event, frame: Any) -> None:
        self.answer = frame.method.message_count, frame.method.consumer_count
        self.asked_at, self.refused_at, self.refusal = 0.0, 0.0, ""
        answered.set()

    def _on_close(self, channel: Any, reason: Any) -> None:
        if channel is not self._channel:
            return
        code = getattr(reason, "reply_code", 0)
        if code in (403, 404, 405):  # not allowed, no such queue, exclusive to another connection
            self.answer, self.refused_at = None, time.time()
            self.refusal = "" if code == 404 else str(reason.reply_text)
        self.forget()


class Probe:
    """Asks over AMQP how many messages and consumers a queue has, on a connection that it keeps."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, name
        self._connection: Connection | None = None
        self._error: MqlabError | None = None
        self._open_at = 0.0
        self._questions: dict[str, _Question] = {}

    def ask(self, queues: dict[str, float]) -> list[tuple[int, int] | None]:
        """Ready messages and consumers of each queue: None if there is none, or it is refused.

        ``queues`` maps each to the seconds until a refused question is asked again. Waits for the
        answer about the first one for a moment, but no longer.
        """
        connection, now = self._connection, time.time()
        questions = {q: self._questions.get(q) or _Question(q) for q in queues}
        dropped = [q for name, q in self._questions.items() if name not in questions]
        self._questions = questions
        if connection is not None and not connection.is_closing:
            answered = threading.Event()
            for number, question in enumerate(questions.values()):
                if now - question.refused_at >= queues[question.queue]:
                    done = threading.Event() if number else answered
                    connection.run(partial(question.ask, connection, done))
            for question in dropped:
                connection.run(question.drop)
            # It takes a millisecond or two. An older answer would not fit what the workers report.
            answered.wait(ANSWER_S)
        elif now >= self._open_at:
            self._open()
        return [question.answer for question in questions.values()]

    def find_problem(self, queue: str) -> str:
        """Why there is no answer about ``queue``, and the next command; empty if there is one."""
        connection, error, question = self._connection, self._error, self._questions[queue]
        if connection is not None:
            if question.asked_at and time.time() - question.asked_at > SILENT_S:
                return f"The broker at {self._settings.address} is connected but does not respond."
            if question.refusal:
                return f"The broker does not let this user look at the queue: {question.refusal}"
            error = connection.error or (None if connection.is_ready else connection.last_error)
        if error is None:
            return ""
        return f"{error.what} Next: {error.fix}" if error.fix else error.what

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close(timeout_s=1.0)

    def _forget(self) -> None:
        for question in self._questions.values():
            question.forget()

    def _open(self) -> None:
        connection = Connection(
            self._settings,
            name=self._name,
            on_channel=lambda _channel: connection.mark_ready(),
            on_lost=self._forget,
            on_ended=lambda _error: None,
        )
        self._connection, self._error = connection, None
        try:
            connection.open(timeout_s=5.0)
        except MqlabError as error:
            self._connection, self._error = None, error
        self._open_at = time.time() + 1.0


class QueueList:
    """The queues of the virtual host as the management API lists them, refreshed in the background.

    ``rows`` maps each name to what the API returns for it; None as long as nothing was returned.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mqlab dashboard's management API")
        self.rows: dict[str, Any] | None = None
        self._changed_at: dict[str, float] = {}
        self._fetched_at = 0.0
        self._closed = threading.Event()

    def refresh(self, every_s: float) -> None:
        """Fetch the list again if the last one is older than ``every_s`` seconds. Does not wait."""
        if time.time() - self._fetched_at >= every_s:
            self._fetched_at = time.time() + 60.0  # until this one is done
            self._thread.submit(self._fetch)

    def find_active(self, current: str) -> str:
        """The queue that changed last; ``current`` while it changes too, or nothing does."""
        changed_at = dict(self._changed_at)
        newest = max(changed_at, key=lambda name: (changed_at[name], name), default=current)
        if changed_at.get(newest, 0.0) - changed_at.get(current, 0.0) < ACTIVE_S:
            return current
        return newest

    def keep(self, queue: str) -> None:
        """Count ``queue`` as changed now."""
        self._changed_at[queue] = time.time()

    def cut(self, queue: str, consumers: int, note: Callable[[str], object]) -> None:
        """Have the broker close the connections of all ``consumers`` of ``queue``. Does not wait.

        The outcome is noted. The API lists a new consumer up to 5 s late, so this goes on until it
        has listed as many as the broker has.
        """
        self._thread.submit(self._cut, queue, consumers, note)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)

    # ---- the background thread

    def _fetch(self) -> None:
        rows: dict[str, Any] | None = None
        try:
            path = f"queues/{quote(self._settings.virtual_host, safe='')}?columns={COLUMNS}"
            rows = {row["name"]: row for row in _request(self._settings, path)}
        except MqlabError:
            pass  # the list is a convenience: without it, the queue's name is given in code
        now, before = time.time(), self.rows
        changed_at = {name: at for name, at in self._changed_at.items() if name in (rows or {})}
        for name, row in (rows or {}).items():
            was = None if before is None else _activity(before.get(name))
            has_changed = row.get("consumers") if before is None else _activity(row) != was
            if has_changed and not is_minor(name):
                changed_at[name] = now
        self.rows, self._changed_at, self._fetched_at = rows, changed_at, now

    def _cut(self, queue: str, expected: int, note: Callable[[str], object]) -> None:
        path = f"queues/{quote(self._settings.virtual_host, safe='')}/{quote(queue, safe='')}"
        cut: set[str] = set()
        consumers = 0
        deadline = time.monotonic() + LISTED_S
        try:
            while consumers < expected and time.monotonic() < deadline:
                found = _request(self._settings, path) or {}
                channels = [c["channel_details"] for c in found.get("consumer_details", [])]
                names = [c["connection_name"] for c in channels if "connection_name" in c]
                consumers += sum(name not in cut for name in names)
                for name in set(names) - cut:
                    _request(self._settings, f"connections/{quote(name, safe='')}", "DELETE")
                    cut.add(name)
                if consumers < expected and self._closed.wait(0.25):
                    return
        except MqlabError as error:
            note(f"Nothing was cut. {error.what} Next: {error.fix}")
            return
        note(
            f"The broker closed {len(cut)} connection{'s' * (len(cut) != 1)} that consumed from "
            f"this queue. What was unacked on {'it' if len(cut) == 1 else 'them'} is ready again."
        )


def is_minor(queue: str) -> bool:
    """Whether a queue is listed but never followed: a dead queue, or one of an exercise's check."""
    return queue.endswith(".dead") or queue.startswith(("amq.", "exercise"))


def _activity(row: dict[str, Any] | None) -> object:
    stats = (row or {}).get("message_stats", {})
    return row and [
        row.get("consumers"),
        row.get("messages"),
        stats.get("publish"),
        stats.get("ack"),
    ]


def _request(settings: Settings, path: str, method: str = "GET") -> Any:
    """What the management API returns; None if there is no such thing. Raises MqlabError."""
    try:
        return management.ask(settings, path, method, timeout_s=MANAGEMENT_S)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise MqlabError(
            f"The management API refused the request ({error.code} {error.reason}).",
            fix=f"give user {settings.username!r} the tag management on the broker",
        ) from error
    except (OSError, ValueError) as error:
        raise MqlabError(
            f"The management API at {settings.management_url} does not respond.",
            fix="set MQLAB_MANAGEMENT_URL to its address, and restart the kernel",
        ) from error
