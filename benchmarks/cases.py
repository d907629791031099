"""Measure one case in a process of its own: ``python benchmarks/cases.py NAME QUEUE COUNT``.

Prints a JSON object with ``seconds`` for ``count`` messages, or with other named figures. Before it
prints, each case checks its work: what was confirmed, what is in the queue, what was done. For a
consumer, the time runs from the first call of its handler to the last, without its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pika

URL = os.environ["AMQP_URL"]
PREFETCH = 100
TEXT = "Report for the third quarter"  # a body of about 120 bytes, with its id and timestamp


def settings() -> Any:
    from mqlab import Settings

    return Settings.from_env()


def blocking() -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(URL))


def persistent(message_id: str = "") -> pika.BasicProperties:
    return pika.BasicProperties(
        content_type="application/json", delivery_mode=2, message_id=message_id or None
    )


def depth(queue: str) -> int:
    with blocking() as connection:
        found = connection.channel().queue_declare(queue, passive=True)
        return int(found.method.message_count)


def tasks(count: int) -> list[Any]:
    from mqlab import Task

    return [Task(TEXT) for _ in range(count)]


def timed(function: Callable[[], object]) -> dict[str, float]:
    started = time.perf_counter()
    function()
    return {"seconds": time.perf_counter() - started}


class Meter:
    """A handler that records the times of the first and the last of ``count`` tasks."""

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, 0
        self.first = self.last = 0.0
        self.done = threading.Event()

    def __call__(self, *_args: object) -> None:
        if not self.seen:
            self.first = time.perf_counter()
        self.seen += 1
        if self.seen == self.count:
            self.last = time.perf_counter()
            self.done.set()

    @property
    def figures(self) -> dict[str, float]:
        assert self.seen == self.count, f"{self.seen} of {self.count} tasks done"
        return {"seconds": self.last - self.first}


# ---- publishing


def publish_mqlab_many(queue: str, count: int) -> dict[str, float]:
    from mqlab import Producer

    with Producer(queue, settings=settings()) as producer:
        producer.send_many([TEXT] * 100)  # warm-up
        found = timed(lambda: producer.send_many([TEXT] * count, timeout_s=120))
    wait_for_depth(queue, count + 100)
    return found


def publish_raw_socket(queue: str, count: int) -> dict[str, float]:
    import raw_socket

    with blocking() as connection:
        connection.channel().queue_declare(queue, durable=True)
    ready = [raw_socket.publish_frames(queue, t.to_json(), t.task_id) for t in tasks(count)]
    found = timed(lambda: raw_socket.publish_confirmed(URL, ready))
    wait_for_depth(queue, count)
    return found


def publish_aio_pika(queue: str, count: int) -> dict[str, float]:
    import aio_pika

    async def run() -> float:
        connection = await aio_pika.connect_robust(URL)
        channel = await connection.channel(publisher_confirms=True)
        await channel.declare_queue(queue, durable=True)
        started = time.perf_counter()
        for start in range(0, count, 1000):
            await asyncio.gather(
                *(
                    channel.default_exchange.publish(
                        aio_pika.Message(
                            t.to_json(),
                            content_type="application/json",
                            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                            message_id=t.task_id,
                        ),
                        routing_key=queue,
                    )
                    for t in tasks(min(1000, count - start))
                )
            )
        seconds = time.perf_counter() - started
        await connection.close()
        return seconds

    found = {"seconds": asyncio.run(run())}
    wait_for_depth(queue, count)
    return found


def nothing(data: str) -> None:
    """Do nothing, where only the messaging is measured."""


def celery_app(queue: str, handle: Any = None) -> tuple[Any, Any]:
    import celery

    app = celery.Celery("bench", broker=URL)
    app.conf.update(
        task_default_queue=queue,
        task_ignore_result=True,
        worker_prefetch_multiplier=PREFETCH,
        task_acks_late=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=False,
    )
    return app, app.task(name="bench.report")(handle or nothing)


def publish_celery(queue: str, count: int) -> dict[str, float]:
    app, task = celery_app(queue)
    task.delay(TEXT)
    found = timed(lambda: [task.delay(TEXT) for _ in range(count)])
    app.close()
    wait_for_depth(queue, count + 1)
    return found


def dramatiq_actor(queue: str, confirm: bool, handle: Any = None) -> tuple[Any, Any]:
    import dramatiq
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    broker = RabbitmqBroker(url=URL, confirm_delivery=confirm)
    dramatiq.set_broker(broker)
    actor = dramatiq.actor(handle or nothing, actor_name="report", queue_name=queue)
    return broker, actor


def publish_dramatiq(queue: str, count: int, *, confirm: bool) -> dict[str, float]:
    broker, actor = dramatiq_actor(queue, confirm)
    actor.send(TEXT)
    found = timed(lambda: [actor.send(TEXT) for _ in range(count)])
    broker.close()
    wait_for_depth(queue, count + 1)
    return found


def publish_kombu(queue: str, count: int) -> dict[str, float]:
    import kombu

    with kombu.Connection(URL, transport_options={"confirm_publish": True}) as connection:
        simple = connection.SimpleQueue(queue)
        simple.put("warm")
        found = timed(lambda: [simple.put({"data": TEXT}) for _ in range(count)])
        simple.close()
    wait_for_depth(queue, count + 1)
    return found


def publish_pika_unconfirmed(queue: str, count: int) -> dict[str, float]:
    with blocking() as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)

        def run() -> None:
            for t in tasks(count):
                channel.basic_publish("", queue, t.to_json(), persistent(t.task_id))

        found = timed(run)
    wait_for_depth(queue, count)
    return found


def publish_pika_one_by_one(queue: str, count: int) -> dict[str, float]:
    with blocking() as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.confirm_delivery()

        def run() -> None:
            for t in tasks(count):
                channel.basic_publish("", queue, t.to_json(), persistent(t.task_id), mandatory=True)

        found = timed(run)
    wait_for_depth(queue, count)
    return found


def publish_mqlab_one_by_one(queue: str, count: int) -> dict[str, float]:
    from mqlab import Producer

    with Producer(queue, settings=settings()) as producer:
        found = timed(lambda: [producer.send(TEXT) for _ in range(count)])
    wait_for_depth(queue, count)
    return found


def publish_connection_per_task(queue: str, count: int) -> dict[str, float]:
    """As in the walk-through, but confirmed: connect, declare, publish, confirm, close."""

    def run() -> None:
        for t in tasks(count):
            with blocking() as connection:
                channel = connection.channel()
                channel.queue_declare(queue, durable=True)
                channel.confirm_delivery()
                channel.basic_publish("", queue, t.to_json(), persistent(t.task_id), mandatory=True)

    found = timed(run)
    wait_for_depth(queue, count)
    return found


# ---- consuming


def consume_mqlab(
    queue: str, count: int, *, workers: int = 1, prefetch: int = PREFETCH, work_s: float = 0.0
) -> dict[str, float]:
    from mqlab import BackgroundConsumer

    fill(queue, count)
    meter = Meter(count)

    def work(task: Any) -> None:
        if work_s:
            time.sleep(work_s)
        meter(task)

    with BackgroundConsumer(
        work, queue=queue, settings=settings(), workers=workers, prefetch=prefetch
    ) as consumer:
        consumer.wait(count, timeout_s=300, show_progress=False)
    wait_for_depth(queue, 0)
    return meter.figures


def consume_raw_socket(queue: str, count: int) -> dict[str, float]:
    import raw_socket

    fill(queue, count)
    meter = Meter(count)
    raw_socket.consume(URL, queue, count, PREFETCH, meter)
    wait_for_depth(queue, 0)
    return meter.figures


def consume_pika_callback(queue: str, count: int) -> dict[str, float]:
    fill(queue, count)
    meter = Meter(count)
    with blocking() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=PREFETCH)

        def callback(ch: Any, method: Any, _properties: Any, body: bytes) -> None:
            meter(json.loads(body))
            ch.basic_ack(method.delivery_tag)
            if meter.done.is_set():
                ch.stop_consuming()

        channel.basic_consume(queue, callback)
        channel.start_consuming()
    wait_for_depth(queue, 0)
    return meter.figures


def consume_pika_threaded(queue: str, count: int) -> dict[str, float]:
    """The threaded consumer from pika's documentation, with a thread for each delivery."""
    fill(queue, count)
    meter, lock, threads = Meter(count), threading.Lock(), []
    with blocking() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=PREFETCH)
        acked = 0

        def ack(ch: Any, tag: int) -> None:
            nonlocal acked
            ch.basic_ack(tag)
            acked += 1
            if acked == count:
                ch.stop_consuming()

        def work(ch: Any, tag: int, body: bytes) -> None:
            with lock:
                meter(json.loads(body))
            connection.add_callback_threadsafe(functools.partial(ack, ch, tag))

        def on_message(ch: Any, method: Any, _properties: Any, body: bytes) -> None:
            thread = threading.Thread(target=work, args=(ch, method.delivery_tag, body))
            thread.start()
            threads.append(thread)

        channel.basic_consume(queue, on_message)
        channel.start_consuming()
        for thread in threads:
            thread.join()
    wait_for_depth(queue, 0)
    return meter.figures


