"""The exercises of page 02: predictions of waits, compared with clients who wait now.

What must be true of any right answer: for any number of clients (none included), any length of a
report and, in exercise 2, any number of handlers it returns at once, without waiting, as many
numbers as there are clients. Number k is k reports long, or k / handlers of them rounded up, in
seconds, give or take ``PRECISION`` of a report. The first one is that of the client who is answered
first.

The mistakes are recognised by what a function returns for ``FIRST`` and ``MORE``, which never
change, so the same mistake gets the same headline. Then it is tried with many other numbers.
"""

from __future__ import annotations

import contextlib
import functools
import io
import time
from collections.abc import Callable, Iterable, Set
from itertools import islice, product
from math import ceil, isfinite
from typing import Any

from mqlab.errors import WaitTimeout
from mqlab.exercises.engine.call import call, end_threads
from mqlab.exercises.engine.exercise import Exercise, Incorrect, NotChecked
from mqlab.measure.runs import run_waiting_clients

LINE, SIX, WRONG = "A line of clients, by hand", "Six clients", "What can go wrong"
TASKS = {1: "Exercise 1: for everyone", 2: "Exercise 2: a stretch"}
PRECISION = 0.3
"""Of a report. A prediction that is off by more is wrong; one that is rounded is right."""
NOISE = 0.4
"""Of a report. If measured waits are off by more, the machine is too busy to tell."""
ARITHMETIC_S = 1.6
"""Seconds. An answer that lets the clients of ``FIRST`` wait needs 1.8 s."""

Numbers = tuple[int, float, int]
"""Clients, seconds for a report, handlers."""
NAMES = ("clients", "duration_s", "handlers")
FIRST: dict[int, Numbers] = {1: (3, 0.6, 1), 2: (5, 0.6, 2)}
MORE: dict[int, list[Numbers]] = {
    1: [(7, 0.6, 1), (3, 2.0, 1), (8, 0.3, 1)],
    2: [(8, 0.6, 2), (5, 2.0, 2), (7, 0.3, 3), (8, 0.6, 3), (5, 0.6, 3)],
}
CLIENTS, SECONDS = (0, 1, 2, 3, 4, 5, 6, 9, 12, 100, 300), (0.1, 0.7, 1, 30.0)
HANDLERS = {1: (1,), 2: (1, 2, 3, 4, 7, 20, 150)}


def _rule(clients: int, duration_s: float, handlers: int) -> list[float]:
    return [duration_s * ceil(number / handlers) for number in range(1, clients + 1)]


