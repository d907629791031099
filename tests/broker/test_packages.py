"""RabbitMQ's packages: fetched without root, whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mqlab.broker import packages
from mqlab.errors import StartFailed

FETCH = """
import signal
from mqlab.broker import packages
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
packages.fetch_server(say=lambda line: print(line, flush=True))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: Callable[[str], None]) -> Path:
    if not packages.can_fetch():
        missing("apt-get of Debian or Ubuntu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mqlab"


def test_an_interrupted_download_leaves_nothing_and_the_next_one_works(cache: Path) -> None:
    for end in (signal.SIGINT, signal.SIGKILL):
        fetch = subprocess.Popen([sys.executable, "-c", FETCH], stdout=subprocess.PIPE, text=True)
        assert fetch.stdout is not None
        assert "Fetching RabbitMQ" in fetch.stdout.readline()
        assert list(cache.glob("fetch-*")), "the download is under way"
        fetch.send_signal(end)
        assert fetch.wait(timeout=10) != 0
        assert packages.find_unpacked() is None
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

    started = time.monotonic()
    assert packages.fetch_server(say=lines.append) == script
    assert time.monotonic() - started < 0.5, "the second time it is only found"

    moved = cache.parent / "moved"
    shutil.move(cache, moved / "mqlab")
    os.environ["XDG_CACHE_HOME"] = str(moved)
    assert packages.find_unpacked() is None, "Erlang carries its path: a moved cache is no use"


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
        packages._check_libraries(tmp_path, [], ["rabbitmq-server", "erlang-base"])


def test_a_cache_path_with_a_space_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/with a space")
    with pytest.raises(StartFailed, match="XDG_CACHE_HOME"):
        packages.fetch_server(say=lambda _line: None)
