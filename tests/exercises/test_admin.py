"""The bench of page 01: other clients are left alone, and the broker is as it was before."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

from mqlab.exercises.engine.exercise import CORRECT, INCORRECT
from mqlab.exercises.engine.objects import Snapshot
from mqlab.exercises.page_01 import ex1
from mqlab.exercises.rules.rights import examples
from mqlab.settings import Settings
from tests import exercise_table as table
from tests.helpers import assert_depth, management, raw_channel
from tests.wrong_answers import page_01 as answers


@pytest.fixture(autouse=True)
def on_the_tests_broker(broker_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    monkeypatch.setenv("MQLAB_MANAGEMENT_URL", broker_settings.management_url)


class OtherClient:
    """Works in a thread of its own as soon as an answer has called ``works``."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.name = settings, f"test-{uuid.uuid4().hex[:8]}"
        self._begin, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def works(self) -> None:
        self._begin.set()
        assert self._done.wait(20)

    def _run(self) -> None:
        self._begin.wait(60)
        with raw_channel(self.settings) as channel:
            channel.queue_declare(self.name, durable=True)
            channel.confirm_delivery()
            channel.basic_publish("", self.name, b"somebody else's")
        management(self.settings, f"users/{self.name}", "PUT", {"password": "x", "tags": ""})
        policy = {"pattern": f"^{self.name}$", "definition": {"max-length": 10}}
        management(self.settings, f"policies/%2F/{self.name}", "PUT", policy)
        self._done.set()

    def objects(self) -> set[str]:
        stored = Snapshot.take(self.settings).objects
        return {key[0] for key in stored if self.name in key}

    def clean(self) -> None:
        self._begin.set()
        self._thread.join(20)
        for kind in ("queues/%2F", "users", "policies/%2F"):
            with contextlib.suppress(urllib.error.HTTPError):
                management(self.settings, f"{kind}/{self.name}", "DELETE")


@pytest.fixture
def other(broker_settings: Settings) -> Iterator[OtherClient]:
    client = OtherClient(broker_settings)
    yield client
    client.clean()


@pytest.mark.parametrize(
    ("solve", "outcome"),
    [(answers.makes_all_three, CORRECT), (answers.takes_over_guest, INCORRECT)],
)
def test_what_another_client_creates_meanwhile_is_neither_judged_nor_removed(
    other: OtherClient, solve: Callable[..., Any], outcome: str
) -> None:
    def answer(*given: Any) -> Any:
        other.works()
        return solve(*given)

    assert ex1.check(answer).outcome == outcome
    assert other.objects() == {"queues", "users", "policies"}
    assert_depth(other.settings, other.name, 1)


def test_messages_of_another_client_survive_an_answer_that_may_have_done_anything(
    other: OtherClient,
) -> None:
    def answer(ask: Any, *names: Any) -> None:
        answers.makes_them_directly(ask, *names)  # past `ask`: nobody knows what
        other.works()

    ex1.check(answer)
    assert_depth(other.settings, other.name, 1)


def deletes_guest(ask: Any, *names: Any) -> None:
    answers.make_all(ask, *names)
    ask("users/guest", "DELETE")


def deletes_everything(_ask: Any, *names: Any) -> None:
    answers.make_all(answers.ask_directly, *names)
    answers.ask_directly("vhosts/%2F", "DELETE")


@pytest.mark.parametrize("answer", [answers.takes_over_guest, deletes_guest, deletes_everything])
def test_an_answer_that_locks_everybody_out_is_undone(
    broker_settings: Settings, answer: Callable[..., Any]
) -> None:
    before = Snapshot.take(broker_settings)
    result = ex1.check(answer)
    assert result.headline == "You changed something that was there before.", result
    assert management(broker_settings, "whoami")["tags"] == ["administrator"]
    changes = [str(each) for each in before.diff(Snapshot.take(broker_settings))]
    assert changes == []


def test_a_connection_that_the_answer_leaves_is_closed(broker_settings: Settings) -> None:
    left: list[Any] = []

    def answer(*given: Any) -> None:
        answers.make_all(*given)
        left.append(answers.connect_as(*given[1:]))
        left.append(pika.BlockingConnection(broker_settings.parameters()))

    assert ex1.check(answer).outcome == CORRECT
    for connection in left:
        with pytest.raises((pika.exceptions.AMQPError, OSError)):
            connection.process_data_events(1)


def test_two_checks_at_once_do_not_disturb_each_other() -> None:
    code = (
        "from mqlab.exercises.page_01 import ex1, ex2\n"
        "from tests.wrong_answers import page_01 as answers\n"
        "for _ in range(3): print(ex1.check(answers.makes_them_directly).outcome)\n"
        "for _ in range(3): print(ex2.check(answers.makes_the_reader_directly).outcome)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=table.ROOT
        )
        for _ in range(2)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=60)
        assert said.split() == [CORRECT] * 6, said


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("^amq[.]gen.*", "amq.gen"),
        ("^(?:tmp|temp)-[0-9a-f]{4}$", "t"),
        ("^\\d+\\W$", ""),
        ("^[[:digit:]]+\\z", ""),
        ("^[^a-z]?x", ""),
    ],
)
def test_examples_fit_their_pattern(pattern: str, fits: str) -> None:
    found = examples(pattern)
    readable = pattern.replace("[[:digit:]]", "[0-9]").replace("\\z", "\\Z")
    assert found
    assert all(re.search(readable, each) and each.startswith(fits) for each in found)
