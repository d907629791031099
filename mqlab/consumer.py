"""A consumer in the background: one I/O thread that owns the channel, and worker threads.

The I/O thread receives deliveries and sends acks (``_inbox``); workers do the work and do not use
the channel. So heartbeats are sent however long a task takes, and a task is acknowledged only after
its work, by the thread that owns the channel. A message that cannot be understood, or keeps
failing, is moved to the dead-letter queue. A task that takes longer than the broker's ack time-out
(30 minutes by default) is delivered again.

See RabbitMQ's guides on consumer acknowledgements and on reliability.
"""

from __future__ import annotations

import contextlib
import queue as queues
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from mqlab import events
from mqlab._inbox import Delivery, Inbox, Waiter, size_of
from mqlab.arguments import (
    check_count,
    check_handler,
    check_queue,
    check_result,
    check_seconds,
)
from mqlab.connection import Connection, open_connections
from mqlab.errors import ConsumerError, TaskError, WaitTimeout, describe, stops_with
from mqlab.records import ConsumerState, ConsumerStatus, StopReport, TaskRecord
from mqlab.settings import HEARTBEAT_S, Settings
from mqlab.task import QUEUE, Task
from mqlab.walkthrough import perform_heavy_task

Handler = Callable[[Task], Any]
STATES: dict[str, ConsumerState] = {
    "new": "new",
    "connecting": "reconnecting",
    "ready": "running",
    "closed": "stopped",
    "failed": "failed",
}


