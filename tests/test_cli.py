"""The command line: help for every command, errors in words, no traceback."""

from __future__ import annotations

import argparse
import subprocess
import sys

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
    assert text.startswith(f"usage: python -m mqlab {' '.join(path)}".rstrip())
    description = text.split("\n\n")[1]
    assert description.endswith("."), "a sentence"
    assert len(description) > 20


def test_the_frame_and_the_broker_commands_are_there() -> None:
    expected = {("broker", action) for action in ("start", "stop", "status", "logs")}
    assert expected | {("doctor",)} <= set(commands(build_parser()))


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
    assert "  next: python -m mqlab broker start" in streams.err


def test_a_setting_that_cannot_be_used_is_told_in_words() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "mqlab", "broker", "status"], capture_output=True, text=True,
        timeout=30, env={"AMQP_URL": "http://example", "PATH": ""},
    )  # fmt: skip
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "AMQP_URL cannot be used" in ran.stderr
