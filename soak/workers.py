"""The rows of others' servers: Celery's prefork workers, gunicorn with gevent."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from emulator.sockets import free_port
from soak.children import (
    ROOT,
    STOP_TIMEOUT,
    EmulatorProcess,
    SoakError,
    pause,
    wait_until,
)
from soak.notes import NOTES, RUNS
from soak.outcome import Bars, Outcome
from soak.stage import LIFETIME, Stage, wait_for_renewal
from soak.subjects import REQUEST_TIMEOUT
from soak.tally import Failure, Tally

CHILDREN = 2
VISITORS = 8
#: Tasks a second: the two children are busy for two thirds of the time.
RATE = 8.0
#: Seconds that Redis keeps silent for; and those that a greenlet may hold up others,
#: fewer than a wait that blocks them would take.
SILENT = 0.8
HELD_UP = 0.6
#: Between renewals, at most and at least.
RENEWED_EVERY = 0.7 * LIFETIME
EARLIEST_RENEWAL = 0.63 * LIFETIME


class Accounts:
    """What the processes of a server have said of themselves, the latest of each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[int, dict[str, Any]] = {}
        self._counted: dict[str, int] = {}
        self._failures: list[Failure] = []

    def add(self, said: dict[str, Any]) -> None:
        """Note what a process says."""
        with self._lock:
            before = self._latest.get(said["pid"], said)
            if said["tally"]["operations"] >= before["tally"]["operations"]:
                self._latest[said["pid"]] = said
            key, number = said["counted"]
            self._counted[key] = number

    def failed(self, operation: str, text: str) -> None:
        """Note that one was asked in vain."""
        kind, _, rest = text.partition(":")
        failure = Failure(time.monotonic(), operation, kind, rest.strip())
        with self._lock:
            self._failures.append(failure)

    def renewals(self) -> dict[int, int]:
        """Return how often each process has renewed the token."""
        with self._lock:
            return {pid: said["renewals"] for pid, said in self._latest.items()}

    def held_up(self, since: float) -> float:
        """Return for how long a thread or greenlet was held up, at most."""
        with self._lock:
            return max(
                (
                    late
                    for said in self._latest.values()
                    for at, late in said["late"]
                    if at >= since
                ),
                default=0.0,
            )

    def tally(self, emulator: EmulatorProcess, stuck: int = 0) -> Tally:
        """Return the figures of all together."""
        with self._lock:
            tallies = [Tally.from_json(s["tally"]) for s in self._latest.values()]
            counted, failures = dict(self._counted), list(self._failures)
        twice = sum(tally.twice for tally in tallies)
        with redis.Redis.from_url(emulator.description["backend_url"]) as backend:
            for key, number in counted.items():
                value: Any = backend.get(f":1:{key}")
                twice += max(0, int(value or 0) - number)
        return Tally(
            operations=sum(tally.operations for tally in tallies),
            errors=sum(tally.errors for tally in tallies) + len(failures),
            uncertain=sum(tally.uncertain for tally in tallies),
            wrong=sum(tally.wrong for tally in tallies),
            lost=sum(tally.lost for tally in tallies),
            twice=twice,
            longest=max((tally.longest for tally in tallies), default=0.0),
            failures=(*failures, *itertools.chain(*(t.failures for t in tallies))),
            facts={"stuck": stuck},
        )


def play_celery(stage: Stage) -> Outcome:
    """A Celery worker with a prefork pool works, while tokens expire."""
    bars, accounts = Bars(), Accounts()
    expiries = 3 if stage.short else 10
    count = int((expiries + 0.5) * RENEWED_EVERY * RATE)
    with stage.emulator() as emulator:
        command = ("celery", "-A", "soak.celery_app", "worker")
        options = ("-P", "prefork", f"--concurrency={CHILDREN}", "--loglevel=INFO")
        with serving(emulator, *command, *options) as worker:
            wait_until(lambda: " ready." in worker.said(), "the worker starts")
            began = time.monotonic()
            received = _produce(stage, emulator, count, accounts)
            text = worker.said()
        url = emulator.description["backend_url"]
        with redis.Redis.from_url(url, db=NOTES, decode_responses=True) as notes:
            found: Any = notes.hgetall(RUNS)
        runs = {int(number): int(times) for number, times in found.items()}
        renewals = accounts.renewals()
        tally = accounts.tally(emulator)
        bars.sound(tally)
        bars.equal("errors", tally.errors + tally.uncertain, 0)
        bars.equal("results", received, count)
        bars.equal("tasks that ran", len(runs), count)
        bars.equal("runs of a task", max(runs.values(), default=0), 1)
        bars.equal("children", len(renewals), CHILDREN)
        # They are asked at their tasks, the last of which may be a while ago.
        least = min(renewals.values(), default=0)
        bars.at_least("renewals in each child", least, expiries - 1)
        lost = text.count("Connection to broker lost")
        bars.equal("connections to the broker lost", lost, 0)
        # Where no worker's event loop runs, kombu leaves its subscription to expire.
        cut = emulator.control.stats.closed_by_expiry_in_use
        seconds = time.monotonic() - began
        bars.at_most("closed in use", cut, seconds / EARLIEST_RENEWAL + 1)
        return stage.outcome(
            emulator,
            tally,
            bars,
            f"{len(runs)} tasks, each ran once"
            if set(runs.values()) == {1}
            else f"{len(runs)} tasks ran {sum(runs.values())} times",
            f"{tally.operations} operations",
            f"{least} renewals in each of {len(renewals)} children",
            f"cut {cut} times: the subscription of who waits for results",
        )


