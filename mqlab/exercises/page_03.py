"""The exercises of page 03: a publisher that claims only what is in the queue, a cut included."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pika.exceptions

from mqlab.exercises.engine.bench import Bench, Call, DidNotReturn, some
from mqlab.exercises.engine.exercise import Exercise, Incorrect

BY_HAND = "A task into a queue, by hand"
CONFIRMS = "The step that is not there at all"
KEEP = "Predict again"
NOWHERE = "Four ways to publish to nowhere, by hand"
CUT = "Cut in the middle"
LIBRARY = "The library's way"
TASK_1, TASK_2 = "Exercise 1: for everyone", "Exercise 2: a stretch"
BOUND_S = 5.0
"""Seconds for those runs in which somebody may try without end."""
# What pika raises for a connection that is lost, and then for its channel.
CUT_ERRORS = (pika.exceptions.AMQPConnectionError, pika.exceptions.ChannelWrongStateError)


def judge_send_all(send_all: Any) -> list[str]:
    """Exercise 1: first with a queue that exists, then with one that does not."""
    tasks = _texts()
    with Bench() as bench:
        queue = bench.new_queue()
        called = bench.call(send_all, bench.connect, queue, list(tasks))
        called.raise_if_failed("What can go wrong")
        claimed = _list_of(tasks, called, TASK_1)
        arrived = bench.take_all(queue)
        _check_connections(bench, called, len(claimed), len(arrived))
        _check_addressed(bench, queue)
        _check_all_arrived(tasks, claimed, [text for _, text in arrived])
        _check_persistent(arrived)
        confirms = bench.count("Basic.Ack", from_client=False)
        evidence = [
            f"{len(tasks)} tasks on one connection: confirmed {confirms}, "
            f"in the queue {len(arrived)}, claimed {len(claimed)}"
        ]
        if not bench.count("Connection.Close"):
            evidence.append(
                "you left the connection open: `with connect() as connection:` closes it"
            )
    evidence += _judge_without_a_queue(send_all)
    if not confirms:
        raise Incorrect(
            "Your list is right, but nobody told you so.",
            "You never asked the broker to confirm. This time all arrived. When the connection "
            "breaks in between, you claim tasks that are not there.",
            evidence=[f"{len(tasks)} tasks: confirmed 0, claimed {len(claimed)}"],
            look_at=CONFIRMS,
        )
    return evidence


def _judge_without_a_queue(send_all: Any) -> list[str]:
    tasks = _texts()
    with Bench() as bench:
        missing = bench.new_queue(declare=False)
        try:
            called = bench.call(send_all, bench.connect, missing, list(tasks), timeout_s=BOUND_S)
        except DidNotReturn as endless:
            raise Incorrect(
                "You try again until a queue takes the task, and there is none.",
                f"A queue was named that does not exist. {endless.message}",
                evidence=[f"messages sent: {bench.count('Basic.Publish')}", *endless.evidence],
                look_at=NOWHERE,
            ) from None
        sent = bench.count("Basic.Publish")
        confirms = bench.count("Basic.Ack", from_client=False)
        returned = bench.count("Basic.Return", from_client=False)
        numbers = f"no such queue: sent {sent}, confirmed {confirms}, sent back {returned}"
        if isinstance(called.error, pika.exceptions.UnroutableError):
            raise Incorrect(
                "The first task that comes back ends your function.",
                "There was no queue, and you were told: UnroutableError. Nobody caught it, so "
                "there is no list. The truthful answer is the empty list.",
                evidence=[numbers],
                look_at=NOWHERE,
            )
        called.raise_if_failed(NOWHERE)
        claimed = _list_of(tasks, called, TASK_1)
        if _declared(bench, missing):
            raise Incorrect(
                "You made the queue that was missing.",
                "Now it is there, and nobody reads it. A spelling mistake in the name would be "
                "a new queue full of lost work. Send without declaring, and tell what came back.",
                evidence=[
                    f"{len(bench.take_all(missing))} messages wait in a queue of your making"
                ],
                look_at=NOWHERE,
            )
        if not claimed:
            return [f"{numbers}, claimed 0"]
        numbers += f", claimed {len(claimed)}"
        if returned and not confirms:
            raise Incorrect(
                "The tasks came back, and you were not listening.",
                "The queue did not exist. With mandatory the broker sends back what no queue "
                "wants, and without confirms basic_publish has returned by then.",
                evidence=[numbers],
                look_at=NOWHERE,
            )
        if not confirms:
            raise Incorrect(
                "You claim tasks although nobody has confirmed them.",
                f"The queue did not exist. You claim {len(claimed)} tasks, and all are gone. That "
                "basic_publish returns says only that bytes were handed over.",
                evidence=[numbers],
                look_at=CONFIRMS,
            )
        if not returned:
            raise Incorrect(
                "Confirmed is not routed.",
                f"The queue did not exist. The broker confirmed {confirms} tasks, which says that "
                "it has dealt with them: it threw them away. It sends them back only if you ask.",
                evidence=[numbers],
                look_at=NOWHERE,
            )
        raise Incorrect(
            "You are told that a task is lost, and claim it all the same.",
            f"The queue did not exist. {returned} tasks came back, each as an UnroutableError. "
            "Whoever catches the error must leave that task out of the list.",
            evidence=[numbers],
            look_at=NOWHERE,
        )


def judge_through_a_cut(send_all_through_a_cut: Any) -> list[str]:
    """Exercise 2: the connection is cut after a random message, whose confirm is lost."""
    tasks = {f"{random.randrange(16**8):08x}": text for text in _texts()}
    cut_at = random.randint(len(tasks) // 3, 2 * len(tasks) // 3)
    with Bench() as bench:
        queue = bench.new_queue()
        bench.cut_after(cut_at)
        called = _call_through_a_cut(bench, send_all_through_a_cut, queue, tasks, cut_at)
        claimed = _list_of(tasks, called, TASK_2)
        arrived = bench.take_all(queue)
        _check_connections(bench, called, len(claimed), len(arrived), allowed=len(tasks) // 2)
        _check_ids(tasks, arrived)
        _check_persistent(arrived)
        copies = Counter(properties.message_id for properties, _ in arrived)
        _check_claims_after_a_cut(bench, tasks, claimed, set(copies), cut_at)
        _check_sent_again(bench, claimed, cut_at)
        doubled = [task_id for task_id, number in copies.items() if number > 1]
        known = _confirms_before(bench, cut_at)
        if len(arrived) - len(copies) > cut_at - known:
            raise Incorrect(
                "You send again what was confirmed already.",
                f"Before the cut {known} tasks were confirmed: those are safe. After it you sent "
                f"them again, and a worker has {len(doubled)} tasks to recognise as double.",
                evidence=[
                    f"{len(tasks)} tasks: messages in the queue {len(arrived)}, "
                    f"{len(doubled)} tasks are in it more than once"
                ],
                look_at=LIBRARY,
            )
        evidence = [
            f"cut after message {cut_at}, whose confirm was lost; "
            f"connections opened: {bench.connections}",
            f"{len(tasks)} tasks: in the queue {len(copies)}, claimed {len(claimed)}",
        ]
        evidence += [
            f"{each} is there twice, with the same id: a worker can tell" for each in doubled
        ]
        return evidence


def _call_through_a_cut(
    bench: Bench, function: Any, queue: str, tasks: dict[str, str], cut_at: int
) -> Call:
    where = f"cut after message {cut_at} of {len(tasks)}"
    try:
        called = bench.call(function, bench.connect, queue, dict(tasks), timeout_s=BOUND_S)
    except DidNotReturn as endless:
        if bench.cuts != 1 or bench.connections != 1:
            raise
        raise Incorrect(
            "You try again on the connection that is gone.",
            "A connection that was cut does not come back, nor do its channels: each new attempt "
            f"fails at once. Open a new one with connect(). {endless.message}",
            evidence=[f"{where}; connections opened: 1", *endless.evidence],
            look_at="What can go wrong",
        ) from None
    if bench.cuts and isinstance(called.error, CUT_ERRORS):
        raise Incorrect(
            "The cut ends your function.",
            f"{type(called.error).__name__} came out of it, and nobody knows now which tasks are "
            "in the queue. Catch it where you send, and go on with a new connection.",
            evidence=[f"{where}; connections opened: {bench.connections}"],
            look_at="What can go wrong",
        )
    called.raise_if_failed(CUT)
    return called


def _check_claims_after_a_cut(
    bench: Bench, tasks: dict[str, str], claimed: list[str], there: set[str], cut_at: int
) -> None:
    numbers = f"{len(tasks)} tasks, cut after {cut_at}: in the queue {len(there)}, "
    numbers += f"claimed {len(claimed)}"
    lost = set(claimed) - there
    asked = bench.count("Confirm.Select")
    if lost and not asked:
        raise Incorrect(
            "You claim tasks although nobody has confirmed them.",
            f"{len(lost)} of them were lost with the connection. Without confirms basic_publish "
            "returns as if all were well.",
            evidence=[numbers, f"claimed and not there: {some(lost)}"],
            look_at=CUT,
        )
    if lost:
        raise Incorrect(
            "You swallow the error and count the task as sent.",
            f"After the cut basic_publish raised an error for each of {len(lost)} tasks. They are "
            "in your list, and not in the queue.",
            evidence=[numbers, f"claimed and not there: {some(lost)}"],
            look_at=CUT,
        )
    if not asked:
        raise Incorrect(
            "Your list is right, but nobody told you so.",
            "You never asked the broker to confirm, so you cannot know what to send again.",
            evidence=[f"{numbers}, confirmed 0"],
            look_at=CONFIRMS,
        )
    left_out = set(tasks) - set(claimed)
    if len(left_out) == 1:
        raise Incorrect(
            "You drop the task whose confirm was lost.",
            "It was on its way when the connection was cut, so it may be in the queue or not. "
            "Send it again with the same id: then it is there, once or twice, and a worker can "
            "tell that the two are one.",
            evidence=[numbers, f"not claimed: {some(left_out)}"],
            look_at=LIBRARY,
        )
    if left_out - there:
        raise Incorrect(
            "Your list is true, and the rest was never sent.",
            "That is the harder half: you claim nothing that is not there. Now open a new "
            "connection after the cut, and send what was not confirmed.",
            evidence=[numbers, f"connections opened: {bench.connections}"],
            look_at=LIBRARY,
        )
    if left_out:
        raise _leaves_out(left_out, numbers, TASK_2)


def _check_sent_again(bench: Bench, claimed: list[str], cut_at: int) -> None:
    published = [said for said in bench.said if said.name == "Basic.Publish" and said.properties]
    ids = [said.properties.message_id for said in published]
    unknown = ids[cut_at - 1]
    if bench.cuts and unknown in claimed and ids.count(unknown) == 1:
        raise Incorrect(
            "You claim the task whose confirm was lost, without sending it again.",
            "This time it had arrived before the cut. Nobody told you so: the next time it is "
            "lost. Send it again with the same id, and claim it when that is confirmed.",
            evidence=[f"task {unknown} was sent once, and its confirm never came"],
            look_at=LIBRARY,
        )


def _check_connections(
    bench: Bench, called: Call, claimed: int, arrived: int, allowed: int = 1
) -> None:
    opened = bench.connections
    if not opened and arrived:
        raise Incorrect(
            "You do not use the connect() that your function is given.",
            "The tasks came by another way, which the check cannot see. Call the first argument.",
            evidence=[f"in the queue {arrived}, connections opened with connect(): 0"],
            look_at=TASK_1 if allowed == 1 else TASK_2,
        )
    if not opened or not bench.count("Basic.Publish"):
        raise Incorrect(
            "You return a list, and send nothing.",
            evidence=[f"sent {bench.count('Basic.Publish')}, in the queue {arrived}, "
                      f"claimed {claimed}"],
            look_at=BY_HAND,
        )  # fmt: skip
    if opened > allowed:
        raise Incorrect(
            "You open a connection for every task."
            if opened >= arrived
            else "You open more than one connection.",
            "Each needs a login, which takes longer than the publish. All together took "
            f"{called.seconds:.2f} s. Open one, and keep it.",
            evidence=[f"connections opened: {opened}, for {arrived} messages in the queue"],
            look_at=KEEP,
        )


def _check_addressed(bench: Bench, queue: str) -> None:
    keys = {said.method.routing_key for said in bench.said if said.name == "Basic.Publish"}
    if keys and queue not in keys:
        raise Incorrect(
            "You send to another queue than the one that you are given.",
            "Use the argument queue, not a name of the page's: the check has a queue of its own.",
            evidence=[f"given: {queue}, sent to: {some(map(repr, keys))}"],
            look_at=TASK_1,
        )


def _check_all_arrived(tasks: list[str], claimed: list[str], texts: list[str]) -> None:
    numbers = f"{len(tasks)} tasks: in the queue {len(texts)}, claimed {len(claimed)}"
    if strangers := set(texts) - set(tasks):
        raise _changed(f"task: {tasks[0]!r}, in the queue: {sorted(strangers)[0]!r:.80}")
    if len(texts) > len(set(texts)):
        raise Incorrect(
            "You send tasks more than once.",
            "Each of them is work that a worker would do again.",
            evidence=[numbers],
            look_at=BY_HAND,
        )
    if len(texts) < len(tasks):
        raise Incorrect(
            "You do not send all the tasks.",
            evidence=[numbers, f"not in the queue: {some(set(tasks) - set(texts))}"],
            look_at=TASK_1,
        )
    if left_out := set(tasks) - set(claimed):
        raise _leaves_out(left_out, numbers, TASK_1)


def _check_ids(tasks: dict[str, str], arrived: list[tuple[Any, str]]) -> None:
    if strangers := {text for _, text in arrived} - set(tasks.values()):
        raise _changed(
            f"task: {next(iter(tasks.values()))!r}, in the queue: {sorted(strangers)[0]!r:.80}"
        )
    if not all(properties.message_id for properties, _ in arrived):
        raise Incorrect(
            "Your messages carry no id.",
            "When one comes twice, a worker has no way to tell that it is the same task.",
            evidence=[f"messages in the queue: {len(arrived)}, the first has message_id "
                      f"{arrived[0][0].message_id!r}"],
            look_at=LIBRARY,
        )  # fmt: skip
    wrong = [(p.message_id, text) for p, text in arrived if tasks.get(p.message_id) != text]
    if wrong:
        copies = Counter(text for _, text in arrived)
        text = next((text for _, text in wrong if copies[text] > 1), wrong[0][1])
        [own] = [task_id for task_id, each in tasks.items() if each == text]
        found = [str(p.message_id) for p, each in arrived if each == text]
        raise Incorrect(
            "The id of a task changes on the way.",
            "A task keeps its id, on every attempt. Otherwise a task that comes twice looks like "
            "two tasks, and is done twice.",
            evidence=[f"task {own} is in the queue as message_id {' and '.join(found)}"],
            look_at=LIBRARY,
        )


def _check_persistent(arrived: list[tuple[Any, str]]) -> None:
    transient = [text for properties, text in arrived if properties.delivery_mode != 2]
    if transient:
        raise Incorrect(
            "Your messages would not survive a restart of the broker.",
            "The queue is durable, the messages in it are not. Ask the broker to keep them on "
            "disk.",
            evidence=[f"messages in the queue: {len(arrived)}, not persistent: {len(transient)}"],
            look_at=BY_HAND,
        )


def _list_of(tasks: Sequence[str] | dict[str, str], called: Call, look_at: str) -> list[str]:
    """What the function claims, if it is a list of tasks (or of their ids), each at most once."""
    value = called.value
    what = "ids of the tasks" if isinstance(tasks, dict) else "tasks"
    if not isinstance(value, list | tuple):
        raise Incorrect(
            "Your function does not return a list.",
            f"A list of the {what} that are in the queue is asked for, an empty one included.",
            evidence=[f"it returned {value!r:.80}"],
            look_at=look_at,
        )
    strangers = [each for each in value if each not in list(tasks)]
    if strangers:
        raise Incorrect(
            "Your list has something else in it than what you were given.",
            f"It should hold {what}, as they came.",
            evidence=[f"one of {len(strangers)}: {strangers[0]!r:.80}"],
            look_at=look_at,
        )
    if len(set(value)) < len(value):
        raise Incorrect(
            "Your list names a task more than once.",
            evidence=[f"{len(value)} entries, {len(set(value))} different ones"],
            look_at=look_at,
        )
    return list(value)


def _leaves_out(left_out: set[str], numbers: str, look_at: str) -> Incorrect:
    return Incorrect(
        "Your list leaves out tasks that are in the queue.",
        "Whoever reads it will send them again.",
        evidence=[numbers, f"not claimed: {some(left_out)}"],
        look_at=look_at,
    )


def _changed(evidence: str) -> Incorrect:
    return Incorrect(
        "What arrives is not what you were given.",
        "The text of a task is the body of its message, as it is.",
        evidence=[evidence],
        look_at=BY_HAND,
    )


def _declared(bench: Bench, queue: str) -> bool:
    declared = [said.method for said in bench.said if said.name == "Queue.Declare"]
    return any(method.queue == queue and not method.passive for method in declared)


def _confirms_before(bench: Bench, cut_at: int) -> int:
    """How many messages the client knew to be confirmed when it sent the one before the cut."""
    published = [said for said in bench.said if said.name == "Basic.Publish"]
    tags = [
        said.method.delivery_tag
        for said in bench.said
        if said.name == "Basic.Ack" and said.at < published[cut_at - 1].at
    ]
    return max(tags, default=0)


def _texts() -> list[str]:
    return [f"report {n:06}" for n in random.sample(range(10**6), random.randint(20, 40))]


ex1 = Exercise(
    "03",
    1,
    judge_send_all,
    hints=[
        "Open one connection with `connect()` and one channel on it, before the loop. A task is in "
        "the queue when the broker has taken it *and* a queue wanted it: which two safety nets "
        "tell you so?",
        '`channel.confirm_delivery()` once, then for each task `channel.basic_publish("", queue, '
        "task, PERSISTENT, mandatory=True)`. One of two things happens: it returns, or it raises.",
        "Put `try` and `except pika.exceptions.UnroutableError` round the publish of *one* task, "
        "inside the loop. Append the task to your list only if nothing was raised.",
    ],
)

ex2 = Exercise(
    "03",
    2,
    judge_through_a_cut,
    hints=[
        "Start from exercise 1, and keep two things: the ids that are confirmed, and the tasks "
        "that are not yet. Only the second are sent after the cut.",
        "The cut shows as an exception from `basic_publish`: `pika.exceptions.AMQPConnectionError` "
        "covers its kinds. Put `try` round everything that happens on one connection, from "
        "`connect()` on, and a loop of a few attempts round that.",
        "Each message gets `pika.BasicProperties(message_id=task_id, "
        "delivery_mode=pika.DeliveryMode.Persistent)`. When its publish has returned, append the "
        "id to the confirmed ones and take it out of those that wait. The one that was on its way "
        "at the cut still waits: it is sent again, with the same id.",
    ],
)
