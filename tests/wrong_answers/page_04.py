"""Answers to the exercises of page 04: workers that lose, repeat, overlook or leave something."""

# ruff: noqa: ARG001

import contextlib
import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from mqlab import BackgroundConsumer
from mqlab.exercises.page_04 import ex1, ex2
from tests.wrong_answers import right, wrong

kept = []


def consume(connect, queue, on_task, prefetch=1, **options):
    """The frame that most of them have in common, and that is right."""
    with connect() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=prefetch)
        channel.basic_consume(queue, on_task, **options)
        channel.start_consuming()


def by_hand(step, prefetch=1, **options):
    """A worker around ``step(channel, tag, task_id, work, done)``, until ``count`` are done."""

    def answer(connect, queue, count, work):
        done = []

        def on_task(channel, method, properties, body):
            step(channel, method.delivery_tag, id_of(body), work, done)
            if len(done) == count:
                channel.stop_consuming()

        consume(connect, queue, on_task, prefetch, **options)
        return done

    answer.__doc__, answer.__name__ = step.__doc__, step.__name__
    return answer


def deliveries(connect, queue, pause_s=0.1, prefetch=1, **options):
    """Channel, tag and task_id of each delivery; tag and task_id are None after each pause."""
    with connect() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=prefetch)
        for method, _, body in channel.consume(queue, inactivity_timeout=pause_s, **options):
            yield (channel, method.delivery_tag, id_of(body)) if method else (channel, None, None)


def id_of(body):
    return json.loads(body)["task_id"]


def do(channel, tag, task_id, work, done):
    """A task, as it should be done."""
    if tag is not None:
        work(task_id)
        channel.basic_ack(tag)
        done.append(task_id)


@wrong(
    ex1,
    "With auto_ack a task counts as done when it is sent to you.",
    ask="If your process dies now, who has the task?",
)
def takes_auto_ack(connect, queue, count, work):
    """auto_ack, since it is less to write"""

    def step(channel, tag, task_id, work, done):
        work(task_id)
        done.append(task_id)

    return by_hand(step, auto_ack=True)(connect, queue, count, work)


@wrong(
    ex1,
    "You acknowledged before the work was done.",
    ask="If your process dies between these two lines, who has the task?",
)
@by_hand
def acks_first(channel, tag, task_id, work, done):
    """Acknowledges first, works then"""
    channel.basic_ack(tag)
    work(task_id)
    done.append(task_id)


@wrong(
    ex1,
    "The broker never heard that your work is done.",
    ask="What will it do with these tasks when you leave?",
)
def never_acks(connect, queue, count, work):
    """No acknowledgement, and no prefetch that would show it"""

    def step(channel, tag, task_id, work, done):
        work(task_id)
        done.append(task_id)

    return by_hand(step, prefetch=0)(connect, queue, count, work)


@wrong(
    ex1,
    "The id has changed on the way.",
    ask="With which id will the user ask for the report?",
)
@by_hand
def makes_new_ids(channel, tag, task_id, work, done):
    """A fresh id for each task"""
    work(task_id)
    channel.basic_ack(tag)
    done.append(str(uuid.uuid4()))


@wrong(
    ex1,
    "Your worker never stops.",
    ask="Which line tells it that this was the last task?",
)
def never_stops(connect, queue, count, work):
    """start_consuming, and nobody who ends it"""
    done = []

    def on_task(channel, method, properties, body):
        do(channel, method.delivery_tag, id_of(body), work, done)

    consume(connect, queue, on_task)
    return done


@wrong(
    ex1,
    "You left a consumer behind.",
    ask="Who gets the next task that is sent?",
)
def leaves_the_consumer(connect, queue, count, work):
    """BackgroundConsumer, started and never stopped"""
    consumer = BackgroundConsumer(lambda task: work(task.task_id), queue=queue).start()
    records = consumer.wait(count, timeout_s=20, show_progress=False)
    return [record.task_id for record in records]


@wrong(
    ex1,
    "You went on waiting when the work was done.",
    ask="How do you know how long to sleep?",
)
def sleeps(connect, queue, count, work):
    """Sleeps long enough instead of waiting"""
    with BackgroundConsumer(lambda task: work(task.task_id), queue=queue) as consumer:
        time.sleep(6)
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
            do(channel, message[0].delivery_tag, id_of(message[2]), work, done)
    return done