def _produce(
    stage: Stage, emulator: EmulatorProcess, count: int, accounts: Accounts
) -> int:
    """Send tasks; return how many results came back."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [
                *(sys.executable, "-m", "soak.celery_producer"),
                *(str(count), str(RATE)),
            ],
            cwd=ROOT,
            env=_environment(emulator),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            stage.say(f"{count} tasks in {count / RATE:.0f} s")
            received = 0
            for received, line in enumerate(process.stdout, 1):
                said = json.loads(line)
                if isinstance(said, str):
                    accounts.failed("task", said)
                else:
                    accounts.add(said)
                stage.say(f"result {received} of {count}")
            status = process.wait(STOP_TIMEOUT)
        finally:
            process.kill()
        if status != 0:
            errors.seek(0)
            text = errors.read().decode(errors="replace")
            raise SoakError(f"the producer failed: {text[-1500:]}")
    return received


def play_gevent(stage: Stage) -> Outcome:
    """Greenlets serve requests, also while what they ask is silent."""
    bars, accounts = Bars(), Accounts()
    wanted = 3 if stage.short else 20
    with stage.emulator() as emulator:
        port = free_port()
        # One, so that the outage can come when it has just renewed.
        command = ("gunicorn", "-k", "gevent", "--workers=1")
        bind = (f"--bind=127.0.0.1:{port}", "soak.wsgi:application")
        with serving(emulator, *command, *bind) as server:
            url = f"http://127.0.0.1:{port}/use/"
            wait_until(lambda: "Booting worker" in server.said(), "the server starts")
            with visiting(url, accounts) as visitors:

                def renewed(number: int) -> bool:
                    (done,) = accounts.renewals().values() or (0,)
                    stage.say(f"renewal {done} of {number}")
                    return done >= number

                limit = 2 * wanted * RENEWED_EVERY + 60
                wait_until(lambda: renewed(1), "the worker renews")
                # By now it has imported what it needs, which holds up everybody.
                since = time.monotonic()
                wait_until(lambda: renewed(wanted), "the worker renews", limit)
                # Later on, an outage may leave a connection no time for its AUTH.
                closed = emulator.control.stats.closed_by_expiry_in_use
                wait_for_renewal(emulator)
                stage.say("the identity endpoint hangs")
                emulator.control.fail("hang")
                pause(0.77 * LIFETIME)
                emulator.control.recover()
                pause(RENEWED_EVERY / 2)
                stage.say("Redis is silent")
                emulator.control.freeze()
                pause(SILENT)
                emulator.control.freeze(False)
                more = sum(accounts.renewals().values()) + 1
                wait_until(lambda: renewed(more), "the worker renews again")
            stuck = sum(visitor.is_alive() for visitor in visitors)
        hanging = emulator.control.stats.token_failures
        tally, late = accounts.tally(emulator, stuck), accounts.held_up(since)
        renewals = accounts.renewals()
        bars.sound(tally)
        bars.equal("errors", tally.errors + tally.uncertain, 0)
        bars.equal("workers", len(renewals), 1)
        bars.equal("closed in use before the outage", closed, 0)
        bars.at_least("token requests that hung", hanging, 1)
        bars.at_most("s that a greenlet was held up", late, HELD_UP)
        return stage.outcome(
            emulator,
            tally,
            bars,
            f"{tally.operations} operations",
            f"{sum(renewals.values())} renewals",
            f"greenlets held up for {late:.2f} s at most, while Entra was silent for "
            f"{REQUEST_TIMEOUT:g} s at a time and Redis for {SILENT:g} s",
        )


@contextlib.contextmanager
def visiting(url: str, accounts: Accounts) -> Iterator[list[threading.Thread]]:
    """Have threads ask for pages, until it is over."""
    import requests

    over = threading.Event()

    def visit(number: int) -> None:
        while not over.wait(0.02):
            try:
                answer = requests.get(f"{url}visitor-{number}", timeout=STOP_TIMEOUT)
                answer.raise_for_status()
                accounts.add(answer.json())
            except requests.RequestException as error:
                accounts.failed("visit", f"{type(error).__name__}: {error}")

    visitors = [
        threading.Thread(target=visit, args=(number,), daemon=True)
        for number in range(VISITORS)
    ]
    for visitor in visitors:
        visitor.start()
    try:
        yield visitors
    finally:
        over.set()
        for visitor in visitors:
            visitor.join(STOP_TIMEOUT)


@dataclass(frozen=True)
class Server:
    """A server's process, and the file that it logs to."""

    process: subprocess.Popen[bytes]
    file: Path

    def said(self) -> str:
        """Return what it has logged.

        Raises:
            SoakError: it has ended.
        """
        text = self.file.read_text(errors="replace")
        if self.process.poll() is not None:
            raise SoakError(f"the server has ended: {text[-1500:]}")
        return text


@contextlib.contextmanager
def serving(emulator: EmulatorProcess, *command: str) -> Iterator[Server]:
    """Run a module as a server."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=_environment(emulator),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # With its children it makes a group of its own.
                start_new_session=True,
            )
        try:
            server = Server(process, log)
            yield server
            server.said()
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _environment(emulator: EmulatorProcess) -> dict[str, str]:
    return {
        **emulator.environ,
        "DJANGO_SETTINGS_MODULE": "soak.settings",
        "SOAK_EMULATOR": str(emulator.file),
        "PYTHONUNBUFFERED": "1",
    }
