"""A real broker: find one, start one, check it, stop it."""

from mqlab.broker.lifecycle import (
    Broker,
    StartTimes,
    default_node,
    logs,
    measure_start,
    require,
    start,
    status,
    stop,
)
from mqlab.broker.management import page_answers

__all__ = [
    "Broker",
    "StartTimes",
    "default_node",
    "logs",
    "measure_start",
    "page_answers",
    "require",
    "start",
    "status",
    "stop",
]
