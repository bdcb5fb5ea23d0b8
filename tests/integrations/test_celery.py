"""Celery: broker and result backend, through expiries."""

import json
import subprocess
import sys
from pathlib import Path

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

TASKS = 1000


def test_tasks(tmp_path: Path) -> None:
    """Each task runs once, each result comes back, and the worker stays connected."""
    log = tmp_path / "worker.log"
    with Emulator(token_lifetime=LIFE) as emulator:
        environ = environment(emulator)
        kept = notes(emulator.backend_url)
        command = ["-m", "celery", "-A", "tests.integrations.celery_app", "worker"]
        options = ["--concurrency=2", "--loglevel=INFO"]
        with worker([*command, *options], environ, log):
            wait_until(lambda: " ready." in log.read_text())
            producer = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "tests.integrations.celery_producer",
                    str(TASKS),
                ],
                env=environ,
                capture_output=True,
                text=True,
                timeout=DURATION + 3 * PATIENCE,
            )
            assert producer.returncode == 0, producer.stderr
            report = json.loads(producer.stdout)
            runs = kept.hgetall("runs")
        kept.close()
        stats = emulator.stats
        refused = [a.reason for a in emulator.authentications if not a.accepted]
    assert report["results"] == [2 * number for number in range(TASKS)]
    assert report["answers"] == [{"ok": "pong"}]
    assert runs == {str(number): "1" for number in range(TASKS)}
    # Four processes: a worker of three, and the one that sends.
    assert stats.token_requests >= 4 * EXPIRIES
    assert not refused
    assert "Connection to broker lost" not in log.read_text()
