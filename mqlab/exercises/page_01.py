"""The exercises of page 01: a user who is let into one virtual host, and one who may only read.

A check makes up names and a password, lets the learner's function make what belongs to them, and
logs in with them. What was made it removes again, whatever happened.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pika
import pika.exceptions

from mqlab.broker import management
from mqlab.connection import handshake
from mqlab.errors import AccessRefused
from mqlab.exercises.engine.call import call, end_threads, some
from mqlab.exercises.engine.exercise import Exercise, Incorrect, NotChecked
from mqlab.settings import Settings

GUEST, PERMISSIONS = "What may guest do?", "A user, a virtual host, and what joins them"
WRONG, TASK_1, TASK_2 = "What can go wrong", "Exercise 1: for everyone", "Exercise 2: a stretch"
PREFIX = "exercise_01_"
NAME = r"[A-Za-z0-9%._~-]+"
MADE = f"(?:users|vhosts)/{NAME}|(?:queues|exchanges)/{NAME}/{NAME}"
OLD_S = 120
"""Seconds after which what a check that was killed has left may be removed by another one."""
OWN_BROKER = "do it with a broker on your own machine: unset AMQP_URL, then `make lab`"


@dataclass(frozen=True)
class Case:
    """One check: the broker, asked as its administrator, and the names that are handed over."""

    admin: Settings
    virtual_host: str
    user: str
    password: str = field(repr=False)
    sent: list[str] = field(default_factory=list, repr=False)
    made_besides: list[str] = field(default_factory=list, repr=False)
    """Paths of what the learner's function made under other names than the given ones."""

    @property
    def other(self) -> str:
        """A virtual host of the check, which is none of the user's business."""
        return f"{self.virtual_host}_other"

    @property
    def login(self) -> Settings:
        """The login that the learner's function is to make."""
        return replace(
            self.admin,
            username=self.user,
            password=self.password,
            virtual_host=self.virtual_host,
        )

    def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        """Ask the management API, for the check; None if what is asked for is not there."""
        return _ask(self.admin, path, method, body)

    def ask_for_learner(self, path: str, method: str = "GET", body: object = None) -> Any:
        """The page's ``ask``, as it is handed over: it notes what is asked."""
        is_new = re.fullmatch(MADE, path) and method == "PUT" and self.ask(path) is None
        try:
            answer = management.ask(self.admin, path, method, body)
        except urllib.error.HTTPError as error:
            self.sent.append(f"{method} {path}: refused, HTTP {error.code}")
            raise
        self.sent.append(f"{method} {path}: done")
        if is_new:
            self.made_besides.append(path)
        return answer

    def made(self, kind: str) -> set[str]:
        """Which of the two names are there now, among the ``users`` or the ``vhosts``."""
        names = (self.user, self.virtual_host)
        return {name for name in names if self.ask(f"{kind}/{name}") is not None}

    def is_touched(self) -> bool:
        """Whether the learner's function has done anything, by ``ask`` or by other means."""
        return bool(self.sent or self.made("users"))


# ---- exercise 1


def judge_my_own(make_my_own: Any) -> list[str]:
    """Log in as the user that was made, and try all doors."""
    with _new_case() as case:
        returned = _run(make_my_own, case)
        _check_names(case, returned)
        _check_login(case)
        permissions = {each["vhost"] for each in case.ask(f"users/{case.user}/permissions")}
        if case.virtual_host not in permissions:
            raise Incorrect(
                "Your user has its permissions in the wrong virtual host."
                if permissions
                else "Your user is there, and has no permissions.",
                "A user and a virtual host do not belong together by themselves. Permissions join "
                "them: a third request, whose path names the virtual host first, then the user.",
                evidence=[
                    _knock(case, case.virtual_host)[1],
                    f"{case.user} has permissions in: {some(permissions) or 'no virtual host'}",
                ],
                look_at=PERMISSIONS,
            )
        queue = f"queue_{secrets.token_hex(4)}"
        may, evidence = _try_all(case.login, declare=queue, use=queue)
        if not all(may.values()):
            forbidden = " or ".join(what for what in may if not may[what])
            raise Incorrect(
                f"Your user is let in, and may not {forbidden} there.",
                "In its own virtual host it is to do everything. A permission is a pattern for "
                'names: ".*" fits every name, "^$" and "" fit none.',
                evidence=evidence,
                look_at=PERMISSIONS,
            )
        _check_other_doors(case, permissions)
        return [
            _knock(case, case.virtual_host)[1],
            *evidence,
            *(_knock(case, each)[1] for each in ("/", case.other)),
        ]


