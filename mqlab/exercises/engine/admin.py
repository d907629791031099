"""The bench of an answer that administers the broker: an account of the check's own, before, after.

It lets the answer run with the page's ``ask``, compares the broker's objects, and puts everything
back. An answer may lock out the page's login, so the check logs in as an administrator of its own.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pika

from mqlab.broker import management
from mqlab.connection import handshake
from mqlab.exercises.engine.call import Call, call, end_threads
from mqlab.exercises.engine.exercise import Incorrect, NotChecked
from mqlab.exercises.engine.objects import Change, Snapshot
from mqlab.exercises.engine.watch import Watch
from mqlab.settings import Settings

RETURN_WITHIN_S = 25.0
"""Seconds; three runs of rabbitmqctl on a busy machine take about 15."""
OLD_S = 120
"""Seconds after which a check may remove what another one, which was killed, has left."""
CHECKS = re.compile(r"exercise[_-](\d+_\d+_)?[0-9a-f]{6,8}")
"""How the names of a check's own objects begin."""
EVERYTHING = {"configure": ".*", "write": ".*", "read": ".*"}
OWN_BROKER = "do it with a broker on your own machine: unset AMQP_URL, then `make lab`"


class AdminBench:
    """One check's place of work, a context manager; the broker is as it was when it ends.

    It makes up what the answer is given: ``virtual_host``, ``user`` and a password, all three in
    ``login``, the login that the answer should create.
    """

    def __init__(self, page: str, look_at: str) -> None:
        self.look_at = look_at
        """The heading that explains most mistakes."""
        self.guest = Settings.from_env()
        """The page's login, an administrator."""
        handshake(self.guest)
        if "administrator" not in self._ask("whoami")["tags"]:
            raise NotChecked(
                f"you are {self.guest.username} on this broker, and not an administrator: only "
                "they can create users",
                OWN_BROKER,
            )
        self._prefix = f"exercise_{page}_"
        self.name = f"{self._prefix}{int(time.time())}_{secrets.token_hex(3)}"
        self.virtual_host, self.user = self.name, f"{self.name}_user"
        self.other = f"{self.name}_other"
        """A virtual host that is none of the user's business."""
        name, password = f"{self.name}_check", secrets.token_urlsafe(12)
        self.admin = replace(self.guest, username=name, password=password)
        password = secrets.token_urlsafe(12)
        self.login = replace(
            self.guest, virtual_host=self.name, username=self.user, password=password
        )
        self.sent: list[str] = []
        """The answer's requests by ``ask``, in words."""
        self.changes: list[Change] = []
        """What the answer has changed."""
        self._words: set[str] = set()  # names in those requests that may have changed something
        self._watch = Watch(self.guest.port, urlsplit(self.guest.management_url).port)

    def __enter__(self) -> AdminBench:
        self._remove_old()
        body = {"password": self.admin.password, "tags": "administrator"}
        self._ask(f"users/{self.admin.username}", "PUT", body)
        for each in self._ask("vhosts"):  # an administrator needs permissions to delete a queue
            if not self._is_another_checks(each["name"]):
                self._permit(each["name"])
        self.add_virtual_host(self.other)
        self.remember()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._watch.__exit__()
        with contextlib.suppress(OSError, ValueError):
            self.look()
            named = [each for each in self.changes if self._is_named(each)]
            self.before.undo(self.admin, named)
            others = [each for each in self.changes if each not in named]
            self.before.undo(self.admin, others, force=False)
        for each in (f"vhosts/{self.name}", f"vhosts/{self.other}", f"users/{self.user}"):
            self._remove(each)
        self._remove(f"users/{self.admin.username}")

    def add_virtual_host(self, name: str) -> None:
        """Create a virtual host before the answer is called."""
        self._ask(f"vhosts/{name}", "PUT", {})
        self._permit(name)

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel for the check in the virtual host."""
        inside = replace(self.admin, virtual_host=self.virtual_host)
        with pika.BlockingConnection(inside.parameters(name="mqlab check")) as connection:
            yield connection.channel()

    def remember(self) -> None:
        """Take the broker as it is now for what was there before the answer."""
        self.before = self.after = Snapshot.take(self.admin)

    def call(self, function: Any, look_at: str) -> Call:
        """Call the answer as ``function(ask, virtual_host, user, password)``, and then ``look``.

        The connections that it leaves open stay open: what they hold is missing on the broker.
        """
        watch, login = self._watch.__enter__(), self.login
        given = (self._ask_for_answer, login.virtual_host, login.username, login.password)
        called = call(
            function,
            *given,
            timeout_s=RETURN_WITHIN_S,
            touched=lambda: bool(self.sent or watch.connected or watch.programs),
            unblock=watch.close,
            look_at=look_at,
        )
        end_threads(called.threads)
        watch.stop()  # the check's own threads are no answer's
        self.look()
        return called

    def look(self) -> None:
        """Find out what the answer has changed so far."""
        self.after = Snapshot.take(self.admin)
        # By `ask` an answer changes what it names; by other means, perhaps anything.
        anything = self._watch.connected or self._watch.programs or "definitions" in self._words
        self.changes = [
            change
            for change in self.before.diff(self.after)
            if (anything or self._is_named(change))
            and not any(map(self._is_another_checks, change.key[1:]))
        ]

    def has(self, *key: str) -> bool:
        """Whether an object was there after the answer."""
        return key in self.after.objects

    @property
    def permissions(self) -> dict[str, dict[str, str]]:
        """What is stored for the user, by virtual host."""
        stored = self.after.objects.items()
        return {key[1]: it for key, it in stored if key[0] == "permissions" and key[2] == self.user}

    def wrong(self, headline: str, message: str, *evidence: str, look_at: str = "") -> Incorrect:
        """Give an outcome whose evidence ends with what was asked for and what was sent."""
        asked = f"asked for: virtual host {self.virtual_host}, user {self.user}"
        sent = [f"you sent {request}" for request in self.sent]
        shown = [*evidence, asked, *sent]
        return Incorrect(headline, message, evidence=shown, look_at=look_at or self.look_at)

    def _is_named(self, change: Change) -> bool:
        return any(it in self._words or it.startswith(self.name) for it in change.key[1:])

    def _is_another_checks(self, name: str) -> bool:
        own = name.startswith(self.name) or name in self._words
        return bool(CHECKS.match(name)) and not own

    def _ask_for_answer(
        self, path: str, method: str = "GET", body: object = None, settings: Settings | None = None
    ) -> Any:
        """The page's ``ask``, which notes what is sent."""
        with self._watch.paused():
            try:
                answer = management.ask(settings or self.guest, path, method, body)
            except urllib.error.HTTPError as error:
                self.sent.append(f"{method} {path}: refused, HTTP {error.code}")
                raise
        self.sent.append(f"{method} {path}: done")
        if method != "GET":  # "/" alone does not say what was changed in it
            names = {*map(unquote, path.split("/")), *_texts_in(body), path.replace("-", "_")}
            self._words |= names if path.startswith("vhosts/") else names - {"/"}
        return answer

    def _permit(self, virtual_host: str) -> None:
        path = f"permissions/{quote(virtual_host, safe='')}/{self.admin.username}"
        self._ask(path, "PUT", EVERYTHING)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(urllib.error.HTTPError):
            management.ask(self.admin, path, "DELETE")

    def _remove_old(self) -> None:
        """Remove what a killed check has left; a young one may belong to a running check."""
        for kind in ("users", "vhosts"):
            for each in self._ask(kind):
                name = each.get("name", "")  # one that is just being deleted has none
                made_at = re.match(rf"{self._prefix}(\d+)_", name)
                if made_at and int(made_at[1]) < time.time() - OLD_S:
                    self._ask(f"{kind}/{name}", "DELETE")

    def _ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        """Ask the management API with the page's login; None if there is no such thing."""
        try:
            return management.ask(self.guest, path, method, body)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            why = f"answers HTTP {error.code} to {self.guest.username}"
        except (OSError, ValueError) as error:
            why = f"does not answer ({getattr(error, 'reason', error)})"
        raise NotChecked(
            f"the management API at {self.guest.management_url} {why}, and without it nobody can "
            "create users",
            f"set MQLAB_MANAGEMENT_URL to its address, or {OWN_BROKER}",
        )


def _texts_in(body: object) -> Iterator[str]:
    """Every text in the body of a request: users/bulk-delete names its users there."""
    if isinstance(body, str):
        yield body
    elif isinstance(body, dict | list | tuple):
        for each in body.values() if isinstance(body, dict) else body:
            yield from _texts_in(each)
