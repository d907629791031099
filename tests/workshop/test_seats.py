"""A broker that a room shares: what a login may and may not do, and that only ours is removed."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import urllib.error
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mqlab import BackgroundConsumer, Producer
from mqlab.cli import main
from mqlab.connection import handshake
from mqlab.errors import AccessRefused, ConnectError, SettingsError
from mqlab.settings import Settings
from mqlab.workshop import seats as room
from tests.helpers import eventually, free_port, management, raw_channel


@pytest.fixture
def name(broker_settings: Settings) -> Iterator[str]:
    """The name of a room of this test's own, which is removed afterwards."""
    name = f"t{uuid.uuid4().hex[:8]}"
    yield name
    room.remove(name, settings=broker_settings, say=lambda _line: None)
    assert not [n for n in names_on(broker_settings) if n.startswith(name)]


def names_on(settings: Settings) -> set[str]:
    kinds = ("users", "vhosts")
    return {each["name"] for kind in kinds for each in management(settings, kind)}


def make(settings: Settings, name: str, seats: int, file: Path, **options: bool) -> list[Settings]:
    """Make a room, and read each login from its slip as an attendee does."""
    room.create(
        seats, host="127.0.0.1", name=name, file=file, settings=settings,
        say=lambda _line: None, **options,
    )  # fmt: skip
    text = file.read_text("utf-8")
    urls = re.findall(r"^ +export AMQP_URL=(\S+)$", text, re.MULTILINE)
    pages = re.findall(r"^ +export MQLAB_MANAGEMENT_URL=(\S+)$", text, re.MULTILINE)
    return [
        Settings.from_url(url, management_url=page)
        for url, page in zip(urls, pages, strict=True)
    ]  # fmt: skip


def test_each_attendee_comes_into_one_virtual_host_and_no_other(
    broker_settings: Settings, name: str, tmp_path: Path
) -> None:
    first, second = make(broker_settings, name, 2, tmp_path / "slips")
    assert first.virtual_host == f"{name}-01"
    handshake(first)
    handshake(second)
    for forbidden in ("/", second.virtual_host):
        with pytest.raises(AccessRefused):
            handshake(replace(first, virtual_host=forbidden))
    with pytest.raises(AccessRefused):
        handshake(replace(first, password=second.password))


def test_on_the_management_page_an_attendee_sees_and_closes_its_own_and_changes_no_rights(
    broker_settings: Settings, name: str, tmp_path: Path
) -> None:
    first, second = make(broker_settings, name, 2, tmp_path / "slips")
    assert [each["name"] for each in management(first, "vhosts")] == [first.virtual_host]
    with raw_channel(first), raw_channel(second):
        seen = eventually(lambda: management(first, "connections"), 15)
        assert {each["vhost"] for each in seen} == {first.virtual_host}
        others = eventually(lambda: management(second, "connections"), 15)
        for path in (
            f"connections/{others[0]['name'].replace(' ', '%20').replace('>', '%3E')}",
            f"vhosts/{second.virtual_host}",
            f"users/{first.username}",
            f"vhost-limits/{first.virtual_host}/max-queues",
        ):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                management(first, path, "DELETE")
    with raw_channel(first) as channel:
        own = eventually(
            lambda: [c for c in management(first, "connections") if c["name"] != seen[0]["name"]],
            15,
        )
        path = own[0]["name"].replace(" ", "%20").replace(">", "%3E")
        management(first, f"connections/{path}", "DELETE")
        eventually(lambda: not still_open(channel), 10)


def still_open(channel: object) -> bool:
    connection = channel.connection  # type: ignore[attr-defined]
    try:
        connection.process_data_events()
    except Exception:
        return False
    return bool(connection.is_open)


