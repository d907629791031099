"""Every error that mqlab raises, in one tree.

    MqlabError
    ├── SettingsError        a setting or an argument cannot be used: AMQP_URL, a queue name
    ├── TaskError            a task, or a message body, that is not valid (also a ValueError)
    ├── BrokerError          a broker could not be found, started or stopped
    │   ├── NoBrokerFound    none of the ways to get a broker works on this machine
    │   ├── PortTaken        something else listens on the port
    │   └── StartFailed      the broker was started and did not become ready
    ├── ConnectError         no AMQP handshake could be completed at that address
    │   └── AccessRefused    the broker answered, and refused the user, password or virtual host
    ├── QueueRefused         the broker closed the channel: it refuses what was asked of the queue
    │   └── QueueMismatch    the queue exists with other properties than the ones asked for
    ├── SendError            a task that was not accepted
    │   ├── Unroutable       the exchange had no queue for the routing key (basic.return)
    │   ├── Rejected         the broker refused the message: basic.nack, or a closed channel
    │   └── NotSent          the time was up before the message was given to the network
    ├── OutcomeUnknown       the message was given to the network, and no confirm came in time
    ├── ConsumerError        the background consumer cannot be used like this, or has failed
    └── WaitTimeout          a bounded wait ended first (also a TimeoutError)

Each one says what happened, the likely reason, and what to do next.
The pika error, where there is one, stays chained as ``__cause__``.
"""

from collections.abc import Callable, Mapping
from typing import Literal

SendOutcome = Literal["unroutable", "rejected", "not sent", "unknown"]


class MqlabError(Exception):
    """Base of all errors of mqlab.

    ``what`` happened; ``why``, the likely reason; ``fix``, what to do or type next.
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
    """A setting or an argument cannot be used."""


class TaskError(MqlabError, ValueError):
    """A task, or a message body, that is not valid."""


class BrokerError(MqlabError):
    """A broker could not be found, started or stopped."""


class NoBrokerFound(BrokerError):
    """None of the ways to get a broker works on this machine."""


class PortTaken(BrokerError):
    """Something else listens on the port."""


class StartFailed(BrokerError):
    """The broker was started and did not become ready."""


class ConnectError(MqlabError):
    """No AMQP handshake could be completed at that address."""


class AccessRefused(ConnectError):
    """The broker answered, and refused the user, the password or the virtual host."""


class QueueRefused(MqlabError):
    """The broker closed the channel: it refuses what was asked of the queue, or of its messages."""


class QueueMismatch(QueueRefused):
    """The queue exists with other properties than the ones asked for."""


class _TaskOutcomes(MqlabError):
    """Shared by the errors of sending: ``outcomes`` has one entry for each task not confirmed.

    Its keys are task ids; its values ``unroutable``, ``rejected``, ``not sent`` or ``unknown``.
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
    """A task that the broker did not accept."""


class Unroutable(SendError):
    """The exchange had no queue for the routing key: the broker returned the message."""


class Rejected(SendError):
    """The broker refused the message: it sent basic.nack, or closed the channel because of it."""


class NotSent(SendError):
    """The time was up before the message was given to the network."""


class OutcomeUnknown(_TaskOutcomes):
    """The message was given to the network, and no confirm came in time.

    It may be in the queue now, arrive later, or never: sending it again may duplicate it.
    """


class ConsumerError(MqlabError):
    """The background consumer cannot be used like this, or has failed."""


class WaitTimeout(MqlabError, TimeoutError):
    """A bounded wait ended before what it waited for."""


def describe(error: BaseException, limit: int = 500) -> str:
    """Name an exception in one line that UTF-8 can encode, even one whose own text cannot be made.

    ``limit`` is in characters.
    """

    def make(what: Callable[[], object]) -> str:
        try:
            return str(what())[:limit].encode("utf-8", "backslashreplace").decode().strip()
        except BaseException:  # an exception's own code may do anything
            return "(it could not be made)"

    parts = [make(lambda: type(error).__name__), make(lambda: error)]
    return ": ".join(part for part in parts if part)[:limit]


def printable(text: str) -> str:
    """Escape what a terminal might obey, or cannot show: control characters, lone surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
