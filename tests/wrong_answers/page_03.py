"""Wrong answers of page 03: publishers that claim too much, too little, or cost too much."""

import contextlib
import os
import time
import uuid

import pika

from mqlab.exercises.page_03 import ex1, ex2
from tests.wrong_answers import right, wrong

PERSISTENT = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)


def named(task_id):
    return pika.BasicProperties(message_id=task_id, delivery_mode=pika.DeliveryMode.Persistent)


kept = []


def send(connect, queue, tasks, encode=lambda task: task, properties=PERSISTENT):
    """What most of them have in common, and that is right: the tasks that the broker has taken."""
    there = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            with contextlib.suppress(pika.exceptions.UnroutableError, pika.exceptions.NackError):
                channel.basic_publish("", queue, encode(task), properties, mandatory=True)
                there.append(task)
    return there


@wrong(
    ex1,
    "You open more than one connection.",
    ask="What did the columns on the page say that a connection costs?",
)
def connects_each_time(connect, queue, tasks):
    """A connection for every task"""
    there = []
    for task in tasks:
        with connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            with contextlib.suppress(pika.exceptions.UnroutableError):
                channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
                there.append(task)
    return there


@wrong(
    ex1,
    "You open more than one connection.",
    ask="What do you learn by looking first, and is it still true when you send?",
)
def connects_to_look_first(connect, queue, tasks):
    """A second connection, to look whether the queue is there"""
    try:
        with connect() as connection:
            connection.channel().queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
    return tasks


@wrong(
    ex1,
    "You claim tasks although nobody has confirmed them.",
    ask="Who told you that it arrived?",
)
def asks_nobody(connect, queue, tasks):
    """No confirms: basic_publish returned, so the task is there"""
    with connect() as connection:
        channel = connection.channel()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT)
    return tasks


@wrong(
    ex1,
    "You claim tasks although nobody has confirmed them.",
    ask="When would you have heard of it?",
)
def mandatory_alone(connect, queue, tasks):
    """Mandatory, and nobody listens for what comes back"""
    with connect() as connection:
        channel = connection.channel()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
    return tasks


@wrong(
    ex1,
    "Confirmed is not routed.",
    ask="What exactly has the broker confirmed?",
)
def confirmed_is_enough(connect, queue, tasks):
    """Confirms without mandatory"""
    there = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT)
            there.append(task)
    return there


@wrong(
    ex1,
    "The broker did not take a task, and you claim it all the same.",
    ask="What did that exception say?",
)
def swallows_the_error(connect, queue, tasks):
    """The error is swallowed, and the task counted"""
    there = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            with contextlib.suppress(pika.exceptions.UnroutableError):
                channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
            there.append(task)
    return there


@wrong(
    ex1,
    "The first task that is not taken ends your function.",
    ask="And the tasks after it?",
)
def does_not_catch(connect, queue, tasks):
    """The error is not caught"""
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
    return tasks


@wrong(
    ex1,
    "You try again until a queue takes the task, and there is none.",
    ask="What would have to change for the next attempt to succeed?",
)
def tries_for_ever(connect, queue, tasks):
    """Tried again without end"""
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            while True:
                try:
                    channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
                    break
                except pika.exceptions.UnroutableError:
                    connection.sleep(0.1)
    return tasks


@wrong(
    ex1,
    "You created the queue that was missing.",
    ask="If the name is a spelling mistake, who reads your new queue?",
)
def declares_the_queue(connect, queue, tasks):
    """The queue is declared before sending, out of habit"""
    with connect() as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.confirm_delivery()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
    return tasks


@wrong(
    ex1,
    "You claim tasks although nobody has confirmed them.",
    ask="How could you know, if the queue had gone in between?",
)
def only_looks_first(connect, queue, tasks):
    """Asks whether the queue is there, and then for no confirm"""
    with connect() as connection:
        channel = connection.channel()
        try:
            channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return []
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT)
    return tasks


