"""The exercises of page 02: predictions of waits, held against clients who wait now.

A check calls the learner's function with numbers that nobody knows before, lets as many clients
wait, and compares. The comparison is in steps: a step is the length of one report. A machine that
is too busy to make steps is told so, and no answer is judged by its noise.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from math import isfinite
from typing import Any

from mqlab.exercises.engine.call import DidNotReturn, call, end_threads
from mqlab.exercises.engine.exercise import Exercise, Incorrect, NotChecked
from mqlab.measure.runs import run_waiting_clients

LINE, SIX = "A line of clients, by hand", "Six clients"
TASK_1, TASK_2 = "Exercise 1: for everyone", "Exercise 2: a stretch"
WRONG = "What can go wrong"
CLOSE = 0.4
"""Of a step. A prediction that is off by more is another one; so is a machine too busy to tell."""
ARITHMETIC_S = 1.9
"""Seconds. Who lets clients wait for the 2 s that are asked about needs longer."""
CALL_S = 8.0
"""Long enough for such a run to end by itself: its threads would not survive being stopped."""

Numbers = tuple[int, float, int]
"""Clients, seconds for a report, handlers."""


def _rule(clients: int, duration_s: float, handlers: int) -> list[float]:
    return [duration_s * -(-number // handlers) for number in range(1, clients + 1)]


# The shapes of wrong predictions: what each is made of, and the misconception behind it.
Explained = tuple[str, str, str]
"""Headline, message, heading on the page."""
FIRST_FREE: Explained = (
    "Your first clients wait 0 s.",
    "You count the reports that are made before, and forget the client's own. Even the one with "
    "nobody in front waits until the report is made.",
    LINE,
)
SHAPES: list[tuple[Callable[[int, float, int], list[float]], Explained]] = [
    (
        lambda n, s, _: [s] * n,
        (
            "You let each client wait as long as a report takes.",
            "That is the length of the work. All but the first have people in front, and wait for "
            "their reports as well.",
            LINE,
        ),
    ),
    (
        lambda n, s, h: _rule(n, s, h)[::-1],
        (
            "Your list begins with the one who waits longest.",
            "The numbers are right and their order is not: the first answered comes first.",
            SIX,
        ),
    ),
    (
        lambda n, _, __: [float(place) for place in range(1, n + 1)],
        (
            "You count reports, not seconds.",
            "Client 3 waits for three reports. For how many seconds is that?",
            LINE,
        ),
    ),
    (lambda n, s, h: [wait - s for wait in _rule(n, s, h)], FIRST_FREE),
    (lambda n, s, h: [0.0, *_rule(n, s, h)], FIRST_FREE),
    (
        lambda n, s, h: [wait + s for wait in _rule(n, s, h)],
        (
            "You count one report too many.",
            "The first client has nobody in front, and waits for its own report only.",
            LINE,
        ),
    ),
]
SHAPES_OF_MANY: list[tuple[Callable[[int, float, int], list[float]], Explained]] = [
    (
        lambda n, s, h: [s * (place // h) for place in range(1, n + 1)],
        (
            "You round down, and leave out a report.",
            "A round that is not full takes as long as a full one: who is served in it waits for "
            "a whole report.",
            TASK_2,
        ),
    ),
    (
        lambda n, s, h: [s * (place // h + 1) for place in range(1, n + 1)],
        (
            "Your rounds begin one client too early.",
            "With two handlers, clients 1 and 2 are served together, then 3 and 4. In which round "
            "is client 2?",
            TASK_2,
        ),
    ),
    (
        lambda n, s, h: [s * place / h for place in range(1, n + 1)],
        (
            "You let the handlers share one report.",
            "Nobody makes a report faster. Each handler makes a whole one, and the others make "
            "theirs at the same time.",
            TASK_2,
        ),
    ),
    (
        lambda n, s, _: _rule(n, s, 1),
        (
            "You let one handler do all the work.",
            "With several of them, several clients are answered at the same moment. Use the "
            "argument `handlers`.",
            TASK_2,
        ),
    ),
    (
        lambda n, s, h: sorted(set(_rule(n, s, h))),
        (
            "You give one number for each round, and not for each client.",
            "Clients who are served together wait equally long, and each of them has a number.",
            TASK_2,
        ),
    ),
]


def judge_one_handler(predict_waits: Any) -> list[str]:
    """Exercise 1: one handler. The numbers of the page itself, 6 and 8 clients, do not come."""

    def predict(clients: int, duration_s: float, _handlers: int) -> Any:
        return _call(predict_waits, clients, duration_s)

    step_s = random.choice((0.2, 0.3))
    hidden = [(random.choice((4, 5, 7)), step_s, 1), (4, 2 * step_s, 1), (3, 4 * step_s, 1)]
    return _judge(predict, hidden, [(1, 2.0, 1), (12, 0.5, 1)], TASK_1)


def judge_many_handlers(predict_waits_of_many: Any) -> list[str]:
    """Exercise 2: the last round is never a full one."""

    def predict(clients: int, duration_s: float, handlers: int) -> Any:
        return _call(predict_waits_of_many, clients, duration_s, handlers)

    clients, handlers = random.choice(((5, 2), (7, 2), (5, 3), (7, 3), (8, 3)))
    step_s = random.choice((0.2, 0.3))
    hidden = [(clients, step_s, handlers), (5, 2 * step_s, handlers), (5, 4 * step_s, handlers)]
    return _judge(predict, hidden, [(3, 1.0, 5), (6, 0.5, 1), (16, 1.5, 4)], TASK_2)


def _judge(
    predict: Callable[[int, float, int], Any],
    hidden: Sequence[Numbers],
    others: Sequence[Numbers],
    task: str,
) -> list[str]:
    for numbers in hidden:  # the first will do, unless the machine is busy
        predicted = predict(*numbers)
        if measured := _measure(*numbers):
            break
    else:
        raise NotChecked(
            "the machine is too busy now: the clients wait much longer than their line is long",
            "wait until other programs are done, and run the cell again",
        )
    rule, step_s = _rule(*numbers), numbers[1]
    told = f"{_say(numbers)}, measured just now: {_list(measured)}"
    if not isinstance(predicted, list):
        raise _not_a_list(predicted, rule, told, task)
    if not _fits(predicted, rule, step_s):
        headline, message, look_at = _explain(predict, predicted, numbers, task)
        raise Incorrect(
            headline,
            message,
            evidence=[
                told,
                f"you predicted: {_list(predicted)}",
                *_difference(predicted, rule, measured),
            ],
            look_at=look_at,
        )
    for other in others:
        again = predict(*other)
        if not isinstance(again, list) or not _fits(again, _rule(*other), other[1]):
            raise Incorrect(
                "Your function is right for some numbers, and wrong for others.",
                "It has to work for any number of clients, and any length of a report.",
                evidence=[
                    f"{_say(numbers)}: your prediction fits what was measured",
                    f"{_say(other)}: you predict {_list(again)}, and by the same rule it is "
                    f"{_list(_rule(*other))}",
                ],
                look_at=task,
            )
    off = max(abs(is_ - was) for is_, was in zip(predicted, measured, strict=True))
    return [told, f"you predicted: {_list(predicted)}, off by {off:.2f} s at most"]


def _measure(clients: int, duration_s: float, handlers: int) -> list[float] | None:
    """The waits of clients who wait now; None if they do not make steps."""
    run = run_waiting_clients(clients, duration_s=duration_s, handlers=handlers, quiet=True)
    makes_steps = _fits(run.waits_s, _rule(clients, duration_s, handlers), duration_s)
    return run.waits_s if makes_steps else None


def _fits(waits: Sequence[float], expected: Sequence[float], step_s: float) -> bool:
    return len(waits) == len(expected) and all(
        _is_number(wait) and abs(wait - right) <= CLOSE * step_s
        for wait, right in zip(waits, expected, strict=True)
    )


def _call(function: Any, *args: Any) -> Any:
    """Call the learner's function; give what it returned, a list if it is any row of things."""

    def run(*args: Any) -> Any:
        value = function(*args)
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | dict):
            return value
        return [float(it) if _is_number(it) else it for it in islice(value, 1000)]

    # The frame looks at the arguments of the learner's function, not at those of this one.
    watched = functools.wraps(function)(run) if callable(function) else function
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            called = call(watched, *args, timeout_s=CALL_S, touched=lambda: printed.tell() > 0)
    except DidNotReturn as error:
        raise _waits(args, f"no answer after {CALL_S:g} s", *error.evidence) from None
    end_threads(called.threads)
    print(printed.getvalue(), end="")
    called.raise_if_failed(WRONG)
    if called.seconds > ARITHMETIC_S:
        raise _waits(args, f"the answer after {called.seconds:.1f} s")
    if called.value is None:
        raise Incorrect(
            "Your function prints its answer, and returns nothing.",
            "What is printed is for people. A function hands on what it has found by `return`.",
            evidence=[f"it printed {' '.join(printed.getvalue().split()):.60}", "it returned None"],
            look_at=TASK_1,
        )
    return called.value


