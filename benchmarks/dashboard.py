"""Measure the CPU share of the dashboard's kernel, with JupyterLab open in a real browser.

    .venv/bin/python -m mqlab broker run -- .venv/bin/python benchmarks/dashboard.py

It measures three kernels, one after the other: one without a dashboard, one with an idle dashboard,
and one whose dashboard shows three busy workers. The share is CPU time divided by elapsed time, of
one core. The workers are separate processes and do not count. Nothing else should be running.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pika
import psutil
from playwright.sync_api import Page, sync_playwright

from mqlab.settings import Settings
from mqlab.workshop import lab

QUEUE = "benchmark_dashboard"
CASES = {
    "no dashboard": "pass",
    "dashboard, idle": f"from mqlab import Dashboard\nDashboard({QUEUE!r})",
    "dashboard, 3 workers busy": f"from mqlab import Dashboard\nDashboard({QUEUE!r})",
}
SETTLE_S = 8.0
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"]


def write_notebook(path: Path, source: str) -> None:
    code = {"cell_type": "code", "id": "cell-01", "metadata": {}, "source": source}
    cells = [code | {"outputs": [], "execution_count": None}]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(whole))


def find_kernel(server: psutil.Process) -> psutil.Process:
    [kernel] = [
        child
        for child in server.children(recursive=True)
        if "ipykernel_launcher" in " ".join(child.cmdline())
    ]
    return kernel


def measure(page: Page, kernel: psutil.Process, seconds: float, *, busy: bool) -> float:
    """Return the share of one core, in percent, over ``seconds`` seconds."""
    if busy:
        for _ in range(3):
            page.locator(".mqlab-start-worker").click()
    page.wait_for_timeout(SETTLE_S * 1000)
    started, before = time.monotonic(), kernel.cpu_times()
    while time.monotonic() - started < seconds:
        if busy:
            page.locator(".mqlab-send-10").click()
        page.wait_for_timeout(5_000)
    after, passed_s = kernel.cpu_times(), time.monotonic() - started
    return 100 * (after.user + after.system - before.user - before.system) / passed_s


def run_case(source: str, seconds: float, chromium: str, *, busy: bool) -> tuple[float, str]:
    """Return the share, and the text of the dashboard at the end."""
    root = Path(tempfile.mkdtemp(prefix="mqlab-benchmark-"))
    write_notebook(root / lab.START_PAGE, source)
    config = root / "config"
    config.mkdir()
    page_config: dict[str, Any] = {"LabApp": {"expose_app_in_browser": True}}
    (config / "jupyter_lab_config.json").write_text(json.dumps(page_config))
    os.environ["JUPYTER_CONFIG_DIR"] = str(config)
    server = lab.start_jupyter(root)
    try:
        url = server.wait_served()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(f"{url}?token={server.token}")
            page.locator("text=| Idle").first.wait_for(timeout=60_000)
            page.evaluate(
                "window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => 1)"
            )
            if source != "pass":
                page.locator(".mqlab-dashboard").wait_for(timeout=30_000)
            share = measure(
                page, find_kernel(psutil.Process(server.process.pid)), seconds, busy=busy
            )
            said = "".join(page.locator(".mqlab-state").all_text_contents())
            browser.close()
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)
    return share, said


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each case (default: 20)")
    seconds = parser.parse_args().seconds
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("There is no Chromium here.")
    print(f"{'kernel':<28}{'% of a core':>12}   ({seconds:g} s each)")
    for name, source in CASES.items():
        share, said = run_case(source, seconds, chromium, busy=name.endswith("busy"))
        print(f"{name:<28}{share:>12.1f}   {said}", flush=True)
    with pika.BlockingConnection(Settings.from_env().parameters()) as connection:
        connection.channel().queue_delete(QUEUE)


if __name__ == "__main__":
    main()
