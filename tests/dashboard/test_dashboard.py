"""The dashboard: its buttons by click, their effect as the broker tells it, and its end."""

from __future__ import annotations

import contextlib
import html
import inspect
import re
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pika
import psutil
import pytest

from mqlab import BackgroundConsumer, Dashboard, Producer
from mqlab.commands import command
from mqlab.dashboard import drawing, widget
from mqlab.measure import plots
from mqlab.settings import Settings
from mqlab.task import QUEUE
from tests.conftest import PrivateBroker
from tests.helpers import (
    assert_depth,
    consumers,
    depth,
    eventually,
    free_port,
    management,
    raw_channel,
)
from tests.test_kernel import Kernel, kernel  # noqa: F401  (a fixture)

Open = Callable[..., Dashboard]


@pytest.fixture
def open_dashboard(broker_settings: Settings, queue: str) -> Iterator[Open]:
    opened: list[Dashboard] = []

    def open_it(**options: Any) -> Dashboard:
        opened.append(Dashboard(queue, **{"settings": broker_settings} | options))
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()


def click(dashboard: Dashboard, *names: str) -> None:
    for name in names:
        dashboard.buttons[name].click()


def said(dashboard: Dashboard) -> str:
    return "\n".join(text for _, text in dashboard.state().troubles)


def text(dashboard: Dashboard) -> str:
    """The sentence for the state."""
    return html.unescape(re.sub("<[^>]*>", "", dashboard._sentence.value))


def picture(dashboard: Dashboard) -> str:
    drawn: str = dashboard._picture.value
    return drawn


def workers_of(dashboard: Dashboard) -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # a zombie, of another test's broker
            if {"work", "--events", dashboard.queue} <= set(child.cmdline()):
                found.append(child)
    return found


