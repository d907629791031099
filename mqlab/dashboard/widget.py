"""A live view of one queue, with buttons: ``Dashboard`` as the last line of a notebook cell.

One ticker thread takes a snapshot from ``watch``, draws it and sets the widgets' values; nothing
prints. A button's errand is done in a thread of its own, so that no kernel waits for it.
"""

from __future__ import annotations

import atexit
import contextlib
import html
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from mqlab.dashboard.process import WorkerProcess
from mqlab.dashboard.watch import WINDOW_S, Errands, Lane, QueueWatch, Snapshot
from mqlab.errors import MqlabError
from mqlab.producer import Producer
from mqlab.records import TaskRecord
from mqlab.settings import Settings
from mqlab.task import QUEUE

MAX_WORKERS = 6
"""Worker processes of one dashboard. Each is a Python of its own."""
SEND_TIMEOUT_S = 5.0
BUSY_PAUSE_S, IDLE_PAUSE_S = 0.2, 1.0

# The palette of mqlab.plots. Importing it from there would load matplotlib.
ACCENT, GREY = "#D55E00", "#8C8C8C"
TEXT, FAINT = "var(--jp-ui-font-color1, #222)", "var(--jp-border-color1, #bbb)"
PAGE = "var(--jp-layout-color0, #fff)"
SIGNS = {"lost": "\u21a9", "retry": "\u21a9", "dead": "\u2715"}
CHART_H, LANE_H, BAR_H = 130, 54, 24
AHEAD_S = 6.0
"""Seconds right of `now`, for the part of a running task that is still to come."""

_open: dict[tuple[str, str], Dashboard] = {}


