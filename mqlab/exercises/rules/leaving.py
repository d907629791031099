"""What no answer may leave behind: consumers, connections, threads, changes on the broker."""

from __future__ import annotations

from mqlab.exercises.engine.bench import LEAVE_WITHIN_S, Bench
from mqlab.exercises.engine.call import counted, some
from mqlab.exercises.engine.exercise import Incorrect


def check_nothing_is_left(bench: Bench, queue: str, look_at: str) -> None:
    """Raise Incorrect for what is still there ``LEAVE_WITHIN_S`` seconds after the return."""
    after = f"{LEAVE_WITHIN_S:g} s after your function had returned, there"
    if bench.exists(queue) and (consumers := bench.wait_until_left(lambda: bench.consumers(queue))):
        raise Incorrect(
            "You left a consumer behind.",
            "The next task goes to it, and nobody works on it.",
            evidence=[f"{after} still was {counted(consumers, 'consumer')} on the queue"],
            look_at=look_at,
        )
    if connections := bench.wait_until_left(bench.open_connections):
        raise Incorrect(
            "You left a connection open.",
            "Every run of your cell leaves another one, and the broker has a limit. "
            "`with connect() as connection:` closes it, whatever happens inside.",
            evidence=[f"{after} still was {counted(connections, 'open connection')}"],
            look_at=look_at,
        )
    if threads := bench.wait_until_left(bench.running_threads):
        raise Incorrect(
            "You left a thread running.",
            "Let it end, and join it before you return.",
            evidence=[f"{after} still ran {counted(len(threads), 'thread')}: {some(threads)}"],
            look_at=look_at,
        )


def check_objects(bench: Bench, look_at: str) -> None:
    """Raise Incorrect if queues, exchanges, bindings or policies have changed."""
    if changes := bench.wait_until_left(bench.changes):
        raise Incorrect(
            "You changed something else on the broker.",
            "Your function may send or take messages. Everything else has to stay as it was.",
            evidence=[str(each) for each in changes[:3]],
            look_at=look_at,
        )