@wrong(
    ex1,
    "Your messages would not survive a restart of the broker.",
    ask="Where does the broker keep it?",
)
def transient(connect, queue, tasks):
    """Messages that are not persistent"""
    there = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            with contextlib.suppress(pika.exceptions.UnroutableError):
                channel.basic_publish("", queue, task, mandatory=True)
                there.append(task)
    return there


@wrong(
    ex1,
    "You send tasks more than once.",
    ask="What will the worker do with the second one?",
)
def sends_twice(connect, queue, tasks):
    """Everything twice, to be on the safe side"""
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in [*tasks, *tasks]:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
    return tasks


@wrong(
    ex1,
    "You do not send all the tasks.",
    ask="In which turn of the loop does your function return?",
)
def first_only(connect, queue, tasks):
    """The return is inside the loop"""
    there = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
            there.append(task)
            return there
    return there


@wrong(
    ex1,
    "You claim tasks although nobody has confirmed them.",
    ask="What would the broker's counter show?",
)
def constant(connect, queue, tasks):  # noqa: ARG001
    """The tasks are returned, and nothing is sent"""
    return list(tasks)


@wrong(
    ex1,
    "Your function does not return a list.",
    ask="Which tasks are those?",
)
def counts(connect, queue, tasks):
    """A number instead of the list"""
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
    return len(tasks)


@wrong(
    ex1,
    "What arrives is not what you were given.",
    ask="How many notes does the worker find?",
)
def all_in_one(connect, queue, tasks):
    """All tasks as one message"""
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", queue, str(tasks), PERSISTENT, mandatory=True)
    return tasks


@wrong(
    ex1,
    "Your list leaves out tasks that are in the queue.",
    ask="Where is the list made, and how often?",
)
def claims_the_last(connect, queue, tasks):
    """The list is made anew for each task"""
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            there = []
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
            there.append(task)
    return there


@wrong(
    ex2,
    "You claim tasks although nobody has confirmed them.",
    ask="Who told you that it arrived?",
)
def cut_without_confirms(connect, queue, tasks):
    """No confirms: whatever was handed over counts as sent"""
    sent = []
    while len(sent) < len(tasks):
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            for task_id in list(tasks)[len(sent) :]:
                channel.basic_publish("", queue, tasks[task_id], named(task_id))
                sent.append(task_id)
    return sent


@wrong(
    ex2,
    "You claim tasks although nobody has confirmed them.",
    ask="What can be sent on a channel that is closed?",
)
def cut_swallowed(connect, queue, tasks):
    """The error is swallowed, and the loop goes on with the dead channel"""
    connection, sent = connect(), []
    channel = connection.channel()
    channel.confirm_delivery()
    for task_id, text in tasks.items():
        with contextlib.suppress(pika.exceptions.AMQPError):
            channel.basic_publish("", queue, text, named(task_id), mandatory=True)
        sent.append(task_id)
    return sent


@wrong(
    ex2,
    "The cut ends your function.",
    ask="Which errors mean that the connection is gone?",
)
def cut_not_caught(connect, queue, tasks):
    """The answer to exercise 1, with ids"""
    sent = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task_id, text in tasks.items():
            with contextlib.suppress(pika.exceptions.UnroutableError):
                channel.basic_publish("", queue, text, named(task_id), mandatory=True)
                sent.append(task_id)
    return sent


@wrong(
    ex2,
    "Your list is true, but tasks are missing from it.",
    ask="What does the caller do with half a list?",
)
def gives_up(connect, queue, tasks):
    """Gives up after the cut, and says so truthfully"""
    sent = []
    with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task_id, text in tasks.items():
            channel.basic_publish("", queue, text, named(task_id), mandatory=True)
            sent.append(task_id)
    return sent


@wrong(
    ex2,
    "Your list is true, but tasks are missing from it.",
    ask="Is it there? Can you know? What is the safe thing to do?",
)
def skips_the_unknown(connect, queue, tasks):
    """The new connection goes on with the next task"""
    sent, rest = [], list(tasks.items())
    while rest:
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while rest:
                task_id, text = rest.pop(0)
                channel.basic_publish("", queue, text, named(task_id), mandatory=True)
                sent.append(task_id)
    return sent


