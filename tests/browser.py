"""JupyterLab in a real browser: a server of the tests' own, and one window for each notebook.

Nothing outside this machine can be reached from these windows, so a page that needs the network
shows it here as it would in a train.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, sync_playwright

from mqlab.settings import Settings
from mqlab.workshop import lab

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / "build/screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"],
    *["--disable-background-networking", "--disable-component-update"],
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
CONTRASTS = """elements => {
    const parse = colour => colour.match(/[\\d.]+/g).map(Number);
    const over = ([r, g, b, a = 1], below) => [r, g, b].map((v, i) => v * a + below[i] * (1 - a));
    const behind = element => {
        const own = parse(getComputedStyle(element).backgroundColor);
        const last = own[3] === undefined || !element.parentElement;
        return last ? own : over(own, behind(element.parentElement));
    };
    const luminance = colour => {
        const [r, g, b] = colour.map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    for (const element of elements) {
        const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
            const text = texts.currentNode.textContent.trim();
            const holder = texts.currentNode.parentElement, style = getComputedStyle(holder);
            if (!text || holder.matches('style, title')) continue;
            const back = behind(holder);
            const colour = over(parse(holder.closest('svg') ? style.fill : style.color), back);
            const [low, high] = [back, colour].map(luminance).sort((a, b) => a - b);
            found.push([text, (high + 0.05) / (low + 0.05)]);
        }
    }
    return found;
}"""
"""Each text in the elements, with its contrast to what is behind it, as WCAG 2.1 defines it."""

SIZE = {"width": 1280, "height": 900}
TALLEST = 15_000
"""Pixels. Chromium draws no picture that is much higher than this."""
SLOW_MS = 60_000
"""Milliseconds that anything in the browser may take before a test gives up."""

# A window asks for the list of kernels every few seconds, and jupyter_server fails at one that is
# just starting. Nobody notices: the window asks again.
KNOWN = re.compile(
    r"Failed to load resource: .* 500 .*\(http://127\.0\.0\.1:\d+/api/kernels\?\d+\)"
)

PROMPT = ".jp-CodeCell .jp-InputPrompt"
# An exception is shown as what is written to stderr is.
RED_OUTPUT = '.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]'


class Window:
    """One notebook in a browser window of its own.

    ``complaints`` are those of its console, ``numbers`` what stood before the cells after Run All.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.numbers: list[str] = []
        page.set_default_timeout(SLOW_MS)
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.complaints.append(f"exception: {error.stack}"))

    def _note_message(self, message: ConsoleMessage) -> None:
        told = f"{message.text} ({message.location['url']})"
        # JupyterLab looks for a picture in the notebook itself after the browser has.
        attached = "(attachment:" in told
        if message.type == "error" and not attached and not KNOWN.fullmatch(told):
            self.complaints.append(told)

    def close(self) -> None:
        """End the kernel, and close the window."""
        self.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.page.context.close()

    def wait_idle(self) -> None:
        """Wait until the kernel has answered and nothing is running.

        The indicator in the tool bar says idle too early: a cell that is run then never ends.
        """
        self.page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()

    def command(self, name: str, **arguments: object) -> Any:
        """Do one of JupyterLab's commands, and wait for its end."""
        return self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args).then(() => true)",
            [name, arguments],
        )

    def begin_run_all(self) -> None:
        """Run All; ``wait_run_all`` waits for the end."""
        self.page.evaluate(
            """() => {
                const run = window.jupyterapp.commands.execute('notebook:run-all-cells');
                run.finally(() => { window.allRun = true; });
            }"""
        )

    def wait_run_all(self) -> None:
        """Wait until Run All has come to its end, the last cell or the first exception."""
        self.page.wait_for_function("window.allRun")
        self.wait_idle()
        # Now, since a cell that is run again later gets another number.
        self.numbers = self.numbers or self.page.locator(PROMPT).all_text_contents()

    def cell(self, part: str) -> Locator:
        """The first cell with ``part`` in its source."""
        place = self.page.evaluate(
            """part => window.jupyterapp.shell.currentWidget.content.widgets
                .findIndex(cell => cell.model.sharedModel.source.includes(part))""",
            part,
        )
        assert place >= 0, f"no cell with {part!r}"
        return self.page.locator(".jp-Notebook .jp-Cell").nth(place)

    @property
    def errors(self) -> list[str]:
        """What the notebook shows in red: exceptions, and anything else on stderr."""
        return self.page.locator(RED_OUTPUT).all_text_contents()

    def type_into(self, cell: Locator, source: str) -> None:
        """Put ``source`` in the place of what stands in the cell, as by pasting it."""
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)

    def begin(self, cell: Locator) -> None:
        """Run the cell by Shift + Enter, and do not wait."""
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")

    def run(self, cell: Locator) -> str:
        """Run the cell by Shift + Enter, and return what it shows when it is done."""
        before = prompt(cell)
        self.begin(cell)
        return self.wait_done(cell, before)

    def wait_done(self, cell: Locator, before: str) -> str:
        """Wait until the cell has another number than ``before``; return what it shows."""
        self.page.wait_for_function(
            "([prompt, before]) => /\\d/.test(prompt.textContent) && prompt.textContent !== before",
            arg=[cell.locator(".jp-InputPrompt").element_handle(), before],
        )
        return "\n".join(cell.locator(".jp-OutputArea-output").all_text_contents())

    @contextmanager
    def dark(self) -> Iterator[None]:
        """JupyterLab's dark theme."""
        self._choose_theme("JupyterLab Dark")
        yield
        self._choose_theme("JupyterLab Light")

    def _choose_theme(self, name: str) -> None:
        self.command("apputils:change-theme", theme=name)
        self.page.locator(f'body[data-jp-theme-name="{name}"]').wait_for(state="attached")
        # JupyterLab takes its splash away a moment later, and twice if it is asked again meanwhile.
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def press_button(self, name: str) -> None:
        """Press a button of the notebook's tool bar."""
        self.page.locator(f'.jp-NotebookPanel-toolbar [data-jp-item-name="{name}"]').click()

    def screenshot(self, name: str, shown: Locator | None = None) -> None:
        """Keep a picture of the window, or of what is ``shown`` in it, for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        (shown or self.page).screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")

    @contextmanager
    def unrolled(self) -> Iterator[None]:
        """A window so high that the whole notebook is in view: JupyterLab draws only what is."""
        self.page.set_viewport_size({**SIZE, "height": TALLEST})
        end = self.page.evaluate(
            """async () => {
                const panel = document.querySelector('.jp-WindowedPanel-outer');
                panel.scrollTop = 0;
                await new Promise(drawn => requestAnimationFrame(() => setTimeout(drawn, 100)));
                const last = [...panel.querySelectorAll('.jp-Cell')].at(-1);
                return last.getBoundingClientRect().bottom;
            }"""
        )
        self.page.set_viewport_size({**SIZE, "height": min(int(end) + 60, TALLEST)})
        yield
        self.page.set_viewport_size(SIZE)


class JupyterLab:
    """A running JupyterLab on a folder of its own, and the browser that opens its notebooks."""

    def __init__(self, root: Path, server: lab.Server, browser: Browser) -> None:
        self.root = root
        self._base = server.wait_served().split("/lab")[0]
        self._token = server.token
        self._browser = browser

    def open(self, name: str) -> Window:
        """Open a notebook of the folder in a new window, and wait for its kernel."""
        # A context for each: windows of one context would argue about their names.
        page = self._browser.new_context(viewport=SIZE).new_page()
        window = Window(page)
        workspace = Path(name).stem
        address = f"{self._base}/lab/workspaces/{workspace}/tree/notebooks/{name}"
        page.goto(f"{address}?token={self._token}&reset")
        window.wait_idle()
        return window

    def write(self, name: str, *cells: str) -> None:
        """Make a notebook of these code cells."""
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
        notebook = {
            "cells": [{**code, "id": f"cell-{n}", "source": s} for n, s in enumerate(cells)],
            "metadata": {"kernelspec": kernel},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (self.root / "notebooks" / name).write_text(json.dumps(notebook))


@contextmanager
def run_jupyterlab(root: Path, settings: Settings, chromium: str) -> Iterator[JupyterLab]:
    """JupyterLab on a copy of the notebooks in ``root``, its kernels on this broker."""
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    own = root / "jupyter"
    own.mkdir()
    # window.jupyterapp, by which the tests give commands as the menus do
    config = {"LabApp": {"expose_app_in_browser": True}}
    (own / "jupyter_lab_config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("AMQP_URL", settings.url)
        environ.setenv("MQLAB_MANAGEMENT_URL", settings.management_url)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTER_DATA_DIR"):
            environ.setenv(name, str(own))
        server = lab.start_jupyter(root)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            yield JupyterLab(root, server, browser)
            browser.close()
    finally:
        server.stop()


def prompt(cell: Locator) -> str:
    """What stands before the cell: ``[3]:``, or ``[*]:`` while it runs."""
    return cell.locator(".jp-InputPrompt").text_content() or ""


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)
