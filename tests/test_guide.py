"""The instructor's guide: its plan adds up, its commands exist, its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.broker.test_compose import program  # noqa: F401 - a fixture
from tests.test_readme import MQLAB, commands, run_mqlab

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs/instructor-guide.md").read_text("utf-8")


def rows(text: str) -> list[list[str]]:
    """The rows of a Markdown table, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def part(heading: str) -> str:
    """The text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", GUIDE, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def test_the_plan_is_two_hours_without_a_gap() -> None:
    minute = 0
    for start, minutes, *_ in rows(part("Two hours")):
        assert start == f"{minute // 60}:{minute % 60:02}"
        minute += int(minutes)
    assert minute == 120


def test_the_plan_names_headings_that_the_pages_have() -> None:
    headings = {
        line.lstrip("# ")
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in json.loads(path.read_text("utf-8"))["cells"]
        for line in "".join(cell["source"]).splitlines()
        if cell["cell_type"] == "markdown" and line.startswith("#")
    }
    plan = " ".join(" ".join(row) for row in rows(part("Two hours")))
    quoted = re.findall(r'"([^"]+)"', plan)
    assert len(quoted) > 5
    assert set(quoted) <= headings


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", GUIDE)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


@pytest.mark.parametrize(
    "command", [c.removeprefix(MQLAB) for c in commands(GUIDE) if c.startswith(MQLAB)]
)
def test_every_mqlab_command_exists(command: str) -> None:
    assert "usage:" in run_mqlab(f"{' '.join(w for w in command.split() if w.isalpha())} --help")


def test_the_rooms_broker_is_on_one_address_without_guest_and_with_data_of_its_own(
    program: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    text = re.search(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert text
    (tmp_path / "room.yml").write_text(text[1])
    [command] = [c for c in commands(GUIDE) if c.startswith("docker compose")]
    words = command.removeprefix("docker compose ").removesuffix(" up -d --wait").split()
    files = {"docker-compose.yml": str(ROOT / "docker-compose.yml"), "room.yml": "room.yml"}

    def read(**environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *(files.get(word, word) for word in words), "config"],
            cwd=tmp_path, env={"PATH": os.environ["PATH"]} | environ,
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    assert "TEACHER_PASSWORD" in read().stderr, "without a password it does not start"
    merged = yaml.safe_load(read(TEACHER_PASSWORD="s3cret").stdout)
    rabbitmq = merged["services"]["rabbitmq"]
    assert [(port["host_ip"], port["target"]) for port in rabbitmq["ports"]] == [
        ("192.0.2.10", 5672),
        ("192.0.2.10", 15672),
    ]
    assert rabbitmq["environment"]["RABBITMQ_DEFAULT_USER"] == "teacher"
    assert rabbitmq["environment"]["RABBITMQ_DEFAULT_PASS"] == "s3cret"
    own = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert rabbitmq["container_name"] != own["services"]["rabbitmq"]["container_name"]
    assert merged["name"] != own["name"], "or it would use the data, and the guest, of that one"
