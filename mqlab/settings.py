"""The address of the broker, checked as soon as it is read.

It comes from ``AMQP_URL`` if that is set, else from ``MQLAB_AMQP_PORT`` and
``MQLAB_MANAGEMENT_PORT``. The default is the walk-through's: guest on 127.0.0.1, ports 5673 and
15673. ``MQLAB_MANAGEMENT_URL`` is the address of the management API, with its own login if needed.
No error message or repr contains a password. ``mqlab.broker`` finds and starts brokers.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import pika

from mqlab.errors import SettingsError

AMQP_PORT = 5673
MANAGEMENT_PORT = 15673
HEARTBEAT_S = 15
"""Seconds. RabbitMQ's guide recommends 5 to 20. Silence is noticed within 2 x (this + 5)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The address of one broker: host, port, virtual host and user, and its management API.

    A login in ``management_url`` (``http://user:password@host:15672``) is moved to
    ``management_login``, so the URL can be printed. Raises SettingsError if the URL is not valid.
    """

    host: str = "127.0.0.1"
    port: int = AMQP_PORT
    virtual_host: str = "/"
    username: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: bool = False
    management_url: str = f"http://127.0.0.1:{MANAGEMENT_PORT}"
    management_login: tuple[str, str] | None = field(default=None, repr=False)
    """User and password for the management API, if they differ from those for AMQP."""

    def __post_init__(self) -> None:
        example = "MQLAB_MANAGEMENT_URL=http://user:password@host:15672"
        parts = _split(self.management_url, ("http", "https"), example)
        if "@" in parts.netloc:
            login = (unquote(parts.username or ""), unquote(parts.password or ""))
            object.__setattr__(self, "management_login", login)
            parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        object.__setattr__(self, "management_url", parts.geturl().rstrip("/"))

    @classmethod
    def on_this_machine(cls, port: int, management_port: int) -> Settings:
        """Return the address of a broker at these ports on 127.0.0.1, with the default login."""
        return cls(port=port, management_url=f"http://127.0.0.1:{management_port}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the address from the environment. Raises SettingsError if a value is not valid."""
        management_url = environ.get("MQLAB_MANAGEMENT_URL") or None
        if "AMQP_URL" in environ:
            return cls.from_url(environ["AMQP_URL"], management_url=management_url)
        port = read_port(environ, "MQLAB_AMQP_PORT", AMQP_PORT)
        management_port = read_port(environ, "MQLAB_MANAGEMENT_PORT", MANAGEMENT_PORT)
        here = cls.on_this_machine(port, management_port)
        return replace(here, management_url=management_url or here.management_url)

    @classmethod
    def from_url(cls, url: str, *, management_url: str | None = None) -> Settings:
        """Read ``amqp://user:password@host:port/vhost``, or ``amqps://`` for TLS.

        The default port is 5672 (TLS: 5671). Without a virtual host, or with a bare ``/``, it is
        ``/``. The management API is expected 10,000 ports higher unless ``management_url`` is
        given. Raises SettingsError, which never shows the password, if a URL is not valid.
        """
        example = "AMQP_URL=amqp://user:password@host:5672/vhost"
        parts = _split(url, ("amqp", "amqps"), example)
        if "/" in parts.path[1:]:
            raise _unusable(example, "write a / in the virtual host's name as %2F")
        tls = parts.scheme == "amqps"
        port = parts.port or (5671 if tls else 5672)
        name = str(parts.hostname)
        host = f"[{name}]" if ":" in name else name
        return cls(
            host=name,
            port=port,
            virtual_host=unquote(parts.path[1:]) or "/",
            username=unquote(parts.username or "guest"),
            password=unquote(parts.password or "guest"),
            tls=tls,
            management_url=management_url
            or f"{'https' if tls else 'http'}://{host}:{port + 10_000}",
        )

    @property
    def address(self) -> str:
        """``host:port``, to show in messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether the host name stands for this machine."""
        return self.host in ("127.0.0.1", "localhost", "::1")

    @property
    def url(self) -> str:
        """The URL with its password, to pass to another process in ``AMQP_URL``. Never print it."""
        login = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}"
        vhost = quote(self.virtual_host, safe="")
        return f"{'amqps' if self.tls else 'amqp'}://{login}@{self.address}/{vhost}"

    @property
    def management_port(self) -> int:
        """The TCP port in ``management_url``."""
        parts = urlsplit(self.management_url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def __str__(self) -> str:
        vhost = quote(self.virtual_host, safe="")
        user = quote(self.username, safe="")
        return f"{'amqps' if self.tls else 'amqp'}://{user}@{self.address}/{vhost}"

    def parameters(self, *, name: str = "mqlab", timeout_s: float = 5.0, **options: Any) -> Any:
        """Return ``pika.ConnectionParameters`` for this broker.

        The management UI shows ``name`` as the connection's name. ``timeout_s`` is the time limit
        for connecting, including name resolution and the handshake. ``options`` are passed to
        pika.
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
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:6]) < 65536:
        raise SettingsError(
            f"{name}={text!r} is not a port.", fix=f"use a number from 1 to 65535: {name}={default}"
        )
    return int(text)


def _split(url: str, schemes: tuple[str, str], example: str) -> SplitResult:
    """Split a URL and check its required parts. Raises SettingsError."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        # `from None`: urllib's own message may contain the URL, including the password.
        raise _unusable(example, "its host or port is not valid") from None
    if parts.scheme not in schemes:
        raise _unusable(example, f"it must begin with {schemes[0]}:// or {schemes[1]}://")
    if not parts.hostname:
        raise _unusable(example, "it has no host")
    if port == 0:
        raise _unusable(example, "port 0 cannot be connected to")
    if parts.query or parts.fragment:
        raise _unusable(
            example, "options after ? or # are not supported (in a password, write %3F or %23)"
        )
    return parts


def _unusable(example: str, why: str) -> SettingsError:
    variable = example.partition("=")[0]
    return SettingsError(f"{variable} cannot be used.", why=why, fix=f"write it as {example}")