def consume_dramatiq(queue: str, count: int) -> dict[str, float]:
    os.environ["dramatiq_queue_prefetch"] = str(PREFETCH)  # noqa: SIM112 - Dramatiq's name
    import dramatiq

    meter = Meter(count)
    broker, actor = dramatiq_actor(queue, False, meter_task(meter))
    for _ in range(count):
        actor.send(TEXT)
    wait_for_depth(queue, count)
    worker = dramatiq.Worker(broker, worker_threads=1)
    worker.start()
    assert meter.done.wait(300)
    worker.stop()
    broker.close()
    wait_for_depth(queue, 0)
    return meter.figures


def meter_task(meter: Meter) -> Callable[[str], None]:
    def report(data: str) -> None:
        meter(data)

    return report


def consume_celery(queue: str, count: int) -> dict[str, float]:
    meter = Meter(count)
    app, task = celery_app(queue, meter_task(meter))
    for _ in range(count):
        task.delay(TEXT)
    wait_for_depth(queue, count)
    worker = app.Worker(
        pool="solo", concurrency=1, without_heartbeat=True, without_gossip=True,
        without_mingle=True, loglevel="ERROR", quiet=True,
    )  # fmt: skip
    thread = threading.Thread(target=lambda: (meter.done.wait(300), stop_celery()))
    thread.start()
    with contextlib.suppress(SystemExit):  # how Celery's worker stops
        worker.start()
    thread.join(10)
    wait_for_depth(queue, 0)
    return meter.figures


