"""Measure the waits that README shows, draw them, and write the alt text into README.

    .venv/bin/mqlab broker run -- .venv/bin/python docs/picture.py

With a file name, it only writes the picture to that file.
"""

import re
import sys
import uuid
from pathlib import Path

import pika

from mqlab import Producer, send_task_to_queue
from mqlab.measure import plots
from mqlab.measure.runs import repeat_sends
from mqlab.settings import Settings
from mqlab.walkthrough import run_synchronous_experiment

README = Path(__file__).parents[1] / "README.md"
REPEATS = range(30)


def measure() -> plots.Picture:
    """Return the picture. Its queue is deleted afterwards."""
    queue = f"mqlab_picture_{uuid.uuid4().hex[:8]}"
    parameters = Settings.from_env().parameters(name="mqlab picture")
    try:
        each = repeat_sends(lambda n: send_task_to_queue(n, queue=queue, quiet=True), REPEATS)
        with Producer(queue) as producer:
            kept = repeat_sends(producer.send, REPEATS)
    finally:
        with pika.BlockingConnection(parameters) as connection:
            connection.channel().queue_delete(queue)
    groups = {
        "makes the report itself": [run_synchronous_experiment("Sales Report", quiet=True)],
        "sends it, new connection": each,
        "sends it, open connection": kept,
    }
    return plots.show(plots.compare_waits(groups))


picture = measure()
print(picture)
if sys.argv[1:]:
    Path(sys.argv[1]).write_bytes(picture.png)
else:
    (README.parent / "docs/waits.png").write_bytes(picture.png)
    text = README.read_text("utf-8")
    new = re.sub(r"!\[.*\](?=\(docs/waits\.png\))", lambda _: f"![{picture}]", text)
    README.write_text(new, "utf-8")
