"""The notebooks in real JupyterLab in a real browser, as a learner has them."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator

from mqlab.settings import Settings
from tests.browser import (
    CONTRASTS,
    ROOT,
    SIZE,
    JupyterLab,
    Window,
    find_chromium,
    prompt,
    run_jupyterlab,
)
from tests.helpers import assert_depth, consumers, depth, eventually, management

pytestmark = pytest.mark.timeout(300)  # the first test waits until all notebooks have begun

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [path for path in NOTEBOOKS if re.match("0[1-9]|10", path.stem)]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def jupyterlab(
    tmp_path_factory: pytest.TempPathFactory,
    broker_settings: Settings,
    missing: Callable[[str], None],
) -> Iterator[JupyterLab]:
    chromium = find_chromium()
    if chromium is None:
        missing("a Chromium")
    with run_jupyterlab(tmp_path_factory.mktemp("lab"), broker_settings, chromium) as running:
        yield running


@pytest.fixture(scope="module")
def windows(jupyterlab: JupyterLab) -> dict[str, Window]:
    """Every notebook, each in a window, all running at once: most of their time is waiting."""
    opened = {}
    # The long ones first: they are at it while the others open.
    for path in sorted(NOTEBOOKS, key=lambda path: len(code_cells(path)), reverse=True):
        opened[path.stem] = jupyterlab.open(path.name)
        opened[path.stem].begin_run_all()
    return opened


@pytest.fixture
def window(windows: dict[str, Window], path: Path) -> Window:
    """The notebook of the test, after Run All."""
    window = windows[path.stem]
    window.wait_run_all()
    return window


@pytest.fixture
def write_and_open(jupyterlab: JupyterLab) -> Iterator[Callable[..., Window]]:
    """A function that makes a notebook of some cells and opens it."""
    opened: list[Window] = []

    def open_cells(*cells: str) -> Window:
        name = f"made-{len(opened)}.ipynb"
        jupyterlab.write(name, *cells)
        opened.append(jupyterlab.open(name))
        return opened[-1]

    yield open_cells
    for each in opened:
        each.close()


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return notebook


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def count_in(path: Path, wanted: str) -> int:
    """How often a pattern is in the prose and the outputs of a committed notebook."""
    found = 0
    for cell in read(path)["cells"]:
        for output in cell.get("outputs", []):
            found += len(re.findall(wanted, "".join(output.get("data", {}).get("text/html", ""))))
        if cell["cell_type"] == "markdown":
            found += len(re.findall(wanted, "".join(cell["source"])))
    return found


@every_notebook
def test_run_all_runs_all_without_an_error(window: Window, path: Path) -> None:
    window.screenshot(f"{path.stem}-1")
    assert window.errors == []
    assert window.numbers == [f"[{n}]:" for n in range(1, len(code_cells(path)) + 1)]
    assert window.complaints == []


@every_notebook
def test_every_picture_is_seen_and_has_words(window: Window, path: Path) -> None:
    pictures = window.page.locator(".jp-Notebook img")
    diagrams = window.page.locator(".jp-Notebook .jp-RenderedMermaid img")
    assert pictures.count() == count_in(path, r"<img |!\[") + count_in(path, "```mermaid")
    assert diagrams.count() == count_in(path, "```mermaid")
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        assert picture.is_visible()
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 100
        assert len((picture.get_attribute("alt") or "").split()) >= 3, picture.get_attribute("alt")


@every_notebook
def test_every_widget_is_alive(window: Window, path: Path) -> None:
    widgets = window.page.locator(".jp-OutputArea-output > .jupyter-widgets")
    assert widgets.count() == path.read_text("utf-8").count("jupyter.widget-view+json")
    for widget in widgets.all():
        widget.scroll_into_view_if_needed()
        # What a page has closed says so, by the same way as it said everything else.
        expected = "ready|does not exist yet|is closed"
        assert re.search(expected, widget.locator(".mqlab-state").text_content() or "")


@every_notebook
def test_nothing_is_cut_off_at_the_side(window: Window, path: Path) -> None:
    with window.unrolled():
        window.screenshot(f"{path.stem}-2-whole")
        wide = window.page.evaluate(
            """() => [...document.querySelectorAll(
                    '.jp-Notebook .jp-RenderedMarkdown, .jp-Notebook .jp-OutputArea-output')]
                .filter(shown => shown.scrollWidth > shown.clientWidth + 1)
                .map(shown => shown.textContent.slice(0, 80))"""
        )
    assert wide == []


@every_page
def test_the_quiz_explains_each_wrong_option_and_marks_the_right_one(
    window: Window, path: Path
) -> None:
    quiz = ROOT / "notebooks/quizzes" / f"{path.stem[:2]}.json"
    questions = json.loads(quiz.read_text("utf-8"))
    shown = window.page.locator(".jp-Notebook .Quiz")
    assert shown.count() == len(questions) == 2
    for place, question in enumerate(questions):
        feedback = shown.nth(place).locator(".Feedback")
        assert feedback.text_content() == ""
        right_last = sorted(question["answers"], key=lambda answer: answer["correct"])
        assert [answer["correct"] for answer in right_last[-2:]] == [False, True]
        for answer in right_last:
            words = re.compile(f"^{re.escape(as_shown(answer['answer']))}$")
            option = shown.nth(place).locator("label").filter(has_text=words)
            option.click()
            outcome = "correct" if answer["correct"] else "incorrect"
            assert feedback.text_content() == as_shown(answer["feedback"])
            assert feedback.get_attribute("class") == f"Feedback {outcome}"
            assert option.get_attribute("class") == f"MCButton {outcome}Button"
            assert_readable(shown)
    window.screenshot(f"{path.stem}-3-quiz", window.cell("show_quiz("))
    with window.dark():
        shown.first.locator("label").first.click()
        window.screenshot(f"{path.stem}-3-quiz-dark", window.cell("show_quiz("))
        assert_readable(shown)
    assert window.complaints == []


def as_shown(text: str) -> str:
    return html.unescape(re.sub("<.*?>", "", text))


@every_page
def test_a_solution_that_is_typed_in_is_correct(window: Window, path: Path) -> None:
    check = window.cell("ex1.check(")
    window.type_into(window.cell(starter(path, "ex1")), solution(path, "ex1"))
    window.run(window.cell(starter(path, "ex1")))
    assert "Exercise 1: correct." in window.run(check)
    window.screenshot(f"{path.stem}-4-solved", check)
    assert window.complaints == []


def test_a_wrong_answer_leads_back_to_the_place_that_explains_it(
    windows: dict[str, Window],
) -> None:
    window = windows["03_async_publishing"]
    window.wait_run_all()
    cell = window.cell("def send_all(")
    window.type_into(cell, OUTCOMES["incorrect"])
    window.run(cell)
    check = window.cell("ex1.check(")
    assert "Exercise 1: incorrect." in window.run(check)
    link = check.locator(".mqlab-result a")
    place = window.page.locator(".jp-Notebook h2", has_text=link.text_content())
    assert not is_in_view(place)
    link.click()
    eventually(lambda: is_in_view(place))


def is_in_view(shown: Locator) -> bool:
    top = (shown.bounding_box() or {"y": -1.0})["y"]
    return 0 <= top < SIZE["height"]


def starter(path: Path, exercise: str) -> str:
    """The line with which the starter cell of an exercise begins."""
    sources = ["".join(cell["source"]) for cell in read(path)["cells"]]
    [name] = re.findall(rf"^{exercise}\.check\((\w+)\)$", "\n".join(sources), re.M)
    return f"def {name}("


def solution(path: Path, exercise: str) -> str:
    name = f"solutions/{path.stem[:2]}_{exercise}.py"
    return (ROOT / "notebooks" / name).read_text("utf-8")


SOLUTION = (ROOT / "notebooks/solutions/03_ex1.py").read_text("utf-8")
LOST_BROKER = """
import os
os.environ["AMQP_URL"] = "amqp://guest:guest@127.0.0.1:9/%2F"
"""
OUTCOMES = {
    "not attempted": "def send_all(connect, queue, tasks): return None",
    "incorrect": "def send_all(connect, queue, tasks): return tasks",
    "correct": SOLUTION,
    "could not be checked": LOST_BROKER,
}


def test_each_outcome_of_a_check_is_readable_in_both_themes(
    write_and_open: Callable[..., Window],
) -> None:
    cells = [cell for answer in OUTCOMES.values() for cell in (answer, "ex1.check(send_all)")]
    window = write_and_open("from mqlab.exercises.page_03 import ex1", *cells)
    window.begin_run_all()
    window.wait_run_all()
    results = window.page.locator(".jp-OutputArea-output .mqlab-result")
    for result, outcome in zip(results.all(), OUTCOMES, strict=True):
        assert f"Exercise 1: {outcome}." in (result.text_content() or "")
    with window.unrolled():
        window.screenshot("outcomes-1-light")
        assert_readable(results)
        with window.dark():
            window.screenshot("outcomes-2-dark")
            assert_readable(results)
    assert window.complaints == []


def assert_readable(shown: Locator) -> None:
    """Assert the contrast that WCAG 2.1 asks of text, 4.5 to 1, for each piece of text."""
    contrasts = shown.evaluate_all(CONTRASTS)
    assert contrasts
    assert [pair for pair in contrasts if pair[1] < 4.5] == []


def test_an_exercise_and_a_quiz_can_be_done_by_keyboard_alone(
    write_and_open: Callable[..., Window],
) -> None:
    quiz = "from mqlab.exercises.engine.quiz import show_quiz\n\nshow_quiz('03')"
    cells = ["from mqlab.exercises.page_03 import ex1", "starter", "ex1.check(send_all)", quiz]
    window = write_and_open(*cells)
    press = window.page.keyboard.press
    press("Shift+Enter")
    press("Enter")  # into the starter cell
    press("Control+a")
    window.page.keyboard.insert_text(SOLUTION)
    press("Shift+Enter")
    press("Shift+Enter")
    window.page.locator(".mqlab-result", has_text="Exercise 1: correct.").wait_for()

    press("Shift+Enter")
    window.page.locator(".jp-Notebook .Quiz[role]").nth(1).wait_for()
    press("Escape")  # out of the new cell, and up to the quiz
    press("ArrowUp")
    asked = json.loads((ROOT / "notebooks/quizzes/03.json").read_text("utf-8"))
    for place, question in enumerate(asked):
        shown = window.page.locator(".jp-Notebook .Quiz").nth(place)
        tab_into(window, shown)
        press("Space")
        for number, answer in enumerate(question["answers"]):
            if number:
                press("ArrowDown")
            assert shown.locator(".Feedback").text_content() == as_shown(answer["feedback"])
    assert window.complaints == []


def tab_into(window: Window, shown: Locator, *, within: int = 20) -> None:
    """Press Tab until the focus is in what is shown; people give up after a while, too."""
    for _ in range(within):
        window.page.keyboard.press("Tab")
        if shown.evaluate("shown => shown.contains(document.activeElement)"):
            return
    pytest.fail("Tab does not lead there")


def test_what_goes_wrong_on_a_page_is_noted(write_and_open: Callable[..., Window]) -> None:
    window = write_and_open("1 / 0")
    assert window.errors == window.complaints == []
    assert "ZeroDivisionError" in window.run(window.cell("1 / 0"))
    assert ["ZeroDivisionError" in error for error in window.errors] == [True]
    with window.page.expect_event("pageerror"), window.page.expect_event("requestfailed"):
        window.page.evaluate(
            "console.error('planted'); setTimeout(() => { throw Error('thrown') })"
        )
        window.page.evaluate("fetch('https://example.org/').catch(() => {})")
    refused, *others = sorted(window.complaints)
    assert refused.startswith("Failed to load resource")
    exception, logged = others
    assert exception.startswith("exception: Error: thrown\n")  # and where
    assert logged == "planted ()"


WORK = """
from mqlab import BackgroundConsumer, Producer
consumer = BackgroundConsumer(lambda task: task.data * 2, queue={queue!r}).start()
"""
SEND_AND_WAIT = """
with Producer({queue!r}) as producer:
    producer.send("do")
