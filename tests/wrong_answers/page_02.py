"""Answers of page 02: predictions that forget the line, the report, or the second handler."""

import heapq
import itertools

from mqlab.exercises.page_02 import ex1, ex2
from mqlab.measure.runs import run_waiting_clients
from tests.wrong_answers import right, wrong


@wrong(
    ex1,
    "You let all clients wait equally long.",
    ask="How long does the second client wait while the first is served?",
)
def believes_in_five_seconds(clients, duration_s):
    """Each waits as long as a report takes"""
    return [duration_s] * clients


@wrong(ex1, "Your first clients wait 0 s.", ask="Does a client with nobody in front wait at all?")
def counts_from_zero(clients, duration_s):
    """Counted from 0"""
    return [place * duration_s for place in range(clients)]


@wrong(ex1, "Your first clients wait 0 s.", ask="How many clients are there, and how many numbers?")
def counts_from_zero_and_one_more(clients, duration_s):
    """From 0 to N"""
    return [place * duration_s for place in range(clients + 1)]


@wrong(ex1, "Your list has too few numbers.", ask="Where does range end?")
def ends_too_early(clients, duration_s):
    """range(1, N), without the last one"""
    return [place * duration_s for place in range(1, clients)]


@wrong(
    ex1,
    "You return one number, not a list of numbers.",
    ask="Which client waits that long?",
)
def gives_the_sum(clients, duration_s):
    """The sum of all waits"""
    return sum(place * duration_s for place in range(1, clients + 1))


@wrong(
    ex1,
    "You return one number, not a list of numbers.",
    ask="Which client waits that long?",
)
def gives_the_mean(clients, duration_s):
    """The mean wait"""
    return duration_s * (clients + 1) / 2


@wrong(
    ex1,
    "Your numbers are right, but not in the order of the answers.",
    ask="Who is answered first?",
)
def begins_with_the_last(clients, duration_s):
    """The last one first"""
    return [place * duration_s for place in range(clients, 0, -1)]


@wrong(
    ex1,
    "Your list does not depend on `clients`.",
    ask="What does it return for three clients?",
)
def knows_eight_clients(_clients, _duration_s):
    """The list for 8 clients and 0.25 s, written down"""
    return [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]


@wrong(ex1, "You count reports, not seconds.", ask="What is the unit of your numbers?")
def counts_reports(clients, _duration_s):
    """1, 2, 3, ..."""
    return list(range(1, clients + 1))


@wrong(ex1, "You return text, not a list of numbers.", ask="What would the caller do with it?")
def returns_text(clients, duration_s):
    """A sentence"""
    return f"the last one waits {clients * duration_s} s"


@wrong(
    ex1,
    "You return nothing, not a list of numbers.",
    ask="What does the caller of your function get?",
)
def prints_it(clients, duration_s):
    """Printed, and not returned"""
    for place in range(1, clients + 1):
        print(place * duration_s)


@wrong(
    ex1,
    "Your function waits instead of predicting.",
    ask="How long does it take for a report of an hour?",
)
def measures_it(clients, duration_s):
    """The experiment itself"""
    return run_waiting_clients(clients, duration_s=duration_s, quiet=True).waits_s


@wrong(
    ex1,
    "Your numbers are right, but not in the order of the answers.",
    ask="Can a client who is answered later have waited less?",
)
def lets_the_last_go_first(clients, duration_s):
    """The last client goes first, and the others follow"""
    waits = [place * duration_s for place in range(1, clients + 1)]
    return waits[-1:] + waits[:-1]


@wrong(ex1, "You count one report too many.", ask="Who is in front of the first client?")
def counts_one_more(clients, duration_s):
    """From 2 to N + 1"""
    return [(place + 1) * duration_s for place in range(1, clients + 1)]


@wrong(
    ex1,
    "Your list does not depend on `duration_s`.",
    ask="And if a report takes an hour?",
)
def knows_the_length(clients, _duration_s):
    """Half a second a report, as on the page"""
    return [place * 0.5 for place in range(1, clients + 1)]


@wrong(
    ex1,
    "Your function returns something else when it is called again.",
    ask="What is in the list after the second call?",
)
def keeps_its_list(clients, duration_s, waits=[]):  # noqa: B006
    """One list for all calls"""
    waits += [place * duration_s for place in range(1, clients + 1)]
    return waits


@wrong(ex1, "You return set, not a list of numbers.", ask="In which order is a set?")
def returns_a_set(clients, duration_s):
    """A set"""
    return {place * duration_s for place in range(1, clients + 1)}


@wrong(
    ex1,
    "You return a list of other things, not a list of numbers.",
    ask="What is the sum of your list?",
)
def returns_pairs(clients, duration_s):
    """Each client with its wait"""
    return [(place, place * duration_s) for place in range(1, clients + 1)]


@right(ex1)
def adds_them_up(clients, duration_s):
    """A running sum"""
    return list(itertools.accumulate([duration_s] * clients))


@right(ex1)
def rounds_to_hundredths(clients, duration_s):
    """A tuple, rounded, and printed as well"""
    waits = tuple(round(place * duration_s, 2) for place in range(1, clients + 1))
    print(waits)
    return waits


