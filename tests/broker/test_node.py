"""A private node: loopback only, nothing left behind, nothing durable lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import psutil
import pytest

from mqlab import broker
from mqlab.broker.node import Node, data_folder, find_server, pick_words
from mqlab.broker.ports import is_open
from mqlab.errors import StartFailed
from mqlab.settings import Settings
from tests.helpers import QUEUE_ON_DISK_S, free_port

START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
from pathlib import Path
from mqlab import broker
port, management_port, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
broker.start(way="local", port=port, management_port=management_port, state_dir=folder,
             with_parent="--with-parent" in sys.argv, say=lambda line: print(line, flush=True))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def node(tmp_path: Path, server_script: Path) -> Iterator[Node]:  # noqa: ARG001
    """A node that is not started yet, and that is gone afterwards."""
    node = Node(tmp_path.resolve() / "node", free_port(), free_port())
    yield node
    node.kill()


def start(node: Node) -> broker.Broker:
    return broker.start(
        way="local", port=node.port, management_port=node.management_port,
        state_dir=node.state_dir, with_parent=True, say=lambda _line: None,
    )  # fmt: skip


def start_elsewhere(node: Node, *options: str) -> subprocess.Popen[str]:
    """Start the node from a process of its own; read its first line, so that it is under way."""
    where = (node.port, node.management_port, node.state_dir)
    starter = subprocess.Popen(
        [sys.executable, "-c", START, *map(str, where), *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert starter.stdout is not None
    assert "Starting RabbitMQ" in starter.stdout.readline()
    return starter


def wait_until(what: Callable[[], object], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def send_durable(settings: Settings, count: int) -> None:
    with pika.BlockingConnection(settings.parameters()) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True)
        for number in range(count):
            channel.basic_publish(
                "", "kept", str(number).encode(), pika.BasicProperties(delivery_mode=2)
            )


def read_all(settings: Settings) -> list[int]:
    with pika.BlockingConnection(settings.parameters()) as connection:
        channel = connection.channel()
        found = []
        while (message := channel.basic_get("kept", auto_ack=True))[0] is not None:
            found.append(int(message[2]))
        return found


def test_everything_listens_on_loopback_only_and_stop_leaves_nothing_behind(node: Node) -> None:
    start(node)
    names = {process.name() for process in node.processes()}
    assert {"beam.smp", "epmd"} <= names
    listening = {
        (process.name(), connection.laddr.ip, connection.laddr.port)
        for process in node.processes()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert {ip for _, ip, _ in listening} <= {"127.0.0.1", "::1"}
    ports = {(name, port) for name, _, port in listening}
    assert {("beam.smp", node.port), ("beam.smp", node.management_port)} <= ports
    assert len(ports) == 4, f"and epmd's and the Erlang distribution's: {ports}"

    broker.stop(way="local", port=node.port, state_dir=node.state_dir, say=lambda _line: None)

    assert node.processes() == []
    assert [port for _, port in ports if is_open(port)] == []


def test_a_stop_and_start_keep_durable_messages_and_the_files_are_private(node: Node) -> None:
    start(node)
    send_durable(node.settings, 20)
    node.stop()
    assert not node.is_running()
    start(node)
    assert read_all(node.settings) == list(range(20))
    assert (node.state_dir.stat().st_mode & 0o777) == 0o700
    assert ((node.state_dir / "home/.erlang.cookie").stat().st_mode & 0o777) == 0o400


def test_row_34_a_start_that_is_killed_or_interrupted_does_no_harm_to_the_next(node: Node) -> None:
    interrupted = start_elsewhere(node)
    wait_until(node.is_running)
    interrupted.send_signal(2)  # Ctrl-C
    assert interrupted.wait(timeout=10) != 0
    assert node.processes() == [], "what the interrupted start had started is ended"

    starter = start_elsewhere(node)
    wait_until(node.is_running)
    starter.kill()
    starter.wait(timeout=10)
    assert node.is_running(), "kill -9 of the starter leaves the node on its way"
    assert start(node).started is False, "the next start takes it as it is"


@pytest.mark.parametrize("seconds", [0.3, 2.2])
def test_row_34_a_first_boot_killed_half_way_does_no_harm_to_the_next(
    node: Node, server_script: Path, seconds: float
) -> None:
    node.launch(server_script, with_parent=True)
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end)
    victims = node.processes()
    assert "beam.smp" in {process.name() for process in victims}
    assert not is_open(node.port), "it was not ready yet"
    node.kill()
    assert start(node).started is True


def test_row_34_a_crashed_node_with_stale_state_loses_no_durable_message(node: Node) -> None:
    start(node)
    send_durable(node.settings, 200)
    time.sleep(QUEUE_ON_DISK_S)
    server = next(process for process in node.processes() if process.name() == "beam.smp")
    server.kill()
    wait_until(lambda: not is_open(node.port))
    wait_until(lambda: not node.is_running())
    assert [process.name() for process in node.processes()] == ["epmd"], "the crash left its epmd"
    cookie = node.state_dir / "home/.erlang.cookie"
    cookie.unlink()
    cookie.touch()  # cut short, as a power cut leaves it
    Path(f"{node.state_dir}.lock").touch()

    assert start(node).started is True

    assert read_all(node.settings) == list(range(200))
    assert [process.name() for process in node.processes()].count("epmd") == 1


def test_a_node_with_parent_ends_with_it_and_one_without_goes_on(node: Node) -> None:
    starter = start_elsewhere(node, "--with-parent")
    assert starter.stdout is not None
    assert starter.stdout.readline() == "ready\n"
    assert node.is_running()
    starter.kill()
    starter.wait(timeout=10)
    wait_until(lambda: not node.processes())

    free = start_elsewhere(node)
    assert free.stdout is not None
    assert free.stdout.readline() == "ready\n"
    free.kill()
    free.wait(timeout=10)
    assert broker.require(node.settings).version


def test_row_36_a_full_disk_is_told_in_the_brokers_own_words(
    tmp_path: Path, server_script: Path, missing: Callable[[str], None]
) -> None:
    small = tmp_path.resolve() / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    if subprocess.run(mount, capture_output=True).returncode != 0:
        missing("the right to mount a tmpfs")
    node = Node(small / "node", free_port(), free_port())
    try:
        started = time.monotonic()
        with pytest.raises(StartFailed, match="enospc") as raised:
            start(node)
        assert time.monotonic() - started < 30, "it does not wait for a time-out"
        assert "MB are free on the disk" in str(raised.value)
        assert "make room" in raised.value.fix
        assert node.processes() == [], "what was started is ended"
    finally:
        node.kill()
        subprocess.run(["umount", "--lazy", str(small)], check=True)
    assert server_script.is_file()


def test_a_start_that_hangs_on_a_full_disk_is_ended_and_told(
    node: Node, server_script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As RabbitMQ 3.10 does for some sizes of the disk: it reports enospc, and stays."""
    script = tmp_path / "rabbitmq-server"
    script.write_text("#!/bin/sh\necho '{error,{file_error,\"LATEST.LOG\",enospc}}'\nsleep 50\n")
    script.chmod(0o755)
    monkeypatch.setenv("MQLAB_RABBITMQ", str(script))
    monkeypatch.setenv("PATH", f"{server_script.parents[2]}/erlang/bin:{os.environ['PATH']}")
    started = time.monotonic()
    with pytest.raises(StartFailed, match=r"disk is full[^$]*LATEST\.LOG"):
        start(node)
    assert time.monotonic() - started < 10
    assert node.processes() == []


