"""All private names of pika that mqlab uses; ``tests/test_pika.py`` fails when one changes.

If the properties of a message cannot be decoded (a timestamp beyond the year 9999, a table nested
too deeply), pika 1.4.4 lets an exception escape into the I/O loop, and the message is redelivered.
``SturdyConnection`` passes such a message on, with the headers as bytes.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pika
import pika.exceptions
from pika import frame, spec

UNDECODED_HEADER = "mqlab-undecoded"
"""The header with the encoded headers (or else all encoded properties) of such a message."""
_FLAG_HEADERS = spec.BasicProperties.FLAG_HEADERS


class SturdyConnection(pika.SelectConnection):  # type: ignore[misc]
    """A SelectConnection that survives properties that cannot be decoded.

    pika reports any exception in a callback as a lost connection; ``bug`` is that exception.
    """

    bug: Exception | None = None

    def _on_data_available(self, data_in: bytes) -> None:
        try:
            super()._on_data_available(data_in)
        except pika.exceptions.AMQPError:
            raise
        except Exception as error:
            self.bug = error
            raise

    def _read_frame(self) -> Any:
        try:
            return frame.decode_frame(self._frame_buffer)
        except pika.exceptions.AMQPError:
            raise
        except Exception:
            return _decode_header_frame(self._frame_buffer)


def blocking_connection(parameters: Any) -> Any:
    """Open a BlockingConnection that survives properties that cannot be decoded."""
    return pika.BlockingConnection(parameters, _impl_class=SturdyConnection)


def write(connection: Any, frames: bytes) -> None:
    """Queue whole frames for writing. ``basic_publish`` does this once for each of its frames."""
    connection._adapter_emit_data(frames)


def abort(connection: Any) -> None:
    """Close the connection's socket at once, whatever state it is in. Never raises."""
    with contextlib.suppress(Exception):
        if connection._transport is not None:
            connection._transport._close_and_finalize()


def _decode_header_frame(data: bytes) -> tuple[int, Any]:
    """Decode the header frame at the start of ``data``, whose properties pika could not decode.

    Raises InvalidFrameError for any other frame.
    """
    kind, channel, size = struct.unpack_from(">BHL", data)
    if kind != spec.FRAME_HEADER:
        raise pika.exceptions.InvalidFrameError("a frame could not be decoded")
    payload = bytes(data[spec.FRAME_HEADER_SIZE : spec.FRAME_HEADER_SIZE + size])
    _class_id, _weight, body_size = struct.unpack_from(">HHQ", payload)
    properties = _decode_without_headers(payload[12:])
    length = spec.FRAME_HEADER_SIZE + size + spec.FRAME_END_SIZE
    return length, frame.Header(channel, body_size, properties)


def _decode_without_headers(encoded: bytes) -> Any:
    # AMQP 0-9-1, 4.2.6.1: flags, content type, content encoding, headers, then the others.
    try:
        (flags,) = struct.unpack_from(">H", encoded)
        start = 2
        for flag in (spec.BasicProperties.FLAG_CONTENT_TYPE,
                     spec.BasicProperties.FLAG_CONTENT_ENCODING):  # fmt: skip
            start += 1 + encoded[start] if flags & flag else 0
        end = start + 4 + int.from_bytes(encoded[start : start + 4], "big")
        rest = struct.pack(">H", flags & ~_FLAG_HEADERS) + encoded[2:start] + encoded[end:]
        properties = pika.BasicProperties()
        properties.decode(rest)
        properties.headers = {UNDECODED_HEADER: encoded[start:end]}
    except Exception:
        properties = pika.BasicProperties(headers={UNDECODED_HEADER: encoded})
    return properties
