"""`mqlab lab` as a person starts and ends it, with a real JupyterLab and browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from mqlab.broker.ports import is_open
from mqlab.connection import handshake
from mqlab.errors import MqlabError
from mqlab.settings import Settings
from mqlab.workshop import lab, pages
from mqlab.workshop.pages import COPIES, ORIGINALS
from tests.browser import FLAGS, ROOT, SCREENSHOTS, find_chromium
from tests.helpers import eventually, free_port

READY_S = 90.0
END_S = 30.0


class Lab:
    """A `mqlab lab` in a folder of its own; what it prints goes to a file."""

    def __init__(self, folder: Path, arguments: list[str], **environ: str) -> None:
        self.folder = folder
        (folder / ORIGINALS).mkdir(exist_ok=True)
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        page = {"cells": [], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        for path in (lab.START_PAGE, lab.DASHBOARD):
            original = folder / ORIGINALS / Path(path).name
            if not original.exists():
                original.write_text(json.dumps(page))
        self.output = folder / "output.txt"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AMQP", "JUPYTER"))}
        own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
        # window.jupyterapp, by which the tests give commands as the menus do
        config = {"LabApp": {"expose_app_in_browser": True}}
        Path(own["JUPYTER_CONFIG_DIR"]).mkdir(exist_ok=True)
        (folder / "JUPYTER_CONFIG_DIR/jupyter_lab_config.json").write_text(json.dumps(config))
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mqlab", "lab", *arguments],
                cwd=folder,
                env=inherited | own | {"XDG_STATE_HOME": str(folder / "state")} | environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.family: list[psutil.Process] = []

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_ready(self) -> Lab:
        deadline = time.monotonic() + READY_S
        while "Ready after" not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)
        found = re.search(r"JupyterLab: (http://\S+)\?token=(\w+)", self.said)
        assert found, self.said
        self.url, self.token = found.groups()
        self.base = self.url.split("/lab")[0]
        return self

    def ask(
        self, path: str, *, token: str = "", data: bytes | None = None, method: str | None = None
    ) -> str:
        headers = {"Authorization": f"token {token}"} if token else {}
        request = urllib.request.Request(self.base + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.read().decode())

    def see_family(self) -> list[psutil.Process]:
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return self.family

    def see_command_lines(self) -> dict[psutil.Process, list[str]]:
        """Those of the family; one that has ended meanwhile has none."""
        lines = {}
        for member in self.see_family():
            with contextlib.suppress(psutil.NoSuchProcess):
                lines[member] = member.cmdline()
        return lines

    def wait_end(self) -> int:
        status = self.process.wait(END_S)
        _, alive = psutil.wait_procs(self.family, timeout=10)
        assert not alive, alive
        return status


@pytest.fixture
def start_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    started: list[Lab] = []

    def start(*arguments: str, **environ: str) -> Lab:
        started.append(Lab(tmp_path, list(arguments), **environ))
        return started[-1]

    yield start
    for each in started:  # of a test that failed
        if each.process.poll() is None:
            each.see_family()
            each.process.kill()
        for member in each.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def url_of(settings: Settings) -> dict[str, str]:
    return {"AMQP_URL": settings.url, "MQLAB_MANAGEMENT_URL": settings.management_url}


def own_ports() -> dict[str, str]:
    return {"MQLAB_AMQP_PORT": str(free_port()), "MQLAB_MANAGEMENT_PORT": str(free_port())}


@pytest.mark.usefixtures("server_script")
def test_lab_starts_both_on_loopback_and_ctrl_c_ends_both(
    start_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf "%s" "$*" > {opened}\n')
    browser.chmod(0o755)
    stale = tmp_path / ".lab" / "run-999999999"  # of a run that was killed
    stale.mkdir(parents=True)
    ports = own_ports()
    one = start_lab(BROWSER=f"{browser} %s", **ports).wait_ready()

    # the page, with the token only; and no file of this run to anyone
    for path in ("/custom/token", "/custom/../token", "/custom/%2e%2e/token"):
        with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
            one.ask(path)
    assert "jupyter-config-data" in one.ask(f"/lab/tree/{lab.START_PAGE}", token=one.token)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        one.ask("/api/contents")
    assert json.loads(one.ask("/api/contents", token=one.token))["content"]
    # a kernel knows the broker's ports, and not the token
    kernel = json.loads(one.ask("/api/kernels", token=one.token, data=b"{}"))
    assert kernel["name"] == "python3"
    family = one.see_command_lines()
    kernels = [p for p, words in family.items() if "ipykernel_launcher" in words]
    assert len(kernels) == 1
    environ = kernels[0].environ()
    assert ports.items() <= environ.items()
    assert one.token not in environ.values()
    # nowhere to be read by others: no command line, no log, no file that is not this user's own
    lines = [" ".join(words) for words in family.values()]
    assert any("jupyterlab" in line for line in lines)
    assert not [line for line in lines if one.token in line]
    assert one.token not in (tmp_path / ".lab/jupyterlab.log").read_text()
    run_folder = next((tmp_path / ".lab").glob("run-*"))
    assert stat.S_IMODE(run_folder.stat().st_mode) & 0o077 == 0
    assert not stale.exists()
    # the browser got a file, and the file leads to the page
    assert opened.read_text().startswith(run_folder.as_uri())
    assert one.token in Path(opened.read_text().removeprefix("file://")).read_text()
    # everything listens on loopback only
    listening = [
        (connection.laddr.ip, process.name())
        for process in family
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {"beam.smp", "epmd"} <= {name for _, name in listening}
    assert {address for address, _ in listening} <= {"127.0.0.1", "::1"}

    one.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    one.process.send_signal(signal.SIGINT)  # an impatient second one cuts nothing short
    assert one.wait_end() == 0
    assert "JupyterLab has stopped; the broker has too." in one.said
    assert "Traceback" not in one.said
    assert not is_open(int(ports["MQLAB_AMQP_PORT"]))
    assert not run_folder.exists()


@pytest.mark.usefixtures("server_script")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_lab_that_is_killed_leaves_nothing(
    start_lab: Callable[..., Lab],
) -> None:
    ports = own_ports()
    one = start_lab("--no-browser", **ports).wait_ready()
    one.ask("/api/kernels", token=one.token, data=b"{}")
    assert len(one.see_family()) >= 4  # JupyterLab, a kernel, epmd, RabbitMQ
    one.process.kill()
    assert one.wait_end() == -signal.SIGKILL
    assert not is_open(int(ports["MQLAB_AMQP_PORT"]))


@pytest.mark.parametrize("way", ["SIGTERM", "SIGHUP", "File > Shut Down"])
def test_a_broker_that_was_there_goes_on_when_lab_ends(
    start_lab: Callable[..., Lab], broker_settings: Settings, way: str
) -> None:
    one = start_lab("--no-browser", **url_of(broker_settings)).wait_ready()
    one.ask("/api/terminals", token=one.token, data=b"{}", method="POST")
    # a login shell could set PATH anew
    shell = os.environ.get("SHELL") or shutil.which("bash") or shutil.which("sh")
    eventually(lambda: shell in [words[0] for words in one.see_command_lines().values() if words])
    assert broker_settings.address in one.said
    one.ask("/api/kernels", token=one.token, data=b"{}")
    assert one.see_family()
    if way == "File > Shut Down":
        one.ask("/api/shutdown", token=one.token, data=b"")
    else:
        one.process.send_signal(getattr(signal, way))
    assert one.wait_end() == 0
    assert "JupyterLab has stopped; the broker goes on." in one.said
    assert handshake(broker_settings)


def test_without_a_broker_it_says_why_and_leaves_nothing(
    start_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    port = free_port()
    one = start_lab("--no-browser", AMQP_URL=f"amqp://guest:guest@127.0.0.1:{port}")
    assert one.process.wait(END_S) == 1
    assert f"127.0.0.1:{port}" in one.said
    assert "next:" in one.said
    assert "Traceback" not in one.said
    mine = str(tmp_path)
    left = [
        p for p in psutil.process_iter(["cmdline"]) if mine in " ".join(p.info["cmdline"] or [])
    ]
    assert not left


def test_jupyter_that_cannot_start_is_told_in_its_own_words(
    start_lab: Callable[..., Lab], broker_settings: Settings, tmp_path: Path
) -> None:
    config = tmp_path / "JUPYTER_CONFIG_DIR"
    config.mkdir()
    (config / "jupyter_server_config.py").write_text("raise SystemExit('no such day')")
    one = start_lab("--no-browser", **url_of(broker_settings))
    assert one.process.wait(END_S) == 1
    assert "no such day" in one.said
    assert str(tmp_path / ".lab/jupyterlab.log") in one.said


def test_a_folder_without_notebooks_is_an_error_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pages, "__file__", str(tmp_path / "mqlab" / "workshop" / "pages.py"))
    with pytest.raises(MqlabError, match="no folder `notebooks`"):
        pages.find_root()


@pytest.fixture
def browser(missing: Callable[[str], None]) -> Iterator[Browser]:
    chromium = find_chromium()
    if chromium is None:
        missing("a Chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


def open_lab(browser: Browser, one: Lab) -> Page:
    """Open what `mqlab lab` opens, and wait for the kernel of the start page."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(90_000)
    page.goto(f"{one.url}?token={one.token}")
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()
    return page


