"""A Celery application, as a site has it."""

import os
from typing import Any

import django
from celery import Celery

from tests.integrations.workers import notes

django.setup()

app: Any = Celery("integrations")
app.config_from_object("django.conf:settings", namespace="CELERY")

_notes = notes(os.environ["NOTES_URL"])


def double(number: int) -> int:
    """Note each run, and return a result."""
    _notes.hincrby("runs", str(number), 1)
    return number * 2


task: Any = app.task(double, name="double")
