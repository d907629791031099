"""The command ``mqlab``, also as ``python -m mqlab``.

Each of its commands is a ``run_…`` function, which takes the parsed arguments and returns the exit
status, and a few lines in ``build_parser``. A module that only one command needs is imported in
that function, so that every command starts fast. Errors are printed without a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mqlab.arguments import check_queue
from mqlab.commands import command as command_line
from mqlab.errors import MqlabError
from mqlab.task import QUEUE
from mqlab.workshop.output import escaped

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done, or stopped as asked. 1: an error, in words on stderr. 2: the arguments cannot be used
    (raises SystemExit). 130: interrupted by Ctrl-C.
    """
    with escaped():
        try:
            arguments = build_parser().parse_args(argv)
            run: Run = arguments.run
            status = run(arguments)
        except SystemExit:  # --help, or arguments that argparse refuses
            if _flush():
                return 1
            raise
        except MqlabError as error:
            status = _fail(str(error))
        except KeyboardInterrupt:
            status = _fail("\nInterrupted.", 130)
        except OSError as error:  # a pipe that was closed, a full disk, a file that is not there
            return _flush() or _fail(f"mqlab: {error}")
        return _flush() or status


def _fail(words: str, status: int = 1) -> int:
    with contextlib.suppress(OSError):  # nobody reads it
        print(words, file=sys.stderr, flush=True)
    return status


