"""The proxy that exercises and tests put in front of a broker: it looks, cuts, swallows, delays."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPError

from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings
from tests.helpers import assert_depth, depth, eventually, raw_channel, take_all

Seen = list[tuple[int, bool, Any]]


@pytest.fixture
def echo() -> Iterator[Settings]:
    """A server that is no broker: it sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield Settings(port=listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    threads = set(threading.enumerate())
    yield
    eventually(lambda: set(threading.enumerate()) <= threads)


def names(seen: Seen, connection: int, *, from_client: bool) -> list[str]:
    """The methods of one connection and direction, in order."""
    methods = [frame.method.NAME for n, c, frame in seen if (n, c) == (connection, from_client)
               and hasattr(frame, "method")]  # fmt: skip
    return [name for name in methods if name.startswith("Basic.")]


def open_socket(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.settings.port), timeout=5)


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(65536)):
        data += more
    return data


def is_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


def test_it_sees_each_frame_of_each_connection_in_order(
    broker_settings: Settings, queue: str
) -> None:
    seen: Seen = []
    with Proxy(broker_settings, lambda *frame: seen.append(frame)) as proxy:
        for body in (b"one", b"two"):
            with raw_channel(proxy.settings) as channel:
                channel.queue_declare(queue, durable=True)
                channel.confirm_delivery()
                channel.basic_publish("", queue, body)
                channel.basic_ack(channel.basic_get(queue)[0].delivery_tag)
        assert proxy.accepted == 2
    for connection in (1, 2):
        said = names(seen, connection, from_client=True)
        assert said == ["Basic.Publish", "Basic.Get", "Basic.Ack"]
        assert names(seen, connection, from_client=False) == ["Basic.Ack", "Basic.GetOk"]
    bodies = [frame.fragment for _, _, frame in seen if isinstance(frame, pika.frame.Body)]
    assert bodies == [b"one", b"one", b"two", b"two"]


def test_a_frame_is_seen_before_it_is_forwarded(broker_settings: Settings, queue: str) -> None:
    in_queue: list[int] = []

    def look(_connection: int, from_client: bool, frame: Any) -> None:
        if from_client and isinstance(frame, pika.frame.Body):
            in_queue.append(depth(broker_settings, queue))

    with (
        Proxy(broker_settings, look) as proxy,
        raw_channel(broker_settings) as direct,
        raw_channel(proxy.settings) as channel,
    ):
        direct.queue_declare(queue, durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", queue, b"x")
        assert in_queue == [0]
        eventually(lambda: depth(broker_settings, queue) == 1)


def test_a_message_of_many_frames_arrives_whole_while_somebody_looks(
    broker_settings: Settings, queue: str
) -> None:
    seen: Seen = []
    body = random.Random(4).randbytes(1_000_000)
    proxy = Proxy(broker_settings, lambda *frame: seen.append(frame))
    with proxy, raw_channel(proxy.settings) as channel:
        channel.queue_declare(queue, durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", queue, body)
    [(_, _, arrived)] = take_all(broker_settings, queue)
    assert arrived == body
    assert sum(isinstance(frame, pika.frame.Body) for _, _, frame in seen) > 5


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x01\x00\x01\x7f\xff\xff\xff and then nothing",  # a frame that would never be whole
        b"\x01\x00\x01\x00\x00\x00\x04\xff\xff\xff\xff\xce",  # a method that does not exist
        b"\x02\x00\x01\x00\x00\x00\x01\x00\xce",  # a header that is too short
        random.Random(4).randbytes(100_000),
    ],
    ids=["http", "endless", "no such method", "short header", "noise"],
)
def test_what_is_not_amqp_goes_through_unchanged(data: bytes, echo: Settings) -> None:
    seen: Seen = []
    with Proxy(echo, lambda *frame: seen.append(frame)) as proxy, open_socket(proxy) as connection:
        connection.sendall(data)
        assert read(connection, len(data)) == data
        connection.sendall(b"AMQP\x00\x00\x09\x01")  # from here on nothing is seen
        assert read(connection, 8) == b"AMQP\x00\x00\x09\x01"
    assert seen == []


def test_frames_that_come_in_pieces_are_seen_once(echo: Settings) -> None:
    seen: Seen = []
    frame = pika.frame.Heartbeat().marshal()
    with Proxy(echo, lambda *frame: seen.append(frame)) as proxy, open_socket(proxy) as connection:
        for byte in frame * 2:
            connection.sendall(bytes([byte]))
        assert read(connection, 2 * len(frame)) == frame * 2
    there, back = ([found for _, c, found in seen if c is side] for side in (True, False))
    assert len(there) == len(back) == 2
    assert isinstance(there[0], pika.frame.Heartbeat)


def test_a_cut_ends_every_connection_and_the_next_one_works(echo: Settings) -> None:
    with Proxy(echo) as proxy:
        first, second = open_socket(proxy), open_socket(proxy)
        for connection in (first, second):
            connection.sendall(b"x")
            assert read(connection, 1) == b"x"
        proxy.swallow = proxy.swallow_answers = True
        assert proxy.cut() == 2
        assert proxy.cuts == 1
        for connection in (first, second):
            assert is_ended(connection)
            connection.close()
        assert proxy.cut() == 0
        assert proxy.cuts == 1
        with open_socket(proxy) as third:
            third.sendall(b"whole again")
            assert read(third, 11) == b"whole again"


@pytest.mark.parametrize(("swallowed", "arrived"), [("swallow", 0), ("swallow_answers", 1)])
def test_what_is_swallowed_arrives_on_neither_side_or_on_the_brokers(
    swallowed: str, arrived: int, broker_settings: Settings, queue: str
) -> None:
    with raw_channel(broker_settings) as direct:
        direct.queue_declare(queue, durable=True)
    with Proxy(broker_settings) as proxy:
        channel = pika.BlockingConnection(proxy.settings.parameters()).channel()
        channel.confirm_delivery()
        setattr(proxy, swallowed, True)
        cut = threading.Timer(0.3, proxy.cut)
        cut.start()
        with pytest.raises(AMQPError):  # no confirm has come
            channel.basic_publish("", queue, b"x")
        cut.join()
    assert_depth(broker_settings, queue, arrived)


def test_a_delay_delays_both_ways(echo: Settings) -> None:
    with Proxy(echo) as proxy, open_socket(proxy) as connection:
        connection.sendall(b"x")
        read(connection, 1)
        proxy.delay_s = 0.1
        started = time.monotonic()
        connection.sendall(b"x")
        read(connection, 1)
        assert time.monotonic() - started >= 0.2


def test_a_closed_proxy_accepts_nothing(echo: Settings) -> None:
    with Proxy(echo) as proxy:
        pass
    with pytest.raises(OSError, match="refused"):
        open_socket(proxy)


def test_who_is_being_accepted_while_it_closes_is_not_forgotten(echo: Settings) -> None:
    for _ in range(30):
        proxy = Proxy(echo)
        closer = threading.Thread(target=proxy.close)
        with socket.socket() as connection:
            connection.settimeout(5)
            connection.connect(("127.0.0.1", proxy.settings.port))
            closer.start()
            assert is_ended(connection)
        closer.join()


def test_without_a_target_a_connection_ends_at_once_and_the_next_is_tried(echo: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = Settings(port=listener.getsockname()[1])
    with Proxy(nobody) as proxy:
        with open_socket(proxy) as connection:
            assert connection.recv(1) == b""
        proxy._target = ("127.0.0.1", echo.port)
        with open_socket(proxy) as connection:
            connection.sendall(b"x")
            assert read(connection, 1) == b"x"