@wrong(
    ex1,
    "Two threads use one connection.",
    ask="Which thread owns it? How do you ask the owner?",
)
def acks_from_other_threads(connect, queue, count, work):
    """A thread for each task, which works and acknowledges"""
    done = []

    def on_task(channel, method, properties, body):
        arguments = channel, method.delivery_tag, id_of(body), work, done
        threading.Thread(target=do, args=arguments).start()

    with connect() as connection:
        connection.channel().basic_consume(queue, on_task)
        end = time.monotonic() + 5
        while len(done) < count and time.monotonic() < end:
            connection.process_data_events(time_limit=0.1)
    return done


@wrong(ex1, "Nobody did the work.", ask="Which line makes the report?")
@by_hand
def reads_ids_only(channel, tag, task_id, work, done):
    """Returns the ids without the work"""
    channel.basic_ack(tag)
    done.append(task_id)


@wrong(
    ex1,
    "You acknowledged a delivery twice, or on another channel.",
    ask="How often may one task be reported as done?",
)
@by_hand
def acks_twice(channel, tag, task_id, work, done):
    """Acknowledges each task twice"""
    do(channel, tag, task_id, work, done)
    channel.basic_ack(tag)


@wrong(ex1, "Your handler raised an error.", ask="What is it that your handler is given?")
def takes_a_task_for_a_dict(connect, queue, count, work):
    """Takes the library's Task for a dict"""
    with BackgroundConsumer(lambda task: work(task["task_id"]), queue=queue) as consumer:
        records = consumer.wait(count, timeout_s=5, show_progress=False)
    return [record.task_id for record in records]


@wrong(
    ex1,
    "You rejected tasks instead of acknowledging them.",
    ask="What does the broker do with a message that is rejected and not requeued?",
)
@by_hand
def rejects_what_is_done(channel, tag, task_id, work, done):
    """basic_reject(requeue=False), to be rid of it"""
    work(task_id)
    channel.basic_reject(tag, requeue=False)
    done.append(task_id)


@wrong(
    ex1,
    "You rejected tasks instead of acknowledging them.",
    ask="Which of the three says that a task is done: ack, nack or reject?",
)
@by_hand
def nacks_what_is_done(channel, tag, task_id, work, done):
    """basic_nack in place of basic_ack"""
    if task_id not in done:
        work(task_id)
        done.append(task_id)
    channel.basic_nack(tag)


@wrong(
    ex1,
    "Your worker does more than take tasks and acknowledge them.",
    ask="Whose tasks would be in it?",
)
def purges_afterwards(connect, queue, count, work):
    """A purge after the work, to leave a clean queue"""
    done = by_hand(do)(connect, queue, count, work)
    with connect() as connection:
        connection.channel().queue_purge(queue)
    return done


@wrong(
    ex1,
    "You work on another queue than the one that you are given.",
    ask="Where does that name come from, and which one were you handed?",
)
def works_on_the_pages_queue(connect, queue, count, work):
    """The page's queue in place of the argument"""
    return by_hand(do)(connect, "lesson_04_none_here", count, work)


@wrong(
    ex1,
    "Your function raised TypeError.",
    ask="What does basic_get return when the queue is empty?",
)
def trips_over_an_empty_queue(connect, queue, count, work):
    """basic_get, without a look at what it returns"""
    done = []
    with connect() as connection:
        channel = connection.channel()
        while len(done) < count:
            method, _, body = channel.basic_get(queue)
            task_id = id_of(body)
            do(channel, method.delivery_tag, task_id, work, done)
    return done


@wrong(
    ex1,
    "You do more tasks than you were asked for.",
    ask="If there are more tasks than count, where should they be afterwards?",
)
def does_all_there_is(connect, queue, count, work):
    """Stops when the queue is empty and enough is done"""
    done = []
    with connect() as connection:
        channel = connection.channel()
        while True:
            method, _, body = channel.basic_get(queue)
            if method is not None:
                do(channel, method.delivery_tag, id_of(body), work, done)
            elif len(done) >= count:
                return done
            else:
                connection.sleep(0.02)


@wrong(
    ex1,
    "You left a connection open.",
    ask="How many connections does the broker have after ten runs of your cell?",
)
def never_closes(connect, queue, count, work):
    """A connection that is never closed"""
    kept.append(connect())
    return by_hand(do)(lambda: contextlib.nullcontext(kept[-1]), queue, count, work)