@wrong(
    ex2,
    "Your messages do not carry the ids of their tasks.",
    ask="How is a worker to see that two are the same?",
)
def fresh_id(connect, queue, tasks):
    """A fresh id on each attempt"""
    sent, rest = [], list(tasks.items())
    while rest:
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while rest:
                task_id, text = rest[0]
                channel.basic_publish("", queue, text, named(str(uuid.uuid4())), mandatory=True)
                sent.append(task_id)
                rest.pop(0)
    return sent


@wrong(
    ex2,
    "Your messages do not carry the ids of their tasks.",
    ask="How is a worker to see that two are the same?",
)
def no_id(connect, queue, tasks):
    """The message carries no id at all"""
    sent, rest = [], list(tasks.items())
    while rest:
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while rest:
                task_id, text = rest[0]
                channel.basic_publish("", queue, text, PERSISTENT, mandatory=True)
                sent.append(task_id)
                rest.pop(0)
    return sent


@wrong(
    ex2,
    "You send a task again that was not lost.",
    ask="About which ones were you in doubt?",
)
def starts_again(connect, queue, tasks):
    """After the cut everything is sent from the beginning"""
    while True:
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for task_id, text in tasks.items():
                channel.basic_publish("", queue, text, named(task_id), mandatory=True)
            return list(tasks)


@wrong(
    ex2,
    "You open more connections than the cut made necessary.",
    ask="How many cuts were there, and how many connections?",
)
def cut_connects_each_time(connect, queue, tasks):
    """A connection for every task, which survives the cut"""
    sent = []
    for task_id, text in tasks.items():
        while task_id not in sent:
            with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                channel.basic_publish("", queue, text, named(task_id), mandatory=True)
                sent.append(task_id)
    return sent


@wrong(
    ex2,
    "You try again on the connection that is gone.",
    ask="What could bring it back?",
)
def tries_the_dead_one(connect, queue, tasks):
    """Tried again without end, on the dead connection"""
    channel, sent = connect().channel(), []
    channel.confirm_delivery()
    for task_id, text in tasks.items():
        while task_id not in sent:
            with contextlib.suppress(pika.exceptions.AMQPError):
                channel.basic_publish("", queue, text, named(task_id), mandatory=True)
                sent.append(task_id)
    return sent


@wrong(
    ex2,
    "You claim tasks although nobody has confirmed them.",
    ask="What would you claim if the second connection had been cut, too?",
)
def blindly_twice(connect, queue, tasks):
    """No confirms, and everything twice over two connections"""
    for _ in range(2):
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            for task_id, text in tasks.items():
                channel.basic_publish("", queue, text, named(task_id))
    return list(tasks)


@wrong(
    ex2,
    "You claim tasks although nobody has confirmed them.",
    ask="What would the broker's counter show?",
)
def cut_constant(connect, queue, tasks):  # noqa: ARG001
    """The ids are returned, and nothing is sent"""
    return list(tasks)


@wrong(
    ex2,
    "Your messages would not survive a restart of the broker.",
    ask="Where does the broker keep it?",
)
def cut_transient(connect, queue, tasks):
    """Messages that are not persistent"""
    sent, rest = [], list(tasks.items())
    while rest:
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while rest:
                task_id, text = rest[0]
                properties = pika.BasicProperties(message_id=task_id)
                channel.basic_publish("", queue, text, properties, mandatory=True)
                sent.append(task_id)
                rest.pop(0)
    return sent


@wrong(
    ex2,
    "You claim tasks although nobody has confirmed them.",
    ask="Who told you that this one arrived?",
)
def claims_the_unknown(connect, queue, tasks):
    """After the cut it goes on with the next task, and claims the one before"""
    sent, rest = [], list(tasks.items())
    while rest:
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while rest:
                task_id, text = rest.pop(0)
                sent.append(task_id)
                channel.basic_publish("", queue, text, named(task_id), mandatory=True)
    return sent


