"""Tasks, and the messages that carry them.

Only ``Task`` writes and reads message bodies, and refuses invalid ones at both ends. ``producer``
and ``consumer`` send and receive them.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mqlab.errors import TaskError

QUEUE = "heavy_tasks_queue"
MAX_DATA_BYTES = 1024 * 1024
"""A message describes work. Store larger data in a file, and send the file's name."""
MAX_BODY_BYTES = MAX_DATA_BYTES + 2048
"""A body also has the id and the timestamp."""
MAX_ID_BYTES = 255
"""AMQP 0-9-1 carries ``message_id`` as a short string: 255 bytes at most."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task: its id, the data to work on, and when it was sent (seconds since 1970)."""

    data: Any
    task_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    timestamp: float = field(default_factory=time.time)

    def to_json(self) -> bytes:
        """Write the message body: a JSON object with ``task_id``, ``data`` and ``timestamp``.

        Raises TaskError if a field is not valid, or ``encode_data`` refuses the data.
        """
        return encode_body(self.task_id, encode_data(self.data), self.timestamp)

    @classmethod
    def from_json(cls, body: bytes) -> Task:
        """Read a message body. Raises TaskError, with the reason, if it is not a task.

        Further keys are ignored, so that a newer sender can add some.
        """
        if len(body) > MAX_BODY_BYTES:
            raise TaskError(
                f"the body has {len(body):,} bytes, and the limit is {MAX_BODY_BYTES:,}"
            )
        try:
            text = body.decode()
            fields = _DECODER.decode(text)
            if "\\u" in text:  # an escape may be a lone surrogate: check that UTF-8 can encode it
                _ENCODER.encode(fields).encode()
        except UnicodeDecodeError as error:
            raise TaskError(f"the body is not UTF-8: {error.reason}") from error
        except UnicodeEncodeError as error:
            raise TaskError("the body contains a lone surrogate") from error
        except RecursionError as error:
            raise TaskError("the body is nested too deeply") from error
        except ValueError as error:
            raise TaskError(f"the body is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise TaskError(f"the body is a JSON {type(fields).__name__}, not an object")
        for key in ("task_id", "data", "timestamp"):
            if key not in fields:
                raise TaskError(f"the body has no {key!r}")
        _check_fields(fields["task_id"], fields["timestamp"])
        return cls(fields["data"], fields["task_id"], fields["timestamp"])


def encode_data(data: Any) -> str:
    """Write a task's data as JSON.

    Raises TaskError if JSON cannot represent ``data`` or would change it (tuples, dict keys that
    are not strings), or if the result is larger than MAX_DATA_BYTES.
    """
    try:
        text = _ENCODER.encode(data)
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise _refuse("it contains a lone surrogate, which UTF-8 cannot encode") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise _refuse(str(error), fix="send strings, numbers, lists and dicts") from error
    if size > MAX_DATA_BYTES:
        raise _refuse(
            f"it has {size:,} bytes as JSON, and the limit is {MAX_DATA_BYTES:,}",
            fix="store the data in a file or database, and send its name",
        )
    if not isinstance(data, str) and _DECODER.decode(text) != data:
        raise _refuse(
            "JSON would change it", fix="use lists instead of tuples, and strings as dict keys"
        )
    return text


def encode_body(task_id: str, data_json: str, timestamp: float) -> bytes:
    """Write a message body around the text that ``encode_data`` returned. Raises TaskError."""
    _check_fields(task_id, timestamp)
    task_id_json = _ENCODER.encode(task_id)
    text = f'{{"task_id": {task_id_json}, "data": {data_json}, "timestamp": {timestamp!r}}}'
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _refuse("its task_id contains a lone surrogate") from error


def _check_fields(task_id: Any, timestamp: Any) -> None:
    plain = type(task_id) is str and type(timestamp) is float and 0 <= timestamp < math.inf
    if plain and 0 < len(task_id) <= MAX_ID_BYTES // 4:  # a character is at most 4 bytes
        return
    if not isinstance(task_id, str) or not task_id:
        raise TaskError(f"task_id must be a string that is not empty, not {_shown(task_id)}")
    if len(task_id) > MAX_ID_BYTES // 4 and len(task_id.encode("utf-8", "replace")) > MAX_ID_BYTES:
        raise TaskError(f"task_id is over {MAX_ID_BYTES} bytes")
    # bool is an int in Python, but true is not a time.
    if isinstance(timestamp, bool) or not isinstance(timestamp, (int, float)):
        raise TaskError(f"timestamp must be a number of seconds, not {_shown(timestamp)}")
    try:
        usable = math.isfinite(timestamp) and timestamp >= 0
    except OverflowError:  # an int too large for a float
        usable = False
    if not usable:
        raise TaskError(f"timestamp must be 0 or more seconds, not {_shown(timestamp)}")


def _shown(value: Any) -> str:
    try:
        return repr(value)[:40]
    except ValueError:  # Python refuses to convert an int of more than 4,300 digits
        return f"a very large {type(value).__name__}"


def _refuse(why: str, fix: str = "") -> TaskError:
    return TaskError("This data cannot be sent as a task.", why=why, fix=fix)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False)
_DECODER = json.JSONDecoder(parse_constant=_no_constant)
