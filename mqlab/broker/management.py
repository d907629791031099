"""The management API of a broker: the only module that speaks HTTP to it.

Requests ignore ``http_proxy``, as AMQP does. They log in as the user in ``MQLAB_MANAGEMENT_URL`` if
it names one, else as the AMQP user.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import urllib.error
import urllib.request
from email.message import Message
from typing import Any
from urllib.parse import quote

from mqlab.errors import ConnectError, MqlabError
from mqlab.settings import Settings

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# What urllib raises if there is no answer, if it is not HTTP, or if it is not JSON.
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)


class Unreachable(ConnectError, OSError):
    """No management API answers at that address."""


class Refused(MqlabError, urllib.error.HTTPError):
    """The management API answered with an HTTP error: ``code`` is its status.

    It is an HTTPError as well, because that is what ``urlopen`` on page 01 raises.
    """

    def __init__(self, error: urllib.error.HTTPError, asked: str, user: str) -> None:
        reply = b""
        with error, contextlib.suppress(OSError, http.client.HTTPException):
            reply = error.read(2000)
        urllib.error.HTTPError.__init__(
            self, error.url, error.code, error.reason, Message(), io.BytesIO(reply)
        )
        try:
            words = str(json.loads(reply)["reason"])
        except (ValueError, KeyError, TypeError):
            words = reply.decode(errors="replace") or error.reason
        self.what = f"The management API refused this: {asked}."
        self.why, self.fix = f"HTTP {error.code}: {words}", ""
        if error.code in (401, 403):
            self.what = f"The management API does not let user {user!r} do this: {asked}."
            self.fix = (
                "check the user and password in AMQP_URL or MQLAB_MANAGEMENT_URL, and the user's "
                "tags on the broker (management, or administrator)"
            )

    def __str__(self) -> str:
        return str(MqlabError(self.what, why=self.why, fix=self.fix))


def ask(
    settings: Settings,
    path: str,
    method: str = "GET",
    body: object = None,
    *,
    timeout_s: float = 10.0,
) -> Any:
    """Send a request to ``/api/<path>`` and return the JSON of the response.

    ``api_path`` builds a path from names. Raises Refused if the response is an HTTP error (401: the
    login, 404: no such thing), and Unreachable if there is no response within ``timeout_s`` seconds
    or if it does not come from a management API.
    """
    request = urllib.request.Request(
        f"{settings.management_url}/api/{quote(path, safe='/?&=%')}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method=method,
    )
    # Unredirected: a redirect must not carry the password to another server.
    request.add_unredirected_header("Authorization", _authorization(settings))
    user = (settings.management_login or (settings.username,))[0]
    try:
        with _direct.open(request, timeout=timeout_s) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        raise Refused(error, f"{method} {path}", user) from None
    except _NO_ANSWER as error:
        raise Unreachable(
            f"No management API answers at {settings.management_url}.",
            why=str(getattr(error, "reason", error)) or type(error).__name__,
            fix="start the broker, enable its plugin rabbitmq_management, or set "
            "MQLAB_MANAGEMENT_URL",
        ) from None  # the frames of urllib have the password in their variables


def api_path(*names: str) -> str:
    """Join names to a path, percent-encoded: ``api_path("queues", "/", "a b")``."""
    return "/".join(quote(name, safe="") for name in names)


def page_answers(url: str, timeout_s: float = 2.0) -> bool:
    """Return whether RabbitMQ's management UI is at that address."""
    try:
        with _direct.open(url, timeout=timeout_s) as answer:
            return b"RabbitMQ" in answer.read(4096)
    except _NO_ANSWER:
        return False


def _authorization(settings: Settings) -> str:
    login = settings.management_login or (settings.username, settings.password)
    return "Basic " + base64.b64encode(":".join(login).encode()).decode()
