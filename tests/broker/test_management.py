"""The management client: what it sends where, what it returns, and what it never shows."""

from __future__ import annotations

import base64
import http.server
import socket
import threading
import time
import traceback
import urllib.error
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from mqlab import broker
from mqlab.broker import management
from mqlab.broker.management import Refused, Unreachable, api_path, ask
from mqlab.cli import main
from mqlab.errors import ConnectError, MqlabError
from mqlab.settings import Settings
from tests.helpers import free_port


@contextmanager
def server(status: int, body: bytes = b"", **headers: str) -> Iterator[tuple[str, list[Any]]]:
    """An HTTP server of this test's own: its address, and the headers of each request."""
    requests: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.headers)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", requests
        listening.shutdown()


@pytest.fixture
def manager(broker_settings: Settings) -> Iterator[tuple[str, str]]:
    """A user with the tag management and no permission, as user and password."""
    user, password = f"test-{uuid.uuid4().hex[:8]}", "s3cret/+:@%"
    ask(broker_settings, f"users/{user}", "PUT", {"password": password, "tags": "management"})
    yield user, password
    ask(broker_settings, f"users/{user}", "DELETE")


def shown(error: BaseException) -> str:
    """All that a traceback can show of an error, with the variables of each frame."""
    assert error.__traceback__ is not None
    ours = error.__traceback__.tb_next  # the first frame is the test's own
    whole = traceback.TracebackException(type(error), error, ours, capture_locals=True)
    return "".join(whole.format()) + repr(error) + str(vars(error))


@pytest.mark.parametrize("name", ["plain", "a b/c", "100%", "Jürgen & Söhne", "?x=1#y", "%2F"])
def test_names_of_every_kind_are_encoded(broker_settings: Settings, name: str) -> None:
    path = api_path("queues", "/", f"test-{name}")
    ask(broker_settings, path, "PUT", {"auto_delete": True})
    try:
        assert ask(broker_settings, path)["name"] == f"test-{name}"
    finally:
        ask(broker_settings, path, "DELETE")


def test_what_is_not_there_is_refused_with_its_status_and_in_words(
    broker_settings: Settings,
) -> None:
    with pytest.raises(Refused, match=r"refused this: GET users/nobody[^$]*HTTP 404") as caught:
        ask(broker_settings, "users/nobody")
    assert caught.value.code == 404
    assert isinstance(caught.value, MqlabError)
    assert isinstance(caught.value, urllib.error.HTTPError), "as on page 01"
    assert b"Not Found" in caught.value.read()


def test_the_brokers_own_reason_is_in_the_error(broker_settings: Settings) -> None:
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    with pytest.raises(Refused, match="vhost_or_user_not_found") as caught:
        ask(broker_settings, "permissions/none/none", "PUT", everything)
    assert caught.value.code == 400


def test_a_wrong_password_and_a_missing_tag_are_told_by_user_and_fix(
    broker_settings: Settings, manager: tuple[str, str]
) -> None:
    wrong = replace(broker_settings, username=manager[0], password="s3cret")
    with pytest.raises(Refused, match=rf"does not let user '{manager[0]}'") as caught:
        ask(wrong, "whoami")
    assert caught.value.code == 401
    assert "MQLAB_MANAGEMENT_URL" in caught.value.fix
    assert "s3cret" not in shown(caught.value)
    assert base64.b64encode(f"{manager[0]}:s3cret".encode()).decode() not in shown(caught.value)
    with pytest.raises(Refused, match="administrator"):
        ask(replace(wrong, password=manager[1]), "users")


@pytest.mark.parametrize("kind", ["nothing", "page", "silent", "amqp"])
def test_where_no_management_api_answers_that_is_said_in_time(
    broker_settings: Settings, kind: str
) -> None:
    with server(200, b"<html>") as (page, _), socket.create_server(("127.0.0.1", 0)) as silent:
        url = {
            "nothing": f"http://127.0.0.1:{free_port()}",
            "page": page,
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "amqp": f"http://{broker_settings.address}",
        }[kind]
        nowhere = replace(broker_settings, management_url=url, password="s3cret")
        began = time.monotonic()
        with pytest.raises(Unreachable, match=f"No management API answers at {url}") as caught:
            ask(nowhere, "whoami", timeout_s=1.0)
        assert time.monotonic() - began < 2.5
        assert not broker.page_answers(url, timeout_s=1.0)
    assert isinstance(caught.value, ConnectError)
    assert isinstance(caught.value, OSError)
    assert "MQLAB_MANAGEMENT_URL" in caught.value.fix
    assert "s3cret" not in shown(caught.value)
    assert base64.b64encode(b"guest:s3cret").decode() not in shown(caught.value)


def test_row_59_a_proxy_of_the_environment_is_not_asked(
    broker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(502) as (proxy, requests):
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert ask(broker_settings, "whoami")["name"] == broker_settings.username
        assert broker.page_answers(broker_settings.management_url)
        assert requests == []


def test_row_60_the_login_of_the_management_url_is_used_and_never_shown(
    broker_settings: Settings,
    manager: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    user = manager[0]
    scheme, _, rest = broker_settings.management_url.partition("://")
    monkeypatch.setenv("AMQP_URL", broker_settings.url)
    monkeypatch.setenv("MQLAB_MANAGEMENT_URL", f"{scheme}://{user}:s3cret%2F%2B%3A%40%25@{rest}")
    settings = Settings.from_env()
    assert ask(settings, "whoami")["name"] == user
    with pytest.raises(Refused) as caught:
        ask(settings, "users")
    assert main(["broker", "status"]) == 0
    printed = capsys.readouterr().out
    assert f"Management UI: {broker_settings.management_url}\n" in printed
    assert "s3cret" not in f"{printed} {broker.require()!r} {shown(caught.value)}"


def test_a_redirect_does_not_carry_the_password_to_another_server(
    broker_settings: Settings,
) -> None:
    with server(200, b"{}") as (other, requests), server(302, Location=other) as (first, _):
        assert ask(replace(broker_settings, management_url=first), "whoami") == {}
        assert len(requests) == 1
        assert "Authorization" not in requests[0]


def test_only_this_module_speaks_http_to_the_management_api() -> None:
    """The other user of urllib is the one that waits for JupyterLab."""
    from pathlib import Path

    package = Path(management.__file__).parents[1]
    users = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if "urllib.request" in file.read_text("utf-8")
    }
    assert users == {"broker/management.py", "workshop/lab.py"}
