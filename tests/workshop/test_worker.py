"""The commands work, send and sync, as a person types them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mqlab import Producer
from mqlab.settings import Settings
from tests.helpers import consumers, raw_channel, take_all


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


def read_until(process: subprocess.Popen[str], event: str) -> list[dict[str, Any]]:
    assert process.stdout is not None
    events: list[dict[str, Any]] = []
    while not events or events[-1]["event"] != event:
        events.append(json.loads(process.stdout.readline()))
    return events


def test_work_with_events_tells_the_life_of_a_task_and_finishes_it_when_told_to_stop(
    telling: subprocess.Popen[str], broker_settings: Settings, queue: str
) -> None:
    assert read_until(telling, "state")[-1] == {"event": "state", "state": "running", "unacked": 0}
    with Producer(queue, settings=broker_settings) as producer:
        sent = producer.send("Audit Report")
    started = read_until(telling, "started")[-1]["task"]
    assert (started["task_id"], started["data"]) == (sent.task_id, "Audit Report")
    assert (started["outcome"], started["finished_at"]) == (None, None)
    assert telling.stdin is not None
    telling.stdin.write("stop\n")
    telling.stdin.flush()
    events = read_until(telling, "stopped")
    assert {"event": "state", "state": "stopping", "unacked": 1} in events
    [settled] = [event["task"] for event in events if event["event"] == "settled"]
    assert settled["outcome"] == "done"
    assert settled["task_id"] == sent.task_id
    assert settled["started_at"] < settled["finished_at"] <= settled["acked_at"]
    assert events[-1] == {"event": "stopped", "done": 1, "returned": []}
    assert telling.wait(timeout=10) == 0
    assert consumers(broker_settings, queue) == 0


def test_work_with_events_gives_its_task_back_and_ends_when_its_parent_is_gone(
    telling: subprocess.Popen[str], broker_settings: Settings, queue: str
) -> None:
    with Producer(queue, settings=broker_settings) as producer:
        sent = producer.send("Audit Report")
    read_until(telling, "started")
    assert telling.stdin is not None
    telling.stdin.close()
    assert read_until(telling, "stopped")[-1]["returned"] == [sent.task_id]
    assert telling.wait(timeout=10) == 0
    [(method, _, _)] = take_all(broker_settings, queue)
    assert method.redelivered


def test_work_without_a_broker_says_what_to_do() -> None:
    failed = run(Settings(port=1), "work")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "python -m mqlab broker start" in failed.stderr
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
