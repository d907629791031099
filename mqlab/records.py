"""What sending and consuming give back: plain records that print themselves as a sentence.

They hold times, counts and ids, and do nothing. ``producer`` and ``consumer`` fill them in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mqlab.errors import MqlabError


@dataclass(frozen=True, slots=True, repr=False)
class SendRecord:
    """One task sent and confirmed, and where the time went. Times in seconds, as the caller waited.

    ``connect_s`` and ``declare_s`` are 0.0 on a connection that was open already. ``publish_s``
    ends when the message is handed to the network, ``confirm_s`` when the caller knows.
    ``repeated`` counts the times it was published again because a connection was lost.
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
        """All that the caller waited, in seconds."""
        return self.connect_s + self.declare_s + self.publish_s + self.confirm_s

    def __repr__(self) -> str:
        stages = ("connect", "declare", "publish", "confirm")
        seconds = {stage: getattr(self, f"{stage}_s") for stage in stages}
        times = ", ".join(f"{stage} {s * 1000:.2f} ms" for stage, s in seconds.items() if s)
        again = f", repeated {self.repeated} times" if self.repeated else ""
        return (
            f"Task {self.task_id[:8]} confirmed after {self.wait_s * 1000:.2f} ms: {times}{again}"
        )


@dataclass(frozen=True, slots=True, repr=False)
class SendManyRecord:
    """Many tasks sent and confirmed: their ids in order, and the seconds the caller waited."""

    task_ids: tuple[str, ...]
    queue: str
    wait_s: float
    repeated: int

    def __repr__(self) -> str:
        again = f", {self.repeated} repeated" if self.repeated else ""
        return f"{len(self.task_ids)} tasks confirmed after {self.wait_s * 1000:.2f} ms{again}"


@dataclass(frozen=True, slots=True, repr=False)
class ProducerStatus:
    """What the producer is doing: ``state`` is connected, reconnecting, closed or failed."""

    state: str
    queue: str
    sent: int
    waiting: int
    repeated: int
    reconnected: int
    blocked: str | None
    error: MqlabError | None

    def __repr__(self) -> str:
        text = f"{self.state}, sending to {self.queue!r}: {self.sent} sent"
        for count, name in ((self.waiting, "waiting"), (self.repeated, "repeated")):
            text += f", {count} {name}" * bool(count)
        text += f", reconnected {self.reconnected} times" * bool(self.reconnected)
        text += f", blocked by the broker: {self.blocked}" if self.blocked else ""
        return text + (f"\n{self.error}" if self.error else "")


@dataclass(slots=True, repr=False)
class TaskRecord:
    """What became of one delivery. Times are seconds since 1970, None until they are known.

    ``outcome`` is ``done``, ``retry`` (it failed and went back to the queue for another attempt),
    ``dead`` (it is in the dead queue) or ``lost`` (the connection was lost before the ack, so the
    broker delivers it again). ``attempt`` counts from 1; ``redelivered`` is the broker's flag.
    ``acked_at`` is when the ack was handed to the network; the broker does not confirm an ack.
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
    outcome: str | None = None
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
    """What the consumer is doing: ``state`` is running, reconnecting, stopped or failed.

    ``prefetched`` deliveries are here and wait for a worker, ``working`` are being worked on.
    """

    state: str
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
    error: MqlabError | None

    def __repr__(self) -> str:
        counted = ("prefetched", "working", "done", "retried", "dead", "lost", "redelivered")
        text = f"{self.state}, {self.workers} worker{'s' * (self.workers != 1)} on {self.queue!r}: "
        parts = [f"{n} {name}" for name in counted if (n := getattr(self, name)) or name == "done"]
        if self.reconnected:
            parts.append(f"reconnected {self.reconnected} times")
        return text + ", ".join(parts) + (f"\n{self.error}" if self.error else "")


@dataclass(frozen=True, slots=True, repr=False)
class StopReport:
    """What ``stop`` left: tasks done in all, and the ids of those that the broker gets back."""

    done: int
    returned: tuple[str, ...]
    may_run_twice: tuple[str, ...]

    def __repr__(self) -> str:
        lines = [f"Stopped. {self.done} task{'s' * (self.done != 1)} done."]
        if self.returned:
            lines.append(f"Back in the queue, not started: {_short(self.returned)}.")
        if self.may_run_twice:
            lines.append(
                f"Still being worked on, and back in the queue: {_short(self.may_run_twice)}."
                " These may run twice."
            )
        return "\n".join(lines)


def _short(task_ids: tuple[str, ...]) -> str:
    more = f" and {len(task_ids) - 5} more" if len(task_ids) > 5 else ""
    return ", ".join(task_id[:8] for task_id in task_ids[:5]) + more
