"""Records as pictures: five functions that take records and return matplotlib Axes.

Each sets the Axes' label to one sentence with its numbers. ``show`` ends a notebook cell: it shows
the picture, with that sentence as its alt text. Grey marks the reference and one accent colour the
point; both work for colour-blind readers and on a projector. ``runs`` does the measuring.
"""

from __future__ import annotations

import base64
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mqlab.measure.runs import ClientsRun, Waited, format_time

if TYPE_CHECKING:
    from mqlab.records import SendRecord, TaskRecord

ACCENT, GREY, LIGHT, DARK = "#D55E00", "#8C8C8C", "#D0D0D0", "#333333"
OFF_SCALE = 3.0
"""``send_cost`` cuts off columns that are more than this many times as high as the median one."""
SLOW_LISTED = 3
"""How many of the columns that were cut off the legend lists, the slowest first."""
STYLE: Any = {
    "font.size": 14,
    "axes.titlesize": 15,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 80,
}


DARK_THEME = """<style>body[data-jp-theme-light="false"] img.mqlab {
  filter: invert(0.933) hue-rotate(180deg); }</style>"""
"""Follow JupyterLab's dark theme: dark and light change places, and each colour keeps its hue."""


class Ready(Protocol):
    """How long a fresh broker took, in seconds from its launch."""

    @property
    def port_s(self) -> float: ...
    @property
    def amqp_s(self) -> float: ...
    @property
    def management_s(self) -> float: ...


class Picture:
    """A figure as a PNG with alt text. A notebook shows it; ``str`` gives the text."""

    def __init__(self, png: bytes, alt: str) -> None:
        self.png, self.alt = png, alt

    def __str__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        # JupyterLab prefers HTML, and only there can a picture have an alt attribute. Viewers that
        # strip HTML from a notebook, as GitHub does, show the PNG.
        data = base64.b64encode(self.png).decode()
        image = (
            f'<img class="mqlab" style="max-width: 100%" alt="{html.escape(self.alt)}"'
            f' src="data:image/png;base64,{data}">'
        )
        return {"text/html": image + DARK_THEME, "image/png": data, "text/plain": self.alt}


