"""Every error that mqlab raises, in one tree.

    MqlabError
    ├── SettingsError        a setting cannot be used: AMQP_URL, a port, a queue name
    ├── TaskError            a task, or a message body, that is not valid (also a ValueError)
    ├── BrokerError          a broker could not be found, started or stopped
    │   ├── NoBrokerFound    none of the ways to get a broker works on this machine
    │   ├── PortTaken        something else listens on the port
    │   └── StartFailed      the broker was started and did not become ready
    ├── ConnectError         nothing at that address completes an AMQP handshake
    │   └── AccessRefused    the broker answered, and refused the user, password or virtual host
    ├── QueueMismatch        the queue exists with other properties than the ones asked for
    ├── SendError            a task that is certainly not in a queue
    │   ├── Unroutable       the exchange had no queue for the routing key (basic.return)
    │   ├── Rejected         the broker answered basic.nack
    │   └── NotSent          the time was up before the message was given to the network
    ├── OutcomeUnknown       the message was given to the network, and no confirm came in time
    ├── ConsumerError        the background consumer has stopped by itself
    └── WaitTimeout          a bounded wait ended first (also a TimeoutError)

Each one says what happened, the likely reason, and what to do next.
The pika error, where there is one, stays chained as ``__cause__``.
"""

from collections.abc import Mapping


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
    """A setting cannot be used."""


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
    """Nothing at that address completes an AMQP handshake."""


class AccessRefused(ConnectError):
    """The broker answered, and refused the user, the password or the virtual host."""


class QueueMismatch(MqlabError):
    """The queue exists with other properties than the ones asked for."""


class _TaskOutcomes(MqlabError):
    """Shared by the errors of sending: ``outcomes`` tells what became of each task not confirmed.

    Its keys are task ids; its values ``unroutable``, ``rejected``, ``not sent`` or ``unknown``.
    """

    def __init__(
        self, what: str, *, why: str = "", fix: str = "", outcomes: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.outcomes = dict(outcomes or {})


class SendError(_TaskOutcomes):
    """A task that is certainly not in a queue."""


class Unroutable(SendError):
    """The exchange had no queue for the routing key: the broker returned the message."""


class Rejected(SendError):
    """The broker answered basic.nack: it did not take responsibility for the message."""


class NotSent(SendError):
    """The time was up before the message was given to the network."""


class OutcomeUnknown(_TaskOutcomes):
    """The message was given to the network, and no confirm came in time.

    It may be in the queue now, arrive later, or never: sending it again may make it two.
    """


class ConsumerError(MqlabError):
    """The background consumer has stopped by itself."""


class WaitTimeout(MqlabError, TimeoutError):
    """A bounded wait ended before what it waited for."""
