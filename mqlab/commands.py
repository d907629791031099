"""Show mqlab's commands in the form that works where the reader types them."""

from __future__ import annotations

import sys
from pathlib import Path


def command(arguments: str) -> str:
    """Return the command line that runs ``mqlab`` with these arguments.

    It is ``mqlab …`` where a shell finds this environment's script by that name: in a terminal of
    `mqlab lab` and in an activated environment. Elsewhere it starts with the script's path.
    """
    import shlex  # these load slowly, and only an error needs them
    import shutil
    import subprocess

    windows = sys.platform == "win32"
    script = Path(sys.executable).with_name("mqlab.exe" if windows else "mqlab")
    if not script.exists():
        words = [sys.executable, "-m", "mqlab"]
    elif (found := shutil.which("mqlab")) and Path(found) == script:
        return f"mqlab {arguments}"
    else:
        words = [str(script.relative_to(Path.cwd()) if _is_below(script) else script)]
    return f"{subprocess.list2cmdline(words) if windows else shlex.join(words)} {arguments}"


def _is_below(script: Path) -> bool:
    try:
        return script.is_relative_to(Path.cwd())
    except OSError:  # the current folder was deleted
        return False
