import pika
import json
import sys
# Import the slow function
from heavy_computation import perform_heavy_task 

def worker_callback(ch, method, properties, body):
    # Decode the JSON message to get the task data
    task = json.loads(body.decode())
    data = task['data']
    
    print(f"--- [Background Worker] Received task for: {data}. Starting heavy work... ---")
    
    # 1. Execute the heavy task (THIS BLOCKS THE WORKER, but NOT the API Server)
    task_id, result = perform_heavy_task(data)
    
    # 2. Acknowledge the message to tell RabbitMQ the task is done
    # This is crucial for reliability; RabbitMQ will delete the message only now.
    ch.basic_ack(delivery_tag=method.delivery_tag) 
    
    sys.stdout.flush() # Ensure print statements appear immediately

# --- Setup RabbitMQ connection for the worker ---
connection = pika.BlockingConnection(pika.ConnectionParameters('localhost', port=5673))
channel = connection.channel()

queue_name = 'heavy_tasks_queue'
channel.queue_declare(queue=queue_name, durable=True)

# Important for load balancing: tells RabbitMQ not to send a new message until the worker ACKs the previous one.
channel.basic_qos(prefetch_count=1) 

print(' [*] Background Worker is waiting for heavy tasks. To exit press CTRL+C')
channel.basic_consume(queue=queue_name, on_message_callback=worker_callback)
channel.start_consuming()
