"""A worker as a process, ``python -m mqlab work``: for a terminal, or for a dashboard.

In a terminal it prints what the walk-through's worker prints. With ``--events`` it writes lines of
JSON instead, and ``WorkerProcess`` is the other end of that pipe: it starts such a process, reads
what it does, and stops or kills it. The work itself is done by a BackgroundConsumer.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue as queues
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, replace
from itertools import takewhile
from typing import Any

from mqlab.consumer import BackgroundConsumer
from mqlab.records import TaskRecord
from mqlab.settings import Settings
from mqlab.walkthrough import perform_heavy_task

RECORDS_KEPT = 500


def run_worker_with_events(
    *, queue: str, settings: Settings | None = None, workers: int = 1, duration_s: float = 5.0
) -> int:
    """Work through ``queue`` and write a line of JSON for each event; return the exit status.

    ``state`` says what the consumer is doing and how many deliveries it has unacked; ``started``
    and ``settled`` come with the record of a task, ``stopped`` with the number done. A line on
    stdin means stop: the running task has 10 s to finish. When stdin ends, its parent is gone:
    the running task goes back to the queue at once. Raises what ``run_worker`` raises.
    """
    orders: queues.SimpleQueue[bytes] = queues.SimpleQueue()
    # os.read and not sys.stdin: a thread that holds the lock of stdin's buffer breaks Python's end.
    threading.Thread(target=lambda: orders.put(os.read(0, 100)), daemon=True).start()
    consumer = BackgroundConsumer(
        lambda task: perform_heavy_task(task.data, task_id=task.task_id, duration_s=duration_s)[1],
        queue=queue, settings=settings, workers=workers, name="worker",
    )  # fmt: skip
    consumer.start()
    told = _Told(consumer)
    order = None
    while order is None and consumer.status().state != "failed":
        told.tell()
        with contextlib.suppress(queues.Empty):
            order = orders.get(timeout=0.02)
    if order:
        _write("state", state="stopping", unacked=consumer.unacked)
    report = consumer.stop(timeout_s=10.0 if order else 0.0)
    told.tell()
    _write("stopped", done=report.done, returned=[*report.returned, *report.may_run_twice])
    return 0


class _Told:
    """What was told of a consumer so far: ``tell`` writes what is new."""

    def __init__(self, consumer: BackgroundConsumer) -> None:
        self._consumer = consumer
        self._state: tuple[str, int] | None = None
        self._started: list[TaskRecord] = []
        self._settled: TaskRecord | None = None

    def tell(self) -> None:
        consumer = self._consumer
        settled = list(takewhile(lambda r: r is not self._settled, reversed(consumer.records)))
        for record in reversed(settled):
            _write("settled", task=_short(record))
            self._settled = record
        working = [record for record in consumer.working if record.started_at is not None]
        for record in working:
            if not any(record is old for old in self._started):
                _write("started", task=_short(record))
        self._started = working
        state = consumer.status().state, consumer.unacked
        if state != self._state:
            self._state = state
            _write("state", state=state[0], unacked=state[1])


def _write(event: str, **more: Any) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


def _short(record: TaskRecord) -> dict[str, Any]:
    return asdict(replace(record, data=str(record.data)[:100], result=None))


class WorkerProcess:
    """A worker in a process of its own, which can be stopped, or killed as a crash would.

    ``state`` is starting, running, reconnecting, stopping, stopped, killed or failed. The process
    ends with this one, whatever ends it: its stdin is a pipe from here.
    """

    def __init__(self, name: str, *, queue: str, settings: Settings, task_s: float) -> None:
        self.name, self.expected_s, self.state = name, task_s, "starting"
        self.unacked = self.done = self.dead = 0
        self.last_words = ""
        self._killed = False
        self._lock = threading.Lock()  # guards the two below
        self._records: deque[TaskRecord] = deque(maxlen=RECORDS_KEPT)
        self._working: list[TaskRecord] = []
        self._process = subprocess.Popen(
            [
                *[sys.executable, "-m", "mqlab", "work", "--events"],
                *["--queue", queue, "--duration", str(task_s)],
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            # By the environment: everybody on this machine can read a command line.
            env=os.environ | {"AMQP_URL": settings.url}, encoding="utf-8", errors="replace",
            start_new_session=True,  # the interrupt of a kernel goes to all of its process group
        )  # fmt: skip
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"mqlab {name}", daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._reader.is_alive()

    @property
    def records(self) -> list[TaskRecord]:
        """The records of the newest tasks that are settled, oldest first."""
        with self._lock:
            return list(self._records)

    @property
    def working(self) -> list[TaskRecord]:
        """The records of the tasks that are being worked on now."""
        with self._lock:
            return list(self._working)

    def stop(self) -> None:
        """Have it finish the task that it works on, give back the others, and end. Returns now."""
        self._tell("stop\n")

    def kill(self) -> None:
        """End it as a crash would, kill -9: it cannot finish or give back anything."""
        self._killed = True
        self._process.kill()

    def close(self) -> None:
        """Have it give everything back and end. Returns at once; ``join`` waits."""
        self._tell("")

    def join(self, timeout_s: float) -> None:
        """Wait for its end, and kill it if that takes longer than ``timeout_s`` seconds."""
        self._reader.join(timeout_s)
        if self._reader.is_alive():
            self.kill()
            self._reader.join(5.0)

    def _tell(self, order: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was told before
            self._process.stdin.write(order)
            self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
                self._note(event)
            except (ValueError, TypeError, KeyError):  # an error in words, or half a line
                self.last_words = self.last_words or line.strip()
        status = self._process.wait()
        self._process.stdout.close()
        with self._lock:  # its connection ended with it, so the broker has taken these back
            for record in self._working:
                record.outcome, record.finished_at = "lost", time.time()
            self._records.extend(self._working)
            self._working = []
        self.unacked = 0
        killed = self._killed or status < 0  # or by somebody else, from a terminal
        self.state = "killed" if killed else "stopped" if status == 0 else "failed"

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] == "state":
            self.state, self.unacked = event["state"], event["unacked"]
        if event["event"] not in ("started", "settled"):
            return
        record = TaskRecord(**event["task"])
        with self._lock:
            self._working = [r for r in self._working if r.started_at != record.started_at]
            if event["event"] == "started":
                self._working.append(record)
                return
            self._records.append(record)
        self.done += record.outcome == "done"
        self.dead += record.outcome == "dead"
