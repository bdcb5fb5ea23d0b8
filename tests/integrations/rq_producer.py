"""Queues jobs while tokens run out, and says what became of them, as JSON."""

import json
import sys
import time

import django
import django_rq

from tests.integrations.rq_jobs import double
from tests.integrations.workers import PATIENCE, paced

django.setup()
queue = django_rq.get_queue("default")
jobs = [queue.enqueue(double, number) for number in paced(int(sys.argv[1]))]
deadline = time.monotonic() + 2 * PATIENCE
while time.monotonic() < deadline and not all(
    j.get_status() == "finished" for j in jobs
):
    time.sleep(0.2)
json.dump([job.return_value() for job in jobs], sys.stdout)
