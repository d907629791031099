"""What a check works with: queues of its own, a watched way to the broker, and a bounded call.

``call`` runs a learner's function, and survives what it does; ``Bench`` gives it a broker, looks
at what was said on the wire, and takes away whatever is left. What is right is left to the pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pika
import pika.exceptions

from mqlab.connection import handshake, open_connections
from mqlab.consumer import running_consumers
from mqlab.exercises.engine.exercise import Incorrect, NotAttempted, NotChecked
from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings

RETURN_WITHIN_S = 20.0
END_WITHIN_S = 2.0
"""Seconds that a thread has to end when its connection is gone, and again when it is told to."""


class DidNotReturn(Incorrect):
    """Raised by ``call``: the time was up. A check that knows why says it in better words."""


@dataclass
class Call:
    """One call of a learner's function: what it returned or raised, and what it left."""

    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    threads: list[threading.Thread] = field(default_factory=list)

    def raise_if_failed(self, look_at: str = "") -> None:
        """Raise Incorrect if the function raised, NotChecked if it uses a name that is not here."""
        if self.error is None:
            return
        error = self.error
        if type(error) is NameError:
            raise NotChecked(
                f"your function uses a name that this kernel does not know: {error}",
                "after a restart of the kernel the cells above run first: menu Run, Run All Above "
                "Selected Cell. If that does not help, the name is misspelt",
            )
        raise Incorrect(
            f"Your function raised {type(error).__name__}.",
            f"{type(error).__name__}: {error}".rstrip(": "),
            evidence=[f"it happened {place}" for place in _places(error.__traceback__)[-1:]],
            look_at=look_at,
        )


def call(
    function: Any,
    *args: Any,
    timeout_s: float = RETURN_WITHIN_S,
    touched: Callable[[], bool] = lambda: False,
    unblock: Callable[[], object] = lambda: None,
    look_at: str = "",
) -> Call:
    """Call a learner's function in a thread of its own, and wait at most ``timeout_s`` seconds.

    Raises NotAttempted if it did nothing and returned nothing (``touched`` tells whether it did),
    NotChecked if it cannot be called like this, and DidNotReturn if it does not return. Before
    that, ``unblock`` is called, to end what the function may be waiting for.
    """
    _check_callable(function, args)
    outcome = Call()
    before = set(threading.enumerate())

    def run() -> None:
        started = time.perf_counter()
        try:
            outcome.value = function(*args)
        except BaseException as error:
            outcome.error = error
        outcome.seconds = time.perf_counter() - started

    def new_threads() -> list[threading.Thread]:
        # One that is just being started is not alive yet: pika has such, to look names up.
        threads = [each for each in threading.enumerate() if each not in before and each.is_alive()]
        return [each for each in threads if not each.name.startswith("broker proxy")]

    thread = threading.Thread(target=run, name="your function", daemon=True)
    thread.start()
    try:
        end = time.monotonic() + timeout_s
        while thread.is_alive() and time.monotonic() < end:
            thread.join(0.1)  # an interrupt may have to wait until a join is over
    except BaseException:  # the learner has interrupted the check
        unblock()
        end_threads(new_threads())
        raise
    if thread.is_alive():
        place = _place_of(thread)
        unblock()
        left = end_threads(new_threads())
        raise DidNotReturn(
            f"Your function did not return within {timeout_s:g} s.",
            "It was stopped. A function that waits needs a bound, and a way to be told to end."
            if not left
            else "It cannot be stopped from outside and still runs: restart the kernel "
            "(menu Kernel) to be rid of it.",
            evidence=[f"when the time was up it was {place}"] if place else [],
            look_at=look_at,
        )
    outcome.threads = [each for each in new_threads() if each is not thread]
    nothing = outcome.value is None or outcome.value is Ellipsis
    begun = outcome.error is not None and not isinstance(outcome.error, NotImplementedError)
    if nothing and not begun and not touched():
        raise NotAttempted
    return outcome


def end_threads(threads: list[threading.Thread]) -> list[threading.Thread]:
    """Have threads end: wait for them, then raise SystemExit in them. Return those that go on."""
    for attempt in range(3):
        deadline = time.monotonic() + END_WITHIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        threads = [thread for thread in threads if thread.is_alive()]
        if not threads or attempt == 2:
            break
        for thread in threads:  # it arrives when the thread runs Python code again
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
            )
    return threads


