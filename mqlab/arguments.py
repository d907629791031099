"""Check arguments before anything is opened or sent. Each check raises SettingsError."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from mqlab.errors import SettingsError

MAX_NAME_BYTES = 255
"""AMQP 0-9-1 carries a queue's name as a short string."""
PLAIN = {type(None), bool, int, float, str, bytes, list, tuple, dict}
MAX_SECONDS = 365 * 86_400.0
"""One year. Python's time functions overflow only far above this."""


def check_seconds(name: str, value: Any) -> float:
    """Return ``value`` if it is a number of seconds from 0 to a year."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_SECONDS:  # nan and inf fail here too
        raise SettingsError(
            f"{name}={shorten(value)} is not a time in seconds.",
            fix=f"use a number from 0 to {MAX_SECONDS:,.0f}, such as {name}=10",
        )
    return float(value)


def check_count(name: str, value: Any, least: int, most: int) -> int:
    """Return ``value`` if it is a whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise SettingsError(
            f"{name}={shorten(value)} cannot be used.",
            fix=f"use a whole number from {least:,} to {most:,}",
        )
    return value


def check_queue(queue: Any, *, suffix: str = "", declare: bool = True) -> str:
    """Return ``queue`` if it is a valid queue name, and still is with ``suffix`` appended."""
    why = ""
    if not isinstance(queue, str) or not queue:
        why = "a queue name must be a string that is not empty"
    elif (size := _count_bytes(queue + suffix)) is None:
        why = "it contains a lone surrogate, which UTF-8 cannot encode"
    elif size > MAX_NAME_BYTES:
        with_suffix = f" with {suffix!r} appended" if suffix else ""
        why = f"it has {size} bytes{with_suffix}, and AMQP allows {MAX_NAME_BYTES}"
    elif declare and queue.startswith("amq."):
        why = "names that begin with 'amq.' are reserved for the broker"
    if why:
        raise SettingsError(
            f"{shorten(queue)} cannot be used as a queue name.", why=why, fix="choose another name"
        )
    return str(queue)


def check_handler(handler: Any) -> Any:
    """Return ``handler`` if calling it does the work."""
    called = handler
    while isinstance(called, partial):
        called = called.func
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    forms = [called, vars(type(called)).get("__call__")]
    if not callable(handler):
        raise SettingsError(
            f"handler is a {type(handler).__name__}, which cannot be called.",
            fix="pass the function itself, without parentheses: BackgroundConsumer(my_function)",
        )
    if any(is_kind(form) for is_kind in kinds for form in forms):
        raise SettingsError(
            "handler is an async or generator function: calling it does no work.",
            why="its body runs only when it is awaited or iterated over",
            fix="pass a plain function, such as: lambda task: asyncio.run(my_function(task))",
        )
    return handler


def check_result(result: Any) -> Any:
    """Return a handler's result. Raises TypeError if it is an awaitable or a generator."""
    if type(result) in PLAIN:  # the common case, checked fast
        return result
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result) or inspect.isgenerator(result):
            result.close()
        raise TypeError(f"the handler returned a {type(result).__name__}: its body has not run")
    return result


def shorten(value: Any, limit: int = 40) -> str:
    """Return the repr of a value for a message, or its type if the repr is long or fails."""
    try:
        text = ascii(value)
    except Exception:
        text = ""
    return text if text and len(text) <= limit else f"a {type(value).__name__}"


def _count_bytes(text: str) -> int | None:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None