def test_producer_and_consumer_work_with_nothing_but_the_slip(
    broker_settings: Settings, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [seat] = make(broker_settings, name, 1, tmp_path / "slips")
    monkeypatch.setenv("AMQP_URL", seat.url)
    with BackgroundConsumer(lambda task: task.data, queue="tasks") as consumer:
        with Producer("tasks") as producer:
            sent = producer.send("a report")
        [record] = consumer.wait(1, timeout_s=10, show_progress=False)
    assert (record.task_id, record.result) == (sent.task_id, "a report")
    seats = eventually(
        lambda: [s for s in room.look(name, settings=broker_settings) if s.queues], 15
    )
    assert [s.name for s in seats] == [f"{name}-01"]


def test_one_attendee_cannot_take_the_broker_from_the_others(
    broker_settings: Settings, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LIMITS", {"max-connections": 3, "max-queues": 2})
    first, second = make(broker_settings, name, 2, tmp_path / "slips")
    with raw_channel(first) as channel, raw_channel(first), raw_channel(first):
        with pytest.raises(ConnectError, match="accepts no more connections") as refused:
            handshake(first)
        assert not isinstance(refused.value, AccessRefused), "one day there is room again"
        handshake(second)
        channel.queue_declare("one")
        channel.queue_declare("two")
        with pytest.raises(Exception, match="queue limit"):
            channel.queue_declare("three")


def test_the_real_limits_are_set(broker_settings: Settings, name: str, tmp_path: Path) -> None:
    make(broker_settings, name, 1, tmp_path / "slips")
    [limits] = management(broker_settings, f"vhost-limits/{name}-01")
    assert limits["value"] == room.LIMITS


def test_the_commands_show_no_password_and_the_file_is_the_teachers_alone(
    broker_settings: Settings, name: str, tmp_path: Path
) -> None:
    def run(*words: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "mqlab", "room", *words, "--name", name],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
            env={
                "AMQP_URL": broker_settings.url,
                "MQLAB_MANAGEMENT_URL": broker_settings.management_url,
            },
        )  # fmt: skip
        return ran.stdout + ran.stderr

    said = run("create", "2", "--host", "127.0.0.1")
    file = tmp_path / f"mqlab-{name}.txt"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text("utf-8")
    passwords = re.findall(r"password (\S+)$", text, re.MULTILINE)
    assert len(set(passwords)) == 2
    for variable in ("AMQP_URL", "MQLAB_MANAGEMENT_URL"):
        assert len(re.findall(rf'^ +\$env:{variable} = "\S+"$', text, re.MULTILINE)) == 2
    said += run("list")
    assert f"{name}-02" in said
    assert "2 seats" in said
    said += run("remove")
    assert f"Removed, each with its virtual host and user: {name}-01, {name}-02." in said
    assert f"mqlab-{name}.txt" in said
    assert not [password for password in passwords if password in said]


def test_a_second_run_keeps_each_login_and_adds_the_seats_that_are_new(
    broker_settings: Settings, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "slips"
    before = make(broker_settings, name, 2, file)
    with raw_channel(before[0]) as channel:
        channel.queue_declare("work")
    after = make(broker_settings, name, 3, file)
    assert after[:2] == before
    assert [seat.username for seat in after] == [f"{name}-0{n}" for n in (1, 2, 3)]
    with raw_channel(before[0]) as channel:
        channel.queue_declare("work", passive=True)
    assert make(broker_settings, name, 1, file) == after, "a smaller room takes no seat away"


def test_an_interrupted_run_is_finished_by_the_next_one(
    broker_settings: Settings, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "slips"
    complete = room._Api.make

    def interrupted(api: room._Api, seat: Settings) -> None:
        if seat.username.endswith("02"):
            raise KeyboardInterrupt
        complete(api, seat)

    with monkeypatch.context() as patch:
        patch.setattr(room._Api, "make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(broker_settings, name, 3, file)
    for seat in make(broker_settings, name, 3, file):
        handshake(seat)


def test_new_passwords_are_for_everybody_and_only_on_request(
    broker_settings: Settings, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "slips"
    before = make(broker_settings, name, 2, file)
    file.unlink()
    with pytest.raises(SettingsError, match=f"{name}-01 has a login already"):
        make(broker_settings, name, 2, file)
    assert not file.exists()
    handshake(before[0])
    after = make(broker_settings, name, 1, file, new_passwords=True)
    assert len(after) == 2, "nobody is left with a login that nobody knows"
    handshake(after[1])
    with pytest.raises(AccessRefused):
        handshake(before[1])


def test_a_file_that_is_none_of_its_own_is_left_alone(
    broker_settings: Settings, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my notes")
    for new in (False, True):
        with pytest.raises(SettingsError, match="left alone"):
            make(broker_settings, name, 1, file, new_passwords=new)
    assert file.read_text() == "my notes"
    slips = tmp_path / "slips"
    make(broker_settings, name, 1, slips)
    text = slips.read_text("utf-8")
    with pytest.raises(SettingsError, match="another room's"):
        room.create(1, host="192.0.2.1", name=name, file=slips, settings=broker_settings)
    assert slips.read_text("utf-8") == text


def test_remove_leaves_what_it_did_not_make(
    broker_settings: Settings, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(broker_settings, name, 1, tmp_path / "slips")
    make(broker_settings, f"{name}b", 1, tmp_path / "others")
    others = [f"vhosts/{name}-02", f"users/{name}-02", f"vhosts/{name}-old"]
    for path in others:
        body = {"password": "x", "tags": "management"} if "users" in path else {}
        management(broker_settings, path, "PUT", body)
    before = names_on(broker_settings)
    try:
        with pytest.raises(SettingsError, match=f"{name}-02 is on this broker already"):
            make(broker_settings, name, 2, tmp_path / "slips")
        room.remove(name, settings=broker_settings)
        assert names_on(broker_settings) == before - {f"{name}-01"}
        assert f"{name}-02" not in capsys.readouterr().out
        room.remove(name, settings=broker_settings)
        assert "nothing to remove" in capsys.readouterr().out
    finally:
        for path in others:
            management(broker_settings, path, "DELETE")
        room.remove(f"{name}b", settings=broker_settings)


def test_it_takes_an_administrator_and_says_so(
    broker_settings: Settings, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    [seat] = make(broker_settings, name, 1, tmp_path / "slips")
    monkeypatch.setenv("MQLAB_MANAGEMENT_URL", broker_settings.management_url)
    for login in (seat, replace(broker_settings, password="wr0ng")):
        monkeypatch.setenv("AMQP_URL", login.url)
        for words in (["create", "1", "--host", "127.0.0.1"], ["list"], ["remove"]):
            assert main(["room", *words, "--name", name]) == 1
            said = capsys.readouterr().err
            assert "Only an administrator can create seats" in said
            assert login.password not in said
    handshake(seat)


def test_an_address_that_no_attendee_could_use_is_refused_in_words(
    broker_settings: Settings, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "slips"
    with pytest.raises(SettingsError, match="the attendee's own machine"):
        room.create(1, name=name, file=file, settings=broker_settings)
    nobody = replace(broker_settings, management_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectError, match="No management API answers"):
        make(nobody, name, 1, file)
    assert not file.exists()
    # The page is where it should be, and AMQP does not answer at the address on the slips.
    moved = replace(broker_settings, port=free_port())
    with pytest.raises(ConnectError, match=f"{name}-01 cannot connect to"):
        make(moved, name, 1, file)


@pytest.mark.parametrize(("seats", "wrong"), [(0, None), (100, None), (1, "A Room"), (1, "x" * 30)])
def test_a_size_or_a_name_that_cannot_be_is_refused(
    broker_settings: Settings, name: str, tmp_path: Path, seats: int, wrong: str | None
) -> None:
    with pytest.raises(SettingsError):
        make(broker_settings, wrong or name, seats, tmp_path / "slips")


@pytest.mark.parametrize(
    ("url", "page", "host", "expected"),
    [
        ("amqp://t:p@127.0.0.1:5673/%2F", "http://127.0.0.1:15673", "192.0.2.1",
         ("192.0.2.1:5673", "http://192.0.2.1:15673")),
        ("amqps://t:p@localhost/%2F", "https://localhost/mq", "mq.example",
         ("mq.example:5671", "https://mq.example/mq")),
        ("amqp://t:p@127.0.0.1/%2F", "http://127.0.0.1:15672", "2001:db8::1",
         ("[2001:db8::1]:5672", "http://[2001:db8::1]:15672")),
        ("amqp://t:p@mq.example/%2F", "http://other:15672", None,
         ("mq.example:5672", "http://other:15672")),
    ],
)  # fmt: skip
def test_the_slips_have_the_addresses_that_attendees_see(
    url: str, page: str, host: str | None, expected: tuple[str, str]
) -> None:
    seen = room._as_seen(Settings.from_url(url, management_url=page), host)
    assert (seen.address, seen.management_url) == expected