def give_command(page: Page, name: str, **arguments: str) -> None:
    """Do one of JupyterLab's commands, and wait for its end."""
    page.evaluate(
        "([name, args]) => window.jupyterapp.commands.execute(name, args).then(() => true)",
        [name, arguments],
    )


CUT = """async () => {
    const panel = [...document.querySelectorAll('.jp-NotebookPanel')].find(p => p.offsetParent);
    const edge = panel.querySelector('.jp-WindowedPanel-outer').getBoundingClientRect().right;
    const found = [];
    for (const cell of panel.querySelectorAll('.jp-Cell')) {
        cell.scrollIntoView();
        await new Promise(drawn => requestAnimationFrame(() => setTimeout(drawn, 20)));
        for (const line of cell.querySelectorAll('.cm-line'))
            if (line.getBoundingClientRect().height > 25) found.push(`wraps: ${line.textContent}`);
        for (const part of cell.querySelectorAll('.cm-scroller, table, pre, img')) {
            const right = part.getBoundingClientRect().right;
            if (right > edge || part.scrollWidth > part.clientWidth + 1)
                found.push(`is cut: ${part.textContent}`);
        }
    }
    for (const label of document.querySelectorAll('.lm-DockPanel-tabBar .lm-TabBar-tabLabel'))
        if (label.scrollWidth > label.clientWidth + 1) found.push(`tab: ${label.textContent}`);
    return found;
}"""
"""What cannot be seen whole in the page that is shown, and in the tabs above it."""