def has_exited(process: psutil.Process) -> bool:
    """Whether the process has ended. An orphan stays a zombie until init reads its status."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def exists(settings: Settings, queue: str) -> bool:
    with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
        return depth(settings, queue) >= 0
    return False


def test_its_buttons_send_and_start_and_stop_workers(
    open_dashboard: Open,
    broker_settings: Settings,
    queue: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    dashboard = open_dashboard(task_s=0.2)
    state = dashboard.state
    assert state().ready is None
    assert "does not exist yet" in text(dashboard)
    assert not exists(broker_settings, queue), "watching has declared the queue"

    click(dashboard, "send-10", "send-1")
    eventually(lambda: state().ready == 11)
    assert_depth(broker_settings, queue, 11)
    assert state().sent_per_s

    click(dashboard, "start-worker", "start-worker")
    eventually(lambda: state().workers == 2)
    assert consumers(broker_settings, queue) == 2
    eventually(lambda: state().done == 11)
    eventually(lambda: (state().ready, state().unacked) == (0, 0))
    assert depth(broker_settings, queue) == 0
    assert state().done_per_s
    tasks = [task for lane in state().lanes for task in lane.tasks]
    assert {task.outcome for task in tasks} == {"done"}
    assert sorted(task.data for task in tasks) == sorted(f"report {n}" for n in range(1, 12))

    click(dashboard, "stop-worker")
    eventually(lambda: state().workers == 1)
    assert consumers(broker_settings, queue) == 1
    click(dashboard, "stop-worker")
    eventually(lambda: state().workers == 0)
    assert consumers(broker_settings, queue) == 0
    assert said(dashboard) == ""
    eventually(lambda: re.search(r"0 ready, 0 unacked, 0 workers, 11 done\.", text(dashboard)))
    click(dashboard, "stop-worker", "kill-worker", "cut")
    eventually(lambda: said(dashboard).count("There is no") == 3)
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_is_stopped_finishes_its_task_and_one_that_is_killed_does_not(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    dashboard = open_dashboard(task_s=2.0)
    click(dashboard, "send-1", "start-worker")
    [lane] = eventually(lambda: [lane for lane in dashboard.state().lanes if lane.working])
    assert lane.expected_s == 2.0
    click(dashboard, "stop-worker")
    eventually(lambda: dashboard.state().workers == 0)
    assert dashboard.state().done == 1

    click(dashboard, "send-1", "start-worker")
    eventually(lambda: dashboard.state().unacked == 1)
    [process] = workers_of(dashboard)
    click(dashboard, "kill-worker")
    eventually(lambda: dashboard.state().workers == 0)
    eventually(lambda: has_exited(process))
    assert_depth(broker_settings, queue, 1)
    assert dashboard.state().done == 1
    assert "Worker 2 was killed" in said(dashboard)
    assert "Task 'report 2' was not acknowledged, so it went back to the queue." in said(dashboard)
    assert dashboard.state().lanes[-1].tasks[-1].outcome == "lost"

    click(dashboard, "start-worker")
    eventually(lambda: "'report 2' came again (redelivered), to worker 3" in said(dashboard))
    eventually(lambda: dashboard.state().done == 2)


def test_a_cut_is_the_brokers_and_meets_the_consumers_of_others_too(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    dashboard = open_dashboard(task_s=30.0)
    with Producer(queue, settings=broker_settings) as producer:
        producer.send_many(range(3))
    with (
        contextlib.suppress(pika.exceptions.ConnectionClosedByBroker),
        raw_channel(broker_settings) as channel,
    ):
        channel.basic_qos(prefetch_count=2)
        channel.basic_consume(queue, lambda *_delivery: None)
        # the management page is told of the stranger's deliveries some seconds late
        eventually(lambda: dashboard.state().unacked == 2 or channel.connection.sleep(0.1))
        assert not dashboard.state().unacked_is_exact
        eventually(lambda: "1 ready, about 2 unacked, 1 worker (1 elsewhere)" in text(dashboard))
        click(dashboard, "start-worker")
        eventually(lambda: dashboard.state().workers == 2)
        # and of the new worker's connection, too
        click(dashboard, "cut")
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="320"):
            channel.connection.sleep(15)
    eventually(lambda: "closed 2 connections" in said(dashboard))
    # the worker is back, and what nobody has acknowledged was delivered to it again
    eventually(lambda: "is connected again" in said(dashboard))
    eventually(lambda: dashboard.state().unacked == 1 and dashboard.state().ready == 2)
    assert consumers(broker_settings, queue) == 1


def test_it_does_without_the_management_page(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    dashboard = open_dashboard(settings=replace(broker_settings, management_url=nobody))
    click(dashboard, "send-1")
    eventually(lambda: dashboard.state().ready == 1)
    assert dashboard.state().unacked == 0
    with raw_channel(broker_settings) as channel:
        channel.basic_consume(queue, lambda *_delivery: None)
        eventually(lambda: dashboard.state().elsewhere == 1)
        assert dashboard.state().unacked is None
        assert dashboard.state().ready == 0
        eventually(lambda: "? unacked" in text(dashboard))
        click(dashboard, "cut")
        eventually(lambda: f"API at {nobody} does not respond" in said(dashboard))
        assert "Next: set MQLAB_MANAGEMENT_URL" in said(dashboard)


def test_it_says_that_the_broker_is_away_and_recovers(
    private_broker: Callable[[], PrivateBroker],
) -> None:
    broker = private_broker()
    dashboard = Dashboard("tasks", settings=broker.settings, task_s=0.2)
    try:
        click(dashboard, "send-10", "start-worker")
        eventually(lambda: dashboard.state().done)
        broker.kill()
        eventually(lambda: dashboard.state().problem)
        eventually(lambda: f"Next: {command('broker start')}" in text(dashboard))
        broker.restart()
        eventually(lambda: not dashboard.state().problem, 20)
        eventually(lambda: dashboard.state().workers == 1)
        # What a broker keeps that is killed is not the dashboard's business: docs/faults.md.
        before = dashboard.state().done
        click(dashboard, "send-10")
        eventually(lambda: dashboard.state().done >= before + 10, 20)
        eventually(lambda: dashboard.state().ready == dashboard.state().unacked == 0, 30)
        eventually(lambda: f"{dashboard.state().done} done" in text(dashboard))
    finally:
        dashboard.close()


def test_what_is_said_again_takes_no_second_line(open_dashboard: Open) -> None:
    dashboard = open_dashboard()
    click(dashboard, "stop-worker", "stop-worker", "kill-worker", "stop-worker")
    eventually(lambda: "to stop: start one. (3 so far)" in said(dashboard))
    assert said(dashboard).count("\n") == 1


def test_the_sentence_and_the_picture_are_of_the_same_moment(open_dashboard: Open) -> None:
    dashboard = open_dashboard()
    drawn: list[tuple[str, str]] = []
    dashboard._picture.observe(lambda _: drawn.append((text(dashboard), picture(dashboard))))
    click(dashboard, "send-10", "start-worker")
    eventually(lambda: "1 unacked" in text(dashboard))
    assert len({sentence for sentence, _ in drawn}) > 1
    for sentence, picture_then in drawn:
        assert f"aria-label='{html.escape(sentence, quote=True)}'" in picture_then


def test_without_a_broker_it_opens_and_says_what_to_do(open_dashboard: Open) -> None:
    dashboard = open_dashboard(settings=Settings(port=free_port()))
    assert "No broker could be reached" in text(dashboard)
    assert f"Next: {command('broker start')}" in text(dashboard)
    click(dashboard, "send-1", "start-worker")
    eventually(lambda: "Worker 1 ended by itself: No broker could be reached" in said(dashboard))
    # what was seen and what Send 1 met are the same words, and so one line
    assert said(dashboard).count("No broker could be reached") == 2


def test_a_queue_that_it_may_not_look_at_is_told_and_not_called_missing(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    with raw_channel(broker_settings) as channel:
        channel.queue_declare(queue, exclusive=True)
        dashboard = open_dashboard()
        eventually(lambda: "RESOURCE_LOCKED" in dashboard.state().problem)
    eventually(lambda: "does not exist yet" in text(dashboard))


def test_a_consumer_of_the_same_kernel_has_a_lane_for_each_of_its_workers(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    dashboard = open_dashboard()
    both = threading.Barrier(3, timeout=10)

    def work(task: Any) -> None:
        both.wait()
        if task.data == "bad":
            raise ValueError("a <b>bad</b> one")

    with BackgroundConsumer(work, queue=queue, settings=broker_settings, workers=2, max_attempts=1):
        with Producer(queue, settings=broker_settings) as producer:
            producer.send_many(["<script>", "bad"])
        eventually(lambda: sum(bool(lane.working) for lane in dashboard.state().lanes) == 2)
        assert dashboard.state().workers == 2
        assert dashboard.state().unacked == 2
        assert dashboard.state().unacked_is_exact
        eventually(lambda: "&lt;script&gt;" in picture(dashboard))
        assert "<script>" not in picture(dashboard)
        both.wait()
        eventually(lambda: dashboard.state().unacked == 0)
        eventually(lambda: f"is in {queue}.dead now: ValueError: a <b>bad</b>" in said(dashboard))
    assert "<script>" not in picture(dashboard)
    assert dashboard.state().done == 1
    [svg] = re.findall(
        r"<svg class='mqlab-chart'.*</svg>(?=<div class='mqlab-legend')", picture(dashboard)
    )
    assert ET.fromstring(svg).get("aria-label")


def test_closing_leaves_nothing_and_a_second_one_replaces_the_first(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    first = open_dashboard(task_s=30.0)
    click(first, "send-1", "start-worker", "start-worker")
    eventually(lambda: first.state().unacked == 1 and first.state().workers == 2)
    [one, two] = workers_of(first)
    words = [*one.cmdline(), *two.cmdline()]
    assert not [word for word in words if broker_settings.password in word], "a command line tells"
    second = open_dashboard()
    assert "closed" in text(first)
    assert has_exited(one)
    assert has_exited(two)
    assert consumers(broker_settings, queue) == 0
    assert_depth(broker_settings, queue, 1)
    eventually(lambda: second.state().ready == 1)
    click(first, "send-1")
    second.close()
    second.close()
    assert depth(broker_settings, queue) == 1
    left = [thread.name for thread in threading.enumerate() if queue in thread.name]
    assert left == []


def test_when_nothing_happens_nothing_is_sent_to_the_browser(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    with raw_channel(broker_settings) as channel:
        channel.queue_declare(queue, durable=True)
    dashboard = open_dashboard()
    eventually(lambda: "0 ready" in text(dashboard) and "0 ready" in dashboard._spoken.value)
    changes: list[object] = []
    for each in (*dashboard.view.children[2:], dashboard._spoken):
        each.observe(changes.append, "value")
    looked_at = dashboard.state().at
    eventually(lambda: dashboard.state().at > looked_at + 2)
    assert changes == []
    click(dashboard, "send-1")
    eventually(lambda: changes)


@pytest.mark.parametrize("now", [False, True], ids=["restarted", "killed"])
def test_a_kernel_that_ends_takes_its_dashboard_and_workers_along(
    kernel: Kernel,  # noqa: F811
    broker_settings: Settings,
    queue: str,
    now: bool,
) -> None:
    kernel.run(f"from mqlab import Dashboard; dashboard = Dashboard({queue!r}, task_s=30)")
    assert kernel.run("dashboard") == f"Dashboard of {queue!r}"
    kernel.run("for name in ('send-1', 'start-worker'): dashboard.buttons[name].click()")
    unacked = "import time\nwhile not dashboard.state().unacked: time.sleep(0.1)"
    kernel.run(unacked)
    worker = psutil.Process(int(kernel.run("print(dashboard._watch.processes[0].pid)")))
    # an interrupt goes to all processes of the kernel's group, and is not meant for the worker
    message_id = kernel.begin("print('waiting', flush=True); time.sleep(60)")
    kernel.wait_for_output()
    kernel.manager.interrupt_kernel()
    kernel.finish(message_id)
    assert consumers(broker_settings, queue) == 1
    kernel.manager.restart_kernel(now=now)
    eventually(lambda: has_exited(worker))
    eventually(lambda: consumers(broker_settings, queue) == 0)
    assert_depth(broker_settings, queue, 1)


def test_a_button_works_while_a_cell_runs(
    kernel: Kernel,  # noqa: F811
    broker_settings: Settings,
    queue: str,
) -> None:
    kernel.run(f"from mqlab import Dashboard; dashboard = Dashboard({queue!r})")
    comm_id = kernel.run("print(dashboard.buttons['send-10'].comm.comm_id)").strip()
    client = kernel.client
    # What JupyterLab does: it asks for a subshell, and names it in the messages of widgets.
    client.control_channel.send(client.session.msg("create_subshell_request", {}))
    subshell = client.get_control_msg(timeout=10)["content"]["subshell_id"]
    message_id = kernel.begin("print('busy', flush=True); import time; time.sleep(60)")
    kernel.wait_for_output()
    data = {"method": "custom", "content": {"event": "click"}}
    press = client.session.msg("comm_msg", {"comm_id": comm_id, "data": data})
    press["header"]["subshell_id"] = subshell
    client.shell_channel.send(press)
    eventually(lambda: exists(broker_settings, queue) and depth(broker_settings, queue) == 10)
    kernel.manager.interrupt_kernel()
    assert "KeyboardInterrupt" in kernel.finish(message_id)[1]


def test_it_looks_as_plots_does_and_prints_as_a_constant(open_dashboard: Open, queue: str) -> None:
    dashboard = open_dashboard()
    assert (drawing.ACCENT, drawing.GREY) == (plots.ACCENT, plots.GREY)
    assert dashboard._repr_mimebundle_()["text/plain"] == f"Dashboard of {queue!r}"
    for button in dashboard.buttons.values():
        assert button.tooltip


def test_row_62_every_task_of_a_fast_consumer_in_this_process_is_counted(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    dashboard = open_dashboard()

    def work(task: Any) -> None:
        if task.data % 20 == 0:
            raise ValueError("every 20th")

    with (
        Producer(queue, settings=broker_settings) as producer,
        BackgroundConsumer(
            work, queue=queue, settings=broker_settings, prefetch=100, max_attempts=1
        ) as consumer,
    ):
        started = time.monotonic()
        producer.send_many(range(1000))
        consumer.wait(1000, timeout_s=60, show_progress=False)
        assert 1000 / (time.monotonic() - started) > 100, "too slow to prove anything"
        eventually(lambda: (dashboard.state().done, dashboard.state().dead) == (950, 50))
        eventually(lambda: "every 20th (50 so far)" in said(dashboard))
    eventually(lambda: dashboard.state().in_dead_queue == 50)
    eventually(lambda: not dashboard.state().lanes[0].working)
    assert (dashboard.state().done, dashboard.state().dead) == (950, 50)
    assert dashboard.state().retried == dashboard.state().lost == 0


def test_row_62_every_task_of_fast_worker_processes_is_counted(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    dashboard = open_dashboard(task_s=0.0)
    with Producer(queue, settings=broker_settings) as producer:
        producer.send_many(range(475))
        with raw_channel(broker_settings) as channel:
            for _ in range(50):
                channel.basic_publish("", queue, b"not a task")
        producer.send_many(range(475))
    click(dashboard, "start-worker", "start-worker")
    eventually(lambda: dashboard.state().done + dashboard.state().dead >= 1000, 60)
    assert (dashboard.state().done, dashboard.state().dead) == (950, 50)
    eventually(lambda: "(50 so far)" in said(dashboard))
    eventually(lambda: dashboard.state().in_dead_queue == 50)
    assert_depth(broker_settings, f"{queue}.dead", 50)


def test_a_killed_workers_task_is_unacked_until_the_broker_has_it_ready_again(
    private_broker: Callable[[], PrivateBroker],
) -> None:
    broker = private_broker()
    dashboard = Dashboard("tasks", settings=broker.settings, task_s=60.0)
    server = broker.node.processes()
    try:
        click(dashboard, "send-1", "start-worker")
        eventually(lambda: dashboard.state().unacked == 1)
        for process in server:
            process.suspend()  # so that the broker cannot know of the kill yet
        click(dashboard, "kill-worker")
        eventually(lambda: "was killed" in said(dashboard))
        assert (dashboard.state().ready, dashboard.state().unacked) == (0, 1)
        for process in server:
            process.resume()
        eventually(lambda: dashboard.state().ready == 1)
        assert dashboard.state().unacked == 0
        totals = [(ready or 0) + (unacked or 0) for _, ready, unacked in dashboard.state().depth]
        assert set(totals[totals.index(1) :]) == {1}, "the picture has a dip"
    finally:
        for process in server:
            process.resume()
        dashboard.close()


def test_a_purge_is_a_fall_and_no_message_on_its_way(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    dashboard = open_dashboard(task_s=60.0)
    click(dashboard, "send-10", "start-worker")
    eventually(lambda: (dashboard.state().ready, dashboard.state().unacked) == (9, 1))
    with raw_channel(broker_settings) as channel:
        channel.queue_purge(queue)
    eventually(lambda: dashboard.state().ready == 0)
    assert dashboard.state().unacked == 1


def test_the_list_has_the_brokers_queues_and_choosing_one_shows_it(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    with raw_channel(broker_settings) as channel:
        channel.queue_declare(f"{queue}.dead", durable=True)
    dashboard = open_dashboard(task_s=60.0)
    names = [queue, f"{queue}.dead"]
    eventually(lambda: [value for _, value in dashboard.chooser.options] == ["", *names])
    assert dashboard.chooser.value == queue
    click(dashboard, "send-1", "start-worker")
    eventually(lambda: dashboard.state().unacked == 1)
    [process] = workers_of(dashboard)
    dashboard.chooser.value = f"{queue}.dead"
    eventually(lambda: dashboard.state().queue == f"{queue}.dead")
    assert dashboard.state().ready == 0
    eventually(lambda: has_exited(process))  # it belonged to the other queue
    assert_depth(broker_settings, queue, 1)
    click(dashboard, "send-1")
    assert_depth(broker_settings, f"{queue}.dead", 1)
    dashboard.chooser.value = queue
    eventually(lambda: (dashboard.state().queue, dashboard.state().ready) == (queue, 1))


def test_without_a_queue_it_follows_the_one_that_is_busy(
    broker_settings: Settings, queue: str
) -> None:
    dashboard = Dashboard(settings=broker_settings)
    try:
        assert dashboard.queue == QUEUE
        assert repr(dashboard) == f"Dashboard of {QUEUE!r}"
        assert dashboard.chooser.value == ""
        with Producer(queue, settings=broker_settings) as producer:
            producer.send("x")
            eventually(lambda: dashboard.queue == queue)
            eventually(lambda: dashboard.state().ready == 1)
            assert dashboard.chooser.value == ""
            click(dashboard, "start-worker")
            eventually(lambda: dashboard.state().workers)
            with raw_channel(broker_settings) as channel:
                channel.queue_declare(f"{queue}.2", durable=True)
            names = eventually(lambda: f"{queue}.2" in dict(dashboard.chooser.options) and "seen")
            assert names
            assert dashboard.queue == queue, "it has left a queue where its workers are"
    finally:
        dashboard.close()
        with raw_channel(broker_settings) as channel:
            channel.queue_delete(f"{queue}.2")


def test_a_user_who_may_not_list_queues_still_has_a_dashboard(
    open_dashboard: Open, broker_settings: Settings, queue: str
) -> None:
    user = f"user-{queue}"
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    management(broker_settings, f"users/{user}", "PUT", {"password": "secret", "tags": ""})
    management(broker_settings, f"permissions/%2F/{user}", "PUT", everything)
    try:
        dashboard = open_dashboard(
            settings=replace(broker_settings, username=user, password="secret")
        )
        click(dashboard, "send-1")
        eventually(lambda: dashboard.state().ready == 1)
        assert [value for _, value in dashboard.chooser.options] == ["", queue]
        dashboard.close()
    finally:
        management(broker_settings, f"users/{user}", "DELETE")


def test_closing_that_is_interrupted_anywhere_leaves_nothing(
    open_dashboard: Open, broker_settings: Settings
) -> None:
    def close(dashboard: Dashboard, interrupted_at: int) -> int:
        """Close it with a KeyboardInterrupt at that line; return how many lines there were."""
        lines = 0

        def trace(_frame: Any, event: str, _argument: Any) -> Any:
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == interrupted_at:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            dashboard.close()
        except KeyboardInterrupt:
            assert interrupted_at
        finally:
            sys.settrace(before)
        return lines

    def connections() -> int:
        return sum(
            c.raddr and c.raddr.port == broker_settings.port
            for c in psutil.Process().net_connections()
        )

    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("mqlab")]

    connected, running = connections(), threads()
    count = close(open_dashboard(), 0)
    assert 3 <= count < 60
    for line in range(1, count + 1):
        dashboard = open_dashboard(task_s=60.0)
        processes: list[psutil.Process] = []
        if line % 4 == 2:
            click(dashboard, "send-1", "start-worker")
            processes = eventually(lambda dashboard=dashboard: workers_of(dashboard))
        close(dashboard, line)
        if line == 1:  # before the first statement was run: as if close had not been called
            dashboard.close()
        eventually(lambda processes=processes: all(map(has_exited, processes)))
        eventually(lambda: threads() == running)
        eventually(lambda: connections() == connected)


def test_the_private_name_of_ipykernel_is_still_there() -> None:
    comm = pytest.importorskip("ipykernel.comm.comm")
    hook = getattr(comm.BaseComm, widget.SUBSHELL_HOOK)
    assert list(inspect.signature(hook).parameters) == ["self", "data", "default"]
