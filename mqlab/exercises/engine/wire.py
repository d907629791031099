"""A small TCP proxy in front of a broker, on 127.0.0.1, and a record of the AMQP it forwards.

Exercises and tests put ``Proxy`` between a client and the broker to see what each of them sends,
and to cause the faults that a network causes: it cuts, swallows and delays, and changes no byte.
``Recorder`` turns its frames into ``Method`` objects, each with the message that belongs to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any

from pika.frame import Body, Header, decode_frame
from pika.frame import Method as MethodFrame
from pika.spec import FRAME_MAX_SIZE

from mqlab.settings import Settings

OnFrame = Callable[[int, bool, Any], object]


class Proxy:
    """Forwards a free port on 127.0.0.1 to a broker; ``settings`` points at the proxy.

    ``on_frame(connection, from_client, frame)`` is called with each AMQP frame *before* it is
    forwarded, in the thread of that connection and direction; ``connection`` counts from 1. The
    frame is swallowed if it returns False. It cannot see frames inside TLS.
    """

    def __init__(self, target: Settings, on_frame: OnFrame | None = None) -> None:
        self._target = (target.host, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.settings = dataclasses.replace(
            target, host="127.0.0.1", port=self._listener.getsockname()[1]
        )
        self.swallow = False  # what both sides send; connections stay open
        self.swallow_answers = False  # what the broker sends
        self.delay_s = 0.0
        self.cuts = self.accepted = 0
        self.open: set[int] = set()
        """Numbers of the connections that neither side has ended."""
        self._closed = False
        self._on_frame = on_frame
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._start(self._accept)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Accept nothing more, and end every connection."""
        self._closed = True
        with contextlib.suppress(OSError):  # close alone does not wake a thread in accept
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> int:
        """End every connection at once, as a network does; return how many there were.

        The next ones are whole: nothing is swallowed any more.
        """
        with self._lock:  # a client that reconnects at once waits until all of this is done
            pairs, self._pairs = self._pairs, []
            self.cuts += bool(pairs)
            for end in (end for pair in pairs for end in pair):
                with contextlib.suppress(OSError):
                    # linger 0: close sends RST instead of FIN
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
            self.swallow = self.swallow_answers = False
        return len(pairs)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):  # or small confirms wait for the delayed ACK of TCP
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._closed:
                    client.close()
                    server.close()
                    return
                self._pairs.append((client, server))
                self.open.add(self.accepted)
            self._start(self._pump, client, server, self.accepted, True)
            self._start(self._pump, server, client, self.accepted, False)

    @staticmethod
    def _start(function: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=function, args=args, name="broker proxy", daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, number: int, from_client: bool
    ) -> None:
        with contextlib.suppress(OSError):
            for data in self._pieces(source, number, from_client):
                if self.delay_s:
                    sleep(self.delay_s)
                if not (self.swallow or (self.swallow_answers and not from_client)):
                    sink.sendall(data)
        self.open.discard(number)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pieces(self, source: socket.socket, number: int, from_client: bool) -> Iterator[bytes]:
        """What comes from ``source`` and goes on: frame by frame if there is an on_frame."""
        rest, on_frame = b"", self._on_frame
        while data := source.recv(65536):
            rest += data
            while on_frame is not None:
                size, frame = _first_frame(rest)
                if size is None:  # as when two threads write at once: from here on it is not seen
                    on_frame = None
                elif frame is None:
                    break
                else:
                    if on_frame(number, from_client, frame) is not False:
                        yield rest[:size]
                    rest = rest[size:]
            if on_frame is None:
                yield rest
                rest = b""


def _first_frame(data: bytes) -> tuple[int | None, Any]:
    """The first frame and its size; no frame if it is not whole, no size if it is not AMQP."""
    if len(data) >= 7 and data[:4] != b"AMQP" and int.from_bytes(data[3:7], "big") > FRAME_MAX_SIZE:
        return None, None
    try:
        size, frame = decode_frame(data)
    except Exception:  # pika raises whatever it stumbles over
        return None, None
    return size, frame


@dataclass(slots=True)
class Method:
    """One AMQP method that was on the wire, such as ``Basic.Publish``. Times in seconds.

    ``reached`` is False if it was swallowed on its way. ``properties`` and ``body`` are those of
    the message that came with it; properties are None where there is none.
    """

    at: float
    connection: int
    channel: int
    from_client: bool
    method: Any
    reached: bool = True
    properties: Any = None
    body: bytes = b""

    @property
    def name(self) -> str:
        """The method's name in AMQP 0-9-1."""
        return str(self.method.NAME)


class Recorder:
    """Collects methods, of all connections and both directions, in the order they were seen in."""

    def __init__(self) -> None:
        self.methods: list[Method] = []
        self._last: dict[tuple[int, int, bool], Method] = {}

    def note(self, connection: int, from_client: bool, frame: Any, reached: bool) -> Method | None:
        """Add one frame; return the method that begins with it, if it is a method frame."""
        where = (connection, getattr(frame, "channel_number", 0), from_client)
        if isinstance(frame, MethodFrame):
            method = Method(
                perf_counter(), connection, frame.channel_number, from_client, frame.method, reached
            )
            self.methods.append(method)
            self._last[where] = method
            return method
        if where in self._last and isinstance(frame, Header):
            self._last[where].properties = frame.properties
        elif where in self._last and isinstance(frame, Body):
            self._last[where].body += frame.fragment
        return None

    def named(self, name: str, *, from_client: bool = True) -> list[Method]:
        """The methods of one name and direction."""
        return [m for m in self.methods if m.name == name and m.from_client is from_client]
