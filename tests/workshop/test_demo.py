"""The walk-through in a terminal: everything is shown, everything is done, nothing is left."""

import re

import pika
import pytest

from mqlab.workshop.demo import REPORTS, demo


@pytest.fixture
def shown(broker_settings, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    demo(png=tmp_path / "demo.png", duration_s=0.2)
    return capsys.readouterr().out, (tmp_path / "demo.png").read_bytes()


def test_it_shows_both_waits_each_part_of_a_send_and_the_work(shown, broker_settings):
    text, png = shown

    assert "*** [Client] Total time waited: 0.2" in text
    assert re.search(r"does the work itself +0\.2\d s\n", text)
    assert re.search(r"sends it, a new connection each +\d", text)
    assert re.search(r"sends it on an open connection +\d", text)
    for part in ("connect", "declare", "publish", "confirm"):
        assert re.search(rf"^   {part} +[\d.]+ m?s$", text, re.MULTILINE)
    sent = re.findall(r"Task ID (\w{8}) published successfully", text)
    done = re.findall(r"Task (\w{8}) done: .* at work in worker-\d, acked", text)
    assert len(sent) == len(REPORTS)
    assert sorted(sent) == sorted(done)
    assert png.startswith(b"\x89PNG")
    assert broker_settings.password not in text


def test_its_queues_are_gone_afterwards(broker_settings, monkeypatch, tmp_path):
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    monkeypatch.setattr("mqlab.workshop.demo.uuid.uuid4", lambda: type("Id", (), {"hex": "0" * 32}))
    demo(png=tmp_path / "demo.png", duration_s=0.1)

    with pika.BlockingConnection(broker_settings.parameters()) as connection:
        for end in ("", ".dead", "_repeats"):
            channel = connection.channel()
            with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
                channel.queue_declare(f"mqlab_demo_00000000{end}", passive=True)