def _check_names(case: Case, returned: Any) -> None:
    users, vhosts = case.made("users"), case.made("vhosts")
    evidence = [
        f"asked for: virtual host {case.virtual_host}, user {case.user}",
        *(f"you sent {request}" for request in case.sent or ["no request"]),
    ]
    if case.virtual_host in users or case.user in vhosts:
        raise Incorrect(
            "You have swapped the two names.",
            "The virtual host's name went to users, or the user's to vhosts.",
            evidence=evidence,
            look_at=PERMISSIONS,
        )
    if case.user in users and case.virtual_host in vhosts:
        return
    if case.user in users or case.virtual_host in vhosts:
        missing = "virtual host" if case.user in users else "user"
        raise Incorrect(
            f"The {missing} is missing.",
            "Three things are to be made, each by a request of its own: the virtual host, the "
            "user, and the permissions that join them.",
            evidence=evidence,
            look_at=PERMISSIONS,
        )
    _check_anything_made(case, returned, evidence, TASK_1)


def _check_anything_made(case: Case, returned: Any, evidence: list[str], look_at: str) -> None:
    if any(request.startswith("PUT ") for request in case.sent):
        raise Incorrect(
            "You use names of your own, not those that your function is given.",
            "Each check hands over other names. Use the function's arguments.",
            evidence=evidence,
            look_at=look_at,
        )
    raise Incorrect(
        "The broker knows nothing of it.",
        f"Your function returned {returned!r:.40}. What counts is what the broker has "
        "afterwards, and nothing was made.",
        evidence=evidence,
        look_at=look_at,
    )


# ---- exercise 2


def judge_reader(make_reader: Any) -> list[str]:
    """Have the reader try all that a reader may and may not do."""
    with _new_case() as case:
        case.ask(f"vhosts/{case.virtual_host}", "PUT", {})
        queue = f"reports_{secrets.token_hex(4)}"
        inside = replace(case.admin, virtual_host=case.virtual_host)
        with pika.BlockingConnection(inside.parameters(name="mqlab check")) as connection:
            channel = connection.channel()
            channel.queue_declare(queue, durable=True)
            _publish(channel, queue)
        returned = _run(make_reader, case)
        if case.user not in case.made("users"):
            sent = [f"you sent {request}" for request in case.sent or ["no request"]]
            evidence = [f"asked for: user {case.user}", *sent]
            _check_anything_made(case, returned, evidence, TASK_2)
        _check_login(case)
        is_open, told = _knock(case, case.virtual_host)
        if not is_open:
            raise Incorrect(
                "Your reader is not let in.",
                "It is there, and has no permissions in this virtual host, not even to read. "
                "Permissions are a request of their own: permissions/VIRTUAL_HOST/USER.",
                evidence=[told],
                look_at=PERMISSIONS,
            )
        may, evidence = _try_all(case.login, declare=f"new_{queue}", use=queue)
        if may != {"configure": False, "write": False, "read": True}:
            headline, message = _name_reader(**may)
            raise Incorrect(headline, message, evidence=evidence, look_at=PERMISSIONS)
        permissions = {each["vhost"] for each in case.ask(f"users/{case.user}/permissions")}
        _check_other_doors(case, permissions)
        return evidence


def _name_reader(configure: bool, write: bool, read: bool) -> tuple[str, str]:
    if write and not read:
        return (
            "You have swapped write and read.",
            "Both are said from the client's side: it writes messages into a queue, and reads "
            "them out of it.",
        )
    if not read:
        return (
            "Your reader may not read.",
            'The pattern of read has to fit the names of the queues: ".*" fits every name.',
        )
    if write and configure:
        return (
            "Your reader may do everything.",
            "It reads, and it can put messages in and delete queues as well. Give it what reading "
            'needs, and no more: "^$" fits no name.',
        )
    if write:
        return (
            "Your reader may still put messages in.",
            'The pattern of write fits a name. Reading needs no write: "^$" fits no name.',
        )
    return (
        "Your reader may still make and delete queues.",
        "The pattern of configure fits a name. Reading needs no configure: the queue is there, "
        "and somebody else has declared it.",
    )


