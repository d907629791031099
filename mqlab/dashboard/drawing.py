"""A snapshot as HTML and SVG. Pure functions: the same snapshot gives the same picture.

Horizontal places are per cent, so the picture fits any width; text keeps its size. The colours are
those of ``mqlab.measure.plots``: grey for what waits, one accent for what is being worked on. They
survive colour blindness and a projector. Text and lines take their colours from JupyterLab's theme.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Iterator

from mqlab.dashboard.watch import WINDOW_S, Lane, Snapshot
from mqlab.records import TaskRecord

ACCENT, GREY = "#D55E00", "#8C8C8C"
TEXT, FAINT = "var(--jp-ui-font-color1, #222)", "var(--jp-border-color2, #ddd)"
PAGE = "var(--jp-layout-color0, #fff)"
SIGNS = {"lost": "\u21a9", "retry": "\u21a9", "dead": "\u2715"}
CHART_H, LANE_H, BAR_H = 120, 42, 18
AHEAD_S = 6.0
"""Seconds right of `now`, for the part of a running task that is still to come."""


def describe(snapshot: Snapshot) -> str:
    """The state in one sentence, for screen readers."""
    if snapshot.problem:
        return snapshot.problem
    elsewhere = f" ({snapshot.elsewhere} elsewhere)" if snapshot.elsewhere else ""
    workers = _count(snapshot.workers, "worker") + elsewhere
    if snapshot.ready is None:
        return f"{snapshot.queue} does not exist yet. The first task declares it. {workers}."
    about = "" if snapshot.unacked_is_exact else "about "
    unacked = "?" if snapshot.unacked is None else f"{about}{snapshot.unacked}"
    trouble = f", {snapshot.retried} retried, {snapshot.dead} dead"
    return (
        f"{snapshot.queue}: {snapshot.ready} ready, {unacked} unacked, {workers}, "
        f"{snapshot.done} done{trouble * bool(snapshot.retried or snapshot.dead)}."
    )


def draw_numbers(snapshot: Snapshot) -> str:
    """The numbers in one line, each with its name and a remark."""
    lags = "" if snapshot.unacked_is_exact else "lags"
    if snapshot.acked is None:
        done = _number("done", snapshot.done, _rate(snapshot.done_per_s, "done"))
    else:  # what the workers elsewhere have done is known from the broker's acks only
        done = _number("acked", snapshot.acked, _rate(snapshot.done_per_s, "acked"))
    in_dead = snapshot.in_dead_queue
    dead = f"{in_dead} in .dead" if in_dead else ""
    elsewhere = f"{snapshot.elsewhere} elsewhere" if snapshot.elsewhere else ""
    return "".join(
        [
            "<div class='mqlab-numbers' aria-hidden='true'>",
            _number("ready", snapshot.ready, _rate(snapshot.sent_per_s, "sent"), GREY),
            _number("unacked", snapshot.unacked, lags, ACCENT),
            _number("workers", snapshot.workers, elsewhere),
            done,
            _number("retried", snapshot.retried, ""),
            _number("dead", snapshot.dead, dead),
            "</div>",
        ]
    )


def draw_chart(snapshot: Snapshot, sentence: str) -> str:
    """The depth of the queue over the last minute, and below it the lanes of its workers."""
    lanes = snapshot.lanes
    top = CHART_H + 12
    remark = _remark(snapshot)
    height = top + len(lanes) * LANE_H + (24 if remark else 0) + 22
    parts = [*_axis(height), *_depth(snapshot)]
    for number, lane in enumerate(lanes):
        parts += _lane(lane, snapshot.at, top + number * LANE_H)
    if remark:
        parts.append(_text(0, height - 28, remark, halo=True))
    label = html.escape(sentence, quote=True)
    return (
        f"<svg class='mqlab-chart' role='img' aria-label='{label}' width='100%' "
        f"height='{height}'>{''.join(parts)}</svg>{LEGEND}"
    )


def list_troubles(snapshot: Snapshot) -> str:
    """What went wrong, newest first."""
    lines = [
        f"<li><time>{time.strftime('%H:%M:%S', time.localtime(at))}</time> {html.escape(text)}</li>"
        for at, text in reversed(snapshot.troubles)
    ]
    nothing = "<li>Nothing yet. Kill a worker that is busy, or cut its connection.</li>"
    return f"<div class='mqlab-title'>What went wrong</div><ul>{''.join(lines) or nothing}</ul>"


def show_title(queue: str) -> str:
    """The name of the queue."""
    return f"<div class='mqlab-queue'>{html.escape(queue)}</div>"


def show_state(sentence: str, *, matters: bool) -> str:
    """The sentence for the eye: only if the numbers do not say it all."""
    style = "" if matters else " mqlab-unseen"
    return f"<div class='mqlab-state{style}' aria-hidden='true'>{html.escape(sentence)}</div>"


def speak_state(sentence: str) -> str:
    """The sentence for screen readers."""
    return f"<div class='mqlab-spoken mqlab-unseen' role='status'>{html.escape(sentence)}</div>"


def _number(name: str, value: int | None, remark: str, colour: str = "") -> str:
    chip = f"<i style='background:{colour}'></i>" if colour else ""
    zero = " class='mqlab-zero'" if not (value or remark) and name in ("retried", "dead") else ""
    shown = "–" if value is None else f"{value:,}"
    return (
        f"<span{zero}><b>{shown}</b><em>{chip}{name}</em><small>{remark or '&nbsp;'}</small></span>"
    )


def _rate(per_s: float | None, name: str) -> str:
    return f"{per_s:.1f} {name}/s" if per_s else ""


def _remark(snapshot: Snapshot) -> str:
    if snapshot.elsewhere:
        consumers = _count(snapshot.elsewhere, "consumer")
        return f"{consumers} elsewhere, in another notebook or terminal: no lane here."
    return "" if snapshot.lanes else "No worker yet. Press Start worker."


def _axis(height: int) -> Iterator[str]:
    for ago in range(0, 61, 10):
        x, width = _x(-ago), 1 if ago else 2
        stroke = FAINT if ago else TEXT
        yield (
            f"<line x1='{x}%' x2='{x}%' y1='0' y2='{height - 18}' stroke='{stroke}' "
            f"stroke-width='{width}'/>"
        )
    for ago, anchor in ((60, "start"), (40, "middle"), (20, "middle"), (0, "middle")):
        yield _text(_x(-ago), height - 3, f"{ago} s ago" if ago else "now", anchor)


def _depth(snapshot: Snapshot) -> Iterator[str]:
    """The depth as two stacked areas: unacked below, ready on top of it."""
    most = max((ready or 0) + (unacked or 0) for _, ready, unacked in snapshot.depth)
    limit = max(4, 2 * math.ceil(most / 2))
    areas, lines = "", ""
    run: list[tuple[float, float, float]] = []
    for at, ready, unacked in (*snapshot.depth, (snapshot.at, None, None)):
        x = _x(at - snapshot.at)
        if run:  # the depth stays as it was until it is seen to be different
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
            areas += f"<polygon fill='{GREY}' fill-opacity='.6' points='{top_edge} {back}'/>"
            areas += f"<polygon fill='{ACCENT}' points='{low_edge} {ends}'/>"
            lines += f"<polyline fill='none' stroke='{TEXT}' points='{top_edge}'/>"
        run = []
    yield (
        f"<svg x='0' y='6' width='100%' height='{CHART_H}' viewBox='0 0 100 {CHART_H}' "
        f"preserveAspectRatio='none' class='mqlab-depth'>{areas}{lines}</svg>"
        f"<line x1='0' x2='100%' y1='{CHART_H + 6}' y2='{CHART_H + 6}' stroke='{TEXT}'/>"
    )
    yield _text(0, 20, f"{limit:,} tasks", halo=True)


def _lane(lane: Lane, now: float, top: int) -> Iterator[str]:
    doing = lane.state
    task = lane.working
    if task is not None and lane.state in ("running", "stopping"):
        elapsed = f"{now - (task.started_at or now):.1f}"
        of = f" of {lane.expected_s:g}" if lane.expected_s else ""
        doing = f"{_shown(task)}, {elapsed}{of} s"
        doing += ", then stops" * (lane.state == "stopping")
    elif lane.state == "running":
        doing = "waiting for a task"
    yield (
        f"<text x='0' y='{top + 15}' class='mqlab-halo'><tspan class='mqlab-name'>"
        f"{html.escape(lane.name)}</tspan> {html.escape(doing)}</text>"
    )
    y = top + 20
    yield f"<rect x='0' y='{y}' width='{_x(0)}%' height='{BAR_H}' class='mqlab-track'/>"
    for record in lane.tasks:
        yield from _bar(record, lane.expected_s, now, y)
    for record in lane.tasks:  # on top of all bars
        if sign := SIGNS.get(record.outcome or ""):
            ends = record.started_at or now, record.finished_at or now
            yield _text(_x(sum(ends) / 2 - now), y + 14, sign, "middle", halo=True)


def _bar(record: TaskRecord, expected_s: float | None, now: float, y: int) -> Iterator[str]:
    started_at = record.started_at or now
    left = _x(started_at - now)
    width = max(0.3, _x((record.finished_at or now) - now) - left)
    place = f"x='{left}%' y='{y}' width='{width:.2f}%' height='{BAR_H}'"
    title = f"<title>{html.escape(_shown(record))}: {record.outcome or 'being worked on'}</title>"
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
    fill = PAGE if record.outcome == "dead" else FAINT
    yield f"<rect {place} fill='{fill}' stroke='{TEXT}' stroke-width='1.5'>{title}</rect>"


def _x(seconds: float) -> float:
    """The place of a moment that many seconds from now, in per cent of the width."""
    return round(100 * max(0.0, WINDOW_S + min(seconds, AHEAD_S)) / (WINDOW_S + AHEAD_S), 2)


def _text(x: float, y: int, text: str, anchor: str = "start", *, halo: bool = False) -> str:
    style = " class='mqlab-halo'" if halo else ""
    return f"<text x='{x:.2f}%' y='{y}' text-anchor='{anchor}'{style}>{html.escape(text)}</text>"


def _shown(record: TaskRecord) -> str:
    return str(record.data)[:24] if record.task_id else "not a task"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _sample(inside: str, name: str) -> str:
    return f"<span><svg width='22' height='14' aria-hidden='true'>{inside}</svg> {name}</span>"


_FRAME = f"x='1' y='1' width='20' height='12' stroke='{TEXT}'"
LEGEND = "".join(
    [
        "<div class='mqlab-legend'>",
        _sample(f"<rect {_FRAME} fill='{ACCENT}' fill-opacity='.55'/>", "working"),
        _sample(f"<rect width='22' height='14' fill='{ACCENT}'/>", "done"),
        _sample(f"<rect {_FRAME} fill='{FAINT}'/>", "\u21a9 back in the queue"),
        _sample(f"<rect {_FRAME} fill='none'/>", "\u2715 dead"),
        "</div>",
    ]
)
STYLE = f"""<style>
.mqlab-dashboard {{ container-type: inline-size; padding: 2px 2px 8px; overflow: hidden; }}
.mqlab-dashboard, .mqlab-dashboard .widget-html-content {{ color: {TEXT}; font-size: 15px;
  line-height: 1.35; overflow: visible; }}