def find_cut(page: Page) -> list[str]:
    """What is still cut when JupyterLab has had time to lay out the window."""
    deadline = time.monotonic() + 20
    while (found := page.evaluate(CUT)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return list(found)


@pytest.mark.timeout(300)
def test_nothing_is_cut_in_the_layout_that_opens(
    start_lab: Callable[..., Lab], broker_settings: Settings, browser: Browser, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / ORIGINALS, tmp_path / ORIGINALS)
    names = sorted(path.name for path in (tmp_path / ORIGINALS).glob("*.ipynb"))
    one = start_lab("--no-browser", **url_of(broker_settings)).wait_ready()
    page = open_lab(browser, one)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "lab-opens-1280.png")
    for name in names:  # each opens in a further tab
        give_command(page, "docmanager:open", path=f"{COPIES}/{name}")
        page.locator("#jp-main-statusbar", has_text=name).wait_for()
        page.locator(".jp-NotebookPanel:visible .jp-Cell").first.wait_for()
        for width, height in ((1440, 900), (1280, 800)):
            page.set_viewport_size({"width": width, "height": height})
            assert find_cut(page) == [], f"{name}, {width} wide"
    assert page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab").count() == len(names)
    page.screenshot(path=SCREENSHOTS / "lab-tabs-1280.png")
    # Beside the dashboard no line ends at the edge either: it wraps.
    assert page.locator(".jp-NotebookPanel:visible .cm-lineWrapping").count() > 0


def test_the_start_page_opens_in_a_browser_without_a_pop_up(
    start_lab: Callable[..., Lab], broker_settings: Settings, browser: Browser
) -> None:
    one = start_lab("--no-browser", **url_of(broker_settings)).wait_ready()
    assert one.url.endswith(f"/lab/tree/{lab.START_PAGE}")
    page = open_lab(browser, one)
    tabs = page.locator(".lm-DockPanel-tabBar .lm-TabBar-tabLabel").all_text_contents()
    assert tabs == [Path(path).name for path in (lab.START_PAGE, lab.DASHBOARD)]
    panel = page.locator(".jp-NotebookPanel:visible").bounding_box()
    assert panel
    assert panel["width"] > 1150, "the page has the whole width"
    page.wait_for_timeout(2_000)  # the pop-up comes late, where it comes
    assert page.locator(".Toastify__toast, .jp-Dialog").all_inner_texts() == []