@wrong(
    ex1,
    "You send to another queue than the one that you are given.",
    ask="Where does that name come from, and which one were you handed?",
)
def sends_to_the_pages_queue(connect, queue, tasks):  # noqa: ARG001
    """The page's QUEUE in place of the argument"""
    there = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            with contextlib.suppress(pika.exceptions.UnroutableError):
                channel.basic_publish("", "lesson_03_none_here", task, PERSISTENT, mandatory=True)
                there.append(task)
    return there


@wrong(
    ex1,
    "What arrives is not what you were given.",
    ask="Which of the texts has letters that ASCII does not have?",
)
def mangles_to_ascii(connect, queue, tasks):
    """Texts forced into ASCII"""
    return send(connect, queue, tasks, lambda task: task.encode("ascii", "replace"))


@wrong(
    ex1,
    "What arrives is not what you were given.",
    ask="Which encoding will the worker decode it with?",
)
def encodes_as_latin_1(connect, queue, tasks):
    """Texts in Latin-1"""
    return send(connect, queue, tasks, lambda task: task.encode("latin-1", "replace"))


@wrong(
    ex1,
    "The first task that is not taken ends your function.",
    ask="What does the caller know about the tasks before that one?",
)
def loses_its_list_to_a_nack(connect, queue, tasks):
    """Only UnroutableError is caught"""
    there = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            with contextlib.suppress(pika.exceptions.UnroutableError):
                channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
                there.append(task)
    return there


@wrong(
    ex1,
    "Your list leaves out tasks that are in the queue.",
    ask="The broker took some of them. Where are those in your list?",
)
def all_or_nothing(connect, queue, tasks):
    """Returns [] as soon as one task is refused"""
    there = send(connect, queue, tasks)
    return there if len(there) == len(tasks) else []


@wrong(
    ex1,
    "The broker did not take a task, and you claim it all the same.",
    ask="What does a nack say, and what does a NackError?",
)
def claims_what_is_refused(connect, queue, tasks):
    """A refusal is caught, and the task counted"""
    there = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            try:
                channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
            except pika.exceptions.UnroutableError:
                continue
            except pika.exceptions.NackError:
                pass
            there.append(task)
    return there


@wrong(
    ex1,
    "You do not send all the tasks.",
    ask="One task was refused. What do you know about the next?",
)
def gives_up_at_the_first_refusal(connect, queue, tasks):
    """Stops at the first task that is not taken"""
    there = []
    with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
            there.append(task)
    return there


@wrong(
    ex1,
    "You do not send all the tasks.",
    ask="What if two customers order the same report?",
)
def sends_each_text_once(connect, queue, tasks):
    """A dict in place of the list, which loses the second of two equal texts"""
    return send(connect, queue, dict.fromkeys(tasks))


@wrong(
    ex1,
    "Your list leaves out tasks that are in the queue.",
    ask="How many of them have the same text?",
)
def claims_a_set(connect, queue, tasks):
    """A set on the way to the list, which loses duplicates"""
    return list(set(send(connect, queue, tasks)))


@wrong(
    ex1,
    "You send the tasks in another order.",
    ask="Which of them will be done first?",
)
def sorts_them(connect, queue, tasks):
    """Sent in alphabetical order"""
    return send(connect, queue, sorted(tasks))


@wrong(
    ex1,
    "You left a connection open.",
    ask="How many connections does the broker have after ten runs of your cell?",
)
def never_closes(connect, queue, tasks):
    """A connection that is never closed"""
    kept.append(connect())
    return send(lambda: contextlib.nullcontext(kept[-1]), queue, tasks)


@wrong(
    ex1,
    "Confirmed is not routed.",
    ask="What if the queue is deleted just after you have looked?",
)
def looks_first_and_confirms(connect, queue, tasks):
    """Looks first whether the queue is there, and then does without mandatory"""
    with connect() as connection:
        channel = connection.channel()
        try:
            channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return []
        channel.confirm_delivery()
        there = []
        for task in tasks:
            with contextlib.suppress(pika.exceptions.NackError):
                channel.basic_publish("", queue, task, PERSISTENT)
                there.append(task)
    return there


