"""Sends tasks and reads results: ``python -m soak.celery_producer N RATE``.

Prints the results as JSON, a line each; those that fail as text.
"""

import json
import sys
import time
from typing import Any

from celery.exceptions import TimeoutError

from soak.celery_app import app, task

PATIENCE = 60.0
ASK_EVERY = 5.0


def wait(result: Any) -> Any:
    """Return a result.

    Celery reads what is there, then subscribes anew: what is published in between
    reaches nobody who waits, but is there for whoever asks again.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return result.get(timeout=ASK_EVERY)
        except TimeoutError:
            if time.monotonic() > deadline:
                return "no result"
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def main(count: int, rate: float) -> None:
    """Send so many tasks, so many a second."""
    began = time.monotonic()
    sent = []
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        sent.append(task.delay(number))
    for result in sent:
        print(json.dumps(wait(result)), flush=True)
    app.close()


main(int(sys.argv[1]), float(sys.argv[2]))
