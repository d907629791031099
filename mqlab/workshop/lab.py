"""`mqlab lab`: a broker and JupyterLab together, from the first page until both are stopped.

This module owns JupyterLab's process: how it starts, where it listens, what opens in it, how it
ends. ``broker`` starts the broker, ``pages`` makes the learner's copies of the notebooks.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from mqlab import broker
from mqlab.commands import command
from mqlab.errors import StartFailed
from mqlab.workshop.pages import COPIES, find_root, make_copies

START_PAGE = f"{COPIES}/00_start_here.ipynb"
DASHBOARD = f"{COPIES}/dashboard.ipynb"
WORKSPACE = "default-37a8.jupyterlab-workspace"
"""JupyterLab's file name for the workspace `default`."""
SERVE_TIMEOUT_S = 90.0
"""Seconds. JupyterLab serves its page after 2 to 4; on a slow disk the first start takes longer."""
STOP_TIMEOUT_S = 10.0
"""Seconds that JupyterLab has to stop its kernels before they are killed."""
CONFIG = {
    # The extension that opens a pop-up to ask whether it may fetch news.
    "page_config": {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
    # Beside another tab a page is narrow: long lines wrap rather than end at the edge.
    "default_setting_overrides": {
        "@jupyterlab/notebook-extension:tracker": {"codeCellConfig": {"lineWrap": True}}
    },
}
"""JupyterLab's files in `labconfig`: defaults, which the learner's own settings override."""

CSS = """\
.lm-DockPanel .lm-DockPanel-tabBar .lm-TabBar-tab {
  flex: 0 1 auto; width: auto; padding: 0 6px; font-size: 12px; }
.jp-RenderedMarkdown :is(p, ul, ol, blockquote) { max-width: 56em; }
.jp-RenderedMarkdown table { margin-left: 0; }
"""
"""Tabs as wide as their titles, and lines of prose that are short enough to read."""

# A proxy from the environment is not meant for this machine's own pages.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def run_lab(*, browser: bool = True) -> int:
    """Start a broker and JupyterLab, wait until the session ends, and stop what was started.

    ``browser`` opens the start page. Returns an exit status: 0 after Ctrl-C, SIGTERM, a closed
    terminal or File > Shut Down; 1 if JupyterLab crashed. Raises BrokerError if no broker can be
    started, StartFailed if JupyterLab does not serve its page; then nothing is left running.
    """
    root = find_root()
    began = time.monotonic()
    _end_on_signals()
    server: Server | None = None
    found: broker.Broker | None = None
    try:
        for page in make_copies(root):
            if page.is_due:
                _say(f"{COPIES}/{page}")
        _say("Starting the broker and JupyterLab (about 10 s) ...")
        server = start_jupyter(root)  # it takes seconds, while the broker starts
        found = broker.start(with_parent=True, say=_say)
        broker_s = time.monotonic() - began
        url = server.wait_served()
        _say(str(found))
        _say(f"JupyterLab: {url}?token={server.token}")
        _say(f"Ready after {time.monotonic() - began:.1f} s, the broker after {broker_s:.1f} s.")
        _say("Ctrl-C here, or File > Shut Down in JupyterLab, stops what this command started.")
        if browser:
            server.open_browser()
        while (status := server.process.poll()) is None:
            time.sleep(0.2)
    except KeyboardInterrupt:
        status = 0
        _say("\nStopping ...")
    finally:
        _ignore_signals()
        if server is not None:
            server.stop()
        if found is not None and found.started:
            broker.stop(way=found.way, port=found.settings.port, say=_say)
    if status:
        _say(f"JupyterLab ended with status {status}. Its output is in {log_file(root)}")
        return 1
    if found is not None:
        _say(f"JupyterLab has stopped; the broker {'has too' if found.started else 'goes on'}.")
    return 0


@dataclass(frozen=True)
class Server:
    """A running JupyterLab: its process, its log, and the folder and the token of this run."""

    process: subprocess.Popen[bytes]
    log: Path
    folder: Path
    token: str
    page: str

    def wait_served(self, timeout_s: float = SERVE_TIMEOUT_S) -> str:
        """Wait until the page is served; return its URL, without the token. Raises StartFailed."""
        began = said = time.monotonic()
        while (now := time.monotonic()) < began + timeout_s:
            if self.process.poll() is not None:
                raise self._failed(f"JupyterLab ended with status {self.process.returncode}.")
            # The file with the address comes late, and half of it is not JSON.
            with contextlib.suppress(StopIteration, OSError, ValueError, KeyError):
                info = json.loads(next(self.folder.glob("jpserver-*.json")).read_text("utf-8"))
                url = f"{info['url']}{self.page}"
                ask = urllib.request.Request(url, headers={"Authorization": f"token {self.token}"})
                with _direct.open(ask, timeout=10):
                    return url
            if now > said + 10:
                said = now
                _say(f"JupyterLab is still starting ({now - began:.0f} s, {timeout_s:.0f} at most)")
            time.sleep(0.05)
        raise self._failed(f"JupyterLab did not serve its page within {timeout_s:.0f} s.")

    def open_browser(self) -> bool:
        """Open the page by the file that JupyterLab wrote for that; False if there is no browser.

        The file holds the token: on a command line, every user of this machine could read it.
        """
        redirect = next(self.folder.glob("jpserver-*-open.html"), None)
        if redirect is None or not _has_screen():
            return False
        with contextlib.suppress(webbrowser.Error):
            return webbrowser.open(redirect.as_uri())
        return False

    def stop(self) -> None:
        """End JupyterLab and its kernels, by force if they take over STOP_TIMEOUT_S seconds."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        self.process.kill()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _failed(self, what: str) -> StartFailed:
        lines = self.log.read_text("utf-8", "replace").splitlines()[-6:]
        why = "\n        ".join(lines) or "it printed nothing"
        return StartFailed(what, why=why, fix=f"{command('doctor')}   (the log: {self.log})")


def start_jupyter(root: Path) -> Server:
    """Start JupyterLab on ``root`` in a process group of its own, and return at once.

    It listens on 127.0.0.1, with a new token, on port 8888 or the next free one.
    Raises StartFailed if JupyterLab is not installed or the folder cannot be written.
    """
    page = f"lab/tree/{START_PAGE}" if (root / START_PAGE).exists() else "lab"
    token = secrets.token_hex(24)
    try:
        folder, log_path = _make_folder(root, token), log_file(root)
        workspaces = folder.parent / "workspaces"
        _arrange(root, workspaces)
        log = log_path.open("wb")
    except OSError as error:
        raise StartFailed(
            f"The project's folder {root} cannot be written.",
            why=str(error.strerror),
            fix="copy it to a folder of your own, and start there",
        ) from error
    config_path = [str(folder), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    environ = os.environ | {
        # In a file: a token in the environment would reach each kernel, and %env would show it.
        "JUPYTER_TOKEN_FILE": str(folder / "token"),
        "JUPYTER_RUNTIME_DIR": str(folder),
        "JUPYTER_CONFIG_PATH": os.pathsep.join(part for part in config_path if part),
        # So that a terminal in JupyterLab finds the command `mqlab`.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        # Otherwise the tabs of the learner's other projects open here.
        "JUPYTERLAB_WORKSPACES_DIR": str(workspaces),
    }
    environ.pop("JUPYTER_TOKEN", None)  # it would take precedence over the file
    words = [
        *_tied(),
        *[sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"],
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={root}",
        f"--ServerApp.default_url=/{page}",
        "--KernelManager.transport_encryption=auto",
        "--LabApp.custom_css=True",
        f"--ServerApp.tornado_settings={{'static_custom_path': [{str(folder / 'css')!r}]}}",
        *_terminal(folder),
    ]
    with log:
        process = subprocess.Popen(
            words, env=environ, cwd=root, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return Server(process, log_path, folder, token, page)


def log_file(root: Path) -> Path:
    """Where JupyterLab's output goes. Each start overwrites it."""
    return root / ".lab" / "jupyterlab.log"


def _make_folder(root: Path, token: str) -> Path:
    """Make the private folder of this run, in the project: some browsers may not read elsewhere."""
    for old in (root / ".lab").glob("run-*"):  # of a run that was killed
        if not psutil.pid_exists(int(old.name.removeprefix("run-"))):
            shutil.rmtree(old, ignore_errors=True)
    folder = root / ".lab" / f"run-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "labconfig").mkdir(parents=True)
    folder.chmod(0o700)
    for name, content in CONFIG.items():
        (folder / "labconfig" / f"{name}.json").write_text(json.dumps(content))
    (folder / "token").write_text(token)
    (folder / "css").mkdir()  # of its own: JupyterLab serves all that is in it to anyone
    (folder / "css" / "custom.css").write_text(CSS)
    return folder


def _arrange(root: Path, workspaces: Path) -> None:
    """Open the start page over the whole width, with the dashboard in a second tab.

    An arrangement of the learner's own is kept.
    """
    file, pages = workspaces / WORKSPACE, (START_PAGE, DASHBOARD)
    if file.exists() or not all((root / page).exists() for page in pages):
        return
    tabs = [f"notebook:{page}" for page in pages]
    dock = {"type": "tab-area", "currentIndex": 0, "widgets": tabs}
    layout = {
        "main": {"dock": dock, "current": tabs[0]},
        "left": {"collapsed": True, "visible": True},
    }
    opened = {
        tab: {"data": {"path": page, "factory": "Notebook"}}
        for tab, page in zip(tabs, pages, strict=True)
    }
    workspaces.mkdir(parents=True, exist_ok=True)
    data = {"layout-restorer:data": layout, **opened}
    file.write_text(json.dumps({"data": data, "metadata": {"id": "default"}}))


def _tied() -> list[str]:
    """The words before a command that end it, on Linux, when this process is killed."""
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []


def _terminal(folder: Path) -> list[str]:
    """The option for JupyterLab's terminals, so that they find the command `mqlab`.

    JupyterLab would start login shells, whose profile may set PATH anew. A bash reads ``bashrc``
    from ``folder``: the learner's own, and then this environment's programs before all others.
    """
    shell = os.environ.get("SHELL") or shutil.which("bash") or shutil.which("sh")
    if sys.platform == "win32" or not shell:
        return []
    words = [shell]
    if Path(shell).name == "bash":
        programs = shlex.quote(str(Path(sys.executable).parent))
        own = folder / "bashrc"
        own.write_text(f"[ -r ~/.bashrc ] && . ~/.bashrc\nexport PATH={programs}:$PATH\n")
        words += ["--rcfile", str(own)]
    return [f"--ServerApp.terminado_settings={{'shell_command': {words!r}}}"]


def _has_screen() -> bool:
    """Without a screen, Python would open a text browser in this terminal."""
    if sys.platform in ("win32", "darwin") or "BROWSER" in os.environ:
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


# SIGHUP comes when the terminal is closed; Windows has neither it nor a real SIGTERM.
_SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


def _end_on_signals() -> None:
    def end(_signal: int, _frame: FrameType | None) -> None:
        _ignore_signals()
        raise KeyboardInterrupt

    for number in _SIGNALS:
        signal.signal(number, end)


def _ignore_signals() -> None:
    """Stopping is bounded, and a second Ctrl-C must not cut it short."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(line: object) -> None:
    with contextlib.suppress(OSError):  # the terminal was closed; the session goes on
        print(line, flush=True)
