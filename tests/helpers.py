"""What several tests need: raw looks at the broker, and waiting with a deadline."""

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
    """A free port below those that the system gives away, so that a broker finds it free again."""
    return next(port for port in iter(lambda: random.randrange(15000, 32000), 0) if is_free(port))


QUEUE_ON_DISK_S = 3.0
"""A broker that is killed earlier after a declare may have forgotten the queue: docs/faults.md."""


@contextmanager
def raw_channel(settings: Settings) -> Iterator[Any]:
    """A plain pika channel, to publish and to look without mqlab."""
    with pika.BlockingConnection(settings.parameters(name="a test looks")) as connection:
        yield connection.channel()


def depth(settings: Settings, queue: str) -> int:
    """How many messages are ready in the queue."""
    with raw_channel(settings) as channel:
        count: int = channel.queue_declare(queue, passive=True).method.message_count
        return count


def assert_depth(settings: Settings, queue: str, expected: int) -> None:
    """Assert that so many messages are ready, give or take a moment.

    A passive declare may overtake messages that the queue has confirmed and not yet counted.
    """
    deadline = time.monotonic() + 5
    while (found := depth(settings, queue)) != expected:
        assert time.monotonic() < deadline, f"{found} messages in {queue}, not {expected}"
        time.sleep(0.02)


def consumers(settings: Settings, queue: str) -> int:
    """How many consumers the broker has on the queue."""
    with raw_channel(settings) as channel:
        count: int = channel.queue_declare(queue, passive=True).method.consumer_count
        return count


def take_all(settings: Settings, queue: str) -> list[tuple[Any, Any, bytes]]:
    """Take every ready message off the queue: (method, properties, body) each."""
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
    """Run rabbitmqctl against a private node, in the environment that its server has."""
    [server] = [process for process in node.processes() if process.name() == "beam.smp"]
    environ = server.environ()
    script = (find_server() or packages.fetch_server()).with_name("rabbitmqctl")
    done = subprocess.run(
        [str(script), "-n", environ["RABBITMQ_NODENAME"], *arguments],
        env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
