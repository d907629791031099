"""Wrong answers of page 02: predictions that forget the line, the report, or the second handler."""

from mqlab.exercises.page_02 import ex1, ex2
from mqlab.measure.runs import run_waiting_clients
from tests.wrong_answers import wrong


@wrong(
    ex1,
    "You let each client wait as long as a report takes.",
    ask="What does the last one see when it arrives?",
)
def believes_in_five_seconds(clients, duration_s):
    """Each waits as long as a report takes"""
    return [duration_s] * clients


@wrong(ex1, "Your first clients wait 0 s.", ask="When is the first report ready?")
def counts_from_zero(clients, duration_s):
    """Counted from 0"""
    return [place * duration_s for place in range(clients)]


@wrong(ex1, "Your first clients wait 0 s.", ask="When is the first report ready?")
def counts_from_zero_and_one_more(clients, duration_s):
    """From 0 to N"""
    return [place * duration_s for place in range(clients + 1)]


@wrong(
    ex1,
    "Your list has too few numbers.",
    ask="How many clients, how many numbers? Where does range end?",
)
def ends_too_early(clients, duration_s):
    """range(1, N), without the last one"""
    return [place * duration_s for place in range(1, clients)]


@wrong(
    ex1,
    "You return one number, and each client has a wait of its own.",
    ask="Whose wait is that number?",
)
def gives_the_sum(clients, duration_s):
    """The sum of all waits"""
    return sum(place * duration_s for place in range(1, clients + 1))


@wrong(
    ex1,
    "You return one number, and each client has a wait of its own.",
    ask="Whose wait is that number?",
)
def gives_the_mean(clients, duration_s):
    """The mean wait"""
    return duration_s * (clients + 1) / 2


@wrong(ex1, "Your list begins with the one who waits longest.", ask="Who is answered first?")
def begins_with_the_last(clients, duration_s):
    """The last one first"""
    return [place * duration_s for place in range(clients, 0, -1)]


@wrong(
    ex1,
    "Your list is the same for every number of clients.",
    ask="What would it say for three clients?",
)
def knows_eight_clients(_clients, _duration_s):
    """The list for 8 clients and 0.25 s, written down"""
    return [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]


@wrong(ex1, "You count reports, not seconds.", ask="How long does one report take?")
def counts_reports(clients, _duration_s):
    """1, 2, 3, ..."""
    return list(range(1, clients + 1))


@wrong(ex1, "You return text, not a list of numbers.", ask="Could a program add these up?")
def returns_text(clients, duration_s):
    """A sentence"""
    return f"the last one waits {clients * duration_s} s"


@wrong(
    ex1, "Your function prints its answer, and returns nothing.", ask="What does the caller get?"
)
def prints_it(clients, duration_s):
    """Printed, and not returned"""
    for place in range(1, clients + 1):
        print(place * duration_s)


@wrong(
    ex1,
    "Your function waits, instead of predicting.",
    ask="What would you tell a client who asks beforehand?",
)
def measures_it(clients, duration_s):
    """The experiment itself"""
    return run_waiting_clients(clients, duration_s=duration_s, quiet=True).waits_s


@wrong(
    ex2, "You let the handlers share one report.", ask="Do two cooks boil one egg in half the time?"
)
def divides_the_work(clients, duration_s, handlers):
    """Two handlers make a report twice as fast"""
    return [place * duration_s / handlers for place in range(1, clients + 1)]


@wrong(
    ex2, "You let one handler do all the work.", ask="What does the second handler do meanwhile?"
)
def ignores_handlers(clients, duration_s, handlers):  # noqa: ARG001
    """As with one handler"""
    return [place * duration_s for place in range(1, clients + 1)]


@wrong(
    ex2,
    "You round down, and leave out a report.",
    ask="How long does client 1 wait by your formula?",
)
def rounds_down(clients, duration_s, handlers):
    """k // handlers, rounded down"""
    return [place // handlers * duration_s for place in range(1, clients + 1)]


@wrong(ex2, "Your first clients wait 0 s.", ask="When is the first report ready?")
def counts_rounds_from_zero(clients, duration_s, handlers):
    """Rounds counted from 0"""
    return [place // handlers * duration_s for place in range(clients)]


@wrong(
    ex2,
    "Your rounds begin one client too early.",
    ask="With two handlers: in which round is client 2?",
)
def rounds_begin_too_early(clients, duration_s, handlers):
    """k // handlers + 1, with k from 1"""
    return [(place // handlers + 1) * duration_s for place in range(1, clients + 1)]


@wrong(
    ex2,
    "You give one number for each round, and not for each client.",
    ask="Which number is client 3's?",
)
def counts_rounds(clients, duration_s, handlers):
    """One number for each round"""
    return [turn * duration_s for turn in range(1, -(-clients // handlers) + 1)]


@wrong(
    ex2, "Your list has too few numbers.", ask="Nine clients, two handlers: what about the ninth?"
)
def leaves_out_the_odd_one(clients, duration_s, handlers):
    """Full rounds only"""
    waits = []
    for turn in range(1, clients // handlers + 1):
        waits += [turn * duration_s] * handlers
    return waits


@wrong(ex2, "You let all clients wait equally long.", ask="Does the first one wait for the last?")
def shares_the_total(clients, duration_s, handlers):
    """All the work, divided by the handlers, for everybody"""
    return [clients * duration_s / handlers] * clients
