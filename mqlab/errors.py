"""Every error that mqlab raises, in one tree.

    MqlabError
    ├── SettingsError        a setting or an argument is not valid: AMQP_URL, a queue name
    ├── TaskError            a task or a message body is not valid (also a ValueError)
    ├── BrokerError          a broker could not be found, started or stopped
    │   ├── NoBrokerFound    there is no way to get a broker on this machine
    │   ├── PortTaken        something else listens on the port
    │   └── StartFailed      the broker was started, but did not become ready
    ├── ConnectError         no AMQP handshake could be completed at that address
    │   └── AccessRefused    the broker refused the user, the password or the virtual host
    ├── QueueRefused         the broker closed the channel: it refused a request for the queue
    │   └── QueueMismatch    the queue exists with properties that differ from those requested
    ├── SendError            a task was not accepted
    │   ├── Unroutable       the exchange had no queue for the routing key (basic.return)
    │   ├── Rejected         the broker refused the message: basic.nack, or a closed channel
    │   └── NotSent          time ran out before the message was written to the network
    ├── OutcomeUnknown       the message was written to the network, but no confirm arrived in time
    ├── ConsumerError        the consumer cannot do this in its current state, or has failed
    └── WaitTimeout          a wait reached its time limit (also a TimeoutError)

Each states what happened, the likely reason, and what to do next.
If a pika error caused it, that is chained as ``__cause__``.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Literal, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
SendOutcome = Literal["unroutable", "rejected", "not sent", "unknown"]


class MqlabError(Exception):
    """Base class of all mqlab errors.

    ``what`` happened, ``why`` (the likely reason), and how to ``fix`` it.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        lines = [what]
        if why:
            lines.append(f"  why:  {why}")
        if fix:
            lines.append(f"  next: {fix}")
        super().__init__("\n".join(lines))


class SettingsError(MqlabError):
    """A setting or an argument is not valid."""


class TaskError(MqlabError, ValueError):
    """A task or a message body is not valid."""


class BrokerError(MqlabError):
    """A broker could not be found, started or stopped."""


class NoBrokerFound(BrokerError):
    """There is no way to get a broker on this machine."""


class PortTaken(BrokerError):
    """Something else listens on the port."""


class StartFailed(BrokerError):
    """The broker was started, but did not become ready."""


class ConnectError(MqlabError):
    """No AMQP handshake could be completed at that address."""


class AccessRefused(ConnectError):
    """The broker refused the user, the password or the virtual host."""


class QueueRefused(MqlabError):
    """The broker closed the channel: it refused a request for the queue or its messages."""


class QueueMismatch(QueueRefused):
    """The queue exists with properties that differ from those requested."""


class _TaskOutcomes(MqlabError):
    """Base of the errors of sending. ``outcomes`` has an entry for each task not confirmed.

    The keys are task ids, the values ``unroutable``, ``rejected``, ``not sent`` or ``unknown``.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        fix: str = "",
        outcomes: Mapping[str, SendOutcome] | None = None,
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.outcomes: dict[str, SendOutcome] = dict(outcomes or {})


class SendError(_TaskOutcomes):
    """The broker did not accept a task."""


class Unroutable(SendError):
    """The exchange had no queue for the routing key: the broker returned the message."""


class Rejected(SendError):
    """The broker refused the message: it sent basic.nack, or closed the channel because of it."""


class NotSent(SendError):
    """Time ran out before the message was written to the network."""


class OutcomeUnknown(_TaskOutcomes):
    """The message was written to the network, but no confirm arrived in time.

    It may be in the queue now, arrive later, or never arrive. Sending it again may create a
    duplicate.
    """


class ConsumerError(MqlabError):
    """The background consumer cannot do this in its current state, or has failed."""


class WaitTimeout(MqlabError, TimeoutError):
    """A wait reached its time limit."""


class Stopped(KeyboardInterrupt):
    """An interrupt of a function that waits. Jupyter shows its sentence without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


def stops_with(sentence: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that waits: an interrupt raises Stopped with this sentence."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            try:
                return function(*args, **options)
            except KeyboardInterrupt:
                raise Stopped(sentence) from None

        return call

    return decorate


def describe(error: BaseException, limit: int = 500) -> str:
    """Describe an exception in at most ``limit`` characters that UTF-8 can encode.

    Works even if the exception's own ``__str__`` fails.
    """

    def make(what: Callable[[], object]) -> str:
        try:
            return str(what())[:limit].encode("utf-8", "backslashreplace").decode().strip()
        except BaseException:  # __str__ of an exception may raise anything
            return "(its text could not be read)"

    parts = [make(lambda: type(error).__name__), make(lambda: error)]
    return ": ".join(part for part in parts if part)[:limit]


def printable(text: str) -> str:
    """Escape what a terminal may act on or cannot show: control characters, lone surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