@pytest.mark.parametrize("shell", ["bash", "sh", "zsh"])
def test_mqlab_runs_in_a_terminal_of_jupyterlab_whatever_the_shell_puts_first(
    start_lab: Callable[..., Lab],
    broker_settings: Settings,
    browser: Browser,
    tmp_path: Path,
    shell: str,
) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    (other / "python").write_text("#!/bin/sh\necho another Python, without mqlab\nexit 1\n")
    (other / "python").chmod(0o755)
    # pyenv and conda put themselves first; some people write PATH anew
    paths = {"bash": f"{other}:/usr/local/bin:/usr/bin:/bin", "zsh": f"{other}:$PATH"}
    for name in ("bash", "zsh"):
        (home / f".{name}rc").write_text(f"export PATH={paths[name]}\n")
    environ = url_of(broker_settings) | {"HOME": str(home), "SHELL": program}
    one = start_lab("--no-browser", **environ).wait_ready()
    page = open_lab(browser, one)
    give_command(page, "terminal:create-new")
    page.locator(".jp-Terminal .xterm-helper-textarea").focus()
    page.wait_for_timeout(500)  # the terminal takes no key until its shell is connected
    for number, command in enumerate(
        ("echo $PATH", "mqlab broker status", "mqlab pages", "mqlab work --help")
    ):
        page.keyboard.type(
            f"{command} > {tmp_path}/said-{number} 2>&1; echo $? > {tmp_path}/status-{number}"
        )
        page.keyboard.press("Enter")
        said, status = tmp_path / f"said-{number}", tmp_path / f"status-{number}"
        eventually(lambda status=status: status.exists() and status.read_text(), 30)
        assert status.read_text() == "0\n", said.read_text()
    page.screenshot(path=SCREENSHOTS / f"terminal-{shell}.png")
    if shell in paths:
        assert str(other) in (tmp_path / "said-0").read_text(), "the shell has read its file"
    assert broker_settings.address in (tmp_path / "said-1").read_text()
    assert "untouched" in (tmp_path / "said-2").read_text()


def test_a_newer_page_is_pointed_out_and_the_learners_is_kept(
    start_lab: Callable[..., Lab], broker_settings: Settings, tmp_path: Path
) -> None:
    one = start_lab("--no-browser", **url_of(broker_settings)).wait_ready()
    one.see_family()
    assert "newer" not in one.said
    one.process.send_signal(signal.SIGTERM)
    assert one.wait_end() == 0
    before = (tmp_path / lab.DASHBOARD).read_text()
    original = tmp_path / ORIGINALS / Path(lab.DASHBOARD).name
    notebook = json.loads(original.read_text())
    notebook["cells"] = [{"cell_type": "markdown", "id": "new", "metadata": {}, "source": "New."}]
    original.write_text(json.dumps(notebook))
    two = start_lab("--no-browser", **url_of(broker_settings)).wait_ready()
    assert re.search(
        r"my-pages/dashboard.ipynb .* newer; renew it: .*mqlab pages renew dash", two.said
    )
    assert (tmp_path / lab.DASHBOARD).read_text() == before


def test_the_arrangement_is_jupyterlabs_and_a_learners_own_stays(
    start_lab: Callable[..., Lab], broker_settings: Settings
) -> None:
    one = start_lab("--no-browser", **url_of(broker_settings)).wait_ready()
    address = "/lab/api/workspaces/default"
    workspace = json.loads(one.ask(address, token=one.token))
    assert workspace["metadata"]["id"] == "default"
    main = workspace["data"]["layout-restorer:data"]["main"]
    tabs = main["dock"]["widgets"]
    assert tabs == [f"notebook:{page}" for page in (lab.START_PAGE, lab.DASHBOARD)]
    assert set(tabs) <= set(workspace["data"])

    main["dock"]["widgets"].pop()  # the dashboard's tab is closed
    one.ask(address, token=one.token, data=json.dumps(workspace).encode(), method="PUT")
    one.see_family()
    one.process.send_signal(signal.SIGTERM)
    assert one.wait_end() == 0
    two = start_lab("--no-browser", **url_of(broker_settings)).wait_ready()
    assert json.loads(two.ask(address, token=two.token))["data"] == workspace["data"]
