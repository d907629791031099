"""Check this machine for what a workshop needs, and suggest fixes: `mqlab doctor`.

It changes nothing and starts nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from mqlab import broker
from mqlab.broker import compose, packages
from mqlab.broker.node import DISK_ALARM_MB, HOME, find_server
from mqlab.broker.ports import check_free
from mqlab.commands import command
from mqlab.errors import ConnectError, MqlabError
from mqlab.settings import Settings
from mqlab.workshop import pages

OK, WARN, FAIL = "ok", "warn", "fail"
OLDEST_PYTHON, UNTRIED_PYTHON = (3, 11), (3, 15)
ENOUGH_MEMORY_MB = 1000.0
"""Broker, JupyterLab, a page and the dashboard take about 400, six workers 160, and a browser."""
INSTALL = f"{sys.executable} -m pip install -r requirements.txt"


@dataclass(frozen=True)
class Finding:
    """The result of one check: ``ok``, ``warn`` (mqlab works without it) or ``fail``."""

    state: str
    subject: str
    words: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.state:<5} {self.subject:<10} {self.words}"
        return line + (f"\n{'':<17}next: {self.fix}" if self.fix else "")


def examine() -> Iterator[Finding]:
    """Run the checks one after the other. Takes a few seconds; an MqlabError becomes a finding."""
    for subject, check in CHECKS.items():
        try:
            yield from (Finding(state, subject, words, fix) for state, words, fix in check())
        except MqlabError as error:
            yield Finding(FAIL, subject, f"{error.what} {error.why}".strip(), error.fix)


Results = Iterator[tuple[str, str, str]]


def _python() -> Results:
    version = ".".join(map(str, sys.version_info[:3]))
    if tuple(sys.version_info) < OLDEST_PYTHON:
        yield FAIL, f"{version} is too old", "install Python 3.11 or newer"
    elif tuple(sys.version_info) >= UNTRIED_PYTHON:
        yield (
            WARN,
            f"{version} is newer than any that mqlab was tested on",
            "use Python 3.11 to 3.14",
        )
    else:
        yield OK, f"{version} ({sys.executable})", ""


def _packages() -> Results:
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield FAIL, "the packages of requirements.txt are not installed", INSTALL
        return
    wanted = HOME / "requirements.txt"
    lines = wanted.read_text("utf-8").splitlines() if wanted.exists() else []
    names = [line for line in lines if line and line[0] not in "#-"]
    names = names or importlib.metadata.requires("mqlab") or []
    wrong = []
    for requirement in map(Requirement, names):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        yield FAIL, "; ".join(wrong), INSTALL
    else:
        yield OK, f"{len(names)} packages, in the versions that requirements.txt allows", ""


def _docker() -> Results:
    reason = compose.why_not()
    yield OK, f"{reason}; a private node works as well" if reason else "an engine answers", ""


def _rabbitmq() -> Results:
    """Whether one can be started."""
    if "AMQP_URL" in os.environ:
        yield OK, f"uses the one in AMQP_URL: {Settings.from_env()}", ""
    elif not compose.why_not():
        yield OK, "starts the one in docker-compose.yml", ""
    elif sys.platform != "win32" and (script := find_server() or packages.find_unpacked()):
        yield OK, f"starts a private node from {script}", ""
    elif sys.platform != "win32" and packages.can_fetch():
        words = "the first start fetches its packages: 35 MB, once, without root"
        yield WARN, words, f"{command('broker start')}   (now, before the whole room does it)"
    else:
        yield FAIL, "nothing to start one with", f"{command('broker start')}   (it lists the ways)"


def _broker() -> Results:
    settings = Settings.from_env()
    try:
        found = broker.require(settings)
    except ConnectError as error:
        if "AMQP_URL" in os.environ or type(error) is not ConnectError:
            raise
        yield WARN, f"none answers at {settings.address} yet", command("broker start")
        return
    yield OK, str(found), ""
    if broker.page_answers(settings.management_url):
        yield OK, f"its management UI answers at {settings.management_url}", ""
    else:
        words = f"its management UI does not answer at {settings.management_url}"
        fix = "use an image whose name ends in -management, or set MQLAB_MANAGEMENT_URL"
        yield WARN, words, fix
    if found.way != "url" and (where := _reachable_at(settings.port)):
        words = f"other machines can reach it at {where}:{settings.port}, and guest may be let in"
        yield WARN, words, 'publish it as "127.0.0.1:5673:5672", as docker-compose.yml does'


def _reachable_at(port: int) -> str:
    """An address that other machines can reach, if the port is open there too, else ""."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                with socket.socket() as probe:
                    probe.settimeout(0.5)
                    if probe.connect_ex((address.address, port)) == 0:
                        return str(address.address)
    return ""