@wrong(
    ex1,
    "You take messages out of the queue.",
    ask="Who else might read the queue at that moment?",
)
def reads_them_back(connect, queue, tasks):
    """Reads its own messages back, to see whether they are there"""
    try:
        with connect() as connection:
            channel = connection.channel()
            channel.queue_declare(queue, passive=True)
            for task in tasks:
                channel.basic_publish("", queue, task, PERSISTENT)
            return [channel.basic_get(queue)[2].decode() for _ in tasks]
    except pika.exceptions.ChannelClosedByBroker:
        return []


@wrong(
    ex1,
    "You claim tasks although nobody has confirmed them.",
    ask="Whose messages does that number count?",
)
def counts_what_is_in_the_queue(connect, queue, tasks):
    """Asks for the number of messages instead of confirms"""
    with connect() as connection:
        channel = connection.channel()
        try:
            before = channel.queue_declare(queue, passive=True).method.message_count
        except pika.exceptions.ChannelClosedByBroker:
            return []
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT)
        after, end = before, time.monotonic() + 2  # the number lags behind
        while after < before + len(tasks) and time.monotonic() < end:
            after = channel.queue_declare(queue, passive=True).method.message_count
    return tasks[: after - before]


@wrong(
    ex1,
    "Your messages expire.",
    ask="What happens to a task that waits for longer than that?",
)
def lets_them_expire(connect, queue, tasks):
    """Messages with an expiration"""
    a_minute = pika.BasicProperties(delivery_mode=2, expiration="60000")
    return send(connect, queue, tasks, properties=a_minute)


@wrong(
    ex2,
    "You claim tasks although nobody has confirmed them.",
    ask="On which of your connections did you ask for confirms?",
)
def confirms_on_the_first_only(connect, queue, tasks):
    """No confirm_delivery() on the second connection"""
    sent, rest, asked = [], list(tasks.items()), False
    while rest:
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            if not asked:
                channel.confirm_delivery()
                asked = True
            while rest:
                task_id, text = rest[0]
                channel.basic_publish("", queue, text, named(task_id), mandatory=True)
                sent.append(task_id)
                rest.pop(0)
    return sent


@wrong(
    ex2,
    "You left a connection open.",
    ask="Who closes the second connection?",
)
def never_closes_the_second(connect, queue, tasks):
    """The second connection is never closed"""
    kept.append(connect())
    channel, sent = kept[-1].channel(), []
    channel.confirm_delivery()
    for task_id, text in tasks.items():
        while task_id not in sent:
            try:
                channel.basic_publish("", queue, text, named(task_id), mandatory=True)
                sent.append(task_id)
            except pika.exceptions.NackError:
                break
            except pika.exceptions.AMQPError:
                kept.append(connect())
                channel = kept[-1].channel()
                channel.confirm_delivery()
    return sent


@wrong(
    ex1,
    "You created the queue that was missing.",
    ask="Who may have sent to your queue, or looked for it, while it existed?",
)
def declares_it_for_a_moment(connect, queue, tasks):
    """The missing queue is declared, and deleted again"""
    with connect() as connection:
        try:
            connection.channel().queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            channel = connection.channel()
            channel.queue_declare(queue, durable=True)
            channel.queue_delete(queue)
            return []
        return send(lambda: contextlib.nullcontext(connection), queue, tasks)


@wrong(
    ex1,
    "You left a connection open.",
    ask="Which of your two returns does not close the connection?",
)
def leaves_early(connect, queue, tasks):
    """The connection stays open if the queue is missing"""
    connection = connect()
    kept.append(connection)
    try:
        connection.channel().queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return []
    return send(lambda: connection, queue, tasks)


@wrong(
    ex1,
    "You take messages out of the queue.",
    ask="Whose message did you take to make room for yours?",
)
def makes_room(connect, queue, tasks):
    """Takes a message out of a full queue and sends again"""
    there = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            with contextlib.suppress(pika.exceptions.UnroutableError):
                try:
                    channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
                except pika.exceptions.NackError:
                    channel.basic_get(queue, auto_ack=True)
                    channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
                there.append(task)
    return there


