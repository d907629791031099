"""The pictures show the records' numbers, and state them in a sentence."""

import base64
import html
import itertools
import re
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mqlab.measure import plots
from mqlab.measure.runs import ClientRecord, ClientsRun
from mqlab.records import SendRecord, TaskRecord
from mqlab.walkthrough import SyncRecord


def sent(number, connect=4, declare=1, publish=0.5, confirm=2):
    times = [ms / 1000 for ms in (connect, declare, publish, confirm)]
    return SendRecord(f"id-{number}", number, "q", 1000.0 + number, *times, repeated=0)


def task(number, worker="worker-1", sent_at=1000.0, started=1.0, work=2.0, acked=True, **changes):
    values = {
        "task_id": f"id-{number}",
        "data": number,
        "sent_at": sent_at,
        "received_at": sent_at + 0.1,
        "redelivered": False,
        "attempt": 1,
        "worker": worker,
        "started_at": sent_at + started,
        "finished_at": sent_at + started + work,
        "acked_at": sent_at + started + work + 0.01 if acked else None,
    }
    return TaskRecord(**(values | changes))


def run_of(*waits, duration_s=0.5):
    clients = tuple(ClientRecord(n, 0.0, w - duration_s, w) for n, w in enumerate(waits, 1))
    return ClientsRun(duration_s, 1, clients)


STARTS = [
    SimpleNamespace(port_s=2.0, amqp_s=3.0, management_s=4.0),
    SimpleNamespace(port_s=4.0, amqp_s=5.0, management_s=6.0),
]
GROUPS = {"waits": [SyncRecord("i", "d", 5.0, "r")], "sends": [sent(1), sent(2)]}
ALL = {
    "time_to_ready": lambda ax=None: plots.time_to_ready(STARTS, ax),
    "staircase": lambda ax=None: plots.staircase(run_of(0.5, 1.0), ax=ax),
    "send_cost": lambda ax=None: plots.send_cost([sent(1), sent(2)], ax),
    "compare_waits": lambda ax=None: plots.compare_waits(GROUPS, ax),
    "task_timeline": lambda ax=None: plots.task_timeline([task(1), task(2)], ax),
}


def bars(ax):
    return [
        (round(p.get_x(), 3), round(p.get_width(), 3), round(p.get_height(), 3))
        for p in ax.patches
        if isinstance(p, Rectangle)
    ]


def words(ax):
    return [text.get_text().strip() for text in ax.texts]


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL.keys())
def test_every_picture_has_a_labelled_axis_with_its_unit(draw):
    ax = draw()
    assert re.search(r"second|ms|ten times", ax.get_xlabel() + ax.get_ylabel())


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL.keys())
def test_every_picture_can_be_drawn_into_given_axes(draw):
    ax = Figure().add_subplot()
    assert draw(ax) is ax


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL.keys())
def test_every_picture_is_shown_small_and_with_its_sentence(draw):
    ax = draw()
    bundle = plots.show(ax)._repr_mimebundle_()

    assert bundle["text/plain"] == ax.get_label()
    [image] = re.findall(r"<img [^>]*>", bundle["text/html"])
    assert html.unescape(re.search(r' alt="([^"]+)"', image)[1]) == ax.get_label()
    png = re.search(r' src="data:image/png;base64,([^"]+)"', image)[1]
    assert base64.b64decode(png).startswith(b"\x89PNG")
    assert len(png) < 60_000
    assert bundle["image/png"] == png, "for viewers that strip HTML"
    assert ' class="mqlab" ' in image
    assert '[data-jp-theme-light="false"] img.mqlab {' in bundle["text/html"]


def test_the_same_records_give_the_same_bytes():
    pictures = [plots.show(ALL["send_cost"]()).png for _ in range(2)]
    assert pictures[0] == pictures[1]


def test_a_given_alt_text_replaces_the_sentence_and_is_escaped():
    picture = plots.show(ALL["staircase"](), alt='waits of "two" & more <clients>')

    shown = picture._repr_mimebundle_()["text/html"]
    assert ' alt="waits of &quot;two&quot; &amp; more &lt;clients&gt;" ' in shown


def test_time_to_ready_draws_the_medians_and_every_start():
    ax = plots.time_to_ready(STARTS)

    assert [width for _, width, _ in bars(ax)] == [3.0, 4.0, 5.0]
    assert [list(line.get_xdata()) for line in ax.lines] == [[2.0, 4.0], [3.0, 5.0], [4.0, 6.0]]
    assert "port opened in 3.00 s, AMQP answered in 4.00 s and the management UI in 5.00 s" in (
        ax.get_label()
    )


def test_the_medians_stand_beside_the_names_where_no_dot_can_be():
    ax = plots.time_to_ready(STARTS)

    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[0] == "port opens\nmedian 3.00 s"
    assert words(ax) == []
    one = plots.time_to_ready(STARTS[:1])
    assert one.get_yticklabels()[0].get_text() == "port opens\n2.00 s"


def steps(ax):
    return [list(p.get_data().values) for p in ax.patches if hasattr(p, "get_data")]


def test_a_staircase_has_a_bar_for_each_wait_and_the_guess_as_steps():
    ax = plots.staircase(run_of(0.5, 1.0, 1.5), [0.5, 1.0, 1.6])

    assert [height for _, _, height in bars(ax)[:3]] == [0.5, 1.0, 1.5]
    assert steps(ax) == [[0.5, 1.0, 1.6]]
    assert "the first waited 0.50 s, the last 1.50 s, the mean is 1.00 s" in ax.get_label()
    assert "Your guess: 0.50 s for the first, 1.60 s for the last" in ax.get_label()


