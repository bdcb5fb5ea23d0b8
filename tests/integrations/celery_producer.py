"""Sends tasks while tokens run out, and says what became of them, as JSON."""

import contextlib
import json
import sys
from typing import Any

from celery.exceptions import TimeoutError

from tests.integrations.celery_app import app, task
from tests.integrations.workers import PATIENCE, paced


def wait(result: Any) -> tuple[Any, int]:
    """Return a result, and how often it had to be asked for again.

    Celery reads what is there, then subscribes anew: what is published in between
    reaches nobody who waits, but is there for whoever asks again.
    """
    for again in range(int(PATIENCE / 5)):  # pragma: no branch
        with contextlib.suppress(TimeoutError):
            return result.get(timeout=5), again
    return None, 0  # pragma: no cover - the test fails then


sent: list[Any] = [task.delay(number) for number in paced(int(sys.argv[1]))]
answers = [wait(result) for result in sent]
ping = app.control.ping(timeout=5)
json.dump(
    {
        "results": [answer for answer, _ in answers],
        "again": sum(again for _, again in answers),
        "answers": [answer for reply in ping for answer in reply.values()],
    },
    sys.stdout,
)