def test_a_failed_start_quotes_rabbitmq_and_ends_what_it_started(
    node: Node, server_script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server script that asks for a plug-in's setting that does not exist."""
    script = tmp_path / "rabbitmq-server"
    script.write_text(
        "#!/bin/sh\necho 'no.such.setting = 1' >> $RABBITMQ_CONFIG_FILE\n"
        f'PATH="{server_script.parents[2]}/erlang/bin:$PATH" exec {server_script}\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("MQLAB_RABBITMQ", str(script))
    monkeypatch.setenv("PATH", f"{server_script.parents[2]}/erlang/bin:{os.environ['PATH']}")
    with pytest.raises(StartFailed, match=r"no\.such\.setting"):
        start(node)
    assert node.processes() == []


def test_find_server_takes_the_one_that_is_named_and_refuses_debians_wrapper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "rabbitmq-script-wrapper"
    wrapper.touch()
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/rabbitmq-server").symlink_to(wrapper)
    monkeypatch.delenv("MQLAB_RABBITMQ", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "sbin"))
    found = find_server()
    assert found is None or found.resolve() != wrapper
    monkeypatch.setenv("MQLAB_RABBITMQ", str(wrapper))
    assert find_server() == wrapper
    monkeypatch.setenv("MQLAB_RABBITMQ", str(tmp_path / "gone"))
    with pytest.raises(StartFailed, match="MQLAB_RABBITMQ"):
        find_server()


def test_the_words_are_the_errors_without_banner_stamps_and_colours() -> None:
    text = (
        "2026-11-24 04:14:23.5+00:00 [info] <0.2.0> all is well\n"
        "\x1b[38;5;160m2026-11-24 04:14:23.5+00:00 [error] <0.2.0> BOOT FAILED\x1b[0m\n"
        "\n  ##  ##      RabbitMQ 3.10.8\n  ##  ##\n  Starting broker...\n"
        "BOOT FAILED\n===========\n  {error,enospc}\n"
    )
    assert pick_words(text) == ["BOOT FAILED", "{error,enospc}"]


def test_a_kill_of_nothing_is_fine(node: Node) -> None:
    with contextlib.suppress(StartFailed):
        node.kill()
    assert node.processes() == []
    assert node.started_by() == ""


@pytest.mark.parametrize(
    ("script", "folder"),
    [
        ("/usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmq-server", "data-3.10"),
        ("/opt/homebrew/Cellar/rabbitmq/4.1.4/sbin/rabbitmq-server", "data-4.1"),
        ("/somewhere/sbin/rabbitmq-server", "data"),
    ],
)
def test_each_series_of_rabbitmq_has_adata_folder_of_its_own(script: str, folder: str) -> None:
    assert data_folder(Path(script)) == folder
