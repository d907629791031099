"""A live picture of one queue, with buttons: ``Dashboard`` as the last line of a notebook cell.

One thread owns the picture from beginning to end: it takes a snapshot from ``watch``, has it drawn
by ``drawing``, and closes everything when it is asked to, so that no interrupt of a cell can leave
half of it behind. The buttons' work is done in a second thread, so that nothing waits for it.
"""

from __future__ import annotations

import atexit
import contextlib
import queue as queues
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from mqlab.dashboard import drawing
from mqlab.dashboard.ask import Probe, QueueList
from mqlab.dashboard.watch import QueueWatch, Snapshot
from mqlab.errors import MqlabError
from mqlab.producer import Producer
from mqlab.settings import Settings
from mqlab.task import QUEUE

MAX_WORKERS = 6
"""Worker processes of one dashboard. Each is a Python of its own."""
SEND_TIMEOUT_S = 5.0
BUSY_PAUSE_S, IDLE_PAUSE_S = 0.2, 1.0
LIST_PAUSE_S = 2.0
FOLLOW = "the queue that is busy"
SUBSHELL_HOOK = "_reply_subshell_for"
"""The one private name of ipykernel that mqlab uses, in ``answer_in_subshell``."""
CLOSED = "This dashboard is closed. Run its cell again for a new one."

_open: dict[tuple[str | None, str], Dashboard] = {}


