"""The measured runs: what they measure is what happened."""

import threading
import time
from dataclasses import dataclass

import pytest

from mqlab.errors import SettingsError, TaskError, WaitTimeout
from mqlab.measure.runs import (
    format_time,
    repeat_sends,
    run_waiting_clients,
    summarise,
)
from mqlab.walkthrough import run_synchronous_experiment


@dataclass
class Sent:
    data: object
    wait_s: float


def test_the_synchronous_client_waits_as_long_as_the_work():
    record = run_synchronous_experiment("Sales", duration_s=0.3, quiet=True)

    assert 0.3 <= record.wait_s < 1
    assert record.data == "Sales"
    assert record.result == "COMPLETED: Report generated for 'Sales'"


def test_the_synchronous_client_prints_the_walkthroughs_lines_with_one_id(capsys):
    record = run_synchronous_experiment("Sales", duration_s=0)

    short = record.task_id[:8]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line] == [
        "---------------------------------------------------------",
        "*** [Client] Request received for data: Sales ***",
        "*** [Client] WARNING: Main thread will be blocked now! ***",
        f"--- [Worker] Starting Task ID: {short} with data: Sales ---",
        f"--- [Worker] Task ID: {short} Finished. "
        "Result: COMPLETED: Report generated for 'Sales' ---",
        f"*** [Client] Response received after waiting. Task ID: {short} ***",
        f"*** [Client] Total time waited: {record.wait_s:.2f} seconds ***",
        "---------------------------------------------------------",
    ]


def test_a_quiet_client_prints_nothing(capsys):
    run_synchronous_experiment("Sales", duration_s=0, quiet=True)

    assert capsys.readouterr().out == ""


def test_a_negative_duration_is_refused():
    with pytest.raises(TaskError):
        run_synchronous_experiment("Sales", duration_s=-1, quiet=True)


def test_client_k_before_one_handler_waits_k_times_the_work():
    run = run_waiting_clients(4, duration_s=0.1, quiet=True)

    assert sorted(client.client for client in run.clients) == [1, 2, 3, 4]
    for place, wait_s in enumerate(run.waits_s, 1):
        assert 0.1 * place - 0.02 <= wait_s < 0.1 * place + 0.5


def test_one_handler_serves_one_client_at_a_time():
    run = run_waiting_clients(4, duration_s=0.05, quiet=True)

    for earlier, later in zip(run.clients, run.clients[1:], strict=False):
        assert later.started_s >= earlier.started_s + 0.05


def test_two_handlers_serve_two_clients_at_a_time():
    run = run_waiting_clients(4, duration_s=0.3, handlers=2, quiet=True)

    assert run.waits_s[1] < 0.6 <= run.waits_s[2]
    assert run.waits_s[3] < 1.1


def test_a_wait_is_the_time_in_line_and_the_work():
    last = run_waiting_clients(2, duration_s=0.1, quiet=True).clients[-1]

    assert last.wait_s == pytest.approx(
        (last.started_s - last.asked_s) + (last.answered_s - last.started_s)
    )


def test_the_main_thread_tells_how_far_it_is(capsys):
    run_waiting_clients(3, duration_s=0)

    assert capsys.readouterr().out.splitlines() == [f"{n} of 3 clients answered" for n in (1, 2, 3)]


def test_no_client_thread_is_left():
    run_waiting_clients(3, duration_s=0, quiet=True)

    assert not [t for t in threading.enumerate() if t.name.startswith("client-")]


def test_a_run_that_takes_too_long_ends_in_words_and_in_time():
    start = time.monotonic()
    with pytest.raises(WaitTimeout, match="1 of 3 clients"):
        run_waiting_clients(3, duration_s=0.4, timeout_s=0.6, quiet=True)

    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize(("clients", "handlers"), [(0, 1), (1, 0), (-1, 1)])
def test_a_run_without_clients_or_handlers_is_refused(clients, handlers):
    with pytest.raises(SettingsError):
        run_waiting_clients(clients, handlers=handlers)


def test_repeats_are_kept_in_the_order_of_sending():
    records = repeat_sends(lambda data: Sent(data, 0.1), ["a", "b", "c"])

    assert [record.data for record in records] == ["a", "b", "c"]


def test_a_summary_has_the_median_and_the_95th_percentile():
    # 0 ms to 100 ms in steps of 1 ms: the median is 50 ms, 95 of 100 are within 95 ms
    summary = summarise(Sent(n, n / 1000) for n in range(101))

    assert summary.repeats == 101
    assert (summary.fastest_s, summary.slowest_s) == (0, 0.1)
    assert (summary.p50_s, summary.p95_s) == pytest.approx((0.050, 0.095))
    assert str(summary) == ("101 repeats: median 50.0 ms, 95 of 100 within 95.0 ms, slowest 0.10 s")


def test_one_repeat_is_its_own_summary():
    assert summarise([Sent("a", 0.2)]).p95_s == 0.2


def test_no_repeats_have_no_summary():
    with pytest.raises(SettingsError):
        summarise([])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5.00 s"), (0.1, "0.10 s"), (0.0063, "6.3 ms"), (0.00064, "0.64 ms"), (0, "0.00 ms")],
)
def test_a_time_is_written_for_people(seconds, text):
    assert format_time(seconds) == text
