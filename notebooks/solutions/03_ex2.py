import pika


def send_all_through_a_cut(connect, queue, tasks):
    """Send `tasks`, a dict of id and text, to `queue`; return the ids of those that are there."""
    confirmed, waiting = [], dict(tasks)
    for _attempt in range(5):
        try:
            with connect() as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                for task_id, text in tasks.items():
                    if task_id in waiting:
                        mode = pika.DeliveryMode.Persistent
                        same_id = pika.BasicProperties(message_id=task_id, delivery_mode=mode)
                        channel.basic_publish("", queue, text, same_id, mandatory=True)
                        confirmed.append(task_id)
                        del waiting[task_id]
        except (pika.exceptions.AMQPConnectionError, pika.exceptions.NackError):
            continue  # the one on its way is still waiting, and is sent again with its id
        break
    return confirmed
