"""What can be wrong with any publisher, and the evidence for it.

``PublisherRun`` calls an answer with tasks and a queue. It compares what was given, what was sent,
what the broker answered *on that connection* before the function returned, what is in the queue,
and what the function claims. Its headings are those of page 03.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pika

from mqlab.exercises.engine.bench import Bench
from mqlab.exercises.engine.call import Call, DidNotReturn, counted, show, some
from mqlab.exercises.engine.exercise import Findings, Incorrect
from mqlab.exercises.engine.wire import Method
from mqlab.exercises.rules.leaving import check_nothing_is_left, check_objects

BY_HAND, KEEP = "A task into a queue, by hand", "Predict again"
CONFIRMS, NOWHERE = "The step that is not there at all", "Four ways to publish to nowhere, by hand"
LIBRARY, CUT, WRONG = "The library's way", "Cut in the middle", "What can go wrong"
TASK_1, TASK_2 = "Exercise 1: for everyone", "Exercise 2: a stretch"


@dataclass
class Publication:
    """One ``Basic.Publish``, and the answer to it that reached the client."""

    method: Method
    asked: str = ""
    """What answers on its channel: ``confirms``, ``a transaction``, or nothing."""
    answer: str = ""
    answered_at: float = float("inf")
    returned: bool = False

    def is_taken(self, by: float = float("inf")) -> bool:
        """Whether the broker had said by then that it has taken the message over."""
        return self.answer in ("ack", "commit") and not self.returned and self.answered_at <= by


def publications(methods: Iterable[Method]) -> list[Publication]:
    """Every publish on the wire, with what became of it."""
    found: list[Publication] = []
    waiting: dict[tuple[int, int], dict[int, Publication]] = {}
    asked: dict[tuple[int, int], str] = {}
    tags: Counter[tuple[int, int]] = Counter()
    for each in methods:
        where, name, method = (each.connection, each.channel), each.name, each.method
        open_ones = waiting.setdefault(where, {})
        if name == "Channel.Open":
            asked.pop(where, None)
            tags[where] = 0
            open_ones.clear()
        elif name in ("Confirm.Select", "Tx.Select"):
            asked[where] = "confirms" if name == "Confirm.Select" else "a transaction"
        elif name == "Basic.Publish" and each.from_client:
            tags[where] += asked.get(where) is not None
            found.append(Publication(each, asked.get(where, "")))
            open_ones[tags[where] or -len(found)] = found[-1]
        elif each.from_client or not each.reached:
            if name == "Tx.Rollback":
                open_ones.clear()
        elif name == "Basic.Return":
            same = [p for p in open_ones.values() if p.method.body == each.body and not p.returned]
            for publication in same[:1]:
                publication.returned = True
        elif name in ("Basic.Ack", "Basic.Nack", "Tx.CommitOk"):
            last = getattr(method, "delivery_tag", 0)
            is_all = name == "Tx.CommitOk" or (method.multiple and last == 0)
            for tag, publication in list(open_ones.items()):
                is_it = tag == last or (tag < last and method.multiple)
                if not publication.asked or not (is_all or is_it):
                    continue
                del open_ones[tag]
                publication.answer = {"Basic.Ack": "ack", "Basic.Nack": "nack"}.get(name, "commit")
                publication.answered_at = each.at
    return found


class PublisherRun:
    """One call of an answer with ``tasks``: a list of texts, or a dict of ids and texts."""

    def __init__(
        self,
        bench: Bench,
        queue: str,
        tasks: list[str] | dict[str, str],
        later: Findings,
        connections: int = 1,
    ) -> None:
        self._may_open, self._later = connections, later
        self.bench, self.queue = bench, queue
        self.keys = list(tasks)
        self._tasks, self._has_ids = tasks, isinstance(tasks, dict)
        self.look_at = TASK_2 if self._has_ids else TASK_1
        texts = tasks if isinstance(tasks, dict) else {text: text for text in tasks}
        self._bodies = {key: text.encode() for key, text in texts.items()}
        self.earlier: list[bytes] = []
        self.called = Call()
        self.sent: list[Publication] = []
        self.arrived: list[tuple[Any, bytes]] = []
        self.claimed: list[str] = []

    def fill(self, count: int) -> None:
        """Put some messages of someone else's into the queue first."""
        self.earlier = [f"an earlier message, {number}".encode() for number in range(count)]
        with self.bench.channel() as channel:
            for body in self.earlier:
                channel.basic_publish("", self.queue, body, pika.BasicProperties(delivery_mode=2))

    def take_one(self) -> None:
        """Make room for one message in the queue, as a worker does."""
        with self.bench.channel() as channel:
            if self.earlier:
                channel.basic_get(self.queue, auto_ack=True)
                del self.earlier[0]

    def call(self, function: Any, timeout_s: float | None = None) -> None:
        """Call the answer; raise what ``Bench.call`` raises."""
        tasks = dict(self._tasks) if isinstance(self._tasks, dict) else list(self._tasks)
        try:
            self.called = self.bench.call(
                function, self.bench.connect, self.queue, tasks, timeout_s=timeout_s
            )
        except DidNotReturn:
            self._check_connections()  # they may have taken the time
            raise
        finally:
            self.sent = publications(list(self.bench.wire.methods))
        if self.called.error is None:
            self._later.note(check_nothing_is_left, self.bench, self.queue, self.look_at)
            self._later.note(check_objects, self.bench, self.look_at)

    def collect(self) -> None:
        """Take what is in the queue, when no more arrives; then read the wire once more."""
        self.arrived = self.bench.take_all(self.queue)
        self.sent = publications(list(self.bench.wire.methods))

    def key_of(self, properties: Any, body: bytes) -> str | None:
        """Which task a message is, if it has its bytes (and its id); otherwise None."""
        key: str | None = body.decode("utf-8", "replace")
        if self._has_ids:
            key = properties.message_id if properties else None
        return key if key is not None and self._bodies.get(key) == body else None

    def keys_of(self, sent: Iterable[Publication]) -> Counter[str]:
        """How often each task is among these."""
        keys = (self.key_of(each.method.properties, each.method.body) for each in sent)
        return Counter(key for key in keys if key is not None)

    @property
    def numbers(self) -> str:
        """The numbers of this run, as evidence."""
        confirmed = sum(p.is_taken() for p in self.sent)
        return (
            f"{counted(len(self.keys))}: sent {len(self.sent)}, confirmed {confirmed}, in the "
            f"queue {max(0, len(self.arrived) - len(self.earlier))}, claimed {len(self.claimed)}"
        )

    def wrong(self, headline: str, message: str, look_at: str, *evidence: str) -> Incorrect:
        """An Incorrect with the numbers of this run as its first evidence."""
        return Incorrect(headline, message, evidence=[self.numbers, *evidence], look_at=look_at)

    # ---- what can be wrong with any publisher

    def check_way(self) -> None:
        """Raise Incorrect unless the tasks went to the queue on the given connection, to stay."""
        bench = self.bench
        others = Counter(body for _, body in self.arrived) - Counter(
            each.method.body for each in self.sent
        )
        if others - Counter(self.earlier):
            raise self.wrong(
                "You do not use the connect() that your function is given.",
                "The tasks were sent another way, where the check cannot see what the broker "
                "answered. Call the first argument.",
                self.look_at,
            )
        names = ("Basic.Get", "Basic.Consume", "Queue.Purge", "Queue.Delete")
        taken = [f"{name}: {counted(bench.count(name), 'time')}" for name in names]
        taken = [each for each in taken if not each.endswith(": 0 times")]
        bodies = [body for _, body in self.arrived]
        if taken or (bodies and bodies[: len(self.earlier)] != self.earlier):
            raise self.wrong(
                "You take messages out of the queue.",
                "They are there for a worker. A confirm tells you what the broker has; nobody has "
                "to read the queue for that.",
                CONFIRMS,
                *taken,
            )
        self._check_connections()
        default = [each.method for each in self.sent if not each.method.method.exchange]
        headers = [(each.properties and each.properties.headers) or {} for each in default]
        copies = {key for each in headers for name in ("CC", "BCC") for key in each.get(name, ())}
        if keys := ({each.method.routing_key for each in default} | copies) - {self.queue}:
            raise self.wrong(
                "You send to another queue than the one that you are given.",
                "Use the argument queue, not a name from the page: the check has its own queue.",
                self.look_at,
                f"given: {self.queue}, sent to: {some(map(repr, keys))}",
            )

    def _check_connections(self) -> None:
        if self.bench.connections > self._may_open:
            raise self.wrong(
                "You open more than one connection."
                if self._may_open == 1
                else "You open more connections than the cut made necessary.",
                "Each needs a login, which takes longer than the publish. Open one, and keep it.",
                KEEP,
                f"connections opened: {self.bench.connections}",
            )

    def check_list(self) -> None:
        """Raise Incorrect unless the answer claims, in a list, tasks that it was given."""
        value, what = self.called.value, "ids of tasks" if self._has_ids else "tasks"
        if not isinstance(value, list | tuple):
            raise self.wrong(
                "Your function does not return a list.",
                f"Return a list of the {what} that are in the queue, even if it is empty.",
                self.look_at,
                f"it returned {show(value)}",
            )
        claimed = [str.__str__(each) if isinstance(each, str) else each for each in value]
        known, strange = Counter(self.keys), []
        for each in claimed:
            if type(each) is not str or known[each] < 1:
                strange.append(each)
            else:
                known[each] -= 1
        if strange:
            raise self.wrong(
                "Your list has more in it than you were given.",
                f"It should hold {what}, exactly as they were, each at most as often.",
                self.look_at,
                f"{len(claimed)} entries, {len(strange)} too many: {some(map(show, strange))}",
            )
        self.claimed = claimed

    def check_messages(self) -> None:
        """Raise Incorrect unless each message in the queue is a task as it was given, to stay."""
        arrived = self.arrived[len(self.earlier) :]
        for properties, body in arrived:
            if self.key_of(properties, body) is not None:
                continue
            if self._has_ids and body in self._bodies.values():
                ids = [key for key, each in self._bodies.items() if each == body]
                raise self.wrong(
                    "Your messages do not carry the ids of their tasks.",
                    "A task keeps its id on every attempt. Otherwise a worker cannot recognise a "
                    "duplicate, and does the task twice.",
                    LIBRARY,
                    f"task {ids[0]} has the message_id {show(properties.message_id)}",
                )
            raise self.wrong(
                "What arrives is not what you were given.",
                "The text of a task, in UTF-8, is the body of its message: not a byte more or "
                "less.",
                BY_HAND,
                f"in the queue: {show(body)}, which is none of the tasks",
            )
        transient = sum(properties.delivery_mode != 2 for properties, _ in arrived)
        expiring = sum(properties.expiration is not None for properties, _ in arrived)
        if transient or expiring:
            raise self.wrong(
                "Your messages would not survive a restart of the broker."
                if transient
                else "Your messages expire.",
                "A durable queue does not keep every message: it has to be persistent, and must "
                "not have an expiration, after which the broker drops it.",
                BY_HAND,
                f"not persistent: {transient}, with an expiration: {expiring}",
            )

    def check_told(self, gone: str = "") -> None:
        """Raise Incorrect if the answer claims a task that the broker has not confirmed.

        Where the queue is missing, ``gone`` says so; only what was sent as mandatory counts then.
        """
        taken = self.keys_of(
            p
            for p in self.sent
            if p.is_taken(self.called.returned_at) and (p.method.method.mandatory or not gone)
        )
        untold = Counter(self.claimed) - taken
        if not untold:
            return
        named = f"claimed and not confirmed: {some(map(show, untold))}"
        silent = [p for p in self.sent if self.key_of(p.method.properties, p.method.body) in untold]
        asked = all(p.asked for p in silent)
        refused = [p for p in silent if p.returned or p.answer == "nack"]
        if asked and refused:
            raise self.wrong(
                "The broker did not take a task, and you claim it all the same.",
                "It was returned because no queue wanted it (UnroutableError in pika), or refused "
                "because the queue was full (NackError). When you catch the error, leave that "
                "task out of the list.",
                NOWHERE if refused[0].returned else CONFIRMS,
                f"returned or refused: {len(refused)}; {named}",
            )
        if asked and gone and any(p.is_taken() for p in silent):
            raise self.wrong(
                "Confirmed is not routed.",
                f"{gone} The broker confirmed all the same: it has dealt with the messages, by "
                "dropping them. It returns them only if you ask for that.",
                NOWHERE,
                named,
            )
        quiet = sorted({p.method.connection for p in silent if not p.asked})
        raise self.wrong(
            "You claim tasks although nobody has confirmed them.",
            "basic_publish raised an error for them, or you did not wait for the broker's answer. "
            "They may have arrived, and the next time they are lost."
            if asked
            else "You did not ask for confirms. basic_publish then returns as soon as the bytes "
            "are handed over, and whatever happens after that, your list says that all is well.",
            CONFIRMS,
            named,
            *[f"confirms not asked for on connection {some(map(str, quiet))}"] * bool(quiet),
        )

    def check_told_if_any(self, gone: str = "") -> None:
        """``check_told``, in a run where an answer may as well raise, and claim nothing."""
        if self.called.error is None and isinstance(self.called.value, list | tuple):
            self.check_list()
            self.check_told(gone)

    def check(self, *, is_limited: bool = False) -> None:
        """Raise Incorrect unless list and queue have the tasks, in the queue in the order given.

        A queue that ``is_limited`` may have refused some.
        """
        self.check_way()
        self.check_list()
        self.check_messages()
        self.check_told()
        keys = [self.key_of(*each) for each in self.arrived[len(self.earlier) :]]
        there = [key for key in keys if key is not None]
        if left_out := (Counter(there) & Counter(self.keys)) - Counter(self.claimed):
            raise self.wrong(
                "Your list leaves out tasks that are in the queue.",
                "Whoever reads it will send them again.",
                self.look_at,
                f"not claimed: {some(map(show, left_out))}",
            )
        never = Counter(self.keys) - self.keys_of(self.sent)
        if missing := never or (not is_limited and Counter(self.keys) - Counter(there)):
            raise self.wrong(
                "You do not send all the tasks.",
                "Two tasks may have the same text, and a task that is refused says nothing about "
                "the next one. In a transaction, only what is committed counts.",
                self.look_at,
                f"{'never sent' if never else 'not in the queue'}: {some(map(show, missing))}",
            )
        if copies := Counter(there) - Counter(self.keys):
            raise self.wrong(
                "You send tasks more than once.",
                "Each copy is work that a worker would do again.",
                BY_HAND,
                f"too often: {some(map(show, copies))}",
            )
        if not is_limited and there != self.keys:
            first = next(n for n, key in enumerate(there) if key != self.keys[n])
            raise self.wrong(
                "You send the tasks in another order.",
                "A queue keeps its order, so what comes first is done first.",
                self.look_at,
                f"task {first + 1} should be {show(self.keys[first])}, is {show(there[first])}",
            )
