"""Wrong answers to the exercises, as people really write them: ``page_NN`` has those of one page.

Each is registered with the headline that is meant for it, and named by its docstring:

    @wrong(ex1, "You open a connection for every task.", ask="What does a connection cost?")
    def connects_each_time(connect, queue, tasks):
        '''A new connection for every task'''

The headline is compared exactly, so numbers of one run belong into a result's message or evidence.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqlab.exercises.engine.exercise import Exercise


@dataclass(frozen=True)
class Wrong:
    """One wrong answer: what is given to ``check``, and the headline that it must lead to."""

    exercise: Exercise
    headline: str
    answer: Any
    ask: str
    """What an instructor may ask whoever gave this answer."""

    @property
    def name(self) -> str:
        """The first line of its docstring."""
        return str(self.answer.__doc__).splitlines()[0]


_registered: list[Wrong] = []


def wrong(exercise: Exercise, headline: str, *, ask: str) -> Callable[[Any], Any]:
    """Register the decorated function as a wrong answer that gets this headline."""

    def register(answer: Any) -> Any:
        _registered.append(Wrong(exercise, headline, answer, ask))
        return answer

    return register


def of(exercise: Exercise) -> list[Wrong]:
    """The wrong answers to one exercise, in the order of their file."""
    if (Path(__file__).parent / f"page_{exercise.page}.py").exists():
        importlib.import_module(f"{__name__}.page_{exercise.page}")
    return [each for each in _registered if each.exercise is exercise]