class Dashboard:
    """A live view of ``queue``, and buttons that send, start and stop workers, and make trouble.

    The workers that it starts are processes of their own; a task takes them ``task_s`` seconds.
    The consumers that run in this notebook on that queue are shown, too. A second dashboard of
    the same queue replaces the first. It ends with ``close``, or with the kernel.
    """

    def __init__(
        self, queue: str = QUEUE, *, settings: Settings | None = None, task_s: float = 2.0
    ) -> None:
        self.queue, self._task_s = queue, task_s
        self._settings = settings or Settings.from_env()
        self._key = queue, str(self._settings)
        if self._key in _open:
            _open[self._key].close()
        self._watch = QueueWatch(queue, self._settings)
        self._errands = Errands(f"mqlab buttons of {queue}")
        self._producer: Producer | None = None  # of the errands' thread
        self._sent = self._started = 0
        self._told_at = 0.0
        self._closed, self._wake = threading.Event(), threading.Event()
        self._make_widgets()
        self._latest = self._show(self._watch.look())
        self._ticker = threading.Thread(
            target=self._tick, name=f"mqlab dashboard of {queue}", daemon=True
        )
        self._ticker.start()
        _open[self._key] = self

    def __repr__(self) -> str:
        return f"Dashboard of {self.queue!r}"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return {**self.view._repr_mimebundle_(**options), "text/plain": repr(self)}

    def state(self) -> Snapshot:
        """What was shown last, as plain data."""
        return self._latest

    def close(self) -> None:
        """End the dashboard and its workers; their tasks go back to the queue. Twice is fine."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._wake.set()
        if _open.get(self._key) is self:
            del _open[self._key]
        self._ticker.join(timeout=10.0)
        self._errands.close(timeout_s=SEND_TIMEOUT_S + 1)
        if self._producer is not None:
            self._producer.close(timeout_s=1.0)
        self._watch.close()
        for button in self.buttons.values():
            button.disabled = True
        closed = "This dashboard is closed. Run its cell again for a new one."
        self._sentence.value, self._told.value = _visible(closed), _spoken(closed)

    # ---- the widgets

    def _make_widgets(self) -> None:
        acts: dict[str, tuple[str, str, Callable[[], object]]] = {
            "send-1": ("Send 1", "Send one task to the queue", lambda: self._send(1)),
            "send-10": ("Send 10", "Send ten tasks to the queue", lambda: self._send(10)),
            "start-worker": ("Start worker", "Start a worker process", self._start_worker),
            "stop-worker": (
                "Stop worker",
                "Ask the newest worker to finish its task and leave",
                self._stop_worker,
            ),
            "kill-worker": (
                "Kill worker",
                "End a worker process at once (kill -9), a busy one if there is one",
                self._kill_worker,
            ),
            "cut": (
                "Cut connection",
                "Have the broker close the connections of all workers",
                self._watch.cut,
            ),
        }
        self.buttons: dict[str, Any] = {}
        for name, (text, tooltip, act) in acts.items():
            button = widgets.Button(description=text, tooltip=tooltip)
            button.add_class(f"mqlab-{name}")
            button.on_click(lambda _button, act=act: self._do(act))
            # ipykernel 7.4 hands a widget's messages to the shell that it was made in, and a cell
            # that runs keeps that one busy. JupyterLab asks for a subshell: let it have it.
            if button.comm is not None:
                button.comm._reply_subshell_for = lambda _data, asked_for: asked_for
            self.buttons[name] = button
        self._told, self._sentence = widgets.HTML(), widgets.HTML()
        self._picture, self._troubles = widgets.HTML(), widgets.HTML()
        self.view = widgets.VBox(
            [
                widgets.HTML(STYLE),
                widgets.HBox(list(self.buttons.values())),
                self._told,
                self._sentence,
                self._picture,
                self._troubles,
            ]
        )
        self.view.add_class("mqlab-dashboard")

    def _tick(self) -> None:
        told = ""
        while not self._closed.is_set():
            try:
                self._latest = self._show(self._watch.look())
            except Exception as error:  # the view must not freeze without a word
                text = f"The dashboard itself has a fault: {type(error).__name__}: {error}"
                if text != told:
                    self._watch.note(text)
                    told = text
            self._wake.wait(BUSY_PAUSE_S if self._latest.is_busy else IDLE_PAUSE_S)
            self._wake.clear()

    def _show(self, snapshot: Snapshot) -> Snapshot:
        """Set what has changed: a value that is set is sent to the browser."""
        sentence = describe(snapshot)
        shown: dict[Any, str] = {
            self._sentence: _visible(sentence),
            self._picture: draw(snapshot, sentence),
            self._troubles: list_troubles(snapshot),
        }
        # A screen reader reads this out, so not more often than once a second.
        if time.monotonic() - self._told_at >= 1.0:
            self._told_at = time.monotonic()
            shown[self._told] = _spoken(sentence)
        for widget, value in shown.items():
            if widget.value != value:
                widget.value = value
        return snapshot

    # ---- the buttons

    def _do(self, act: Callable[[], object]) -> None:
        """Called in whichever thread the kernel has for it, while a cell runs or not."""

        def errand() -> None:
            try:
                act()
            except MqlabError as error:
                self._watch.note(f"{error.what} Next: {error.fix}")
            except Exception as error:
                self._watch.note(f"The button failed: {type(error).__name__}: {error}")
            self._wake.set()

        if not self._closed.is_set():
            self._errands.do(errand)

    def _send(self, count: int) -> None:
        if self._producer is None or self._producer.status().state == "failed":
            self._producer = Producer(self.queue, settings=self._settings, timeout_s=SEND_TIMEOUT_S)
        self._producer.send_many([f"report {self._sent + n}" for n in range(1, count + 1)])
        self._sent += count

    def _start_worker(self) -> None:
        if len(self._alive()) >= MAX_WORKERS:
            self._watch.note(f"{MAX_WORKERS} workers are as many as this dashboard starts.")
            return
        self._started += 1
        name = f"worker {self._started}"
        self._watch.workers.append(
            WorkerProcess(name, queue=self.queue, settings=self._settings, task_s=self._task_s)
        )

    def _stop_worker(self) -> None:
        staying = [worker for worker in self._alive() if worker.state != "stopping"]
        if staying:
            staying[-1].stop()
        elif self._alive():
            self._watch.note("Every worker of this dashboard is stopping already.")
        else:
            self._watch.note("There is no worker of this dashboard to stop: start one.")

    def _kill_worker(self) -> None:
        workers = self._alive()
        if workers:
            max(workers, key=lambda worker: bool(worker.working)).kill()
        else:
            self._watch.note("There is no worker of this dashboard to kill: start one.")

    def _alive(self) -> list[WorkerProcess]:
        return [worker for worker in list(self._watch.workers) if worker.is_alive]


# ---- the drawing: places in per cent, so that it fits any width, and text in its own size


def describe(snapshot: Snapshot) -> str:
    """The state in one sentence."""
    if snapshot.problem:
        return snapshot.problem
    elsewhere = f" ({snapshot.elsewhere} elsewhere)" if snapshot.elsewhere else ""
    workers = f"{snapshot.workers} worker{'s' * (snapshot.workers != 1)}{elsewhere}"
    if snapshot.ready is None:
        return f"No such queue yet: {snapshot.queue}. The first task or worker makes it. {workers}."
    about = "" if snapshot.unacked_is_exact else "about "
    unacked = "?" if snapshot.unacked is None else f"{about}{snapshot.unacked}"
    return (
        f"{snapshot.queue}: {snapshot.ready} ready, {unacked} unacked, {workers}, "
        f"{snapshot.done} done."
    )


def draw(snapshot: Snapshot, sentence: str) -> str:
    """The numbers, the depth of the queue and the lanes of its workers, as HTML with one SVG."""
    lanes = snapshot.lanes
    top = CHART_H + 30
    height = top + max(1, len(lanes)) * LANE_H + 26
    parts = [*_axis(height), *_depth(snapshot)]
    for number, lane in enumerate(lanes):
        parts += _lane(lane, snapshot.at, top + number * LANE_H)
    if not lanes:
        parts.append(_text(0, top + 24, "No worker here yet: press Start worker."))
    return (
        f"{_numbers(snapshot)}<svg role='img' aria-label='{html.escape(sentence, quote=True)}' "
        f"width='100%' height='{height}'>{PATTERN}{''.join(parts)}</svg>{LEGEND}"
    )


def list_troubles(snapshot: Snapshot) -> str:
    """What went wrong, newest first."""
    lines = [
        f"<li>{time.strftime('%H:%M:%S', time.localtime(at))} {html.escape(text)}</li>"
        for at, text in reversed(snapshot.troubles)
    ]
    nothing = "<li>Nothing yet. Kill a worker that is at work, or cut its connection.</li>"
    return f"<div class='mqlab-title'>What went wrong</div><ul>{''.join(lines) or nothing}</ul>"


def _numbers(snapshot: Snapshot) -> str:
    unknown = "?"

    def number(value: float | None, name: str, colour: str = "") -> str:
        chip = f"<i style='background:{colour}'></i>" if colour else ""
        shown = unknown if value is None else f"{value:.1f}" if "/s" in name else f"{value:g}"
        return f"<span>{chip}<b>{shown}</b> {name}</span>"

    lag = "" if snapshot.unacked_is_exact else " (lags)"
    return "".join(
        [
            "<div class='mqlab-numbers' aria-hidden='true'>",
            number(snapshot.ready, "ready", GREY),
            number(snapshot.unacked, f"unacked{lag}", ACCENT),
            number(snapshot.done, "done"),
            "<span>",
            number(snapshot.sent_per_s, "sent/s"),
            number(snapshot.done_per_s, "done/s"),
            "</span></div>",
        ]
    )


def _axis(height: int) -> Iterator[str]:
    for ago in range(0, 61, 10):
        x, wide = _x(-ago), "" if ago else " stroke-width='3'"
        yield f"<line x1='{x}%' x2='{x}%' y1='0' y2='{height - 22}' stroke='{FAINT}'{wide}/>"
    for ago, anchor in ((60, "start"), (40, "middle"), (20, "middle"), (0, "middle")):
        yield _text(_x(-ago), height - 5, f"{ago} s ago" if ago else "now", anchor)


def _depth(snapshot: Snapshot) -> Iterator[str]:
    """The depth as two stacked areas: unacked below, ready on top of it."""
    most = max((ready or 0) + (unacked or 0) for _, ready, unacked in snapshot.depth)
    limit = max(4, 2 * math.ceil(most / 2))
    areas, lines = "", ""
    run: list[tuple[float, float, float]] = []
    for at, ready, unacked in (*snapshot.depth, (snapshot.at, None, None)):
        x = _x(at - snapshot.at)
        if run:  # the depth stays as it was until it is seen to be another
            run.append((x, *run[-1][1:]))
        if ready is not None:
            low = CHART_H * (1 - (unacked or 0) / limit)
            run.append((x, low, low - CHART_H * ready / limit))
            continue
        if any(top < CHART_H for _, _, top in run):
            low_edge = " ".join(f"{x:.2f},{low:.1f}" for x, low, _ in run)
            top_edge = " ".join(f"{x:.2f},{top:.1f}" for x, _, top in run)
            back = " ".join(f"{x:.2f},{low:.1f}" for x, low, _ in reversed(run))
            ends = f"{run[-1][0]:.2f},{CHART_H} {run[0][0]:.2f},{CHART_H}"
            areas += f"<polygon fill='{GREY}' points='{top_edge} {back}'/>"
            areas += f"<polygon fill='{ACCENT}' points='{low_edge} {ends}'/>"
            for edge in (low_edge, top_edge):
                lines += f"<polyline fill='none' stroke='{TEXT}' points='{edge}'/>"
        run = []
    yield (
        f"<svg x='0' y='8' width='100%' height='{CHART_H}' viewBox='0 0 100 {CHART_H}' "
        f"preserveAspectRatio='none' class='mqlab-depth'>{areas}{lines}</svg>"
        f"<line x1='0' x2='100%' y1='{CHART_H + 8}' y2='{CHART_H + 8}' stroke='{TEXT}'/>"
    )
    yield _text(0, 22, f"{limit} tasks", halo=True)
    yield _text(0, CHART_H + 4, "0", halo=True)


def _lane(lane: Lane, now: float, top: int) -> Iterator[str]:
    doing = lane.state
    task = lane.working
    if task is not None and lane.state in ("running", "stopping"):
        elapsed = f"{now - (task.started_at or now):.1f}"
        of = f" of {lane.expected_s:g}" if lane.expected_s else ""
        doing = f"{_shown(task)}, {elapsed}{of} s"
        doing += ", then stops" * (lane.state == "stopping")
    elif lane.state == "running":
        doing = "waits for a task"
    yield _text(0, top + 16, f"{lane.name}: {doing}", halo=True)
    for record in lane.tasks:
        yield from _bar(record, lane.expected_s, now, top + 22)
    for record in lane.tasks:  # on top of all bars
        if sign := SIGNS.get(record.outcome or ""):
            ends = record.started_at or now, record.finished_at or now
            yield _text(_x(sum(ends) / 2 - now), top + 40, sign, "middle", halo=True)


def _bar(record: TaskRecord, expected_s: float | None, now: float, y: int) -> Iterator[str]:
    started_at = record.started_at or now
    left = _x(started_at - now)
    width = max(0.3, _x((record.finished_at or now) - now) - left)
    place = f"x='{left}%' y='{y}' width='{width:.2f}%' height='{BAR_H}'"
    title = f"<title>{html.escape(_shown(record))}: {record.outcome or 'is worked on'}</title>"
    if record.outcome == "done":
        yield f"<rect {place} fill='{ACCENT}' stroke='{PAGE}'>{title}</rect>"
        return
    if record.outcome is None:
        yield f"<rect {place} fill='{ACCENT}' fill-opacity='.55'>{title}</rect>"
        if expected_s:
            wide = _x(started_at + expected_s - now) - left
            frame = f"x='{left}%' y='{y}' width='{max(width, wide):.2f}%' height='{BAR_H}'"
            yield f"<rect {frame} fill='none' stroke='{TEXT}' stroke-dasharray='4 3'/>"
        yield f"<rect {place} fill='none' stroke='{TEXT}' stroke-width='2'/>"
        return
    fill = "none" if record.outcome == "dead" else "url(#mqlab-hatch)"
    yield f"<rect {place} fill='{fill}' stroke='{TEXT}' stroke-width='1.5'>{title}</rect>"


def _x(seconds: float) -> float:
    """The place of a moment so many seconds from now, in per cent of the width."""
    return round(100 * max(0.0, WINDOW_S + min(seconds, AHEAD_S)) / (WINDOW_S + AHEAD_S), 2)


def _text(x: float, y: int, text: str, anchor: str = "start", *, halo: bool = False) -> str:
    style = " class='mqlab-halo'" if halo else ""
    return f"<text x='{x:.2f}%' y='{y}' text-anchor='{anchor}'{style}>{html.escape(text)}</text>"


def _shown(record: TaskRecord) -> str:
    return str(record.data)[:24] if record.task_id else "no task"


def _visible(sentence: str) -> str:
    return f"<div class='mqlab-state' aria-hidden='true'>{html.escape(sentence)}</div>"


def _spoken(sentence: str) -> str:
    """The same, for screen readers."""
    return f"<div class='mqlab-told' role='status'>{html.escape(sentence)}</div>"


PATTERN = (
    "<defs><pattern id='mqlab-hatch' width='6' height='6' patternUnits='userSpaceOnUse' "
    f"patternTransform='rotate(45)'><rect width='2.5' height='6' fill='{GREY}'/></pattern></defs>"
)


def _sample(inside: str, name: str) -> str:
    return f"<span><svg width='26' height='18' aria-hidden='true'>{inside}</svg> {name}</span>"


_FRAME = f"x='1' y='1' width='24' height='16' stroke='{TEXT}'"
LEGEND = "".join(
    [
        "<div class='mqlab-legend'>",
        _sample(f"<rect {_FRAME} fill='{ACCENT}' fill-opacity='.55'/>", "works"),
        _sample(f"<rect width='26' height='18' fill='{ACCENT}'/>", "done"),
        _sample(f"<rect {_FRAME} fill='url(#mqlab-hatch)'/>", "\u21a9 given back"),
        _sample(f"<rect {_FRAME} fill='none'/>", "\u2715 failed"),
        "</div>",
    ]
)
STYLE = f"""<style>
.mqlab-dashboard, .mqlab-dashboard .widget-html-content {{
  color: {TEXT}; font-size: 16px; line-height: 1.35; overflow: visible; }}