def _waits(args: Sequence[Any], took: str, *evidence: str) -> Incorrect:
    return Incorrect(
        "Your function waits, instead of predicting.",
        "A prediction is arithmetic: it is there at once, whatever the length of the report.",
        evidence=[f"asked about {_say((*args, 1)[:3])}: {took}", *evidence],
        look_at=SIX,
    )


def _not_a_list(value: Any, rule: Sequence[float], told: str, task: str) -> Incorrect:
    evidence = [told, f"you predicted: {value!r:.80}"]
    if not isinstance(value, int | float):
        name = "text" if isinstance(value, str) else type(value).__name__
        return Incorrect(
            f"You return {name}, not a list of numbers.",
            "One number for each client, in seconds, the first answered first.",
            evidence=evidence,
            look_at=task,
        )
    kinds = {
        "the sum of all waits": sum(rule),
        "the mean": sum(rule) / len(rule),
        "the wait of the last one": rule[-1],
        "the wait of the first one": rule[0],
    }
    near = [f"Yours is {kind}. " for kind, it in kinds.items() if abs(it - value) < rule[0] / 10]
    return Incorrect(
        "You return one number, and each client has a wait of its own.",
        "".join(near[:1])
        + "Asked for is a list: one number for each client, the first answered first.",
        evidence=evidence,
        look_at=SIX,
    )