# ---- common to both


def _run(function: Any, case: Case) -> Any:
    """Call the learner's function, and tell in words what the management page answered to it."""
    names = (case.virtual_host, case.user, case.password)
    called = call(
        function, case.ask_for_learner, *names, timeout_s=10, touched=case.is_touched, look_at=WRONG
    )
    end_threads(called.threads)
    error = called.error
    if isinstance(error, urllib.error.HTTPError):
        said = error.read(300).decode("utf-8", "replace")
        headline, message, look_at = _explain(error.code, said)
        evidence = [*(f"you sent {request}" for request in case.sent), said]
        raise Incorrect(
            headline, message, evidence=[each for each in evidence if each], look_at=look_at
        )
    if isinstance(error, (OSError, NotChecked)):
        case.ask("whoami")  # is the management page still there?
    called.raise_if_failed(WRONG)
    return called.value


def _explain(code: int, said: str) -> tuple[str, str, str]:
    if "vhost_or_user_not_found" in said:
        return (
            "You gave permissions before both were there, or named them the wrong way round.",
            "Permissions join a virtual host and a user, so these two are made first. In the path "
            "the virtual host comes first: permissions/VIRTUAL_HOST/USER.",
            PERMISSIONS,
        )
    if code == 400:
        return (
            "The broker does not understand the body of a request.",
            "Something in it is missing or has another name. Its answer says what; compare with "
            "the bodies on the page.",
            PERMISSIONS,
        )
    if code in (404, 405):
        return (
            "The management page has no such address, or not for this method.",
            'It is "vhosts/NAME", "users/NAME" or "permissions/VIRTUAL_HOST/USER", without a / at '
            'the front, and the method is "PUT".',
            PERMISSIONS,
        )
    return "The management page refused a request.", "Its answer says why.", WRONG


def _check_login(case: Case) -> None:
    tags = case.ask(f"users/{case.user}")["tags"]
    if "administrator" in tags:
        raise Incorrect(
            "Your user is an administrator.",
            "No permission binds it: at the management page it makes and deletes users, and gives "
            'itself every permission that it lacks. A program needs no tag at all: "tags": "".',
            evidence=[f"tags of {case.user}: {some(tags)}"],
            look_at=GUEST,
        )
    try:
        handshake(case.login)
    except AccessRefused as refused:
        if "virtual host" in refused.what:  # it knows the login, and that is all we ask here
            return
        raise Incorrect(
            "Your user has another password than the one that was handed over.",
            "Use the argument `password`, no text of your own. A password that stands in a "
            "notebook is a password that everybody knows.",
            evidence=[f"login of {case.user}: refused, whatever the virtual host"],
            look_at=GUEST,
        ) from None


def _check_other_doors(case: Case, permissions: set[str]) -> None:
    others = sorted({"/", case.other} | permissions - {case.virtual_host})
    doors = [_knock(case, each) for each in others]
    if any(is_open for is_open, _ in doors):
        raise Incorrect(
            "Your user is let into other virtual hosts, too.",
            "Whoever knows its password gets at what belongs to others. It needs permissions in "
            "its own virtual host, and in no other.",
            evidence=[told for _, told in doors],
            look_at=PERMISSIONS,
        )


def _knock(case: Case, virtual_host: str) -> tuple[bool, str]:
    """Log in to a virtual host as the learner's user: whether that works, and so in words."""
    try:
        handshake(replace(case.login, virtual_host=virtual_host))
    except AccessRefused:
        return False, f"login at virtual host {virtual_host}: refused"
    return True, f"login at virtual host {virtual_host}: let in"