@right(ex1)
def yields_them(clients, duration_s):
    """A generator"""
    free_at = 0.0
    for _client in range(clients):
        free_at += duration_s
        yield free_at


@wrong(ex2, "You let the handlers share one report.", ask="Does anybody make one report faster?")
def divides_the_work(clients, duration_s, handlers):
    """Two handlers make a report twice as fast"""
    return [place * duration_s / handlers for place in range(1, clients + 1)]


@wrong(ex2, "Your list does not depend on `handlers`.", ask="What does the second handler do?")
def ignores_handlers(clients, duration_s, handlers):  # noqa: ARG001
    """As with one handler"""
    return [place * duration_s for place in range(1, clients + 1)]


@wrong(
    ex2,
    "You round down, and leave out a report.",
    ask="How long does the one client in the last round wait?",
)
def rounds_down(clients, duration_s, handlers):
    """k // handlers, rounded down"""
    return [place // handlers * duration_s for place in range(1, clients + 1)]


@wrong(ex2, "Your first clients wait 0 s.", ask="Does a client with nobody in front wait at all?")
def counts_rounds_from_zero(clients, duration_s, handlers):
    """Rounds counted from 0"""
    return [place // handlers * duration_s for place in range(clients)]


@wrong(
    ex2,
    "You count one report too many.",
    ask="In which round is client 2 of two handlers?",
)
def rounds_begin_too_early(clients, duration_s, handlers):
    """k // handlers + 1, with k from 1"""
    return [(place // handlers + 1) * duration_s for place in range(1, clients + 1)]


@wrong(
    ex2,
    "Your list has too few numbers.",
    ask="How many numbers should there be?",
)
def counts_rounds(clients, duration_s, handlers):
    """One number for each round"""
    return [turn * duration_s for turn in range(1, -(-clients // handlers) + 1)]


@wrong(ex2, "Your list has too few numbers.", ask="What about the last client of nine?")
def leaves_out_the_odd_one(clients, duration_s, handlers):
    """Full rounds only"""
    waits = []
    for turn in range(1, clients // handlers + 1):
        waits += [turn * duration_s] * handlers
    return waits


@wrong(ex2, "You let all clients wait equally long.", ask="Who is answered first?")
def shares_the_total(clients, duration_s, handlers):
    """All the work, divided by the handlers, for everybody"""
    return [clients * duration_s / handlers] * clients


@wrong(
    ex2,
    "Your numbers are right, but not in the order of the answers.",
    ask="Who is answered second?",
)
def lists_them_by_handler(clients, duration_s, handlers):
    """The clients of the first handler, then those of the second"""
    places = [place for first in range(handlers) for place in range(first, clients, handlers)]
    return [(place // handlers + 1) * duration_s for place in places]


@wrong(
    ex2,
    "You round down, and leave out a report.",
    ask="How long does the one client in the last round wait?",
)
def rounds_to_nearest(clients, duration_s, handlers):
    """round(k / handlers)"""
    return [round(place / handlers) * duration_s for place in range(1, clients + 1)]


@wrong(
    ex2,
    "Your function is right for some numbers, and wrong for others.",
    ask="And with three handlers?",
)
def knows_two_handlers(clients, duration_s, handlers):  # noqa: ARG001
    """Two handlers, as in the text"""
    return [(place // 2 + 1) * duration_s for place in range(clients)]


@wrong(ex2, "You count reports, not seconds.", ask="What is the unit of your numbers?")
def forgets_the_seconds(clients, _duration_s, handlers):
    """Rounds"""
    return [place // handlers + 1 for place in range(clients)]


@wrong(
    ex2,
    "Your function is right for some numbers, and wrong for others.",
    ask="And in a call centre with a hundred handlers?",
)
def has_ten_desks(clients, duration_s, handlers):
    """Ten handlers at most"""
    return [-(-place // min(handlers, 10)) * duration_s for place in range(1, clients + 1)]


@wrong(
    ex2,
    "Your function is right for some numbers, and wrong for others.",
    ask="How long does client 101 wait?",
)
def closes_after_a_hundred(clients, duration_s, handlers):
    """A hundred clients at most"""
    return [-(-place // handlers) * duration_s for place in range(1, min(clients, 100) + 1)]


@right(ex2)
def rounds_up_without_math(clients, duration_s, handlers):
    """Division rounded up by a negative sign"""
    return [-(-place // handlers) * duration_s for place in range(1, clients + 1)]


@right(ex2)
def plays_it_through(clients, duration_s, handlers):
    """The handlers as a heap of the times when they are free"""
    free, waits = [0.0] * handlers, []
    for _client in range(clients):
        waits.append(heapq.heappop(free) + duration_s)
        heapq.heappush(free, waits[-1])
    return waits


@right(ex2)
def sorts_them(clients, duration_s, handlers):
    """Handler by handler, then sorted"""
    places = [place for first in range(handlers) for place in range(first, clients, handlers)]
    return sorted((place // handlers + 1) * duration_s for place in places)
