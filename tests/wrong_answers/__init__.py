"""Answers to the exercises, wrong and right, as people really write them, by page.

A wrong one is registered with the headline that it must get, and with what an instructor asks the
learner; a right one must pass, in whatever style. Each is named by its docstring:

    @wrong(ex1, "You open more than one connection.", ask="What does a connection cost?")
    def connects_each_time(connect, queue, tasks):
        '''A new connection for every task'''

    @right(ex1)
    def in_a_transaction(connect, queue, tasks):
        '''A transaction in place of confirms'''

The headline is compared exactly, so the numbers of one run go into a result's message or evidence.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqlab.exercises.engine.exercise import Exercise


@dataclass(frozen=True)
class Right:
    """One right answer, which ``check`` must find correct."""

    exercise: Exercise
    answer: Any

    @property
    def name(self) -> str:
        """The first line of its docstring."""
        return str(self.answer.__doc__).splitlines()[0]


@dataclass(frozen=True)
class Wrong(Right):
    """One wrong answer: the headline that it must lead to, and what to ask its author."""

    headline: str
    ask: str


_right: list[Right] = []
_wrong: list[Wrong] = []


def right(exercise: Exercise) -> Callable[[Any], Any]:
    """Register the decorated function as a right answer."""

    def register(answer: Any) -> Any:
        _right.append(Right(exercise, answer))
        return answer

    return register


def wrong(exercise: Exercise, headline: str, ask: str = "") -> Callable[[Any], Any]:
    """Register the decorated function as a wrong answer that gets this headline."""

    def register(answer: Any) -> Any:
        _wrong.append(Wrong(exercise, answer, headline, ask))
        return answer

    return register


def of(exercise: Exercise) -> list[Wrong]:
    """The wrong answers to one exercise, in the order of their file."""
    _load(exercise.page)
    return [each for each in _wrong if each.exercise is exercise]


def right_to(exercise: Exercise) -> list[Right]:
    """The right answers to one exercise, in the order of their file."""
    _load(exercise.page)
    return [each for each in _right if each.exercise is exercise]


def _load(page: str) -> None:
    if (Path(__file__).parent / f"page_{page}.py").exists():
        importlib.import_module(f"{__name__}.page_{page}")
