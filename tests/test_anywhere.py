"""Binder and Codespaces: the services can read their files, and the commands in them work.

The commands run in a copy of the checkout with a fresh home. By default they use this environment's
packages; with MQLAB_FROM_NOTHING=1 they install everything, as the services do (two minutes).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mqlab.broker import packages
from mqlab.broker.node import Node
from mqlab.connection import handshake
from mqlab.errors import ConnectError
from mqlab.settings import MANAGEMENT_PORT
from mqlab.workshop.pages import COPIES, ORIGINALS
from tests.helpers import eventually, free_port

ROOT = Path(__file__).parents[1]
BINDER, DEVCONTAINER = ROOT / ".binder", ROOT / ".devcontainer/devcontainer.json"
from_nothing = pytest.mark.skipif(
    not os.environ.get("MQLAB_FROM_NOTHING"), reason="takes minutes: MQLAB_FROM_NOTHING=1 runs it"
)


def devcontainer() -> dict[str, Any]:
    lines = DEVCONTAINER.read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("//"))
    read: dict[str, Any] = json.loads(text)
    return read


class Elsewhere:
    """A copy of the checkout, a fresh home, ports of its own; as a container is."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.home = folder / "checkout", folder / "home"
        leave = (".git", ".venv", ".lab", "build", "dist", "*.egg-info", ".*_cache", "__pycache__")
        leave = (*leave, COPIES)
        shutil.copytree(ROOT, self.checkout, ignore=shutil.ignore_patterns(*leave))
        self.home.mkdir()
        port, page = free_port(), free_port()
        self.node = Node(self.home / f".local/state/mqlab/broker-{port}", port, page)
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MQLAB_", "AMQP_", "XDG_", "VIRTUAL_ENV"))
        }
        self.environ = kept | {
            "HOME": str(self.home),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "MQLAB_AMQP_PORT": str(port),
            "MQLAB_MANAGEMENT_PORT": str(page),
            "MQLAB_BROKER": "local",  # neither service has a Docker engine
            # RabbitMQ's packages, fetched once for all tests
            "XDG_CACHE_HOME": str(packages.cache_dir().parent),
        }
        (self.checkout / ".venv").symlink_to(sys.prefix)

    def run(self, *command: str, timeout_s: float = 110, **environ: str) -> str:
        ran = subprocess.run(
            command, cwd=self.checkout, env=self.environ | environ, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    place = Elsewhere(tmp_path.resolve())
    yield place
    place.node.kill()


def answers(node: Node) -> bool:
    try:
        return bool(handshake(node.settings, timeout_s=2))
    except ConnectError:
        return False


# What repo2docker reads from a folder .binder/, and from nowhere else if there is one.
def test_binder_has_only_files_that_are_read() -> None:
    assert {path.name for path in BINDER.iterdir()} == {
        "requirements.txt", "runtime.txt", "postBuild", "start",
    }  # fmt: skip
    assert not (ROOT / "binder").exists(), "with both folders nothing is built"
    python = re.fullmatch(r"python-3\.(\d+)\n", (BINDER / "runtime.txt").read_text())
    assert python, "without it the Python is one that mqlab does not run on"
    assert 11 <= int(python[1]) <= 14
    for script in ("postBuild", "start"):
        assert os.access(BINDER / script, os.X_OK)
        assert (BINDER / script).read_text().startswith("#!/bin/bash\n")
        subprocess.run(["bash", "-n", str(BINDER / script)], check=True, timeout=10)
    assert (BINDER / "start").read_text().endswith('\nexec "$@"\n')


def test_binders_requirements_are_found_from_the_checkout(elsewhere: Elsewhere) -> None:
    # As repo2docker calls pip: from the checkout, which `-e .` in requirements.txt must lead to.
    said = elsewhere.run(
        *[sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-deps"],
        *["--report", "-", "-r", ".binder/requirements.txt"],
    )
    # Of the packages, this environment has all but the copy.
    [new] = json.loads(said)["install"]
    assert new["download_info"]["url"] == elsewhere.checkout.as_uri()


@pytest.mark.usefixtures("server_script")
def test_binders_build_step_sees_the_broker_start_and_leaves_none(elsewhere: Elsewhere) -> None:
    said = elsewhere.run("./.binder/postBuild")
    assert f"answers at 127.0.0.1:{elsewhere.node.port}" in said
    assert not elsewhere.node.is_running()
    names = {path.name for path in (elsewhere.checkout / ORIGINALS).glob("*.ipynb")}
    assert {path.name for path in (elsewhere.checkout / COPIES).iterdir()} == names


@pytest.mark.usefixtures("server_script")
def test_binders_server_begins_with_a_broker_and_ends_with_it(elsewhere: Elsewhere) -> None:
    server = [sys.executable, "-c", "import time; time.sleep(300)"]
    process = psutil.Popen(
        ["./.binder/start", *server], cwd=elsewhere.checkout, env=elsewhere.environ,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        # By exec the server is this very process: it gets the signals that the container gets.
        eventually(lambda: process.cmdline()[1:] == server[1:], 60)
        assert answers(elsewhere.node)
    finally:
        process.terminate()
        process.wait(10)
    eventually(lambda: not elsewhere.node.is_running(), 30)
    eventually(lambda: not watchers(elsewhere), 10)


def watchers(place: Elsewhere) -> list[str]:
    """Processes that still run in the copy."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(place.checkout):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def test_without_a_broker_binders_server_starts_all_the_same(elsewhere: Elsewhere) -> None:
    said = elsewhere.run("./.binder/start", "echo", "the server", MQLAB_BROKER="no such way")
    assert said == "the server\n"


def test_the_devcontainer_says_what_codespaces_reads() -> None:
    read = devcontainer()
    assert set(read) <= {
        "name", "image", "hostRequirements", "onCreateCommand", "postStartCommand",
        "forwardPorts", "portsAttributes", "otherPortsAttributes", "customizations",
    }  # fmt: skip
    python = re.fullmatch(
        r"mcr\.microsoft\.com/devcontainers/python:3-3\.(\d+)-(bookworm|trixie)", read["image"]
    )
    assert python
    assert 11 <= int(python[1]) <= 14
    # AMQP stays inside; the management page is forwarded, to the owner alone.
    assert read["forwardPorts"] == [MANAGEMENT_PORT]
    assert set(read["portsAttributes"]) == {str(MANAGEMENT_PORT)}
    for attributes in (*read["portsAttributes"].values(), read["otherPortsAttributes"]):
        assert set(attributes) <= {"label", "onAutoForward"}
        assert attributes["onAutoForward"] in {"notify", "silent", "ignore"}
    assert all("." in name for name in read["customizations"]["vscode"]["extensions"])
    [page] = read["customizations"]["codespaces"]["openFiles"]
    folder, _, name = page.partition("/")
    assert folder == COPIES
    assert (ROOT / ORIGINALS / name).is_file()


@pytest.mark.usefixtures("server_script")
def test_the_devcontainers_commands_start_a_broker_that_only_the_container_reaches(
    elsewhere: Elsewhere,
) -> None:
    make, *steps = devcontainer()["onCreateCommand"].split(" && ")
    elsewhere.run("make", "--dry-run", *make.split()[1:])
    # What follows is Binder's build step, which has a test of its own.
    built = (BINDER / "postBuild").read_text("utf-8").splitlines()
    assert [step.replace(".venv/bin/", "") for step in steps] == built[-len(steps) :]
    elsewhere.run("sh", "-c", devcontainer()["postStartCommand"])
    assert answers(elsewhere.node)
    listening = [
        connection.laddr.ip
        for process in elsewhere.node.processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 2
    assert set(listening) <= {"127.0.0.1", "::1"}


@from_nothing
@pytest.mark.timeout(600)
def test_binder_from_nothing(elsewhere: Elsewhere) -> None:
    bare = {
        "XDG_CACHE_HOME": "",
        "PATH": os.pathsep.join([f"{elsewhere.home}/bin", "/usr/bin:/bin"]),
    }
    elsewhere.run(sys.executable, "-m", "venv", str(elsewhere.home))
    elsewhere.run("pip", "install", "-q", "-r", ".binder/requirements.txt", timeout_s=300, **bare)
    elsewhere.run("./.binder/postBuild", timeout_s=300, **bare)
    code = "from mqlab import broker; print(broker.__file__, broker.require())"
    said = elsewhere.run("./.binder/start", "python", "-c", code, **bare)
    assert f"{elsewhere.checkout}/mqlab/broker/__init__.py RabbitMQ" in said
    eventually(lambda: not elsewhere.node.is_running(), 30)


@from_nothing
@pytest.mark.timeout(600)
def test_the_devcontainer_from_nothing(elsewhere: Elsewhere) -> None:
    (elsewhere.checkout / ".venv").unlink()
    began = time.monotonic()
    commands = [devcontainer()[f"{name}Command"] for name in ("onCreate", "postStart")]
    for command in commands:
        elsewhere.run("sh", "-c", command, timeout_s=500, XDG_CACHE_HOME="")
    assert answers(elsewhere.node)
    assert time.monotonic() - began < 500
