"""The private names of pika that mqlab/_pika.py uses: red as soon as pika changes one of them."""

from __future__ import annotations

import inspect
import struct

import pika
import pytest
from pika import frame, spec

from mqlab import _pika
from mqlab.settings import Settings


def header_frame(properties: bytes, body_size: int = 7) -> bytes:
    payload = struct.pack(">HHQ", spec.Basic.INDEX, 0, body_size) + properties
    return struct.pack(">BHL", spec.FRAME_HEADER, 1, len(payload)) + payload + b"\xce"


def encode_properties(headers: bytes, message_id: str) -> bytes:
    plain = b"".join(pika.BasicProperties(content_type="a/b", message_id=message_id).encode())
    (flags,) = struct.unpack_from(">H", plain)
    table = struct.pack(">I", len(headers)) + headers
    with_headers = flags | spec.BasicProperties.FLAG_HEADERS
    return struct.pack(">H", with_headers) + plain[2:6] + table + plain[6:]


TOO_LATE = b"\x01t" + b"T" + struct.pack(">Q", 2**63)
"""A header named t: a timestamp that no datetime can hold."""


def test_the_names_are_where_they_were() -> None:
    assert "_frame_buffer" in inspect.getsource(pika.connection.Connection._read_frame)
    assert inspect.signature(pika.SelectConnection._read_frame).parameters.keys() == {"self"}
    assert list(inspect.signature(pika.SelectConnection._on_data_available).parameters) == [
        "self",
        "data_in",
    ]
    assert "_impl_class" in inspect.signature(pika.BlockingConnection.__init__).parameters


def test_properties_that_cannot_be_decoded_are_handed_on_with_the_headers_as_bytes() -> None:
    data = header_frame(encode_properties(TOO_LATE, "odd"))
    with pytest.raises((OverflowError, ValueError, OSError)):
        frame.decode_frame(data)
    length, decoded = _pika._decode_header_frame(data + b"more")
    assert length == len(data)
    assert (decoded.channel_number, decoded.body_size) == (1, 7)
    assert (decoded.properties.content_type, decoded.properties.message_id) == ("a/b", "odd")
    assert TOO_LATE in decoded.properties.headers[_pika.UNDECODED_HEADER]


def test_properties_that_make_no_sense_at_all_are_kept_as_bytes() -> None:
    nonsense = struct.pack(">H", spec.BasicProperties.FLAG_MESSAGE_ID) + b"\xffxyz"
    _, decoded = _pika._decode_header_frame(header_frame(nonsense))
    assert decoded.properties.headers == {_pika.UNDECODED_HEADER: nonsense}


def test_abort_closes_the_socket_at_once(broker_settings: Settings) -> None:
    connection = _pika.blocking_connection(broker_settings.parameters())
    implementation = connection._impl
    assert isinstance(implementation, _pika.SturdyConnection)
    socket = implementation._transport._sock
    assert socket.fileno() > 0
    _pika.abort(implementation)
    assert socket.fileno() == -1


def test_abort_never_raises() -> None:
    _pika.abort(None)
