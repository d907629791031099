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
from mqlab.exercises.engine.exercise import Exercise
from mqlab.exercises.engine.objects import Message, read_messages
from mqlab.exercises.rules.rights import matches_all, may_log_in, names_to_try, try_right

GUEST, PERMISSIONS = "What may guest do?", "A user, a virtual host, and what joins them"
WRONG, TASK_1, TASK_2 = "What can go wrong", "Exercise 1: for everyone", "Exercise 2: a stretch"
REPORTS: list[tuple[bytes, dict[str, Any]]] = [
    (b"Quarterly report", {"message_id": "1", "content_type": "text/plain"}),
    ("Bericht für März".encode(), {"message_id": "2", "headers": {"pages": 12}}),
    (b"Quarterly report", {"message_id": "3", "delivery_mode": 2}),
    (b"Quarterly report", {"message_id": "3", "delivery_mode": 2}),
]


def judge_my_own(make_my_own: Any) -> list[str]:
    """Exercise 1."""
    with AdminBench("01", PERMISSIONS) as bench:
        _run(make_my_own, bench, TASK_1)
        if not bench.has("vhosts", bench.virtual_host):
            raise bench.wrong("The virtual host is missing.", THREE)
        _check_user(bench)
        evidence = _check_rights(bench, ["configure", "write", "read"])
        return [*evidence, f"login to virtual host {bench.virtual_host}: accepted; to /: refused"]


def judge_reader(make_reader: Any) -> list[str]:
    """Exercise 2."""
    with AdminBench("01", PERMISSIONS) as bench:
        queue = f"reports_{secrets.token_hex(4)}"
        bench.add_virtual_host(bench.virtual_host)
        with bench.channel() as channel:
            channel.queue_declare(queue, durable=True)
            channel.confirm_delivery()
            for body, properties in REPORTS:
                channel.basic_publish("", queue, body, pika.BasicProperties(**properties))
            reports = read_messages(channel, queue)
        bench.remember()
        _run(make_reader, bench, TASK_2)
        _check_user(bench)
        _check_reports(bench, queue, reports)
        evidence = _check_rights(bench, ["read"], queue)
        return [*evidence, f"{len(reports)} reports are still in the queue"]


THREE = (
    "Three things are needed, each by a request of its own: the virtual host, the user, and the "
    "permissions that join them."
)


def _run(function: Any, bench: AdminBench, task: str) -> None:
    """Call the answer. Explain what the management API refused, and why there is no user."""
    called = bench.call(function, look_at=WRONG)
    code, said = _refusal(called.error)
    refused = [each for each in bench.sent if " permissions/" in each and "refused" in each]
    if not called.error and refused and not bench.permissions:  # the answer ignored the refusal
        code, said = 400, "vhost_or_user_not_found"
    if "vhost_or_user_not_found" in said:
        raise bench.wrong(
            "You set permissions before both existed, or named them in the wrong order.",
            "Permissions join a virtual host and a user, so create these two first. In the path "
            "the virtual host comes first: permissions/VIRTUAL_HOST/USER.",
            said,
        )
    if code:
        raise bench.wrong(
            "The management API refused a request.",
            "Its answer says why. Compare path, method and body with the table on the page: no "
            'path begins with /, and the method is "PUT".',
            *[f"HTTP {code}: {said}".rstrip(": ")],
        )
    called.raise_if_failed(WRONG)
    if bench.has("users", bench.user):
        return
    created = {each.key[:2] for each in bench.changes if each.kind in ("users", "vhosts")}
    if {("users", bench.virtual_host), ("vhosts", bench.user)} & created:
        raise bench.wrong(
            "You swapped the two names.",
            "The virtual host's name went to users, or the user's name to vhosts.",
        )
    if ("vhosts", bench.virtual_host) in created:
        raise bench.wrong("The user is missing.", THREE)
    if created:
        raise bench.wrong(
            "You used names of your own instead of the arguments.",
            "Each check passes in different names. Use your function's arguments.",
            *map(str, bench.changes[:5]),
            look_at=task,
        )
    raise bench.wrong(
        "Nothing that was asked for exists on the broker.",
        "What counts is what the broker has when your function has returned.",
        f"your function returned {called.value!r:.40}",
        look_at=task,
    )