def _ports() -> Results:
    if "AMQP_URL" in os.environ:
        yield OK, "not needed: AMQP_URL is set", ""
        return
    node = broker.default_node()
    try:
        broker.require(node.settings, timeout_s=2.0)
    except ConnectError:
        check_free(node.port, node.management_port)
        yield OK, f"{node.port} and {node.management_port} are free", ""
    else:
        yield OK, f"the broker has {node.port}", ""


def _disk() -> Results:
    folder = broker.default_node().state_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e6
    if free < DISK_ALARM_MB:
        yield (
            FAIL,
            f"{free:.0f} MB free at {folder}: RabbitMQ would block publishers",
            "free some space",
        )
    elif free < 1000:
        yield WARN, f"{free:.0f} MB free at {folder}", "free some space"
    else:
        yield OK, f"{free / 1000:.0f} GB free at {folder}", ""


def _memory() -> Results:
    free = psutil.virtual_memory().available / 1e6
    if free < ENOUGH_MEMORY_MB:
        yield WARN, f"{free:.0f} MB are free: this may become slow", "close other programs"
    else:
        yield OK, f"{free / 1000:.1f} GB free", ""


def _folder() -> Results:
    """Whether JupyterLab can save there: not if root unpacked it, or on a locked USB stick."""
    root = pages.find_root()
    for folder in (root, root / pages.COPIES):
        if not folder.exists() and folder != root:
            continue  # the first `mqlab lab` makes it
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            words = f"{folder} cannot be written: {error.strerror}"
            yield FAIL, words, "copy the project to a folder of your own, and start there"
            return
    yield OK, f"{root} can be written", ""


def _pages() -> Results:
    root = pages.find_root()
    copies = pages.compare_copies(root)
    if not copies:
        yield OK, f"`mqlab lab` will copy them to {pages.COPIES}", ""
    for page in copies:
        if page.is_due:
            yield WARN, f"{page.path.name}: {page.describe()}", page.renewal
    if copies:
        yield OK, f"your {len(copies)} copies are in {root / pages.COPIES}", ""


def _command() -> Results:
    """Whether the commands that pages and errors show can be typed."""
    words = command("").strip()
    if " -m " in words:
        yield WARN, "mqlab is not installed as a command", INSTALL
    elif words == "mqlab":
        yield OK, "mqlab", ""
    else:
        yield OK, f"{words} here; mqlab in a terminal of JupyterLab", ""


def _jupyter() -> Results:
    try:
        version = importlib.metadata.version("jupyterlab")
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        yield FAIL, "JupyterLab is not installed", INSTALL
        return
    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        yield FAIL, f"JupyterLab {version} has no Python kernel", INSTALL
        return
    if Path(program).is_absolute() and Path(program).parent != Path(sys.executable).parent:
        words = f"its kernel runs another Python, {program}"
        yield WARN, words, f"{sys.executable} -m ipykernel install --sys-prefix"
    else:
        yield OK, f"JupyterLab {version}", ""


def _browser() -> Results:
    try:
        name = getattr(webbrowser.get(), "name", "the system's")
    except webbrowser.Error:
        yield WARN, "none was found", "open the address that `mqlab lab` prints yourself"
    else:
        yield OK, str(name), ""


CHECKS: dict[str, Callable[[], Results]] = {
    "Python": _python,
    "packages": _packages,
    "Docker": _docker,
    "RabbitMQ": _rabbitmq,
    "broker": _broker,
    "ports": _ports,
    "disk": _disk,
    "memory": _memory,
    "folder": _folder,
    "pages": _pages,
    "command": _command,
    "Jupyter": _jupyter,
    "browser": _browser,
}
