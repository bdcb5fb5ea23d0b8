"""A Celery application whose tasks use the cache."""

import json
import os
from pathlib import Path
from typing import Any

import django
import redis
from celery import Celery

from soak.account import own_account
from soak.notes import NOTES, RUNS

django.setup()

app: Any = Celery("soak")
app.config_from_object("django.conf:settings", namespace="CELERY")

_emulator = json.loads(Path(os.environ["SOAK_EMULATOR"]).read_text())
_notes = redis.Redis.from_url(_emulator["backend_url"], db=NOTES)


def use(number: int) -> dict[str, Any]:
    """Note that this task runs; use the cache, and return what has become of that."""
    _notes.hincrby(RUNS, str(number), 1)
    return own_account().use("task")


task: Any = app.task(use, name="use")
