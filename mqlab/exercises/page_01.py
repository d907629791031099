"""The exercises of page 01: a user with a virtual host of its own, and a user that may only read.

What must be true on the broker when an answer has returned:

Exercise 1: the virtual host exists, and the user, who has the given password, no tag and no limit.
It may configure, write and read every name in that virtual host. It has permissions there and
nowhere else.

Exercise 2: the user exists, as above. In the virtual host that was given it may read the queue with
the reports, and may neither configure nor write any name. The queue and its messages are as they
were. It has permissions nowhere else.

Both: no other object has been added, removed or changed. How an answer does it is its own affair.
"""

from __future__ import annotations

import contextlib
import secrets
import time
import urllib.error
from typing import Any

import pika

from mqlab.connection import handshake
from mqlab.errors import AccessRefused
from mqlab.exercises.engine.admin import AdminBench
from mqlab.exercises.engine.call import some
from mqlab.exercises.engine.exercise import Exercise, Incorrect
from mqlab.exercises.engine.objects import Message, read_messages
from mqlab.exercises.rules.rights import Tried, matches_all, may_log_in, try_name, try_right

GUEST, PERMISSIONS = "What may guest do?", "A user, a virtual host, and what joins them"
WRONG, TASK_1, TASK_2 = "What can go wrong", "Exercise 1: for everyone", "Exercise 2: a stretch"
REPORTS: list[tuple[bytes, dict[str, Any]]] = [
    (b"Quarterly report", {"message_id": "1", "content_type": "text/plain"}),
    ("Bericht für März".encode(), {"message_id": "2", "headers": {"pages": 12}}),
    (b"Quarterly report", {"message_id": "3", "delivery_mode": 2}),
    (b"Quarterly report", {"message_id": "3", "delivery_mode": 2}),
]


# ---- the judges


def judge_my_own(make_my_own: Any) -> list[str]:
    """Exercise 1."""
    with AdminBench("01", PERMISSIONS) as bench:
        returned = _run(make_my_own, bench)
        has_user = bench.has("users", bench.user)
        has_vhost = bench.has("vhosts", bench.virtual_host)
        if bench.has("users", bench.virtual_host) or bench.has("vhosts", bench.user):
            raise bench.wrong(
                "You swapped the two names.",
                "The virtual host's name went to users, or the user's name to vhosts.",
            )
        if not has_user and not has_vhost:
            raise _nothing(bench, returned, TASK_1)
        if not has_user or not has_vhost:
            raise bench.wrong(
                f"The {'virtual host' if has_user else 'user'} is missing.",
                "Three things are needed, each by a request of its own: the virtual host, the "
                "user, and the permissions that join them.",
            )
        _check_user(bench, "Your user exists, but has no permissions.")
        rights = [_try(bench, right) for right in ("configure", "write", "read")]
        evidence = [line for each in rights for line in each.evidence]
        forbidden = [each.right for each in rights if not each.allowed]
        if forbidden:
            raise bench.wrong(
                f"Your user can log in, but may not {' or '.join(forbidden)}.",
                "It should be able to do everything in its own virtual host. A permission is a "
                'pattern for names: ".*" matches every name, "^$" and "" match none.',
                *evidence,
            )
        evidence += _limits_on_topics(bench)
        if any(each.refused for each in rights) or _limits_on_topics(bench):
            raise bench.wrong(
                "Your user may do everything, but not with every name.",
                'A permission is a pattern for names, and ".*" matches all of them.',
                *evidence,
            )
        return [*evidence, f"login to virtual host {bench.virtual_host}: accepted; to /: refused"]


def judge_reader(make_reader: Any) -> list[str]:
    """Exercise 2."""
    with AdminBench("01", PERMISSIONS) as bench:
        queue = f"reports_{secrets.token_hex(4)}"
        bench.add_virtual_host()
        with bench.channel() as channel:
            channel.queue_declare(queue, durable=True)
            channel.confirm_delivery()
            for body, properties in REPORTS:
                channel.basic_publish("", queue, body, pika.BasicProperties(**properties))
            reports = read_messages(channel, queue)
        bench.remember()
        returned = _run(make_reader, bench)
        _check_reports(bench, queue, reports)
        if not bench.has("users", bench.user):
            raise _nothing(bench, returned, TASK_2)
        _check_user(bench, "Your reader has no permissions in this virtual host.")
        configure, write = (_try(bench, right, queue) for right in ("configure", "write"))
        read = try_name(bench.login, "read", queue)
        evidence = [line for each in (configure, write, read) for line in each.evidence]
        problem = _name_reader(bool(configure.allowed), bool(write.allowed), bool(read.allowed))
        if problem:
            raise bench.wrong(*problem, *evidence)
        return [*evidence, f"{len(reports)} reports are still in the queue"]