@wrong(
    ex2,
    "Two threads use one connection.",
    ask="Who may call stop_consuming, and who may ask for it?",
)
def stops_it_from_outside(connect, queue, closing, work):
    """Calls stop_consuming from the thread that waits"""
    done = []

    def on_task(channel, method, properties, body):
        do(channel, method.delivery_tag, id_of(body), work, done)

    channel = connect().channel()
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
    ask="Where are the ones that you had and did not do?",
)
def takes_auto_ack_until(connect, queue, closing, work):
    """auto_ack: what was handed out and not done is gone"""
    done = []
    for _, tag, task_id in deliveries(connect, queue, auto_ack=True):
        if closing.is_set():
            break
        if tag is not None:
            work(task_id)
            done.append(task_id)
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
        do(channel, method.delivery_tag, id_of(body), work, done)
        if closing.is_set():
            channel.stop_consuming()

    consume(connect, queue, on_task)
    return done


@wrong(
    ex2,
    "You went on after closing time.",
    ask="How many tasks had the broker handed you?",
)
def has_everything_already(connect, queue, closing, work):
    """No prefetch limit: the loop is busy with what is here already"""
    done = []

    def on_task(channel, method, properties, body):
        do(channel, method.delivery_tag, id_of(body), work, done)

    def ask():
        closing.wait(60)
        connection.add_callback_threadsafe(channel.stop_consuming)

    with connect() as connection:
        channel = connection.channel()
        channel.basic_consume(queue, on_task)
        threading.Thread(target=ask, daemon=True).start()
        channel.start_consuming()
    return done


@wrong(ex2, "You stopped before closing time.", ask="Who said that it was time?")
def stops_when_it_is_empty(connect, queue, closing, work):
    """Takes an empty queue for closing time"""
    done = []
    for channel, tag, task_id in deliveries(connect, queue, pause_s=0.3):
        if tag is None or closing.is_set():
            break
        do(channel, tag, task_id, work, done)
    return done


@wrong(
    ex2,
    "You left in the middle of a task.",
    ask="Was that task done, when you returned?",
)
def does_not_wait_for_its_thread(connect, queue, closing, work):
    """Returns at once at closing time, and the thread is still at it"""
    done = []

    def loop():
        for delivery in deliveries(connect, queue):
            if closing.is_set():
                return
            do(*delivery, work, done)

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
    for channel, tag, task_id in deliveries(connect, queue, prefetch=50):
        if closing.is_set():
            channel.basic_ack(0, multiple=True)
            break
        if tag is not None:
            work(task_id)
            done.append(task_id)
    return done


@wrong(
    ex2,
    "You did more than your list says.",
    ask="Which task is neither in your list nor in the queue?",
)
def forgets_the_last_one(connect, queue, closing, work):
    """Forgets the task that was being worked on at closing time"""
    done, finished = [], []
    for channel, tag, task_id in deliveries(connect, queue):
        do(channel, tag, task_id, work, finished)
        if closing.is_set():
            break
        done = list(finished)
    return done


@wrong(
    ex2,
    "You went on after closing time.",
    ask="Where in your code do you ask whether it is closing time?",
)
def works_for_two_seconds(connect, queue, closing, work):
    """Two seconds by the clock, and never a look at closing"""
    done, end = [], time.monotonic() + 2
    for delivery in deliveries(connect, queue):
        if time.monotonic() > end:
            break
        do(*delivery, work, done)
    return done


@wrong(
    ex2,
    "You went on after closing time.",
    ask="Which task is the last one that may begin?",
)
def begins_one_more(connect, queue, closing, work):
    """Sees closing, and does one more task first"""
    done, over = [], False
    for delivery in deliveries(connect, queue):
        do(*delivery, work, done)
        if over:
            break
        over = closing.is_set()
    return done


@wrong(
    ex2,
    "You stopped before closing time.",
    ask="What is `not closing`, if closing is an object?",
)
def asks_the_event_itself(connect, queue, closing, work):
    """`while not closing`, without is_set()"""
    done = []
    with connect() as connection:
        channel = connection.channel()
        while not closing:
            method, _, body = channel.basic_get(queue)
            if method is not None:
                do(channel, method.delivery_tag, id_of(body), work, done)
    return done


@wrong(
    ex2,
    "You stopped before closing time.",
    ask="How many tasks may you have that are not acknowledged? What happens when you have them?",
)
def acks_only_at_closing_time(connect, queue, closing, work):
    """One acknowledgement, at closing time, for all that is done"""
    done, last = [], None
    for channel, tag, task_id in deliveries(connect, queue, prefetch=5):
        if closing.is_set():
            if last is not None:
                channel.basic_ack(last, multiple=True)
            break
        if tag is not None:
            work(task_id)
            done.append(task_id)
            last = tag
    return done


@wrong(ex2, "You stopped before closing time.", ask="What do you do until closing is set?")
def does_a_single_task(connect, queue, closing, work):
    """One task, and then it only waits"""
    done = []
    for delivery in deliveries(connect, queue):
        do(*delivery, work, done)
        closing.wait(30)
        break
    return done


