"""rq and django-rq: jobs through expiries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emulator import Emulator
from tests.integrations.workers import (
    DURATION,
    EXPIRIES,
    LIFE,
    PATIENCE,
    environment,
    notes,
    wait_until,
    worker,
)

JOBS = 30


@pytest.mark.parametrize("kind", ["Worker", "SimpleWorker"])
def test_jobs(kind: str, tmp_path: Path, redis_server: str) -> None:
    """Each job runs once and each result is there, in forks or in the worker."""
    log = tmp_path / "worker.log"
    with Emulator(token_lifetime=LIFE) as emulator:
        environ = environment(emulator, RQ="1")
        kept = notes(emulator.backend_url)
        command = ["-m", "django", "rqworker", "default", "--worker-class"]
        # It waits for a job for 15 seconds less than this.
        options = [f"rq.worker.{kind}", "--worker-ttl=16", "--verbosity=2"]
        # No signal tells it to stop: rq's handler raises an error wherever it is, which
        # logging swallows if it is there.
        options.append(f"--max-jobs={JOBS}")
        with worker([*command, *options], environ, log, ends=True):
            wait_until(lambda: "Listening on" in log.read_text())
            producer = subprocess.run(
                [sys.executable, "-m", "tests.integrations.rq_producer", str(JOBS)],
                env=environ,
                capture_output=True,
                text=True,
                timeout=DURATION + 3 * PATIENCE,
            )
            assert producer.returncode == 0, producer.stderr
            runs = kept.hgetall("runs")
        kept.close()
        stats = emulator.stats
        refused = [a.reason for a in emulator.authentications if not a.accepted]
    assert json.loads(producer.stdout) == [2 * number for number in range(JOBS)]
    assert runs == {str(number): "1" for number in range(JOBS)}
    assert stats.token_requests >= 2 * EXPIRIES
    assert not refused
