"""A worker for a terminal, ``mqlab work``: it prints the walk-through's lines."""

from __future__ import annotations

import queue as queues
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mqlab.consumer import BackgroundConsumer
from mqlab.errors import MqlabError
from mqlab.events import Event, subscribe
from mqlab.settings import Settings
from mqlab.task import Task
from mqlab.walkthrough import perform_heavy_task
from mqlab.workshop.output import Output

GREETING = " [*] Background Worker is waiting for heavy tasks. To exit press CTRL+C"
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
    wake: queues.SimpleQueue[None] = queues.SimpleQueue()
    output = Output(on_error=lambda: wake.put(None))
    stopping = False

    def handle(task: Task) -> str:
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

    def on_event(event: Event) -> None:
        if event.source is not consumer:
            return
        if event.kind == "opened":
            again = consumer.status().reconnected
            output.print(" [*] The worker is connected again." if again else GREETING)
        elif event.kind == "lost":
            output.print(f" [*] The worker is reconnecting. {event.detail}".rstrip())
        elif event.kind == "settled" and event.record.outcome == "dead":
            output.print(f" [!] A message went to {consumer.dead_queue}: {event.record.error}")
        elif event.kind in ("failed", "closed"):
            wake.put(None)

    def on_signal(number: int, _frame: object) -> None:
        wake.put(None)
        if stopping and number == signal.SIGINT:
            raise KeyboardInterrupt

    unsubscribe = subscribe(on_event)
    try:
        with _handled_by(on_signal):
            consumer.start()
            _wait_for(wake)
            output.print(
                " [*] Stopping. A running task has 10 s to finish; Ctrl-C again stops at once."
            )
            try:
                stopping = True
                report = consumer.stop(timeout_s=10.0)
            except KeyboardInterrupt:
                report = consumer.stop(timeout_s=0.0)
        output.print(f" [*] {report}")
    finally:
        unsubscribe()
        output.close()
    if output.error:
        why = str(output.error.strerror)
        raise MqlabError(f"The worker cannot print, so it stopped. {report}", why=why)
    return 0


def _wait_for(wake: queues.SimpleQueue[None]) -> None:
    while True:  # in steps: on Windows a signal does not end a wait
        with suppress(queues.Empty):
            return wake.get(timeout=0.5)


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