def _try_all(login: Settings, *, declare: str, use: str) -> tuple[dict[str, bool], list[str]]:
    """Declare a queue, publish to one and get from it: what the broker allows, and its words."""
    deeds: dict[str, tuple[str, Callable[[Any], object]]] = {
        "configure": ("declare a queue", lambda it: it.queue_declare(declare, durable=True)),
        "write": ("publish a message", lambda it: _publish(it, use)),
        "read": ("take a message out", lambda it: it.basic_get(use, auto_ack=True)),
    }
    may: dict[str, bool] = {}
    evidence = []
    with pika.BlockingConnection(login.parameters(name="mqlab check")) as connection:
        for permission, (deed, do) in deeds.items():
            try:
                do(connection.channel())
                may[permission], answer = True, "allowed"
            except pika.exceptions.ChannelClosedByBroker as closed:
                may[permission], answer = False, f"refused: {closed.reply_text}"
            evidence.append(f"{permission}: {deed}: {answer}")
    return may, evidence


def _publish(channel: Any, queue: str) -> None:
    channel.confirm_delivery()  # so that the broker's answer is waited for
    channel.basic_publish("", queue, b"a report")


@contextlib.contextmanager
def _new_case() -> Iterator[Case]:
    """Names and a password for one check; what was made in it is removed at the end."""
    admin = Settings.from_env()
    handshake(admin)
    if "administrator" not in _ask(admin, "whoami")["tags"]:
        raise NotChecked(
            f"you are {admin.username} on this broker, who is no administrator: nobody can make "
            "users with this login",
            OWN_BROKER,
        )
    name = f"{PREFIX}{int(time.time())}_{secrets.token_hex(3)}"
    case = Case(admin, name, f"{name}_user", secrets.token_urlsafe(12))
    _remove_old(case)
    try:
        case.ask(f"vhosts/{case.other}", "PUT", {})
        yield case
    finally:
        names = (case.user, case.virtual_host, case.other)
        given = [f"{kind}/{name}" for name in names for kind in ("users", "vhosts")]
        for path in (*case.made_besides, *given):  # the broker closes their connections
            case.ask(path, "DELETE")


def _remove_old(case: Case) -> None:
    """Remove what a killed check has left. A young one may belong to a check that is at work."""
    for kind in ("users", "vhosts"):
        for each in case.ask(kind):
            name = each.get("name", "")  # one that is just being deleted has none
            made_at = re.match(rf"{PREFIX}(\d+)_", name)
            if made_at and int(made_at[1]) < time.time() - OLD_S:
                case.ask(f"{kind}/{name}", "DELETE")


def _ask(settings: Settings, path: str, method: str = "GET", body: object = None) -> Any:
    try:
        return management.ask(settings, path, method, body)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise NotChecked(
            f"the management page at {settings.management_url} answers HTTP {error.code} to "
            f"{settings.username}, and without it nobody can make users",
            OWN_BROKER,
        ) from error
    except (OSError, ValueError) as error:
        raise NotChecked(
            f"no management page answers at {settings.management_url} "
            f"({getattr(error, 'reason', error)}), and without it nobody can make users",
            f"set MQLAB_MANAGEMENT_URL to its address, or {OWN_BROKER}",
        ) from error


ex1 = Exercise(
    "01",
    1,
    judge_my_own,
    hints=[
        "Three requests, one after the other. The first one is "
        '`ask(f"vhosts/{virtual_host}", "PUT", {})`. Which two are missing?',
        'The user: `ask(f"users/{user}", "PUT", {"password": password, "tags": ""})`. Now it '
        "exists, and is not yet let in anywhere: run the check and read what it says.",
        "The third request joins the two. Its path is `permissions/VIRTUAL_HOST/USER`, the names "
        'in this order, and its body has three patterns: `".*"` for configure, write and read.',
    ],
)
ex2 = Exercise(
    "01",
    2,
    judge_reader,
    hints=[
        "The virtual host is there already, so two requests are enough: the user, and its "
        "permissions. Which of the three permissions does a reader need? The table on the page "
        "says what each one allows.",
        "A reader takes messages out of queues that others have made. It declares nothing and "
        'publishes nothing: two of the three patterns are `"^$"`.',
        'The body of the permissions is `{"configure": "^$", "write": "^$", "read": ".*"}`.',
    ],
)