def stop_celery() -> None:
    import celery.worker.state

    time.sleep(0.5)  # let the last acks go out
    celery.worker.state.should_stop = 0


def fill(queue: str, count: int) -> None:
    from mqlab import Producer

    with Producer(queue, settings=settings()) as producer:
        producer.send_many([TEXT] * count, timeout_s=300)


def wait_for_depth(queue: str, count: int) -> None:
    deadline = time.monotonic() + 30
    while (found := depth(queue)) != count:
        assert time.monotonic() < deadline, f"{found} in the queue, not {count}"
        time.sleep(0.05)


# ---- other figures


def latency(queue: str, count: int, consume: Callable[[Callable[[bytes], None]], Any]) -> Any:
    """Publish a message every 2 ms with pika, and measure the time to the handler's call."""
    waits: list[float] = []
    stop = consume(lambda body: waits.append(time.monotonic() - json.loads(body)["timestamp"]))
    with blocking() as connection:
        channel = connection.channel()
        for _ in range(count):
            body = json.dumps({"task_id": "x", "data": TEXT, "timestamp": time.monotonic()})
            channel.basic_publish("", queue, body.encode(), persistent("x"))
            time.sleep(0.002)
    deadline = time.monotonic() + 30
    while len(waits) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop()
    return {"p50": statistics.median(waits), "p95": statistics.quantiles(waits, n=20)[-1]}


