"""Choosing, finding, starting and stopping a broker, as a person meets it on the command line."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mqlab import broker
from mqlab.broker.node import Node
from mqlab.broker.ports import is_open
from mqlab.errors import (
    BrokerError,
    ConnectError,
    NoBrokerFound,
    PortTaken,
    SettingsError,
    StartFailed,
)
from mqlab.settings import Settings
from tests.helpers import free_port

HOME = Path(__file__).parents[2]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """The default node of a user with nothing set but two free ports; gone afterwards."""
    for name in ("AMQP_URL", "MQLAB_BROKER", "MQLAB_MANAGEMENT_URL", "MQLAB_RABBITMQ"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    port, management_port = free_port(), free_port()
    monkeypatch.setenv("MQLAB_AMQP_PORT", str(port))
    monkeypatch.setenv("MQLAB_MANAGEMENT_PORT", str(management_port))
    node = Node(tmp_path.resolve() / f"mqlab/broker-{port}", port, management_port)
    yield node
    node.kill()


@pytest.fixture
def no_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing in it."""
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    return empty


def command(*arguments: str, cwd: Path = HOME) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mqlab", *arguments], cwd=cwd, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


def test_the_commands_start_show_and_stop_a_broker(bare: Node, server_script: Path) -> None:
    assert server_script.is_file()
    nothing = command("broker", "stop")
    assert (nothing.returncode, nothing.stderr) == (0, "")
    assert "nothing to stop" in nothing.stdout
    down = command("broker", "status")
    assert down.returncode == 1
    assert "broker start" in down.stderr

    started = command("broker", "start", "--way", "local")

    assert (started.returncode, started.stderr) == (0, "")
    line = rf"RabbitMQ \d+\.\d+\.\d+ answers at 127\.0\.0\.1:{bare.port} \(private node on this"
    assert re.search(line, started.stdout)
    assert f"http://127.0.0.1:{bare.management_port}" in started.stdout

    again = command("broker", "start", "--way", "local")
    assert again.returncode == 0
    assert "Starting" not in again.stdout
    assert re.search(line, again.stdout)

    status = command("broker", "status")
    assert re.search(line, status.stdout)
    assert "does not answer" not in status.stdout
    assert "mqlab handshake" in command("broker", "logs", "--lines", "20").stdout

    stopped = command("broker", "stop")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert str(bare.state_dir) in stopped.stdout
    assert bare.processes() == []


