"""What a broker has before and after: changes in words, undone, and messages that stay."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest

from mqlab.exercises.engine.objects import Snapshot, read_messages
from mqlab.exercises.engine.watch import Watch
from mqlab.settings import Settings
from tests.helpers import management, raw_channel

ALL = {"configure": ".*", "write": ".*", "read": ".*"}


class Room:
    """A virtual host and an administrator of the test's own, and a snapshot of all before it."""

    def __init__(self, settings: Settings) -> None:
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        self.settings = settings
        self.admin = replace(settings, username=self.name, password="secret")
        self.inside = replace(settings, virtual_host=self.name)

    def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        return management(self.settings, path, method, body)

    def changes(self) -> dict[tuple[str, ...], str]:
        """What has changed in this room, or concerns its user, since ``before``."""
        found = self.before.diff(Snapshot.take(self.admin))
        return {each.key: str(each) for each in found if self.name in each.key[1:]}

    def undo(self) -> None:
        found = self.before.diff(Snapshot.take(self.admin))
        self.before.undo(self.admin, [each for each in found if self.name in each.key[1:]])


@pytest.fixture
def room(broker_settings: Settings) -> Iterator[Room]:
    made = Room(broker_settings)
    made.ask(f"vhosts/{made.name}", "PUT", {})
    made.ask(f"users/{made.name}", "PUT", {"password": "secret", "tags": "administrator"})
    made.ask(f"permissions/{made.name}/{made.name}", "PUT", ALL)
    made.ask(f"queues/{made.name}/kept", "PUT", {"durable": True})
    made.ask(f"bindings/{made.name}/e/amq.topic/q/kept", "POST", {"routing_key": "a.*"})
    made.before = Snapshot.take(made.admin)
    yield made
    for path in (f"vhosts/{made.name}", f"users/{made.name}"):
        with contextlib.suppress(urllib.error.HTTPError):
            made.ask(path, "DELETE")


