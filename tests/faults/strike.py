"""A Ctrl-C at a chosen place of the calling thread's code.

Python looks for a pending signal after a call, at the start of a function and at the end of a
loop's round. ``strikes`` runs a scenario again and again, and each time has SIGINT pending when the
calling thread reaches a place where it has not been struck yet. The signal is set from C code, so
Python itself decides where KeyboardInterrupt is raised: at places that a real Ctrl-C can hit,
at all of them, and at no others.
"""

from __future__ import annotations

import ctypes
import dis
import inspect
import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import mqlab

LONG = bool(os.environ.get("MQLAB_LONG"))
"""Strike in pika and the rest of Python as well, and at the third pass of each place."""

_LIBRARY = str(Path(mqlab.__file__).parent)
_ALSO = (threading.__file__,)  # a Condition is left in Python code, and a Thread started in it
_CHECKED = ("CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD", "RESUME")

_Place = tuple[CodeType, int]

# Called as a trace function: Python runs no code of ours between it and the code that it traces.
_set_interrupt = ctypes.pythonapi.PyErr_SetInterrupt
_set_interrupt.argtypes = [ctypes.py_object] * 3
_set_interrupt.restype = None

_places_of: dict[CodeType, set[int]] = {}


def _before_checks(code: CodeType) -> set[int]:
    """The offsets of the instructions after which Python looks for signals one later."""
    if code not in _places_of:
        instructions = list(dis.get_instructions(code))
        pairs = itertools.pairwise(instructions)
        _places_of[code] = {a.offset for a, b in pairs if b.opname in _CHECKED}
    return _places_of[code]


def _is_struck(code: CodeType) -> bool:
    name = code.co_filename
    if name == __file__ or "/tests/" in name:
        return False
    return LONG or name.startswith(_LIBRARY) or name in _ALSO


class Striker:
    """Strikes once in each scenario, at the first place where it has not struck before."""

    def __init__(self) -> None:
        self.struck: dict[_Place, int] = {}
        self.place = ""
        self.inside = False
        self.hit = False

    @contextmanager
    def once(self) -> Iterator[None]:
        """Trace the block's calls. KeyboardInterrupt leaves the block; ``hit`` says if it came."""
        self.place, self.inside, self.hit = "", False, False
        self._passed: dict[_Place, int] = {}
        self._entered: dict[CodeType, int] = {}
        previous = signal.signal(signal.SIGINT, self._on_signal)
        # Python 3.12 looks for instructions only if a frame has asked before tracing begins.
        asking = inspect.currentframe()
        assert asking is not None
        asking.f_trace_opcodes = True
        sys.settrace(self._trace)
        try:
            try:
                yield
            finally:
                sys.settrace(None)  # a strike that is still pending comes at the end of this call
        except KeyboardInterrupt:
            pass
        except RuntimeError as error:
            # Struck inside a Condition, Python leaves it with this error in place of the interrupt.
            if not self.hit or "lock" not in str(error):
                raise
        finally:
            signal.signal(signal.SIGINT, previous)

    def _trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        code = frame.f_code
        if not _is_struck(code):
            return None  # what it calls is looked at all the same
        if event == "call":
            # What is called for each of many messages is as before by now; tracing is slow.
            self._entered[code] = self._entered.get(code, 0) + 1
            if self._entered[code] > 20 and not LONG:
                return None
        frame.f_trace_opcodes = True
        if event != "opcode" or frame.f_lasti not in _before_checks(code):
            return self._trace
        place = (code, frame.f_lasti)
        self._passed[place] = self._passed.get(place, 0) + 1
        times = 3 if LONG else 1
        done = self.struck.get(place, 0)
        if done >= times or self._passed[place] <= done:
            return self._trace
        self.struck[place] = done + 1
        file = Path(code.co_filename).name
        self.place = f"{file}:{frame.f_lineno}, {code.co_qualname}, instruction {frame.f_lasti}"
        return _set_interrupt

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        sys.settrace(None)
        self.hit = True
        stack = traceback.extract_stack(frame)
        mine = [line for line in stack if line.filename.startswith(_LIBRARY)]
        self.inside = bool(mine)
        if mine:
            raised = f"{Path(stack[-1].filename).name}:{stack[-1].lineno}"
            mine_at = f"{Path(mine[-1].filename).name}:{mine[-1].lineno} ({mine[-1].line})"
            self.place = f"{mine_at}, raised in {raised}"
        raise KeyboardInterrupt


def strikes(scenario: Callable[[Striker], None], *, at_least: int) -> int:
    """Run the scenario once for each place; return how many interrupts it has had.

    The scenario enters ``striker.once()`` around the calls to strike at, and asserts what must hold
    afterwards. Every place is tried, and all that fail are reported together.
    """
    striker, hits = Striker(), 0
    failures: list[str] = []
    while True:
        striker.place, striker.hit = "", False
        try:
            scenario(striker)
        except Exception as error:
            failures.append(f"struck at {striker.place}: {str(error).splitlines()[0]}")
            if len(failures) >= _MOST_FAILURES:
                break
        if not striker.place:
            break
        hits += striker.hit
    summary = f"{hits} interrupts, {len(failures)} of them left something wrong"
    print(summary)
    assert not failures, summary + ":\n" + "\n".join(failures)
    assert hits >= at_least, f"only {hits} interrupts: the fault was not made"
    return hits


_MOST_FAILURES = 6
"""A failure costs the time that something is waited for: enough is enough."""
