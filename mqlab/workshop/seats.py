"""Seats on a shared broker: a virtual host, a user and a slip of paper for each attendee.

They are created by the management API of the broker in ``AMQP_URL``, by an administrator. Whatever
is created here carries a mark, and nothing without the mark is changed or deleted.
"""

from __future__ import annotations

import os
import re
import secrets
import urllib.error
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mqlab.broker import management
from mqlab.commands import command
from mqlab.connection import handshake
from mqlab.errors import AccessRefused, ConnectError, MqlabError, SettingsError
from mqlab.settings import Settings

Say = Callable[[str], object]

MARK = "mqlab-room"
"""A tag on everything created here. RabbitMQ keeps tags that it does not know."""
TAGS = f"management,{MARK}"
"""``management``: may use the management UI, for this virtual host and its own connections."""
LIMITS = {"max-connections": 100, "max-queues": 100}
"""For each virtual host: one attendee's endless loop must not block the others."""
LARGEST = 99
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Password alphabet without l, 1, i, o, 0: attendees copy it from paper."""
FIRST_LINE = "Logins created by `mqlab room create`. Cut between the lines; one slip each."


@dataclass(frozen=True)
class Seat:
    """What one attendee's virtual host has."""

    name: str
    connections: int
    queues: int
    messages: int

    def __str__(self) -> str:
        counts = f"{self.connections:>4} connections {self.queues:>4} queues {self.messages:>6}"
        return f"{self.name:<14} {counts} messages"


def create(
    seats: int,
    *,
    host: str | None = None,
    name: str = "room",
    file: Path | None = None,
    new_passwords: bool = False,
    settings: Settings | None = None,
    say: Say = print,
) -> Path:
    """Create ``seats`` virtual hosts and users, ``room-01`` and so on; return the file of slips.

    Logins with a slip in ``file`` are kept and others added: run it again after an interruption,
    or for more seats. ``new_passwords`` replaces every login and the file. ``host`` is the broker's
    address as attendees reach it, if it differs from ``AMQP_URL``. No password is passed to
    ``say``. Raises AccessRefused if the user is not an administrator, SettingsError if an argument
    or the file cannot be used, ConnectError if no broker answers there or at ``host``.
    """
    settings = settings or Settings.from_env()
    file = file or default_file(name)
    shown = _as_seen(settings, host)
    names = {f"{_checked(name)}-{number:02}" for number in range(1, seats + 1)}
    if not 1 <= seats <= LARGEST:
        raise SettingsError(f"A room cannot have {seats} seats.", fix=f"use 1 to {LARGEST}")
    broker = _Api(settings)
    ours, others = broker.seats(name)
    if taken := sorted(names & others):
        raise SettingsError(
            f"{taken[0]} is on this broker already, and this command did not create it.",
            fix=f"choose another name: {command('room create --name workshop')} ...",
        )
    slips = _read(file)
    if new_passwords:
        names, slips = names | ours, {}
    for slip in slips.values():
        if slip.address != shown.address or not _is_seat(name, slip.username):
            raise SettingsError(
                f"{file} has slips for {slip.username} at {slip.address}: another room's.",
                fix="name another file with --file, or replace all logins with --new-passwords",
            )
    if not new_passwords and (lost := sorted((names & ours) - slips.keys())):
        raise SettingsError(
            f"{lost[0]} has a login already, and {file} has no slip for it.",
            why="the broker never reveals passwords",
            fix="name the right file with --file, or replace all logins with --new-passwords",
        )
    for each in names - slips.keys():
        slips[each] = replace(shown, username=each, virtual_host=each, password=_new_password())
    _write(file, slips)  # first, so that an interrupted run can be repeated
    for each in sorted(slips):
        broker.make(slips[each])
    first, last = min(slips), max(slips)
    say(f"{len(slips)} logins, {first} to {last}, {len(slips.keys() - ours)} of them new.")
    say(f"Their slips, with the passwords, are in {file}, which only you can read.")
    _check_reachable(slips[first])
    say(f"{first} can log in at {shown.address}. Next: hand out one slip to each attendee.")
    return file


def look(name: str = "room", *, settings: Settings | None = None) -> list[Seat]:
    """Return what each seat of the room uses; the broker's counts are up to 5 s old.

    Raises as ``create`` does.
    """
    broker = _Api(settings or Settings.from_env())
    ours, _ = broker.seats(_checked(name))
    connections = Counter(each.get("vhost") for each in broker.ask("connections"))
    queues = Counter(each["vhost"] for each in broker.ask("queues"))
    messages = {each.get("name", ""): each.get("messages", 0) for each in broker.ask("vhosts")}
    return [
        Seat(each, connections[each], queues[each], messages.get(each, 0)) for each in sorted(ours)
    ]


def remove(name: str = "room", *, settings: Settings | None = None, say: Say = print) -> None:
    """Delete the users and virtual hosts that ``create`` made, with everything in them.

    Raises as ``create`` does.
    """
    broker = _Api(settings or Settings.from_env())
    removed: set[str] = set()
    for kind in ("users", "vhosts"):  # users first, so that nobody logs in again
        for each in broker.ask(kind):
            if _is_seat(_checked(name), each.get("name", "")) and _is_marked(each):
                broker.ask(f"{kind}/{each['name']}", "DELETE")
                removed.add(each.get("name", ""))
    if not removed:
        say(f"This broker has no room {name}: nothing to remove.")
        return
    say(f"Removed, each with its virtual host and user: {', '.join(sorted(removed))}.")
    say("Their slips are void: delete the file.")


