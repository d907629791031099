"""RabbitMQ and Erlang from the packages of Debian or Ubuntu, unpacked into the user's own cache.

Nothing is installed and nobody has to be root: ``apt-get download`` fetches (and verifies) the
distribution's packages, ``dpkg-deb -x`` unpacks them. `apt-get install` would be wrong on a
learner's machine: it starts a system service on port 5672. Running the server is left to ``node``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock

from mqlab.errors import StartFailed

FETCH_TIMEOUT_S = 900.0
"""Seconds for the whole download: 35 MB on a slow line."""
SHOW_EVERY_S = 3.0


def cache_dir() -> Path:
    """The folder for what can be fetched again: ``mqlab`` in ``$XDG_CACHE_HOME``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).resolve() / "mqlab"


def can_fetch() -> bool:
    """Whether this machine has the tools of Debian and Ubuntu that ``fetch_server`` needs."""
    return all(shutil.which(tool) for tool in ("apt-get", "apt-cache", "dpkg-deb", "dpkg-query"))


def find_unpacked() -> Path | None:
    """The server script of an earlier ``fetch_server``, or None."""
    tree = cache_dir() / "rabbitmq"
    erl = tree / "usr/lib/erlang/bin/erl"
    # Erlang's start script carries its own path: a cache that was moved here is of no use.
    if erl.is_file() and f"ROOTDIR={tree}/" in erl.read_text():
        return tree / "usr/lib/rabbitmq/bin/rabbitmq-server"
    return None


def fetch_server(*, say: Callable[[str], object] = print) -> Path:
    """Fetch and unpack RabbitMQ and Erlang once, and give the path of the server script.

    ``say`` gets a line now and then. The folder appears whole or not at all, so that whatever
    interrupts it, the next call works. Raises StartFailed, with the tool's own words.
    """
    cache = cache_dir()
    if any(character.isspace() for character in str(cache)):
        raise StartFailed(
            f"RabbitMQ cannot live in {cache}.",
            why="its start script does not work in a folder with a space in its path",
            fix="export XDG_CACHE_HOME=/a/path/without/a/space  and run the command again",
        )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return _fetch_once(cache, say)
    except OSError as error:
        raise StartFailed(
            f"RabbitMQ cannot be unpacked into {cache}.",
            why=f"{error.strerror or error}",
            fix="make room or give the right to write there, or set XDG_CACHE_HOME to another one",
        ) from error


def _fetch_once(cache: Path, say: Callable[[str], object]) -> Path:
    with filelock.FileLock(cache / "fetch.lock", timeout=FETCH_TIMEOUT_S):
        if (script := find_unpacked()) is not None:
            return script
        for left_over in [*cache.glob("fetch-*/"), cache / "rabbitmq"]:
            shutil.rmtree(left_over, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix="fetch-", dir=cache))
        try:
            started = time.monotonic()
            options = _apt_options(work, own_lists=False)
            try:
                names = _download(options, work, say)
            except StartFailed:
                say("The system's package lists are missing or out of date: fetching fresh ones.")
                options = _apt_options(work, own_lists=True)
                # It counts as done even where no mirror could be reached: keep its words.
                words = _run(["apt-get", *options, "-q", "update"], check=False, stderr=True)
                if not _depends(options):
                    raise _failed("apt-get update", words) from None
                names = _download(options, work, say)
            with ThreadPoolExecutor(max_workers=4) as pool:
                list(pool.map(lambda deb: _unpack(deb, work / "tree"), work.glob("*.deb")))
            _check_libraries(work / "tree", options, names)
            _set_root(work / "tree", cache / "rabbitmq")
            (work / "tree").rename(cache / "rabbitmq")
            say(f"Unpacked into {cache / 'rabbitmq'}; {time.monotonic() - started:.0f} s in all.")
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return cache / "rabbitmq/usr/lib/rabbitmq/bin/rabbitmq-server"


def _apt_options(work: Path, *, own_lists: bool) -> list[str]:
    """Options that let an ordinary user run apt, and keep its index for the next call."""
    (work / "apt/lists/partial").mkdir(parents=True, exist_ok=True)
    (work / "apt/archives/partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::Cache={work}/apt"]
    if os.geteuid() == 0:  # apt's own user may not look into this folder
        options += ["-o", "APT::Sandbox::User=root"]
    if own_lists:
        options += ["-o", f"Dir::State={work}/apt", "-o", "Dir::State::status=/var/lib/dpkg/status"]
    return options


