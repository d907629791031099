"""What a broker has before and after an answer: every object by its definition.

``Snapshot.take`` reads the definitions that RabbitMQ exports: users, virtual hosts, permissions,
parameters (which include limits and operator policies), policies, exchanges, queues and bindings.
``before.diff(after)`` lists what has changed, in words, and ``before.undo`` reverses it.
``read_messages`` reads the messages of a queue and returns them to it.

Definitions are current; the statistics of the management API lag by up to 5 s.
"""

from __future__ import annotations

import contextlib
import urllib.error
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from mqlab.broker import management
from mqlab.settings import Settings

Key = tuple[str, ...]
"""Kind, then the fields that identify an object: ``("queues", "/", "jobs")``."""

# Fields that identify an object, path of its DELETE request, and how to call it.
KINDS = {
    "vhosts": ("name", "vhosts/{0}", "virtual host {0}"),
    "users": ("name", "users/{0}", "user {0}"),
    "permissions": ("vhost user", "permissions/{0}/{1}", "permissions of {1} in {0}"),
    "topic_permissions": (
        "vhost user exchange",
        "topic-permissions/{0}/{1}",
        "topic permissions of {1} in {0} on exchange {2}",
    ),
    "parameters": ("vhost component name", "parameters/{1}/{0}/{2}", "parameter {2} ({1}) in {0}"),
    "global_parameters": ("name", "global-parameters/{0}", "global parameter {0}"),
    "policies": ("vhost name", "policies/{0}/{1}", "policy {1} in {0}"),
    "exchanges": ("vhost name", "exchanges/{0}/{1}", "exchange {1} in {0}"),
    "queues": ("vhost name", "queues/{0}/{1}", "queue {1} in {0}"),
    "bindings": (
        "vhost source destination_type destination routing_key arguments",
        "bindings/{0}/e/{1}/{2[0]}/{3}",  # then a key that only the broker can make
        "binding from {1} to {3} in {0} with key {4!r}",
    ),
}
RECREATED = ("queues", "exchanges")
"""Kinds whose definition cannot be changed in place: delete the new one, declare the old one."""


@dataclass(frozen=True)
class Change:
    """One object that was added, removed or changed; None stands for its absence."""

    key: Key
    was: dict[str, Any] | None = field(repr=False)
    now: dict[str, Any] | None = field(repr=False)

    @property
    def kind(self) -> str:
        """Its kind, as in ``KINDS``."""
        return self.key[0]

    @property
    def virtual_host(self) -> str:
        """The virtual host that it is in; empty for users and global parameters."""
        return "" if self.kind in ("users", "global_parameters") else self.key[1]

    def __str__(self) -> str:
        name = KINDS[self.kind][2].format(*self.key[1:])
        if self.was is None or self.now is None:
            return f"{name}: {'added' if self.was is None else 'removed'}"
        details = [
            "password" if each == "password_hash" else f"{each} {was!r} -> {now!r}"
            for each in self.was | self.now
            if (was := self.was.get(each)) != (now := self.now.get(each))
        ]
        return f"{name}: changed, {', '.join(details)}"


