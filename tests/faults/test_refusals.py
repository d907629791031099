"""What the broker refuses reaches the caller, in the broker's own words, and soon."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from mqlab import BackgroundConsumer, Producer, Task, send_task_to_queue
from mqlab.cli import main
from mqlab.errors import MqlabError, QueueMismatch, Rejected
from mqlab.exercises.engine.wire import Proxy
from mqlab.settings import Settings
from tests.conftest import PrivateBroker
from tests.faults.tools import (
    Inventory,
    publish,
    set_rights,
    task_body,
    user,
    virtual_host,
    wait_for_outcomes,
    within,
)
from tests.helpers import (
    depth,
    eventually,
    free_port,
    management,
    rabbitmqctl,
    raw_channel,
    take_all,
)

SOON_S = 4.0
"""Two seconds, and as much again for a loaded machine. Nothing was to be waited for at all."""


def quickly(task: Task) -> object:
    return task.data


def assert_refused(function: Callable[[], object], *words: str) -> MqlabError:
    """It raises within the time, in words that hold the broker's, and shows no password."""
    started = time.monotonic()
    with pytest.raises(MqlabError) as caught:
        within(15, function)
    took_s = time.monotonic() - started
    print(f"{took_s:.2f} s: {caught.value}")
    text = str(caught.value)
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    assert "next:" in text
    assert "topsecret" not in text
    assert took_s < SOON_S
    return caught.value


# ---- row 42: the channel is refused while it is set up


@contextlib.contextmanager
def no_configure(settings: Settings, queue: str) -> Iterator[tuple[Settings, str]]:
    with user(settings, configure="^$") as theirs:
        yield theirs, f"access to queue '{queue}' in vhost '/' refused for user"


@contextlib.contextmanager
def no_read(settings: Settings, queue: str) -> Iterator[tuple[Settings, str]]:
    publish(settings, queue)
    with user(settings, read="^$") as theirs:
        yield theirs, f"access to queue '{queue}' in vhost '/' refused for user"


@contextlib.contextmanager
def no_write(settings: Settings, _queue: str) -> Iterator[tuple[Settings, str]]:
    with user(settings, write="^$") as theirs:
        yield theirs, "access to exchange 'amq.default' in vhost '/' refused for user"


@contextlib.contextmanager
def no_rights(settings: Settings, queue: str) -> Iterator[tuple[Settings, str]]:
    publish(settings, queue)
    with user(settings, configure="^$", write="^$", read="^$") as theirs:
        yield theirs, f"access to queue '{queue}' in vhost '/' refused for user"


@contextlib.contextmanager
def queue_quota(settings: Settings, _queue: str) -> Iterator[tuple[Settings, str]]:
    with virtual_host(settings) as theirs:
        path = f"vhost-limits/{theirs.virtual_host}/max-queues"
        management(settings, path, "PUT", {"value": 0})
        yield theirs, "queue limit in vhost"


@contextlib.contextmanager
def exclusive_queue(settings: Settings, queue: str) -> Iterator[tuple[Settings, str]]:
    with raw_channel(settings) as channel:
        channel.queue_declare(queue, durable=True, exclusive=True)
        yield settings, f"cannot obtain exclusive access to locked queue '{queue}'"
        channel.queue_delete(queue)  # else the broker deletes it some time after the connection


@contextlib.contextmanager
def exclusive_consumer(settings: Settings, queue: str) -> Iterator[tuple[Settings, str]]:
    with raw_channel(settings) as channel:
        channel.queue_declare(queue, durable=True)
        channel.basic_consume(queue, lambda *_: None, exclusive=True)
        yield settings, f"queue '{queue}' in vhost '/' in exclusive use"


@contextlib.contextmanager
def missing_queue(settings: Settings, queue: str) -> Iterator[tuple[Settings, str]]:
    yield settings, f"no queue '{queue}' in vhost '/'"


Refusal = Callable[[Settings, str], "contextlib.AbstractContextManager[tuple[Settings, str]]"]
PRODUCING: list[Refusal] = [no_configure, no_write, no_rights, queue_quota, exclusive_queue]
CONSUMING: list[Refusal] = [
    no_configure,
    no_read,
    no_rights,
    queue_quota,
    exclusive_queue,
    exclusive_consumer,
]


