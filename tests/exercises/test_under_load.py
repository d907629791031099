"""The same mistake gets the same headline, however busy the machine is.

``MQLAB_LONG=1`` runs each answer 20 times beside two processes that keep two cores busy (about an
hour); ``MQLAB_LONG=3`` runs each three times. Without it, nothing here runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from mqlab.exercises.engine.exercise import CORRECT, INCORRECT
from mqlab.settings import Settings
from tests.exercises.test_exercises import RIGHT, WRONG, name_of
from tests.wrong_answers import Right, Wrong

LONG = int(os.environ.get("MQLAB_LONG", "0"))
TIMES = 20 if LONG == 1 else LONG
pytestmark = pytest.mark.skipif(not LONG, reason="takes an hour: MQLAB_LONG=1")
ANSWERS = [*WRONG, *RIGHT]


@pytest.fixture(scope="module", autouse=True)
def busy_machine() -> Iterator[None]:
    """Two processes that do nothing but use the processor."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.mark.parametrize(
    "answer", ANSWERS, ids=[f"{name_of(each.exercise)}: {each.name}" for each in ANSWERS]
)
def test_its_result_does_not_depend_on_luck(
    answer: Right, broker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    monkeypatch.setenv("MQLAB_MANAGEMENT_URL", broker_settings.management_url)
    expected = (INCORRECT, answer.headline) if isinstance(answer, Wrong) else (CORRECT, "")
    results = [answer.exercise.check(answer.answer) for _ in range(TIMES)]
    assert Counter((each.outcome, each.headline) for each in results) == {expected: TIMES}