@dataclass(frozen=True)
class Snapshot:
    """The objects of a broker at one moment."""

    objects: dict[Key, dict[str, Any]] = field(repr=False)

    @classmethod
    def take(cls, settings: Settings) -> Snapshot:
        """Read all objects, as an administrator; otherwise the management API answers HTTP 401.

        Leaves out exchanges named ``amq.…`` and default bindings, which only the broker can create
        or delete, and exclusive queues, which end with their connection. Raises what
        ``management.ask`` raises.
        """
        found = management.ask(settings, "definitions")
        objects = {_key(kind, each): each for kind in KINDS for each in found.get(kind, ())}
        for each in management.ask(settings, "vhosts?columns=name,tracing"):
            if stored := objects.get(("vhosts", each.get("name", ""))):  # definitions leave it out
                stored["tracing"] = each.get("tracing", False)
        # One of these is exported by RabbitMQ 4: amq.rabbitmq.log, which exists once in a broker.
        reserved = [it for it in objects if it[0] == "exchanges" and it[2].startswith("amq.")]
        return cls({key: it for key, it in objects.items() if key not in reserved})

    def diff(self, after: Snapshot) -> list[Change]:
        """List what was added, removed or changed between this snapshot and a later one."""
        keys = {**self.objects, **after.objects}
        pairs = ((key, self.objects.get(key), after.objects.get(key)) for key in keys)
        return [Change(key, was, now) for key, was, now in pairs if was != now]

    def undo(self, settings: Settings, changes: Iterable[Change], *, force: bool = True) -> None:
        """Delete what was added, and define again what was removed or changed.

        Messages do not come back. Unless ``force`` is true, a queue that has messages or a
        consumer is kept. ``settings`` must be an administrator's that the changes do not concern.
        """
        again: list[Key] = []
        for change in changes:
            if change.was is None or (change.now and change.kind in RECREATED):
                unused = "?if-empty=true&if-unused=true" * (change.kind == "queues" and not force)
                for path in _paths(settings, change):
                    _try(settings, path + unused, "DELETE")
                # Some requests delete more than one object: topic permissions go together, and
                # bindings go with their queue or exchange.
                again += [key for key in self.objects if _goes_with(key, change.key)]
            elif change.kind == "users":  # a user's definition does not remove its limits
                for limit in (change.now or {}).get("limits", ()):
                    _try(settings, f"user-limits/{quote(change.key[1], safe='')}/{limit}", "DELETE")
            if change.was is not None:
                again.append(change.key)
        for kind in KINDS:  # in this order: an object comes after what it needs
            for key in again:
                if key[0] == kind:
                    _define(settings, key, self.objects[key])


def _define(settings: Settings, key: Key, definition: dict[str, Any]) -> None:
    """Create an object again. Not by an import of definitions: that can block a 4.3 for 20 s."""
    if key[0] == "bindings":
        _try(settings, _path(key), "POST", definition)
        return
    metadata = definition.get("metadata", {})  # a virtual host's, listed one level deeper
    metadata = metadata | {"tags": ",".join(metadata["tags"])} if "tags" in metadata else metadata
    _try(settings, _path(key), "PUT", definition | metadata)
    if key[0] == "users":
        for limit, value in definition.get("limits", {}).items():
            path = f"user-limits/{quote(key[1], safe='')}/{limit}"
            _try(settings, path, "PUT", {"value": value})


def _goes_with(key: Key, deleted: Key) -> bool:
    if key[0] == "bindings" and deleted[0] in RECREATED:
        return key[1] == deleted[1] and deleted[2] in (key[2], key[4])
    return key[0] == deleted[0] == "topic_permissions" and key[:3] == deleted[:3]


def _key(kind: str, definition: dict[str, Any]) -> Key:
    return (kind, *(str(definition.get(each, "")) for each in KINDS[kind][0].split()))


def _path(key: Key) -> str:
    return KINDS[key[0]][1].format(*(quote(each, safe="") for each in key[1:]))


def _paths(settings: Settings, change: Change) -> list[str]:
    path = _path(change.key)
    if change.kind != "bindings":
        return [path]
    same = [it for it in _try(settings, path) or [] if _key("bindings", it) == change.key]
    return [f"{path}/{quote(each['properties_key'], safe='')}" for each in same]


def _try(settings: Settings, path: str, method: str = "GET", body: object = None) -> Any:
    """Ask the management API. A refusal is no news: what was to go is gone, or in use."""
    with contextlib.suppress(urllib.error.HTTPError):
        return management.ask(settings, path, method, body)


@dataclass(frozen=True)
class Message:
    """A message as the broker has it. Equal ones have the same bytes, properties and address."""

    body: bytes
    encoded: bytes = field(repr=False)
    """The properties, headers included, as they are on the wire."""
    exchange: str
    routing_key: str
    properties: Any = field(compare=False, repr=False)


COUNTERS = ("x-delivery-count", "x-acquired-count")
"""Headers that a quorum queue adds to a message that was read before."""


def read_messages(channel: Any, queue: str) -> list[Message]:
    """Read the ready messages of a queue, in order, and give them back to it.

    They keep their places and are marked as redelivered. Messages that somebody else holds
    unacknowledged are not among them.
    """
    found, last = [], None
    while (got := channel.basic_get(queue))[0] is not None:
        method, properties, body = got
        last = method.delivery_tag
        for counter in COUNTERS if properties.headers else ():
            properties.headers.pop(counter, None)
        encoded = b"".join(properties.encode())
        found.append(Message(body, encoded, method.exchange, method.routing_key, properties))
    if last is not None:  # a nack: a quorum queue counts a reject as a failed delivery
        channel.basic_nack(last, multiple=True, requeue=True)
    return found