@pytest.mark.parametrize("refusal", PRODUCING)
def test_row_42_a_producer_that_is_refused_says_what_the_broker_said(
    broker_settings: Settings, queue: str, refusal: Refusal
) -> None:
    def open_and_send(settings: Settings) -> None:
        with Producer(queue, settings=settings) as producer:
            producer.send("x")

    with refusal(broker_settings, queue) as (settings, words):
        inventory = Inventory.take(settings)
        assert_refused(lambda: open_and_send(settings), words)
        inventory.assert_restored("after the refusal", within_s=3)


@pytest.mark.parametrize("refusal", CONSUMING)
def test_row_42_a_consumer_that_is_refused_says_what_the_broker_said(
    broker_settings: Settings, queue: str, refusal: Refusal
) -> None:
    with refusal(broker_settings, queue) as (settings, words):
        inventory = Inventory.take(settings)
        consumer = BackgroundConsumer(quickly, queue=queue, settings=settings)
        assert_refused(consumer.start, words)
        inventory.assert_restored("after the refusal", within_s=3)
        assert consumer.status().state != "running"


def test_row_42_a_consumer_of_a_queue_that_is_not_there_says_so(
    broker_settings: Settings, queue: str
) -> None:
    with missing_queue(broker_settings, queue) as (settings, words):
        consumer = BackgroundConsumer(quickly, queue=queue, settings=settings, declare=False)
        assert_refused(consumer.start, words)


def test_row_42_a_reserved_name_is_refused_in_words(broker_settings: Settings) -> None:
    for function in (
        lambda: Producer("amq.mine", settings=broker_settings),
        lambda: BackgroundConsumer(queue="amq.mine", settings=broker_settings).start(),
    ):
        assert_refused(function, "reserved")


