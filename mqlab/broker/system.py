"""The user's own folders, and child processes that end with their parent.

Programs in the cache are run, and a node obeys the files in its state folder. A folder that belongs
to another user, or that others may write to, is therefore refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from mqlab.errors import StartFailed

Say = Callable[[str], object]
"""What gets a line for each step, ``print`` for example."""
STATE, CACHE = "XDG_STATE_HOME", "XDG_CACHE_HOME"


def state_dir() -> Path:
    """The folder for what nodes keep: ``mqlab`` in ``$XDG_STATE_HOME``."""
    return platformdirs.user_state_path("mqlab", appauthor=False).resolve()


def cache_dir() -> Path:
    """The folder for what can be fetched again: ``mqlab`` in ``$XDG_CACHE_HOME``."""
    return platformdirs.user_cache_path("mqlab", appauthor=False).resolve()


@contextlib.contextmanager
def explaining(folder: Path, variable: str) -> Iterator[None]:
    """Turn an OSError of what is done in a folder into StartFailed: no permission, a full disk.

    ``variable`` is the environment variable that chooses another folder.
    """
    try:
        yield
    except OSError as error:
        raise StartFailed(
            f"{folder} cannot be used.",
            why=f"{error.strerror or error} {error.filename or ''}".strip(),
            fix=f"make room or get write permission there, or set {variable} to another folder",
        ) from error


def make_private(folder: Path, variable: str) -> None:
    """Create the folder for this user alone if it is missing, then check it as below."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder, variable)


def check_private(folder: Path, variable: str) -> None:
    """Raise StartFailed if another user owns the folder or can put files into it."""
    if not hasattr(os, "geteuid"):  # Windows, where no private node runs
        return
    found = folder.stat()
    elsewhere = f"export {variable}=/a/folder/of/your/own"
    if found.st_uid not in (os.geteuid(), 0):
        raise StartFailed(
            f"{folder} belongs to another user ({_user(found.st_uid)}), so mqlab does not use it.",
            why="what its owner puts there would be run as you",
            fix=f"{elsewhere}\n        or, if you used sudo, run the command without it",
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
        raise StartFailed(
            f"Other users may write to {folder}, so mqlab does not use it.",
            why="what they put there would be run as you",
            fix=f"if you trust what is in it: chmod go-w '{folder}'\n        else: {elsewhere}",
        )


def ends_with_parent() -> list[str]:
    """What to put before a command so that it ends when its parent does; empty if not on Linux."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _user(uid: int) -> str:
    import pwd  # not on Windows

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
