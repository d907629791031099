"""RabbitMQ by Docker Compose: the docker-compose.yml of this checkout, brought up and down."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from mqlab.errors import StartFailed
from mqlab.settings import Settings

FILE = Path(__file__).resolve().parents[2] / "docker-compose.yml"
UP_TIMEOUT_S = 600.0
"""Seconds: the first time the image is fetched."""


def why_not(timeout_s: float = 5.0) -> str:
    """Why Docker cannot be used here, in words; "" if it can."""
    if not shutil.which("docker"):
        return "Docker is not installed"
    if not FILE.is_file():
        return "docker-compose.yml is not there: mqlab was installed without its checkout"
    if not _docker(["version", "--format", "{{.Server.Version}}"], timeout_s=timeout_s)[0]:
        return "Docker is installed, and no engine answers"
    if not _docker(["compose", "version"], timeout_s=timeout_s)[0]:
        return "Docker has no Compose plugin"
    return ""


def is_up(port: int, timeout_s: float = 5.0) -> bool:
    """Whether the container of docker-compose.yml runs, with its AMQP port at that one."""
    if not shutil.which("docker") or not FILE.is_file():
        return False
    ok, output = _compose(["port", "rabbitmq", "5672"], timeout_s=timeout_s)
    return ok and output.strip().endswith(f":{port}")


def up(settings: Settings, management_port: int) -> None:
    """Start the container and wait until its health check passes. Raises StartFailed."""
    ok, output = _compose(["up", "--detach", "--wait"], settings, management_port)
    if ok:
        return
    if "already in use by container" in output:
        raise StartFailed(
            "A container named `rabbitmq` is already there, and is not this checkout's.",
            why="the walk-through's own `docker run --name rabbitmq …`, or another checkout",
            fix="use it: docker start rabbitmq\n"
            "        or remove it, with its messages: docker rm --force rabbitmq",
        )
    raise StartFailed(
        "docker compose up failed.",
        why="\n        ".join(output.strip().splitlines()[-8:]),
        fix="docker compose logs, or the other way: python -m mqlab broker start --way local",
    )


def down() -> None:
    """Stop and remove the container; the volume with its messages stays. Raises StartFailed."""
    ok, output = _compose(["down"], timeout_s=60.0)
    if not ok:
        raise StartFailed("docker compose down failed.", why=output.strip()[-500:])


def logs(lines: int) -> str:
    """The last lines of the container's log."""
    return _compose(["logs", "--no-log-prefix", "--tail", str(lines)], timeout_s=20.0)[1]


def run_throw_away(name: str, port: int, management_port: int) -> None:
    """Start a second container of the same image, without the volume, and return at once."""
    _, image = _compose(["config", "--images"], timeout_s=20.0)
    ports = ["-p", f"127.0.0.1:{port}:5672", "-p", f"127.0.0.1:{management_port}:15672"]
    ok, output = _docker(["run", "--detach", "--rm", "--name", name, *ports, image.strip()])
    if not ok:
        raise StartFailed("docker run failed.", why=output.strip()[-500:])


def remove_throw_away(name: str) -> None:
    """Remove that container and what it wrote."""
    _docker(["rm", "--force", "--volumes", name], timeout_s=60.0)


def _compose(
    arguments: list[str],
    settings: Settings | None = None,
    management_port: int | None = None,
    timeout_s: float = UP_TIMEOUT_S,
) -> tuple[bool, str]:
    environ = {}
    if settings:
        environ["MQLAB_AMQP_PORT"] = str(settings.port)
    if management_port:
        environ["MQLAB_MANAGEMENT_PORT"] = str(management_port)
    return _docker(["compose", "--file", str(FILE), *arguments], environ, timeout_s)


def _docker(
    arguments: list[str], environ: dict[str, str] | None = None, timeout_s: float = UP_TIMEOUT_S
) -> tuple[bool, str]:
    try:
        done = subprocess.run(
            ["docker", *arguments], env={**os.environ, **(environ or {})}, timeout=timeout_s,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, done.stdout
