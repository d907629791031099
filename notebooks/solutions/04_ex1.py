import json


def work_through(connect, queue, count, work):
    """Do `count` tasks of `queue`, each once, and return the list of their ids."""
    done = []

    def on_task(channel, method, _properties, body):
        task_id = json.loads(body)["task_id"]
        work(task_id)
        channel.basic_ack(method.delivery_tag)
        done.append(task_id)
        if len(done) == count:  # this is the thread that owns the channel: it may stop itself
            channel.stop_consuming()

    with connect() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(queue, on_task)
        connection.call_later(60, channel.stop_consuming)  # a bound, if fewer tasks come
        channel.start_consuming()
    return done
