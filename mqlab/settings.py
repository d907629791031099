"""Where the broker is. Validated here, so that a typing error is told at once and in words.

The address comes from ``AMQP_URL`` if it is set, else from ``MQLAB_AMQP_PORT`` and
``MQLAB_MANAGEMENT_PORT``, else it is the walk-through's: guest on 127.0.0.1, ports 5673 and 15673.
No method prints the password. Finding or starting a broker is left to ``mqlab.broker``.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pika

from mqlab.errors import SettingsError

AMQP_PORT = 5673
MANAGEMENT_PORT = 15673
HEARTBEAT_S = 15
"""Seconds; RabbitMQ's heartbeat guide advises 5 to 20. Silence shows after 2 x (this + 5)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The address of one broker: host, port, virtual host, user, and its management page."""

    host: str = "127.0.0.1"
    port: int = AMQP_PORT
    virtual_host: str = "/"
    username: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: bool = False
    management_url: str = f"http://127.0.0.1:{MANAGEMENT_PORT}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the address from the environment. Raises SettingsError if a value cannot be used."""
        management_url = environ.get("MQLAB_MANAGEMENT_URL") or None
        if "AMQP_URL" in environ:
            return cls.from_url(environ["AMQP_URL"], management_url=management_url)
        port = read_port(environ, "MQLAB_AMQP_PORT", AMQP_PORT)
        management_port = read_port(environ, "MQLAB_MANAGEMENT_PORT", MANAGEMENT_PORT)
        return cls(
            port=port, management_url=management_url or f"http://127.0.0.1:{management_port}"
        )

    @classmethod
    def from_url(cls, url: str, *, management_url: str | None = None) -> Settings:
        """Read ``amqp://user:password@host:port/vhost``, or ``amqps://`` for TLS.

        Without a port it is 5672 (TLS: 5671); without a virtual host, or with a bare ``/``, it
        is ``/``. The management page is looked for 10,000 ports higher unless ``management_url``
        says otherwise. Raises SettingsError, without the password, if the URL cannot be used.
        """
        example = "AMQP_URL=amqp://user:password@host:5672/vhost"

        def refuse(why: str) -> SettingsError:
            return SettingsError("AMQP_URL cannot be used.", why=why, fix=f"write it as {example}")

        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except ValueError:
            # `from None`: urllib's own message may quote the URL, password included.
            raise refuse("its host or port cannot be read") from None
        if parts.scheme not in ("amqp", "amqps"):
            raise refuse(
                f"it begins with {parts.scheme or 'nothing'}, not with amqp:// or amqps://"
            )
        if not parts.hostname:
            raise refuse("it names no host")
        if port == 0:
            raise refuse("port 0 is not a port to connect to")
        if parts.query or parts.fragment:
            raise refuse(
                "mqlab reads no options after ? or # (a # or ? in a password is %23 or %3F)"
            )
        if "/" in parts.path[1:]:
            raise refuse("a virtual host's own / is written %2F")
        tls = parts.scheme == "amqps"
        port = port or (5671 if tls else 5672)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        derived = f"{'https' if tls else 'http'}://{host}:{port + 10_000}"
        return cls(
            host=parts.hostname,
            port=port,
            virtual_host=unquote(parts.path[1:]) or "/",
            username=unquote(parts.username or "guest"),
            password=unquote(parts.password or "guest"),
            tls=tls,
            management_url=(management_url or derived).rstrip("/"),
        )

    @property
    def address(self) -> str:
        """``host:port``, for messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL with its password, to hand to another process by ``AMQP_URL``. Never print it."""
        login = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}"
        vhost = quote(self.virtual_host, safe="")
        return f"{'amqps' if self.tls else 'amqp'}://{login}@{self.address}/{vhost}"

    def __str__(self) -> str:
        vhost = quote(self.virtual_host, safe="")
        user = quote(self.username, safe="")
        return f"{'amqps' if self.tls else 'amqp'}://{user}@{self.address}/{vhost}"

    def parameters(self, *, name: str = "mqlab", timeout_s: float = 5.0, **options: Any) -> Any:
        """Give ``pika.ConnectionParameters`` for this broker.

        ``name`` is shown as the connection's name on the management page; ``timeout_s`` bounds
        the whole connecting, name look-up and handshake included; ``options`` go to pika as they
        are and win over what is set here.
        """
        if self.tls:
            context = ssl.create_default_context()
            options.setdefault("ssl_options", pika.SSLOptions(context, self.host))
        options.setdefault("heartbeat", HEARTBEAT_S)
        return pika.ConnectionParameters(
            host=self.host,
            port=self.port,
            virtual_host=self.virtual_host,
            credentials=pika.PlainCredentials(self.username, self.password),
            client_properties={"connection_name": name},
            socket_timeout=timeout_s,
            stack_timeout=timeout_s,
            **options,
        )


def read_port(environ: Mapping[str, str], name: str, default: int) -> int:
    """Read a TCP port, 1 to 65535, from the variable ``name``. Raises SettingsError."""
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 65536:
        raise SettingsError(
            f"{name}={text!r} is not a port.", fix=f"use a number from 1 to 65535: {name}={default}"
        )
    return int(text)