def _refusal(error: Any) -> tuple[int, str]:
    """Status and text of an HTTP error, whichever client raised it; 0 for any other error."""
    if isinstance(error, urllib.error.HTTPError):
        with contextlib.suppress(OSError, ValueError):  # the answer may have read it
            return error.code, error.read(300).decode("utf-8", "replace")
        return error.code, ""
    response = getattr(error, "response", None)  # of requests and httpx
    return getattr(response, "status_code", 0), str(getattr(response, "text", ""))[:300]


def _check_user(bench: AdminBench) -> None:
    user, permissions = bench.after.objects["users", bench.user], bench.permissions
    if tags := [each for each in user["tags"] if each]:
        raise bench.wrong(
            "Your user has a tag that it does not need.",
            "A tag lets a user into the management API. An administrator can grant itself any "
            "permission there, and a policymaker can set a policy that empties or deletes queues. "
            'A program needs no tag: "tags": "".',
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
            "Your user has no permissions in this virtual host.",
            "A user and a virtual host do not belong together by themselves. Permissions join "
            "them, by a request of their own: permissions/VIRTUAL_HOST/USER.",
            f"{bench.user} has permissions in: {some(permissions) or 'no virtual host'}",
        )
    others = sorted({"/", bench.other, *permissions} - {bench.virtual_host})
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


def _check_rights(bench: AdminBench, needed: list[str], queue: str = "") -> list[str]:
    """Try every right with many names, but reading with ``queue`` only, if there is one."""
    stored, rights = bench.permissions[bench.virtual_host], []
    for right in ("configure", "write", "read"):
        names = names_to_try(stored[right], bench.user, bench.virtual_host, *[queue][: bool(queue)])
        rights.append(
            try_right(bench.login, right, [queue] if queue and right == "read" else names)
        )
    evidence = [line for each in rights for line in each.evidence]
    if lacking := [each.right for each in rights if each.right in needed and not each.allowed]:
        raise bench.wrong(
            f"Your user may not {' or '.join(lacking)}.",
            'A permission is a pattern for names: ".*" matches every name, "^$" and "" match none. '
            "The three are seen from the client's side: it writes messages to an exchange, and "
            "reads them out of a queue.",
            *evidence,
        )
    if extra := [each.right for each in rights if each.right not in needed and each.allowed]:
        raise bench.wrong(
            f"Your user may {' and '.join(extra)}, which it does not need.",
            "The queue exists already, and the reports are in it. With configure, the user could "
            "declare and delete queues; with write, it could publish messages. Grant only what "
            'reading needs: "^$" matches no name.',
            *evidence,
        )
    narrow = [
        str(each)
        for each in bench.changes
        if each.key[:3] == ("topic_permissions", bench.virtual_host, bench.user)
        and not all(each.now and matches_all(each.now[right]) for right in ("write", "read"))
    ]
    if any(each.refused for each in rights if each.right in needed) or narrow:
        raise bench.wrong(
            "Your user may do everything, but not with every name.",
            'A permission is a pattern for names, and ".*" matches all of them.',
            *evidence,
            *narrow,
        )
    return evidence


def _check_reports(bench: AdminBench, queue: str, reports: list[Message]) -> None:
    deadline = time.monotonic() + 3  # a closed connection gives back what it held
    with bench.channel() as channel:
        while (now := read_messages(channel, queue)) != reports and time.monotonic() < deadline:
            time.sleep(0.1)
        consumers = channel.queue_declare(queue, passive=True).method.consumer_count
    if now != reports or consumers:
        raise bench.wrong(
            "The reports in the queue are not those that were there.",
            "They are for the reader, who takes them out later. Your function only makes that "
            "possible: it leaves the messages alone, and no consumer or open connection holds "
            "them.",
            f"queue {queue}: {len(reports)} reports before, {len(now)} messages and {consumers} "
            "consumers now",
            look_at=TASK_2,
        )


def _check_the_rest(bench: AdminBench) -> None:
    """What else has changed was not asked for. The user's permissions are checked elsewhere."""
    others = []
    if limits := bench.after.objects["users", bench.user].get("limits"):
        others.append(f"limits of {bench.user}: {limits}")
    if bench.after.objects.get(("vhosts", bench.virtual_host), {}).get("tracing"):
        others.append(f"tracing in {bench.virtual_host}")
    for each in bench.changes:
        kind, name, *more = each.key
        # The broker itself grants permissions to the administrator who creates a virtual host.
        creators = (bench.guest.username,) if not each.was and name == bench.virtual_host else ()
        granted = kind.endswith("permissions") and more[0] in (bench.user, *creators)
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
