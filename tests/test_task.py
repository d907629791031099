"""The message, without a broker: what we encode we decode, and nothing else gets through."""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqlab.errors import TaskError
from mqlab.task import MAX_BODY_BYTES, MAX_DATA_BYTES, Task
from mqlab.walkthrough import perform_heavy_task

text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)
task_ids = text.filter(lambda value: 0 < len(value.encode()) <= 255)
timestamps = st.floats(0, 1e12) | st.integers(0, 10**12)


def body(**changes: Any) -> bytes:
    fields = {"task_id": "an-id", "data": "a report", "timestamp": 1.5, **changes}
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode()


@given(json_values, task_ids, timestamps)
def test_what_is_encoded_is_decoded(data: Any, task_id: str, timestamp: float) -> None:
    task = Task(data, task_id, timestamp)
    assert Task.from_json(task.to_json()) == task


def test_the_body_has_the_walk_throughs_keys() -> None:
    fields = json.loads(Task("a report", "an-id", 1.5).to_json())
    assert fields == {"task_id": "an-id", "data": "a report", "timestamp": 1.5}


def test_each_task_has_an_id_of_its_own() -> None:
    assert len({Task("same").task_id for _ in range(100)}) == 100


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"task_id":' * 50_000)
@example(b"1" * 5_000)
@example(b"\xff\xfe{\x00}\x00")
def test_whatever_arrives_is_a_task_or_a_task_error(raw: bytes) -> None:
    with contextlib.suppress(TaskError):
        assert isinstance(Task.from_json(raw), Task)


@pytest.mark.parametrize("raw", [b"", b"hello", b"{", b"{'task_id': 1}", b"NaN", b"\x00"])
def test_row_01_a_body_that_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(TaskError, match="not JSON"):
        Task.from_json(raw)


@pytest.mark.parametrize("raw", [b"[1]", b"null", b'"x"', b"1", b"true"])
def test_row_02_json_that_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(TaskError, match="not an object"):
        Task.from_json(raw)


@pytest.mark.parametrize("key", ["task_id", "data", "timestamp"])
def test_row_03_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(TaskError, match=f"no '{key}'"):
        Task.from_json(body(**{key: ...}))


WRONG = [
    ("task_id", ""),
    ("task_id", 7),
    ("task_id", None),
    ("task_id", "x" * 256),
    ("timestamp", "now"),
    ("timestamp", None),
    ("timestamp", True),
    ("timestamp", -1),
    ("timestamp", 10**400),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda value: repr(value)[:12])
def test_row_04_a_wrong_type_or_value_is_refused_at_both_ends(key: str, value: Any) -> None:
    with pytest.raises(TaskError, match=key):
        Task.from_json(body(**{key: value}))
    fields = {"task_id": "an-id", "timestamp": 1.5, key: value}
    with pytest.raises(TaskError, match=key):
        Task("a report", **fields).to_json()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_row_04_numbers_that_json_does_not_have_are_refused(number: str) -> None:
    with pytest.raises(TaskError):
        Task.from_json(f'{{"task_id": "a", "data": {number}, "timestamp": 1}}'.encode())
    with pytest.raises(TaskError):
        Task(float(number)).to_json()


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xfe", body().decode().encode("utf-16"), b"\xef\xbb\xbf" + body(), b'"\xc3('],
    ids=["invalid", "utf-16", "bom", "cut"],
)
def test_row_05_bytes_that_are_not_plain_utf8_are_refused(raw: bytes) -> None:
    with pytest.raises(TaskError):
        Task.from_json(raw)


def test_row_05_half_a_surrogate_pair_is_refused_at_both_ends() -> None:
    with pytest.raises(TaskError, match="surrogate"):
        Task.from_json(b'{"task_id": "a", "data": "\\ud800", "timestamp": 1}')
    with pytest.raises(TaskError, match="surrogate"):
        Task("\ud800").to_json()


@pytest.mark.parametrize(
    "data", [b"[" * 50_000 + b"]" * 50_000, b"1" * 5_000], ids=["deep", "long number"]
)
def test_row_06_deep_nesting_and_long_numbers_are_refused(data: bytes) -> None:
    with pytest.raises(TaskError):
        Task.from_json(b'{"task_id": "a", "timestamp": 1, "data": ' + data + b"}")


def test_row_06_the_sending_end_refuses_them_too() -> None:
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    for data in (deep, 10**5_000):
        with pytest.raises(TaskError):
            Task(data).to_json()


def test_row_07_data_over_the_limit_is_refused_before_it_is_sent() -> None:
    for data in ("x" * MAX_DATA_BYTES, "é" * (MAX_DATA_BYTES // 2), ["x" * MAX_DATA_BYTES]):
        with pytest.raises(TaskError, match="limit is 1,048,576"):
            Task(data).to_json()


def test_row_07_a_body_over_the_limit_is_refused_when_it_arrives() -> None:
    with pytest.raises(TaskError, match=f"limit is {MAX_BODY_BYTES:,}"):
        Task.from_json(b" " * (MAX_BODY_BYTES + 1))


def test_row_07_the_largest_that_may_be_sent_may_arrive() -> None:
    task = Task("x" * (MAX_DATA_BYTES - 2), "\n" * 255, 1e300)
    assert Task.from_json(task.to_json()) == task


@pytest.mark.parametrize(
    "data", [{1, 2}, datetime.datetime(2026, 1, 1), b"bytes", object(), (1, 2), {1: "x"}, [(1,)]]
)
def test_row_08_data_that_json_cannot_hold_is_refused_in_words(data: Any) -> None:
    with pytest.raises(TaskError, match="cannot be sent as a task") as caught:
        Task(data).to_json()
    assert "next:" in str(caught.value)


def test_keys_that_a_newer_sender_adds_are_ignored() -> None:
    assert Task.from_json(body(priority=3)) == Task("a report", "an-id", 1.5)


def test_the_heavy_task_keeps_the_id_it_is_given() -> None:
    assert perform_heavy_task("x", task_id="an-id", duration_s=0) == (
        "an-id",
        "COMPLETED: Report generated for 'x'",
    )


def test_the_heavy_task_prints_the_walk_throughs_lines(capsys: pytest.CaptureFixture[str]) -> None:
    perform_heavy_task("x", task_id="12345678-9", duration_s=0)
    assert capsys.readouterr().out == (
        "\n--- [Worker] Starting Task ID: 12345678 with data: x ---\n"
        "--- [Worker] Task ID: 12345678 Finished."
        " Result: COMPLETED: Report generated for 'x' ---\n\n"
    )


def test_the_heavy_task_prints_nothing_in_another_thread(
    capsys: pytest.CaptureFixture[str],
) -> None:
    thread = threading.Thread(target=perform_heavy_task, args=("x",), kwargs={"duration_s": 0})
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_the_heavy_task_refuses_a_time_that_is_none(seconds: float) -> None:
    with pytest.raises(TaskError, match="duration_s"):
        perform_heavy_task("x", duration_s=seconds)
