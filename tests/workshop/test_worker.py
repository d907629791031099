"""The commands work, send and sync, as a person types them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqlab import Producer
from mqlab.settings import Settings
from tests.helpers import consumers, depth, eventually, raw_channel, take_all


def mqlab(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mqlab", *arguments]


def run(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        mqlab(*arguments),
        env={**os.environ, "AMQP_URL": settings.url},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture
def worker(broker_settings: Settings, queue: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        mqlab("work", "--queue", queue, "--duration", "0.2"),
        env={**os.environ, "AMQP_URL": broker_settings.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert "waiting for heavy tasks" in process.stdout.readline()
    yield process
    process.kill()
    process.communicate(timeout=10)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_work_prints_the_walk_throughs_lines_with_the_messages_own_id(
    worker: subprocess.Popen[str], broker_settings: Settings, queue: str, ending: signal.Signals
) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        task_id = producer.send("Audit Report").task_id[:8]
    with raw_channel(broker_settings) as channel:
        channel.basic_publish("", queue, b"junk")
    assert worker.stdout is not None
    said = [worker.stdout.readline() for _ in range(6)]
    worker.send_signal(ending)
    rest, _ = worker.communicate(timeout=20)
    assert worker.returncode == 0
    result = "COMPLETED: Report generated for 'Audit Report'"
    assert "".join(said).splitlines()[:5] == [
        "--- [Background Worker] Received task for: Audit Report. Starting heavy work... ---",
        "",
        f"--- [Worker] Starting Task ID: {task_id} with data: Audit Report ---",
        f"--- [Worker] Task ID: {task_id} Finished. Result: {result} ---",
        "",
    ]
    assert f"A message went to {queue}.dead: not a task" in said[5]
    assert "Stopped. 1 task done." in rest
    assert consumers(broker_settings, queue) == 0


@pytest.fixture
def telling(broker_settings: Settings, queue: str) -> Iterator[subprocess.Popen[str]]:
    """`work --events`, with a task of 1 s."""
    with subprocess.Popen(
        mqlab("work", "--events", "--queue", queue, "--duration", "1"),
        env={**os.environ, "AMQP_URL": broker_settings.url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def read_until(process: subprocess.Popen[str], kind: str) -> list[dict[str, Any]]:
    assert process.stdout is not None
    events: list[dict[str, Any]] = []
    while not events or events[-1]["kind"] != kind:
        events.append(json.loads(process.stdout.readline()))
    return events


def test_work_with_events_reports_the_life_of_a_task_and_finishes_it_when_asked_to_stop(
    telling: subprocess.Popen[str], broker_settings: Settings, queue: str
) -> None:
    assert read_until(telling, "opened")[-1]["unacked"] == 0
    with Producer(queue, settings=broker_settings) as producer:
        sent = producer.send("Audit Report")
    started = read_until(telling, "started")[-1]["record"]
    assert (started["task_id"], started["data"]) == (sent.task_id, "Audit Report")
    assert (started["outcome"], started["finished_at"]) == (None, None)
    assert telling.stdin is not None
    telling.stdin.write("stop\n")
    telling.stdin.flush()
    [settled] = [e["record"] for e in read_until(telling, "closed") if e["kind"] == "settled"]
    assert settled["outcome"] == "done"
    assert settled["task_id"] == sent.task_id
    assert settled["started_at"] < settled["finished_at"] <= settled["acked_at"]
    assert telling.wait(timeout=10) == 0
    assert consumers(broker_settings, queue) == 0


def test_work_with_events_ends_at_once_when_its_parent_is_gone(
    telling: subprocess.Popen[str], broker_settings: Settings, queue: str
) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        producer.send("Audit Report")
    read_until(telling, "started")
    assert telling.stdin is not None
    telling.stdin.close()
    assert telling.wait(timeout=10) == 1
    eventually(lambda: consumers(broker_settings, queue) == 0)
    [(method, _, _)] = take_all(broker_settings, queue)
    assert method.redelivered


def test_work_without_a_broker_says_what_to_do() -> None:
    failed = run(Settings(port=1), "work")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "mqlab broker start" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_send_sends_one_task_and_shows_its_cost(broker_settings: Settings, queue: str) -> None:
    sent = run(broker_settings, "send", "Audit Report", "--queue", queue)
    assert sent.returncode == 0, sent.stderr
    [(_, properties, _)] = take_all(broker_settings, queue)
    assert f"Task ID {properties.message_id[:8]} published successfully!" in sent.stdout
    assert re.search(r"connect .* ms, declare .* ms, publish .* ms, confirm .* ms", sent.stdout)


def test_sync_needs_no_broker_and_waits() -> None:
    waited = run(Settings(port=1), "sync", "Sales Report")
    assert waited.returncode == 0, waited.stderr
    assert re.search(r"Total time waited: 5\.\d\d seconds", waited.stdout)


@pytest.fixture
def start(broker_settings: Settings, queue: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts `work`, with tasks of no length, and whatever Popen is to be told."""
    started: list[subprocess.Popen[str]] = []

    def start_worker(*, duration_s: float = 0, **options: Any) -> subprocess.Popen[str]:
        environ = {**os.environ, "AMQP_URL": broker_settings.url} | options.pop("env", {})
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        arguments = ("work", "--queue", queue, "--duration", str(duration_s))
        started.append(subprocess.Popen(mqlab(*arguments), env=environ, **options))
        return started[-1]

    yield start_worker
    for each in started:
        each.kill()
        each.communicate(timeout=10)