.mqlab-dashboard .widget-html {{ width: calc(100% - 4px); height: auto; }}
.mqlab-dashboard .widget-html-content {{ width: 100%; height: auto; }}
.mqlab-dashboard .widget-hbox {{ flex-wrap: wrap; overflow: visible; }}
.mqlab-dashboard button {{ font-size: 15px; width: auto; height: 34px; }}
.mqlab-dashboard svg text {{ fill: {TEXT}; font-size: 15px; }}
.mqlab-dashboard .mqlab-halo {{ paint-order: stroke; stroke: {PAGE}; stroke-width: 4px; }}
.mqlab-depth polyline {{ vector-effect: non-scaling-stroke; stroke-width: 2px; }}
.mqlab-state {{ font-size: 15px; min-height: 1.35em; }}
.mqlab-told {{ position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }}
.mqlab-numbers {{ display: flex; flex-wrap: wrap; font-size: 17px; }}
.mqlab-numbers span {{ white-space: nowrap; margin-right: 18px; }}
.mqlab-numbers b {{ font-size: 28px; font-variant-numeric: tabular-nums; }}
.mqlab-numbers i {{ display: inline-block; width: 16px; height: 16px; margin-right: 6px; }}
.mqlab-legend {{ display: flex; flex-wrap: wrap; gap: 0 16px; font-size: 15px; }}
.mqlab-legend svg {{ vertical-align: -4px; }}
.mqlab-title {{ font-weight: 600; }}
.mqlab-dashboard ul {{ margin: 0; padding-left: 20px; }}
</style>"""


@atexit.register
def _close_all() -> None:
    for dashboard in list(_open.values()):
        with contextlib.suppress(Exception):
            dashboard.close()
