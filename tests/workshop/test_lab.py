"""`python -m mqlab lab` as a person starts and ends it, with a real JupyterLab and browser."""

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

from mqlab.broker.ports import is_open
from mqlab.connection import handshake
from mqlab.errors import StartFailed
from mqlab.settings import Settings
from mqlab.workshop import lab
from tests.helpers import eventually, free_port

READY_S = 90.0
END_S = 30.0


class Lab:
    """A `mqlab lab` in a folder of its own; what it prints goes to a file."""

    def __init__(self, folder: Path, arguments: list[str], **environ: str) -> None:
        self.folder = folder
        (folder / "notebooks").mkdir(exist_ok=True)
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        page = {"cells": [], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        for path in (lab.START_PAGE, lab.DASHBOARD):
            (folder / path).write_text(json.dumps(page))
        self.output = folder / "output.txt"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AMQP", "JUPYTER"))}
        own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
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

    # the page, with the token only
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
    assert "JupyterLab has ended, the broker too." in one.said
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
    # a login shell would take this project's Python off the PATH again
    shell = os.environ.get("SHELL") or shutil.which("bash") or shutil.which("sh")
    eventually(lambda: [shell] in one.see_command_lines().values())
    assert broker_settings.address in one.said
    one.ask("/api/kernels", token=one.token, data=b"{}")
    assert one.see_family()
    if way == "File > Shut Down":
        one.ask("/api/shutdown", token=one.token, data=b"")
    else:
        one.process.send_signal(getattr(signal, way))
    assert one.wait_end() == 0
    assert "JupyterLab has ended, the broker goes on." in one.said
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


def test_a_folder_without_notebooks_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "mqlab" / "workshop" / "lab.py"))
    with pytest.raises(StartFailed, match="no folder `notebooks`"):
        lab.find_root()


def test_the_start_page_opens_in_a_browser_without_a_pop_up(
    start_lab: Callable[..., Lab], broker_settings: Settings, missing: Callable[[str], None]
) -> None:
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        missing("a Chromium")
    one = start_lab("--no-browser", **url_of(broker_settings)).wait_ready()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{one.url}?token={one.token}")
        name = Path(lab.START_PAGE).name
        page.locator(f".lm-TabBar-tabLabel:text-is('{name}')").first.wait_for(timeout=60_000)
        page.locator("text=| Idle").first.wait_for(timeout=60_000)
        panels = page.locator(".jp-NotebookPanel:visible")
        panels.nth(1).wait_for(timeout=60_000)
        start, dashboard = (panels.nth(n).bounding_box() for n in (0, 1))
        page.wait_for_timeout(2_000)  # the pop-up comes late, where it comes
        shown = page.locator(".Toastify__toast, .jp-Dialog").all_inner_texts()
        browser.close()
    assert shown == []
    assert start
    assert dashboard
    assert start["x"] + start["width"] <= dashboard["x"], "they are not side by side"
    assert dashboard["width"] >= 480


def test_the_arrangement_is_jupyterlabs_and_a_learners_own_stays(
    start_lab: Callable[..., Lab], broker_settings: Settings
) -> None:
    one = start_lab("--no-browser", **url_of(broker_settings)).wait_ready()
    address = "/lab/api/workspaces/default"
    workspace = json.loads(one.ask(address, token=one.token))
    assert workspace["metadata"]["id"] == "default"
    main = workspace["data"]["layout-restorer:data"]["main"]
    tabs = [widget for area in main["dock"]["children"] for widget in area["widgets"]]
    assert tabs == [f"notebook:{page}" for page in (lab.START_PAGE, lab.DASHBOARD)]
    assert set(tabs) <= set(workspace["data"])

    main["dock"]["children"].pop()  # the dashboard's tab is closed
    one.ask(address, token=one.token, data=json.dumps(workspace).encode(), method="PUT")
    one.see_family()
    one.process.send_signal(signal.SIGTERM)
    assert one.wait_end() == 0
    two = start_lab("--no-browser", **url_of(broker_settings)).wait_ready()
    assert json.loads(two.ask(address, token=two.token))["data"] == workspace["data"]
