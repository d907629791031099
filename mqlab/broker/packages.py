"""RabbitMQ and Erlang from the packages of Debian or Ubuntu, unpacked into the user's cache.

Nothing is installed and root is not needed: ``apt-get download`` fetches and verifies the packages
of the distribution, ``dpkg-deb -x`` unpacks them. ``apt-get install`` would start a system service
on port 5672. A manifest has the checksum of every unpacked file; a tree that does not match it is
fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock

from mqlab.broker import system
from mqlab.broker.system import Say, cache_dir
from mqlab.commands import command
from mqlab.errors import StartFailed

FETCH_TIMEOUT_S = 900.0
"""Seconds for the whole download: 35 MB on a slow line."""
SHOW_EVERY_S = 3.0
MANIFEST = "mqlab-manifest"


def can_fetch() -> bool:
    """Return whether this machine has the Debian tools that ``fetch_server`` needs."""
    return all(shutil.which(tool) for tool in ("apt-get", "apt-cache", "dpkg-deb", "dpkg-query"))


def find_unpacked() -> Path | None:
    """Return the server script of an earlier ``fetch_server`` if every file is as it was unpacked.

    Raises StartFailed if another user owns the cache or may write to it.
    """
    tree = cache_dir() / "rabbitmq"
    with system.explaining(tree, system.CACHE):
        for folder in (tree.parent, tree):
            if not folder.exists():
                return None
            system.check_private(folder, system.CACHE)
    with contextlib.suppress(OSError):
        erl = tree / "usr/lib/erlang/bin/erl"
        # Erlang's start script contains its own path: a cache that was moved here is of no use.
        is_here = f"ROOTDIR={tree}/" in erl.read_text(errors="replace")
        if is_here and (tree / MANIFEST).read_text() == _list_files(tree):
            return tree / "usr/lib/rabbitmq/bin/rabbitmq-server"
    return None


def fetch_server(*, say: Say = print) -> Path:
    """Return the path of an unpacked server script; fetch the packages first if there is none.

    ``say`` gets a line for each step. The tree appears complete or not at all, and what a killed
    call has left behind is removed by the next one. Raises StartFailed with the tool's own words.
    """
    cache = cache_dir()
    if not re.fullmatch(r"[\w/.,+@:=~%-]+", str(cache)):
        raise StartFailed(
            f"RabbitMQ cannot run from {str(cache)!r}.",
            why="its start scripts do not work in a folder with spaces, quotes or the like in its "
            "path",
            fix=f"export {system.CACHE}=/a/plain/path  and run the command again",
        )
    with system.explaining(cache, system.CACHE):
        system.make_private(cache, system.CACHE)
        with filelock.FileLock(cache / "fetch.lock", timeout=FETCH_TIMEOUT_S):
            for left_over in cache.glob("fetch-*/"):
                _remove(left_over)
            return find_unpacked() or _fetch(cache / "rabbitmq", say)


def _fetch(tree: Path, say: Say) -> Path:
    if tree.exists():
        say(f"The RabbitMQ in {tree} is damaged, or was moved there: fetching it again.")
    work = Path(tempfile.mkdtemp(prefix="fetch-", dir=tree.parent))
    try:
        started = time.monotonic()
        options = _apt_options(work, own_lists=False)
        try:
            names = _download(options, work, say)
        except StartFailed:
            say("The system's package lists are missing or out of date: fetching fresh ones.")
            options = _apt_options(work, own_lists=True)
            # apt-get exits with 0 even if it reached no mirror: keep what it printed.
            words = _run(["apt-get", *options, "-q", "update"], check=False, stderr=True)
            if not _depends(options):
                raise _failed("apt-get update", words) from None
            names = _download(options, work, say)
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(lambda deb: _unpack(deb, work / "tree"), work.glob("*.deb")))
        check_libraries(work / "tree", options, names)
        _set_root(work / "tree", tree)
        (work / "tree" / MANIFEST).write_text(_list_files(work / "tree"))
        if tree.exists():
            tree.rename(work / "damaged")
        (work / "tree").rename(tree)
        say(f"Unpacked into {tree}; {time.monotonic() - started:.0f} s in all.")
    finally:
        _remove(work)
    return tree / "usr/lib/rabbitmq/bin/rabbitmq-server"


def _list_files(tree: Path) -> str:
    """A line for each file: its checksum, or what a link points to, and its path."""
    lines = []
    for path in sorted(tree.rglob("*")):
        if path.is_symlink():
            lines.append(f"{path.readlink()}  {path.relative_to(tree)}\n")
        elif path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{digest}  {path.relative_to(tree)}\n")
    return "".join(lines)


def _remove(folder: Path) -> None:
    """Delete a folder, although a download that was killed may still be ending in it."""
    deadline = time.monotonic() + 5.0
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)


def _apt_options(work: Path, *, own_lists: bool) -> list[str]:
    """Options that let an ordinary user run apt; its index is kept for the next call."""
    (work / "apt/lists/partial").mkdir(parents=True, exist_ok=True)
    (work / "apt/archives/partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::Cache={work}/apt"]
    if os.geteuid() == 0:  # apt's own user may not enter this folder
        options += ["-o", "APT::Sandbox::User=root"]
    if own_lists:
        options += ["-o", f"Dir::State={work}/apt", "-o", "Dir::State::status=/var/lib/dpkg/status"]
    return options


def _depends(options: list[str]) -> list[str]:
    """rabbitmq-server and every Erlang package it needs; empty if the package lists have none."""
    kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    command = ["apt-cache", *options, "depends", "--recurse", *(f"--no-{kind}" for kind in kinds)]
    lines = _run([*command, "rabbitmq-server"], check=False).splitlines()
    erlang = {line for line in lines if line.startswith("erlang-") and ":" not in line}
    return ["rabbitmq-server", *sorted(erlang)] if "rabbitmq-server" in lines and erlang else []


def _download(options: list[str], work: Path, say: Say) -> list[str]:
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
            [*system.ends_with_parent(), "apt-get", *options, "-qq", "download", *names],
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


def check_libraries(tree: Path, options: list[str], names: list[str]) -> None:
    """Check that the virtual machine finds its shared libraries, which come from the system."""
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
        fix=f"ask an administrator to run: apt-get install {' '.join(absent)}",
    )


def _set_root(tree: Path, final: Path) -> None:
    """Write the final path into Erlang's start scripts."""
    erlang = tree / "usr/lib/erlang"
    for script in [erlang / "bin/erl", *erlang.glob("erts-*/bin/erl")]:
        text = script.read_text()
        new = text.replace("=/usr/lib/erlang", f"={final}/usr/lib/erlang")
        script.write_text(new)


def _environ() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _run(command: list[str], *, check: bool = True, stderr: bool = False) -> str:
    """Run a tool and return its output; without ``check``, "" if it fails."""
    try:
        done = subprocess.run(
            [*system.ends_with_parent(), *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
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
        why="\n        ".join((lines or words.splitlines())[-4:]) or "it printed nothing",
        fix="check the network and run the command again (nothing was left behind),\n"
        f"        or get a broker in another way: {command('doctor')}",
    )
