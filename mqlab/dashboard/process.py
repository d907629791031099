"""A worker in a process of its own, and the pipe between it and the dashboard that started it.

``WorkerProcess`` is the dashboard's end: it starts the process, passes on its events, and stops or
kills it. ``run_worker_with_events``, which is ``python -m mqlab work --events``, is the other end:
a BackgroundConsumer whose events are written to stdout, one JSON object per line.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue as queues
import reprlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from mqlab.consumer import BackgroundConsumer
from mqlab.events import Event, subscribe
from mqlab.records import TaskRecord
from mqlab.settings import Settings
from mqlab.walkthrough import perform_heavy_task

STOP_S = 10.0
"""Seconds that a running task has to finish after a stop."""

# ---- in the worker's process


def run_worker_with_events(
    *, queue: str, settings: Settings | None = None, workers: int = 1, duration_s: float = 5.0
) -> int:
    """Work through ``queue``, write each event as a line of JSON, and return the exit status.

    A line on stdin means stop: the running task has 10 s to finish. The end of stdin means that
    the dashboard has gone: the process exits at once, and the broker requeues what it held.
    Raises what ``BackgroundConsumer.start`` raises.
    """
    news: queues.SimpleQueue[Event | bytes] = queues.SimpleQueue()
    threading.Thread(target=_read_orders, args=(news.put,), daemon=True).start()
    subscribe(news.put)  # this process has one consumer, so every event is that consumer's
    consumer = BackgroundConsumer(
        lambda task: perform_heavy_task(task.data, task_id=task.task_id, duration_s=duration_s)[1],
        queue=queue, settings=settings, workers=workers, name="worker",
    )  # fmt: skip
    consumer.start()
    while isinstance(item := news.get(), Event):
        _write(item, consumer)
        if item.kind == "failed":
            break
    consumer.stop(STOP_S)
    with contextlib.suppress(queues.Empty):
        while True:
            if isinstance(item := news.get_nowait(), Event):
                _write(item, consumer)
    return 0


def _read_orders(put: Callable[[bytes], object]) -> None:
    # os.read and not sys.stdin: a thread that holds the lock of stdin's buffer aborts Python's exit
    while order := os.read(0, 100):
        put(order)
    # Nothing that the main thread may be waiting for can delay this: closing sockets is the
    # system's job, and stdout is a pipe that nobody reads any more.
    os._exit(1)


def _write(event: Event, consumer: BackgroundConsumer) -> None:
    record = event.record if isinstance(event.record, TaskRecord) else None
    line = {
        "kind": event.kind,
        "at": event.at,
        "detail": event.detail,
        "unacked": consumer.unacked,
        "record": asdict(shorten(record)) if record else None,
    }
    print(json.dumps(line), flush=True)


def shorten(record: TaskRecord) -> TaskRecord:
    """Copy a record without what may be large: its result, and all but the start of its data."""
    data = record.data[:100] if isinstance(record.data, str) else reprlib.repr(record.data)
    return replace(record, data=data, result=None)


# ---- in the dashboard's process


class WorkerProcess:
    """A worker in a process of its own, which can be stopped, or killed as a crash would.

    ``on_event`` is called with its events, in the thread that reads the pipe. ``state`` is
    starting, running, reconnecting, stopping, stopped, killed or failed; ``unacked`` is how many
    deliveries it holds, ``counts`` how many it has settled, by outcome. The process exits when this
    process does, however that ends: its stdin is a pipe from here.
    """

    def __init__(
        self,
        name: str,
        *,
        queue: str,
        settings: Settings,
        task_s: float,
        on_event: Callable[[Event], object],
    ) -> None:
        self.name, self.queue, self.expected_s, self.state = name, queue, task_s, "starting"
        self.unacked, self.counts = 0, Counter[str]()
        self.last_words = ""
        self._on_event = on_event
        self._killed = False
        self._working: dict[float | None, TaskRecord] = {}  # by start; only the reader uses it
        self._process = subprocess.Popen(
            [
                *[sys.executable, "-m", "mqlab", "work", "--events"],
                *["--queue", queue, "--duration", str(task_s)],
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            # In the environment, because every user of this machine can read a command line.
            env=os.environ | {"AMQP_URL": settings.url}, encoding="utf-8", errors="replace",
            start_new_session=True,  # a kernel's interrupt goes to its whole process group
        )  # fmt: skip
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"mqlab {name}", daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._reader.is_alive()

    def stop(self) -> None:
        """Ask it to finish its task, return the others to the queue, and exit. Does not wait."""
        self.state = "stopping"
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has exited already
            self._process.stdin.write("stop\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End it as a crash would (kill -9): it can neither finish nor return anything."""
        self._killed = True
        self._process.kill()

    def close(self) -> None:
        """Have it exit at once; the broker requeues what it held. Does not wait: ``join`` does."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()

    def join(self, timeout_s: float) -> None:
        """Wait until it has exited, and kill it if that takes longer than ``timeout_s`` seconds."""
        self._reader.join(timeout_s)
        if self._reader.is_alive():
            self.kill()
            self._reader.join(5.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._note(json.loads(line))
            except (ValueError, TypeError, KeyError):  # an error message, or half a line
                self.last_words = self.last_words or line.strip()
        status = self._process.wait()
        self._process.stdout.close()
        self.close()
        # Its connection ended with it, so the broker requeues what it was working on.
        killed = self._killed or status < 0  # or from a terminal
        self.state = "killed" if killed else "stopped" if status == 0 else "failed"
        for record in self._working.values():
            record.outcome, record.finished_at = "lost", time.time()
            self._emit("settled", record)
        self._emit("closed" if status == 0 else "failed", detail=self.last_words)

    def _note(self, line: dict[str, Any]) -> None:
        kind, record = line["kind"], TaskRecord(**line["record"]) if line["record"] else None
        self.unacked = line["unacked"]
        if kind in ("opened", "lost") and self.state != "stopping":
            self.state = "running" if kind == "opened" else "reconnecting"
        if record and kind == "started":
            self._working[record.started_at] = record
        elif record and kind == "settled":
            self._working.pop(record.started_at, None)
        if kind in ("failed", "closed"):  # the end of the process has the last word
            self.last_words = self.last_words or line["detail"]
        else:
            self._emit(kind, record, line["detail"], line["at"])

    def _emit(
        self,
        kind: Any,
        record: TaskRecord | None = None,
        detail: str = "",
        at: float | None = None,
    ) -> None:
        if record and kind == "settled":
            self.counts[record.outcome or ""] += 1
        self._on_event(Event(kind, self, self.queue, record, detail, at or time.time()))
