"""Wrong answers to the exercises of page 04."""

# ruff: noqa: ARG001

import json
import threading
import time
import uuid

from mqlab import BackgroundConsumer
from mqlab.exercises.page_04 import ex1, ex2
from tests.wrong_answers import wrong


def consume(connect, queue, on_task, prefetch=1, **options):
    """The frame that most of them have in common, and that is right."""
    with connect() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=prefetch)
        channel.basic_consume(queue, on_task, **options)
        channel.start_consuming()


def id_of(body):
    return json.loads(body)["task_id"]


@wrong(
    ex1,
    "With auto_ack a task counts as done when it is sent to you.",
    ask="If your process dies now, who has the task?",
)
def takes_auto_ack(connect, queue, count, work):
    """auto_ack, since it is less to write"""
    done = []

    def on_task(channel, method, properties, body):
        work(id_of(body))
        done.append(id_of(body))
        if len(done) == count:
            channel.stop_consuming()

    consume(connect, queue, on_task, auto_ack=True)
    return done


@wrong(
    ex1,
    "You acknowledged before the work was done.",
    ask="If your process dies between these two lines, who has the task?",
)
def acks_first(connect, queue, count, work):
    """Acknowledges first, works then"""
    done = []

    def on_task(channel, method, properties, body):
        channel.basic_ack(method.delivery_tag)
        work(id_of(body))
        done.append(id_of(body))
        if len(done) == count:
            channel.stop_consuming()

    consume(connect, queue, on_task)
    return done


@wrong(
    ex1,
    "The broker never heard that your work is done.",
    ask="What will it do with these tasks when you leave?",
)
def never_acks(connect, queue, count, work):
    """No acknowledgement, and no prefetch that would show it"""
    done = []

    def on_task(channel, method, properties, body):
        work(id_of(body))
        done.append(id_of(body))
        if len(done) == count:
            channel.stop_consuming()

    consume(connect, queue, on_task, prefetch=0)
    return done


@wrong(ex1, "The id has changed on the way.", ask="Which id will the user ask with?")
def makes_new_ids(connect, queue, count, work):
    """A fresh id for each task"""
    done = []

    def on_task(channel, method, properties, body):
        work(id_of(body))
        channel.basic_ack(method.delivery_tag)
        done.append(str(uuid.uuid4()))
        if len(done) == count:
            channel.stop_consuming()

    consume(connect, queue, on_task)
    return done


@wrong(ex1, "Your worker never stops.", ask="How would it know that this was the last task?")
def never_stops(connect, queue, count, work):
    """start_consuming, and nobody who ends it"""
    done = []

    def on_task(channel, method, properties, body):
        work(id_of(body))
        channel.basic_ack(method.delivery_tag)
        done.append(id_of(body))

    consume(connect, queue, on_task)
    return done


@wrong(ex1, "You left a consumer behind.", ask="Who gets the next task that is sent?")
def leaves_the_consumer(connect, queue, count, work):
    """BackgroundConsumer, started and never stopped"""
    consumer = BackgroundConsumer(lambda task: work(task.task_id), queue=queue).start()
    records = consumer.wait(count, timeout_s=20, show_progress=False)
    return [record.task_id for record in records]


@wrong(ex1, "You went on waiting when the work was done.", ask="How do you know how long to sleep?")
def sleeps(connect, queue, count, work):
    """Sleeps long enough instead of waiting"""
    with BackgroundConsumer(lambda task: work(task.task_id), queue=queue) as consumer:
        time.sleep(5)
    return [record.task_id for record in consumer.records]


@wrong(
    ex1,
    "You stopped before the work was done.",
    ask="Does an empty queue mean that no more will come?",
)
def takes_what_is_there(connect, queue, count, work):
    """Takes an empty queue for the end"""
    done = []
    with connect() as connection:
        channel = connection.channel()
        while (message := channel.basic_get(queue))[0] is not None:
            work(id_of(message[2]))
            channel.basic_ack(message[0].delivery_tag)
            done.append(id_of(message[2]))
    return done


@wrong(
    ex1, "Two threads use one connection.", ask="Which thread owns it? How do you ask the owner?"
)
def acks_from_other_threads(connect, queue, count, work):
    """A thread for each task, which works and acknowledges"""
    done = []

    def on_task(channel, method, properties, body):
        def do():
            work(id_of(body))
            channel.basic_ack(method.delivery_tag)
            done.append(id_of(body))

        threading.Thread(target=do).start()

    with connect() as connection:
        channel = connection.channel()
        channel.basic_consume(queue, on_task)
        end = time.monotonic() + 5
        while len(done) < count and time.monotonic() < end:
            connection.process_data_events(time_limit=0.1)
    return done


@wrong(ex1, "Nobody did the work.", ask="Which line makes the report?")
def reads_ids_only(connect, queue, count, work):
    """Returns the ids without the work"""
    done = []

    def on_task(channel, method, properties, body):
        channel.basic_ack(method.delivery_tag)
        done.append(id_of(body))
        if len(done) == count:
            channel.stop_consuming()

    consume(connect, queue, on_task)
    return done


