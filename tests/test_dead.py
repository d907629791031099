from __future__ import annotations

import json

import pytest

from mqlab import BackgroundConsumer, Producer, Task
from mqlab.cli import main
from mqlab.dead import list_dead, requeue_dead
from mqlab.errors import ConnectError, Unroutable
from mqlab.settings import Settings
from tests.helpers import assert_depth, raw_channel, take_all


@pytest.fixture
def dead_tasks(broker_settings: Settings, queue: str) -> list[str]:
    """Three tasks that have died, and a body that is none; the ids of the three."""

    def work(_task: Task) -> None:
        raise RuntimeError("no paper")

    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(work, queue=queue, settings=broker_settings, max_attempts=1) as consumer,
    ):
        ids = producer.send_many(range(3)).task_ids
        consumer.wait(3, timeout_s=10)
        with raw_channel(broker_settings) as channel:
            channel.basic_publish("", queue, b"junk")
        consumer.wait(1, timeout_s=10)
    return list(ids)


def test_the_dead_can_be_read_and_stay(
    broker_settings: Settings, queue: str, dead_tasks: list[str]
) -> None:
    for _ in range(2):
        found = list_dead(queue, settings=broker_settings)
        assert [message.task_id for message in found] == [*dead_tasks, None]
    assert [message.reason for message in found[:3]] == ["RuntimeError: no paper"] * 3
    assert found[3].reason.startswith("not a task: ")
    assert (found[0].attempts, found[3].body) == (1, b"junk")
    assert found[0].worker.startswith("worker-1, pid ")
    assert_depth(broker_settings, f"{queue}.dead", 4)
    assert len(list_dead(queue, settings=broker_settings, limit=2)) == 2


def test_the_dead_are_sent_back_as_they_came(
    broker_settings: Settings, queue: str, dead_tasks: list[str]
) -> None:
    assert requeue_dead(queue, settings=broker_settings) == 4
    assert_depth(broker_settings, f"{queue}.dead", 0)
    back = take_all(broker_settings, queue)
    assert [properties.message_id for _, properties, _ in back] == [*dead_tasks, None]
    assert not any(properties.headers for _, properties, _ in back)
    assert json.loads(back[0][2])["task_id"] == dead_tasks[0]


def test_one_of_the_dead_can_be_sent_back_alone(
    broker_settings: Settings, queue: str, dead_tasks: list[str]
) -> None:
    assert requeue_dead(queue, settings=broker_settings, task_id=dead_tasks[1][:8]) == 1
    [(_, properties, _)] = take_all(broker_settings, queue)
    assert properties.message_id == dead_tasks[1]
    assert_depth(broker_settings, f"{queue}.dead", 3)


def test_a_task_sent_back_has_all_its_attempts_again(
    broker_settings: Settings, queue: str, dead_tasks: list[str]
) -> None:
    requeue_dead(queue, settings=broker_settings)
    with BackgroundConsumer(
        lambda task: task.data, queue=queue, settings=broker_settings
    ) as consumer:
        records = consumer.wait(4, timeout_s=10)
    assert [(r.task_id, r.outcome, r.attempt) for r in records[:3]] == [
        (task_id, "done", 1) for task_id in dead_tasks
    ]


def test_without_a_queue_to_go_to_the_dead_stay(
    broker_settings: Settings, queue: str, dead_tasks: list[str]
) -> None:
    assert dead_tasks
    with raw_channel(broker_settings) as channel:
        channel.queue_delete(queue)
    with pytest.raises(Unroutable, match="no queue"):
        requeue_dead(queue, settings=broker_settings)
    assert_depth(broker_settings, f"{queue}.dead", 4)


def test_where_nothing_has_died_there_is_nothing(broker_settings: Settings, queue: str) -> None:
    assert list_dead(queue, settings=broker_settings) == []
    assert requeue_dead(queue, settings=broker_settings) == 0


def test_without_a_broker_it_says_what_to_do() -> None:
    with pytest.raises(ConnectError, match="broker start"):
        list_dead(settings=Settings(port=1))


def test_the_commands_show_and_send_back(
    broker_settings: Settings,
    queue: str,
    dead_tasks: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    assert main(["dead", "list", "--queue", queue]) == 0
    said = capsys.readouterr().out
    assert f"{dead_tasks[0]}  RuntimeError: no paper" in said
    assert f"4 dead messages of {queue}." in said
    assert main(["dead", "requeue", "--queue", queue, "--id", dead_tasks[0]]) == 0
    assert f"1 message sent back to {queue}." in capsys.readouterr().out
