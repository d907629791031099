"""One request to a broker's management page: HTTP and JSON, and nothing else.

What an answer means, and what to say where there is none, is left to whoever asks.
"""

from __future__ import annotations

import base64
import http.client
import json
import urllib.request
from typing import Any

from mqlab.settings import Settings

# What reaches the broker by AMQP reaches it without a proxy of the environment.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(
    settings: Settings,
    path: str,
    method: str = "GET",
    body: object = None,
    *,
    timeout_s: float = 10.0,
) -> Any:
    """Send a request to ``/api/<path>`` as the user of ``settings``; return the JSON it answers.

    Raises urllib.error.HTTPError if the page refuses (401: the user, 404: no such thing), another
    OSError if nothing answers within ``timeout_s`` seconds, ValueError if the answer is no JSON.
    """
    login = base64.b64encode(f"{settings.username}:{settings.password}".encode()).decode()
    request = urllib.request.Request(
        f"{settings.management_url}/api/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with _direct.open(request, timeout=timeout_s) as answer:
            return json.loads(answer.read() or b"null")
    except http.client.HTTPException as error:  # something else listens there
        raise ConnectionError(f"what answers there speaks no HTTP: {error!r}") from error
