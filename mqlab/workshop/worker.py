"""A worker for a terminal, ``python -m mqlab work``: it prints the walk-through's lines."""

from __future__ import annotations

import queue as queues
import signal
import time

from mqlab.consumer import BackgroundConsumer
from mqlab.settings import Settings
from mqlab.task import Task
from mqlab.walkthrough import perform_heavy_task


def run_worker(
    *, queue: str, settings: Settings | None = None, workers: int = 1, duration_s: float = 5.0
) -> int:
    """Work through ``queue`` until Ctrl-C or SIGTERM; return the exit status.

    A task that is running then has 10 s to finish; a second Ctrl-C gives it back at once.
    Raises what ``BackgroundConsumer.start`` raises, and ConsumerError if the consumer fails.
    """
    lines: queues.SimpleQueue[str] = queues.SimpleQueue()

    def handle(task: Task) -> str:
        short = task.task_id[:8]
        lines.put(
            f"--- [Background Worker] Received task for: {task.data}. Starting heavy work... ---"
        )
        lines.put(f"\n--- [Worker] Starting Task ID: {short} with data: {task.data} ---")
        _, result = perform_heavy_task(task.data, task_id=task.task_id, duration_s=duration_s)
        lines.put(f"--- [Worker] Task ID: {short} Finished. Result: {result} ---\n")
        return result

    consumer = BackgroundConsumer(
        handle, queue=queue, settings=settings, workers=workers, name="worker"
    )
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    dead = 0
    try:
        consumer.start()
        print(" [*] Background Worker is waiting for heavy tasks. To exit press CTRL+C", flush=True)
        state = "running"
        while state != "failed":
            time.sleep(0.1)
            dead = _print_news(consumer, lines, dead)
            if consumer.status().state != state:
                state = consumer.status().state
                print(f" [*] The consumer is {state}.", flush=True)
    except KeyboardInterrupt:
        print(" [*] Stopping. A running task has 10 s to finish; Ctrl-C again stops at once.")
    try:
        report = consumer.stop(timeout_s=10.0)
    except KeyboardInterrupt:
        report = consumer.stop(timeout_s=0.0)
    finally:
        signal.signal(signal.SIGTERM, previous)
    _print_news(consumer, lines, dead)
    print(f" [*] {report}", flush=True)
    return 0


def _print_news(consumer: BackgroundConsumer, lines: queues.SimpleQueue[str], dead: int) -> int:
    """Print what came up since ``dead`` messages were dead; return how many are dead now."""
    while not lines.empty():
        print(lines.get(), flush=True)
    now_dead = consumer.status().dead
    if now_dead > dead:
        reasons = [record.error for record in consumer.records if record.outcome == "dead"]
        for reason in reasons[dead - now_dead :]:
            print(f" [!] A message went to {consumer.dead_queue}: {reason}", flush=True)
    return now_dead
