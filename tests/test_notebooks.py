"""Every committed notebook: executed, repeatable, leaving nothing behind, and fit to be read."""

from __future__ import annotations

import configparser
import copy
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from mqlab.settings import Settings
from tests.helpers import eventually, management

ROOT = Path(__file__).parents[1]
SANITIZE = ROOT / "tests/nbval_sanitize.cfg"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

LIMIT_S = 90.0
RUN_TWICE = ["00_start_here", "04_background_consumer"]
PROVEN_TO_BITE = ["02_sync_experiment"]
PICTURE = re.compile(r"(?<=base64,)[A-Za-z0-9+/=]+|(?<=\"image/png\": \")[^\"]+")
SECRETS = {
    "a path of the machine": r"/(home|root|Users|work|tmp|private|var/folders)/\w|[A-Z]:\\\\\w",
    "a token": r"token[=: \"]+[0-9a-f]{16}",
    "a URL with a password": r"amqps?://(?!guest:guest@|user:password@)[^\s/@\"]+:[^\s/@\"]+@",
}


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return notebook


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def markdown(notebook: dict[str, Any]) -> str:
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def run_nbval(path: Path, settings: Settings, *options: str) -> subprocess.CompletedProcess[str]:
    """Run nbval as CONTRIBUTING shows it, in a process of its own, against the tests' broker."""
    environ = os.environ | {
        "AMQP_URL": settings.url,
        "MQLAB_MANAGEMENT_URL": settings.management_url,
    }
    return subprocess.run(
        [
            *[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
            *["--nbval", "--nbval-current-env", "--nbval-cell-timeout=60"],
            *["--nbval-sanitize-with", str(SANITIZE), "--rootdir", str(ROOT), *options, str(path)],
        ],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=LIMIT_S + 60, check=False,
    )  # fmt: skip


def names_on(settings: Settings, what: str) -> set[str]:
    """Names of the queues, connections or consumers that the broker has, by its management API."""
    found = management(settings, what)
    return {str(each.get("name") or each["consumer_tag"]) for each in found}


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS[0].stem == "00_start_here"


@every_notebook
def test_notebook_is_committed_as_executed_without_an_error(path: Path) -> None:
    notebook = read(path)
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert len(counts) > 0
    assert not [out for out in outputs(notebook) if out["output_type"] == "error"]
    assert not [out for out in outputs(notebook) if out.get("name") == "stderr"]


@every_notebook
@pytest.mark.timeout(LIMIT_S * 3)
def test_notebook_gives_the_same_again_and_leaves_nothing(
    path: Path, broker_settings: Settings
) -> None:
    queues = names_on(broker_settings, "queues")
    connections = names_on(broker_settings, "connections")
    for _ in range(2 if path.stem in RUN_TWICE else 1):
        started = time.monotonic()
        ran = run_nbval(path, broker_settings, "-x")
        if ran.returncode != 0:
            pytest.fail(ran.stdout[-6000:], pytrace=False)
        assert f"{len(code_cells(read(path)))} passed" in ran.stdout
        assert time.monotonic() - started < LIMIT_S
        # A page may remove what an interrupted run of it has left behind.
        assert names_on(broker_settings, "queues") <= queues
        # The management API reports a closed connection a little later.
        eventually(lambda: names_on(broker_settings, "connections") <= connections, 15)
        eventually(lambda: not names_on(broker_settings, "consumers"), 15)


@pytest.mark.parametrize("name", PROVEN_TO_BITE)
@pytest.mark.timeout(LIMIT_S * 2)
def test_the_comparison_bites(name: str, broker_settings: Settings, tmp_path: Path) -> None:
    """Each printing cell of a copy gets one fault; nbval must fail each of them, and no other."""
    notebook = copy.deepcopy(read(ROOT / "notebooks" / f"{name}.ipynb"))
    faults: dict[str, str] = {}
    for number, cell in enumerate(code_cells(notebook)):
        printed = "".join("".join(o["text"]) for o in cell["outputs"] if o.get("name") == "stdout")
        for kind in sorted(FAULTS, key=list(faults.values()).count):  # the rarest so far first
            text = sanitize(printed)
            if (wrong := FAULTS[kind](text)) != text:
                rest = [output for output in cell["outputs"] if output.get("name") != "stdout"]
                stream = {"output_type": "stream", "name": "stdout", "text": wrong}
                cell["outputs"] = [stream, *rest]
                faults[f"Cell {number}"] = kind
                break
    assert set(faults.values()) == set(FAULTS)
    broken = tmp_path / f"{name}.ipynb"
    broken.write_text(json.dumps(notebook), "utf-8")
    ran = run_nbval(broken, broker_settings, f"--junitxml={tmp_path / 'result.xml'}")
    cases = list(ET.parse(tmp_path / "result.xml").iter("testcase"))
    assert len(cases) == len(code_cells(notebook)), ran.stdout[-3000:]
    failed = {case.attrib["name"] for case in cases if case.find("failure") is not None}
    assert failed == set(faults)


def sanitize(text: str) -> str:
    """Sanitize a text as nbval does before it compares: a fault must be in what is left."""
    rules = configparser.RawConfigParser()
    rules.read(SANITIZE)
    for section in rules.sections():
        text = re.sub(rules[section]["regex"], rules[section]["replace"], text)
    return text


def change_a_number(text: str) -> str:
    return re.sub(r"\d", lambda found: str((int(found[0]) + 1) % 10), text, count=1)


def drop_a_line(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(lines[:-1]) if len(lines) > 1 else text


def swap_two_lines(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:-2], lines[-1], lines[-2]]) if len(lines) > 1 else text


