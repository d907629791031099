"""The morning's check: what it finds on this machine, and what it says when something is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mqlab.cli import main
from mqlab.settings import Settings
from mqlab.workshop import doctor
from tests.helpers import free_port


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker chosen, two free ports, a state folder of the test's own."""
    for name in ("AMQP_URL", "MQLAB_MANAGEMENT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MQLAB_AMQP_PORT", str(free_port()))
    monkeypatch.setenv("MQLAB_MANAGEMENT_PORT", str(free_port()))


def find(subject: str) -> doctor.Finding:
    return next(finding for finding in doctor.examine() if finding.subject == subject)


def test_it_looks_at_each_thing_and_the_status_is_0_when_what_is_needed_is_here(
    server_script: Path,
) -> None:
    assert server_script.is_file()
    ran = subprocess.run(
        [sys.executable, "-m", "mqlab", "doctor"], capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    rows = [line.split()[:2] for line in ran.stdout.splitlines() if line[:1] not in ("", " ", "E")]
    subjects = list(dict.fromkeys(subject for _, subject in rows))
    assert subjects == [
        "Python", "packages", "Docker", "RabbitMQ", "broker", "ports", "disk", "memory", "folder",
        "pages", "command", "Jupyter", "browser",
    ]  # fmt: skip
    assert {state for state, _ in rows} <= {"ok", "warn"}
    assert ["warn", "broker"] in rows
    assert "mqlab broker start" in ran.stdout


def test_a_broker_that_answers_is_fine(
    broker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    monkeypatch.setenv("MQLAB_MANAGEMENT_URL", broker_settings.management_url)
    findings = [finding for finding in doctor.examine() if finding.subject == "broker"]
    assert [finding.state for finding in findings] == ["ok", "ok"]
    assert "answers at" in findings[0].words
    assert "management UI answers" in findings[1].words


def test_a_wrong_password_fails_and_is_not_shown(
    broker_settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMQP_URL", f"amqp://guest:s3cret@{broker_settings.address}")
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "fail  broker" in output
    assert "refused the login" in output
    assert "Fix these first: broker." in output
    assert "s3cret" not in output


def test_a_management_page_that_does_not_answer_is_a_warning(
    broker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    monkeypatch.setenv("MQLAB_MANAGEMENT_URL", f"http://127.0.0.1:{free_port()}")
    assert [f.state for f in doctor.examine() if f.subject == "broker"] == ["ok", "warn"]


def test_a_taken_port_fails_with_the_command_that_chooses_another() -> None:
    with socket.create_server(("127.0.0.1", int(os.environ["MQLAB_MANAGEMENT_PORT"]))):
        ports = find("ports")
    assert ports.state == "fail"
    assert "is taken by" in ports.words
    assert "MQLAB_MANAGEMENT_PORT=" in ports.fix


def test_a_port_that_is_open_to_other_machines_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        assert doctor._reachable_at(own.getsockname()[1]) == ""
    with socket.create_server(("0.0.0.0", 0)) as everyones:
        where = doctor._reachable_at(everyones.getsockname()[1])
    if not where:
        pytest.skip("this machine has no address but loopback")
    assert not where.startswith("127.")


def test_a_package_out_of_range_fails_with_the_command_that_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requirements.txt").write_text("# wanted\n-e .\npika>=99\nno-such-package-here\n")
    monkeypatch.setattr(doctor, "HOME", tmp_path)
    packages = find("packages")
    assert packages.state == "fail"
    assert f"pika is {importlib.metadata.version('pika')}, not >=99" in packages.words
    assert "no-such-package-here is not installed" in packages.words
    assert "pip install -r requirements.txt" in packages.fix


def test_a_folder_that_jupyterlab_could_not_save_in_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("folder").state == "ok", "without notebooks here it is the checkout's"
    (tmp_path / "notebooks").mkdir()
    assert find("folder").words == f"{tmp_path} can be written"
    # The test may be run by root, who may write in any folder that is there.
    monkeypatch.setattr(doctor.pages, "find_root", lambda: tmp_path / "gone")
    found = find("folder")
    assert found.state == "fail"
    assert "cannot be written" in found.words


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GB free" in find("memory").words
    monkeypatch.setattr(doctor, "ENOUGH_MEMORY_MB", 1e9)
    assert find("memory").state == "warn"


def test_without_any_way_to_start_a_broker_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists():
        pytest.skip("RabbitMQ is installed here, outside PATH")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find("RabbitMQ").state == "fail"
    assert "not installed" in find("Docker").words
