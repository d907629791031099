"""What README, CONTRIBUTING and CI ask people to type exists, and does what they say."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mqlab.settings import Settings
from tests.helpers import free_port

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
MQLAB = ".venv/bin/mqlab "


def commands(text: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def run(command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environ, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def run_mqlab(arguments: str, **environ: str) -> str:
    words = re.findall(r'"[^"]*"|\S+', arguments)
    ran = run([sys.executable, "-m", "mqlab", *(word.strip('"') for word in words)], **environ)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_readme_has_the_commands_that_matter() -> None:
    assert {"make lab", "make test", f"{MQLAB}lab", f"{MQLAB}doctor"} <= set(commands(README))


@pytest.mark.parametrize(
    "command", [c for c in commands(README) + commands(CONTRIBUTING) if c.startswith("make ")]
)
def test_every_make_command_has_its_target(command: str) -> None:
    ran = run(["make", "--dry-run", *command.split()[1:]])
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    "command", [c.removeprefix(MQLAB) for c in commands(README) if c.startswith(MQLAB)]
)
def test_every_mqlab_command_exists(command: str) -> None:
    options = [word for word in command.split() if word.isalpha()]
    assert "usage:" in run_mqlab(f"{' '.join(options[:2])} --help")


@pytest.mark.usefixtures("server_script")
def test_the_four_broker_commands_in_the_readme_work_one_after_the_other(tmp_path: Path) -> None:
    port = free_port()
    environ = {
        "MQLAB_BROKER": "local",
        "MQLAB_AMQP_PORT": str(port),
        "MQLAB_MANAGEMENT_PORT": str(free_port()),
        "XDG_STATE_HOME": str(tmp_path),
    }
    # The tests' AMQP_URL would override all of these.
    without_url = [sys.executable, "-c", "import os, sys; os.environ.pop('AMQP_URL', None); "]
    without_url[-1] += "os.execv(sys.executable, [sys.executable, '-m', 'mqlab', *sys.argv[1:]])"
    listed = [c.removeprefix(MQLAB).split() for c in commands(README) if f"{MQLAB}broker" in c]
    assert [words[1] for words in listed] == ["start", "status", "logs", "stop"]
    said = []
    for words in listed:
        ran = run([*without_url, *words], **environ)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        said.append(ran.stdout)
    assert f"answers at 127.0.0.1:{port} (private node on this machine)" in said[0]
    assert f"answers at 127.0.0.1:{port}" in said[1]
    assert said[2].strip()
    assert "Stopped." in said[3]


def test_the_commands_that_send_a_task_and_that_wait_for_a_report_work(
    broker_settings: Settings, queue: str
) -> None:
    environ = {"AMQP_URL": broker_settings.url}
    send, sync = (
        next(c for c in commands(README) if c.startswith(f"{MQLAB}{name}")).removeprefix(MQLAB)
        for name in ("send", "sync")
    )
    assert "published successfully" in run_mqlab(f"{send} --queue {queue}", **environ)
    assert "Total time waited: 5." in run_mqlab(sync, **environ)


def test_every_notebook_is_on_the_map_and_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert {str(p.relative_to(ROOT)) for p in ROOT.glob("notebooks/*.ipynb")} <= set(links)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_picture_is_small_has_its_description_as_alt_text_and_can_be_made_again(
    broker_settings: Settings, tmp_path: Path
) -> None:
    [(alt, name)] = re.findall(r"^!\[(.+)\]\((.+)\)$", README, re.MULTILINE)
    picture = (ROOT / name).read_bytes()
    assert len(picture) < 60_000
    # The numbers differ every run; the command writes them into the README as well.
    assert described(picture) == alt
    file = tmp_path / "again.png"
    environ = {"AMQP_URL": broker_settings.url}
    ran = run([sys.executable, "docs/picture.py", str(file)], **environ)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == described(file.read_bytes())
    numbers = r"[\d.]+ m?s"
    assert re.sub(numbers, "", described(file.read_bytes())) == re.sub(numbers, "", alt)


def described(png: bytes) -> str:
    """The description that a PNG carries."""
    with Image.open(io.BytesIO(png)) as picture:
        return str(picture.info["Description"])


def test_binder_and_codespaces_are_named_with_a_place_for_the_owner() -> None:
    assert "https://mybinder.org/v2/gh/OWNER/mqlab/" in README
    assert "https://codespaces.new/OWNER/mqlab" in README
    [page] = re.findall(r"urlpath=lab/tree/([-\w/.]+)", README)
    assert (ROOT / page.replace("my-pages/", "notebooks/")).is_file()  # the copies are made there


def test_what_the_troubleshooting_table_quotes_is_in_the_program() -> None:
    sources = [*ROOT.glob("mqlab/**/*.py"), ROOT / "Makefile"]
    said = " ".join(re.sub(r'"\s+"', "", path.read_text("utf-8")) for path in sources)
    for quoted in (
        "meant for",
        "is taken by",
        "There is no RabbitMQ here, and none of the ways to get one works",
        "class ConnectError",
        "class AccessRefused",
        "class OutcomeUnknown",
        "accepts no more connections from you",
        "could not be checked",
        "not attempted",
        "docker compose up (the first time it fetches the image) ...",
        "mqlab needs Python 3.11 or newer",
    ):
        assert quoted in said
        assert quoted.removeprefix("class ") in README


def test_ci_runs_the_readmes_own_test_command() -> None:
    script = (ROOT / ".ci/run").read_text("utf-8")
    assert "test_command=$(grep -x 'make test' README.md)" in script
    assert "\n$test_command\n" in script
    assert run(["bash", "-n", ".ci/run"]).returncode == 0


def test_the_workflow_is_valid_and_covers_what_the_readme_promises() -> None:
    path = ".github/workflows/ci.yml"
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    ran = run([*check, "vendor.github-workflows", path])
    assert ran.returncode == 0, ran.stdout
    workflow = yaml.safe_load((ROOT / path).read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow[True]["schedule"]  # YAML 1.1 reads the key `on` as true
    jobs = workflow["jobs"]
    pythons = jobs["private-broker"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13", "3.14"]
    assert len(jobs["service"]["strategy"]["matrix"]["rabbitmq"]) == 2
    assert jobs["service"]["services"]["rabbitmq"]["ports"][0] == "127.0.0.1:5673:5672"
    for job in jobs.values():
        assert job["timeout-minutes"] <= 30
        assert [step["run"] for step in job["steps"] if "run" in step]


def test_every_row_of_the_table_of_faults_has_a_test() -> None:
    table = (ROOT / "docs/faults.md").read_text("utf-8")
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert rows == list(range(1, 67))
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [row for row in rows if f"def test_row_{row:02d}_" not in tests] == []