def _flush() -> int:
    """Write what is still buffered, while an error can be reported; return the exit status."""
    if sys.stdout:
        try:
            sys.stdout.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # or Python tries again, and complains, at its exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _fail(f"mqlab: stdout cannot be written: {error.strerror}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = argparse.ArgumentParser(
        prog="mqlab",
        description="Move slow work off the request path with RabbitMQ, and measure it.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    broker = _add(commands, "broker", "start and stop a broker on this machine, or check on it")
    actions = broker.add_subparsers(metavar="ACTION", required=True)
    start = _add(actions, "start", "start a broker, or find the one that runs", run_start)
    stop = _add(actions, "stop", "stop the broker that `start` started", run_stop)
    status = _add(actions, "status", "show which broker answers, if any", run_status)
    logs = _add(actions, "logs", "show the last lines of the broker's log", run_logs)
    run = _add(actions, "run", "start a broker, run a command, stop the broker", run_command)
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND with its arguments")
    run.epilog = "A broker that runs already is used, and left running."
    start.epilog = (
        "Tried in this order: AMQP_URL if it is set; Docker Compose if an engine answers; the "
        "RabbitMQ of this machine as a private node; on Debian and Ubuntu its packages, fetched "
        "and unpacked without root. --way (or MQLAB_BROKER) chooses one."
    )
    for action in (start, stop):
        action.add_argument("--way", choices=("docker", "local"), help="how to run the broker")
    for action in (start, stop, status, logs):
        action.add_argument(
            "--port", type=_port, help="AMQP port (default: MQLAB_AMQP_PORT, else 5673)"
        )
    start.add_argument(
        "--management-port",
        type=_port,
        help="port of the management UI (default: MQLAB_MANAGEMENT_PORT, else 15673)",
    )
    logs.add_argument(
        "--lines", type=_count, default=40, metavar="N", help="how many lines (default: 40)"
    )

    _add(commands, "doctor", "check what a workshop needs here, and suggest fixes", run_doctor)

    work = _add(commands, "work", "work through a queue until Ctrl-C", run_work)
    work.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="tasks at a time (default: 1)"
    )
    work.add_argument(
        "--duration", type=_seconds, default=5.0, metavar="S",
        help="seconds that a task takes (default: 5)",
    )  # fmt: skip
    work.add_argument(
        "--events", action="store_true", help="print JSON lines, and stop when stdin is closed"
    )
    work.epilog = (
        "Stops with status 0 on Ctrl-C, SIGTERM and SIGHUP; 1 if it fails or cannot print."
    )
    send = _add(commands, "send", "send one task, and show what each step costs", run_send)
    send.add_argument("data", help='what the report is about, such as "Audit Report"')
    sync = _add(commands, "sync", "do the work in the client: no queue, no broker", run_sync)
    sync.add_argument("data", help='what the report is about, such as "Sales Report"')

    demo = _add(commands, "demo", "run the walk-through in half a minute, with a plot", run_demo)
    demo.add_argument("--png", type=Path, default=Path("mqlab-demo.png"), help="the plot's file")

    dead = _add(commands, "dead", "read the dead-letter queue, or send its messages back")
    fates = dead.add_subparsers(metavar="ACTION", required=True)
    listing = _add(fates, "list", "show the dead messages, and leave them there", run_dead_list)
    requeue = _add(fates, "requeue", "send the dead messages back to their queue", run_requeue)
    requeue.add_argument("--id", help="only tasks whose id starts with this")
    listing.add_argument(
        "--limit", type=_count, default=100, metavar="N", help="how many at most (default: 100)"
    )
    for command in (work, send, listing, requeue):
        command.add_argument(
            "--queue", type=_queue, default=QUEUE, help=f"the queue (default: {QUEUE})"
        )

    room = _add(commands, "room", "give each attendee a seat on a shared broker")
    steps = room.add_subparsers(metavar="ACTION", required=True)
    create = _add(steps, "create", "create a login for each seat, and a file of slips", run_room)
    create.add_argument("seats", type=_count, help="how many attendees")
    create.add_argument("--host", help="the broker's address, as attendees reach it")
    create.add_argument("--file", type=Path, help="the slips' file (default: mqlab-room.txt)")
    create.add_argument(
        "--new-passwords", action="store_true", help="replace every login, and the file"
    )
    create.epilog = (
        "AMQP_URL must be an administrator's. Run it again after an interruption, or for more "
        "seats: logins that have a slip in the file are kept. See docs/instructor-guide.md."
    )
    seats = _add(steps, "list", "show what is in use at each seat", run_room_list)
    remove = _add(steps, "remove", "delete the room, and everything in it", run_room_remove)
    for command in (create, seats, remove):
        command.add_argument("--name", default="room", help="the room's name (default: room)")

    pages = _add(commands, "pages", "list your own copies of the pages, or renew one", run_pages)
    choices = pages.add_subparsers(metavar="ACTION")
    _add(choices, "list", "make the copies that are missing, and list all", run_pages)
    renew = _add(choices, "renew", "replace a copy with the project's page", run_renew)
    renew.add_argument("page", help="its name, or the first letters, such as 03")
    renew.epilog = "Your copy is kept beside the new one, with the date in its name."

    lab = _add(commands, "lab", "start a broker and JupyterLab, and stop both together", run_lab)
    lab.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    return parser


def run_start(arguments: argparse.Namespace) -> int:
    from mqlab import broker

    started = broker.start(
        way=arguments.way, port=arguments.port, management_port=arguments.management_port
    )
    print(started)
    print(f"Management UI: {started.settings.management_url}")
    return 0


def run_stop(arguments: argparse.Namespace) -> int:
    from mqlab import broker

    broker.stop(way=arguments.way, port=arguments.port)
    return 0


def run_status(arguments: argparse.Namespace) -> int:
    from mqlab import broker

    found = broker.status(port=arguments.port)
    print(found)
    page = found.settings.management_url
    print(f"Management UI: {page}" + ("" if broker.page_answers(page) else "  (does not answer)"))
    return 0


def run_doctor(_arguments: argparse.Namespace) -> int:
    from mqlab.workshop import doctor

    failed: list[str] = []
    for finding in doctor.examine():
        print(finding, flush=True)
        if finding.state == doctor.FAIL:
            failed.append(finding.subject)
    if failed:
        print(f"\nFix these first: {', '.join(failed)}.")
        return 1
    print("\nEverything that a workshop needs is here.")
    return 0


