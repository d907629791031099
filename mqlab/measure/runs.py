"""The measured runs of the series, and the records that they return.

Each run uses real threads, a real clock and, where there is a queue, a real broker. ``plots`` draws
the records.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mqlab.errors import SettingsError, WaitTimeout, stops_with
from mqlab.walkthrough import perform_heavy_task


class Waited(Protocol):
    """Any record of how long its caller waited."""

    @property
    def wait_s(self) -> float: ...


R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """One client of a busy handler. Times are in seconds since the start of the run."""

    client: int
    asked_s: float
    started_s: float
    answered_s: float

    @property
    def wait_s(self) -> float:
        """Seconds from asking to the answer: the time in line, and then the work itself."""
        return self.answered_s - self.asked_s


@dataclass(frozen=True, slots=True)
class ClientsRun:
    """N clients that asked at the same moment, in the order of their answers."""

    duration_s: float
    handlers: int
    clients: tuple[ClientRecord, ...]

    @property
    def waits_s(self) -> list[float]:
        """The wait of each client in seconds, in the order of the answers."""
        return [client.wait_s for client in self.clients]


@dataclass(frozen=True, slots=True)
class Summary:
    """Repeats of one measurement in five numbers: their count, and four times in seconds."""

    repeats: int
    fastest_s: float
    p50_s: float
    p95_s: float
    slowest_s: float

    def __str__(self) -> str:
        return (
            f"{self.repeats} repeats: median {format_time(self.p50_s)}, "
            f"95 of 100 within {format_time(self.p95_s)}, slowest {format_time(self.slowest_s)}"
        )


@stops_with("You stopped the run. Run the cell again.")
def run_waiting_clients(
    clients: int,
    *,
    duration_s: float = 0.5,
    handlers: int = 1,
    timeout_s: float | None = None,
    quiet: bool = False,
) -> ClientsRun:
    """Let N clients ask for slow work at the same moment, and measure how long each one waits.

    Every client is a thread and measures its own wait. ``handlers`` clients are served at a time,
    and each is served for ``duration_s`` seconds. Prints each answer as it comes, unless ``quiet``.
    Raises SettingsError if there are no clients or no handlers, and WaitTimeout if not all are
    answered within ``timeout_s`` seconds (default: 10 s more than the work takes).
    """
    if clients < 1 or handlers < 1:
        raise SettingsError(
            f"{clients} clients and {handlers} handlers cannot be run.", fix="use 1 or more of each"
        )
    # -(-a // b) rounds up: the last, incomplete round of handlers takes as long as a full one.
    end = time.monotonic() + (timeout_s or 10 + duration_s * -(-clients // handlers))
    free_handlers = threading.BoundedSemaphore(handlers)
    together = threading.Barrier(clients)
    answers: queue.SimpleQueue[ClientRecord] = queue.SimpleQueue()
    zero = time.perf_counter()

    def ask(number: int) -> None:
        together.wait()
        asked = time.perf_counter() - zero
        with free_handlers:
            started = time.perf_counter() - zero
            perform_heavy_task(f"Report {number}", duration_s=duration_s)
        answers.put(ClientRecord(number, asked, started, time.perf_counter() - zero))

    threads = [
        # A daemon, so that a client that is still in line does not keep the interpreter alive.
        threading.Thread(target=ask, args=(number,), name=f"client-{number}", daemon=True)
        for number in range(1, clients + 1)
    ]
    for thread in threads:
        thread.start()
    records: list[ClientRecord] = []
    while len(records) < clients:
        try:
            records.append(answers.get(timeout=max(0.0, end - time.monotonic())))
        except queue.Empty:
            raise WaitTimeout(
                f"{len(records)} of {clients} clients were answered in time.",
                why="the machine is very busy, or timeout_s is too short",
                fix="run the cell again, or pass a larger timeout_s",
            ) from None
        if not quiet:
            print(f"{len(records)} of {clients} clients answered", flush=True)
    for thread in threads:
        thread.join(1)  # it has its answer, and is about to end
    return ClientsRun(duration_s, handlers, tuple(records))


def repeat_sends(send: Callable[[Any], R], tasks: Iterable[Any]) -> list[R]:
    """Call ``send`` for each of ``tasks``, one after the other, and return all the records."""
    return [send(data) for data in tasks]


def summarise(records: Iterable[Waited]) -> Summary:
    """Return the waits of repeats as five numbers. Raises SettingsError if there are none."""
    waits = sorted(record.wait_s for record in records)
    if not waits:
        raise SettingsError("There is nothing to summarise.", fix="pass at least one record")
    # statistics.quantiles needs two values; a single repeat is its own median and its own p95.
    p95 = statistics.quantiles(waits, n=20, method="inclusive")[-1] if len(waits) > 1 else waits[0]
    return Summary(len(waits), waits[0], statistics.median(waits), p95, waits[-1])


def format_time(seconds: float) -> str:
    """Format a time: ``5.00 s``, or ``6.3 ms`` if it is below a tenth of a second."""
    if seconds >= 0.1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.1f} ms" if seconds >= 0.001 else f"{seconds * 1000:.2f} ms"
