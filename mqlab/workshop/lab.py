"""`python -m mqlab lab`: a broker and JupyterLab together, from the first page to the end of both.

Owns JupyterLab's process: its start, its address, its end. The broker is left to ``broker``,
what is installed to the Makefile, what the pages show to the notebooks.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
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
from mqlab.errors import StartFailed

START_PAGE = "notebooks/00_start_here.ipynb"
DASHBOARD = "notebooks/dashboard.ipynb"
WORKSPACE = "default-37a8.jupyterlab-workspace"
"""The file of the workspace `default`; JupyterLab has that name for it."""
SERVE_TIMEOUT_S = 90.0
"""Seconds. JupyterLab serves its page after 2 to 4; on a slow disk the first time takes longer."""
STOP_TIMEOUT_S = 10.0
"""Seconds that JupyterLab has to end its kernels before all of them are ended by force."""
NO_NEWS = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
"""The extension that asks, in a pop-up, whether it may fetch news."""

# A proxy of the environment is not for this machine's own pages.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def run_lab(*, browser: bool = True) -> int:
    """Start a broker and JupyterLab, wait for the end of the session, and end what was started.

    ``browser`` opens the start page. Returns an exit status: 0 after Ctrl-C, SIGTERM, a closed
    terminal or File > Shut Down; 1 if JupyterLab broke. Raises BrokerError if there is no broker to
    be had, StartFailed if JupyterLab does not serve its page; then nothing is left running.
    """
    root = find_root()
    began = time.monotonic()
    _end_on_signals()
    server: Server | None = None
    found: broker.Broker | None = None
    try:
        _say("Starting the broker and JupyterLab ...")
        server = start_jupyter(root)  # it needs seconds of its own: the broker starts meanwhile
        found = broker.start(with_parent=True, say=_say)
        broker_s = time.monotonic() - began
        url = server.wait_served()
        _say(str(found))
        _say(f"JupyterLab: {url}?token={server.token}")
        _say(f"Ready after {time.monotonic() - began:.1f} s, the broker after {broker_s:.1f} s.")
        _say("Ctrl-C here, or File > Shut Down there, ends what this command started.")
        if browser:
            server.open_browser()
        while (status := server.process.poll()) is None:
            time.sleep(0.2)
    except KeyboardInterrupt:
        status = 0
        _say("\nEnding ...")
    finally:
        _ignore_signals()
        if server is not None:
            server.stop()
        if found is not None and found.started:
            broker.stop(way=found.way, port=found.settings.port, say=_say)
    if status:
        _say(f"JupyterLab ended with status {status}. What it said is in {log_file(root)}")
        return 1
    if found is not None:
        _say(f"JupyterLab has ended, the broker {'too' if found.started else 'goes on'}.")
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
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self._failed(f"JupyterLab ended with status {self.process.returncode}.")
            # The file with the address comes late, and a file half written is no JSON.
            with contextlib.suppress(StopIteration, OSError, ValueError, KeyError):
                info = json.loads(next(self.folder.glob("jpserver-*.json")).read_text("utf-8"))
                url = f"{info['url']}{self.page}"
                ask = urllib.request.Request(url, headers={"Authorization": f"token {self.token}"})
                with _direct.open(ask, timeout=10):
                    return url
            time.sleep(0.05)
        raise self._failed(f"JupyterLab did not serve its page within {timeout_s:.0f} s.")

    def open_browser(self) -> bool:
        """Open the page by the file that JupyterLab wrote for that; False if there is no browser.

        The file holds the token: in a command line every user of this machine could read it.
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
        why = "\n        ".join(lines) or "it left no word"
        return StartFailed(what, why=why, fix=f"python -m mqlab doctor  (the log: {self.log})")


def start_jupyter(root: Path) -> Server:
    """Start JupyterLab on ``root`` in a process group of its own, and return at once.

    It listens on 127.0.0.1, with a new token; port 8888, or the next one that is free.
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
        # By file: a token in the environment would reach each kernel, and %env would show it.
        "JUPYTER_TOKEN_FILE": str(folder / "token"),
        "JUPYTER_RUNTIME_DIR": str(folder),
        "JUPYTER_CONFIG_PATH": os.pathsep.join(part for part in config_path if part),
        # So that `python` in a terminal of JupyterLab is this project's.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        # Otherwise the tabs of the learner's other projects open here.
        "JUPYTERLAB_WORKSPACES_DIR": str(workspaces),
    }
    environ.pop("JUPYTER_TOKEN", None)  # it would win over the file
    command = [
        *_tied(),
        *[sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"],
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={root}",
        f"--ServerApp.default_url=/{page}",
        "--KernelManager.transport_encryption=auto",
        *_terminal(),
    ]
    with log:
        process = subprocess.Popen(
            command, env=environ, cwd=root, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return Server(process, log_path, folder, token, page)


def find_root() -> Path:
    """The folder with the notebooks: the current one, else this checkout. Raises StartFailed."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "notebooks").is_dir():
            return folder
    raise StartFailed(
        "There is no folder `notebooks` here.", fix="cd into the project's folder, and start there"
    )


def log_file(root: Path) -> Path:
    """Where JupyterLab's own words go. It is begun anew with each start."""
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
    (folder / "labconfig" / "page_config.json").write_text(json.dumps(NO_NEWS))
    (folder / "token").write_text(token)
    return folder


def _arrange(root: Path, workspaces: Path) -> None:
    """Have the start page and the dashboard open side by side, until someone arranges them anew."""
    file = workspaces / WORKSPACE
    if file.exists() or not all((root / page).exists() for page in (START_PAGE, DASHBOARD)):
        return
    tabs = [
        {"type": "tab-area", "currentIndex": 0, "widgets": [f"notebook:{page}"]}
        for page in (START_PAGE, DASHBOARD)
    ]
    dock = {"type": "split-area", "orientation": "horizontal", "sizes": [0.5, 0.5]}
    layout = {
        "main": {"dock": dock | {"children": tabs}, "current": f"notebook:{START_PAGE}"},
        "left": {"collapsed": True, "visible": True},
    }
    pages = {
        f"notebook:{page}": {"data": {"path": page, "factory": "Notebook"}}
        for page in (START_PAGE, DASHBOARD)
    }
    workspaces.mkdir(parents=True, exist_ok=True)
    data = {"layout-restorer:data": layout, **pages}
    file.write_text(json.dumps({"data": data, "metadata": {"id": "default"}}))


def _tied() -> list[str]:
    """The words before a command that end it, on Linux, when this process is killed."""
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []


def _terminal() -> list[str]:
    """The option for JupyterLab's terminals: by itself it starts login shells, which undo PATH."""
    shell = os.environ.get("SHELL") or shutil.which("bash") or shutil.which("sh")
    if sys.platform == "win32" or not shell:
        return []
    return [f"--ServerApp.terminado_settings={{'shell_command': ['{shell}']}}"]


def _has_screen() -> bool:
    """Without a screen Python would open a text browser in this very terminal."""
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
    """The ending is bounded, and must not be cut short by a second Ctrl-C."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(line: object) -> None:
    with contextlib.suppress(OSError):  # a closed terminal cannot show it, and that is no reason
        print(line, flush=True)