@pytest.mark.parametrize("guess", [None, []])
def test_a_staircase_without_a_guess_draws_none(guess):
    ax = plots.staircase(run_of(0.5, 1.0, 1.5), guess)

    assert steps(ax) == []
    assert "guess" not in ax.get_label()


@pytest.mark.parametrize("guess", [[0.5], [0.5, 1.0, 1.5, 2.0, 2.5], (0.1, 0.2)])
def test_a_guess_for_another_number_of_clients_is_drawn_as_it_is(guess):
    assert steps(plots.staircase(run_of(0.5, 1.0, 1.5), guess)) == [list(guess)]


def test_send_cost_stacks_the_four_parts_in_milliseconds():
    ax = plots.send_cost([sent(1), sent(2, connect=6)])

    assert [height for _, _, height in bars(ax)] == [4, 6, 1, 1, 0.5, 0.5, 2, 2]
    assert [p.get_y() for p in ax.patches][-2:] == pytest.approx([5.5, 7.5])
    assert ax.get_label() == (
        "Stacked columns of 2 sends. Medians: connect 5.0 ms, declare 1.0 ms, publish 0.50 ms, "
        "confirm 2.0 ms; all four together 8.5 ms."
    )


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_one_slow_send_does_not_flatten_the_others():
    ax = plots.send_cost([sent(1), sent(2), sent(3, connect=200)])

    assert ax.get_ylim()[1] == pytest.approx(3 * 7.5)
    assert legend(ax)[4:] == ["send 3: 0.20 s ↑"]
    assert len(legend(plots.send_cost([sent(1), sent(2)]))) == 4


def test_however_many_sends_are_slow_no_note_is_printed_over_a_column_or_another_note():
    sends = [sent(n) for n in range(1, 31)]
    for place in (3, 4, 5, 28, 29):
        sends[place] = sent(place + 1, connect=100 + place)
    ax = plots.send_cost(sends)

    assert legend(ax)[4:] == [
        "send 30: 0.13 s ↑",
        "send 29: 0.13 s ↑",
        "send 6: 0.11 s ↑",
        "and 2 more above the top ↑",
    ]
    ax.figure.draw_without_rendering()
    notes = [text.get_window_extent() for text in ax.get_legend().get_texts()]
    assert min(box.x0 for box in notes) > ax.get_window_extent().x1
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(notes))
    assert max(box.x1 for box in notes) <= ax.figure.bbox.x1


def test_compare_waits_is_logarithmic_with_a_dot_for_each_repeat_and_states_the_medians():
    ax = plots.compare_waits(GROUPS)

    assert ax.get_xscale() == "log"
    assert [len(line.get_xdata()) for line in ax.lines if line.get_marker() == "o"] == [1, 2]
    assert words(ax) == ["5.00 s", "7.5 ms"]
    assert "waits: median 5.00 s, repeats 1; sends: median 7.5 ms, repeats 2." in ax.get_label()


def test_only_the_last_group_has_the_accent():
    dots = [line for line in plots.compare_waits(GROUPS).lines if line.get_marker() == "o"]
    assert [line.get_color() for line in dots] == [plots.GREY, plots.ACCENT]


def test_a_timeline_has_for_each_task_its_wait_its_work_and_its_ack():
    ax = plots.task_timeline([task(1), task(2, worker="worker-2", sent_at=1000.5, started=0.5)])

    assert bars(ax)[:2] == [(0.0, 1.0, 0.25), (0.5, 0.5, 0.25)]  # waits
    assert bars(ax)[2:] == [(1.0, 2.0, 0.7), (1.0, 2.0, 0.7)]  # works
    assert list(ax.lines[0].get_xdata()) == pytest.approx([3.01, 3.01])
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "worker-1, task A",
        "worker-2, task B",
    ]
    assert "2 tasks and 2 workers: 2 acknowledged" in ax.get_label()


def test_a_timeline_draws_what_is_not_finished_as_far_as_it_got():
    waiting = task(2, worker="", started_at=None, finished_at=None, acked=False)
    working = task(3, finished_at=None, acked=False)
    ax = plots.task_timeline([waiting, working, task(1)])

    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[-1].startswith("not started")
    assert bars(ax)[2] == (0.0, 3.01, 0.25)
    assert len(ax.lines[0].get_xdata()) == 1
    assert "3 tasks and 1 worker: 1 acknowledged" in ax.get_label()


def test_a_second_delivery_of_a_task_keeps_its_letter():
    first, again = task(1), task(1, started=4.0, attempt=2, redelivered=True)
    ax = plots.task_timeline([first, again, task(2, sent_at=1001.0)])

    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "worker-1, task A",
        "worker-1, task A",
        "worker-1, task B",
    ]


def test_a_message_without_a_sending_time_begins_where_it_was_received():
    unreadable = TaskRecord(None, None, None, 1000.2, False, 1, outcome="dead")
    ax = plots.task_timeline([task(1), unreadable])

    assert bars(ax)[1][0] == 0.2
    assert "2 tasks and 1 worker: 1 acknowledged" in ax.get_label()


def test_letters_go_on_after_z():
    ax = plots.task_timeline([task(n, sent_at=1000.0 + n) for n in range(28)])

    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[-3:] == ["worker-1, task Z", "worker-1, task AA", "worker-1, task AB"]
