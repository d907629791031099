"""The command line: help for every command, errors in words, no traceback."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mqlab.cli import build_parser, main
from tests.helpers import free_port


def commands(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and subcommand there is."""
    found = [path]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                found += commands(sub, (*path, name))
    return found


@pytest.mark.parametrize("path", commands(build_parser()), ids=" ".join)
def test_every_command_has_a_help_that_says_what_it_does(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*path, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: mqlab {' '.join(path)}".rstrip())
    description = text.split("\n\n")[1]
    assert description.endswith("."), "a sentence"
    assert len(description) > 20


def test_the_frame_and_the_broker_commands_are_there() -> None:
    expected = {("broker", action) for action in ("start", "stop", "status", "logs")}
    expected |= {("doctor",), ("pages",), ("pages", "list"), ("pages", "renew")}
    assert expected <= set(commands(build_parser()))


def test_without_a_command_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    for line, word in ([], "COMMAND"), (["broker"], "ACTION"):
        with pytest.raises(SystemExit) as stopped:
            main(line)
        assert stopped.value.code == 2
        assert word in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "-1", "five", "٣"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["broker", "start", f"--port={port}"])
    assert stopped.value.code == 2
    assert "is not a port from 1 to 65535" in capsys.readouterr().err


def test_an_error_is_printed_in_words_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AMQP_URL", raising=False)
    assert main(["broker", "status", "--port", str(free_port())]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "  why:  " in streams.err
    assert "mqlab broker start" in streams.err


def test_a_setting_that_cannot_be_used_is_told_in_words() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "mqlab", "broker", "status"], capture_output=True, text=True,
        timeout=30, env={"AMQP_URL": "http://example", "PATH": ""},
    )  # fmt: skip
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "AMQP_URL cannot be used" in ran.stderr


LONG = "é" * 126  # 252 bytes: with `.dead`, two too many for AMQP


@pytest.mark.parametrize(
    "line",
    [
        *[["work", f"--workers={each}"] for each in ("0", "-1", "two", "1.5", "٣", "9" * 5000)],
        *[["work", f"--duration={each}"] for each in ("-1", "nan", "inf", "1e300", "soon", "")],
        *[["dead", "list", f"--limit={each}"] for each in ("0", "-3", "all")],
        *[["broker", "logs", f"--lines={each}"] for each in ("0", "-3", "all")],
        *[["room", "create", each] for each in ("0", "many")],
        *[
            [*command, f"--queue={each}"]
            for command in (["work"], ["send", "x"], ["dead", "list"], ["dead", "requeue"])
            for each in ("", "amq.mine", LONG, "\udcff")
        ],
    ],
    ids=lambda line: ascii(" ".join(line))[:40],
)
def test_row_64_an_argument_that_cannot_be_used_is_refused_in_words(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdout": subprocess.PIPE, "env": {**os.environ, "AMQP_URL": "amqp://h:1"}} | options
    return subprocess.run(
        [sys.executable, "-m", "mqlab", *arguments],
        stderr=subprocess.PIPE, text=True, timeout=30, check=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_row_66_a_full_disk_is_an_error_in_words_of_every_command(
    tmp_path: Path, unbuffered: str
) -> None:
    (tmp_path / "notebooks").mkdir()
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    for command in (["--help"], ["pages"], ["room", "create", "--help"]):
        with Path("/dev/full").open("w") as full:
            ran = run(*command, stdout=full, env=environ, cwd=tmp_path)
        assert ran.returncode == 1
        assert ran.stderr == "mqlab: stdout cannot be written: No space left on device\n"


def test_row_66_a_closed_pipe_is_an_error_in_words_of_every_command() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = run("--help", stdout=writer)
    os.close(writer)
    assert ran.returncode == 1
    assert ran.stderr == "mqlab: stdout cannot be written: Broken pipe\n"


def test_row_66_what_a_terminal_would_obey_is_escaped_by_every_command() -> None:
    refused = run("work", "--queue", "amq.\x1b[31m\x9b2J")
    assert refused.returncode == 2
    assert r"amq.\x1b[31m" in refused.stderr
    shown = run("pages", "renew", "\x1b]0;title\x07\u202e")
    assert shown.returncode == 1
    assert shown.stderr.replace("\n", "").isprintable()
    ascii_only = run("pages", "renew", "Ü", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert r"No page has a name like '\xdc'" in ascii_only.stderr
