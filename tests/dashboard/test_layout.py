"""The dashboard in a real browser: nothing is cut, and two lanes are in view beside a page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator

from mqlab.settings import Settings
from tests.browser import CONTRASTS, find_chromium, run_jupyterlab
from tests.helpers import eventually

IN_VIEW = 420
"""Pixels below the cell that are in view at 720 high, with the page's title above."""
MEASURE = """dashboard => {
    const place = element => element.getBoundingClientRect();
    const all = selector => [...dashboard.querySelectorAll(selector)];
    const own = place(dashboard);
    const cut = all('button, .mqlab-numbers span, .mqlab-queue, select, li')
        .filter(e => e.scrollWidth > e.clientWidth + 1 || place(e).right > own.right + 1
            || e.scrollHeight > e.clientHeight + 4)
        .map(e => e.textContent);
    const right = all('svg text').filter(e => place(e).right > own.right + 1);
    return {
        width: own.width,
        rows: new Set(all('button').map(e => Math.round(place(e).top))).size,
        lines: new Set(all('.mqlab-numbers b').map(e => Math.round(place(e).top))).size,
        cut: cut.concat(right.map(e => e.textContent)),
        lanes: all('.mqlab-track').map(e => place(e).bottom - own.top),
        numbers: all('.mqlab-numbers b').map(e => parseFloat(getComputedStyle(e).fontSize)),
    };
}"""


def assert_readable(dashboard: Locator) -> None:
    contrasts = dashboard.evaluate_all(CONTRASTS)
    assert contrasts
    assert [pair for pair in contrasts if pair[1] < 4.5] == []


def test_it_fits_beside_a_page_and_nothing_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    broker_settings: Settings,
    queue: str,
    missing: Callable[[str], None],
) -> None:
    chromium = find_chromium()
    if chromium is None:
        missing("a Chromium")
    with run_jupyterlab(tmp_path_factory.mktemp("lab"), broker_settings, chromium) as lab:
        source = f"from mqlab import Dashboard\n\nDashboard({queue!r}, task_s=5)"
        lab.write("made.ipynb", source)
        window = lab.open("made.ipynb")
        window.command("application:toggle-left-area")
        window.run(window.cell("Dashboard"))
        dashboard = window.page.locator(".jp-OutputArea-output .mqlab-dashboard")
        for name in ("start-worker", "start-worker", "send-10"):
            dashboard.locator(f"button.mqlab-{name}").click()
        eventually(lambda: dashboard.locator(".mqlab-track").count() == 2, 20)
        eventually(lambda: "2 unacked" in (dashboard.text_content() or ""), 20)
        for width in (640, 680, 720, 1280):
            window.page.set_viewport_size({"width": width, "height": 720})

            def measure() -> dict[str, Any]:
                found: dict[str, Any] = dashboard.evaluate(MEASURE)
                return found

            eventually(lambda width=width, measure=measure: measure()["width"] > width - 250)
            found = measure()
            assert found["cut"] == [], width
            assert (found["rows"], found["lines"]) == (1, 1), width
            if width < 1280:
                assert found["lanes"][1] < IN_VIEW, width
            assert min(found["numbers"]) >= 26, "too small for a room"
            window.screenshot(f"dashboard-{width}", dashboard)
        assert_readable(dashboard)
        with window.dark():
            window.screenshot("dashboard-dark", dashboard)
            assert_readable(dashboard)
        assert window.complaints == []
        window.close()