@right(ex1)
def in_reverse(connect, queue, tasks):
    """A list in another order, which is as true"""
    return send(connect, queue, tasks)[::-1]


@right(ex1)
def in_a_transaction(connect, queue, tasks):
    """A transaction with mandatory, in place of confirms"""
    lost = []
    with connect() as connection:
        channel = connection.channel()
        channel.add_on_return_callback(lambda *message: lost.append(message[3].decode()))
        channel.tx_select()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
        channel.tx_commit()
        connection.process_data_events()  # here the returned ones are handed over
    there = list(tasks)
    for task in lost:
        there.remove(task)
    return there


@right(ex1)
def uses_up_what_it_is_given(connect, queue, tasks):
    """Takes each task out of the list, and closes in a finally"""
    there, connection = [], connect()
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        while tasks:
            task = tasks.pop(0)
            with contextlib.suppress(pika.exceptions.UnroutableError, pika.exceptions.NackError):
                channel.basic_publish("", queue, task.encode(), PERSISTENT, True)
                there.append(task)
    finally:
        connection.close()
    return there


@right(ex1)
def asynchronously(connect, queue, tasks):  # noqa: ARG001
    """pika's asynchronous connection: all at once, and then the answers"""
    tasks, taken, returned = list(tasks), set(), []
    parameters = pika.URLParameters(os.environ["AMQP_URL"])

    def on_channel(channel):
        waiting = set(range(1, len(tasks) + 1))

        def on_answer(frame):
            tag = frame.method.delivery_tag
            settled = {t for t in waiting if t == tag or (frame.method.multiple and t <= tag)}
            waiting.difference_update(settled)
            if frame.method.NAME == "Basic.Ack":
                taken.update(settled)
            if not waiting:
                connection.close()

        channel.add_on_return_callback(lambda *message: returned.append(message[3].decode()))
        channel.confirm_delivery(on_answer)
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
        if not tasks:
            connection.close()

    connection = pika.SelectConnection(
        parameters,
        on_open_callback=lambda opened: opened.channel(on_open_callback=on_channel),
        on_close_callback=lambda closed, _reason: closed.ioloop.stop(),
    )
    connection.ioloop.start()
    there = [task for tag, task in enumerate(tasks, 1) if tag in taken]
    for task in returned:
        there.remove(task)
    return there


@right(ex1)
def tries_a_refused_one_again(connect, queue, tasks):
    """A task that is refused is tried three times"""
    there = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            for _attempt in range(3):
                try:
                    channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
                except pika.exceptions.NackError:
                    continue
                except pika.exceptions.UnroutableError:
                    break
                there.append(task)
                break
    return there


@right(ex2)
def keeps_what_waits(connect, queue, tasks):
    """Two collections: those that are confirmed, and those that wait"""
    confirmed = []
    while waiting := [task_id for task_id in tasks if task_id not in confirmed]:
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for task_id in waiting:
                channel.basic_publish("", queue, tasks[task_id], named(task_id))
                confirmed.append(task_id)
    return confirmed


@right(ex2)
def sends_the_doubtful_one_last(connect, queue, tasks):
    """Goes on with the next task after the cut, and comes back to the doubtful one"""
    sent, rest = [], list(tasks)
    while rest:
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while rest:
                rest.append(rest.pop(0))
                channel.basic_publish("", queue, tasks[rest[-1]], named(rest[-1]), mandatory=True)
                sent.append(rest.pop())
    return sent


@right(ex2)
def a_transaction_for_each(connect, queue, tasks):
    """A transaction for each task, and a new connection when one is lost"""
    sent = []
    for _attempt in range(5):
        with contextlib.suppress(pika.exceptions.AMQPError), connect() as connection:
            channel = connection.channel()
            channel.tx_select()
            for task_id, text in tasks.items():
                if task_id not in sent:
                    channel.basic_publish("", queue, text, named(task_id), mandatory=True)
                    channel.tx_commit()
                    sent.append(task_id)
            return sent
    return sent
