"""Move messages to another queue: publish a copy, wait for its confirm, then report.

Only then does the owner acknowledge the original: if the process dies in between, there are two
copies, never none. Copies are published one at a time, on a channel of their own, so when the
broker refuses a copy, it closes only that channel, and the refused copy is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mqlab._explain import NACKED, broker_words
from mqlab.connection import Connection


@dataclass(slots=True)
class Move:
    """A message on its way to the queue ``target``; ``subject`` is what its owner knows it by."""

    subject: Any
    target: str
    properties: Any
    body: bytes
    returned: bool = False


class Mover:
    """Ends each move with ``on_moved(move)`` or ``on_refused(move, words)``, in the I/O thread."""

    connection: Connection

    def __init__(
        self, on_moved: Callable[[Move], None], on_refused: Callable[[Move, str], None]
    ) -> None:
        self._on_moved, self._on_refused = on_moved, on_refused
        self._moves: deque[Move] = deque()  # the first is in progress if _is_published
        self._channel: Any = None
        self._is_opening = self._is_published = False

    @property
    def moves(self) -> list[Move]:
        """The moves that have not ended."""
        return list(self._moves)

    def move(self, move: Move) -> None:
        """Publish the copy when its turn comes. If the target queue is missing, declare it."""
        self._moves.append(move)
        self._go_on()

    def forget(self) -> None:
        """Drop all moves, because the channel of the originals is gone."""
        channel = self._channel
        self._moves.clear()
        self._channel, self._is_opening, self._is_published = None, False, False
        if channel is not None and channel.is_open:
            channel.close()

    def _go_on(self) -> None:
        if self._is_published or not self._moves:
            return
        if self._channel is None:
            if not self._is_opening:
                self._is_opening = True
                self.connection.open_channel(self._on_open)
            return
        if not (self._channel.is_open and self.connection.is_writable):  # it is being closed
            return
        move = self._moves[0]
        self._is_published, move.returned = True, False
        self._channel.basic_publish("", move.target, move.body, move.properties, mandatory=True)

    def _on_open(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_close)
        channel.add_on_return_callback(lambda *_message: self._on_return(channel))
        self._is_published = True  # until the broker has enabled confirms
        channel.confirm_delivery(
            lambda frame: self._on_confirm(channel, frame),
            callback=lambda _frame: self._on_agreed(channel),
        )

    def _on_agreed(self, channel: Any) -> None:
        if channel is self._channel:
            self._is_opening = self._is_published = False
            self._go_on()

    def _on_return(self, channel: Any) -> None:
        if channel is self._channel and self._moves:
            self._moves[0].returned = True

    def _on_confirm(self, channel: Any, confirm: Any) -> None:
        if channel is not self._channel:
            return
        move, self._is_published = self._moves[0], False
        if move.returned:  # the queue is missing: declare it, then publish again
            channel.queue_declare(move.target, durable=True)
        else:
            self._moves.popleft()
            if confirm.method.NAME == "Basic.Nack":
                self._on_refused(move, NACKED)
            else:
                self._on_moved(move)
        self._go_on()

    def _on_close(self, channel: Any, reason: Exception) -> None:
        if channel is not self._channel:
            return
        self._channel, self._is_opening, self._is_published = None, False, False
        if (words := broker_words(reason)) and self._moves:
            self._on_refused(self._moves.popleft(), words)
            self._go_on()
