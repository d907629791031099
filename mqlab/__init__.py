"""mqlab: moving slow work off the request path with RabbitMQ, measured."""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from mqlab.dashboard import Dashboard

__version__ = "0.1.0"
__all__ = [
    "QUEUE",
    "BackgroundConsumer",
    "ConsumerStatus",
    "Dashboard",
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


def __getattr__(name: str) -> Any:
    # Only who asks for the dashboard pays for ipywidgets.
    if name == "Dashboard":
        from mqlab.dashboard import Dashboard

        return Dashboard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