def default_file(name: str) -> Path:
    """The file of slips, in the current folder. Git ignores it."""
    return Path(f"mqlab-{name}.txt")


class _Api:
    """The management API, for an administrator. Raises AccessRefused for anyone else."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        tags = self.ask("whoami")["tags"]
        if "administrator" not in tags:
            raise self._refused(f"the tags of {settings.username} are {', '.join(tags) or 'none'}")

    def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        """Send one request and return the response."""
        try:
            return management.ask(self.settings, path, method, body, timeout_s=30)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                raise self._refused("the management API refused the login") from None
            raise MqlabError(
                f"The broker refused {method} {path}.",
                why=f"HTTP {error.code}: {error.read(300).decode(errors='replace')}",
            ) from error
        except (OSError, ValueError) as error:
            raise ConnectError(
                f"No management API answers at {self.settings.management_url}.",
                why=str(getattr(error, "reason", error)),
                fix="start the broker, enable its plugin rabbitmq_management, or set "
                "MQLAB_MANAGEMENT_URL",
            ) from error

    def seats(self, room: str) -> tuple[set[str], set[str]]:
        """Names of users and virtual hosts that fit the room: those of ``create``, and others."""
        ours: set[str] = set()
        others: set[str] = set()
        for each in [*self.ask("users"), *self.ask("vhosts")]:
            if _is_seat(room, each.get("name", "")):
                (ours if _is_marked(each) else others).add(each.get("name", ""))
        return ours, others

    def make(self, seat: Settings) -> None:
        """Create the virtual host with its limits, the user, and the user's permissions there."""
        name = seat.username
        self.ask(f"vhosts/{name}", "PUT", {"description": "by mqlab room", "tags": MARK})
        for limit, value in LIMITS.items():
            self.ask(f"vhost-limits/{name}/{limit}", "PUT", {"value": value})
        self.ask(f"users/{name}", "PUT", {"password": seat.password, "tags": TAGS})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.ask(f"permissions/{name}/{name}", "PUT", everything)

    def _refused(self, why: str) -> AccessRefused:
        return AccessRefused(
            f"Only an administrator can create seats, and {self.settings} is not one.",
            why=why,
            fix="export AMQP_URL=amqp://ADMINISTRATOR:PASSWORD@HOST:PORT/%2F",
        )


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,20}", name):
        raise SettingsError(
            f"{name!r} cannot be the name of a room.",
            fix="use a lower-case letter, then up to 20 lower-case letters, digits and hyphens",
        )
    return name


def _is_seat(room: str, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(room)}-\d\d", name) is not None


def _is_marked(thing: dict[str, Any]) -> bool:
    return MARK in (thing.get("tags") or ())


def _new_password() -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(14))


def _as_seen(settings: Settings, host: str | None) -> Settings:
    """The broker's two addresses as attendees reach them."""
    if host is None:
        if settings.host in ("127.0.0.1", "localhost", "::1"):
            raise SettingsError(
                f"To an attendee, {settings.host} is the attendee's own machine.",
                fix="add --host ADDRESS: this machine's address in the network of the room",
            )
        return settings
    seen = replace(settings, host=host)
    page = urlsplit(settings.management_url)
    port = f":{page.port}" if page.port else ""
    url = page._replace(netloc=seen.address.removesuffix(f":{seen.port}") + port).geturl()
    return replace(seen, management_url=url)


def _check_reachable(seat: Settings) -> None:
    try:
        handshake(seat)
    except ConnectError as error:
        raise ConnectError(
            f"The logins exist, but {seat.username} cannot connect to {seat.address}.",
            why=error.why or error.what,
            fix="make the broker listen there (docs/instructor-guide.md), and run this again",
        ) from error


def _slip(seat: Settings) -> str:
    return f"""\
---- {seat.username} {"-" * 60}
Before you start mqlab, in the same terminal (Linux, macOS):
    export AMQP_URL={seat.url}
    export MQLAB_MANAGEMENT_URL={seat.management_url}
Windows, in PowerShell:
    $env:AMQP_URL = "{seat.url}"
    $env:MQLAB_MANAGEMENT_URL = "{seat.management_url}"
Management UI: {seat.management_url}  user {seat.username}  password {seat.password}
"""


def _read(file: Path) -> dict[str, Settings]:
    """Read the logins in a file of slips, by user; none if there is no file."""
    if not file.exists():
        return {}
    text = file.read_text("utf-8")
    if not text.startswith(FIRST_LINE):
        raise SettingsError(
            f"{file} exists and is not a file of slips, so it is left alone.",
            fix="name another with --file",
        )
    found = re.findall(r"export AMQP_URL=(\S+)\n\s+export MQLAB_MANAGEMENT_URL=(\S+)", text)
    seats = [Settings.from_url(url, management_url=page) for url, page in found]
    return {seat.username: seat for seat in seats}


def _write(file: Path, slips: dict[str, Settings]) -> None:
    text = "\n".join([FIRST_LINE, "", *(_slip(slips[name]) for name in sorted(slips))])
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        draft.touch(0o600, exist_ok=False)
        draft.write_text(text, "utf-8")
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SettingsError(
            f"The slips cannot be written to {file}.",
            why=str(error.strerror),
            fix="name another file with --file",
        ) from error
