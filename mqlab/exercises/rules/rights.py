"""What a user may do in a virtual host, found out by trying: configure, write and read, by name.

Permissions are regular expressions that are matched against names, so one name proves little. The
names to try come from a fixed list and from the patterns themselves: what fits them, and what they
mention. The broker decides; a missing queue or exchange is refused only after the permission check,
so nothing has to exist and nothing is created.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import pika
import pika.exceptions

from mqlab.connection import handshake
from mqlab.errors import AccessRefused
from mqlab.settings import Settings

CHARACTERS = "".join(map(chr, range(32, 127))) + "äéöüß"
# The first is how the broker names a queue that has no name.
NAMES = "amq.gen-JzTY20BRgKO3HjmUJj0wLg amq.topic q Q 2 - jobs Jobs.2 heavy_tasks_queue prüfung"
DEFAULT_EXCHANGE = ""
DEEDS: dict[str, tuple[str, Callable[[Any, str], object]]] = {
    "configure": (
        "delete queue",
        lambda channel, name: channel.queue_delete(name, if_unused=True, if_empty=True),
    ),
    "write": ("publish to exchange", lambda channel, name: _publish(channel, name)),
    "read": ("get a message from queue", lambda channel, name: channel.basic_get(name)),
}
"""For each right: what is done with a name, in words and on a channel."""
ACCESS_REFUSED = 403
# The one place that uses the two halves of `re`, which have no public names.
PARSER, COMPILER = import_module("re._parser"), import_module("re._compiler")


@dataclass(frozen=True)
class Tried:
    """One right and what the broker answered for each name: "" where it allowed it."""

    right: str
    refusals: dict[str, str]

    @property
    def allowed(self) -> list[str]:
        """The names that the right covers."""
        return [name for name, refusal in self.refusals.items() if not refusal]

    @property
    def refused(self) -> list[str]:
        """The names that it does not cover."""
        return [name for name, refusal in self.refusals.items() if refusal]

    @property
    def evidence(self) -> list[str]:
        """How many names were allowed, with an example of each kind if there are two."""
        lines = [f"{self.right}: {len(self.allowed)} of {len(self.refusals)} names allowed"]
        deed = DEEDS[self.right][0]
        lines += [f"{deed} {name!r:.60}: allowed" for name in self.allowed[:1] if self.refused]
        lines += [f"{deed} {name!r:.60}: {self.refusals[name][:60]}" for name in self.refused[:1]]
        return lines


def may_log_in(login: Settings, virtual_host: str) -> bool:
    """Whether the broker accepts this login in a virtual host."""
    try:
        handshake(replace(login, virtual_host=virtual_host))
    except AccessRefused:
        return False
    return True


def try_right(login: Settings, right: str, names: Iterable[str]) -> Tried:
    """Try a right with each of these names."""
    _, do = DEEDS[right]
    refusals = {}
    with pika.BlockingConnection(login.parameters(name="mqlab check")) as connection:
        channel = connection.channel()
        for name in names:
            if not name and right != "write":  # no name stands for the queue declared last
                continue
            refusals[name] = ""
            try:
                do(channel, name)
            except pika.exceptions.ChannelClosedByBroker as closed:
                # The broker refuses an internal exchange to everyone, with this code too.
                if closed.reply_code == ACCESS_REFUSED and " access to " in closed.reply_text:
                    refusals[name] = closed.reply_text
                channel = connection.channel()
    return Tried(right, refusals)


def names_to_try(pattern: str, *more: str) -> list[str]:
    """The names that show what a pattern allows and refuses, together with ``more``."""
    found = [DEFAULT_EXCHANGE, *NAMES.split(), CHARACTERS, "x" * 255, *more]
    found += [*(f"{each}.x" for each in more), *examples(pattern)]
    for word in re.findall(r"[\w-]{2,}", pattern):
        found += [word, f"x{word}", f"{word}x"]
    return [each for each in dict.fromkeys(found) if len(each.encode()) <= 255]


def matches_all(pattern: str) -> bool:
    """Whether a pattern matches every name that is tried; for what no login can try."""
    try:
        return all(re.search(pattern, name) for name in names_to_try(pattern))
    except re.error:
        return False


def examples(pattern: str, number: int = 8) -> list[str]:
    """Build names that match a pattern, from its parts. Lookarounds are ignored."""
    draw = random.Random(pattern)  # the same names each time
    pattern = re.sub(r"\[:(\w+):\]", lambda it: "0-9" if it[1] == "digit" else "a-z", pattern)
    try:
        tree = PARSER.parse(pattern.replace(r"\z", r"\Z"))
        return ["".join(_build(part, draw) for part in tree) for _ in range(number)]
    except (re.error, RecursionError, OverflowError):  # not a pattern in Python's dialect
        return []


def _build(part: tuple[Any, Any], draw: random.Random) -> str:
    kind, given = str(part[0]), part[1]
    if kind == "LITERAL":
        return chr(given)
    if kind in ("ANY", "NOT_LITERAL", "IN", "CATEGORY"):
        fits = COMPILER.compile(PARSER.SubPattern(PARSER.State(), [part]), re.UNICODE).match
        return draw.choice([each for each in CHARACTERS if fits(each)] or [""])
    if kind == "BRANCH":
        return "".join(_build(each, draw) for each in draw.choice(given[1]))
    if kind in ("SUBPATTERN", "ATOMIC_GROUP"):
        inner = given[-1] if kind == "SUBPATTERN" else given
        return "".join(_build(each, draw) for each in inner)
    if kind.endswith("_REPEAT"):
        least, most, inner = given
        times = draw.randint(least, min(most, least + 2))
        return "".join(_build(each, draw) for _ in range(times) for each in inner)
    return ""


def _publish(channel: Any, exchange: str) -> None:
    channel.confirm_delivery()  # so that the broker's answer is waited for
    channel.basic_publish(exchange, "to nobody", b"")