CHANGES: dict[str, tuple[Callable[[Room], object], str]] = {
    "a queue": (
        lambda it: it.ask(f"queues/{it.name}/new", "PUT", {}),
        "queue new in {0}: added",
    ),
    "a queue with other arguments": (
        lambda it: (
            it.ask(f"queues/{it.name}/kept", "DELETE"),
            it.ask(
                f"queues/{it.name}/kept",
                "PUT",
                {"durable": True, "arguments": {"x-max-length": 1}},
            ),
            it.ask(f"bindings/{it.name}/e/amq.topic/q/kept", "POST", {"routing_key": "a.*"}),
        ),
        "queue kept in {0}: changed, arguments {{",
    ),
    "a queue that is gone": (
        lambda it: it.ask(f"queues/{it.name}/kept", "DELETE"),
        "queue kept in {0}: removed",
    ),
    "an exchange": (
        lambda it: it.ask(f"exchanges/{it.name}/new", "PUT", {"type": "fanout"}),
        "exchange new in {0}: added",
    ),
    "a binding": (
        lambda it: it.ask(
            f"bindings/{it.name}/e/amq.topic/q/kept", "POST", {"routing_key": "b/%2F c"}
        ),
        "binding from amq.topic to kept in {0} with key 'b/%2F c': added",
    ),
    "a policy": (
        lambda it: it.ask(
            f"policies/{it.name}/short", "PUT", {"pattern": ".*", "definition": {"max-length": 1}}
        ),
        "policy short in {0}: added",
    ),
    "an operator policy": (
        lambda it: it.ask(
            f"operator-policies/{it.name}/short",
            "PUT",
            {"pattern": ".*", "definition": {"max-length": 1}},
        ),
        "parameter short (operator_policy) in {0}: added",
    ),
    "a limit of the virtual host": (
        lambda it: it.ask(f"vhost-limits/{it.name}/max-queues", "PUT", {"value": 5}),
        "parameter limits (vhost-limits) in {0}: added",
    ),
    "permissions": (
        lambda it: it.ask(f"permissions/{it.name}/{it.name}", "PUT", ALL | {"write": "^$"}),
        "permissions of {0} in {0}: changed, write '.*' -> '^$'",
    ),
    "topic permissions": (
        lambda it: it.ask(
            f"topic-permissions/{it.name}/{it.name}",
            "PUT",
            {"exchange": "amq.topic", "write": ".*", "read": ".*"},
        ),
        "topic permissions of {0} in {0} on exchange amq.topic: added",
    ),
    "a limit of the user": (
        lambda it: it.ask(f"user-limits/{it.name}/max-connections", "PUT", {"value": 5}),
        "user {0}: changed, limits {{}} -> {{'max-connections': 5}}",
    ),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_named_in_words_and_undone(
    room: Room, change: Callable[[Room], object], words: str
) -> None:
    assert room.changes() == {}
    change(room)
    expected = words.format(room.name)
    assert [each for each in room.changes().values() if each.startswith(expected)]
    room.undo()
    assert room.changes() == {}


def test_a_user_whose_password_and_tags_were_changed_gets_them_back(room: Room) -> None:
    bob = {"password": "old", "tags": "administrator"}
    name = f"{room.name}-bob"
    room.ask(f"users/{name}", "PUT", bob)
    before = Snapshot.take(room.admin)
    room.ask(f"users/{name}", "PUT", {"password": "new", "tags": ""})
    changes = [each for each in before.diff(Snapshot.take(room.admin)) if name in each.key]
    try:
        assert "password" in str(changes[0])
        assert "new" not in str(changes[0])
        before.undo(room.admin, changes)
        old = replace(room.settings, username=name, password="old")
        assert management(old, "whoami")["tags"] == ["administrator"]
    finally:
        room.ask(f"users/{name}", "DELETE")


def test_a_virtual_host_that_was_deleted_is_back_with_its_objects(room: Room) -> None:
    room.ask(f"vhosts/{room.name}", "DELETE")
    assert ("queues", room.name, "kept") in room.changes()
    room.undo()
    assert room.changes() == {}


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_reading_messages_leaves_them_in_their_places(room: Room, queue_type: str) -> None:
    with raw_channel(room.inside) as channel:
        channel.queue_declare("full", durable=True, arguments={"x-queue-type": queue_type})
        channel.confirm_delivery()
        bodies = [b"one", b"two", b"two", "drei: äöü".encode(), b"\xff\x00", b""]
        for number, body in enumerate(bodies):
            properties = pika.BasicProperties(message_id=str(number), headers={"n": number})
            channel.basic_publish("", "full", body, properties)
        first = read_messages(channel, "full")
    with raw_channel(room.inside) as channel:
        second = read_messages(channel, "full")
        assert channel.queue_declare("full", passive=True).method.message_count <= len(bodies)
    assert [each.body for each in first] == bodies
    assert second == first
    assert first[1] != first[2], "the same bytes with other properties are another message"


def test_a_queue_in_use_is_kept_unless_forced(room: Room) -> None:
    with raw_channel(room.inside) as channel:
        channel.queue_declare("busy", durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", "busy", b"mine")
        changes = room.before.diff(Snapshot.take(room.admin))
        changes = [each for each in changes if each.virtual_host == room.name]
        room.before.undo(room.admin, changes, force=False)
        assert [each.body for each in read_messages(channel, "busy")] == [b"mine"]
    room.before.undo(room.admin, changes)
    assert room.changes() == {}


def run_in_a_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_connections_of_an_answer_are_noted_and_closed(broker_settings: Settings) -> None:
    opened: list[Any] = []
    mine = pika.BlockingConnection(broker_settings.parameters())
    with Watch(broker_settings.port) as watch:
        run_in_a_thread(
            lambda: opened.append(pika.BlockingConnection(broker_settings.parameters()))
        )
        management(broker_settings, "whoami")  # this thread is none of the answer's
        assert watch.connected == [broker_settings.port]
    with pytest.raises((pika.exceptions.AMQPError, OSError)):
        opened[0].process_data_events(1)
    mine.process_data_events(0)
    mine.close()


def test_programs_are_noted_and_what_is_done_in_a_pause_is_not(broker_settings: Settings) -> None:
    port = urlsplit(broker_settings.management_url).port
    with Watch(port) as watch:

        def answer() -> None:
            with watch.paused():
                management(broker_settings, "whoami")
            assert watch.connected == []
            subprocess.run([sys.executable, "-c", ""], check=True)

        run_in_a_thread(answer)
    assert (watch.connected, watch.programs) == ([], 1)
