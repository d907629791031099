"""The quizzes: each question can be answered, and a page that is executed again keeps its bytes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from mqlab.errors import MqlabError
from mqlab.exercises.engine.quiz import show_quiz

QUIZZES = sorted((Path(__file__).parents[2] / "notebooks/quizzes").glob("*.json"))
every_quiz = pytest.mark.parametrize("path", QUIZZES, ids=lambda path: path.stem)


def shown(page: str) -> list[dict[str, Any]]:
    """What the cell shows: the data of each of its outputs."""
    InteractiveShell.instance()
    with capture_output() as captured:
        show_quiz(page)
    return [output.data for output in captured.outputs]


@every_quiz
def test_one_answer_is_right_and_every_answer_is_explained(path: Path) -> None:
    questions = json.loads(path.read_text("utf-8"))
    assert len(questions) == 2
    for question in questions:
        answers = question["answers"]
        assert question["type"] == "multiple_choice"
        assert [answer["correct"] for answer in answers].count(True) == 1
        assert len({answer["feedback"] for answer in answers}) == len(answers) >= 3


@every_quiz
def test_nothing_in_a_text_is_taken_for_something_else(path: Path) -> None:
    """jupyterquiz makes formulas of ``$``, and links of what looks like them in Markdown."""
    text = path.read_text("utf-8")
    assert "$" not in text
    assert "](" not in text
    assert "<http" not in text


@every_quiz
def test_the_same_bytes_are_shown_each_time(path: Path) -> None:
    random.seed(1)
    first = shown(path.stem)
    random.seed(2)
    assert shown(path.stem) == first
    assert len(first) == 5


def test_two_pages_have_names_of_their_own() -> None:
    first, second = (shown(path.stem)[2]["text/html"][:30] for path in QUIZZES[:2])
    assert first.startswith('<div id="')
    assert first != second


def test_what_a_learner_draws_by_lot_is_left_as_it_was() -> None:
    random.seed(7)
    expected = random.random()
    random.seed(7)
    shown(QUIZZES[0].stem)
    assert random.random() == expected


def test_a_quiz_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(MqlabError, match="make lab"):
        show_quiz("99")
