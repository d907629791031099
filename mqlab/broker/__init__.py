"""A real broker: find one, start one, check it, stop it."""

from mqlab.broker.ways import (
    Broker,
    StartTimes,
    default_node,
    logs,
    measure_start,
    page_answers,
    require,
    start,
    status,
    stop,
)

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
