import pika
import time
import json
import uuid

def send_task_to_queue(task_data):
    # Use the port 5673 from your Docker setup
    connection = pika.BlockingConnection(pika.ConnectionParameters('localhost', port=5673))
    channel = connection.channel()
    
    # Declare a durable queue for work tasks (Work Queue Pattern)
    queue_name = 'heavy_tasks_queue'
    channel.queue_declare(queue=queue_name, durable=True)
    
    task_id = str(uuid.uuid4())
    # Package the task details into a JSON message
    task_message = json.dumps({'task_id': task_id, 'data': task_data, 'timestamp': time.time()})

    start_time = time.time()
    
    # Publish the message (task) to the queue
    channel.basic_publish(
        exchange='',  # Use the default exchange for simple queueing
        routing_key=queue_name, 
        body=task_message,
        properties=pika.BasicProperties(
            delivery_mode=pika.spec.PERSISTENT_DELIVERY_MODE # Ensures message survives broker restart
        )
    )
    end_time = time.time()
    
    # This simulates the instantaneous response the user receives
    print(f"*** [API Server/Producer] Task ID {task_id[:8]} published successfully! ***")
    print(f"*** [API Server/Producer] Immediate wait time: {end_time - start_time:.4f} seconds ***")
    print(f"*** [API Server/Producer] Full computation runs in the background. ***\n")

    connection.close()

if __name__ == "__main__":
    send_task_to_queue("End-of-Year Audit Report (ASYNC)")
