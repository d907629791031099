"""Wrong answers of page 03: publishers that claim too much, too little, or cost too much."""

import contextlib
import uuid

import pika

from mqlab.exercises.page_03 import ex1, ex2
from tests.wrong_answers import wrong

PERSISTENT = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)


def named(task_id):
    return pika.BasicProperties(message_id=task_id, delivery_mode=pika.DeliveryMode.Persistent)


@wrong(
    ex1,
    "You open a connection for every task.",
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
    ask="How do you know that it arrived?",
)
def asks_nobody(connect, queue, tasks):
    """No confirms: basic_publish returned, so the task is there"""
    with connect() as connection:
        channel = connection.channel()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT)
    return tasks


@wrong(
    ex1, "The tasks came back, and you were not listening.", ask="When would you have found out?"
)
def mandatory_alone(connect, queue, tasks):
    """Mandatory, and nobody listens for what comes back"""
    with connect() as connection:
        channel = connection.channel()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
    return tasks


@wrong(ex1, "Confirmed is not routed.", ask="What exactly has the broker confirmed?")
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
    "You are told that a task is lost, and claim it all the same.",
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
    ex1, "The first task that comes back ends your function.", ask="What about the tasks after it?"
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
    "You made the queue that was missing.",
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
    "Your list is right, but nobody told you so.",
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


@wrong(ex1, "You send tasks more than once.", ask="What will the worker do with the second one?")
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


@wrong(ex1, "You return a list, and send nothing.", ask="What would the broker's counter show?")
def constant(connect, queue, tasks):  # noqa: ARG001
    """The tasks are returned, and nothing is sent"""
    return list(tasks)


@wrong(ex1, "Your function does not return a list.", ask="Which tasks are those?")
def counts(connect, queue, tasks):
    """A number instead of the list"""
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            channel.basic_publish("", queue, task, PERSISTENT, mandatory=True)
    return len(tasks)


@wrong(ex1, "What arrives is not what you were given.", ask="How many notes does the worker find?")
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
    ask="Where is the list created, and how often?",
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
    ask="How do you know that it arrived?",
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
    "You swallow the error and count the task as sent.",
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


@wrong(ex2, "The cut ends your function.", ask="Which errors mean that the connection is gone?")
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
    "Your list is true, and the rest was never sent.",
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
    "You drop the task whose confirm was lost.",
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


@wrong(ex2, "The id of a task changes on the way.", ask="How can a worker recognise the duplicate?")
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


@wrong(ex2, "Your messages carry no id.", ask="How can a worker recognise the duplicate?")
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


@wrong(ex2, "You send again what was confirmed already.", ask="Which ones were in doubt?")
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
    "You open a connection for every task.",
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


@wrong(ex2, "You try again on the connection that is gone.", ask="What could bring it back?")
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
    "Your list is right, but nobody told you so.",
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


@wrong(ex2, "You return a list, and send nothing.", ask="What would the broker's counter show?")
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
    "You claim the task whose confirm was lost, without sending it again.",
    ask="How do you know that this one arrived?",
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
    ask="Where does that name come from, and which one were you given?",
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
