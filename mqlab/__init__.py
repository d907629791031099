"""mqlab: moving slow work off the request path with RabbitMQ, measured."""

from mqlab.task import Task, perform_heavy_task

__version__ = "0.1.0"
__all__ = ["Task", "perform_heavy_task"]
