"""The walk-through in a terminal, in half a minute: ``mqlab demo``.

A synchronous client waits for the work, an asynchronous one sends it to a queue, and workers do it.
The demo deletes its queues at the end.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import pika

from mqlab import broker
from mqlab.consumer import BackgroundConsumer
from mqlab.errors import WaitTimeout
from mqlab.measure.runs import Waited, format_time, repeat_sends, summarise
from mqlab.producer import Producer
from mqlab.records import SendRecord, TaskRecord
from mqlab.settings import Settings
from mqlab.task import Task
from mqlab.walkthrough import (
    SyncRecord,
    perform_heavy_task,
    run_synchronous_experiment,
    send_task_to_queue,
)

REPEATS = 30
REPORTS = ("January", "February", "March")


def demo(*, png: Path = Path("mqlab-demo.png"), duration_s: float = 5.0) -> None:
    """Run the walk-through with work of ``duration_s`` seconds, and save a plot of it as ``png``.

    Uses the broker that is running, or starts one and stops it again. Raises what ``broker.start``
    raises.
    """
    here = broker.start(with_parent=True)
    queue = f"mqlab_demo_{uuid.uuid4().hex[:8]}"
    try:
        print(here)
        print("\n1. The synchronous client does the work itself.\n")
        sync = run_synchronous_experiment("Quarterly Sales Report (SYNC)", duration_s=duration_s)
        print("\n2. The asynchronous client sends the work to a queue.\n")
        tasks = [
            send_task_to_queue(f"{month} Report (ASYNC)", queue=queue, settings=here.settings)
            for month in REPORTS
        ]
        print(f"   {REPEATS} more on a connection each, {REPEATS} on one that stays open ...")
        alone, kept = _repeat(f"{queue}_repeats", here.settings)
        print(f"\n3. {len(REPORTS)} workers take the tasks out of the queue.\n")
        done = _work(queue, here.settings, duration_s)
        _print_table(sync, alone, kept)
        _draw(png, sync, alone, kept, done)
        print(f"\nPlot: {png}   ({len(tasks)} tasks sent, {len(done)} done)")
    finally:
        _delete(here.settings, queue, f"{queue}.dead", f"{queue}_repeats")
        if here.started:
            broker.stop()


def _repeat(queue: str, settings: Settings) -> tuple[list[SendRecord], list[SendRecord]]:
    numbers = range(REPEATS)
    alone = repeat_sends(
        lambda n: send_task_to_queue(n, queue=queue, settings=settings, quiet=True), numbers
    )
    with Producer(queue, settings=settings) as producer:
        return alone, repeat_sends(producer.send, numbers)


def _work(queue: str, settings: Settings, duration_s: float) -> list[TaskRecord]:
    def work(task: Task) -> str:
        return perform_heavy_task(task.data, task_id=task.task_id, duration_s=duration_s)[1]

    end = time.monotonic() + duration_s * len(REPORTS) + 20
    with BackgroundConsumer(
        work, queue=queue, settings=settings, workers=len(REPORTS), name="demo"
    ) as consumer:
        print("   working ", end="", flush=True)
        import mqlab.measure.plots  # noqa: F401 - it loads matplotlib while the workers work

        while True:
            try:
                done = consumer.wait(len(REPORTS), timeout_s=1.0, show_progress=False)
                break
            except WaitTimeout:
                if time.monotonic() > end:
                    raise
                print(".", end="", flush=True)
        print()
    for record in done:  # the consumer has stopped, so the acks are known
        print(f"   {record}, {'acked' if record.acked_at else 'not acked'}")
    return done


def _print_table(sync: SyncRecord, alone: Sequence[SendRecord], kept: Sequence[SendRecord]) -> None:
    print(f"\n{'the client ...':34}{'waits (median)':>16}{'95 of 100 within':>20}")
    rows: dict[str, Sequence[Waited]] = {
        "does the work itself": [sync],
        "sends it, a new connection each": alone,
        "sends it on an open connection": kept,
    }
    for name, records in rows.items():
        summary = summarise(records)
        p95 = format_time(summary.p95_s) if summary.repeats > 1 else ""
        print(f"{name:34}{format_time(summary.p50_s):>16}{p95:>20}".rstrip())
    print("\nwhere a send on a new connection spends its time (medians):")
    for part in ("connect", "declare", "publish", "confirm"):
        seconds = statistics.median(getattr(record, f"{part}_s") for record in alone)
        print(f"   {part:31}{format_time(seconds):>16}")


def _draw(
    png: Path,
    sync: SyncRecord,
    alone: Sequence[SendRecord],
    kept: Sequence[SendRecord],
    done: Sequence[TaskRecord],
) -> None:
    import matplotlib as mpl  # not at the top: it takes longer to import than everything else
    from matplotlib.figure import Figure

    from mqlab.measure import plots

    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(11, 13), layout="constrained")
        waits, cost, line = figure.subplots(3, 1)
    ways: dict[str, Sequence[Waited]] = {
        "does the work": [sync],
        "new connection": alone,
        "open connection": kept,
    }
    plots.compare_waits(ways, waits)
    plots.send_cost(alone, cost)
    plots.task_timeline(done, line)
    png.write_bytes(plots.show(waits, alt="mqlab demo").png)


def _delete(settings: Settings, *queues: str) -> None:
    with pika.BlockingConnection(settings.parameters(name="mqlab demo")) as connection:
        channel = connection.channel()
        for queue in queues:
            channel.queue_delete(queue)  # no error if it is not there