.mqlab-dashboard .widget-html {{ width: 100%; margin: 0; height: auto; }}
.mqlab-dashboard .widget-html-content {{ width: 100%; height: auto; }}
.mqlab-dashboard .mqlab-empty {{ display: none; }}
.mqlab-dashboard .mqlab-head {{ align-items: baseline; justify-content: space-between;
  overflow: visible; }}
.mqlab-dashboard .mqlab-head .widget-html {{ width: auto; flex: 1 1 auto; }}
.mqlab-dashboard .mqlab-head .widget-dropdown {{ width: auto; flex: 0 1 auto; }}
.mqlab-dashboard select {{ font-size: 14px; }}
.mqlab-queue {{ font-size: clamp(18px, 3.6cqw, 30px); font-weight: 600; overflow-wrap: anywhere; }}
.mqlab-dashboard .mqlab-buttons {{ display: flex; flex-wrap: nowrap; gap: 4px; overflow: visible;
  margin: 4px 0 8px; }}
.mqlab-dashboard button {{ flex: 1 1 auto; width: auto; height: auto; margin: 0; padding: 5px 2px;
  line-height: 1.3; font-size: clamp(12px, 2.5cqw, 17px); border-radius: 4px; }}
.mqlab-state {{ font-size: clamp(13px, 2.6cqw, 19px); }}
.mqlab-unseen {{ position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }}
.mqlab-numbers {{ display: grid; grid-template-columns: repeat(6, 1fr); gap: 4px; }}
.mqlab-numbers span {{ display: flex; flex-direction: column; white-space: nowrap; min-width: 0;
  border-left: 1px solid {FAINT}; padding-left: 8px; }}
