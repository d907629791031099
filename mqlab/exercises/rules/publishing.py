"""What is wrong in any publisher, with the evidence for it.

``PublisherRun`` calls an answer with tasks and a queue, and compares what was given, what went over
the wire, what the broker answered *on that connection* by the time the function returned, what is
in the queue, and what the function claims. Its headings are those of page 03.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pika

from mqlab.exercises.engine.bench import Bench
from mqlab.exercises.engine.call import Call, DidNotReturn, counted, show, some
from mqlab.exercises.engine.exercise import Incorrect
from mqlab.exercises.engine.wire import Method

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
        look_at: str,
        connections: int = 1,
    ) -> None:
        self._may_open = connections
        self.bench, self.queue, self.look_at = bench, queue, look_at
        self.keys = list(tasks)
        self._tasks, self._has_ids = tasks, isinstance(tasks, dict)
        self.texts = tasks if isinstance(tasks, dict) else {text: text for text in tasks}
        self._bodies = {key: text.encode() for key, text in self.texts.items()}
        self.earlier: list[bytes] = []
        self.called = Call()
        self.sent: list[Publication] = []
        self.arrived: list[tuple[Any, bytes]] = []
        self.claimed: list[str] = []

    def fill(self, count: int) -> None:
        """Put some messages of somebody else's into the queue first."""
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

    def collect(self) -> None:
        """Take what is in the queue, when no more arrives; then look at the wire once more."""
        self.arrived = self.bench.take_all(self.queue)
        self.sent = publications(list(self.bench.wire.methods))

    def key_of(self, properties: Any, body: bytes) -> str | None:
        """Which task a message is, if it has its bytes (and its id); None if it is none."""
        key: str | None = body.decode("utf-8", "replace")
        if self._has_ids:
            key = properties.message_id if properties else None
        return key if key is not None and self._bodies.get(key) == body else None

    def keys_of(self, sent: Iterable[Publication]) -> Counter[str]:
        """How often each task is among these."""
        return Counter(self._keys(sent))

    def _keys(self, sent: Iterable[Publication]) -> list[str]:
        keys = (self.key_of(each.method.properties, each.method.body) for each in sent)
        return [key for key in keys if key is not None]

    @property
    def taken(self) -> Counter[str]:
        """The tasks that the broker had taken over, and said so, when the function returned."""
        return self.keys_of(p for p in self.sent if p.is_taken(self.called.returned_at))

    @property
    def numbers(self) -> str:
        """The numbers of this run, as evidence."""
        confirmed = sum(p.is_taken() for p in self.sent)
        return (
            f"{counted(len(self.keys))}: sent {len(self.sent)}, confirmed {confirmed}, in the "
            f"queue {len(self.arrived) - len(self.earlier)}, claimed {len(self.claimed)}"
        )

    # ---- what is wrong in any publisher

    def check_way(self) -> None:
        """Raise Incorrect unless the tasks went to the queue, on the connection that was given."""
        bench = self.bench
        others = Counter(body for _, body in self.arrived) - Counter(
            each.method.body for each in self.sent
        )
        if sum((others - Counter(self.earlier)).values()):
            raise Incorrect(
                "You do not use the connect() that your function is given.",
                "The tasks came another way, where the check cannot see what the broker said. "
                "Call the first argument.",
                evidence=[f"in the queue {len(self.arrived)}, seen on the way {len(self.sent)}"],
                look_at=self.look_at,
            )
        names = ("Basic.Get", "Basic.Consume", "Queue.Purge", "Queue.Delete")
        if out := [name for name in names if bench.count(name)]:
            raise Incorrect(
                "You take messages out of the queue again.",
                "They are there for a worker. What the broker has taken over it tells you by a "
                "confirm; nobody has to look.",
                evidence=[f"{name}: {bench.count(name)} times" for name in out],
                look_at=CONFIRMS,
            )
        if self.keys and not self.sent:
            self.check_list()
            raise Incorrect(
                "You return a list, and send nothing.",
                evidence=[f"{self.numbers}; it returned {show(self.called.value)}"],
                look_at=BY_HAND,
            )
        self._check_connections()
        default = [each.method for each in self.sent if not each.method.method.exchange]
        headers = [(each.properties and each.properties.headers) or {} for each in default]
        copies = {key for each in headers for name in ("CC", "BCC") for key in each.get(name, ())}
        if keys := ({each.method.routing_key for each in default} | copies) - {self.queue}:
            raise Incorrect(
                "You send to another queue than the one that you are given.",
                "Use the argument queue, not a name from the page: the check has its own queue.",
                evidence=[f"given: {self.queue}, sent to: {some(map(repr, keys))}"],
                look_at=self.look_at,
            )

    def _check_connections(self) -> None:
        opened = self.bench.connections
        if opened > self._may_open:
            each = opened > 2 and opened >= self.bench.count("Basic.Publish") - 1
            raise Incorrect(
                "You open a connection for every task."
                if each
                else "You open more than one connection.",
                "Each needs a login, which takes longer than the publish. Open one, and keep it.",
                evidence=[f"connections opened: {opened}, messages sent: {len(self.sent)}"],
                look_at=KEEP,
            )

    def check_list(self) -> None:
        """Raise Incorrect unless the answer claims, in a list, tasks that it was given."""
        value, what = self.called.value, "ids of tasks" if self._has_ids else "tasks"
        if not isinstance(value, list | tuple):
            raise Incorrect(
                "Your function does not return a list.",
                f"Return a list of the {what} that are in the queue, even if it is empty.",
                evidence=[f"it returned {show(value)}"],
                look_at=self.look_at,
            )
        claimed = [str.__str__(each) if isinstance(each, str) else each for each in value]
        known = set(self.keys)
        strangers = [each for each in claimed if type(each) is not str or each not in known]
        if strangers:
            raise Incorrect(
                "Your list has something else in it than what you were given.",
                f"It should hold {what}, exactly as they came.",
                evidence=[f"one of {len(strangers)}: {show(strangers[0])}"],
                look_at=self.look_at,
            )
        self.claimed = claimed
        if too_often := Counter(claimed) - Counter(self.keys):
            raise Incorrect(
                "Your list names a task more than once.",
                "A task that comes once is claimed once.",
                evidence=[f"{len(claimed)} entries, too many of {some(map(show, too_often))}"],
                look_at=self.look_at,
            )

    def check_messages(self) -> None:
        """Raise Incorrect unless each message in the queue is a task, as it was given, to stay."""
        bodies = [body for _, body in self.arrived]
        if bodies[: len(self.earlier)] != self.earlier:
            raise Incorrect(
                "The messages that were in the queue before have changed.",
                "They are somebody else's. Add yours, and leave the others alone.",
                evidence=[f"before: {len(self.earlier)} messages; {self.numbers}"],
                look_at=self.look_at,
            )
        arrived = self.arrived[len(self.earlier) :]
        for properties, body in arrived:
            if self.key_of(properties, body) is None:
                raise self._changed(properties, body)
        self._check_kept(arrived)

    def check_number(self) -> None:
        """Raise Incorrect unless the tasks are in the queue as often, and in the order, given."""
        arrived = self.arrived[len(self.earlier) :]
        there = [key for each in arrived if (key := self.key_of(*each)) is not None]
        if missing := Counter(self.keys) - Counter(there):
            never = Counter(self.keys) - self.keys_of(self.sent)
            raise Incorrect(
                "You do not send all the tasks." if never else "What you sent is not in the queue.",
                "Two tasks may have the same text: they are two tasks all the same."
                if never and set(missing) <= set(there)
                else "A transaction that is not committed is thrown away."
                if any(each.asked == "a transaction" for each in self.sent)
                else "",
                evidence=[self.numbers, f"not in the queue: {some(map(show, missing))}"],
                look_at=self.look_at,
            )
        if not self._has_ids and (copies := Counter(there) - Counter(self.keys)):
            raise Incorrect(
                "You send tasks more than once.",
                "Each copy is work that a worker would do again.",
                evidence=[self.numbers, f"too often: {some(map(show, copies))}"],
                look_at=BY_HAND,
            )
        if not self._has_ids and there != self.keys:
            first = next(n for n, key in enumerate(there) if key != self.keys[n])
            raise Incorrect(
                "You send the tasks in another order.",
                "A queue keeps its order, so what comes first is done first.",
                evidence=[f"task {first + 1}: {show(self.keys[first])} was given, "
                          f"{show(there[first])} was sent"],
                look_at=self.look_at,
            )  # fmt: skip

    def check_complete(self) -> None:
        """Raise Incorrect if the answer leaves out what is in the queue, or changes the order."""
        if self.claimed and not any(each.asked for each in self.sent):
            return  # check_told has more to say
        there = Counter(key for each in self.arrived if (key := self.key_of(*each)) is not None)
        if left_out := (there & Counter(self.keys)) - Counter(self.claimed):
            raise Incorrect(
                "Your list leaves out tasks that are in the queue.",
                "Whoever reads it will send them again.",
                evidence=[self.numbers, f"not claimed: {some(map(show, left_out))}"],
                look_at=self.look_at,
            )
        answered = sorted((p for p in self.sent if p.is_taken()), key=lambda p: p.answered_at)
        in_order = any(_is_part_of(self.claimed, o) for o in (self.keys, self._keys(answered)))
        if not self._has_ids and not in_order:
            raise Incorrect(
                "Your list is in another order than the tasks.",
                "Keep the order in which they were given.",
                evidence=[f"it begins with {some(map(show, self.claimed[:3]))}"],
                look_at=self.look_at,
            )

    def check_told_if_any(self) -> None:
        """``check_told``, in a run where an answer may as well raise, and claim nothing."""
        if self.called.error is None and isinstance(self.called.value, list | tuple):
            self.check_list()
            self.check_told()

    def check_told(self) -> None:
        """Raise Incorrect if the answer claims a task that the broker has not confirmed."""
        untold = Counter(self.claimed) - self.taken
        if not untold:
            return
        named = f"claimed and not confirmed: {some(map(show, untold))}"
        silent = [p for p in self.sent if self.key_of(p.method.properties, p.method.body) in untold]
        if any(p.answer == "nack" for p in silent):
            raise Incorrect(
                "You are told that a task is refused, and claim it all the same.",
                "The queue was full. A nack, in pika a NackError, says that the broker has not "
                "taken the task over: leave it out of the list.",
                evidence=[self.numbers, named],
                look_at=CONFIRMS,
            )
        if not all(p.asked for p in silent):
            quiet = sorted({p.method.connection for p in silent if not p.asked})
            only = f" on connection {quiet[0]}" if self.bench.connections > len(quiet) else ""
            raise Incorrect(
                "You claim tasks although nobody has confirmed them.",
                f"You never asked the broker to confirm{only}. basic_publish then returns as soon "
                "as the bytes are handed over, and whatever happens after that, your list says "
                "that all is well.",
                evidence=[self.numbers, named],
                look_at=CONFIRMS,
            )
        raise Incorrect(
            "You claim tasks before the broker has confirmed them.",
            "You asked for an answer and did not wait for it, or it was not a good one.",
            evidence=[self.numbers, named],
            look_at=CONFIRMS,
        )

    def _check_kept(self, arrived: list[tuple[Any, bytes]]) -> None:
        transient = [body for properties, body in arrived if properties.delivery_mode != 2]
        if transient:
            raise Incorrect(
                "Your messages would not survive a restart of the broker.",
                "The queue is durable, the messages in it are not. Ask the broker to keep them on "
                "disk.",
                evidence=[f"in the queue: {len(arrived)}, not persistent: {len(transient)}"],
                look_at=BY_HAND,
            )
        expire = [properties.expiration for properties, _ in arrived if properties.expiration]
        if expire:
            raise Incorrect(
                "Your messages expire.",
                "The broker throws such a message away when its time is up, and nobody hears of "
                "it.",
                evidence=[f"{len(expire)} of {len(arrived)} expire after {expire[0]} ms"],
                look_at=BY_HAND,
            )

    def _changed(self, properties: Any, body: bytes) -> Incorrect:
        if self._has_ids and body in self._bodies.values():
            ids = [key for key, each in self._bodies.items() if each == body]
            if properties.message_id is None:
                return Incorrect(
                    "Your messages carry no id.",
                    "When one comes twice, a worker cannot tell that it is the same task.",
                    evidence=[
                        f"in the queue: {len(self.arrived)}; task {ids[0]} has no message_id"
                    ],
                    look_at=LIBRARY,
                )
            return Incorrect(
                "The id of a task changes on the way.",
                "A task keeps its id on every attempt. Otherwise a task that comes twice looks "
                "like two tasks, and is done twice.",
                evidence=[f"task {ids[0]} is in the queue as {show(properties.message_id)}"],
                look_at=LIBRARY,
            )
        return Incorrect(
            "What arrives is not what you were given.",
            "The text of a task, in UTF-8, is the body of its message: not a byte more or less.",
            evidence=[f"in the queue: {show(body)}, which is none of the tasks"],
            look_at=BY_HAND,
        )


def _is_part_of(items: list[str], whole: list[str]) -> bool:
    """Whether they are in that order, with gaps allowed."""
    rest = iter(whole)
    return all(item in rest for item in items)