FAULTS = {
    "a number is another": change_a_number,
    "a line is missing": drop_a_line,
    "two lines are swapped": swap_two_lines,
}


@every_notebook
def test_code_cells_are_short(path: Path) -> None:
    sources = ["".join(cell["source"]) for cell in code_cells(read(path))]
    lengths = [len([line for line in s.splitlines() if line.strip()]) for s in sources]
    assert 1 <= median(lengths) <= 6
    assert max(lengths) <= 15


@every_notebook
def test_every_picture_has_alt_text_and_is_there_as_png_too(path: Path) -> None:
    notebook = read(path)
    data = [output.get("data", {}) for output in outputs(notebook)]
    for each in data:
        # JupyterLab shows no alt text for image/png; viewers that strip HTML show only image/png.
        html = "".join(each.get("text/html", ""))
        in_html = re.findall(r' src="data:image/png;base64,([^"]+)"', html)
        assert in_html == [each[kind].strip() for kind in each if kind.startswith("image/")], (
            "show a picture with mqlab.measure.plots.show"
        )
    html = ["".join(each.get("text/html", "")) for each in data]
    for image in re.findall(r"<img\b[^>]*>", "\n".join([*html, markdown(notebook)])):
        alt = re.search(r'\balt="([^"]+)"', image)
        assert alt, image[:200]
        assert len(alt[1].split()) > 3, alt[1]
    for alt_text in re.findall(r"!\[([^\]]*)\]\(", markdown(notebook)):
        assert len(alt_text.split()) > 3


@every_notebook
def test_notebook_holds_no_secrets_and_no_paths_of_a_machine(path: Path) -> None:
    text = PICTURE.sub("", path.read_text("utf-8"))
    for what, pattern in SECRETS.items():
        assert not re.search(pattern, text), what


@pytest.mark.parametrize(
    "text",
    [
        "/home/ann/x",
        "/tmp/pytest-1",
        "C:\\\\Users\\\\ann",
        "?token=0123456789abcdef01",
        "amqp://a:b@h",
    ],
)
def test_the_scan_finds_what_it_is_for(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in SECRETS.values())


@every_notebook
def test_diagrams_are_mermaid_and_links_lead_somewhere(path: Path) -> None:
    text = markdown(read(path))
    fences = re.findall(r"^```(\S*)\n.*?^```$", text, re.MULTILINE | re.DOTALL)
    assert set(fences) <= {"mermaid", "python", "bash", "sh", "text", "json", "yaml", "powershell"}
    for link in re.findall(r"\]\((?!https?:|#|mailto:|attachment:)([^)#\s]+)", text):
        assert (path.parent / link).exists(), link


@every_notebook
def test_what_a_page_points_to_in_the_library_is_there(path: Path) -> None:
    text = markdown(read(path))
    sources = {p.relative_to(ROOT).as_posix(): p.read_text() for p in ROOT.glob("mqlab/**/*.py")}
    for name, file in re.findall(r"`(?:\w+\.)*(\w+)` in [`\[](mqlab/[\w/]+\.py)", text):
        assert re.search(rf"(def|class) {name}\b", sources[file]), (name, file)
    for name in re.findall(r"`(_\w+)`", text):
        assert re.search(rf"def {name}\(", "".join(sources.values())), name