def run_logs(arguments: argparse.Namespace) -> int:
    from mqlab import broker

    print(broker.logs(port=arguments.port, lines=arguments.lines))
    return 0


def run_work(arguments: argparse.Namespace) -> int:
    if arguments.events:
        from mqlab.dashboard.process import run_worker_with_events as run
    else:
        from mqlab.workshop.worker import run_worker as run
    return run(queue=arguments.queue, workers=arguments.workers, duration_s=arguments.duration)


def run_send(arguments: argparse.Namespace) -> int:
    from mqlab.walkthrough import send_task_to_queue

    print(send_task_to_queue(arguments.data, queue=arguments.queue))
    return 0


def run_sync(arguments: argparse.Namespace) -> int:
    from mqlab.walkthrough import run_synchronous_experiment

    run_synchronous_experiment(arguments.data)
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    from mqlab import broker

    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise MqlabError(
            "There is no command to run.", fix=command_line("broker run -- COMMAND ...")
        )
    found = broker.start(with_parent=True)
    try:
        return subprocess.run(command, check=False).returncode
    except OSError as error:
        raise MqlabError(f"{command[0]} cannot be run.", why=str(error.strerror)) from error
    finally:
        if found.started:
            broker.stop(way=found.way, port=found.settings.port)


def run_dead_list(arguments: argparse.Namespace) -> int:
    from mqlab.dead import list_dead

    found = list_dead(arguments.queue, limit=arguments.limit)
    for message in found:
        print(message)
    print(f"{len(found)} dead message{'s' * (len(found) != 1)} of {arguments.queue}.")
    return 0


def run_requeue(arguments: argparse.Namespace) -> int:
    from mqlab.dead import requeue_dead

    moved = requeue_dead(arguments.queue, task_id=arguments.id)
    print(f"{moved} message{'s' * (moved != 1)} sent back to {arguments.queue}.")
    return 0


def run_room(arguments: argparse.Namespace) -> int:
    from mqlab.workshop import seats as room

    room.create(
        arguments.seats, host=arguments.host, name=arguments.name, file=arguments.file,
        new_passwords=arguments.new_passwords,
    )  # fmt: skip
    return 0


def run_room_list(arguments: argparse.Namespace) -> int:
    from mqlab.workshop import seats as room

    seats = room.look(arguments.name)
    for seat in seats:
        print(seat)
    print(f"{len(seats)} seat{'s' * (len(seats) != 1)} in {arguments.name}.")
    return 0


def run_room_remove(arguments: argparse.Namespace) -> int:
    from mqlab.workshop import seats as room

    room.remove(arguments.name)
    return 0


def run_pages(_arguments: argparse.Namespace) -> int:
    from mqlab.workshop import pages

    root = pages.find_root()
    for page in pages.make_copies(root):
        print(page)
    print(f"They are in {root / pages.COPIES}")
    return 0


def run_renew(arguments: argparse.Namespace) -> int:
    from mqlab.workshop import pages

    copy, kept = pages.renew(pages.find_root(), arguments.page)
    print(f"{copy.name} is the project's page again; yours is kept as {kept.name}")
    print("If JupyterLab has it open: File > Reload Notebook from Disk.")
    return 0


def run_demo(arguments: argparse.Namespace) -> int:
    from mqlab.workshop.demo import demo

    demo(png=arguments.png)
    return 0


def run_lab(arguments: argparse.Namespace) -> int:
    from mqlab.workshop import lab

    return lab.run_lab(browser=not arguments.no_browser)


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    run: Run | None = None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
    if run:
        parser.set_defaults(run=run)
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 86400")
    return seconds


def _queue(text: str) -> str:
    try:
        return check_queue(text, suffix=".dead")
    except MqlabError as error:
        raise argparse.ArgumentTypeError(f"{error.what} {error.why}") from error