class Dashboard:
    """A live picture of ``queue``, with buttons that send tasks, run workers, and make trouble.

    Without ``queue`` it begins with the walk-through's queue and follows the one that is busy; a
    list of the broker's queues chooses another. The workers that it starts are processes of their
    own, and a task takes them ``task_s`` seconds. The consumers of this notebook are shown too. A
    second dashboard with the same ``queue`` replaces the first. It ends with ``close``, or with
    the kernel.
    """

    def __init__(
        self, queue: str | None = None, *, settings: Settings | None = None, task_s: float = 2.0
    ) -> None:
        self._settings, self._task_s = settings or Settings.from_env(), task_s
        self._follows, self._first = queue is None, queue or QUEUE
        self._key = queue, str(self._settings)
        if self._key in _open:
            _open[self._key].close()
        self._buttons_thread = ThreadPoolExecutor(1, f"mqlab buttons of {self._first}")
        self._producer: Producer | None = None  # belongs to that thread
        self._sent = self._started = 0  # and these
        self._orders: queues.SimpleQueue[Callable[[], object] | None] = queues.SimpleQueue()
        self._shown = threading.Event()
        self._spoken_at = 0.0
        self._make_widgets()
        self._thread = threading.Thread(
            target=self._run, name=f"mqlab dashboard of {self._first}", daemon=True
        )
        _open[self._key] = self  # first, so that an interrupt leaves nothing that cannot be closed
        try:
            self._thread.start()
            self._shown.wait(10.0)
        except BaseException:
            self._orders.put(None)
            raise

    def __repr__(self) -> str:
        return f"Dashboard of {self.queue!r}"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return {**self.view._repr_mimebundle_(**options), "text/plain": repr(self)}

    @property
    def queue(self) -> str:
        """The queue that is shown."""
        return self._watch.queue

    def state(self) -> Snapshot:
        """What was shown last, as plain data."""
        self._shown.wait(10.0)
        return self._latest

    def close(self) -> None:
        """End the dashboard and its workers; their tasks go back to the queue. Twice is fine."""
        # One call that no interrupt can divide, then the dashboard's thread does it all.
        self._orders.put(None)
        if self._thread.ident is not None:
            self._thread.join(20.0)

    # ---- the widgets

    def _make_widgets(self) -> None:
        acts: dict[str, tuple[str, str, Callable[[], object]]] = {
            "send-1": ("Send 1", "Send one task to the queue", lambda: self._send(1)),
            "send-10": ("Send 10", "Send ten tasks to the queue", lambda: self._send(10)),
            "start-worker": ("Start worker", "Start a worker process", self._start_worker),
            "stop-worker": (
                "Stop worker",
                "Ask the newest worker to finish its task and exit",
                self._stop_worker,
            ),
            "kill-worker": (
                "Kill worker",
                "End a worker process at once (kill -9), a busy one if there is one",
                self._kill_worker,
            ),
            "cut": (
                "Cut connection",
                "Have the broker close the connections of all workers",
                lambda: self._watch.cut(),
            ),
        }
        self.buttons: dict[str, Any] = {}
        for name, (text, tooltip, act) in acts.items():
            button = widgets.Button(description=text, tooltip=tooltip)
            button.add_class(f"mqlab-{name}")
            button.on_click(lambda _button, act=act: self._do(act))
            self.buttons[name] = button
        self.chooser = widgets.Dropdown(tooltip="Choose the queue to watch")
        self.chooser.observe(self._on_choice, "value")
        self._offer_queues([self._first], "" if self._follows else self._first)
        for widget in (self.chooser, *self.buttons.values()):
            answer_in_subshell(widget)
        self._title, self._sentence, self._spoken = (widgets.HTML() for _ in range(3))
        self._numbers, self._picture, self._troubles = (widgets.HTML() for _ in range(3))
        head = widgets.HBox([self._title, self.chooser])
        head.add_class("mqlab-head")
        buttons = widgets.HBox(list(self.buttons.values()))
        buttons.add_class("mqlab-buttons")
        style = widgets.HTML(drawing.STYLE)
        style.add_class("mqlab-empty")
        self.view = widgets.VBox(
            [style, head, buttons, self._sentence, self._spoken, self._numbers, self._picture,
             self._troubles]
        )  # fmt: skip
        self.view.add_class("mqlab-dashboard")

    def _offer_queues(self, names: list[str], chosen: str) -> None:
        """Show the names in the list, the walk-through's first."""
        names = sorted(names, key=lambda name: (name != QUEUE, name))
        options = [(FOLLOW, ""), *((name, name) for name in names)]
        if list(self.chooser.options) != options or self.chooser.value != chosen:
            self.chooser.unobserve(self._on_choice, "value")
            self.chooser.options = options
            self.chooser.value = chosen
            self.chooser.observe(self._on_choice, "value")

    def _on_choice(self, change: Any) -> None:
        self._orders.put(lambda: self._choose(change["new"]))

    # ---- the dashboard's thread

    def _run(self) -> None:
        with contextlib.ExitStack() as ending:  # each step is taken, whatever becomes of the others
            ending.callback(self._show_end)
            self._listed = QueueList(self._settings)
            ending.callback(self._listed.close)
            self._probe = Probe(self._settings, f"mqlab dashboard of {self._first}")
            ending.callback(self._probe.close)
            self._watch = QueueWatch(self._first, self._settings, self._probe, self._listed)
            ending.callback(lambda: self._watch.close())
            ending.callback(self._end_buttons)
            while True:
                pause_s = self._tick()
                self._shown.set()
                with contextlib.suppress(queues.Empty):
                    order = self._orders.get(timeout=pause_s)
                    if order is None:
                        return
                    order()

    def _tick(self) -> float:
        """Look and draw; return the seconds until the next time."""
        try:
            self._latest = self._show(self._watch.look())
        except Exception as error:  # the picture must not freeze without a word
            text = f"The dashboard itself has a fault: {type(error).__name__}: {error}"
            self._watch.note(text)
            return IDLE_PAUSE_S
        if self._latest.is_busy:
            self._listed.keep(self.queue)
        self._listed.refresh(IDLE_PAUSE_S if self._latest.elsewhere else LIST_PAUSE_S)
        active = self._listed.find_active(self.queue)
        if self._follows and active != self.queue and not self._watch.processes:
            self._switch(active)
            return 0.0
        return BUSY_PAUSE_S if self._latest.is_busy else IDLE_PAUSE_S

    def _choose(self, queue: str) -> None:
        self._follows = not queue
        if queue and queue != self.queue:
            self._switch(queue)

    def _switch(self, queue: str) -> None:
        old = self._watch
        self._watch = QueueWatch(queue, self._settings, self._probe, self._listed)
        old.close()

    def _show(self, snapshot: Snapshot) -> Snapshot:
        """Set what has changed: a value that is set is sent to the browser."""
        sentence = drawing.describe(snapshot)
        shown: dict[Any, str] = {
            self._title: drawing.show_title(snapshot.queue),
            self._sentence: drawing.show_state(sentence, matters=snapshot.ready is None),
            self._numbers: drawing.draw_numbers(snapshot),
            self._picture: drawing.draw_chart(snapshot, sentence),
            self._troubles: drawing.list_troubles(snapshot),
        }
        # A screen reader reads this aloud, so not more often than once a second.
        if time.monotonic() - self._spoken_at >= 1.0:
            self._spoken_at = time.monotonic()
            shown[self._spoken] = drawing.speak_state(sentence)
        for widget, value in shown.items():
            if widget.value != value:
                widget.value = value
        names = {self.queue, self._first, *(self._listed.rows or ())}
        self._offer_queues(list(names), "" if self._follows else self.queue)
        return snapshot

    def _end_buttons(self) -> None:
        self._buttons_thread.shutdown(cancel_futures=True)
        if self._producer is not None:
            self._producer.close(timeout_s=1.0)

    def _show_end(self) -> None:
        if _open.get(self._key) is self:
            del _open[self._key]
        for widget in (self.chooser, *self.buttons.values()):
            widget.disabled = True
        self._sentence.value = drawing.show_state(CLOSED, matters=True)
        self._spoken.value = drawing.speak_state(CLOSED)

    # ---- the buttons' thread

    def _do(self, act: Callable[[], object]) -> None:
        """Called in whichever thread the kernel has for it, while a cell runs or not."""

        def run() -> None:
            try:
                act()
            except MqlabError as error:
                self._watch.note(f"{error.what} Next: {error.fix}")
            except Exception as error:
                self._watch.note(f"The button failed: {type(error).__name__}: {error}")
            self._orders.put(lambda: None)  # look now

        with contextlib.suppress(RuntimeError):  # the dashboard is closed
            self._buttons_thread.submit(run)

    def _send(self, count: int) -> None:
        producer, queue = self._producer, self.queue
        if producer is None or producer.queue != queue or producer.status().state == "failed":
            if producer is not None:
                producer.close(timeout_s=1.0)
            producer = Producer(queue, settings=self._settings, timeout_s=SEND_TIMEOUT_S)
            self._producer = producer
        producer.send_many([f"report {self._sent + n}" for n in range(1, count + 1)])
        self._sent += count

    def _start_worker(self) -> None:
        if len(self._watch.processes) >= MAX_WORKERS:
            self._watch.note(f"{MAX_WORKERS} workers are as many as this dashboard starts.")
            return
        self._started += 1
        self._watch.start_worker(f"worker {self._started}", self._task_s)

    def _stop_worker(self) -> None:
        staying = [p for p in self._watch.processes if p.state != "stopping"]
        if staying:
            staying[-1].stop()
        elif self._watch.processes:
            self._watch.note("All workers of this dashboard are stopping already.")
        else:
            self._watch.note("There is no worker of this dashboard to stop: start one.")

    def _kill_worker(self) -> None:
        if processes := self._watch.processes:
            max(processes, key=lambda process: bool(process.unacked)).kill()
        else:
            self._watch.note("There is no worker of this dashboard to kill: start one.")


def answer_in_subshell(widget: Any) -> None:
    """Have a click handled while a cell runs.

    JupyterLab asks the kernel for a subshell for that. ipykernel 7.4 handles a widget's messages in
    the shell that the widget was created in instead, which a running cell keeps busy.
    """
    if widget.comm is not None:
        setattr(widget.comm, SUBSHELL_HOOK, lambda _data, asked_for: asked_for)


@atexit.register
def _close_all() -> None:
    for dashboard in list(_open.values()):
        with contextlib.suppress(Exception):
            dashboard.close()
