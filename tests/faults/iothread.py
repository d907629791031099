"""An error that is raised in mqlab's I/O thread, in a function of one's choice."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import mqlab

THREAD_RUN = threading.Thread.run.__code__
LIBRARY = str(Path(mqlab.__file__).parent)


def _runs_in_io_thread() -> bool:
    name = threading.current_thread().name
    return name.startswith("mqlab") and "worker-" not in name


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return f"{Path(code.co_filename).stem}.{code.co_qualname}:{code.co_firstlineno}"


def io_functions(scenario: Callable[[], object]) -> list[str]:
    """The functions of mqlab that its I/O thread enters during the scenario, in that order."""
    found: dict[str, None] = {}

    def trace(frame: FrameType, event: str, _arg: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(LIBRARY):
            # What the thread begins with has no caller who could see the error.
            called = frame.f_back is not None and frame.f_back.f_code is not THREAD_RUN
            if called and _runs_in_io_thread():
                found.setdefault(_name(frame))

    threading.settrace(trace)
    try:
        scenario()
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
    return list(found)


class IoThreadFault:
    """While it is entered, the first call of the function ``name`` in an I/O thread raises."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.error, self.raised = name, error, False

    def __enter__(self) -> IoThreadFault:
        threading.settrace(self._trace)
        return self

    def __exit__(self, *_exc: object) -> None:
        threading.settrace(None)  # type: ignore[arg-type]

    def _trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if self.raised or event != "call" or _name(frame) != self.name:
            return None
        if _runs_in_io_thread():
            self.raised = True
            sys.settrace(None)
            raise self.error
        return None