def _name_reader(configure: bool, write: bool, read: bool) -> tuple[str, str] | None:
    if write and not read:
        return (
            "You swapped write and read.",
            "Both are seen from the client's side: it writes messages into a queue, and reads "
            "them out of it.",
        )
    if not read:
        return (
            "Your reader may not read.",
            'The pattern for read has to match the name of the queue: ".*" matches every name.',
        )
    if write and configure:
        return (
            "Your reader may do everything.",
            "It can read, but it can also publish messages and delete queues. Grant only what "
            'reading needs: "^$" matches no name.',
        )
    if write:
        return (
            "Your reader may still publish messages.",
            'The pattern for write matches a name. Reading needs no write: "^$" matches no name.',
        )
    if configure:
        return (
            "Your reader may still declare and delete queues.",
            "The pattern for configure matches a name. Reading needs no configure, because the "
            'queue exists already: "^$" matches no name.',
        )
    return None


# ---- what both have in common


def _run(function: Any, bench: AdminBench) -> Any:
    """Call the answer, and explain what the management API refused."""
    called = bench.call(function, look_at=WRONG)
    code, said = _refusal(called.error)
    refused = [each for each in bench.sent if " permissions/" in each and "refused" in each]
    if not called.error and refused and not bench.permissions:  # the answer ignored the refusal
        code, said = 400, "vhost_or_user_not_found"
    if code:
        headline, message, look_at = _explain(code, said)
        raise bench.wrong(headline, message, *[said][: bool(said)], look_at=look_at)
    called.raise_if_failed(WRONG)
    return called.value


def _refusal(error: Any) -> tuple[int, str]:
    """Status and text of an HTTP error, whichever client raised it; 0 for any other error."""
    if isinstance(error, urllib.error.HTTPError):
        with contextlib.suppress(OSError, ValueError):  # the answer may have read it
            return error.code, error.read(300).decode("utf-8", "replace")
        return error.code, ""
    response = getattr(error, "response", None)  # of requests and httpx
    return getattr(response, "status_code", 0), str(getattr(response, "text", ""))[:300]


def _explain(code: int, said: str) -> tuple[str, str, str]:
    if "vhost_or_user_not_found" in said:
        return (
            "You set permissions before both existed, or named them in the wrong order.",
            "Permissions join a virtual host and a user, so create these two first. In the path "
            "the virtual host comes first: permissions/VIRTUAL_HOST/USER.",
            PERMISSIONS,
        )
    if code == 400:
        return (
            "The broker does not understand the body of a request.",
            "Something in it is missing or has the wrong name. The broker's answer says what; "
            "compare with the bodies on the page.",
            PERMISSIONS,
        )
    if code in (404, 405):
        return (
            "The management API has no such path, or not with this method.",
            'It is "vhosts/NAME", "users/NAME" or "permissions/VIRTUAL_HOST/USER", without a '
            'leading /, and the method is "PUT".',
            PERMISSIONS,
        )
    return "The management API refused a request.", "Its answer says why.", WRONG


def _nothing(bench: AdminBench, returned: Any, look_at: str) -> Incorrect:
    if any(each.kind in ("users", "vhosts") for each in bench.changes):
        return bench.wrong(
            "You used names of your own instead of the arguments.",
            "Each check passes in different names. Use your function's arguments.",
            *map(str, bench.changes[:5]),
            look_at=look_at,
        )
    return bench.wrong(
        "Nothing that was asked for exists on the broker.",
        f"Your function returned {returned!r:.40}. What counts is what the broker has afterwards.",
        look_at=look_at,
    )


def _check_user(bench: AdminBench, without_permissions: str) -> None:
    user, permissions = bench.after.objects["users", bench.user], bench.permissions
    tags = [each for each in user["tags"] if each]
    if "administrator" in tags:
        raise bench.wrong(
            "Your user is an administrator.",
            "Permissions don't restrict it: in the management API it creates and deletes users, "
            'and grants itself any permission that it lacks. A program needs no tag: "tags": "".',
            f"tags of {bench.user}: {some(tags)}",
            look_at=GUEST,
        )
    if tags:
        raise bench.wrong(
            "Your user has a tag that it does not need.",
            "A tag lets a user into the management API. A policymaker, for instance, can set a "
            'policy that empties or deletes queues. A program needs no tag: "tags": "".',
            f"tags of {bench.user}: {some(tags)}",
            look_at=GUEST,
        )
    _check_the_rest(bench)
    if not _knows_password(bench):
        raise bench.wrong(
            "Your user does not have the password that was passed in.",
            "Use the argument `password`, not a text of your own. A password that is written in a "
            "notebook is known to everyone who reads it.",
            f"login of {bench.user}: refused, whatever the virtual host",
            look_at=GUEST,
        )
    if bench.virtual_host not in permissions:
        raise bench.wrong(
            "Your user has its permissions in the wrong virtual host."
            if permissions
            else without_permissions,
            "A user and a virtual host do not belong together by themselves. Permissions join "
            "them, by a request of their own: permissions/VIRTUAL_HOST/USER.",
            f"{bench.user} has permissions in: {some(permissions) or 'no virtual host'}",
        )
    others = sorted({"/", *permissions} - {bench.virtual_host})
    if entered := [each for each in others if may_log_in(bench.login, each)]:
        raise bench.wrong(
            "Your user can log in to other virtual hosts as well.",
            "Anyone who has its password can reach what belongs to others there. It needs "
            "permissions in its own virtual host, and in no other.",
            *(f"login to virtual host {each}: accepted" for each in entered),
        )