.mqlab-numbers span:first-child {{ border: 0; padding-left: 0; }}
.mqlab-numbers b {{ font-size: clamp(26px, 6.4cqw, 60px); line-height: 1.1; font-weight: 600;
  font-variant-numeric: tabular-nums; }}
.mqlab-numbers em {{ font-style: normal; font-size: clamp(13px, 2.6cqw, 19px); }}
.mqlab-numbers small {{ font-size: clamp(11px, 2cqw, 15px); }}
.mqlab-numbers .mqlab-zero b {{ font-weight: 400; opacity: .6; }}
.mqlab-numbers i {{ display: inline-block; width: .75em; height: .75em; margin-right: 5px;
  border-radius: 2px; }}
.mqlab-dashboard svg text {{ fill: {TEXT}; font-size: clamp(14px, 1.5cqw, 17px); }}
.mqlab-chart {{ display: block; margin-top: 8px; }}
.mqlab-dashboard .mqlab-halo {{ paint-order: stroke; stroke: {PAGE}; stroke-width: 4px; }}
.mqlab-dashboard .mqlab-name {{ font-weight: 600; }}
.mqlab-track {{ fill: {FAINT}; fill-opacity: .35; }}
.mqlab-depth polyline {{ vector-effect: non-scaling-stroke; stroke-width: 2px; }}
.mqlab-legend {{ display: flex; flex-wrap: wrap; gap: 0 16px; font-size: 13px; margin-top: 4px; }}
.mqlab-legend svg {{ vertical-align: -2px; }}
.mqlab-title {{ font-weight: 600; margin-top: 8px; }}
.mqlab-dashboard ul {{ margin: 0; padding: 0; list-style: none; }}
.mqlab-dashboard time {{ font-variant-numeric: tabular-nums; opacity: .75; margin-right: 6px; }}
</style>"""
