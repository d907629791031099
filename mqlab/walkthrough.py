"""The functions of the original walk-through, which print its lines."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import time
import uuid
from dataclasses import dataclass, replace
from typing import Any

from mqlab.errors import TaskError, stops_with
from mqlab.producer import Producer
from mqlab.records import SendRecord
from mqlab.settings import Settings
from mqlab.task import QUEUE

RULE = "-" * 57


@dataclass(frozen=True, slots=True)
class SyncRecord:
    """A client that did the slow work itself: the task, and how many seconds it waited."""

    task_id: str
    data: Any
    wait_s: float
    result: str


def perform_heavy_task(
    task_data: Any, *, task_id: str | None = None, duration_s: float = 5.0
) -> tuple[str, str]:
    """Do the slow work: wait ``duration_s`` seconds and return ``(task_id, result)``.

    Without ``task_id``, the task gets a new id. In the main thread, prints the start, a dot each
    second, and the end. In any other thread it prints nothing, because a notebook would show that
    under whichever cell is running. Raises TaskError if ``duration_s`` is negative.
    """
    if not (math.isfinite(duration_s) and duration_s >= 0):
        raise TaskError(f"duration_s={duration_s!r} is not 0 or more seconds")
    task_id = task_id or str(uuid.uuid4())
    in_main_thread = threading.current_thread() is threading.main_thread()
    end = time.monotonic() + duration_s
    if in_main_thread:
        print(f"\n--- [Worker] Starting Task ID: {task_id[:8]} with data: {task_data} ---")
    if in_main_thread and duration_s > 2:
        for second in range(1, int(duration_s) + 1):
            time.sleep(max(0.0, end - duration_s + second - time.monotonic()))
            print(".", end="", flush=True)
        print()
    time.sleep(max(0.0, end - time.monotonic()))
    result = f"COMPLETED: Report generated for '{task_data}'"
    if in_main_thread:
        print(f"--- [Worker] Task ID: {task_id[:8]} Finished. Result: {result} ---\n")
    return task_id, result


@stops_with("You stopped the wait. Run the cell again.")
def run_synchronous_experiment(
    data: Any, *, duration_s: float = 5.0, quiet: bool = False
) -> SyncRecord:
    """Do the slow work in the client, and measure how long the client is blocked.

    Prints the walk-through's lines unless ``quiet``. The work takes ``duration_s`` seconds. Raises
    TaskError if that is negative.
    """
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        print(RULE)
        print(f"*** [Client] Request received for data: {data} ***")
        print("*** [Client] WARNING: Main thread will be blocked now! ***")
        start = time.perf_counter()
        task_id, result = perform_heavy_task(data, duration_s=duration_s)
        wait_s = time.perf_counter() - start
        print(f"\n*** [Client] Response received after waiting. Task ID: {task_id[:8]} ***")
        print(f"*** [Client] Total time waited: {wait_s:.2f} seconds ***")
        print(RULE)
    return SyncRecord(task_id, data, wait_s, result)


def send_task_to_queue(
    task_data: Any,
    *,
    queue: str = QUEUE,
    settings: Settings | None = None,
    timeout_s: float = 10.0,
    quiet: bool = False,
) -> SendRecord:
    """Send one task over its own connection, as in the walk-through, and time each step.

    Prints the walk-through's lines unless ``quiet``. The "immediate wait time" in them is only the
    publish; the record has the other steps. Raises the errors of Producer and ``Producer.send``.
    """
    started = time.perf_counter()
    with Producer(queue, settings=settings, timeout_s=timeout_s) as producer:
        opened_s = time.perf_counter() - started
        declare_s = producer.declare_s
        sent = producer.send(task_data)
        record = replace(sent, connect_s=opened_s - declare_s, declare_s=declare_s)
    if not quiet:
        print(f"*** [API Server/Producer] Task ID {record.task_id[:8]} published successfully! ***")
        print(f"*** [API Server/Producer] Immediate wait time: {record.publish_s:.4f} seconds ***")
        print("*** [API Server/Producer] Full computation runs in the background. ***\n")
    return record
