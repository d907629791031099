import pika


def send_all(connect, queue, tasks):
    """Send each of `tasks` to `queue` on one connection; return those that are in the queue."""
    persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    in_the_queue = []
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            try:
                channel.basic_publish("", queue, task, persistent, mandatory=True)
            except (pika.exceptions.UnroutableError, pika.exceptions.NackError):
                continue  # no queue wanted it, or the queue refused it
            in_the_queue.append(task)
    return in_the_queue
