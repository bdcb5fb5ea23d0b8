"""Real worker processes, and what the tests with them have in common."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from emulator import Emulator

#: Seconds that a token lasts, the share of them after which it is renewed (what is left
#: is time enough for a loaded machine), expiries that work goes on through, and seconds
#: that anything may take.
LIFE = 10.0
RATIO = 0.3
EXPIRIES = 3
PATIENCE = 60.0
#: Seconds in which so many tokens expire.
DURATION = LIFE + LIFE * RATIO * EXPIRIES
#: Database of the tests' own notes, apart from the queues.
NOTES = 9


def identity(emulator: Emulator) -> dict[str, Any]:
    """Return the settings of an identity whose tokens are renewed early."""
    return {
        "KIND": "service_principal",
        "TENANT_ID": emulator.tenant_id,
        "CLIENT_ID": emulator.application.client_id,
        "CLIENT_SECRET": emulator.application.secret,
        "AUTHORITY_HOST": emulator.authority_host,
        "INSTANCE_DISCOVERY": False,
        "REFRESH_RATIO": RATIO,
    }


def environment(emulator: Emulator, **more: str) -> dict[str, str]:
    """Return the environment of a worker."""
    return {
        **os.environ,
        **emulator.environ("service_principal"),
        "DJANGO_SETTINGS_MODULE": "tests.integrations.settings",
        "NOTES_URL": emulator.backend_url,
        **more,
    }


def notes(url: str) -> Any:
    """Return a client of the server behind, which no token is needed for."""
    return redis.Redis.from_url(url, db=NOTES, decode_responses=True)


def wait_until(condition: Callable[[], object]) -> None:
    """Return once a condition holds; fail when it does not come to hold."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def paced(count: int) -> Iterator[int]:
    """Yield numbers, spread over more than the expiries that are asked for."""
    start = time.monotonic()
    for number in range(count):
        due = start + number * DURATION / count
        time.sleep(max(0.0, due - time.monotonic()))
        yield number


@contextmanager
def worker(
    arguments: list[str], environ: dict[str, str], log: Path, *, ends: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker.

    It has to be there in the end, and to stop when it is told to, or to end by itself
    when its work is done.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
        if not ends:
            assert process.poll() is None, log.read_text()
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
