"""TCP ports of this machine: which are free, and what listens on the others."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from dataclasses import dataclass

import psutil

from mqlab.errors import PortTaken

PROBE_TIMEOUT_S = 0.6
"""Seconds for one probe. There are two, and a taken port has to be reported within 2 s."""


@dataclass(frozen=True)
class Listener:
    """What listens on a port: its kind in words, and the program if the system shows it."""

    kind: str
    is_rabbitmq: bool = False
    program: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.program})" if self.program else self.kind


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_open(port: int, timeout_s: float = 0.5) -> bool:
    """Return whether something on 127.0.0.1 accepts connections on that port."""
    with socket.socket() as probe:
        probe.settimeout(timeout_s)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_free(port: int) -> bool:
    """Return whether a server could listen on that port of 127.0.0.1."""
    with socket.socket() as probe:
        # As servers do: a port with nothing but closed connections counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return not is_open(port)  # Docker may forward a port that no process is bound to


def identify(port: int) -> Listener:
    """Find out what listens on a port of 127.0.0.1, within the time of two probes."""
    answer = _ask(port, b"AMQP\x00\x00\x09\x01")
    program = _program(port)
    if answer is None:
        return Listener("a program that does not accept connections", program=program)
    if b"RabbitMQ" in answer:
        version = re.search(rb"versionS\x00\x00\x00.([\d.]+)", answer, re.DOTALL)
        name = f"a RabbitMQ {version[1].decode()}" if version else "a RabbitMQ"
        return Listener(name, is_rabbitmq=True, program=program)
    if answer.startswith(b"AMQP"):
        return Listener("an AMQP server of another version", program=program)
    answer = _ask(port, b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n") or b""
    if b"RabbitMQ Management" in answer:
        return Listener("a RabbitMQ management UI", program=program)
    if answer.startswith(b"HTTP/"):
        return Listener("an HTTP server", program=program)
    return Listener("a program that speaks neither AMQP nor HTTP", program=program)


def check_free(port: int, management_port: int, found: Listener | None = None) -> None:
    """Raise PortTaken, within 2 s, if one of the two ports is in use.

    ``found`` is what ``identify`` returned for the first, if it is known already.
    """
    for taken, option, variable, use in (
        (port, "--port", "MQLAB_AMQP_PORT", "AMQP"),
        (management_port, "--management-port", "MQLAB_MANAGEMENT_PORT", "the management API"),
    ):
        if not is_free(taken):
            holder = (found if taken == port else None) or identify(taken)
            other = next((p for p in range(taken + 10, 65536, 10) if is_free(p)), free_port())
            raise PortTaken(
                f"Port {taken}, meant for {use}, is taken by {holder}.",
                why="it was there first, and mqlab leaves alone what it did not start",
                fix=f"choose another port: export {variable}={other}  (the notebooks read it too), "
                f"or for one command: {option} {other}",
            )


def _ask(port: int, question: bytes) -> bytes | None:
    """Return the reply to ``question``; None if no connection is accepted."""
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    answer = b""
    try:
        client = socket.create_connection(("127.0.0.1", port), timeout=PROBE_TIMEOUT_S)
    except OSError:
        return None
    with client, contextlib.suppress(OSError):
        client.sendall(question)
        while len(answer) < 4096 and (left := deadline - time.monotonic()) > 0:
            client.settimeout(left)
            chunk = client.recv(4096)
            answer += chunk
            if not chunk or b"RabbitMQ" in answer:
                break
    return answer


def _program(port: int) -> str:
    """Return name and pid of the listener, if this user may see them."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            here = connection.laddr and connection.laddr.port == port
            if here and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f"{psutil.Process(connection.pid).name()}, pid {connection.pid}"
    return ""
