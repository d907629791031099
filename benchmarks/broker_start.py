"""Compare `mqlab broker start` with RabbitMQ's own start, measured alternately.

    python benchmarks/broker_start.py [REPEATS]

RabbitMQ's own start is its server script, with the few settings that an unprivileged user needs,
until a bare socket receives the first frame of an AMQP handshake (it tries every 10 ms). mqlab's is
the whole command, including the start of Python, until it has printed its line and returned. Each
run is a first start in an empty folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mqlab.broker import packages
from mqlab.broker.node import Node, find_server
from mqlab.broker.ports import free_port


def answers(port: int) -> bool:
    """Return whether a broker on this port sends the first frame of a handshake."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as client:
        client.settimeout(1.0)
        client.sendall(b"AMQP\x00\x00\x09\x01")
        return client.recv(1) == b"\x01"
    return False


def start_rabbitmq(script: Path, folder: Path) -> float:
    """Return the seconds of RabbitMQ's own start, then kill it and its epmd."""
    port, management_port, epmd_port = free_port(), free_port(), free_port()
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\nmanagement.tcp.port = {management_port}\n"
    )
    (folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
    environ = {
        "PATH": f"{script.parents[2] / 'erlang/bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"own{port}@localhost",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_DIST_PORT": str(free_port()),
        "ERL_EPMD_PORT": str(epmd_port),
        "MQLAB_NODE_DIR": str(folder),  # only so that Node.kill below finds its processes
    }
    started = time.monotonic()
    server = subprocess.Popen(
        [script], env=environ, cwd=folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not answers(port):
            if time.monotonic() - started > 90:
                raise SystemExit("RabbitMQ was not ready after 90 s")
            time.sleep(0.01)
        return time.monotonic() - started
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        Node(folder, port, management_port).kill()


def start_mqlab(script: Path, folder: Path) -> float:
    """Return the seconds of the whole command, then kill the node."""
    port, management_port = free_port(), free_port()
    environ = os.environ | {"XDG_STATE_HOME": str(folder), "MQLAB_RABBITMQ": str(script)}
    command = [sys.executable, "-m", "mqlab", "broker", "start", "--way", "local"]
    options = ["--port", str(port), "--management-port", str(management_port)]
    started = time.monotonic()
    try:
        subprocess.run(
            command + options, env=environ, check=True, timeout=90, stdout=subprocess.DEVNULL
        )
        return time.monotonic() - started
    finally:
        Node(folder / f"mqlab/broker-{port}", port, management_port).kill()


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    script = find_server() or packages.fetch_server()
    times: dict[str, list[float]] = {"RabbitMQ's own": [], "mqlab broker start": []}
    for number in range(repeats):
        for name, start in zip(times, (start_rabbitmq, start_mqlab), strict=True):
            folder = Path(tempfile.mkdtemp(prefix="mqlab-bench-")).resolve()
            try:
                times[name].append(start(script, folder))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            print(f"{number + 1} of {repeats}: {name} {times[name][-1]:.2f} s", file=sys.stderr)
    print("| start | median s | shortest | longest |\n|---|---|---|---|")
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.2f} | {min(values):.2f} | {max(values):.2f} |")
    own, ours = times.values()
    print(f"\nratio of the medians: {statistics.median(ours) / statistics.median(own):.2f}")
    print(f"ratio of the shortest: {min(ours) / min(own):.2f}   (aim: at most 1.15)")


if __name__ == "__main__":
    main()
