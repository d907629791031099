"""What the tests of faults share: what a process has open, users of a test's own, bounded calls."""

from __future__ import annotations

import dataclasses
import faulthandler
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pika
import psutil

from mqlab.settings import Settings
from tests.helpers import eventually, management, raw_channel

EVERYTHING = {"configure": ".*", "write": ".*", "read": ".*"}


def task_body(task_id: str = "an-id", data: object = '"x"') -> bytes:
    return f'{{"task_id": "{task_id}", "data": {data}, "timestamp": 1.0}}'.encode()


def publish(settings: Settings, queue: str, *bodies: bytes, **properties: Any) -> None:
    """Publish with plain pika, into a queue that is declared as mqlab declares it."""
    with raw_channel(settings) as channel:
        channel.queue_declare(queue, durable=True)
        for body in bodies:
            channel.basic_publish("", queue, body, pika.BasicProperties(**properties))


def count_consumers(settings: Settings, queue: str) -> int:
    """How many consumers the broker has on the queue; none if there is no such queue."""
    with pika.BlockingConnection(settings.parameters(name="a test looks")) as connection:
        channel = connection.channel()
        try:
            count: int = channel.queue_declare(queue, passive=True).method.consumer_count
        except pika.exceptions.ChannelClosedByBroker:
            return 0
        return count


# ---- what this process has open


def mqlab_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("mqlab")}


def open_sockets(settings: Settings) -> set[int]:
    """The file descriptors of this process that are connected to the broker."""
    return {
        connection.fd
        for connection in psutil.Process().net_connections("tcp")
        if connection.raddr and connection.raddr.port == settings.port
        if connection.status == psutil.CONN_ESTABLISHED
    }


@dataclass
class Inventory:
    """What this process has open towards a broker; ``assert_restored`` compares it with now."""

    settings: Settings
    threads: set[threading.Thread]
    sockets: set[int]

    @classmethod
    def take(cls, settings: Settings) -> Inventory:
        return cls(settings, mqlab_threads(), open_sockets(settings))

    def left(self, starting: bool = True) -> list[str]:
        """What is open now and was not: threads by name, sockets by number.

        Python lists a thread whose start was interrupted for ever, though it runs nothing. So
        threads that have not begun are left out unless ``starting``.
        """
        new = mqlab_threads() - self.threads
        threads = [thread.name for thread in new if starting or thread.is_alive()]
        return threads + [f"socket {fd}" for fd in open_sockets(self.settings) - self.sockets]

    def assert_restored(self, when: str = "", within_s: float = 6.0) -> None:
        started = time.monotonic()
        while left := self.left(starting=time.monotonic() < started + 0.3):
            assert time.monotonic() < started + within_s, f"still open {when}: {left}"
            time.sleep(0.005)


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Call ``function`` in a thread of its own; fail, and show every thread, if it does not return.

    What it raises is raised here.
    """
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, name="a bounded call", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            raise AssertionError(f"a call has not returned after {seconds:g} s:\n{file.read()}")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


@contextmanager
def fresh_queue(settings: Settings, queue: str) -> Iterator[str]:
    """A queue for one round of a test: what an earlier round has left does not reach it."""
    name = f"{queue}-{uuid.uuid4().hex[:6]}"
    publish(settings, name)
    try:
        yield name
    finally:
        with raw_channel(settings) as channel:
            channel.queue_delete(name)
            channel.queue_delete(f"{name}.dead")


# ---- users and virtual hosts of a test's own


@contextmanager
def user(settings: Settings, **rights: str) -> Iterator[Settings]:
    """Create a user who may do everything in the test's virtual host, but for ``rights``."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    management(settings, f"users/{name}", "PUT", {"password": "topsecret", "tags": ""})
    theirs = dataclasses.replace(settings, username=name, password="topsecret")
    set_rights(settings, theirs, **rights)
    try:
        yield theirs
    finally:
        management(settings, f"users/{name}", "DELETE")


def set_rights(settings: Settings, theirs: Settings, **rights: str) -> None:
    vhost = theirs.virtual_host.replace("/", "%2F")
    path = f"permissions/{vhost}/{theirs.username}"
    management(settings, path, "PUT", {**EVERYTHING, **rights})


@contextmanager
def virtual_host(settings: Settings) -> Iterator[Settings]:
    """Create a virtual host, which the user of ``settings`` may use."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    management(settings, f"vhosts/{name}", "PUT")
    management(settings, f"permissions/{name}/{settings.username}", "PUT", EVERYTHING)
    try:
        yield dataclasses.replace(settings, virtual_host=name)
    finally:
        management(settings, f"vhosts/{name}", "DELETE")


def wait_for_outcomes(consumer: Any, outcomes: dict[str, str], within_s: float) -> None:
    """Wait until each of these tasks has a record with its outcome."""

    def has_all() -> bool:
        found = {(record.task_id, record.outcome) for record in consumer.records}
        return set(outcomes.items()) <= found

    eventually(has_all, within_s)