@dataclass(frozen=True)
class Said:
    """One AMQP method that was seen on the wire, such as ``Basic.Publish``; time in seconds.

    ``properties`` are those of the message that came with it; None where there is none.
    """

    at: float
    connection: int
    channel: int
    from_client: bool
    method: Any
    properties: Any = None

    @property
    def name(self) -> str:
        """The method's name in AMQP 0-9-1."""
        return str(self.method.NAME)


class Bench:
    """One check's place of work: a context manager, which leaves nothing behind.

    ``settings`` leads straight to the broker, for the check; ``connect()`` opens a connection that
    is watched, for the learner. While it is open ``AMQP_URL`` is the watched way, so that
    ``Producer(queue)`` and ``BackgroundConsumer(queue=queue)`` take it too. Raises what
    ``handshake`` raises if there is no broker.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.from_env()
        if self.settings.tls:
            raise NotChecked(
                "The broker is reached through TLS, where a check cannot see what is said.",
                "do the exercises with a broker on this machine: unset AMQP_URL, and `make lab`",
            )
        handshake(self.settings)
        self.said: list[Said] = []
        self.shared: list[tuple[str, str]] = []
        """Names of threads: who called on a connection, and whose it was at that moment."""
        self.thread_errors: list[BaseException] = []
        """What ended threads of the learner's, while the bench was open."""
        self._queues: list[str] = []
        self._cut_at: int | None = None
        self._cut_timer = threading.Timer(0, self._cut)
        self._published = 0
        self._calls: list[Call] = []

    def __enter__(self) -> Bench:
        self._proxy = Proxy(self.settings, self._on_frame)
        self._url_before = os.environ.get("AMQP_URL")
        os.environ["AMQP_URL"] = self._proxy.settings.url
        self._hook_before, threading.excepthook = threading.excepthook, self._note_thread_error
        self._running_before = set(running_consumers())
        self._open_before = set(open_connections())
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        os.environ.pop("AMQP_URL", None)
        if self._url_before is not None:
            os.environ["AMQP_URL"] = self._url_before
        left = self.end_all()
        threading.excepthook = self._hook_before
        # If this fails, the broker is gone, and what was found without it counts for nothing.
        with self.channel() as channel:
            for queue in self._queues:
                channel.queue_delete(queue)
        if left:
            told = f"{len(left)} of your threads cannot be ended and still run: restart the kernel"
            if isinstance(error, Incorrect):
                error.evidence += (told,)
            elif error is None:
                raise Incorrect("Your function left threads behind.", told)

    # ---- for the learner

    def connect(self) -> Any:
        """Open a pika BlockingConnection that is watched."""
        return _Watched(self._proxy.settings.parameters(name="exercise"), self.shared)

    def call(self, function: Any, *args: Any, **options: Any) -> Call:
        """``call``, with the watched way to the broker as what a function may wait for."""
        called = call(
            function, *args, touched=lambda: bool(self.said), unblock=self._close_all, **options
        )
        self._calls.append(called)
        return called

    # ---- for the check

    def new_queue(self, *, declare: bool = True) -> str:
        """Give the name of a queue that nobody else has; it and its dead queue go at the end."""
        queue = f"exercise-{uuid.uuid4().hex[:8]}"
        self._queues += [queue, f"{queue}.dead"]
        if declare:
            with self.channel() as channel:
                channel.queue_declare(queue, durable=True)
        return queue

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel straight to the broker, on a connection of its own that nobody watches."""
        # Not one that is kept: it would die of missing heartbeats while an answer runs.
        with pika.BlockingConnection(self.settings.parameters(name="mqlab check")) as connection:
            try:
                yield connection.channel()
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code != 404:
                    raise
                raise Incorrect(
                    "The queue is not there.",
                    "Your function has deleted it, or has never declared it.",
                    evidence=[f"the broker: {error.reply_text}"],
                ) from error

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
        """How often a method such as ``Basic.Ack`` was said so far."""
        return sum(said.name == name and said.from_client is from_client for said in self.said)

    def consumers(self, queue: str) -> int:
        """How many consumers the broker has on the queue."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.consumer_count)

    def end_all(self) -> list[threading.Thread]:
        """Close every connection and end every thread that the answers left; return who goes on.

        What was not acknowledged goes back to its queue.
        """
        self._close_all()
        return end_threads([thread for called in self._calls for thread in called.threads])

    def _close_all(self) -> None:
        for consumer in set(running_consumers()) - self._running_before:
            with contextlib.suppress(Exception):
                consumer.stop(timeout_s=1.0)
        for opened in set(open_connections()) - self._open_before:
            opened.abandon("The check has closed this connection.")
        self._cut_timer.cancel()
        self._proxy.close()

    def take_all(self, queue: str) -> list[tuple[Any, str]]:
        """Take every message off the queue: (properties, body as text) each, in order.

        Waits until no more arrive, since what was sent without a confirm may still be under way.
        """
        self._settle(queue)
        taken = []
        with self.channel() as channel:
            while (message := channel.basic_get(queue, auto_ack=True))[0] is not None:
                taken.append((message[1], message[2].decode("utf-8", "replace")))
        return taken

    def _settle(self, queue: str) -> None:
        quiet_since, last, end = time.monotonic(), -1, time.monotonic() + 5
        with self.channel() as channel:
            while time.monotonic() < min(quiet_since + 0.3, end):
                found = channel.queue_declare(queue, passive=True).method.message_count
                if found != last:
                    quiet_since, last = time.monotonic(), found
                time.sleep(0.02)

    def _note_thread_error(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            self.thread_errors.append(args.exc_value)

    def _on_frame(self, connection: int, from_client: bool, frame: Any) -> None:
        method = getattr(frame, "method", None)
        if isinstance(frame, pika.frame.Header):  # it follows its method on the same channel
            self._note_properties(connection, from_client, frame)
        if method is None:
            return
        is_publish = from_client and method.NAME == "Basic.Publish"
        if is_publish and self._cut_at is not None and self._published >= self._cut_at:
            self._proxy.swallow = True
        self._published += is_publish
        if is_publish and self._published == self._cut_at:
            self._proxy.swallow_answers = True
            # Who asked for confirms waits for one now. Who did not goes on: it has time to.
            wait_s = 0.1 if self.count("Confirm.Select") else 0.5
            self._cut_timer = threading.Timer(wait_s, self._cut)
            self._cut_timer.name, self._cut_timer.daemon = "broker proxy cut", True
            self._cut_timer.start()
        channel = frame.channel_number
        self.said.append(Said(time.perf_counter(), connection, channel, from_client, method))

    def _note_properties(self, connection: int, from_client: bool, header: Any) -> None:
        where = (connection, header.channel_number, from_client)
        for place in range(len(self.said) - 1, -1, -1):
            said = self.said[place]
            if (said.connection, said.channel, said.from_client) == where:
                self.said[place] = replace(said, properties=header.properties)
                return

    def _cut(self) -> None:
        self._cut_at = None
        self._proxy.cut()


class _Watched(pika.BlockingConnection):  # type: ignore[misc]
    """Notes who calls on it while another thread is in it, which pika does not allow."""

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


def some(items: Iterable[str], limit: int = 3) -> str:
    """Name the first few: ``a, b, c and 4 more``."""
    names = sorted(items)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _check_callable(function: Any, args: tuple[Any, ...]) -> None:
    if not callable(function):
        raise NotChecked(
            f"check was given {type(function).__name__}, not a function",
            "write check(my_function), without brackets after the name",
        )
    try:
        inspect.signature(function).bind(*args)
    except TypeError as error:
        raise NotChecked(
            f"your function cannot be called with {len(args)} arguments: {error}",
            "keep the first line of the starter cell as it was",
        ) from None
    except ValueError:  # some built-in functions tell nothing about themselves
        pass


def _places(trace: Any) -> list[str]:
    """Where in the learner's own code: the frames that are neither in a library nor in here."""
    return [
        f"in line {summary.lineno} of {summary.name}: {summary.line}".rstrip(": ")
        for summary in traceback.extract_tb(trace)
        if _is_learners(summary.filename)
    ]


def _place_of(thread: threading.Thread) -> str:
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    summaries = traceback.extract_stack(frame) if frame else []
    own = [each for each in summaries if _is_learners(each.filename)]
    if not own:
        return ""
    return f"in line {own[-1].lineno} of {own[-1].name}: {own[-1].line}".rstrip(": ")


def _is_learners(filename: str) -> bool:
    # A cell has a file name of its own; a library's file is in Python or in an environment.
    elsewhere = (str(Path(__file__).parents[2]), sys.base_prefix, sys.prefix)
    return not filename.startswith(elsewhere) and "site-packages" not in filename
