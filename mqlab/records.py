"""The records that sending and consuming return. The repr of each is a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mqlab.errors import MqlabError

ProducerState = Literal["new", "connected", "reconnecting", "closed", "failed"]
ConsumerState = Literal["new", "running", "reconnecting", "stopped", "failed"]
Outcome = Literal["done", "retry", "dead", "lost"]


@dataclass(frozen=True, slots=True, repr=False)
class SendRecord:
    """One task sent and confirmed, and the seconds that the caller waited for each step.

    ``connect_s`` and ``declare_s`` are 0.0 if the connection was already open. ``publish_s`` ends
    when the message is written to the network, ``confirm_s`` when ``send`` returns. ``repeated`` is
    how often the message was published again because a channel was lost.
    """

    task_id: str
    data: Any
    queue: str
    sent_at: float
    connect_s: float
    declare_s: float
    publish_s: float
    confirm_s: float
    repeated: int

    @property
    def wait_s(self) -> float:
        """Seconds that the caller waited in all."""
        return self.connect_s + self.declare_s + self.publish_s + self.confirm_s

    def __repr__(self) -> str:
        stages = ("connect", "declare", "publish", "confirm")
        seconds = {stage: getattr(self, f"{stage}_s") for stage in stages}
        times = ", ".join(f"{stage} {s * 1000:.2f} ms" for stage, s in seconds.items() if s)
        again = f", repeated {_times(self.repeated)}" if self.repeated else ""
        return (
            f"Task {self.task_id[:8]} confirmed after {self.wait_s * 1000:.2f} ms: {times}{again}"
        )


@dataclass(frozen=True, slots=True, repr=False)
class SendManyRecord:
    """Many tasks sent and confirmed: their ids in order, and how long the caller waited."""

    task_ids: tuple[str, ...]
    queue: str
    wait_s: float
    repeated: int

    def __repr__(self) -> str:
        again = f", {self.repeated} repeated" if self.repeated else ""
        return f"{len(self.task_ids)} tasks confirmed after {self.wait_s * 1000:.2f} ms{again}"


@dataclass(frozen=True, slots=True, repr=False)
class ProducerStatus:
    """What the producer is doing.

    ``waiting`` messages have no outcome yet. ``blocked`` is the broker's reason for a resource
    alarm. ``trouble`` is why the channel was last lost, if possible in the broker's words; it is
    empty once something works again. ``error`` is the error that ended a failed producer.
    """

    state: ProducerState
    queue: str
    sent: int
    waiting: int
    repeated: int
    reconnected: int
    blocked: str | None
    trouble: str
    error: MqlabError | None

    def __repr__(self) -> str:
        text = f"{self.state}, sending to {self.queue!r}: {self.sent} sent"
        for count, name in ((self.waiting, "waiting"), (self.repeated, "repeated")):
            text += f", {count} {name}" * bool(count)
        text += f", reconnected {_times(self.reconnected)}" * bool(self.reconnected)
        text += f", blocked by the broker: {self.blocked}" if self.blocked else ""
        text += f", in trouble: {self.trouble}" if self.trouble else ""
        return text + (f"\n{self.error}" if self.error else "")


@dataclass(slots=True, repr=False)
class TaskRecord:
    """The outcome of one delivery. Times are seconds since 1970, or None until they are known.

    ``outcome`` is ``done``, ``retry`` (it failed and goes back to the queue for another attempt),
    ``dead`` (it goes to the dead-letter queue) or ``lost`` (the channel was lost before the ack, so
    the broker delivers it again; ``error`` has the reason). ``attempt`` counts from 1;
    ``redelivered`` is the broker's flag. ``acked_at`` is when the ack was written to the network;
    the broker does not confirm acks. Old records may lose large data and results.
    """

    task_id: str | None
    data: Any
    sent_at: float | None
    received_at: float
    redelivered: bool
    attempt: int
    worker: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    acked_at: float | None = None
    outcome: Outcome | None = None
    result: Any = None
    error: str | None = None

    def __repr__(self) -> str:
        text = f"Task {(self.task_id or '?')[:8]} {self.outcome or 'received'}"
        if self.started_at and self.finished_at:
            waited_s = self.started_at - (self.sent_at or self.received_at)
            worked_s = self.finished_at - self.started_at
            text += f": {waited_s:.3f} s waiting, {worked_s:.3f} s at work in {self.worker}"
        if self.error:
            text += f", attempt {self.attempt}: {self.error}"
        return text + (" (redelivered)" if self.redelivered else "")


@dataclass(frozen=True, slots=True, repr=False)
class ConsumerStatus:
    """What the consumer is doing.

    ``prefetched`` deliveries wait for a worker; ``working`` tasks are running. ``trouble`` is what
    went wrong, if possible in the broker's words; it is empty once that works again. ``error`` is
    the error that ended a failed consumer.
    """

    state: ConsumerState
    queue: str
    workers: int
    prefetched: int
    working: int
    done: int
    retried: int
    dead: int
    lost: int
    redelivered: int
    reconnected: int
    trouble: str
    error: MqlabError | None

    def __repr__(self) -> str:
        counted = ("prefetched", "working", "done", "retried", "dead", "lost", "redelivered")
        text = f"{self.state}, {self.workers} worker{'s' * (self.workers != 1)} on {self.queue!r}: "
        parts = [f"{n} {name}" for name in counted if (n := getattr(self, name)) or name == "done"]
        if self.reconnected:
            parts.append(f"reconnected {_times(self.reconnected)}")
        if self.trouble:
            parts.append(f"in trouble: {self.trouble}")
        return text + ", ".join(parts) + (f"\n{self.error}" if self.error else "")


@dataclass(frozen=True, slots=True, repr=False)
class StopReport:
    """What ``stop`` returns: how many tasks were done, and the ids of those that were requeued."""

    done: int
    returned: tuple[str, ...]
    may_run_twice: tuple[str, ...]

    def __repr__(self) -> str:
        lines = [f"Stopped. {self.done} task{'s' * (self.done != 1)} done."]
        if self.returned:
            lines.append(f"Back in the queue, not started: {_list_ids(self.returned)}.")
        if self.may_run_twice:
            lines.append(
                f"Still being worked on, and back in the queue: {_list_ids(self.may_run_twice)}."
                " These may run twice."
            )
        return "\n".join(lines)


def _list_ids(task_ids: tuple[str, ...]) -> str:
    more = f" and {len(task_ids) - 5} more" if len(task_ids) > 5 else ""
    return ", ".join(task_id[:8] for task_id in task_ids[:5]) + more


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
