"""A worker for a terminal, ``mqlab work``: it prints the walk-through's lines."""

from __future__ import annotations

import queue as queues
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mqlab.consumer import BackgroundConsumer
from mqlab.errors import MqlabError
from mqlab.settings import Settings
from mqlab.task import Task
from mqlab.walkthrough import perform_heavy_task
from mqlab.workshop.output import Output

DATA_SHOWN = 1_000
"""Characters of a task's data that are printed."""


def run_worker(
    *, queue: str, settings: Settings | None = None, workers: int = 1, duration_s: float = 5.0
) -> int:
    """Work through ``queue`` until Ctrl-C, SIGTERM or SIGHUP, and return 0.

    A running task then has 10 s to finish; a second Ctrl-C returns it to the queue at once.
    Raises what ``BackgroundConsumer.start`` raises, ConsumerError if the consumer fails, and
    MqlabError, after the same kind of stop, if stdout cannot be written.
    """
    output, started = Output(), threading.Event()

    def handle(task: Task) -> str:
        started.wait()  # or the first task's lines may come before the greeting
        short, data = task.task_id[:8], str(task.data)
        data = data[:DATA_SHOWN] + "…" * (len(data) > DATA_SHOWN)
        output.print(
            f"--- [Background Worker] Received task for: {data}. Starting heavy work... ---"
        )
        output.print()
        output.print(f"--- [Worker] Starting Task ID: {short} with data: {data} ---")
        _, result = perform_heavy_task(data, task_id=task.task_id, duration_s=duration_s)
        output.print(f"--- [Worker] Task ID: {short} Finished. Result: {result} ---")
        output.print()
        return result

    consumer = BackgroundConsumer(
        handle, queue=queue, settings=settings, workers=workers, name="worker"
    )
    signals: queues.SimpleQueue[int] = queues.SimpleQueue()
    stopping = False

    def note(number: int, _frame: object) -> None:
        signals.put(number)
        if stopping and number == signal.SIGINT:
            raise KeyboardInterrupt

    try:
        with _handled_by(note):
            consumer.start()
            output.print(" [*] Background Worker is waiting for heavy tasks. To exit press CTRL+C")
            started.set()
            dead = _print_until_stopped(consumer, output, signals)
            try:
                stopping = True
                report = consumer.stop(timeout_s=10.0)
            except KeyboardInterrupt:
                report = consumer.stop(timeout_s=0.0)
        _print_dead(consumer, output, dead)
        output.print(f" [*] {report}")
    finally:
        output.close()
    if output.error:
        why = str(output.error.strerror)
        raise MqlabError(f"The worker cannot print, so it stopped. {report}", why=why)
    return 0


def _print_until_stopped(
    consumer: BackgroundConsumer, output: Output, signals: queues.SimpleQueue[int]
) -> int:
    """Print what the consumer reports until it is to stop; return how many dead were printed."""
    state, dead = "running", 0
    while state != "failed" and not output.error:
        with suppress(queues.Empty):
            signals.get(timeout=0.1)
            output.print(
                " [*] Stopping. A running task has 10 s to finish; Ctrl-C again stops at once."
            )
            return dead
        dead = _print_dead(consumer, output, dead)
        if consumer.status().state != state:
            state = consumer.status().state
            output.print(f" [*] The consumer is {state}.")
    return dead


def _print_dead(consumer: BackgroundConsumer, output: Output, printed: int) -> int:
    """Print the reasons of the dead messages after the first ``printed``; return their number."""
    dead = consumer.status().dead
    if dead > printed:
        reasons = [record.error for record in consumer.records if record.outcome == "dead"]
        for reason in reasons[printed - dead :]:
            output.print(f" [!] A message went to {consumer.dead_queue}: {reason}")
    return dead


@contextmanager
def _handled_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Have ``handler`` called for the signals that end a program, unless they are ignored here.

    nohup ignores SIGHUP, and a shell's background job ignores Ctrl-C.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, previous in before.items():
        if previous != signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