def _knows_password(bench: AdminBench) -> bool:
    try:
        handshake(bench.login)
    except AccessRefused as refused:
        return "virtual host" in refused.what  # refused there, but not the password
    return True


def _try(bench: AdminBench, right: str, *names: str) -> Tried:
    pattern = bench.permissions[bench.virtual_host][right]
    return try_right(bench.login, right, pattern, bench.user, bench.virtual_host, *names)


def _limits_on_topics(bench: AdminBench) -> list[str]:
    """The user's topic permissions that do not match every routing key, in words."""
    return [
        str(each)
        for each in bench.changes
        if each.key[:3] == ("topic_permissions", bench.virtual_host, bench.user)
        and not all(each.now and matches_all(each.now[right]) for right in ("write", "read"))
    ]


def _check_reports(bench: AdminBench, queue: str, reports: list[Message]) -> None:
    lost = [it for it in bench.changes if it.kind == "queues" and it.was and queue in it.key]
    if lost:
        raise bench.wrong(
            "The queue with the reports is not as it was.",
            "The virtual host, the queue and its reports were there already, and belong to "
            "somebody else. Only a user and its permissions are missing.",
            *map(str, lost),
            look_at=TASK_2,
        )
    deadline = time.monotonic() + 3  # a closed connection gives back what it held
    with bench.channel() as channel:
        while (now := read_messages(channel, queue)) != reports and time.monotonic() < deadline:
            time.sleep(0.1)
    if now != reports:
        raise bench.wrong(
            "The reports in the queue are not those that were there.",
            "They are for the reader, who takes them out later. Your function only makes that "
            "possible, and leaves the messages alone.",
            f"queue {queue}: {len(reports)} reports before, {len(now)} messages now",
            look_at=TASK_2,
        )


def _check_the_rest(bench: AdminBench) -> None:
    """What else has changed was not asked for. The user's permissions are checked elsewhere."""
    # The broker itself grants permissions to the administrator who creates a virtual host.
    stored = bench.before.objects.items()
    creators = {key[1] for key, it in stored if "administrator" in it.get("tags", ())}
    others = []
    if limits := bench.after.objects["users", bench.user].get("limits"):
        others.append(f"limits of {bench.user}: {limits}")
    for each in bench.changes:
        kind, name, *more = each.key
        granted = kind.endswith("permissions") and (
            more[0] == bench.user
            or (name == bench.virtual_host and more[0] in creators and not each.was)
        )
        if granted or (kind, name) in (("users", bench.user), ("vhosts", bench.virtual_host)):
            continue
        if each.was:
            raise bench.wrong(
                "You changed something that was there before.",
                "Others rely on it. Create only what was asked for. The check has restored it.",
                str(each),
            )
        others.append(str(each))
    if others:
        raise bench.wrong(
            "You did more than was asked for.",
            "Asked for are a user, its virtual host, and its permissions there: no limit, no "
            "policy, nothing else.",
            *others[:5],
        )


ex1 = Exercise(
    "01",
    1,
    judge_my_own,
    hints=[
        "Three requests, one after the other. The first one is "
        '`ask(f"vhosts/{virtual_host}", "PUT", {})`. Which two are missing?',
        'The user: `ask(f"users/{user}", "PUT", {"password": password, "tags": ""})`. It exists '
        "now, but cannot log in anywhere yet: run the check and read what it says.",
        "The third request joins the two. Its path is `permissions/VIRTUAL_HOST/USER`, with the "
        'names in this order, and its body has three patterns: `".*"` for configure, write and '
        "read.",
    ],
)
ex2 = Exercise(
    "01",
    2,
    judge_reader,
    hints=[
        "The virtual host exists already, so two requests are enough: the user and its "
        "permissions. Which of the three permissions does a reader need? The page says what each "
        "of them allows.",
        "A reader takes messages out of a queue that others have declared. It declares nothing "
        'and publishes nothing, so two of the three patterns are `"^$"`.',
        'The body of the permissions is `{"configure": "^$", "write": "^$", "read": ".*"}`.',
    ],
)
