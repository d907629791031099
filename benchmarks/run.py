"""Measure mqlab and its peers on one broker, in interleaved runs (``make bench``).

Writes medians and spread to ``benchmarks/RESULTS.md`` and ``benchmarks/results.png``. Only the
ratios are valid on other machines: both sides of a ratio are measured within minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections import defaultdict
from pathlib import Path

import pika

from mqlab import broker
from mqlab.broker.node import Node
from mqlab.broker.ports import free_port

HERE = Path(__file__).parent
MANY, FEW = 20_000, 2_000
COUNTS = {  # messages in each repeat; MANY if not listed
    "publish Celery unconfirmed": 5_000,
    "publish Dramatiq confirmed": 5_000,
    "publish kombu confirmed": FEW,
    "publish pika one by one": FEW,
    "publish mqlab send": FEW,
    "publish connection per task": 100,
    "consume pika threaded": 10_000,
    "consume Dramatiq": 5_000,
    "consume Celery": 5_000,
    "consume mqlab 16 workers 10 ms": 3_200,
    "latency mqlab": 1_000,
    "latency pika callback": 1_000,
    "memory mqlab": 200_000,
}
ONCE = {"memory mqlab"}
# ratio, its numerator and denominator (cases), and the aim: at least this
RATIOS = [
    ("send_many / raw socket", "publish mqlab send_many", "publish raw socket", 0.85),
    ("send_many / aio-pika confirmed", "publish mqlab send_many",
     "publish aio-pika confirmed", 2.5),
    ("send_many / Celery unconfirmed", "publish mqlab send_many", "publish Celery unconfirmed", 6),
    ("send_many / Dramatiq confirmed", "publish mqlab send_many", "publish Dramatiq confirmed", 8),
    ("send_many / Dramatiq unconfirmed", "publish mqlab send_many",
     "publish Dramatiq unconfirmed", 1.3),
    ("send / pika confirmed one by one", "publish mqlab send", "publish pika one by one", 0.95),
    ("send / connection per task", "publish mqlab send", "publish connection per task", 10),
    ("consumer / pika callback", "consume mqlab", "consume pika callback", 2.2),
    ("consumer / pika threaded", "consume mqlab", "consume pika threaded", 2.6),
    ("consumer / Dramatiq", "consume mqlab", "consume Dramatiq", 3.5),
    ("consumer / Celery", "consume mqlab", "consume Celery", 6),
    ("consumer / raw socket", "consume mqlab", "consume raw socket", 0.60),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    names = json.loads(subprocess.run(
        [sys.executable, "-c", "import json, cases; print(json.dumps(list(cases.CASES)))"],
        cwd=HERE, env={**os.environ, "AMQP_URL": ""}, capture_output=True, check=True,
    ).stdout)  # fmt: skip
    names = [name for name in names if options.only in name]
    figures: dict[str, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="mqlab-bench-") as folder:
        started = broker.start(
            way="local", port=free_port(), management_port=free_port(),
            state_dir=Path(folder), with_parent=True,
        )  # fmt: skip
        print(started)
        for repeat in range(options.repeats):
            # Every second repeat runs backwards, so no case always follows the same one.
            for name in names[:: -1 if repeat % 2 else 1]:
                if not (name in ONCE and repeat):
                    figures[name].append(run_case(name, started.settings.url))
                    print(f"{repeat + 1}/{options.repeats}  {name}: {figures[name][-1]}")
        Node(Path(folder).resolve(), 0, 0).kill()
    if not options.only:
        table = write_table(figures, started.version)
        print("\n" + table)
        draw(figures)


def run_case(name: str, url: str) -> dict[str, float]:
    queue, count = f"bench-{uuid.uuid4().hex[:8]}", COUNTS.get(name, MANY)
    done = subprocess.run(
        [sys.executable, "cases.py", name, queue, str(count)],
        cwd=HERE, env={**os.environ, "AMQP_URL": url}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        for suffix in ("", ".DQ", ".XQ", ".dead"):
            connection.channel().queue_delete(queue + suffix)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stdout}{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if "seconds" in found and not name.startswith("import"):
        found["rate"] = count / found["seconds"]
    return found


def median(figures: dict[str, list[dict[str, float]]], name: str, key: str) -> float:
    return statistics.median(each[key] for each in figures[name])


def write_table(figures: dict[str, list[dict[str, float]]], version: str) -> str:
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, RabbitMQ {version}"
    repeats = max(len(each) for each in figures.values())
    lines = [
        "# Benchmarks", "",
        f"Written by `make bench` on {machine}.",
        f"Medians of {repeats} interleaved repeats. Messages have about 120 bytes and are",
        "persistent; the queue is durable and classic; consumers have a prefetch of 100.", "",
        "| ratio of medians | measured | aim |", "|---|---:|---:|",
    ]  # fmt: skip
    for what, ours, theirs, aim in RATIOS:
        ratio = median(figures, ours, "rate") / median(figures, theirs, "rate")
        lines.append(f"| {what} | {ratio:.2f} | {aim:g} |")
    p50 = median(figures, "latency mqlab", "p50") / median(figures, "latency pika callback", "p50")
    lines.append(f"| publish-to-handler p50 / pika callback (at most) | {p50:.2f} | 1.05 |")
    scale = median(figures, "consume mqlab 16 workers 10 ms", "rate") / (16 / 0.0101)
    lines.append(f"| 16 workers, 10 ms tasks / (16 / 0.0101 s) | {scale:.2f} | 0.97 |")
    grown = median(figures, "memory mqlab", "grown_mb")
    lines.append(f"| memory growth over 200,000 tasks (at most) | {grown:.1f} MB | 10 MB |")
    loaded = median(figures, "import mqlab", "seconds") / median(figures, "import pika", "seconds")
    lines.append(f"| import mqlab / import pika (at most) | {loaded:.2f} | 1.3 |")
    lines += ["", "| case | median per second | lowest | highest |", "|---|---:|---:|---:|"]
    for name, each in figures.items():
        if "rate" in each[0]:
            rates = [run["rate"] for run in each]
            row = (statistics.median(rates), min(rates), max(rates))
            lines.append(f"| {name} | " + " | ".join(f"{rate:,.0f}" for rate in row) + " |")
    table = "\n".join(lines) + "\n"
    (HERE / "RESULTS.md").write_text(table)
    return table


def draw(figures: dict[str, list[dict[str, float]]]) -> None:
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(13, 5), constrained_layout=True)
    for axes, kind in zip(both, ("publish", "consume"), strict=True):
        named = {n: [run["rate"] for run in each] for n, each in figures.items()
                 if n.startswith(kind) and "10 ms" not in n}  # fmt: skip
        order = sorted(named, key=lambda name: statistics.median(named[name]))
        for place, name in enumerate(order):
            rates = named[name]
            color = "#D55E00" if "mqlab" in name else "#666666"
            axes.plot([min(rates), max(rates)], [place, place], color=color, linewidth=2)
            axes.plot(statistics.median(rates), place, "o", color=color, markersize=10)
        axes.set_yticks(range(len(order)), [name.removeprefix(kind + " ") for name in order])
        axes.set_xscale("log")
        axes.set_xlim(100, 100_000)
        axes.set_xticks([100, 1000, 10_000, 100_000], ["100", "1,000", "10,000", "100,000"])
        axes.grid(axis="x", alpha=0.4)
        axes.set_xlabel("messages per second (dot: median; line: lowest to highest)")
        axes.set_title(kind)
    figure.savefig(HERE / "results.png", dpi=90)


if __name__ == "__main__":
    main()
