"""The notebooks in real JupyterLab in a real browser, as a learner has them."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqlab.settings import Settings
from tests.browser import ROOT, JupyterLab, Window, find_chromium, prompt, run_jupyterlab
from tests.helpers import consumers, eventually

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
    for path in reversed(NOTEBOOKS):  # the later ones take longer
        window = jupyterlab.open(path.name)
        window.begin_run_all()
        opened[path.stem] = window
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


def count_in(path: Path, wanted: str) -> int:
    """How often a pattern is in the prose and the outputs of a committed notebook."""
    found = 0
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            found += len(re.findall(wanted, "".join(output.get("data", {}).get("text/html", ""))))
        if cell["cell_type"] == "markdown":
            found += len(re.findall(wanted, "".join(cell["source"])))
    return found


@every_notebook
def test_run_all_runs_all_without_an_error(window: Window, path: Path) -> None:
    window.screenshot(f"{path.stem}-1")
    assert window.errors == []
    prompts = window.page.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
    assert prompts == [f"[{number}]:" for number in range(1, len(prompts) + 1)]
    assert window.complaints == []


@every_notebook
def test_every_picture_is_seen_and_has_words(window: Window, path: Path) -> None:
    pictures = window.page.locator(".jp-Notebook img")
    diagrams = window.page.locator(".jp-Notebook .jp-RenderedMermaid img")
    assert pictures.count() == count_in(path, "<img ") + count_in(path, "```mermaid")
    assert diagrams.count() == count_in(path, "```mermaid")
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        assert picture.is_visible()
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 100
        assert len((picture.get_attribute("alt") or "").split()) >= 3, picture.get_attribute("alt")


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
            option = shown.nth(place).locator(f'label:text-is("{as_shown(answer["answer"])}")')
            option.click()
            outcome = "correct" if answer["correct"] else "incorrect"
            assert feedback.text_content() == as_shown(answer["feedback"])
            assert feedback.get_attribute("class") == f"Feedback {outcome}"
            assert option.get_attribute("class") == f"MCButton {outcome}Button"
    window.screenshot(f"{path.stem}-3-quiz", window.cell("display_quiz("))
    assert window.complaints == []


def as_shown(text: str) -> str:
    return html.unescape(re.sub("<.*?>", "", text))


def test_what_a_page_complains_of_is_noted(write_and_open: Callable[..., Window]) -> None:
    window = write_and_open("pass")
    assert window.complaints == []
    with window.page.expect_event("pageerror"), window.page.expect_event("requestfailed"):
        window.page.evaluate(
            "console.error('planted'); setTimeout(() => { throw Error('thrown') })"
        )
        window.page.evaluate("fetch('https://example.org/').catch(() => {})")
    refused, *others = sorted(window.complaints)
    assert refused.startswith("Failed to load resource")
    assert others == ["exception: thrown", "planted ()"]


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