# Wrong predictions: headline, message, heading on the page (none: the exercise), and the wait of
# client k as it is predicted, for a report of s seconds and h handlers.
MISTAKES: list[tuple[str, str, str, list[Callable[[int, float, int], float]]]] = [
    (
        "You count reports, not seconds.",
        "Client 3 waits for three reports if there is one handler. For how many seconds is that?",
        LINE,
        [lambda k, _s, _h: k, lambda k, _s, h: ceil(k / h)],
    ),
    (
        "You count one report too many.",
        "The first client has nobody in front, and waits for its own report only. With two "
        "handlers, clients 1 and 2 are served together, then 3 and 4.",
        LINE,
        [lambda k, s, h: s * (ceil(k / h) + 1), lambda k, s, h: s * (k // h + 1)],
    ),
    (
        "You round down, and leave out a report.",
        "A round that is not full takes as long as a full one, so round up: a client who is served "
        "in it waits for a whole report.",
        "",
        [
            lambda k, s, h: s * (k // h),
            lambda k, s, h: s * max(1, k // h),
            lambda k, s, h: s * round(k / h),
            lambda k, s, h: s * int(k / h + 0.5),
        ],
    ),
    (
        "You let the handlers share one report.",
        "No report is made faster. Each handler makes a whole one, at the same time as the others.",
        "",
        [lambda k, s, h: s * k / h, lambda k, s, h: max(s, s * k / h)],
    ),
]


def judge_one_handler(predict_waits: Any) -> list[str]:
    """Exercise 1: one handler."""
    return _judge(predict_waits, 1)


def judge_many_handlers(predict_waits_of_many: Any) -> list[str]:
    """Exercise 2: any number of handlers."""
    return _judge(predict_waits_of_many, 2)


def _judge(function: Any, exercise: int) -> list[str]:
    first, task = FIRST[exercise], TASKS[exercise]
    tried = [first, *MORE[exercise], *product(CLIENTS, SECONDS, HANDLERS[exercise])]
    again, *found = _predict(function, exercise, [first, *tried])
    predicted, answers = found[0], dict(zip(tried, found, strict=True))
    if repr(again) != repr(predicted):
        raise Incorrect(
            "Your function returns something else when it is called again.",
            "What it returns should depend on its arguments only: make the list inside the "
            "function, in each call.",
            evidence=[f"{_say(first)}: {_list(again)}, then {_list(predicted)}"],
            look_at=task,
        )
    clients, duration_s, handlers = first
    measured = list[float]()
    for _ in range(3):  # a busy machine may make clients wait longer
        if not _fits(measured, first, NOISE):
            with contextlib.suppress(WaitTimeout):
                run = run_waiting_clients(
                    clients, duration_s=duration_s, handlers=handlers, quiet=True
                )
                measured = run.waits_s
    evidence = [
        f"{_say(first)}, measured just now: {_list(measured)}",
        f"you predicted: {_list(predicted)}",
    ]
    if not _fits(predicted, first):
        headline, message, look_at = _explain(answers, exercise)
        raise Incorrect(headline, message, evidence=evidence, look_at=look_at or task)
    for numbers, answer in answers.items():
        if not _fits(answer, numbers):
            shown = f"{_list(answer)}, and by the same rule it is {_list(_rule(*numbers))}"
            raise Incorrect(
                "Your function is right for some numbers, and wrong for others.",
                "It has to work for any number of clients, none included, and any length of a "
                "report.",
                evidence=[*evidence, f"{_say(numbers)}: you predict {shown}"],
                look_at=task,
            )
    if not _fits(measured, first, NOISE):
        raise NotChecked(
            "the machine is too busy now: the clients wait much longer than their line is long",
            "wait until other programs are done, and run the cell again",
        )
    off = max(abs(is_ - was) for is_, was in zip(predicted, measured, strict=True))
    off_by = f"off by {off:.2f} s at most"
    return [*evidence, off_by, f"right for {len(answers)} other sets of numbers"]


def _fits(answer: Any, numbers: Numbers, precision: float = PRECISION) -> bool:
    return _is_like(answer, _rule(*numbers), precision * numbers[1])


def _is_like(answer: Any, expected: list[float], off: float) -> bool:
    if not isinstance(answer, list) or len(answer) != len(expected):
        return False
    return all(
        _is_number(it) and abs(it - by) <= off for it, by in zip(answer, expected, strict=True)
    )


def _predict(function: Any, exercise: int, asked: list[Numbers]) -> list[Any]:
    """Call the answer with each of these numbers; what is iterable and in order becomes a list.

    What it raises in a later call than the first takes the place of what it returns there.
    """
    printed, found = io.StringIO(), list[Any]()
    printed_first = ""

    def run(*first: Any) -> Any:
        nonlocal printed_first
        for numbers in asked:
            started = time.perf_counter()
            try:
                value = function(*numbers[: len(first)])
                if isinstance(value, Iterable) and not isinstance(value, str | bytes | dict | Set):
                    value = [float(it) if _is_number(it) else it for it in islice(value, 1000)]
            except Exception as error:
                if not found:
                    raise
                value = error
            printed_first = printed_first if found else printed.getvalue()
            found.append(value)
            if time.perf_counter() - started > ARITHMETIC_S:
                raise _Waited
        return found[0]

    # The frame looks at the arguments of the learner's function, not at those of this one.
    watched = functools.wraps(function)(run) if callable(function) else function
    first = asked[0][: 1 + exercise]
    with contextlib.redirect_stdout(printed):
        called = call(watched, *first, timeout_s=8, touched=lambda: bool(printed.tell()))
    end_threads(called.threads)
    print(printed_first, end="")  # what it prints for all the others would bury this
    if isinstance(called.error, _Waited):
        raise Incorrect(
            "Your function waits instead of predicting.",
            "A prediction is arithmetic: it is there at once, however long a report takes.",
            evidence=[f"{_say(asked[len(found) - 1])}: the answer took {called.seconds:.1f} s"],
            look_at=SIX,
        )
    called.raise_if_failed(WRONG)
    return found


class _Waited(Exception):
    """Raised in an answer's thread when it took too long for arithmetic."""


def _explain(answers: dict[Numbers, Any], exercise: int) -> tuple[str, str, str]:
    """The mistake behind a first prediction that does not fit: headline, message, heading."""
    first = FIRST[exercise]
    given = {numbers: answers[numbers] for numbers in (first, *MORE[exercise])}
    predicted, clients = given[first], first[0]
    kinds = [_kind(answer) for answer in given.values()]
    if wrong_kind := [each for each in kinds if each]:
        return (
            f"You return {wrong_kind[0]}, not a list of numbers.",
            "Return one number for each client, in seconds, the first answered first. `print` only "
            "shows something: a function hands over its result with `return`.",
            "",
        )
    for headline, message, look_at, waits in MISTAKES:
        for wait in waits:
            expected = {it: [wait(k, *it[1:]) for k in range(1, it[0] + 1)] for it in given}
            if all(_is_like(answer, expected[it], 0.1 * it[1]) for it, answer in given.items()):
                return headline, message, look_at
    if all(answer and answer[0] == 0 for answer in given.values()):
        return (
            "Your first clients wait 0 s.",
            "You count the reports that are made before, and forget the client's own. Even a "
            "client with nobody in front waits until its report is made.",
            LINE,
        )
    if len(set(predicted)) == 1 and len(predicted) == clients:
        return (
            "You let all clients wait equally long.",
            "All ask at the same moment, and are answered one after the other. All but the first "
            "have clients in front of them, and wait for their reports as well.",
            LINE,
        )
    for place, name in enumerate(NAMES):
        same = [it for it in given if all(it[i] == first[i] for i in range(3) if i != place)]
        if len(same) > 1 and given[same[0]] == given[same[1]]:
            return (
                f"Your list does not depend on `{name}`.",
                "Use every argument: more clients wait longer, so does everyone if a report takes "
                "longer, and several handlers serve several clients at the same moment.",
                "",
            )
    if len(predicted) != clients:
        return (
            f"Your list has too {'few' if len(predicted) < clients else 'many'} numbers.",
            f"There were {clients} clients, and you give {len(predicted)} waits. Each client has "
            "one, also those who are served together. Where does `range` begin, and where does it "
            "end?",
            "",
        )
    if all(_fits(sorted(answer), numbers) for numbers, answer in given.items()):
        return (
            "Your numbers are right, but not in the order of the answers.",
            "The client who is answered first comes first, so no number is smaller than the one "
            "before it.",
            SIX,
        )
    return (
        "Your prediction and the measurement differ.",
        "Draw the line of clients on paper: who is in front of whom, and for how long?",
        SIX,
    )


def _kind(answer: Any) -> str:
    """What an answer is in words; empty for a list of numbers."""
    if isinstance(answer, list):
        return "" if all(map(_is_number, answer)) else "a list of other things"
    names = {str: "text", int: "one number", float: "one number", type(None): "nothing"}
    return names.get(type(answer), type(answer).__name__)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | bytes) and isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _say(numbers: Numbers) -> str:
    clients, duration_s, handlers = numbers
    many = f", {handlers} handlers" if handlers > 1 else ""
    return f"{clients} client{'s' * (clients != 1)}, {duration_s:g} s a report{many}"


def _list(waits: Any) -> str:
    if not isinstance(waits, list):
        return f"{waits!r:.80}"
    shown = [f"{it:.2f} s" if _is_number(it) else f"{it!r:.40}" for it in waits[:12]]
    return ", ".join(shown + ["…"] * (len(waits) > 12)) or "an empty list"


ex1 = Exercise(
    "02",
    1,
    judge_one_handler,
    hints=[
        "Take the run of six clients on the page, and write beside each wait how many reports had "
        "been made by then. How many reports does client number 4 wait for?",
        "Client number k waits for k reports, its own included: k times `duration_s`. The first "
        "client is number 1, so count with `range(1, clients + 1)`.",
        "One line is enough: a list with `number * duration_s` for each `number` in "
        "`range(1, clients + 1)`.",
    ],
)
ex2 = Exercise(
    "02",
    2,
    judge_many_handlers,
    hints=[
        "Draw five clients and two handlers on paper. Which clients are answered together? Each "
        "such group is a round, and every round takes as long as one report.",
        "Client number k is served in round 1 if k is at most `handlers`, in round 2 if it is at "
        "most twice `handlers`, and so on: k divided by `handlers`, rounded up.",
        "`math.ceil(number / handlers)` rounds up. The wait is that many times `duration_s`.",
    ],
)
