"""The consumer in a real Jupyter kernel: interrupted, run again, restarted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from mqlab.settings import Settings
from tests.helpers import consumers, eventually, raw_channel

START = """
from mqlab import BackgroundConsumer, Producer
consumer = BackgroundConsumer(lambda task: task.data, queue={queue!r}).start()
"""


class Kernel:
    """One kernel and its client: ``run`` executes a cell and returns its text and its error."""

    def __init__(self, settings: Settings) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(env={**os.environ, "AMQP_URL": settings.url})
        self.client: Any = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def begin(self, code: str) -> str:
        message_id: str = self.client.execute(code)
        return message_id

    def finish(self, message_id: str, timeout_s: float = 30) -> tuple[str, str]:
        text, error = "", ""
        while True:
            message = self.client.get_iopub_msg(timeout=timeout_s)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                text += content["text"]
            elif kind == "execute_result":
                text += content["data"]["text/plain"]
            elif kind == "error":
                error = "\n".join(content["traceback"]) or content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                return text, error

    def run(self, code: str) -> str:
        text, error = self.finish(self.begin(code))
        assert not error, error
        return text

    def wait_for_output(self, timeout_s: float = 30) -> None:
        while self.client.get_iopub_msg(timeout=timeout_s)["msg_type"] != "stream":
            pass


@pytest.fixture
def kernel(broker_settings: Settings) -> Iterator[Kernel]:
    kernel = Kernel(broker_settings)
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


STOPPED = "You stopped waiting. The consumer is still running: wait again, or stop it."


def test_row_21_interrupting_a_wait_leaves_nothing_and_the_next_cell_works(
    kernel: Kernel, broker_settings: Settings, queue: str
) -> None:
    message_id = kernel.begin(
        f"""
from mqlab import BackgroundConsumer, Producer
with BackgroundConsumer(lambda task: task.data, queue={queue!r}) as consumer:
    with Producer({queue!r}) as producer:
        producer.send("first")
    consumer.wait(2, timeout_s=60)
"""
    )
    kernel.wait_for_output()  # 1 of 2 done: it waits
    assert consumers(broker_settings, queue) == 1
    kernel.manager.interrupt_kernel()
    _, error = kernel.finish(message_id)
    assert error == f"KeyboardInterrupt: {STOPPED}"  # a line, not a traceback
    assert consumers(broker_settings, queue) == 0
    assert (
        kernel.run(
            f"""
with BackgroundConsumer(lambda task: task.data, queue={queue!r}) as consumer:
    with Producer({queue!r}) as producer:
        producer.send("swallowed?")
    print(consumer.wait(1, timeout_s=10, show_progress=False)[0].data)
"""
        )
        == "swallowed?\n"
    )


def test_row_21_interrupting_a_wait_outside_a_with_keeps_the_consumer_working(
    kernel: Kernel, broker_settings: Settings, queue: str
) -> None:
    kernel.run(START.format(queue=queue))
    kernel.run(f"with Producer({queue!r}) as producer: _ = producer.send('first')")
    message_id = kernel.begin("consumer.wait(2, timeout_s=60)")
    kernel.wait_for_output()  # 1 of 2 done: it waits
    kernel.manager.interrupt_kernel()
    assert kernel.finish(message_id)[1] == f"KeyboardInterrupt: {STOPPED}"
    kernel.run(f"with Producer({queue!r}) as producer: _ = producer.send('x')")
    shown = kernel.run("consumer.wait(2, timeout_s=10)[1].data")
    assert shown == "1 of 2 done\n2 of 2 done\n'x'"
    assert consumers(broker_settings, queue) == 1


def test_row_22_running_the_cell_three_times_leaves_one_consumer_and_restarting_none(
    kernel: Kernel, broker_settings: Settings, queue: str
) -> None:
    said = "".join(kernel.run(START.format(queue=queue)) for _ in range(3))
    assert said.count("Replaced the consumer that was running on") == 2
    assert consumers(broker_settings, queue) == 1
    kernel.manager.restart_kernel(now=False)
    kernel.client.wait_for_ready(timeout=60)
    eventually(lambda: consumers(broker_settings, queue) == 0)
    kernel.run(START.format(queue=queue))
    assert consumers(broker_settings, queue) == 1


def test_a_killed_kernel_gives_its_task_back(
    kernel: Kernel, broker_settings: Settings, queue: str
) -> None:
    kernel.run(
        f"""
import threading
from mqlab import BackgroundConsumer, Producer
with Producer({queue!r}) as producer: _ = producer.send("x")
at_work = threading.Event()
def work(task): at_work.set(); threading.Event().wait(60)
consumer = BackgroundConsumer(work, queue={queue!r}).start()
assert at_work.wait(10)
"""
    )
    kernel.manager.shutdown_kernel(now=True)

    def given_back() -> bool:
        with raw_channel(broker_settings) as channel:
            count: int = channel.queue_declare(queue, passive=True).method.message_count
            return count == 1

    eventually(given_back)