def test_amqp_url_is_used_and_never_started_or_stopped(
    broker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    lines: list[str] = []
    found = broker.start(say=lines.append)
    assert (found.way, found.started) == ("url", False)
    assert "nothing is started" in lines[0]
    broker.stop(say=lines.append)
    assert "does not stop it" in lines[1]
    assert broker.require() == found
    assert len(lines) == 2


def test_an_amqp_url_that_does_not_answer_is_told_and_nothing_is_started(
    bare: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMQP_URL", f"amqp://someone:s3cret@127.0.0.1:{free_port()}")
    with pytest.raises(ConnectError) as raised:
        broker.start(say=lambda _line: None)
    assert "s3cret" not in str(raised.value)
    assert bare.processes() == []


def test_a_rabbitmq_that_is_there_already_is_used_and_left_alone(
    bare: Node, server_script: Path, tmp_path: Path
) -> None:
    other = Node(tmp_path.resolve() / "other", bare.port, bare.management_port)
    try:
        other.launch(server_script, with_parent=True)
        other.wait_ready()
        lines: list[str] = []
        found = broker.start(say=lines.append)
        assert (found.way, found.started) == ("found", False)
        assert "neither started it nor stops it" in str(found)
        broker.stop(say=lines.append)
        assert "a RabbitMQ" in lines[-1]
        assert "left alone" in lines[-1]
        assert other.is_running()
        with pytest.raises(PortTaken, match=r"a RabbitMQ \d"):
            broker.start(way="local", say=lines.append)
    finally:
        other.kill()


@pytest.mark.parametrize("which", ["amqp", "management"])
@pytest.mark.parametrize("kind", ["http", "silent", "rabbitmq"])
def test_row_32_a_taken_port_is_told_within_2_s_by_what_and_how_to_choose_another(
    bare: Node, broker_settings: Settings, which: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = {"amqp": "MQLAB_AMQP_PORT", "management": "MQLAB_MANAGEMENT_PORT"}[which]
    server: http.server.ThreadingHTTPServer | socket.socket | None = None
    if kind == "http":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port, words = server.server_port, "an HTTP server"
    elif kind == "silent":
        server = socket.create_server(("127.0.0.1", 0))
        port, words = server.getsockname()[1], "speaks neither AMQP nor HTTP"
    else:
        if broker_settings.host not in ("127.0.0.1", "localhost"):
            pytest.skip("the broker in AMQP_URL is on another machine")
        port, words = broker_settings.port, r"a RabbitMQ \d"
    monkeypatch.setenv(variable, str(port))
    try:
        assert is_open(port), "something listens there"
        started = time.monotonic()
        with pytest.raises(PortTaken) as raised:
            broker.start(way="local", say=lambda _line: None)
        assert time.monotonic() - started < 2.0
    finally:
        if isinstance(server, http.server.ThreadingHTTPServer):
            server.shutdown()
            server.server_close()
        elif server is not None:
            server.close()
    assert re.search(rf"Port {port}.*{words}", raised.value.what)
    if kind != "rabbitmq":
        assert f"pid {os.getpid()}" in raised.value.what
    other = re.search(rf"{variable}=(\d+)", raised.value.fix)
    assert other, "the next command is given"
    assert not is_open(int(other[1])), "and the port that it proposes is free"
    assert bare.processes() == []


def test_row_33_without_any_way_each_one_is_told_in_one_screen(
    bare: Node, no_docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    if any(
        Path(p, "rabbitmq-server").exists() for p in ("/usr/lib/rabbitmq/bin", "/usr/local/sbin")
    ):
        pytest.skip("RabbitMQ is installed here, outside PATH")
    assert no_docker.is_dir()
    result = command("broker", "start")
    assert result.returncode == 1
    assert result.stdout == ""
    text = result.stderr
    assert "Traceback" not in text
    for way in ("Docker", "brew install", "dnf install", "wsl", "MQLAB_RABBITMQ=", "AMQP_URL=amqp"):
        assert way in text
    assert len(text.splitlines()) <= 20
    assert max(map(len, text.splitlines())) <= 250
    assert bare.processes() == []
    with pytest.raises(NoBrokerFound, match="Docker is not installed"):
        broker.start(way="docker", say=lambda _line: None)


def test_row_35_two_checkouts_started_at_once_share_one_broker_and_the_second_says_whose(
    bare: Node, server_script: Path, tmp_path: Path
) -> None:
    assert server_script.is_file()
    second = tmp_path / "second checkout"
    second.mkdir()
    shutil.copytree(HOME / "mqlab", second / "mqlab")
    starts = [
        subprocess.Popen(
            [sys.executable, "-m", "mqlab", "broker", "start", "--way", "local"], cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for folder in (HOME, second)
    ]  # fmt: skip
    said = [start.communicate(timeout=100)[0] for start in starts]
    assert [start.returncode for start in starts] == [0, 0], said
    started = [index for index in (0, 1) if "Starting RabbitMQ as" in said[index]]
    assert len(started) == 1, "one of them has started it"
    first, other = (HOME, second)[started[0]], said[1 - started[0]]
    assert f"started from {first}" in other
    assert len([p for p in bare.processes() if p.name() == "beam.smp"]) == 1


def test_a_forced_way_that_does_not_exist_is_refused(
    bare: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQLAB_BROKER", "podman")
    with pytest.raises(SettingsError, match="podman"):
        broker.start(say=lambda _line: None)
    assert bare.processes() == []


def test_a_second_broker_is_timed_and_removed(server_script: Path) -> None:
    assert server_script.is_file()
    times = broker.measure_start(way="local")
    assert 0.5 < times.port_s <= times.amqp_s < 60
    assert 0.5 < times.management_s < 60
    assert times.way == "local"


def test_the_broker_never_shows_a_password(broker_settings: Settings) -> None:
    settings = Settings(
        broker_settings.host, broker_settings.port, username="guest", password="s3cret"
    )
    shown = broker.Broker(settings, "url", "4.3.6")
    assert "s3cret" not in f"{shown} {shown!r}"


def test_a_state_folder_that_cannot_be_made_is_told_in_words(
    bare: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(BrokerError, match=r"cannot be used[^$]*XDG_STATE_HOME"):
        broker.start(way="local", say=lambda _line: None)
    assert bare.processes() == []


def test_row_56_a_home_with_spaces_and_other_scripts_works(
    bare: Node, server_script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server_script.is_file()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "Jürgen 日本 (x86) $HOME"))
    try:
        started = broker.start(way="local", with_parent=True, say=lambda _line: None)
        assert broker.require() == replace(started, started=False)
    finally:
        broker.default_node().kill()
    assert bare.processes() == []


@pytest.mark.parametrize("name", ["it's", 'a "quote"', "two\nlines"])
def test_row_56_a_home_with_which_rabbitmq_cannot_start_is_refused_at_once(
    bare: Node, server_script: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server_script.is_file()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))
    began = time.monotonic()
    with pytest.raises(StartFailed, match=r"quote.*[^$]*XDG_STATE_HOME="):
        broker.start(way="local", say=lambda _line: None)
    assert time.monotonic() - began < 3
    assert bare.processes() == []


def nobody_owns(folder: Path) -> None:
    os.chown(folder, 65534, 65534)


def anyone_writes(folder: Path) -> None:
    folder.chmod(0o777)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="chown takes root")
@pytest.mark.parametrize("spoil", [nobody_owns, anyone_writes])
@pytest.mark.parametrize("which", ["mqlab", "mqlab/broker"])
def test_row_57_a_state_folder_that_another_user_can_write_to_is_refused(
    bare: Node, server_script: Path, which: str, spoil: Callable[[Path], None]
) -> None:
    assert server_script.is_file()
    bare.state_dir.mkdir(parents=True)
    spoil(bare.state_dir if which == "mqlab/broker" else bare.state_dir.parent)
    with pytest.raises(StartFailed, match=r"mqlab does not use it[^$]*XDG_STATE_HOME="):
        broker.start(way="local", say=lambda _line: None)
    assert bare.processes() == []
    assert list(bare.state_dir.iterdir()) == []


def test_row_59_a_proxy_of_the_environment_is_not_asked(
    broker_settings: Settings, server_script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server_script.is_file()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert urllib.request.getproxies()["http"] == proxy
        assert broker.page_answers(broker_settings.management_url)
        assert broker.measure_start(way="local").management_s < 60
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_node_does_not_take_the_broker_of_another_user_for_its_own(
    bare: Node, server_script: Path, broker_settings: Settings, tmp_path: Path
) -> None:
    """The other one listens already when ours looks for the first time."""
    if not broker_settings.is_local:
        pytest.skip("the broker in AMQP_URL is on another machine")
    late = Node(tmp_path.resolve() / "late", broker_settings.port, free_port())
    try:
        late.launch(server_script, with_parent=True)
        with pytest.raises(PortTaken, match="Another RabbitMQ took port"):
            late.wait_ready()
    finally:
        late.kill()
    assert bare.processes() == []