class BackgroundConsumer:
    """Works through a queue in the background: ``start``, ``wait``, ``stop``.

    ``handler(task)`` does the work in one of ``workers`` threads and returns a result; the default
    is ``perform_heavy_task``. ``prefetch`` (default: ``workers``) limits the unacknowledged
    deliveries: a higher limit is faster for short tasks, but takes tasks from other consumers.
    Tasks that wait for another attempt do not count; while they make room, it can briefly be twice
    as high.

    A task whose handler raises is attempted up to ``max_attempts`` times. The first pause lasts
    ``retry_delay_s`` seconds, and each further one twice as long, up to an hour. After the last
    attempt, the task goes to the queue ``<queue>.dead`` with the reason in its headers, as does a
    message that is not a task. With ``declare=False`` the queue is used as it is, whatever its type
    and arguments. Raises SettingsError for an argument that is not valid.

    Starting another consumer with the same ``name`` and ``queue`` in one process replaces the
    first. A context manager: leaving it stops the consumer.
    """

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        queue: str = QUEUE,
        settings: Settings | None = None,
        workers: int = 1,
        prefetch: int | None = None,
        name: str = "consumer",
        max_attempts: int = 3,
        retry_delay_s: float = 1.0,
        declare: bool = True,
        heartbeat_s: int = HEARTBEAT_S,
    ) -> None:
        check_count("workers", workers, 1, 10_000)
        prefetch = workers if prefetch is None else check_count("prefetch", prefetch, 1, 65535)
        check_count("heartbeat_s", heartbeat_s, 0, 65535)
        self.queue, self.name = check_queue(queue, suffix=".dead", declare=declare), str(name)
        self._settings = settings or Settings.from_env()
        self._handler = check_handler(handler or _do_heavy_task)
        self._inbox = Inbox(
            queue,
            declare=declare,
            prefetch=prefetch,
            max_attempts=check_count("max_attempts", max_attempts, 1, 1_000_000),
            retry_delay_s=check_seconds("retry_delay_s", retry_delay_s),
            start_worker=self._make_worker,
            workers=workers,
        )
        self.dead_queue = self._inbox.dead_queue
        self._connection = Connection(
            self._settings,
            name=f"mqlab {name} of {queue}",
            on_channel=self._inbox.set_up,
            on_lost=self._inbox.forget,
            on_ended=self._inbox.end,
            queue=queue,
            owner=self,
            heartbeat_s=heartbeat_s,
        )
        self._inbox.bind(self._connection)
        self._waited_for = 0

    def __enter__(self) -> BackgroundConsumer:
        return self.start() if self._connection.state == "new" else self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        try:
            report = self.stop(timeout_s=10.0 if kind is None else 2.0)
        except BaseException:  # an interrupt: nobody will call stop again
            self._connection.close_soon()
            raise
        if report.returned or report.may_run_twice:
            print(report)

    def __repr__(self) -> str:
        status = self.status()
        return f"<consumer of {self.queue!r}: {status.state}, {status.done} tasks done>"

    def start(self, timeout_s: float = 10.0) -> BackgroundConsumer:
        """Connect, declare the queue, subscribe, and return; the work runs in the background.

        Raises ConnectError, AccessRefused, QueueRefused or QueueMismatch within ``timeout_s``
        seconds, and ConsumerError if this consumer was started before.
        """
        bound_s = check_seconds("timeout_s", timeout_s)
        if self._connection.state != "new":
            raise ConsumerError(
                "This consumer was started before.",
                fix="create a new one: BackgroundConsumer(...)",
            )
        self._replace_previous()
        try:
            self._connection.open(bound_s)  # the I/O thread subscribes and starts the workers
        except BaseException:
            self._connection.close_soon()
            raise
        return self

    @stops_with("You stopped waiting. The consumer is still running: wait again, or stop it.")
    def wait(self, count: int, timeout_s: float, *, show_progress: bool = True) -> list[TaskRecord]:
        """Wait until ``count`` tasks are done or dead; return their records, oldest first.

        Each task counts for one wait only, so "send 3, wait for 3" can be repeated. Prints
        ``1 of 3 done`` and so on, and how many of them went to the dead-letter queue. Only the
        newest 5,000 records of tasks that were settled before the call are kept; if some are
        missing, a line shows how many are left. Raises WaitTimeout after ``timeout_s`` seconds
        (nothing is lost: call it again to go on waiting), and ConsumerError if the consumer fails
        or is stopped meanwhile.
        """
        check_count("count", count, 0, 10**9)
        deadline = time.monotonic() + check_seconds("timeout_s", timeout_s)
        inbox, waiter, first = self._inbox, Waiter(), self._waited_for
        inbox.waiters.append(weakref.ref(waiter))
        settled = dict(list(inbox.settled))
        step = max(1, count // 10)
        for goal in (*range(step, count, step), count):
            while (ready := inbox.count_settled() - first) < goal:
                self._check_wait(ready, count, timeout_s, deadline)
                with contextlib.suppress(queues.Empty):
                    waiter.bell.get(timeout=max(0.0, deadline - time.monotonic()))
            if show_progress:
                settled |= waiter.settled
                outcomes = [
                    settled[n].outcome for n in range(first + 1, first + goal + 1) if n in settled
                ]
                dead = outcomes.count("dead")
                print(f"{goal} of {count} done" + f", {dead} of them dead" * bool(dead))
        settled |= waiter.settled
        records = [settled[n] for n in range(first + 1, first + count + 1) if n in settled]
        if len(records) < count:
            print(f"Of {count} records only the newest {len(records)} are still kept.")
        self._waited_for = first + count
        return records

    def stop(self, timeout_s: float = 10.0) -> StopReport:
        """Start no more tasks, let running ones finish within ``timeout_s`` seconds, and close.

        Tasks that are not done by then go back to the queue, and the report lists them. Raises
        ConsumerError if the consumer had failed before. A second call does no harm.
        """
        bound_s = check_seconds("timeout_s", timeout_s)
        connection, inbox = self._connection, self._inbox
        if connection.state == "new":
            return StopReport(0, (), ())
        if not connection.has_ended:
            # The I/O thread does all the work, so an interrupt here does no harm.
            connection.run(partial(inbox.stop, bound_s))
            if not connection.join(bound_s + 2.0):
                connection.close(timeout_s=1.0)
        report = inbox.report or StopReport(inbox.counts["done"], (), ())
        if connection.error is not None:
            raise self._failure(f"The consumer had already failed when it was stopped. {report}")
        return report

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop without returning a report. The counterpart of ``Producer.close``."""
        self.stop(timeout_s)

    def status(self) -> ConsumerStatus:
        """Return what the consumer is doing now. Cheap, and never blocks."""
        connection, inbox = self._connection, self._inbox
        state = "stopped" if inbox.stopping and not connection.error else STATES[connection.state]
        counts = inbox.counts
        return ConsumerStatus(
            state=state,
            queue=self.queue,
            workers=inbox.workers,
            prefetched=inbox.todo.qsize() if state != "stopped" else 0,
            working=len(self.working),
            done=counts["done"],
            retried=counts["retry"],
            dead=counts["dead"],
            lost=counts["lost"],
            redelivered=counts["redelivered"],
            reconnected=max(0, connection.opened - 1),
            trouble=inbox.trouble or connection.trouble,
            error=connection.error,
        )

    @property
    def records(self) -> list[TaskRecord]:
        """The records of the newest 5,000 settled deliveries, oldest first."""
        return list(self._inbox.records)

    @property
    def working(self) -> list[TaskRecord]:
        """The records of the tasks that are running now."""
        return [delivery.record for delivery in self._inbox.working if delivery is not None]

    @property
    def unacked(self) -> int:
        """How many deliveries are not acknowledged yet."""
        return self._inbox.unacked

    def _check_wait(self, ready: int, count: int, timeout_s: float, deadline: float) -> None:
        if self._inbox.stopping or self._connection.state in ("new", "closed", "failed"):
            raise self._failure(f"The consumer ended with {ready} of {count} tasks done.")
        if time.monotonic() >= deadline:
            raise WaitTimeout(
                f"{ready} of {count} tasks were done within {timeout_s:g} s.",
                why=self.status().trouble or self._guess_why(),
                fix="wait again, or check status()",
            )

    def _guess_why(self) -> str:
        """Return a likely reason for missing tasks, from the workers or the broker."""
        working = len(self.working)
        if working:
            return f"{working} more {'is' if working == 1 else 'are'} being worked on"
        answer = queues.SimpleQueue[tuple[int, int]]()
        self._connection.run(partial(self._inbox.ask_depth, answer))
        try:
            _ready, consumers = answer.get(timeout=1.0)
        except queues.Empty:
            return "they take longer, or fewer were sent"
        if consumers > 1:
            return (
                f"{consumers - 1} other consumer{'s' * (consumers > 2)} of {self.queue!r}, in "
                "another kernel or terminal, took the rest"
            )
        return "fewer were sent, or a consumer that has since stopped took them"

    def _replace_previous(self) -> None:
        for previous in running_consumers(self.queue, self._settings):
            if previous.name == self.name and previous is not self:
                report = previous.stop(timeout_s=6.0)
                print(f"Replaced the consumer that was running on {self.queue!r}. {report}")

    def _failure(self, what: str) -> ConsumerError:
        error = self._connection.error
        failure = ConsumerError(
            what,
            why=error.what + (f" {error.why}" if error.why else "") if error
            else "it was stopped, or never started",
            fix=(error.fix if error else "")
            or "start a new one: BackgroundConsumer(...).start()",
        )  # fmt: skip
        failure.__cause__ = error
        return failure

    # ---- the worker threads

    def _make_worker(self, number: int) -> threading.Thread:
        name = f"mqlab worker-{number + 1} of {self.queue}"
        return threading.Thread(target=self._work, args=(number,), name=name, daemon=True)

    def _work(self, number: int) -> None:
        inbox, connection = self._inbox, self._connection
        while (delivery := inbox.todo.get()) is not None:
            inbox.working[number] = delivery
            # Checked after the line above, so that stop() cannot miss a task that is starting.
            go_on = not inbox.stopping
            is_mine = delivery.channel is connection.channel  # or it is back in the queue
            if go_on and is_mine:
                self._process(delivery, f"worker-{number + 1}")
                inbox.finish(delivery)
            inbox.working[number] = None
            inbox.ask_for_flush()
            if not go_on:
                return

    def _process(self, delivery: Delivery, worker: str) -> None:
        record = delivery.record
        record.worker, record.started_at = worker, time.time()
        try:
            task = Task.from_json(delivery.body)
        except TaskError as error:
            record.outcome, record.error = "dead", f"not a task: {error}"
        else:
            record.task_id, record.data, record.sent_at = task.task_id, task.data, task.timestamp
            if events.are_wanted():
                events.publish("started", self, self.queue, record)
            try:
                record.result = check_result(self._handler(task))
                delivery.size += size_of(record.result)  # here, because it may call the user's code
                record.outcome = "done"
            except BaseException as error:  # even SystemExit: a task must not end its worker
                record.error = describe(error)
                record.outcome = "retry" if record.attempt < self._inbox.max_attempts else "dead"
        record.finished_at = time.time()


def running_consumers(
    queue: str | None = None, settings: Settings | None = None
) -> list[BackgroundConsumer]:
    """Return the running consumers of this process, of any queue and broker unless given."""
    found = []
    for connection in open_connections():
        owner = connection.owner
        if not isinstance(owner, BackgroundConsumer) or owner.status().state == "stopped":
            continue
        place = (connection.settings.address, connection.settings.virtual_host)
        is_there = settings is None or place == (settings.address, settings.virtual_host)
        if is_there and queue in (None, owner.queue):
            found.append(owner)
    return found


def _do_heavy_task(task: Task) -> str:
    return perform_heavy_task(task.data, task_id=task.task_id)[1]