def latency_mqlab(queue: str, count: int) -> dict[str, float]:
    from mqlab import BackgroundConsumer

    def consume(handle: Callable[[bytes], None]) -> Any:
        def work(task: Any) -> None:
            handle(task.to_json())

        consumer = BackgroundConsumer(work, queue=queue, settings=settings(), prefetch=PREFETCH)
        return consumer.start().stop

    return latency(queue, count, consume)


def latency_pika_callback(queue: str, count: int) -> dict[str, float]:
    def consume(handle: Callable[[bytes], None]) -> Any:
        connection = blocking()
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.basic_qos(prefetch_count=PREFETCH)

        def callback(ch: Any, method: Any, _properties: Any, body: bytes) -> None:
            handle(body)
            ch.basic_ack(method.delivery_tag)

        channel.basic_consume(queue, callback)
        thread = threading.Thread(target=channel.start_consuming)
        thread.start()

        def stop() -> None:
            connection.add_callback_threadsafe(channel.stop_consuming)
            thread.join(10)
            connection.close()

        return stop

    return latency(queue, count, consume)


def memory_mqlab(queue: str, count: int) -> dict[str, float]:
    """Return the growth of the resident set, in MB, between 10,000 and ``count`` tasks done."""
    from mqlab import BackgroundConsumer, Producer

    def resident_mb() -> float:
        import psutil

        return float(psutil.Process().memory_info().rss) / 1e6

    with Producer(queue, settings=settings()) as producer, BackgroundConsumer(
        lambda task: f"COMPLETED: Report generated for '{task.data}'",
        queue=queue, settings=settings(), prefetch=PREFETCH,
    ) as consumer:  # fmt: skip
        before = 0.0
        for done in range(10_000, count + 1, 10_000):
            producer.send_many([TEXT] * 10_000, timeout_s=120)
            consumer.wait(10_000, timeout_s=120, show_progress=False)
            if done == 10_000:
                before = resident_mb()
        grown = resident_mb() - before
    return {"grown_mb": grown, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def import_time(module: str) -> dict[str, float]:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(5)
    ]
    return {"seconds": statistics.median(runs)}


CASES: dict[str, Callable[[str, int], dict[str, float]]] = {
    "publish mqlab send_many": publish_mqlab_many,
    "publish raw socket": publish_raw_socket,
    "publish aio-pika confirmed": publish_aio_pika,
    "publish Celery unconfirmed": publish_celery,
    "publish Dramatiq confirmed": functools.partial(publish_dramatiq, confirm=True),
    "publish Dramatiq unconfirmed": functools.partial(publish_dramatiq, confirm=False),
    "publish kombu confirmed": publish_kombu,
    "publish pika unconfirmed": publish_pika_unconfirmed,
    "publish pika one by one": publish_pika_one_by_one,
    "publish mqlab send": publish_mqlab_one_by_one,
    "publish connection per task": publish_connection_per_task,
    "consume mqlab": consume_mqlab,
    "consume raw socket": consume_raw_socket,
    "consume pika callback": consume_pika_callback,
    "consume pika threaded": consume_pika_threaded,
    "consume Dramatiq": consume_dramatiq,
    "consume Celery": consume_celery,
    "consume mqlab 16 workers 10 ms": functools.partial(
        consume_mqlab, workers=16, prefetch=32, work_s=0.01
    ),
    "latency mqlab": latency_mqlab,
    "latency pika callback": latency_pika_callback,
    "memory mqlab": memory_mqlab,
    "import mqlab": lambda _queue, _count: import_time("mqlab.producer, mqlab.consumer"),
    "import pika": lambda _queue, _count: import_time("pika"),
}

if __name__ == "__main__":
    name, queue, count = sys.argv[1:]
    print(json.dumps(CASES[name](queue, int(count))))
