"""Answers of page 01: users who may too much, too little, or are somebody else."""

# ruff: noqa: ARG001

import base64
import contextlib
import hashlib
import json
import os
import urllib.request
from urllib.error import HTTPError

import pika

from mqlab.exercises.page_01 import ex1, ex2
from mqlab.settings import Settings
from tests.wrong_answers import right, wrong

ALL = {"configure": ".*", "write": ".*", "read": ".*"}
NOTHING = "^$"
left_open = []


def make_all(ask, virtual_host, user, password, *, tags="", **patterns):
    """The virtual host, a user, and permissions for everything unless others are given."""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": tags})
    ask(f"permissions/{virtual_host}/{user}", "PUT", ALL | patterns)


def make(ask, virtual_host, user, password, *, tags="", **patterns):
    """A user who may only read, unless other patterns are given."""
    ask(f"users/{user}", "PUT", {"password": password, "tags": tags})
    body = {"configure": NOTHING, "write": NOTHING, "read": ".*"} | patterns
    ask(f"permissions/{virtual_host}/{user}", "PUT", body)


def ask_directly(path, method="GET", body=None):
    """A request past the check's ``ask``, as with requests, curl or rabbitmqadmin."""
    settings = Settings.from_env()
    login = base64.b64encode(f"{settings.username}:{settings.password}".encode()).decode()
    request = urllib.request.Request(
        f"{settings.management_url}/api/{path}",
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Basic {login}", "Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.loads(answer.read() or b"null")


def hash_of(password):
    """A password as RabbitMQ stores it: a salt, and SHA-256 of salt and password."""
    salt = os.urandom(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def queue_of(ask, virtual_host):
    """The name of the queue with the reports."""
    return ask(f"queues/{virtual_host}")[0]["name"]


def connect_as(virtual_host, user, password):
    """A connection of the new user's."""
    settings = Settings.from_env()
    login = pika.PlainCredentials(user, password)
    return pika.BlockingConnection(
        pika.ConnectionParameters(settings.host, settings.port, virtual_host, login)
    )


# ---- exercise 1, wrong


@wrong(
    ex1,
    "Nothing that was asked for exists on the broker.",
    ask="Where would you see in the management UI that it worked?",
)
def returns_true(*_names):
    """True, and no request"""
    return True


@wrong(
    ex1,
    "Your user has no permissions in this virtual host.",
    ask="What does the broker do when this user logs in?",
)
def forgets_permissions(ask, virtual_host, user, password):
    """No permissions"""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})


@wrong(
    ex1,
    "Your user has no permissions in this virtual host.",
    ask="Which virtual host is %2F?",
)
def permits_the_default(ask, virtual_host, user, password):
    """Permissions in /, as in the page's own example"""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})
    ask(f"permissions/%2F/{user}", "PUT", ALL)


@wrong(
    ex1,
    "Your user can log in to other virtual hosts as well.",
    ask="Whose queues can this user read now?",
)
def permits_everywhere(ask, virtual_host, user, password):
    """Permissions in every virtual host"""
    make_all(ask, virtual_host, user, password)
    ask(f"permissions/%2F/{user}", "PUT", ALL)


@wrong(
    ex1,
    "Your user has a tag that it does not need.",
    ask="What can an administrator do without any permission?",
)
def makes_an_administrator(*arguments):
    """An administrator, "so that it works\""""
    make_all(*arguments, tags="administrator")


@wrong(
    ex1,
    "Your user has a tag that it does not need.",
    ask="What could a policy with max-length 0 do to a queue?",
)
def makes_a_policymaker(*arguments):
    """A user who may set policies"""
    make_all(*arguments, tags="policymaker")


@wrong(
    ex1,
    "Your user does not have the password that was passed in.",
    ask="Who else knows this password?",
)
def uses_a_password_of_its_own(ask, virtual_host, user, _password):
    """The password "guest\""""
    make_all(ask, virtual_host, user, "guest")


@wrong(ex1, "The virtual host is missing.", ask="What do permissions join?")
def forgets_the_virtual_host(ask, _virtual_host, user, password):
    """A user, and no virtual host"""
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})


@wrong(ex1, "The user is missing.", ask="What do permissions join?")
def forgets_the_user(ask, virtual_host, _user, _password):
    """A virtual host, and no user"""
    ask(f"vhosts/{virtual_host}", "PUT", {})


@wrong(
    ex1,
    "Your user may not write or read.",
    ask="Which of the three is a publish, and which is a get?",
)
def permits_configure_only(*arguments):
    """Configure only"""
    make_all(*arguments, write=NOTHING, read=NOTHING)


