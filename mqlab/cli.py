"""The commands of ``python -m mqlab``.

A command is a ``run_…`` function that takes the parsed arguments and returns the exit status, and
its lines in ``build_parser``. What only one command needs is imported in that function, so that
every command starts fast. Errors of mqlab are printed as they are, without a traceback.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mqlab.errors import MqlabError
from mqlab.task import QUEUE

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 fine, 1 an error in words, 130 Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    run: Run = arguments.run
    try:
        return run(arguments)
    except MqlabError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = argparse.ArgumentParser(
        prog="python -m mqlab",
        description="Move slow work off the request path with RabbitMQ, and measure it.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    broker = _add(commands, "broker", "start, stop or look at the broker of this machine", None)
    actions = broker.add_subparsers(metavar="ACTION", required=True)
    start = _add(actions, "start", "start a broker, or find the one that is there", run_start)
    stop = _add(actions, "stop", "stop the broker that `start` started", run_stop)
    status = _add(actions, "status", "tell which broker answers, if any", run_status)
    logs = _add(actions, "logs", "show the last lines of the broker's own log", run_logs)
    run = _add(actions, "run", "start the broker, run a command, stop the broker", run_command)
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND with its arguments")
    run.epilog = "A broker that is there already is used, and goes on afterwards."
    start.epilog = (
        "Ways, in this order: AMQP_URL if it is set; Docker Compose if an engine answers; the "
        "RabbitMQ of this machine as a private node; on Debian and Ubuntu its packages, fetched "
        "and unpacked without root. --way (or MQLAB_BROKER) forces one."
    )
    for action in (start, stop):
        action.add_argument("--way", choices=("docker", "local"), help="force this way")
    for action in (start, stop, status, logs):
        action.add_argument(
            "--port", type=_port, help="AMQP port (default: MQLAB_AMQP_PORT, else 5673)"
        )
    start.add_argument(
        "--management-port",
        type=_port,
        help="port of the management page (default: MQLAB_MANAGEMENT_PORT, else 15673)",
    )
    logs.add_argument("--lines", type=int, default=40, help="how many lines (default: 40)")

    _add(commands, "doctor", "tell what is fine here, what is not, and what mends it", run_doctor)

    work = _add(commands, "work", "do the tasks of a queue until Ctrl-C", run_work)
    work.add_argument("--workers", type=int, default=1, help="tasks at one time (default: 1)")
    work.add_argument(
        "--duration", type=float, default=5.0, metavar="S", help="seconds a task takes (default: 5)"
    )
    work.add_argument(
        "--events", action="store_true", help="write lines of JSON, and end when stdin ends"
    )
    send = _add(commands, "send", "send one task, and show what each step cost", run_send)
    send.add_argument("data", help='what the report is about, such as "Audit Report"')
    sync = _add(commands, "sync", "be the client that waits: no queue, no broker", run_sync)
    sync.add_argument("data", help='what the report is about, such as "Sales Report"')
    for command in (work, send):
        command.add_argument("--queue", default=QUEUE, help=f"the queue (default: {QUEUE})")

    demo = _add(commands, "demo", "the walk-through in half a minute, with a picture", run_demo)
    demo.add_argument("--png", type=Path, default=Path("mqlab-demo.png"), help="the picture's file")

    dead = _add(commands, "dead", "read the dead queue, or send what is in it back", None)
    fates = dead.add_subparsers(metavar="ACTION", required=True)
    listing = _add(fates, "list", "show the dead messages, and leave them there", run_dead_list)
    requeue = _add(fates, "requeue", "send the dead messages back to their queue", run_requeue)
    requeue.add_argument("--id", help="only the task with this id, or its beginning")
    listing.add_argument("--limit", type=int, default=100, help="how many at most (default: 100)")
    for command in (listing, requeue):
        command.add_argument("--queue", default=QUEUE, help=f"the queue (default: {QUEUE})")

    room = _add(commands, "room", "give each attendee a part of a broker that all share", None)
    steps = room.add_subparsers(metavar="ACTION", required=True)
    create = _add(steps, "create", "make a login for each seat, and a file of slips", run_room)
    create.add_argument("seats", type=int, help="how many attendees")
    create.add_argument("--host", help="the broker's machine, as attendees reach it")
    create.add_argument("--file", type=Path, help="the slips' file (default: mqlab-room.txt)")
    create.add_argument(
        "--new-passwords", action="store_true", help="make every login and the file anew"
    )
    create.epilog = (
        "AMQP_URL is an administrator's. Run it again to go on after an interruption, or for more "
        "seats: who has a slip in the file keeps that login. docs/instructor-guide.md has the rest."
    )
    seats = _add(steps, "list", "show what there is in the part of each attendee", run_room_list)
    remove = _add(steps, "remove", "delete the room, with all that is in it", run_room_remove)
    for command in (create, seats, remove):
        command.add_argument("--name", default="room", help="the room's name (default: room)")

    lab = _add(commands, "lab", "start a broker and JupyterLab, and end both together", run_lab)
    lab.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    return parser


def run_start(arguments: argparse.Namespace) -> int:
    from mqlab import broker

    started = broker.start(
        way=arguments.way, port=arguments.port, management_port=arguments.management_port
    )
    print(started)
    print(f"Management page: {started.settings.management_url}")
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
    print(f"Management page: {page}" + ("" if broker.page_answers(page) else "  (does not answer)"))
    return 0


def run_doctor(_arguments: argparse.Namespace) -> int:
    from mqlab.workshop import doctor

    failed: list[str] = []
    for finding in doctor.examine():
        print(finding, flush=True)
        if finding.state == doctor.FAIL:
            failed.append(finding.subject)
    if failed:
        print(f"\nNeeded, and not fine: {', '.join(failed)}.")
        return 1
    print("\nEverything that is needed is here.")
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
        raise MqlabError("There is no command to run.", fix="broker run -- COMMAND ...")
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
    run: Run | None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
    if run:
        parser.set_defaults(run=run)
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)