@wrong(
    ex1,
    "You acknowledged a delivery twice, or on another channel.",
    ask="How often may one task be acknowledged?",
)
def acks_twice(connect, queue, count, work):
    """Acknowledges once in the callback, and all again at the end"""
    done, tags = [], []

    def on_task(channel, method, properties, body):
        work(id_of(body))
        channel.basic_ack(method.delivery_tag)
        done.append(id_of(body))
        tags.append(method.delivery_tag)
        if len(done) == count:
            for tag in tags:
                channel.basic_ack(tag)
            channel.stop_consuming()

    consume(connect, queue, on_task)
    return done


@wrong(ex1, "Your handler raised an error.", ask="What is your handler given?")
def takes_a_task_for_a_dict(connect, queue, count, work):
    """Takes the library's Task for a dict"""
    with BackgroundConsumer(lambda task: work(task["task_id"]), queue=queue) as consumer:
        records = consumer.wait(count, timeout_s=5, show_progress=False)
    return [record.task_id for record in records]


@wrong(
    ex2,
    "Two threads use one connection.",
    ask="Who may call stop_consuming, and who may ask for it?",
)
def stops_it_from_outside(connect, queue, closing, work):
    """Calls stop_consuming from the thread that waits"""
    done = []

    def on_task(channel, method, properties, body):
        work(id_of(body))
        channel.basic_ack(method.delivery_tag)
        done.append(id_of(body))

    connection = connect()
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue, on_task)
    worker = threading.Thread(target=channel.start_consuming, daemon=True)
    worker.start()
    closing.wait(60)
    channel.stop_consuming()
    worker.join(5)
    return done


@wrong(
    ex2,
    "With auto_ack a task counts as done when it is sent to you.",
    ask="Where are the tasks that you received but did not do?",
)
def takes_auto_ack_until(connect, queue, closing, work):
    """auto_ack: what was handed out and not done is gone"""
    done = []
    with connect() as connection:
        channel = connection.channel()
        for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=0.1):
            if closing.is_set():
                break
            if method is not None:
                work(id_of(body))
                done.append(id_of(body))
    return done


@wrong(
    ex2,
    "Without a task, your loop never looks at the clock.",
    ask="When does your callback run, if no task comes?",
)
def asks_in_the_callback(connect, queue, closing, work):
    """Asks for closing in the callback only"""
    done = []

    def on_task(channel, method, properties, body):
        work(id_of(body))
        channel.basic_ack(method.delivery_tag)
        done.append(id_of(body))
        if closing.is_set():
            channel.stop_consuming()

    consume(connect, queue, on_task)
    return done


@wrong(ex2, "You went on after closing time.", ask="How many tasks had the broker handed you?")
def has_everything_already(connect, queue, closing, work):
    """No prefetch limit: the loop is busy with what is here already"""
    done = []

    def on_task(channel, method, properties, body):
        work(id_of(body))
        channel.basic_ack(method.delivery_tag)
        done.append(id_of(body))

    def ask():
        closing.wait(60)
        connection.add_callback_threadsafe(channel.stop_consuming)

    with connect() as connection:
        channel = connection.channel()
        channel.basic_consume(queue, on_task)
        threading.Thread(target=ask, daemon=True).start()
        channel.start_consuming()
    return done


@wrong(ex2, "You stopped before closing time.", ask="How do you know that it was time?")
def stops_when_it_is_empty(connect, queue, closing, work):
    """Takes an empty queue for closing time"""
    done = []
    with connect() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        for method, _, body in channel.consume(queue, inactivity_timeout=0.3):
            if method is None or closing.is_set():
                break
            work(id_of(body))
            channel.basic_ack(method.delivery_tag)
            done.append(id_of(body))
    return done


@wrong(ex2, "You left in the middle of a task.", ask="Was that task done, when you returned?")
def does_not_wait_for_its_thread(connect, queue, closing, work):
    """Returns at once at closing time, and the thread is still at it"""
    done = []

    def loop():
        with connect() as connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=1)
            for method, _, body in channel.consume(queue, inactivity_timeout=0.1):
                if closing.is_set():
                    return
                if method is not None:
                    work(id_of(body))
                    channel.basic_ack(method.delivery_tag)
                    done.append(id_of(body))

    threading.Thread(target=loop, daemon=True).start()
    closing.wait(60)
    return done


@wrong(
    ex2,
    "You acknowledged before the work was done.",
    ask="Which deliveries does multiple=True cover?",
)
def acks_all_at_the_end(connect, queue, closing, work):
    """One acknowledgement for all at the end, prefetched ones included"""
    done = []
    with connect() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=50)
        for method, _, body in channel.consume(queue, inactivity_timeout=0.1):
            if closing.is_set():
                break
            if method is not None:
                work(id_of(body))
                done.append(id_of(body))
        channel.basic_ack(0, multiple=True)
    return done


@wrong(
    ex2, "You did more than you tell.", ask="Which task is neither in your list nor in the queue?"
)
def forgets_the_last_one(connect, queue, closing, work):
    """Forgets the task that was being worked on at closing time"""
    done = []
    with connect() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        for method, _, body in channel.consume(queue, inactivity_timeout=0.1):
            if method is not None:
                work(id_of(body))
                channel.basic_ack(method.delivery_tag)
            if closing.is_set():
                break
            if method is not None:
                done.append(id_of(body))
    return done
