"""Messages with a header table written byte by byte: what pika would not write, or not read."""

from __future__ import annotations

import struct
from typing import Any

import pika
from pika import frame

from mqlab.settings import Settings
from tests.helpers import raw_channel

FRAME_OVERHEAD = 8  # type, channel, size, end


class RawProperties(pika.BasicProperties):  # type: ignore[misc]
    """Properties whose header table goes onto the wire as it is given."""

    def __init__(self, table: bytes, message_id: str) -> None:
        super().__init__(headers={}, delivery_mode=2, message_id=message_id)
        self.table = table

    def encode(self) -> list[bytes]:
        # AMQP 0-9-1 sends a word of flags, and then each property that is there, in a fixed order.
        flags = self.FLAG_HEADERS | self.FLAG_DELIVERY_MODE | self.FLAG_MESSAGE_ID
        name = self.message_id.encode()
        table = struct.pack(">I", len(self.table)) + self.table
        return [struct.pack(">H", flags), table, b"\x02", bytes([len(name)]) + name]


def entry(name: str, kind: bytes, value: bytes) -> bytes:
    """One field of a table: its name as a short string, the letter of its type, its value."""
    return bytes([len(name)]) + name.encode() + kind + value


def timestamp(seconds: int) -> bytes:
    return entry("sent-at", b"T", struct.pack(">Q", seconds))


def nested(levels: int) -> bytes:
    table = b""
    for _ in range(levels):
        table = entry("t", b"F", struct.pack(">I", len(table)) + table)
    return table


def publish_with_table(
    settings: Settings, queue: str, table: bytes, *, message_id: str, body: bytes
) -> None:
    with raw_channel(settings) as channel:
        channel.queue_declare(queue, durable=True)
        channel.basic_publish("", queue, body, RawProperties(table, message_id))


def decodes(table: bytes) -> bool:
    """Whether pika can read a message with this header table."""
    sent = frame.Header(1, 0, RawProperties(table, "m")).marshal()
    try:
        frame.decode_frame(sent)
    except Exception:
        return False
    return True


def filling_headers(frame_max: int, slack: int, **properties: Any) -> dict[str, str]:
    """Headers with which the message's header frame has ``slack`` bytes less than ``frame_max``."""
    empty = pika.BasicProperties(headers={"big": ""}, **properties)
    used = len(frame.Header(1, 0, empty).marshal())
    return {"big": "x" * (frame_max - slack - used)}
