"""A command that an error shows runs where the error is read."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mqlab.commands import command

PROGRAMS = Path(sys.executable).parent


def test_where_a_shell_finds_the_script_the_command_is_mqlab(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", f"{PROGRAMS}:/usr/bin")
    assert command("broker start") == "mqlab broker start"


@pytest.mark.parametrize("other", [False, True])
def test_elsewhere_it_is_the_scripts_path_which_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: bool
) -> None:
    if other:  # the mqlab of another checkout comes first
        (tmp_path / "mqlab").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "mqlab").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
    for folder in (PROGRAMS.parents[1], tmp_path):  # relative in the project, absolute elsewhere
        monkeypatch.chdir(folder)
        shown = command("broker start --help")
        assert shlex.split(shown)[0].endswith("bin/mqlab")
        ran = subprocess.run(
            ["sh", "-c", shown], env={**os.environ, "PATH": path}, capture_output=True,
            text=True, timeout=30, check=False,
        )  # fmt: skip
        assert "usage: mqlab broker start" in ran.stdout, ran.stderr


def test_without_a_script_python_runs_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my python"))
    assert command("doctor") == f"'{tmp_path}/my python' -m mqlab doctor"