@wrong(
    ex1,
    "Your user may do everything, but not with every name.",
    ask="What happens when it declares a queue with a name of another kind?",
)
def permits_its_own_names(ask, virtual_host, user, password):
    """Only names that begin with the user's own"""
    make_all(ask, virtual_host, user, password, **dict.fromkeys(ALL, f"^{user}"))


@wrong(
    ex1,
    "Your user may do everything, but not with every name.",
    ask="What is a queue called that is declared without a name?",
)
def forbids_reserved_names(*arguments):
    """Everything but amq.*, "which belongs to the broker\""""
    make_all(*arguments, configure="^(?!amq[.]).*")


@wrong(
    ex1,
    "You set permissions before both existed, or named them in the wrong order.",
    ask="Which of the two names comes first in the path?",
)
def swaps_the_path(ask, virtual_host, user, password):
    """permissions/USER/VIRTUAL_HOST"""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})
    ask(f"permissions/{user}/{virtual_host}", "PUT", ALL)


@wrong(
    ex1,
    "You set permissions before both existed, or named them in the wrong order.",
    ask="In which order do you have to create them?",
)
def permits_first(ask, virtual_host, user, password):
    """Permissions first, and the refusal ignored"""
    with contextlib.suppress(HTTPError):
        ask(f"permissions/{virtual_host}/{user}", "PUT", ALL)
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})


@wrong(
    ex1,
    "The management API refused a request.",
    ask="What does the broker say is missing?",
)
def forgets_the_tags(ask, virtual_host, user, password):
    """A user without tags"""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password})
    ask(f"permissions/{virtual_host}/{user}", "PUT", ALL)


@wrong(
    ex1,
    "The management API refused a request.",
    ask="What does a GET do, and what a PUT?",
)
def gets_instead_of_putting(ask, virtual_host, _user, _password):
    """The method is forgotten"""
    ask(f"vhosts/{virtual_host}")


@wrong(ex1, "You swapped the two names.", ask="Which argument comes first?")
def swaps_the_names(ask, virtual_host, user, password):
    """The arguments the wrong way round"""
    make_all(ask, user, virtual_host, password)


@wrong(
    ex1,
    "You used names of your own instead of the arguments.",
    ask="How should a second check find its own names?",
)
def ignores_the_names(ask, _virtual_host, _user, password):
    """Fixed names"""
    make_all(ask, "lesson_01_fixed", "lesson_01_fixed", password)
    return True


@wrong(
    ex1,
    "You used names of your own instead of the arguments.",
    ask="What are the names in the next check?",
)
def copies_the_names(ask, _virtual_host, _user, password):
    """The names that the last check has shown"""
    make_all(ask, "exercise_01_1700000000_0a1b2c", "exercise_01_1700000000_0a1b2c_user", password)


@wrong(
    ex1,
    "You changed something that was there before.",
    ask="Who can administer the broker after this?",
)
def takes_over_guest(ask, virtual_host, user, password):
    """guest gets the password and loses its tag, "since it is harmless then\""""
    make_all(ask, virtual_host, user, password)
    ask("users/guest", "PUT", {"password": password, "tags": ""})


@wrong(
    ex1,
    "You did more than was asked for.",
    ask="What does the second declare of this user lead to?",
)
def sets_a_limit(ask, virtual_host, user, password):
    """One queue is enough for anybody"""
    make_all(ask, virtual_host, user, password)
    ask(f"vhost-limits/{virtual_host}/max-queues", "PUT", {"value": 1})


@wrong(ex1, "You did more than was asked for.", ask="Who needs that queue?")
def leaves_a_queue(ask, virtual_host, user, password):
    """A queue to try it out, left in /"""
    make_all(ask_directly, virtual_host, user, password)
    ask_directly("queues/%2F/lesson_01_tried", "PUT", {"durable": True})


@wrong(ex1, "You did more than was asked for.", ask="Who else sees that name?")
def renames_the_cluster(ask, *names):
    """A name of its own for the cluster"""
    make_all(ask, *names)
    ask("cluster-name", "PUT", {"name": "mine"})


@wrong(ex1, "You changed something that was there before.", ask="Who administers it now?")
def removes_guest(ask, *names):
    """guest is removed, by a request that names it in its body"""
    make_all(ask, *names)
    ask("users/bulk-delete", "POST", {"users": ["guest"]})


