"""One bounded call of a learner's function, which survives whatever the function does.

``call`` runs it in a thread of its own and returns what it returned, raised and left behind.
"""

from __future__ import annotations

import ctypes
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

from mqlab.exercises.engine.exercise import Incorrect, NotAttempted, NotChecked

RETURN_WITHIN_S = 10.0
END_WITHIN_S = 2.0
"""Seconds that a thread has to end once its connection is gone, and again once it is told to."""
OURS = ("broker proxy", "mqlab check")
"""How the names of a check's own threads begin."""


class DidNotReturn(Incorrect):
    """Raised by ``call`` when the time is up. A check that knows why says it in better words."""


@dataclass
class Call:
    """One call of a learner's function: what it returned or raised, and what it left."""

    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    returned_at: float = 0.0
    threads: list[threading.Thread] = field(default_factory=list)

    def raise_if_failed(self, look_at: str = "", hint: str = "") -> None:
        """Raise Incorrect if the function raised, NotChecked if it uses a name that is unknown."""
        if self.error is None:
            return
        error = self.error
        if type(error) is NameError:
            raise NotChecked(
                f"your function uses a name that this kernel does not know: {error}",
                "after a kernel restart, run the cells above first: menu Run, Run All Above "
                "Selected Cell. If that does not help, check the spelling of the name",
            )
        places = _places(traceback.extract_tb(error.__traceback__))
        raise Incorrect(
            f"Your function raised {type(error).__name__}.",
            f"{show(error)} {hint}".strip(),
            evidence=[f"it happened {place}" for place in places[-1:]],
            look_at=look_at,
        )


def call(
    function: Any,
    *args: Any,
    timeout_s: float | None = None,
    touched: Callable[[], bool] = lambda: False,
    unblock: Callable[[], object] = lambda: None,
    look_at: str = "",
) -> Call:
    """Call a learner's function in a thread of its own, and wait at most ``timeout_s`` seconds.

    Raises NotAttempted if it did nothing and returned nothing (``touched()`` says whether it did
    anything), NotChecked if it cannot be called like this, and DidNotReturn if it does not return.
    ``unblock`` is called first in that case, to end what the function may be waiting for.
    """
    _check_callable(function, args)
    timeout_s = RETURN_WITHIN_S if timeout_s is None else timeout_s
    outcome = Call()
    before = set(threading.enumerate())

    def run() -> None:
        started = perf_counter()
        try:
            outcome.value = _as_it_is(function(*args))
        except BaseException as error:
            outcome.error = error
        outcome.returned_at = perf_counter()
        outcome.seconds = outcome.returned_at - started

    def new_threads() -> list[threading.Thread]:
        # One that is just being started is not alive yet: pika has such, to look names up.
        threads = [each for each in threading.enumerate() if each not in before and each.is_alive()]
        return [each for each in threads if not each.name.startswith(OURS)]

    thread = threading.Thread(target=run, name="your function", daemon=True)
    thread.start()
    try:
        end = monotonic() + timeout_s
        while thread.is_alive() and monotonic() < end:
            thread.join(0.1)  # an interrupt may have to wait until a join is over
    except BaseException:  # the learner has interrupted the check
        unblock()
        end_threads(new_threads())
        raise
    if thread.is_alive():
        frame = sys._current_frames().get(thread.ident or 0)
        places = _places(traceback.extract_stack(frame)) if frame else []
        unblock()
        left = end_threads(new_threads())
        raise DidNotReturn(
            f"Your function did not return within {timeout_s:g} s.",
            "It was stopped. A wait needs a time limit, and a way to end it."
            if not left
            else "It cannot be stopped from outside and is still running: restart the kernel "
            "(menu Kernel) to get rid of it.",
            evidence=[f"when the time was up it was {place}" for place in places[-1:]],
            look_at=look_at,
        )
    outcome.threads = [each for each in new_threads() if each is not thread]
    nothing = outcome.value is None or outcome.value is Ellipsis
    begun = outcome.error is not None and not isinstance(outcome.error, NotImplementedError)
    if nothing and not begun and not touched():
        raise NotAttempted
    return outcome


def end_threads(threads: list[threading.Thread]) -> list[threading.Thread]:
    """Wait for threads to end, then raise SystemExit in them. Return those that still run."""
    for attempt in range(3):
        deadline = monotonic() + END_WITHIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
        threads = [thread for thread in threads if thread.is_alive()]
        if not threads or attempt == 2:
            break
        for thread in threads:  # it arrives when the thread runs Python code again
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
            )
    return threads


def some(items: Iterable[str], limit: int = 3) -> str:
    """Name the first few: ``a, b, c and 4 more``."""
    names = sorted(items)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def show(value: object, limit: int = 60) -> str:
    """A value as short text, or its type if it has none; an error with the name of its type."""
    try:
        is_error = isinstance(value, BaseException)
        text = f"{type(value).__name__}: {value}".rstrip(": ") if is_error else repr(value)
    except Exception:  # a learner's class may raise anything
        return f"a {type(value).__name__}"
    return text if is_error or len(text) <= limit else f"{text[:limit]}…"


def counted(count: int, noun: str = "task") -> str:
    """``1 task``, ``2 tasks``."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _as_it_is(value: Any) -> Any:
    """A copy of a container, so that a thread which goes on filling it changes nothing."""
    kinds: tuple[Any, ...] = (list, tuple, set, dict)
    for kind in kinds:
        if isinstance(value, kind):  # a subclass may iterate, or copy, as it likes
            return dict(dict.items(value)) if kind is dict else kind(kind.__iter__(value))
    return value


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
    except ValueError:  # some built-in functions have no signature to inspect
        pass


def _places(stack: Iterable[traceback.FrameSummary]) -> list[str]:
    """The lines of the learner's own code, which is neither in a library nor in here."""
    return [
        f"in line {each.lineno} of {each.name}: {each.line}".rstrip(": ")
        for each in stack
        if _is_learners(each.filename)
    ]


def _is_learners(filename: str) -> bool:
    # A cell has a file name of its own; a library's file is in Python or in an environment.
    elsewhere = (str(Path(__file__).parents[2]), sys.base_prefix, sys.prefix)
    return not filename.startswith(elsewhere) and "site-packages" not in filename
