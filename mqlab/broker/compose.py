"""Docker as a way to get a broker: the docker-compose.yml of this checkout, brought up and down."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from mqlab.broker.node import READY_TIMEOUT_S
from mqlab.broker.ports import free_port
from mqlab.broker.system import Say
from mqlab.commands import command
from mqlab.connection import handshake
from mqlab.errors import StartFailed
from mqlab.settings import Settings

FILE = Path(__file__).resolve().parents[2] / "docker-compose.yml"
UP_TIMEOUT_S = 600.0
"""Seconds. The first start downloads the image."""


def why_not() -> str:
    """Return why Docker cannot be used here, in words; "" if it can."""
    if not shutil.which("docker"):
        return "Docker is not installed"
    if not FILE.is_file():
        return "docker-compose.yml is missing: mqlab was installed without its checkout"
    if not _docker("version", "--format", "{{.Server.Version}}", timeout_s=5.0)[0]:
        return "Docker is installed, but no engine answers"
    if not _docker("compose", "version", timeout_s=5.0)[0]:
        return "Docker has no Compose plugin"
    return ""


class Docker:
    """The container of docker-compose.yml at the ports in ``settings``. Its methods are Local's."""

    name = "docker"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def serves(self) -> bool:
        if not self.settings.is_local or not shutil.which("docker") or not FILE.is_file():
            return False
        ok, output = self._compose("port", "rabbitmq", "5672", timeout_s=5.0)
        return ok and output.strip().endswith(f":{self.settings.port}")

    def why_not(self) -> str:
        return why_not()

    def start(self, *, with_parent: bool, say: Say) -> str:  # noqa: ARG002
        say("Starting RabbitMQ with docker compose up (the first time it fetches the image) ...")
        ok, output = self._compose("up", "--detach", "--wait")
        if not ok and "already in use by container" in output:
            raise StartFailed(
                "There is already a container named `rabbitmq` that is not from this checkout.",
                why="made by the walk-through's own `docker run --name rabbitmq …`, or by another "
                "checkout",
                fix="use it: docker start rabbitmq\n"
                "        or remove it and its messages: docker rm --force rabbitmq",
            )
        if not ok:
            raise StartFailed(
                "docker compose up failed.",
                why="\n        ".join(output.strip().splitlines()[-8:]),
                fix="docker compose logs, or without Docker: "
                f"{command('broker start --way local')}",
            )
        # The container's health check asks the Erlang node, which answers before AMQP does.
        return handshake(self.settings, timeout_s=READY_TIMEOUT_S)

    def stop(self, say: Say) -> bool:
        if not self.serves():
            return False
        say("Stopping RabbitMQ in Docker ...")
        ok, output = self._compose("down", timeout_s=60.0)
        if not ok:
            raise StartFailed("docker compose down failed.", why=output.strip()[-500:])
        say("Stopped. Queues and durable messages are kept in the Docker volume.")
        return True

    def logs(self, lines: int) -> str:
        return self._compose("logs", "--no-log-prefix", "--tail", str(lines), timeout_s=20.0)[1]

    @contextlib.contextmanager
    def throw_away(self, say: Say) -> Iterator[tuple[Settings, float]]:  # noqa: ARG002
        second = Settings.on_this_machine(free_port(), free_port())
        image = self._compose("config", "--images", timeout_s=20.0)[1].strip()
        name = f"mqlab-measure-{os.getpid()}"
        ports = ["-p", f"127.0.0.1:{second.port}:5672"]
        ports += ["-p", f"127.0.0.1:{second.management_port}:15672"]
        try:
            launched = time.monotonic()
            ok, output = _docker("run", "--detach", "--rm", "--name", name, *ports, image)
            if not ok:
                raise StartFailed("docker run failed.", why=output.strip()[-500:])
            yield second, launched
        finally:
            _docker("rm", "--force", "--volumes", name, timeout_s=60.0)

    def _compose(self, *arguments: str, timeout_s: float = UP_TIMEOUT_S) -> tuple[bool, str]:
        environ = {
            "MQLAB_AMQP_PORT": str(self.settings.port),
            "MQLAB_MANAGEMENT_PORT": str(self.settings.management_port),
        }
        return _docker("compose", "--file", str(FILE), *arguments, timeout_s=timeout_s, **environ)


def _docker(*arguments: str, timeout_s: float = UP_TIMEOUT_S, **environ: str) -> tuple[bool, str]:
    try:
        done = subprocess.run(
            ["docker", *arguments], env=os.environ | environ, timeout=timeout_s,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, done.stdout