def _depends(options: list[str]) -> list[str]:
    """rabbitmq-server and every Erlang package that it needs; none if the lists know none."""
    kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    command = ["apt-cache", *options, "depends", "--recurse", *(f"--no-{kind}" for kind in kinds)]
    lines = _run([*command, "rabbitmq-server"], check=False).splitlines()
    erlang = {line for line in lines if line.startswith("erlang-") and ":" not in line}
    return ["rabbitmq-server", *sorted(erlang)] if "rabbitmq-server" in lines and erlang else []


def _download(options: list[str], work: Path, say: Callable[[str], object]) -> list[str]:
    """Download the packages into ``work`` and return their names."""
    names = _depends(options)
    if not names:
        raise StartFailed("The package lists of this system have no rabbitmq-server.")
    uris = _run(["apt-get", *options, "--print-uris", "download", *names]).splitlines()
    total = sum(int(line.split()[2]) for line in uris if line.startswith("'")) / 1e6
    say(
        f"Fetching RabbitMQ and Erlang, {len(names)} packages of this distribution, {total:.0f} MB "
        "(once; nothing is installed)."
    )
    log = work / "apt/log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["apt-get", *options, "-qq", "download", *names],
            cwd=work, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_environ(),
        )  # fmt: skip
        started = shown = time.monotonic()
        try:
            while process.poll() is None and time.monotonic() - started < FETCH_TIMEOUT_S:
                time.sleep(0.05)
                if time.monotonic() - shown > SHOW_EVERY_S:
                    shown = time.monotonic()
                    done = sum(f.stat().st_size for f in work.rglob("*") if f.is_file()) / 1e6
                    say(f"  {done:.0f} of {total:.0f} MB")
        finally:
            process.kill()
            code = process.wait()
    if code != 0:
        raise _failed("apt-get download", log.read_text())
    return names


def _unpack(package: Path, tree: Path) -> None:
    _run(["dpkg-deb", "-x", str(package), str(tree)])


def _check_libraries(tree: Path, options: list[str], names: list[str]) -> None:
    """See that the virtual machine finds its shared libraries, which come from the system."""
    erlang = tree / "usr/lib/erlang"
    programs = [*erlang.glob("erts-*/bin/beam.smp"), *erlang.glob("erts-*/bin/epmd")]
    programs += erlang.glob("lib/crypto-*/priv/lib/crypto.so")
    output = "".join(_run(["ldd", str(program)], check=False) for program in programs)
    missing = sorted({line.split()[0] for line in output.splitlines() if "not found" in line})
    if not missing:
        return
    lines = _run(["apt-cache", *options, "depends", *names], check=False).splitlines()
    needed = {line.split()[-1] for line in lines if "Depends: lib" in line}
    absent = [name for name in sorted(needed) if not _run(["dpkg-query", "-L", name], check=False)]
    raise StartFailed(
        f"Erlang needs {', '.join(missing)}, and this system has no such library.",
        why=f"these packages are not installed: {', '.join(absent) or 'unknown'}",
        fix=f"ask an administrator for: apt-get install {' '.join(absent)}",
    )


def _set_root(tree: Path, final: Path) -> None:
    """Tell Erlang's start scripts where they will live."""
    erlang = tree / "usr/lib/erlang"
    for script in [erlang / "bin/erl", *erlang.glob("erts-*/bin/erl")]:
        text = script.read_text()
        new = text.replace("=/usr/lib/erlang", f"={final}/usr/lib/erlang")
        script.write_text(new)


def _environ() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _run(command: list[str], *, check: bool = True, stderr: bool = False) -> str:
    """Run a tool and give its output; without ``check``, "" where it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if stderr else subprocess.PIPE,
            text=True, timeout=FETCH_TIMEOUT_S, env=_environ(),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        if check:
            raise _failed(command[0], str(error)) from error
        return ""
    if check and done.returncode != 0:
        raise _failed(command[0], done.stderr or done.stdout)
    return done.stdout if done.returncode == 0 or stderr else ""


def _failed(tool: str, words: str) -> StartFailed:
    lines = [line for line in words.splitlines() if line.startswith(("E:", "W:", "dpkg"))]
    return StartFailed(
        f"RabbitMQ could not be fetched: {tool} failed.",
        why="\n        ".join((lines or words.splitlines())[-4:]) or "it said nothing",
        fix="check the network and run the command again (nothing half-done was left behind),\n"
        "        or take another way: python -m mqlab doctor",
    )