@pytest.mark.parametrize("refusal", [no_configure, no_write, queue_quota])
def test_row_42_so_do_send_task_to_queue_and_the_command(
    broker_settings: Settings,
    queue: str,
    refusal: Refusal,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with refusal(broker_settings, queue) as (settings, words):
        assert_refused(lambda: send_task_to_queue("x", queue=queue, settings=settings), words)
        monkeypatch.setenv("AMQP_URL", settings.url)
        started = time.monotonic()
        assert main(["send", "x", "--queue", queue]) == 1
        assert time.monotonic() - started < SOON_S
        assert words in capsys.readouterr().err


# ---- row 43: a right is withdrawn while it works


class Frames:
    """Counts by name what a client has sent through a proxy."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, str]] = []

    def __call__(self, _connection: int, from_client: bool, frame: Any) -> None:
        method = getattr(frame, "method", None)
        if method is not None:
            side = "" if from_client else "broker "
            self.seen.append((time.monotonic(), f"{side}{method.NAME}"))

    def count(self, name: str, since: float = 0.0) -> int:
        return sum(seen == name and at >= since for at, seen in list(self.seen))


def test_row_43_a_producer_whose_right_to_write_is_withdrawn_says_so_and_recovers(
    broker_settings: Settings, queue: str
) -> None:
    frames = Frames()
    with user(broker_settings) as theirs, Proxy(theirs, on_frame=frames) as proxy:
        inventory = Inventory.take(proxy.settings)
        with Producer(queue, settings=proxy.settings) as producer:
            producer.send("while it may")
            set_rights(broker_settings, theirs, write="^$")
            proxy.cut()  # the broker asks again for a new channel only
            since = time.monotonic()
            eventually(lambda: producer.status().reconnected)
            words = "access to exchange 'amq.default' in vhost '/' refused for user"
            for _ in range(3):
                assert_refused(lambda: producer.send("x"), words)
            assert words in producer.status().trouble
            time.sleep(max(0.0, since + 5 - time.monotonic()))  # so long is counted
            opened = frames.count("Channel.Open", since)
            print(f"{opened} channels in 5 s")
            assert opened <= 12
            set_rights(broker_settings, theirs)
            eventually(lambda: sends(producer), within_s=15)
            assert producer.status().trouble == ""
        inventory.assert_restored()


def sends(producer: Producer) -> bool:
    try:
        producer.send("again")
    except MqlabError:
        return False
    return True


def test_row_43_a_send_that_waits_when_the_right_goes_is_refused_at_once(
    broker_settings: Settings, queue: str
) -> None:
    """Many callers wait on one channel; each hears what the broker said."""
    with (
        user(broker_settings) as theirs,
        Proxy(theirs) as proxy,
        Producer(queue, settings=proxy.settings) as producer,
    ):
        producer.send("while it may")
        set_rights(broker_settings, theirs, write="^$")
        proxy.cut()
        errors: list[str] = []

        def send() -> None:
            try:
                producer.send("x", timeout_s=20)
            except MqlabError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        for thread in threads:
            thread.join(25)
        assert time.monotonic() - started < 2 * SOON_S
        assert len(errors) == 4
        # One for the cut, one that all four shared, and one for each: none is spent in vain.
        assert producer.status().reconnected <= 6
        assert all("refused for user" in error for error in errors), errors


def test_row_43_a_consumer_whose_right_to_read_is_withdrawn_says_so_and_recovers(
    broker_settings: Settings, queue: str
) -> None:
    frames = Frames()
    with user(broker_settings) as theirs, Proxy(theirs, on_frame=frames) as proxy:
        consumer = BackgroundConsumer(quickly, queue=queue, settings=proxy.settings).start()
        publish(broker_settings, queue, task_body("while-it-may"))
        wait_for_outcomes(consumer, {"while-it-may": "done"}, within_s=10)
        set_rights(broker_settings, theirs, read="^$")
        since = time.monotonic()
        proxy.cut()
        words = f"access to queue '{queue}' in vhost '/' refused for user"
        eventually(lambda: words in consumer.status().trouble or consumer.status().error)
        time.sleep(max(0.0, since + 5 - time.monotonic()))  # so long is counted
        opened = frames.count("Channel.Open", since)
        print(f"{opened} channels in 5 s, {consumer.status()}")
        assert opened <= 12
        status = consumer.status()
        assert status.state == "reconnecting"
        assert words in status.trouble
        assert words in repr(status)
        set_rights(broker_settings, theirs)
        publish(broker_settings, queue, task_body("may-again"))
        wait_for_outcomes(consumer, {"may-again": "done"}, within_s=15)
        assert consumer.status().trouble == ""
        consumer.stop()


@pytest.mark.parametrize("right", ["write", "configure"])
def test_row_43_a_dead_queue_that_may_not_be_written_does_not_stop_the_good_tasks(
    broker_settings: Settings, queue: str, right: str
) -> None:
    """With no right to write no copy can be published; with none to configure, no queue is made."""
    frames = Frames()
    rights = {"write": "^$"} if right == "write" else {"configure": f"^{queue}$"}
    publish(broker_settings, queue)
    with (
        user(broker_settings, **rights) as theirs,
        Proxy(theirs, on_frame=frames) as proxy,
        BackgroundConsumer(
            quickly, queue=queue, settings=proxy.settings, max_attempts=1
        ) as consumer,
    ):
        since = time.monotonic()
        publish(broker_settings, queue, b"junk", task_body("good-0"))
        wait_for_outcomes(consumer, {"good-0": "done"}, within_s=10)
        good = {f"good-{n}": "done" for n in range(1, 11)}
        publish(broker_settings, queue, *map(task_body, good))
        wait_for_outcomes(consumer, good, within_s=10)
        eventually(lambda: "refused for user" in consumer.status().trouble)
        time.sleep(max(0.0, since + 6 - time.monotonic()))  # so long is counted
        status = consumer.status()
        channels = frames.count("Channel.Open", since)
        deliveries = frames.count("broker Basic.Deliver", since)
        print(f"{channels} channels and {deliveries} deliveries in 6 s, {status}")
        assert deliveries <= 11 + 15
        assert channels <= 15
        # It is kept until it can be moved.
        set_rights(broker_settings, theirs)
        eventually(lambda: depth_of_dead(broker_settings, queue) == 1, within_s=20)
    assert take_all(broker_settings, queue) == []


def depth_of_dead(settings: Settings, queue: str) -> int:
    try:
        return depth(settings, f"{queue}.dead")
    except pika.exceptions.ChannelClosedByBroker:
        return 0


@pytest.mark.parametrize("lost_at", ["Basic.ConsumeOk", "Confirm.SelectOk"])
def test_row_43_a_connection_that_is_lost_whenever_it_is_ready_backs_off(
    broker_settings: Settings, queue: str, lost_at: str
) -> None:
    """Each one was opened, and the pause grows all the same."""
    proxy_of: list[Proxy] = []
    cutting = threading.Event()

    def cut(_connection: int, from_client: bool, frame: Any) -> None:
        name = getattr(getattr(frame, "method", None), "NAME", "")
        if not from_client and name == lost_at and cutting.is_set():
            threading.Timer(0.02, proxy_of[0].cut).start()

    with Proxy(broker_settings, on_frame=cut) as proxy:
        proxy_of.append(proxy)
        made: Any
        if lost_at == "Basic.ConsumeOk":
            made = BackgroundConsumer(quickly, queue=queue, settings=proxy.settings).start()
        else:
            made = Producer(queue, settings=proxy.settings)
        cutting.set()
        before = proxy.accepted
        proxy.cut()
        time.sleep(5)  # so long is counted
        opened = proxy.accepted - before
        print(f"{opened} connections in 5 s")
        assert 2 <= opened <= 12
        cutting.clear()
        eventually(lambda: made.status().state in ("running", "connected"), within_s=10)
        within(10, made.stop if isinstance(made, BackgroundConsumer) else made.close)


# ---- row 51: the dead queue is full and refuses


def test_row_51_a_full_dead_queue_does_not_stop_the_good_tasks(
    broker_settings: Settings, queue: str
) -> None:
    with raw_channel(broker_settings) as channel:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare(f"{queue}.dead", durable=True, arguments=arguments)
    frames = Frames()
    with (
        Proxy(broker_settings, on_frame=frames) as proxy,
        BackgroundConsumer(quickly, queue=queue, settings=proxy.settings) as consumer,
    ):
        good = {f"good-{n}": "done" for n in range(10)}
        publish(broker_settings, queue, b"one", b"two", b"three", *map(task_body, good))
        wait_for_outcomes(consumer, good, within_s=10)
        assert frames.count("broker Basic.Nack") >= 1, "the dead queue was not full"
        eventually(lambda: f"{queue}.dead" in consumer.status().trouble)
        assert consumer.status().state == "running"
        assert f"{queue}.dead" in repr(consumer.status())
        found: list[bytes] = []
        # Whenever there is room, the next one goes there.
        deadline = time.monotonic() + 30
        while len(found) < 3 and time.monotonic() < deadline:
            found += [body for _, _, body in take_all(broker_settings, f"{queue}.dead")]
            time.sleep(0.05)
        assert sorted(found) == [b"one", b"three", b"two"]
        eventually(lambda: consumer.status().trouble == "")
    assert take_all(broker_settings, queue) == []


# ---- row 49: larger than the broker takes


@pytest.fixture
def small_messages_only(own_node: PrivateBroker) -> Iterator[PrivateBroker]:
    set_max_message_size(own_node, 65_536)
    yield own_node
    set_max_message_size(own_node, 134_217_728)


def set_max_message_size(broker: PrivateBroker, size: int) -> None:
    """3.10 reads it from the application, 4.x keeps it in a place of its own."""
    rabbitmqctl(
        broker.node,
        "eval",
        f"application:set_env(rabbit, max_message_size, {size}), "
        f"persistent_term:put(max_message_size, {size}).",
    )


def test_row_49_a_message_over_the_brokers_limit_is_rejected_and_the_others_go_on(
    small_messages_only: PrivateBroker,
) -> None:
    settings, queue, frames = small_messages_only.settings, "row-49", Frames()
    end = threading.Event()
    took: list[float] = []
    errors: list[str] = []
    with (
        Proxy(settings, on_frame=frames) as proxy,
        Producer(queue, settings=proxy.settings) as producer,
    ):

        def go_on() -> None:
            while not end.is_set():
                started = time.monotonic()
                try:
                    producer.send("small")
                except MqlabError as error:
                    errors.append(str(error))
                took.append(time.monotonic() - started)

        threads = [threading.Thread(target=go_on) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(took) > 100)
        before = len(took)
        error = assert_refused(
            lambda: producer.send("x" * 200_000), "larger than configured max size"
        )
        assert isinstance(error, Rejected)
        assert list(error.outcomes.values()) == ["rejected"]  # type: ignore[attr-defined]
        time.sleep(3)  # so long is counted
        during = took[before:]
        end.set()
        for thread in threads:
            thread.join(20)
        closed = frames.count("broker Channel.Close")
        print(
            f"{len(during)} sends since, the slowest {max(during):.2f} s; {closed} channels closed"
        )
        assert 1 <= closed <= 3  # once more, perhaps, to be sure which one it was
        assert errors == []
        assert max(during) < 2
        assert len(during) > 100
        producer.send("and the next one")


def test_row_49_of_many_only_the_large_ones_are_rejected(
    small_messages_only: PrivateBroker,
) -> None:
    settings, queue = small_messages_only.settings, "row-49-many"
    items = ["x" * 200_000 if n in (3, 17) else n for n in range(30)]
    with Producer(queue, settings=settings) as producer:
        with pytest.raises(Rejected, match="larger than configured max size") as caught:
            within(20, lambda: producer.send_many(items))
        assert list(caught.value.outcomes.values()) == ["rejected"] * 2
        assert producer.status().state == "connected"
    found = [properties.message_id for _, properties, _ in take_all(settings, queue)]
    assert len(set(found)) == 28
    assert not set(found) & set(caught.value.outcomes)


# ---- row 50: queues that others have declared

KINDS: dict[str, dict[str, Any]] = {
    "quorum": {"arguments": {"x-queue-type": "quorum"}},
    "stream": {"arguments": {"x-queue-type": "stream"}},
    "priority": {"arguments": {"x-max-priority": 5}},
    "TTL": {"arguments": {"x-message-ttl": 60_000}},
    "DLX": {"arguments": {"x-dead-letter-exchange": "amq.fanout"}},
    "max-length": {"arguments": {"x-max-length": 1000}},
    "lazy": {"arguments": {"x-queue-mode": "lazy"}},
    "single active consumer": {"arguments": {"x-single-active-consumer": True}},
    "expires": {"arguments": {"x-expires": 60_000}},
    "auto-delete": {"auto_delete": True},
    "transient": {"durable": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_row_50_a_queue_that_others_have_declared_is_used_as_it_is(
    broker_settings: Settings, queue: str, kind: str
) -> None:
    def work(task: Task) -> object:
        if task.data == "fail":
            raise RuntimeError("as asked")
        return task.data

    with raw_channel(broker_settings) as channel:
        channel.queue_declare(queue, **{"durable": True, **KINDS[kind]})
    with pytest.raises(QueueMismatch, match="declare=False"):
        Producer(queue, settings=broker_settings)
    with pytest.raises(QueueMismatch, match="declare=False"):
        BackgroundConsumer(queue=queue, settings=broker_settings).start()
    with (
        Producer(queue, settings=broker_settings, declare=False) as producer,
        BackgroundConsumer(
            work,
            queue=queue,
            settings=broker_settings,
            declare=False,
            max_attempts=2,
            retry_delay_s=0,
        ) as consumer,
    ):
        sent = producer.send_many(["one", "fail", "two"]).task_ids
        good = {sent[0]: "done", sent[2]: "done"}
        wait_for_outcomes(consumer, {**good, sent[1]: "dead"}, within_s=15)
        status = consumer.status()
        assert (status.state, status.trouble, status.reconnected) == ("running", "", 0)
        assert (status.done, status.retried, status.dead) == (2, 1, 1)
    [(_, properties, _)] = take_all(broker_settings, f"{queue}.dead")
    assert properties.message_id == sent[1]


def test_row_50_a_queue_that_is_there_is_not_declared(
    broker_settings: Settings, queue: str
) -> None:
    """Without the right to configure: a declare would be refused."""
    publish(broker_settings, queue)
    frames = Frames()
    with (
        user(broker_settings, configure="^$") as theirs,
        Proxy(theirs, on_frame=frames) as proxy,
        Producer(queue, settings=proxy.settings, declare=False) as producer,
        BackgroundConsumer(
            quickly, queue=queue, settings=proxy.settings, declare=False
        ) as consumer,
    ):
        task_id = producer.send("x").task_id
        wait_for_outcomes(consumer, {task_id: "done"}, within_s=10)
    assert frames.count("Queue.Declare") == 0


# ---- row 53: the right words


def test_row_53_a_user_who_may_open_no_channel_is_told_of_the_channel_limit(
    broker_settings: Settings, queue: str
) -> None:
    with user(broker_settings) as theirs:
        path = f"user-limits/{theirs.username}/max-channels"
        management(broker_settings, path, "PUT", {"value": 0})
        for function in (
            lambda: Producer(queue, settings=theirs),
            lambda: BackgroundConsumer(quickly, queue=queue, settings=theirs).start(),
        ):
            error = assert_refused(function, "number of channels opened for user")
            assert "virtual host" not in error.what
            assert "password" not in str(error)


def test_row_53_a_connection_limit_is_told_in_words(broker_settings: Settings, queue: str) -> None:
    with user(broker_settings) as theirs:
        path = f"user-limits/{theirs.username}/max-connections"
        management(broker_settings, path, "PUT", {"value": 0})
        error = assert_refused(lambda: Producer(queue, settings=theirs), "connection")
        assert "does not exist" not in str(error)


def test_row_53_a_queue_name_whose_dead_queue_would_be_too_long_is_refused_at_the_door() -> None:
    nowhere = Settings(port=1)
    for name in ("q" * 252, "q" * 251, "é" * 126):
        with pytest.raises(MqlabError, match="255"):
            BackgroundConsumer(queue=name, settings=nowhere)


def test_row_53_the_longest_name_works(broker_settings: Settings, queue: str) -> None:
    name = queue + "q" * (250 - len(queue))
    try:
        with (
            Producer(name, settings=broker_settings) as producer,
            BackgroundConsumer(quickly, queue=name, settings=broker_settings) as consumer,
        ):
            publish(broker_settings, name, b"junk")
            task_id = producer.send("x").task_id
            wait_for_outcomes(consumer, {task_id: "done"}, within_s=10)
            eventually(lambda: consumer.status().dead == 1)
    finally:
        with raw_channel(broker_settings) as channel:
            channel.queue_delete(name)
            channel.queue_delete(f"{name}.dead")


@pytest.fixture(params=["tlsv1.2", "tlsv1.3"])
def demands_a_certificate(
    request: pytest.FixtureRequest,
    own_node: PrivateBroker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: Callable[[str], None],
) -> Settings:
    """The address of a listener of the node that speaks TLS and lets in who has a certificate."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", str(key), "-out", str(certificate)],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
    except FileNotFoundError:
        missing("openssl")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    port = free_port()
    options = (
        f'[{{cacertfile, "{certificate}"}}, {{certfile, "{certificate}"}}, {{keyfile, "{key}"}}, '
        f"{{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}, "
        f"{{versions, ['{request.param}']}}]"
    )
    listener = f'{{"127.0.0.1", {port}}}'
    rabbitmqctl(
        own_node.node,
        "eval",
        "{ok, _} = application:ensure_all_started(ssl), "
        f"Listener = {listener}, Options = {options}, "
        "try rabbit_networking:start_ssl_listener(Listener, Options, 2) "
        "catch error:undef -> rabbit_networking:start_ssl_listener(Listener, Options, 2, 1) end.",
    )
    return dataclasses.replace(own_node.settings, port=port, tls=True)


def test_row_53_a_client_certificate_that_is_demanded_is_named(
    demands_a_certificate: Settings,
) -> None:
    error = assert_refused(
        lambda: Producer("row-53", settings=demands_a_certificate), "certificate"
    )
    assert "another kind of server" not in str(error)
