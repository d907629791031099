"""RabbitMQ's packages: fetched without root, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mqlab import broker
from mqlab.broker import packages
from mqlab.broker.node import Node, find_server
from mqlab.errors import StartFailed
from tests.helpers import eventually, free_port

FETCH = """
import signal
from mqlab.broker import packages
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
packages.fetch_server(say=lambda line: print(line, flush=True))
"""


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]) -> Path:
    """A cache of these tests' own, with RabbitMQ in it."""
    if not packages.can_fetch():
        missing("apt-get of Debian or Ubuntu")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("XDG_CACHE_HOME", str(home))
        packages.fetch_server(say=lambda _line: None)
    return home


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: Callable[[str], None]) -> Path:
    if not packages.can_fetch():
        missing("apt-get of Debian or Ubuntu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mqlab"


def test_row_58_a_killed_download_leaves_nothing_after_the_next_one(cache: Path) -> None:
    for end in (signal.SIGINT, signal.SIGKILL):
        fetch = subprocess.Popen([sys.executable, "-c", FETCH], stdout=subprocess.PIPE, text=True)
        assert fetch.stdout is not None
        assert "Fetching RabbitMQ" in fetch.stdout.readline()
        assert list(cache.glob("fetch-*")), "the download is under way"
        fetch.send_signal(end)
        assert fetch.wait(timeout=10) != 0
        assert packages.find_unpacked() is None
        eventually(lambda: not processes_in(cache))  # apt-get and its helpers
        left = list(cache.glob("fetch-*"))
        assert bool(left) == (end == signal.SIGKILL), "Ctrl-C cleans up; kill -9 cannot"

    lines: list[str] = []
    script = packages.fetch_server(say=lines.append)

    assert script.is_file()
    assert script == packages.find_unpacked()
    assert not list(cache.glob("fetch-*")), "what the killed one had left is gone"
    assert " MB " in lines[0]
    say_root = "io:put_chars(code:root_dir()), halt()."
    root = subprocess.run(
        [script.parents[2] / "erlang/bin/erl", "-noshell", "-eval", say_root],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert root.stdout == str(cache / "rabbitmq/usr/lib/erlang")

    lines.clear()
    assert packages.fetch_server(say=lines.append) == script
    assert lines == [], "the second time it is only found"

    moved = cache.parent / "moved"
    shutil.move(cache, moved / "mqlab")
    os.environ["XDG_CACHE_HOME"] = str(moved)
    assert packages.find_unpacked() is None, "Erlang carries its path: a moved cache is no use"


def processes_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(folder)):
                found.append(process.name())
    return found


def test_row_58_a_fetch_killed_in_its_last_moment_leaves_nothing_after_the_next_run(
    fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(fetched))
    left = fetched / "mqlab/fetch-dead"
    left.mkdir()
    (left / "half.deb").touch()
    assert packages.fetch_server(say=lambda _line: None).is_file()
    assert not left.exists()


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(100_000)
        [byte] = opened.read(1)
        opened.seek(100_000)
        opened.write(bytes([byte ^ 1]))


def remove(file: Path) -> None:
    file.unlink()


def add_another(file: Path) -> None:
    file.with_name("another").touch()


@pytest.mark.parametrize("spoil", [flip_a_bit, remove, add_another, truncate])
def test_row_55_a_changed_file_among_the_fetched_packages_is_noticed(
    fetched: Path, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(fetched))
    good = packages.find_unpacked()
    assert good, "it was intact"
    program = next((good.parents[2] / "erlang").glob("erts-*/bin/beam.smp"))
    kept = fetched / "kept"
    shutil.copy2(program, kept)
    spoil(program)
    assert packages.find_unpacked() is None
    (program.parent / "another").unlink(missing_ok=True)
    shutil.copy2(kept, program)
    assert packages.find_unpacked() == good


def test_row_55_a_truncated_server_is_fetched_again_and_starts(
    fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_server():
        pytest.skip("this machine has a RabbitMQ of its own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fetched))
    tree = fetched / "mqlab/rabbitmq"
    truncate(next(tree.glob("usr/lib/erlang/erts-*/bin/beam.smp")))
    lines: list[str] = []
    node = Node(tmp_path / "node", free_port(), free_port())
    try:
        started = broker.start(
            way="local", port=node.port, management_port=node.management_port,
            state_dir=node.state_dir, with_parent=True, say=lines.append,
        )  # fmt: skip
        assert started.version
    finally:
        node.kill()
    assert f"The RabbitMQ in {tree} is damaged" in lines[0]
    assert not list(tree.parent.glob("fetch-*"))


def nobody_owns(folder: Path) -> None:
    os.chown(folder, 65534, 65534)


def anyone_writes(folder: Path) -> None:
    folder.chmod(0o777)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="chown takes root")
@pytest.mark.parametrize("spoil", [nobody_owns, anyone_writes])
@pytest.mark.parametrize("which", ["mqlab", "mqlab/rabbitmq"])
def test_row_57_nothing_is_run_from_a_cache_that_another_user_can_write_to(
    tmp_path: Path, which: str, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_server():
        pytest.skip("this machine has a RabbitMQ of its own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tree, mark = tmp_path / "mqlab/rabbitmq", tmp_path / "it ran"
    for program in ("erlang/bin/erl", "erlang/bin/epmd", "rabbitmq/bin/rabbitmq-server"):
        file = tree / "usr/lib" / program
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\nROOTDIR={tree}/usr/lib/erlang\ntouch '{mark}'\nsleep 9\n")
        file.chmod(0o755)
    spoil(tmp_path / which)
    node = Node(tmp_path / "node", free_port(), free_port())
    try:
        with pytest.raises(StartFailed, match=r"mqlab does not use it[^$]*XDG_CACHE_HOME="):
            broker.start(
                way="local", port=node.port, management_port=node.management_port,
                state_dir=node.state_dir, say=lambda _line: None,
            )  # fmt: skip
    finally:
        node.kill()
    assert not mark.exists()


def test_without_package_lists_it_fetches_its_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "apt.conf"
    empty.write_text(f'Dir::State::Lists "{tmp_path}/no-lists";\n')
    (tmp_path / "no-lists/partial").mkdir(parents=True)
    monkeypatch.setenv("APT_CONFIG", str(empty))
    plain = subprocess.run(
        ["apt-cache", "policy", "rabbitmq-server"], capture_output=True, text=True
    )
    assert "Candidate" not in plain.stdout, "the system's lists are out of sight"

    lines: list[str] = []
    assert packages.fetch_server(say=lines.append).is_file()
    assert "lists are missing or out of date" in lines[0]
    assert cache.is_dir()


def test_a_mirror_that_cannot_be_reached_is_told_in_apts_own_words(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = tmp_path / "apt.conf"
    dead.write_text('Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::Retries "0";\n')
    monkeypatch.setenv("APT_CONFIG", str(dead))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(StartFailed, match=r"127\.0\.0\.1") as raised:
        packages.fetch_server(say=lambda _line: None)
    assert "check the network" in str(raised.value)
    assert not list(cache.glob("fetch-*"))


def test_missing_shared_libraries_are_named(tmp_path: Path, server_script: Path) -> None:
    """The real virtual machine, changed to ask for a library that no system has."""
    real = next((server_script.parents[2] / "erlang").glob("erts-*/bin/beam.smp"))
    program = tmp_path / "usr/lib/erlang/erts-1/bin/beam.smp"
    program.parent.mkdir(parents=True)
    assert b"libtinfo.so.6" in real.read_bytes()
    program.write_bytes(real.read_bytes().replace(b"libtinfo.so.6", b"libgoned.so.9"))
    program.chmod(0o755)
    with pytest.raises(StartFailed, match=r"libgoned\.so\.9.*no such library"):
        packages.check_libraries(tmp_path, [], ["rabbitmq-server", "erlang-base"])


@pytest.mark.parametrize("name", ["a space", "it's", 'a "quote"', "do$HOME", "a(b)", "a&b"])
def test_row_56_a_cache_path_that_its_scripts_cannot_handle_is_refused_at_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    with pytest.raises(StartFailed, match="XDG_CACHE_HOME"):
        packages.fetch_server(say=lambda _line: None)
    assert not (tmp_path / name).exists()


def test_row_56_a_cache_path_in_another_script_works(
    fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree of the other tests, moved to such a path as a fetch would have written it."""
    home = tmp_path / "Jürgen-日本"
    shutil.copytree(fetched, home, symlinks=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    tree = home / "mqlab/rabbitmq"
    for script in (tree / "usr/lib/erlang").rglob("bin/erl"):
        script.write_text(script.read_text().replace(str(fetched), str(home)))
    node = Node(tmp_path / "node", free_port(), free_port())
    try:
        node.launch(tree / "usr/lib/rabbitmq/bin/rabbitmq-server", with_parent=True)
        assert node.wait_ready()
    finally:
        node.kill()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root")
def test_a_cache_that_this_user_may_not_read_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ``sudo`` leaves behind: a folder that root alone can open."""
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        (Path(home) / "mqlab").mkdir(mode=0o700)
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        os.seteuid(65534)
        try:
            with pytest.raises(StartFailed, match=r"cannot be used[^$]*XDG_CACHE_HOME"):
                packages.find_unpacked()
        finally:
            os.seteuid(0)