@wrong(
    ex1,
    "Your user can log in to other virtual hosts as well.",
    ask="What do these patterns still allow?",
)
def lets_it_look_around(ask, virtual_host, user, password):
    """May enter every virtual host but /, without a right in it"""
    make_all(ask, virtual_host, user, password)
    for name in {each["name"] for each in ask("vhosts")} - {"/", virtual_host}:
        ask(f"permissions/{name}/{user}", "PUT", dict.fromkeys(ALL, NOTHING))


# ---- exercise 1, right


@right(ex1)
def makes_all_three(*arguments):
    """Three requests"""
    make_all(*arguments)


@right(ex1)
def makes_them_directly(_ask, *names):
    """urllib in place of ask"""
    make_all(ask_directly, *names)


@right(ex1)
def gives_a_hash(ask, virtual_host, user, password):
    """A password hash in place of the password, and the user before the virtual host"""
    scheme = "rabbit_password_hashing_sha256"
    body = {"password_hash": hash_of(password), "hashing_algorithm": scheme, "tags": []}
    ask(f"users/{user}", "PUT", body)
    ask(f"vhosts/{virtual_host}", "PUT")
    ask(f"permissions/{virtual_host}/{user}", "PUT", ALL)


@right(ex1)
def begins_anew_and_tries_it(ask, virtual_host, user, password):
    """Deletes what may be there, uses other patterns, and tries the login without closing it"""
    for path in (f"users/{user}", f"vhosts/{virtual_host}"):
        with contextlib.suppress(HTTPError):
            ask(path, "DELETE")
    make_all(ask, virtual_host, user, password, configure="^", write=".+", read="^.*$")
    connect_as(virtual_host, user, password).channel().queue_declare("mine", exclusive=True)


# ---- exercise 2, wrong


@wrong(ex2, "Your user may not read.", ask="Is a get a read or a write?")
def swaps_write_and_read(*arguments):
    """write and read swapped"""
    make(*arguments, write=".*", read=NOTHING)


@wrong(
    ex2,
    "Your user may configure and write, which it does not need.",
    ask="What is the least that reading needs?",
)
def permits_everything(*arguments):
    """The permissions of exercise 1"""
    make(*arguments, **ALL)


@wrong(ex2, "Your user may not read.", ask="Which names does ^$ match?")
def permits_nothing(*arguments):
    """No permission at all"""
    make(*arguments, read=NOTHING)


@wrong(ex2, "Your user may not read.", ask="Which queue holds the reports?")
def permits_another_queue(*arguments):
    """A guess at the queue's name"""
    make(*arguments, read="^report$")


@wrong(
    ex2,
    "Your user may configure, which it does not need.",
    ask="Who has declared the queue that it reads?",
)
def leaves_configure_on(*arguments):
    """configure left on, "since a consumer declares its queue\""""
    make(*arguments, configure=".*")


@wrong(
    ex2,
    "Your user may configure, which it does not need.",
    ask="What is a queue called that is declared without a name?",
)
def permits_generated_names(*arguments):
    """configure for amq.gen-*, "since these are temporary\""""
    make(*arguments, configure="^amq[.]gen.*")


@wrong(
    ex2,
    "Your user may configure, which it does not need.",
    ask="What stops it from declaring a queue of that name?",
)
def permits_names_of_its_own(ask, virtual_host, user, password):
    """configure for names that begin with the user's own"""
    make(ask, virtual_host, user, password, configure=f"^{user}-[0-9a-f]{{32}}$")


@wrong(
    ex2,
    "Your user may write, which it does not need.",
    ask="Which name is checked when a message is published?",
)
def leaves_write_on(*arguments):
    """write left on"""
    make(*arguments, write=".*")


@wrong(
    ex2,
    "Your user may write, which it does not need.",
    ask="Which exchange does a publish to a queue's name go through?",
)
def permits_the_default_exchange(*arguments):
    """write for the default exchange, "since an ack is sent through it\""""
    make(*arguments, write="^amq[.]default$")


@wrong(
    ex2,
    "Your user has no permissions in this virtual host.",
    ask="What does the broker do when this user logs in?",
)
def only_makes_the_user(ask, _virtual_host, user, password):
    """A user without permissions"""
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})


@wrong(
    ex2,
    "Your user has a tag that it does not need.",
    ask="What can an administrator do without any permission?",
)
def makes_the_reader_an_administrator(*arguments):
    """An administrator who may only read"""
    make(*arguments, tags="administrator")