def _explain(
    predict: Callable[[int, float, int], Any], predicted: list[Any], numbers: Numbers, task: str
) -> Explained:
    """The misconception behind a prediction that does not fit."""
    clients, step_s, handlers = numbers
    if not predicted:
        return "Your list is empty.", "It is to have one number for each client.", task
    if not all(_is_number(wait) for wait in predicted):
        return (
            "Your list has other things in it than numbers.",
            "Each entry is the wait of one client in seconds: 0.2, say, and no text or pair.",
            task,
        )
    if predicted == predict(clients + 3, step_s, handlers):
        return (
            "Your list is the same for every number of clients.",
            f"It was asked for {clients} clients and for {clients + 3}. Use the argument "
            "`clients`.",
            task,
        )

    def is_like(other: Sequence[float]) -> bool:
        """Whether the prediction is this one: closer than the shapes are to each other."""
        return len(other) == len(predicted) and all(
            abs(a - b) <= 0.1 * step_s for a, b in zip(predicted, other, strict=True)
        )

    for shape, explained in SHAPES + SHAPES_OF_MANY * (handlers > 1):
        if is_like(shape(*numbers)):
            return explained
    if len(predicted) != clients:
        less = "few" if len(predicted) < clients else "many"
        return (
            f"Your list has too {less} numbers.",
            f"There were {clients} clients, and you give {len(predicted)} waits. What does "
            "`range` begin with, and where does it end?",
            task,
        )
    if predicted == predict(clients, step_s * 3, handlers):
        return (
            "Your waits do not depend on how long a report takes.",
            "It was asked again with a report three times as long. Use the argument `duration_s`.",
            task,
        )
    if is_like([predicted[0]] * clients):
        return (
            "You let all clients wait equally long.",
            "All ask at the same moment, and are answered one after the other.",
            LINE,
        )
    return (
        "Your prediction and what was measured differ.",
        "Draw the line of clients on paper: who is in front of whom, and for how long?",
        SIX,
    )


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | bytes) and isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _difference(
    predicted: Sequence[Any], rule: Sequence[float], measured: Sequence[float]
) -> list[str]:
    """The first client for whom the prediction is off by more than noise."""
    for number, (is_, right) in enumerate(zip(predicted, rule, strict=False), 1):
        if not _is_number(is_) or abs(is_ - right) > CLOSE * rule[0]:
            waited = measured[number - 1]
            return [f"client {number} waited {waited:.2f} s, you predicted {_one(is_)}"]
    return []


def _say(numbers: Numbers) -> str:
    clients, duration_s, handlers = numbers
    many = f", {handlers} handlers" if handlers > 1 else ""
    return f"{clients} client{'s' * (clients > 1)}, {duration_s:g} s a report{many}"


def _list(waits: Any) -> str:
    if not isinstance(waits, list):
        return f"{waits!r:.80}"
    more = ", …" if len(waits) > 12 else ""
    return ", ".join(_one(wait) for wait in waits[:12]) + more or "no number"


def _one(wait: Any) -> str:
    return f"{float(wait):.2f} s" if _is_number(wait) else f"{wait!r:.40}"


ex1 = Exercise(
    "02",
    1,
    judge_one_handler,
    hints=[
        "Take the run of six clients on the page, and write beside each wait how many reports had "
        "been made by then. What is the wait of client number 4, in reports?",
        "Client number k waits for k reports, its own included: k times `duration_s`. The first "
        "is number 1, and `range(1, clients + 1)` counts like this.",
        "One line is enough: a list with `number * duration_s` for each `number` in "
        "`range(1, clients + 1)`.",
    ],
)
ex2 = Exercise(
    "02",
    2,
    judge_many_handlers,
    hints=[
        "Draw five clients and two handlers on paper. Who is answered together? Each such group "
        "is a round, and every round takes as long as one report.",
        "Client number k is served in round 1 if k is at most `handlers`, in round 2 if it is at "
        "most twice `handlers`, and so on: k divided by `handlers`, rounded up.",
        "`math.ceil(number / handlers)` rounds up. The wait is this many times `duration_s`.",
    ],
)
