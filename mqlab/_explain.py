"""Turn errors of pika, the network or the broker into errors of mqlab, with a next step."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pika.exceptions

from mqlab.commands import command
from mqlab.errors import (
    AccessRefused,
    ConnectError,
    NotSent,
    OutcomeUnknown,
    QueueMismatch,
    QueueRefused,
    Rejected,
    SendError,
    SendOutcome,
    Unroutable,
)
from mqlab.settings import Settings

NACKED = "basic.nack: the queue is full, or the broker could not store the message"
_FIXES = {
    403: "grant the permission on this virtual host (management UI, Admin, the user), "
    "or use another queue",
    404: "declare the queue first, or check its name",
    405: "close the connection that holds the queue exclusively, or use another queue name",
    406: "use another queue name, or change the property that the broker names",
}


def start_a_broker() -> str:
    """Return the commands to type if the broker does not answer."""
    return f"{command('broker start')}   ({command('doctor')} shows what is wrong)"


def explain(error: BaseException, settings: Settings) -> ConnectError:
    """Turn an error of pika or the network into a ConnectError or an AccessRefused."""
    causes = list(_causes(error))

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    text = "; ".join(dict.fromkeys(str(cause) for cause in causes if str(cause)))
    words = broker_words(error)
    address, fix = settings.address, start_a_broker()
    other_server = "it is another kind of server: the management UI is on 15673, AMQP on 5673"
    set_port = "set the broker's AMQP port in MQLAB_AMQP_PORT or AMQP_URL"
    what = f"No broker could be reached at {address}."
    kind = ConnectError
    # Only the broker's own words count: pika also reports a "probable authentication error" when
    # the connection is cut during the handshake.
    if "ACCESS_REFUSED" in text:
        kind = AccessRefused
        what = f"The broker at {address} refused the login of user {settings.username!r}."
        why = "the user or the password is wrong, or guest connects from another machine"
        fix = "set AMQP_URL=amqp://user:password@host:port/vhost with a user of this broker"
    elif "connection limit" in text or "number of connections" in text:
        what = f"The broker at {address} accepts no more connections from you."
        why = words or f"virtual host {settings.virtual_host!r}, or the user, is at its limit"
        fix = "close some: shut down kernels that you do not need, and check your code for loops"
    elif "NOT_ALLOWED" in text and ("vhost" in text or "virtual host" in text):
        kind = AccessRefused
        vhost = settings.virtual_host
        what = f"The broker at {address} refused the virtual host {vhost!r}."
        why = f"it does not exist, or user {settings.username!r} has no permission on it"
        fix = "set the virtual host at the end of AMQP_URL, or have it created on the broker"
    elif any_is(socket.gaierror):
        what = f"The host name {settings.host!r} cannot be resolved."
        why, fix = "a typo in AMQP_URL, or no network", "check the host in AMQP_URL"
    elif any_is(ConnectionRefusedError):
        why = "nothing listens there: the broker is not started, or it is on another port"
    elif "CERTIFICATE_REQUIRED" in text.upper() or "HANDSHAKE_FAILURE" in text:
        what = f"The broker at {address} ended the TLS handshake."
        why = f"it probably requires a client certificate ({text})"
        fix = "use a listener that does not require one, or pika with a certificate"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        what = f"The certificate of the broker at {address} could not be verified."
        why, fix = text, "use a host name and a CA that match the certificate"
    elif any_is(pika.exceptions.IncompatibleProtocolError):
        what, fix = f"The server at {address} is not an AMQP broker.", set_port
        why = other_server if "EOF" in text else f"{other_server}; or {text}"
    elif "Timeout" in text or any("Timeout" in type(cause).__name__ for cause in causes):
        what = f"The server at {address} did not complete the AMQP handshake in time."
        why, fix = f"the host cannot be reached, or {other_server}", set_port
    elif words:
        what, why = f"The broker at {address} closed the connection.", words
        fix = f"look for this text in the broker's log: {command('broker logs')}"
    else:
        why = f"the connection was lost ({text or type(error).__name__})"
    explained = kind(what, why=why, fix=fix)
    explained.__cause__ = error
    return explained


def explain_refusal(reason: Any, name: str) -> QueueRefused:
    """Turn the broker's channel.close into a QueueRefused or a QueueMismatch.

    ``reason`` is pika's ChannelClosedByBroker; ``name`` is the name of the connection.
    """
    code, words = reason.reply_code, broker_words(reason)
    found = re.search(
        r"inequivalent arg '(.+?)' for queue '(.+?)' in vhost '.*?': "
        r"received (.+?) but current is (.+)",
        words,
        re.DOTALL,
    )
    error: QueueRefused
    if found is None:
        error = QueueRefused(
            f"The broker refused the channel of {name}.",
            why=words,
            fix=_FIXES.get(code, "look for this text in the broker's log"),
        )
    else:
        argument, queue, asked, current = found.groups()
        error = QueueMismatch(
            f"The queue {queue!r} exists with {argument} = {current.removeprefix('the value ')}; "
            f"asked for was {asked.removeprefix('the value ')}.",
            why="a queue's properties cannot be changed once it has been declared",
            fix="use it as it is with declare=False, or use another queue name; if you do "
            "not need its messages, delete it in the management UI",
        )
    error.__cause__ = reason
    return error


def explain_outcomes(
    outcomes: Mapping[str, SendOutcome],
    *,
    size: int,
    queue: str,
    bound_s: float,
    words: str,
    blocked: str | None,
    closed: bool,
    trouble: str,
) -> SendError | OutcomeUnknown:
    """Turn the outcomes of the tasks, out of ``size``, that were not confirmed into one error."""
    counts = Counter[str](outcomes.values())
    confirmed = size - len(outcomes)
    parts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
    what = f"Of {size} task{'s' * (size > 1)} for queue {queue!r}: {parts}"
    what += f", {confirmed} confirmed." if confirmed else "."
    if counts["unknown"]:
        why = f"no confirm came within {bound_s:g} s; the task may still arrive"
        if blocked:
            why = f"the broker blocks publishers ({blocked})"
        elif closed:
            why = "the producer was closed before the confirm came; the task may be in the queue"
        return OutcomeUnknown(
            what,
            why=why,
            fix="send again with the same task_id, and let the worker check the id",
            outcomes=outcomes,
        )
    if counts["not sent"]:
        return explain_not_sent(what, bound_s, trouble, outcomes)
    if counts["rejected"]:
        return Rejected(
            what,
            why=f"the broker: {words}" if words else NACKED,
            fix="send again later, or smaller" if words else "send again later",
            outcomes=outcomes,
        )
    return Unroutable(
        what,
        why="no queue of that name exists",
        fix="check the name, or start the consumer that declares it",
        outcomes=outcomes,
    )


def explain_not_sent(
    what: str, bound_s: float, trouble: str, outcomes: Mapping[str, SendOutcome] | None = None
) -> NotSent:
    """Return the error for messages that could not be written to the network in time."""
    return NotSent(
        what,
        why=trouble or f"the message could not be written to the network within {bound_s:g} s",
        fix=f"send again when the broker is back: {command('broker status')}",
        outcomes=outcomes,
    )


def broker_words(error: BaseException) -> str:
    """The reply code and text with which the broker closed, or an empty string."""
    for cause in _causes(error):
        if isinstance(
            cause,
            (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker),
        ):
            return f"{cause.reply_code} {cause.reply_text}"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and the errors that pika has wrapped in it."""
    yield error
    inner = [*getattr(error, "exceptions", ()), getattr(error, "exception", None), *error.args]
    for cause in [*inner, error.__cause__]:
        if isinstance(cause, BaseException):
            yield from _causes(cause)
