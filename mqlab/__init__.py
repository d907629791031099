"""Move slow work off the request path with RabbitMQ, and measure it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqlab.consumer import BackgroundConsumer
    from mqlab.dashboard.widget import Dashboard
    from mqlab.errors import MqlabError
    from mqlab.producer import Producer
    from mqlab.records import (
        ConsumerStatus,
        ProducerStatus,
        SendManyRecord,
        SendRecord,
        StopReport,
        TaskRecord,
    )
    from mqlab.settings import Settings
    from mqlab.task import QUEUE, Task
    from mqlab.walkthrough import (
        SyncRecord,
        perform_heavy_task,
        run_synchronous_experiment,
        send_task_to_queue,
    )

__version__ = "0.1.0"
_WHERE = {
    "QUEUE": "task",
    "BackgroundConsumer": "consumer",
    "ConsumerStatus": "records",
    "Dashboard": "dashboard.widget",
    "MqlabError": "errors",
    "Producer": "producer",
    "ProducerStatus": "records",
    "SendManyRecord": "records",
    "SendRecord": "records",
    "Settings": "settings",
    "StopReport": "records",
    "SyncRecord": "walkthrough",
    "Task": "task",
    "TaskRecord": "records",
    "perform_heavy_task": "walkthrough",
    "run_synchronous_experiment": "walkthrough",
    "send_task_to_queue": "walkthrough",
}
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
    # Load modules on first use: `mqlab --help` needs no pika, and only Dashboard needs ipywidgets.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"mqlab.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