def show(ax: Axes, *, alt: str | None = None) -> Picture:
    """Return the figure of ``ax`` as a picture. Its alt text is the Axes' label, or ``alt``."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    png = io.BytesIO()
    sentence = alt or str(ax.get_label())
    figure.savefig(png, format="png", metadata={"Software": None, "Description": sentence})
    return Picture(png.getvalue(), sentence)


@mpl.rc_context(STYLE)
def time_to_ready(starts: Sequence[Ready], ax: Axes | None = None) -> Axes:
    """Draw when a fresh broker's port opened, AMQP answered and the management UI answered.

    One bar for each, from the launch to the median of the starts; a dot for each start.
    """
    ax = ax or _new_axes(height=3.2)
    names = ["port opens", "AMQP answers", "management UI"]
    times = [[getattr(s, key) for s in starts] for key in ("port_s", "amqp_s", "management_s")]
    medians = [statistics.median(t) for t in times]
    # The median stands below the name: beside the bar it would look like the last dot's number.
    median = "median " if len(starts) > 1 else ""
    labels = [f"{name}\n{median}{m:.2f} s" for name, m in zip(names, medians, strict=True)]
    ax.barh(labels, medians, color=[GREY, ACCENT, GREY], height=0.6)
    if len(starts) > 1:
        for row, values in enumerate(times):
            ax.plot(values, [row] * len(values), "o", color=DARK, markersize=5)
    ax.set_xlim(0, max(max(t) for t in times) * 1.05)
    ax.invert_yaxis()
    ax.set_xlabel("seconds after launch")
    ax.set_title("Started is not ready")
    of_several = f", medians of {len(starts)} starts" if len(starts) > 1 else ""
    ax.set_label(
        f"Bar chart. After launch the broker's port opened in {medians[0]:.2f} s, AMQP answered "
        f"in {medians[1]:.2f} s and the management UI in {medians[2]:.2f} s{of_several}."
    )
    return ax


@mpl.rc_context(STYLE)
def staircase(
    run: ClientsRun, predicted_s: Sequence[float] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the wait of each client in line as bars, and the guess ``predicted_s`` as steps."""
    ax = ax or _new_axes()
    waits = run.waits_s
    guess = list(predicted_s or [])
    places = list(range(1, len(waits) + 1))
    bars = ax.bar(places, waits, color=ACCENT, width=0.7, label="measured")
    if guess:
        edges = [place + 0.5 for place in range(len(guess) + 1)]
        ax.stairs(guess, edges, baseline=None, color=DARK, linewidth=2.5, label="your guess")
    if len(waits) <= 12:
        ax.bar_label(bars, [f"{w:.2f}" for w in waits], padding=5, fontsize=12)
    ax.set_ylim(0, max(*waits, *guess) * 1.15)
    ax.set_xticks(places if len(places) <= 12 else places[:: len(places) // 8])
    ax.set_xlabel("client, in the order of the answers")
    ax.set_ylabel("wait, seconds")
    ax.set_title(f"{len(waits)} clients asked at once: work of {run.duration_s:g} s each")
    ax.legend(loc="upper left")
    guessed = (
        f" Your guess: {guess[0]:.2f} s for the first, {guess[-1]:.2f} s for the last."
        if guess
        else ""
    )
    ax.set_label(
        f"Bar chart. Measured wait of {len(waits)} clients in line: the first waited "
        f"{waits[0]:.2f} s, the last {waits[-1]:.2f} s, the mean is {statistics.mean(waits):.2f} s."
        f"{guessed}"
    )
    return ax


@mpl.rc_context(STYLE)
def send_cost(records: Sequence[SendRecord], ax: Axes | None = None) -> Axes:
    """Draw what each send was spent on: connect, declare, publish and confirm, stacked.

    One column for each repeat, in the order of sending; the legend gives the medians. The accent
    is the publish, the one part that the walk-through's script times.
    """
    ax = ax or _new_axes()
    parts = {"confirm": LIGHT, "publish": ACCENT, "declare": GREY, "connect": DARK}
    places = list(range(1, len(records) + 1))
    medians: dict[str, str] = {}
    floor = [0.0] * len(records)
    for part in ("connect", "declare", "publish", "confirm"):
        values = [getattr(record, f"{part}_s") * 1000 for record in records]
        medians[part] = format_time(statistics.median(values) / 1000)
        label = f"{part}, median {medians[part]}"
        ax.bar(places, values, bottom=floor, color=parts[part], width=1.0, label=label)
        floor = [low + value for low, value in zip(floor, values, strict=True)]
    ax.set_xlim(0.5, len(records) + 0.5)
    ax.set_xlabel("send, one after the other")
    ax.set_ylabel("wait of the sender, ms")
    ax.set_title("What one send is spent on")
    # One slow send must not flatten all the others: its column is cut off, and the legend has it.
    top = OFF_SCALE * statistics.median(floor)
    slow = sorted((total, place) for place, total in enumerate(floor, 1) if total > top)[::-1]
    if slow:
        ax.set_ylim(0, top)
    notes = [f"send {place}: {format_time(total / 1000)} ↑" for total, place in slow[:SLOW_LISTED]]
    if len(slow) > SLOW_LISTED:
        notes.append(f"and {len(slow) - SLOW_LISTED} more above the top ↑")
    for note in notes[::-1]:
        ax.plot([], " ", label=note)
    handles, labels = ax.get_legend_handles_labels()
    # The legend is in the order of the stack, and outside, where it cannot hide a column.
    ax.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set_label(
        f"Stacked columns of {len(records)} sends. Medians: connect {medians['connect']}, declare "
        f"{medians['declare']}, publish {medians['publish']}, confirm {medians['confirm']}; "
        f"all four together {format_time(statistics.median(floor) / 1000)}."
    )
    return ax


@mpl.rc_context(STYLE)
def compare_waits(groups: Mapping[str, Sequence[Waited]], ax: Axes | None = None) -> Axes:
    """Draw several groups of waits on one logarithmic scale: a dot for each repeat.

    ``groups`` maps a name to records with ``wait_s``. The last group has the accent colour.
    """
    ax = ax or _new_axes(height=1.6 + 0.8 * len(groups))
    sentences: list[str] = []
    for row, (name, records) in enumerate(groups.items()):
        waits = [record.wait_s for record in records]
        median = statistics.median(waits)
        colour = ACCENT if row == len(groups) - 1 else GREY
        ax.plot(waits, [row] * len(waits), "o", color=colour, alpha=0.45, markersize=8)
        ax.plot([median, median], [row - 0.22, row + 0.22], color=DARK, linewidth=3)
        ax.text(median, row - 0.3, format_time(median), ha="center", va="bottom")
        sentences.append(f"{name}: median {format_time(median)}, repeats {len(waits)}")
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(low / 2, high * 2)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set_ylim(len(groups) - 0.5, -0.75)
    ax.xaxis.set_major_formatter(lambda seconds, _: _round_time(seconds))
    ax.xaxis.set_minor_formatter("")
    ax.set_xlabel("wait of the client (each step is ten times more)")
    ax.grid(axis="x", color=LIGHT)
    ax.set_axisbelow(True)
    ax.set_title("How long the client waits")
    ax.set_label(f"Dots on a logarithmic scale. {'; '.join(sentences)}.")
    return ax


@mpl.rc_context(STYLE)
def task_timeline(records: Sequence[TaskRecord], ax: Axes | None = None) -> Axes:
    """Draw the life of each task: waiting in the queue, being worked on, acknowledged.

    One row for each delivery, grouped by worker. Tasks have letters, in the order in which they
    were sent. A task that has not been started, finished or acknowledged is drawn up to the last
    moment that any of the records knows.
    """
    ax = ax or _new_axes(height=2.2 + 0.4 * len(records))
    # A message that could not be read has no sending time: its row begins when it was received.
    by_sending = sorted(records, key=_sent_at)
    zero = _sent_at(by_sending[0])
    # Letters and not numbers: "worker-1, task 3" can be read as three tasks.
    ids = dict.fromkeys(record.task_id for record in by_sending)
    letters = {task_id: _to_letters(n) for n, task_id in enumerate(ids)}
    rows = sorted(by_sending, key=lambda r: (not r.worker, r.worker))
    moments = [(_sent_at(r), r.started_at, r.finished_at, r.acked_at) for r in rows]
    end = max(t for row in moments for t in row if t is not None) - zero
    sent = [s - zero for s, _, _, _ in moments]
    started = [end if t is None else t - zero for _, t, _, _ in moments]
    finished = [end if t is None else t - zero for _, _, t, _ in moments]
    acked = {row: t - zero for row, (_, _, _, t) in enumerate(moments) if t is not None}

    waits = [b - a for a, b in zip(sent, started, strict=True)]
    works = [b - a for a, b in zip(started, finished, strict=True)]
    places = range(len(rows))
    ax.barh(places, waits, left=sent, height=0.25, color=GREY, label="waits in the queue")
    ax.barh(places, works, left=started, height=0.7, color=ACCENT, label="is worked on")
    if acked:
        ax.plot(list(acked.values()), list(acked), "D", color=DARK, ms=9, label="acknowledged")
    ax.set_yticks(places, [f"{r.worker or 'not started'}, task {letters[r.task_id]}" for r in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, end * 1.03)
    ax.set_xlabel("seconds after the first task was sent")
    handles, labels = ax.get_legend_handles_labels()
    handles, labels = handles[-2:] + handles[:-2], labels[-2:] + labels[:-2]  # bars first
    ax.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3)
    workers = len({r.worker for r in rows if r.worker})
    ax.set_label(
        f"Time line of {_count(len(letters), 'task')} and {_count(workers, 'worker')}: "
        f"{len(acked)} acknowledged. "
        f"Longest wait in the queue {format_time(max(waits))}, longest work "
        f"{format_time(max(works))}, all over after {format_time(end)}."
    )
    return ax


def _sent_at(record: TaskRecord) -> float:
    return record.received_at if record.sent_at is None else record.sent_at


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _to_letters(number: int) -> str:
    """A, B, ... Z, AA, AB, ... for 0, 1, ... 25, 26, 27, ..."""
    before = _to_letters(number // 26 - 1) if number > 25 else ""
    return before + chr(ord("A") + number % 26)


def _round_time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds > 0.05 else f"{seconds * 1000:g} ms"


def _new_axes(*, width: float = 9.0, height: float = 4.5) -> Axes:
    # Figure and not pyplot: pyplot would keep the figure, and the notebook would draw it twice.
    return Figure(figsize=(width, height), layout="constrained").add_subplot()
