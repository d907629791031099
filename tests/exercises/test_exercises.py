"""Every exercise three ways, on a real broker: untouched, solved in a fresh kernel, and wrong.

``python -m tests.exercise_table`` prints the same as a table. The frame of the checks has tests of
its own in test_engine.py.
"""

from __future__ import annotations

import ast
import inspect
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mqlab.exercises.engine.exercise import CORRECT, INCORRECT, NOT_ATTEMPTED, NOT_CHECKED, Exercise
from mqlab.settings import Settings
from tests import exercise_table as table
from tests import wrong_answers
from tests.helpers import eventually, free_port, management
from tests.wrong_answers import Right, Wrong

EXERCISES = [exercise for page in table.PAGES for exercise in table.exercises(page)]
WRONG = [wrong for exercise in EXERCISES for wrong in wrong_answers.of(exercise)]
RIGHT = [right for exercise in EXERCISES for right in wrong_answers.right_to(exercise)]


def name_of(exercise: Exercise) -> str:
    return f"{exercise.page}-ex{exercise.number}"


every_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
every_page = pytest.mark.parametrize("page", table.PAGES)
every_wrong_answer = pytest.mark.parametrize(
    "wrong", WRONG, ids=[f"{name_of(wrong.exercise)}: {wrong.name}" for wrong in WRONG]
)


@pytest.fixture(autouse=True)
def on_the_tests_broker(
    broker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The checks take the tests' broker, and leave nothing on it and no thread here."""
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    monkeypatch.setenv("MQLAB_MANAGEMENT_URL", broker_settings.management_url)
    threads, names = set(threading.enumerate()), names_on(broker_settings)
    yield
    # What only sleeps ends when it wakes.
    eventually(lambda: set(threading.enumerate()) <= threads, within_s=20)
    eventually(lambda: names_on(broker_settings) <= names)


def names_on(settings: Settings) -> set[tuple[str, str]]:
    """The queues, virtual hosts and users that the broker has."""
    kinds = ("queues", "vhosts", "users")
    return {(kind, each["name"]) for kind in kinds for each in management(settings, kind)}


def headings(page: str) -> set[str]:
    cells = table.read_notebook(page)["cells"]
    texts = [table.source_of(cell) for cell in cells if cell["cell_type"] == "markdown"]
    return set(re.findall(r"^#+ (.*)$", "\n".join(texts), re.MULTILINE))


def test_each_page_has_an_exercise_for_everyone_and_one_that_stretches() -> None:
    for page in table.PAGES:
        assert [exercise.number for exercise in table.exercises(page)] == [1, 2]
        assert {"Exercise 1: for everyone", "Exercise 2: a stretch"} <= headings(page)


@every_exercise
def test_the_untouched_starter_is_not_attempted(exercise: Exercise) -> None:
    assert exercise.check(table.starter(exercise)).outcome == NOT_ATTEMPTED


@every_page
def test_the_solutions_are_correct_in_a_fresh_kernel(page: str) -> None:
    for number, said in table.solve_in_a_kernel(page).items():
        assert table.first_line(said) == f"Exercise {number}: {CORRECT}.", said
        assert len(said.splitlines()) > 1, "no evidence is quoted"


@every_wrong_answer
def test_a_wrong_answer_is_told_what_is_wrong(wrong: Wrong) -> None:
    result = wrong.exercise.check(wrong.answer)
    assert (result.outcome, result.headline) == (INCORRECT, wrong.headline), result
    assert result.evidence, result
    assert result.look_at in headings(wrong.exercise.page), result


@pytest.mark.parametrize(
    "right", RIGHT, ids=[f"{name_of(right.exercise)}: {right.name}" for right in RIGHT]
)
def test_a_right_answer_is_correct_whatever_its_style(right: Right) -> None:
    result = right.exercise.check(right.answer)
    assert result.outcome == CORRECT, result


@every_exercise
def test_there_are_five_kinds_of_wrong_answers_each_with_a_question(exercise: Exercise) -> None:
    wrong = wrong_answers.of(exercise)
    assert len({each.headline for each in wrong}) >= 5
    assert [each.name for each in wrong if not each.ask.endswith("?")] == []


@every_exercise
def test_there_are_three_right_answers(exercise: Exercise) -> None:
    assert len(wrong_answers.right_to(exercise)) >= 3


@every_exercise
@pytest.mark.parametrize("constant", [[], True, "as given"], ids=repr)
def test_a_constant_does_not_satisfy(exercise: Exercise, constant: Any) -> None:
    result = exercise.check(lambda *given: given[-1] if constant == "as given" else constant)
    assert result.outcome != CORRECT, result


@pytest.mark.parametrize(
    "exercise",
    [exercise for exercise in EXERCISES if exercise.page != "02"],  # its clients need no broker
    ids=name_of,
)
def test_without_a_broker_it_cannot_be_checked(
    exercise: Exercise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMQP_URL")
    monkeypatch.setenv("MQLAB_AMQP_PORT", str(free_port()))
    result = exercise.check(table.starter(exercise))
    assert result.outcome == NOT_CHECKED
    assert "Next: " in result.message


@every_exercise
def test_each_hint_says_more_and_the_last_one_stays(exercise: Exercise) -> None:
    assert len(exercise.hints) >= 3
    told = [repr(exercise.hint()) for _ in range(len(exercise.hints) + 1)]
    assert len(set(told[:-1])) == len(exercise.hints)
    assert told[-1] == told[-2]


@every_exercise
def test_the_solution_shown_is_the_file_and_has_the_starters_first_line(
    exercise: Exercise,
) -> None:
    text = exercise.solution_file().read_text("utf-8")
    assert exercise.solution_file().parent == table.NOTEBOOKS / "solutions"
    assert repr(exercise.solution()) == text.rstrip()
    starter = table.starter(exercise)
    [same] = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == starter.__name__
    ]
    assert [each.arg for each in same.args.args] == list(inspect.signature(starter).parameters)
