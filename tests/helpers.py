"""Shared by several tests: plain pika access to the broker, and waiting with a deadline."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika

from mqlab.broker import packages
from mqlab.broker.management import ask as management  # noqa: F401
from mqlab.broker.node import Node, find_server
from mqlab.broker.ports import is_free
from mqlab.settings import Settings


def free_port() -> int:
    """Return a free port below the ephemeral range, so that it stays free until a broker starts."""
    return next(port for port in iter(lambda: random.randrange(15000, 32000), 0) if is_free(port))


QUEUE_ON_DISK_S = 3.0
"""If a broker is killed sooner after a declare, it may have lost the queue: docs/faults.md."""


@contextmanager
def raw_channel(settings: Settings) -> Iterator[Any]:
    """Open a plain pika channel, to publish and to check the broker without mqlab."""
    with pika.BlockingConnection(settings.parameters(name="a test")) as connection:
        yield connection.channel()


def depth(settings: Settings, queue: str) -> int:
    """Return how many messages are ready in the queue."""
    with raw_channel(settings) as channel:
        count: int = channel.queue_declare(queue, passive=True).method.message_count
        return count


def assert_depth(settings: Settings, queue: str, expected: int) -> None:
    """Assert that ``expected`` messages are ready, now or within 5 s.

    A queue may confirm messages before a passive declare counts them.
    """
    deadline = time.monotonic() + 5
    while (found := depth(settings, queue)) != expected:
        assert time.monotonic() < deadline, f"{found} messages in {queue}, not {expected}"
        time.sleep(0.02)


def consumers(settings: Settings, queue: str) -> int:
    """Return how many consumers the queue has."""
    with raw_channel(settings) as channel:
        count: int = channel.queue_declare(queue, passive=True).method.consumer_count
        return count


def take_all(settings: Settings, queue: str) -> list[tuple[Any, Any, bytes]]:
    """Consume every ready message; return (method, properties, body) for each."""
    taken = []
    with raw_channel(settings) as channel:
        while (message := channel.basic_get(queue, auto_ack=True))[0] is not None:
            taken.append(message)
    return taken


def eventually(holds: Callable[[], Any], within_s: float = 10.0) -> Any:
    """Wait until ``holds()`` is true and return it; fail after ``within_s`` seconds."""
    deadline = time.monotonic() + within_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not true within {within_s:g} s"
        time.sleep(0.02)
    return value


def rabbitmqctl(node: Node, *arguments: str) -> str:
    """Run rabbitmqctl against a private node, in the environment of its server."""
    [server] = [process for process in node.processes() if process.name() == "beam.smp"]
    environ = server.environ()
    script = (find_server() or packages.fetch_server()).with_name("rabbitmqctl")
    done = subprocess.run(
        [str(script), "-n", environ["RABBITMQ_NODENAME"], *arguments],
        env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