print(consumer.wait(1, timeout_s=20)[0].result)
"""


def test_a_cell_run_again_interrupted_and_restarted_leaves_no_consumer(
    queue: str, broker_settings: Settings, write_and_open: Callable[..., Window]
) -> None:
    cells = [WORK, "consumer.wait(1, timeout_s=100)", SEND_AND_WAIT]
    window = write_and_open(*(cell.format(queue=queue) for cell in cells))
    work, wait, send = (window.cell(f"{part}(") for part in ("BackgroundConsumer", "wait", "send"))
    said = [window.run(work) for _ in range(3)]
    assert "Replaced the consumer" in said[2]
    assert consumers(broker_settings, queue) == 1

    window.begin(wait)
    eventually(lambda: "[*]" in prompt(wait))
    window.press_button("interrupt")
    assert "KeyboardInterrupt" in window.wait_done(wait, "")
    assert "dodo" in window.run(send)  # not swallowed by a consumer that nobody knows

    window.press_button("restart")
    window.page.locator(".jp-Dialog .jp-mod-accept").click()
    eventually(lambda: consumers(broker_settings, queue) == 0)
    window.wait_idle()
    window.run(work)
    assert "dodo" in window.run(send)
    assert consumers(broker_settings, queue) == 1
    assert window.complaints == []


def test_the_dashboards_buttons_do_what_they_say_at_the_broker(
    queue: str, broker_settings: Settings, write_and_open: Callable[..., Window]
) -> None:
    show = f"from mqlab import Dashboard\nDashboard({queue!r}, task_s=1)"
    window = write_and_open(show, "import time\ntime.sleep(100)")
    window.run(window.cell("Dashboard"))
    dashboard = window.page.locator(".jp-OutputArea-output .mqlab-dashboard")

    def press(name: str) -> None:
        dashboard.locator(f"button.mqlab-{name}").click()

    def state(pattern: str) -> re.Match[str] | None:
        return re.search(pattern, dashboard.locator(".mqlab-state").text_content() or "")

    for name in ("send-1", "send-10", "start-worker", "stop-worker", "kill-worker", "cut"):
        tab_into(
            window, dashboard.locator(f"button.mqlab-{name}"), within=20 if name == "send-1" else 1
        )
    press("send-10")
    eventually(lambda: state("10 ready"))
    assert_depth(broker_settings, queue, 10)
    press("start-worker")
    eventually(lambda: state(r"[1-9] ready, 1 unacked, 1 worker, [1-9] done"), 20)
    assert consumers(broker_settings, queue) == 1
    window.screenshot("dashboard-1-at-work", dashboard)
    assert_readable(dashboard)
    press("kill-worker")
    eventually(lambda: consumers(broker_settings, queue) == 0)
    eventually(lambda: state("0 workers"))
    # Its task is back. What it said last may come a moment later than its end.
    eventually(lambda: depth(broker_settings, queue) == 10 - int(state(r"(\d+) done")[1]))
    left = depth(broker_settings, queue)

    busy = window.cell("sleep")
    window.begin(busy)
    eventually(lambda: "[*]" in prompt(busy))
    press("send-1")
    assert_depth(broker_settings, queue, left + 1)
    press("start-worker")
    eventually(lambda: consumers(broker_settings, queue) == 1)
    eventually(lambda: connection_of_consumer(broker_settings, queue), 20)
    before = connection_of_consumer(broker_settings, queue)
    press("cut")
    eventually(lambda: connection_of_consumer(broker_settings, queue) not in ("", before), 20)
    press("stop-worker")
    eventually(lambda: consumers(broker_settings, queue) == 0)
    eventually(lambda: state("0 workers"))
    with window.dark():
        window.screenshot("dashboard-2-after-trouble", dashboard)
        assert_readable(dashboard)
    assert "[*]" in prompt(busy)

    press("start-worker")
    eventually(lambda: consumers(broker_settings, queue) == 1)
    window.press_button("restart")
    window.page.locator(".jp-Dialog .jp-mod-accept").click()
    eventually(lambda: consumers(broker_settings, queue) == 0)
    window.wait_idle()
    assert window.complaints == []


def connection_of_consumer(settings: Settings, queue: str) -> str:
    """The name of the connection that the queue's consumer has, or nothing."""
    for consumer in management(settings, "consumers"):
        if consumer["queue"]["name"] == queue and consumer["channel_details"]:
            return str(consumer["channel_details"]["connection_name"])
    return ""
