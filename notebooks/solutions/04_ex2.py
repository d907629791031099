import json
import threading


def work_until(connect, queue, closing, work):
    """Do tasks of `queue` until `closing` is set, and return the list of the ids done."""
    done = []

    def on_task(channel, method, _properties, body):
        if closing.is_set():
            return  # not acknowledged, so it goes back when the connection is closed
        task_id = json.loads(body)["task_id"]
        work(task_id)
        channel.basic_ack(method.delivery_tag)
        done.append(task_id)

    connection = connect()
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue, on_task)
    worker = threading.Thread(target=channel.start_consuming, daemon=True)
    worker.start()
    closing.wait(timeout=60)
    connection.add_callback_threadsafe(channel.stop_consuming)  # the owner stops itself
    worker.join(timeout=10)
    connection.close()
    return done