calls = []


@wrong(
    ex2,
    "Your list has more in it than was done.",
    ask="What is in this list when your function is called again?",
)
def adds_to_a_list_for_all_calls(connect, queue, closing, work):
    """One list for all calls"""
    for delivery in deliveries(connect, queue):
        if closing.is_set():
            break
        do(*delivery, work, calls)
    return calls


@wrong(
    ex2,
    "Your worker does more than take tasks and acknowledge them.",
    ask="Is the copy that you send the same message, and in the same place in the queue?",
)
def sends_the_rest_back(connect, queue, closing, work):
    """Publishes a copy of the task that it does not begin, and acknowledges the original"""
    done = []
    for channel, tag, task_id in deliveries(connect, queue):
        if closing.is_set():
            if tag is not None:
                channel.basic_publish("", queue, json.dumps({"task_id": task_id}))
                channel.basic_ack(tag)
            break
        do(channel, tag, task_id, work, done)
    return done


@right(ex1)
def takes_one_at_a_time(connect, queue, count, work):
    """basic_get in a loop, with a pause when there is nothing"""
    done, end = [], time.monotonic() + 30
    with connect() as connection:
        channel = connection.channel()
        while len(done) < count and time.monotonic() < end:
            method, _, body = channel.basic_get(queue)
            if method is None:
                connection.sleep(0.02)
            else:
                do(channel, method.delivery_tag, id_of(body), work, done)
    return done


@right(ex1)
def from_the_library(connect, queue, count, work):
    """BackgroundConsumer: start, wait, stop"""
    consumer = BackgroundConsumer(lambda task: work(task.task_id), queue=queue).start()
    records = consumer.wait(count, timeout_s=30, show_progress=False)
    consumer.stop()
    return [record.task_id for record in records]


@right(ex1)
def in_the_background(connect, queue, count, work):
    """A thread that owns the loop, asked to stop from outside"""
    done, enough = [], threading.Event()

    def on_task(channel, method, properties, body):
        do(channel, method.delivery_tag, id_of(body), work, done)
        if len(done) >= count:
            enough.set()

    connection = connect()
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue, on_task)
    worker = threading.Thread(target=channel.start_consuming)
    worker.start()
    enough.wait(30)
    connection.add_callback_threadsafe(channel.stop_consuming)
    worker.join(10)
    connection.close()
    return done


@right(ex1)
def with_four_workers(connect, queue, count, work):
    """Four threads with a connection each, which share a list"""
    done, lock, begun = [], threading.Lock(), []

    def loop():
        for delivery in deliveries(connect, queue, pause_s=0.05):
            with lock:
                if len(begun) >= count:
                    return
                begun.extend(delivery[1:2] if delivery[1] else ())
            do(*delivery, work, done)

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return done


@right(ex2)
def looks_between_the_tasks(connect, queue, closing, work):
    """A generator that looks at closing before each task"""
    done = []
    for delivery in deliveries(connect, queue):
        if closing.is_set():
            break
        do(*delivery, work, done)
    return done


@right(ex2)
def until_closing_from_the_library(connect, queue, closing, work):
    """BackgroundConsumer with two workers"""
    with BackgroundConsumer(lambda task: work(task.task_id), queue=queue, workers=2) as consumer:
        closing.wait(60)
    return [record.task_id for record in consumer.records if record.outcome == "done"]


@right(ex2)
def polls_until_closing(connect, queue, closing, work):
    """basic_get in a loop until closing is set"""
    done, connection = [], connect()
    try:
        channel = connection.channel()
        while not closing.wait(0.01):
            method, _, body = channel.basic_get(queue)
            if method is not None:
                do(channel, method.delivery_tag, id_of(body), work, done)
    finally:
        connection.close()
    return set(done)


@right(ex2)
def works_beside_the_loop(connect, queue, closing, work):
    """A pool does the work, and the loop's thread acknowledges"""
    done = []
    with connect() as connection, ThreadPoolExecutor(3) as pool:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=3)

        def do_one(tag, task_id):
            if not closing.is_set():
                work(task_id)
                done.append(task_id)
                connection.add_callback_threadsafe(lambda: channel.basic_ack(tag))

        def on_task(_channel, method, properties, body):
            if not closing.is_set():
                pool.submit(do_one, method.delivery_tag, id_of(body))

        channel.basic_consume(queue, on_task)
        while not closing.is_set():
            connection.process_data_events(time_limit=0.05)
        pool.shutdown()
        connection.process_data_events(time_limit=0)
    return done
