"""mqlab: moving slow work off the request path with RabbitMQ, measured."""

from mqlab.consumer import BackgroundConsumer
from mqlab.errors import MqlabError
from mqlab.experiment import SyncRecord, run_synchronous_experiment
from mqlab.producer import Producer, send_task_to_queue
from mqlab.records import (
    ConsumerStatus,
    ProducerStatus,
    SendManyRecord,
    SendRecord,
    StopReport,
    TaskRecord,
)
from mqlab.settings import Settings
from mqlab.task import QUEUE, Task, perform_heavy_task

__version__ = "0.1.0"
__all__ = [
    "QUEUE",
    "BackgroundConsumer",
    "ConsumerStatus",
    "MqlabError",
    "Producer",
    "ProducerStatus",
    "SendManyRecord",
    "SendRecord",
    "Settings",
    "StopReport",
    "SyncRecord",
    "Task",
    "TaskRecord",
    "perform_heavy_task",
    "run_synchronous_experiment",
    "send_task_to_queue",
]
