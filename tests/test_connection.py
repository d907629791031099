from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mqlab.commands import command
from mqlab.connection import Connection, handshake
from mqlab.errors import AccessRefused, ConnectError, MqlabError
from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings
from tests.helpers import eventually

BOUND_S = 5.0


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def refusal(settings: Settings, kind: type[MqlabError]) -> str:
    """Fail to connect, in time and leaving no thread; return what is said."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        handshake(settings, timeout_s=BOUND_S)
    assert time.monotonic() - started < BOUND_S + 0.5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mqlab")]
    assert type(caught.value) is kind
    return str(caught.value)


def test_handshake_tells_the_version(broker_settings: Settings) -> None:
    assert handshake(broker_settings)[0].isdigit()


def test_row_11_a_wrong_password_is_said_and_not_tried_again(broker_settings: Settings) -> None:
    with Proxy(broker_settings) as proxy:
        wrong = dataclasses.replace(proxy.settings, password="topsecret")
        said = refusal(wrong, AccessRefused)
        assert "password" in said
        assert "topsecret" not in said
        assert proxy.accepted == 1


def test_row_11_a_virtual_host_that_does_not_exist_is_named(broker_settings: Settings) -> None:
    said = refusal(dataclasses.replace(broker_settings, virtual_host="nope"), AccessRefused)
    assert "'nope'" in said


def test_row_12_a_closed_port_is_told_with_the_next_command() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    said = refusal(Settings(port=port), ConnectError)
    assert f"127.0.0.1:{port}" in said
    assert "nothing listens there" in said
    assert command("broker start") in said


def test_row_13_a_silent_host_is_told_in_time(silent_port: int) -> None:
    said = refusal(Settings(port=silent_port), ConnectError)
    assert "did not" in said


def test_row_13_the_management_port_is_no_amqp_port(broker_settings: Settings) -> None:
    port = int(broker_settings.management_url.rsplit(":", 1)[1])
    said = refusal(dataclasses.replace(broker_settings, port=port), ConnectError)
    assert "management UI" in said


def test_row_13_a_name_that_does_not_exist_is_told() -> None:
    said = refusal(Settings(host="no-such-host.invalid"), ConnectError)
    assert "no-such-host.invalid" in said


def test_row_13_a_bound_shorter_than_the_attempt_is_kept(silent_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectError):
        handshake(Settings(port=silent_port), timeout_s=0.5)
    assert time.monotonic() - started < 1.0


def test_row_15_a_cut_in_the_handshake_is_not_taken_for_a_refusal(
    broker_settings: Settings,
) -> None:
    with socket.create_connection((broker_settings.host, broker_settings.port)) as broker:
        broker.sendall(b"AMQP\x00\x00\x09\x01")
        start_frame = broker.recv(65536)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def start_and_cut() -> None:
            end, _ = listener.accept()
            end.sendall(start_frame)
            end.recv(65536)
            end.recv(65536)  # the login
            end.close()

        threading.Thread(target=start_and_cut, daemon=True).start()
        with pytest.raises(ConnectError) as caught:
            handshake(Settings(port=listener.getsockname()[1]), timeout_s=3)
    assert type(caught.value) is ConnectError


def kept(settings: Settings, lost: list[str]) -> Connection:
    connection = Connection(
        settings,
        name="test",
        on_channel=lambda _channel: connection.mark_ready(),
        on_lost=lambda: lost.append("lost"),
        on_ended=lambda error: lost.append(str(error)),
    )
    connection.open(timeout_s=10)
    return connection


def test_a_connection_that_is_cut_comes_back(broker_settings: Settings) -> None:
    lost: list[str] = []
    with Proxy(broker_settings) as proxy:
        connection = kept(proxy.settings, lost)
        assert proxy.cut() == 1
        eventually(lambda: connection.opened == 2)
        assert lost == ["lost"]
        assert connection.close()
    eventually(lambda: lost[-1] == "None")


def test_row_29_an_error_in_the_io_thread_is_kept(broker_settings: Settings) -> None:
    lost: list[str] = []
    connection = kept(broker_settings, lost)
    connection.run(lambda: 1 / 0)
    eventually(lambda: connection.error is not None)
    assert isinstance(connection.error, MqlabError)
    assert isinstance(connection.error.__cause__, ZeroDivisionError)
    eventually(lambda: any("ZeroDivisionError" in line for line in lost))
    assert connection.close()


def test_closing_while_it_tries_to_come_back_ends_the_thread(broker_settings: Settings) -> None:
    proxy = Proxy(broker_settings)
    with proxy:
        connection = kept(proxy.settings, [])
    eventually(lambda: connection.last_error is not None)
    assert connection.close(timeout_s=2)
