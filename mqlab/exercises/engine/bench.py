"""What a check works with: queues of its own, and a way to the broker on which it sees all.

``Bench`` gives an answer its broker, records what goes over the wire, and removes whatever is left.
What is right and wrong is up to the rules and the pages.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import pika
import pika.exceptions

from mqlab.connection import handshake, open_connections
from mqlab.consumer import running_consumers
from mqlab.exercises.engine.call import Call, call, end_threads
from mqlab.exercises.engine.exercise import Incorrect, NotChecked
from mqlab.exercises.engine.objects import Change, Snapshot
from mqlab.exercises.engine.watch import Watch
from mqlab.exercises.engine.wire import Method, Proxy, Recorder
from mqlab.settings import Settings

LEAVE_WITHIN_S = 2.0
"""Seconds after its return in which what an answer has closed or stopped must be gone."""
WATCHED_KINDS = ("queues", "exchanges", "bindings", "policies", "parameters")


class Bench:
    """One run's place of work: a context manager, which leaves nothing behind.

    ``settings`` leads straight to the broker, for the check; ``connect()`` opens a connection that
    is watched, for the learner. While it is open, ``AMQP_URL`` is the watched way, so that
    ``Producer(queue)`` and ``BackgroundConsumer(queue=queue)``, and other clients, use it too.
    Raises what ``handshake`` raises if there is no broker.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.from_env()
        if self.settings.tls:
            raise NotChecked(
                "The connection to the broker is encrypted (TLS), so a check cannot see what is "
                "sent on it.",
                "do the exercises with a broker on this machine: unset AMQP_URL, and `make lab`",
            )
        handshake(self.settings)
        self.wire = Recorder()
        self.shared: list[tuple[str, str]] = []
        """Names of threads: which one called on a connection, and which one was using it then."""
        self.thread_errors: list[BaseException] = []
        """What ended threads of the learner's while the bench was open."""
        self.on_method: Callable[[Method], object] = lambda _method: None
        """Called with each method before it is forwarded; an exception in it is lost."""
        self._queues: list[str] = []
        self._calls: list[Call] = []
        self._cut_at: int | None = None
        self._cut_timer = threading.Timer(0, self._cut)
        self._published = self._ended = 0
        self._before: Snapshot | None = None
        self._owner = threading.current_thread()
        self._straight: Any = None  # the connection of that thread
        self._watch = Watch(urlsplit(self.settings.management_url).port)

    def __enter__(self) -> Bench:
        self._proxy = Proxy(self.settings, self._on_frame)
        self._environ, self._folder = dict(os.environ), Path.cwd()
        os.environ["AMQP_URL"] = self._proxy.settings.url
        self._hook_before, threading.excepthook = threading.excepthook, self._note_thread_error
        self._threads_before = set(threading.enumerate())
        self._running_before = set(running_consumers())
        self._open_before = set(open_connections())
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        for name in set(os.environ) - set(self._environ):
            del os.environ[name]
        os.environ.update(self._environ)
        with contextlib.suppress(OSError):
            os.chdir(self._folder)
        left = self.end_all()
        threading.excepthook = self._hook_before
        if self._before is not None:
            added = [each for each in self.changes() if each.was is None]
            self._before.undo(self.settings, added, force=False)
        # If this fails, the broker is gone, and what was found without it counts for nothing.
        with self.channel() as channel:
            for queue in self._queues:
                channel.queue_delete(queue)
        self._straight.close()
        if left:
            still = f"{len(left)} of your threads cannot be ended and still run: restart the kernel"
            if isinstance(error, Incorrect):
                error.evidence += (still,)
            elif error is None:
                raise Incorrect("You left a thread running.", still)

    # ---- for the learner

    def connect(self) -> Any:
        """Open a pika BlockingConnection that is watched."""
        return _Watched(self._proxy.settings.parameters(name="exercise"), self.shared)

    def call(self, function: Any, *args: Any, **options: Any) -> Call:
        """``call``, with the watched way to the broker as what a function may wait for."""
        with contextlib.suppress(OSError, ValueError):  # only an administrator may read them
            self._before = Snapshot.take(self.settings)
        with self._watch:
            called = call(
                function,
                *args,
                touched=lambda: bool(self.wire.methods),
                unblock=self._close_all,
                **options,
            )
        self._calls.append(called)
        return called

    # ---- for the check

    def new_queue(self, arguments: dict[str, Any] | None = None, *, declare: bool = True) -> str:
        """Return the name of a queue that nobody else has; it and its dead queue go at the end."""
        queue = f"exercise-{uuid.uuid4().hex[:8]}"
        self._queues += [queue, f"{queue}.dead"]
        if declare:
            with self.channel() as channel:
                channel.queue_declare(queue, durable=True, arguments=arguments)
        return queue

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel straight to the broker, for the calling thread, which nobody watches."""
        with contextlib.ExitStack() as stack:
            if threading.current_thread() is not self._owner:
                connection = stack.enter_context(self._connect_straight())
            else:
                self._straight = connection = self._straight or self._connect_straight()
            try:
                yield stack.enter_context(connection.channel())
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code != 404:
                    raise
                raise Incorrect(
                    "The queue is not there.",
                    "Your function has deleted it, or has never declared it.",
                    evidence=[f"the broker: {error.reply_text}"],
                ) from error

    def _connect_straight(self) -> Any:
        # No heartbeats: nobody would answer them while an answer runs.
        return pika.BlockingConnection(self.settings.parameters(name="mqlab check", heartbeat=0))

    def cut_after(self, publishes: int) -> None:
        """Cut the connection after that many more messages: the last one arrives, its confirm not.

        What the client sends after it is lost with the connection, as on a real network. The next
        connection works.
        """
        self._cut_at = self._published + publishes

    @property
    def cuts(self) -> int:
        """How often connections were cut."""
        return self._proxy.cuts

    @property
    def connections(self) -> int:
        """How many connections the learner's code has opened so far."""
        return self._proxy.accepted

    def count(self, name: str, *, from_client: bool = True) -> int:
        """How often a method such as ``Basic.Ack`` was seen so far."""
        return len(self.wire.named(name, from_client=from_client))

    def consumers(self, queue: str) -> int:
        """How many consumers the broker has on the queue."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.consumer_count)

    def exists(self, queue: str) -> bool:
        """Whether the broker has the queue."""
        try:
            return self.consumers(queue) >= 0
        except Incorrect:
            return False

    def changes(self) -> list[Change]:
        """What the answer has changed on the broker, besides messages.

        Others may use the broker, too: an object counts if its name was on the wire, or if the
        answer could have changed it through the management API or by another program.
        """
        methods = [m.method for m in list(self.wire.methods) if m.name.startswith(("Q", "E"))]
        fields = ("queue", "exchange", "destination")
        names = {getattr(each, field, "") for each in methods for field in fields} - {""}
        by_other_means = self._watch.connected or self._watch.programs
        if self._before is None or not (names or by_other_means):
            return []
        found = [
            change
            for change in self._before.diff(Snapshot.take(self.settings))
            if change.kind in WATCHED_KINDS and change.virtual_host == self.settings.virtual_host
        ]
        if by_other_means:
            names |= {n for c in found for n in c.key[2:] if not n.startswith("exercise-")}
        return [change for change in found if names.intersection(change.key[2:])]

    def wait_until_left(self, what: Callable[[], Any]) -> Any:
        """Wait until ``what()`` is empty or 0; return what it still is after LEAVE_WITHIN_S."""
        end = monotonic() + LEAVE_WITHIN_S
        while (left := what()) and monotonic() < end:
            sleep(0.02)
        return left

    def open_connections(self) -> int:
        """How many connections of the answer are open."""
        return len(self._proxy.open)

    def running_threads(self) -> list[str]:
        """The names of the threads that the answer has started and that still run."""
        return [t.name for called in self._calls for t in called.threads if t.is_alive()]

    def end_all(self) -> list[threading.Thread]:
        """Close every connection and end every thread that the answers left; return what is left.

        What was not acknowledged goes back to its queue.
        """
        self._close_all()
        return end_threads([each for called in self._calls for each in called.threads])

    def take_all(self, queue: str) -> list[tuple[Any, bytes]]:
        """Take every message off the queue: properties and body each, in order.

        Waits until no more arrive, since what was sent without a confirm may still be under way.
        """
        self._settle(queue)
        taken = []
        with self.channel() as channel:
            while (message := channel.basic_get(queue, auto_ack=True))[0] is not None:
                taken.append(message[1:])
        return taken

    def _settle(self, queue: str) -> None:
        quiet_since, last, end = monotonic(), -1, monotonic() + 5
        with self.channel() as channel:
            while monotonic() < min(quiet_since + 0.3, end):
                found = channel.queue_declare(queue, passive=True).method.message_count
                if found != last:
                    quiet_since, last = monotonic(), found
                sleep(0.02)

    def _close_all(self) -> None:
        for consumer in set(running_consumers()) - self._running_before:
            with contextlib.suppress(Exception):
                consumer.stop(timeout_s=1.0)
        for opened in set(open_connections()) - self._open_before:
            opened.abandon("The check has closed this connection.")
        self._cut_timer.cancel()
        self._proxy.close()

    def _note_thread_error(self, args: threading.ExceptHookArgs) -> None:
        # A thread that an earlier check has ended may get its SystemExit now.
        if args.exc_value is not None and args.thread not in self._threads_before:
            self.thread_errors.append(args.exc_value)

    def _on_frame(self, connection: int, from_client: bool, frame: Any) -> bool:
        proxy, name = self._proxy, getattr(getattr(frame, "method", None), "NAME", "")
        if from_client and name == "Basic.Publish":
            if self._cut_at is not None and self._published >= self._cut_at:
                proxy.swallow = True
            self._published += 1
        reached = connection > self._ended and not (
            proxy.swallow or (proxy.swallow_answers and not from_client)
        )
        method = self.wire.note(connection, from_client, frame, reached)
        if method is not None:
            if self._published == self._cut_at and from_client and name == "Basic.Publish":
                proxy.swallow_answers = True
                # A client that asked for confirms waits for one now. Others go on: let them.
                wait_s = 0.1 if self.count("Confirm.Select") + self.count("Tx.Select") else 0.5
                self._cut_timer = threading.Timer(wait_s, self._cut)
                self._cut_timer.name, self._cut_timer.daemon = "broker proxy cut", True
                self._cut_timer.start()
            with contextlib.suppress(Exception):
                self.on_method(method)
        return reached

    def _cut(self) -> None:
        self._cut_at, self._ended = None, self._proxy.accepted
        self._proxy.cut()


class _Watched(pika.BlockingConnection):  # type: ignore[misc]
    """Notes a thread that calls on it while another one is in it, which pika does not allow."""

    def __init__(self, parameters: Any, shared: list[tuple[str, str]]) -> None:
        self._shared, self._inside = shared, list[threading.Thread]()
        super().__init__(parameters)

    def process_data_events(self, *args: Any, **options: Any) -> None:
        with self._entered():
            super().process_data_events(*args, **options)

    def _flush_output(self, *waiters: Callable[[], bool]) -> None:
        with self._entered():  # every call on a connection or its channels ends in here
            super()._flush_output(*waiters)

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        me = threading.current_thread()
        others = [each for each in list(self._inside) if each is not me]
        if others:
            self._shared.append((me.name, others[0].name))
        self._inside.append(me)
        try:
            yield
        finally:
            self._inside.remove(me)
