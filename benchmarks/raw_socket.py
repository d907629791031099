"""AMQP 0-9-1 on a bare socket, as the limit of what a client can reach.

pika's codec does the handshake. The measured loops handle nothing but bytes.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import pika
from pika import frame, spec

ACK_FRAME_BYTES = 21  # 7 header + 4 class and method + 8 tag + 1 bits + 1 end


class RawChannel:
    """One connection with one open channel on a bare socket."""

    def __init__(self, url: str) -> None:
        parameters = pika.URLParameters(url)
        self.socket = socket.create_connection((parameters.host, parameters.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.socket.sendall(frame.ProtocolHeader().marshal())
        self._read()
        user, password = parameters.credentials.username, parameters.credentials.password
        self._send(0, spec.Connection.StartOk({}, "PLAIN", f"\0{user}\0{password}", "en_US"))
        tune = self._read().method
        self._send(0, spec.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        self._send(0, spec.Connection.Open(parameters.virtual_host, insist=True))
        self._read()
        self.call(spec.Channel.Open())

    def call(self, method: Any) -> Any:
        self._send(1, method)
        return self._read()

    def close(self) -> None:
        self.socket.close()

    def _send(self, channel: int, method: Any) -> None:
        self.socket.sendall(frame.Method(channel, method).marshal())

    def _read(self) -> Any:
        while True:
            used, found = frame.decode_frame(self.buffer)
            if found is not None:
                self.buffer = self.buffer[used:]
                return found
            self.buffer += self.socket.recv(65536)


def publish_frames(queue: str, body: bytes, message_id: str) -> bytes:
    properties = pika.BasicProperties(
        content_type="application/json", delivery_mode=2, message_id=message_id
    )
    return b"".join(
        part.marshal()
        for part in (
            frame.Method(1, spec.Basic.Publish(routing_key=queue, mandatory=True)),
            frame.Header(1, len(body), properties),
            frame.Body(1, body),
        )
    )


def publish_confirmed(url: str, messages: list[bytes]) -> None:
    """Publish ready-made frames with at most 1,000 unconfirmed, and read every confirm."""
    channel = RawChannel(url)
    channel.call(spec.Confirm.Select())
    sent = confirmed = 0
    data = b""
    while confirmed < len(messages):
        if sent - confirmed <= 500 and sent < len(messages):
            room = 1000 - (sent - confirmed)
            channel.socket.sendall(b"".join(messages[sent : sent + room]))
            sent = min(sent + room, len(messages))
        data += channel.socket.recv(65536)
        whole = len(data) - len(data) % ACK_FRAME_BYTES
        for at in range(0, whole, ACK_FRAME_BYTES):
            class_id, method_id, tag, multiple = struct.unpack_from(">HHQB", data, at + 7)
            assert (class_id, method_id) == (60, 80), "not an ack"
            confirmed = tag if multiple else confirmed + 1
        data = data[whole:]
    channel.close()


def consume(url: str, queue: str, count: int, prefetch: int, handle: Any) -> None:
    """Consume ``count`` messages, with one ack for all messages of each recv."""
    channel = RawChannel(url)
    channel.call(spec.Basic.Qos(prefetch_count=prefetch))
    channel.call(spec.Basic.Consume(queue=queue))
    data, taken, tag, done, acked = channel.buffer, 0, 0, 0, 0
    while taken < count:
        at = 0
        while len(data) - at >= 8:
            kind, _channel, size = struct.unpack_from(">BHI", data, at)
            if len(data) - at < size + 8:
                break
            if kind == 1:  # basic.deliver: class, method, consumer tag, delivery tag
                start = at + 11
                (tag,) = struct.unpack_from(">Q", data, start + 1 + data[start])
            elif kind == 3:
                handle(data[at + 7 : at + 7 + size])
                taken, done = taken + 1, tag
            at += size + 8
        data = data[at:]
        if done > acked:  # acknowledging a tag twice would close the channel
            channel.socket.sendall(frame.Method(1, spec.Basic.Ack(done, multiple=True)).marshal())
            acked = done
        if taken < count:
            data += channel.socket.recv(262144)
    channel.call(spec.Channel.Close(200, "", 0, 0))
    channel.close()