@wrong(
    ex2,
    "Your user has a tag that it does not need.",
    ask="What can a policy do to the queue with the reports?",
)
def makes_the_reader_a_policymaker(*arguments):
    """A policymaker who may only read"""
    make(*arguments, tags=["management", "policymaker"])


@wrong(
    ex2,
    "Nothing that was asked for exists on the broker.",
    ask="Where would you see in the management UI that it worked?",
)
def says_so_only(*_names):
    """True, and no request"""
    return True


@wrong(
    ex2,
    "The reports in the queue are not those that were there.",
    ask="Which reports are left for the reader?",
)
def takes_a_report(ask, virtual_host, user, password):
    """Takes a report out itself, to see whether it works"""
    make(ask, virtual_host, user, password)
    path = f"queues/{virtual_host}/{queue_of(ask, virtual_host)}/get"
    body = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
    assert len(ask(path, "POST", body)) == 1


@wrong(
    ex2,
    "You changed something that was there before.",
    ask="What is in a virtual host that was created a moment ago?",
)
def begins_with_a_new_virtual_host(ask, virtual_host, user, password):
    """Deletes the virtual host, to begin with a clean one"""
    ask(f"vhosts/{virtual_host}", "DELETE")
    ask(f"vhosts/{virtual_host}", "PUT", {})
    make(ask, virtual_host, user, password)


@wrong(
    ex2,
    "You did more than was asked for.",
    ask="What happens to the reports after a minute?",
)
def sets_a_policy(ask, virtual_host, user, password):
    """A policy that removes what nobody has read"""
    make(ask, virtual_host, user, password)
    policy = {"pattern": ".*", "definition": {"message-ttl": 60_000}}
    ask(f"policies/{virtual_host}/tidy", "PUT", policy)


@wrong(
    ex2,
    "You changed something that was there before.",
    ask="Who else works in this virtual host?",
)
def takes_rights_from_guest(ask, virtual_host, user, password):
    """guest may only read, too"""
    make(ask, virtual_host, user, password)
    only_read = {"configure": NOTHING, "write": NOTHING, "read": ".*"}
    ask(f"permissions/{virtual_host}/guest", "PUT", only_read)


@wrong(ex2, "Your user may write, which it does not need.", ask="Which names does it match?")
def permits_an_internal_exchange(*arguments):
    """write for an exchange that the broker keeps to itself"""
    make(*arguments, write="^amq[.]rabbitmq[.]trace$")


@wrong(
    ex2,
    "The reports in the queue are not those that were there.",
    ask="Who gets the next report?",
)
def leaves_a_consumer(ask, virtual_host, user, password):
    """A consumer of the new user's, left to take what comes"""
    make(ask, virtual_host, user, password)
    left_open.append(connect_as(virtual_host, user, password).channel())
    left_open[-1].basic_consume(queue_of(ask, virtual_host), lambda *_message: None)


@wrong(ex2, "You did more than was asked for.", ask="Who can read the copies?")
def traces_every_message(ask, virtual_host, user, password):
    """Tracing on, to see who reads"""
    make(ask, virtual_host, user, password)
    ask(f"vhosts/{virtual_host}", "PUT", {"tracing": True})


@wrong(ex2, "You did more than was asked for.", ask="Who can still come in?")
def admits_nobody_else(ask, virtual_host, user, password):
    """No connections to the virtual host"""
    make(ask, virtual_host, user, password)
    ask(f"vhost-limits/{virtual_host}/max-connections", "PUT", {"value": 0})


# ---- exercise 2, right


@right(ex2)
def permits_reading(*arguments):
    """Two requests"""
    make(*arguments)


@right(ex2)
def permits_one_queue(ask, virtual_host, user, password):
    """Read for the one queue, and empty patterns for the rest"""
    read = f"^{queue_of(ask, virtual_host)}$"
    make(ask, virtual_host, user, password, configure="", write="", read=read)


@right(ex2)
def looks_at_the_reports(ask, virtual_host, user, password):
    """Reads the reports as the new user, and leaves them there"""
    ask(f"vhosts/{virtual_host}", "PUT", {})  # as in exercise 1; it exists
    make(ask, virtual_host, user, password, configure="(?!)", write="$^")
    with connect_as(virtual_host, user, password) as connection:
        channel = connection.channel()
        assert channel.basic_get(queue_of(ask, virtual_host))[2]


@right(ex2)
def makes_the_reader_directly(_ask, *names):
    """urllib in place of ask, and everything taken back but read"""
    make(ask_directly, *names, **ALL)
    make(ask_directly, *names)