def send(settings: Settings, queue: str, *data: str) -> None:
    with Producer(queue, settings=settings) as producer:
        for each in data:
            producer.send(each)


def waits_in_pipe(process: subprocess.Popen[str]) -> int:
    """How many bytes are in the pipe that the process writes to."""
    assert process.stdout is not None
    found = fcntl.ioctl(process.stdout, termios.FIONREAD, b"\0" * 4)
    return int.from_bytes(found, sys.byteorder)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_row_66_a_signal_ends_the_worker_with_status_0_and_its_task_done(
    start: Callable[..., subprocess.Popen[str]],
    broker_settings: Settings,
    queue: str,
    ending: signal.Signals,
) -> None:
    process = start(duration_s=2)
    assert process.stdout is not None
    assert "waiting for heavy tasks" in process.stdout.readline()
    send(broker_settings, queue, "Audit Report")
    assert "Received task" in process.stdout.readline()
    process.send_signal(ending)
    said, complaints = process.communicate(timeout=20)
    assert (process.returncode, complaints) == (0, "")
    assert "Stopped. 1 task done." in said
    assert consumers(broker_settings, queue) == 0
    assert depth(broker_settings, queue) == 0


def test_row_66_only_a_second_ctrl_c_returns_the_running_task_at_once(
    start: Callable[..., subprocess.Popen[str]], broker_settings: Settings, queue: str
) -> None:
    process = start(duration_s=60)
    assert process.stdout is not None
    assert "waiting for heavy tasks" in process.stdout.readline()
    send(broker_settings, queue, "Audit Report")
    assert "Received task" in process.stdout.readline()
    for number in (signal.SIGHUP, signal.SIGTERM):  # a closed terminal and its shell send several
        process.send_signal(number)
    while "Stopping" not in process.stdout.readline():
        pass
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=5)
    assert process.returncode == 0
    assert depth(broker_settings, queue) == 1


def test_row_66_a_signal_that_is_ignored_here_stays_ignored(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    # what nohup does
    process = start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout is not None
    assert "waiting for heavy tasks" in process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_row_66_a_full_pipe_keeps_the_worker_neither_from_its_work_nor_from_its_end(
    start: Callable[..., subprocess.Popen[str]],
    broker_settings: Settings,
    queue: str,
    ending: signal.Signals,
) -> None:
    process = start()
    assert process.stdout is not None
    size = fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    send(broker_settings, queue, *["x" * 500] * 40)
    # Less than a line is free, and all tasks were acknowledged all the same.
    eventually(lambda: waits_in_pipe(process) > size - 2200)
    process.send_signal(ending)
    assert process.wait(timeout=20) == 0
    assert consumers(broker_settings, queue) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_row_66_a_closed_pipe_stops_the_worker_with_status_1(
    start: Callable[..., subprocess.Popen[str]], broker_settings: Settings, queue: str
) -> None:
    process = start()
    assert process.stdout is not None
    assert "waiting for heavy tasks" in process.stdout.readline()
    process.stdout.close()  # as by `work | head -1`
    send(broker_settings, queue, "Audit Report")
    assert process.wait(timeout=20) == 1
    assert process.stderr is not None
    complaints = process.stderr.read()
    assert "cannot print" in complaints
    assert "Broken pipe" in complaints
    assert "Traceback" not in complaints
    assert consumers(broker_settings, queue) == 0
    assert depth(broker_settings, queue) == 0


def test_row_66_a_full_disk_stops_the_worker_with_status_1(
    start: Callable[..., subprocess.Popen[str]], broker_settings: Settings, queue: str
) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(stdout=full)
        assert process.wait(timeout=20) == 1
    assert process.stderr is not None
    complaints = process.stderr.read()
    assert "No space left on device" in complaints
    assert "Traceback" not in complaints
    assert consumers(broker_settings, queue) == 0


@pytest.mark.parametrize(
    "environ", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_row_66_what_an_ascii_terminal_lacks_is_escaped(
    start: Callable[..., subprocess.Popen[str]],
    broker_settings: Settings,
    queue: str,
    environ: dict[str, str],
) -> None:
    process = start(env={"PYTHONCOERCECLOCALE": "0"} | environ)
    send(broker_settings, queue, "Übersicht 😀")
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(2)]
    assert "Received task for: \\xdcbersicht \\U0001f600. Starting" in said[1]


def test_row_66_no_escape_sequence_and_no_line_of_the_datas_own_reaches_the_terminal(
    start: Callable[..., subprocess.Popen[str]], broker_settings: Settings, queue: str
) -> None:
    process = start()
    send(broker_settings, queue, "\x1b[31mred\x1b]0;title\x07\r\nforged\x9b2J\u202edetour\x08")
    with raw_channel(broker_settings) as channel:
        channel.basic_publish("", queue, b'{"\x1b[31mkey\\u001b[2J": 1}')
    assert process.stdout is not None
    said = "".join(process.stdout.readline() for _ in range(7))
    escaped = r"\x1b[31mred\x1b]0;title\x07\r\nforged\x9b2J\u202edetour\x08"
    assert f"Received task for: {escaped}. Starting" in said
    assert "A message went to" in said
    assert said.replace("\n", "").isprintable()
