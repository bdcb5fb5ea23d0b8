"""The processes of a row: an emulator of its own, and loads."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from emulator import EmulatorControl
from soak.tally import Tally
from testproject.siteprocess import FOREIGN

START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0
LOOK_EVERY = 0.05
ROOT = Path(__file__).resolve().parents[1]


#: Set when everything is to end before its time.
stopping = threading.Event()


class SoakError(Exception):
    """A row could not be run."""


def pause(seconds: float) -> None:
    """Let time go by.

    Raises:
        SoakError: everything is to end.
    """
    if stopping.wait(max(0.0, seconds)):
        raise SoakError("stopped")


def wait_until(
    condition: Callable[[], bool], what: str, timeout: float = START_TIMEOUT
) -> None:
    """Wait for a condition.

    Raises:
        SoakError: it did not come about.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise SoakError(f"{what}: not within {timeout:.0f} s")
        pause(LOOK_EVERY)


def child_environment() -> dict[str, str]:
    """Return an environment without the machine's own identity, proxies and caches."""
    return {k: v for k, v in os.environ.items() if not FOREIGN.fullmatch(k)}


class EmulatorProcess:
    """An emulator in a process of its own, so that its work is not the load's.

    Parameters:
        token_lifetime: seconds.
        cluster: primaries of its Redis Cluster; 0 is a single node.
        profile: the service of Azure that it is like.
    """

    def __init__(
        self, token_lifetime: float, cluster: int = 0, profile: str | None = None
    ) -> None:
        self._lifetime = token_lifetime
        self._profile = profile
        self._cluster = cluster
        self._directory = tempfile.TemporaryDirectory(prefix="soak-")
        self.file = Path(self._directory.name, "emulator.json")

    def __enter__(self) -> Self:
        """Start it."""
        log = Path(self._directory.name, "log")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "emulator",
                    f"--token-lifetime={self._lifetime}",
                    f"--cluster={self._cluster}",
                    f"--directory={self._directory.name}",
                    *([f"--profile={self._profile}"] if self._profile else []),
                ],
                cwd=ROOT,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            wait_until(self._ready, f"the emulator starts ({log})")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.control = EmulatorControl.from_file(self.file)
        self.description = json.loads(self.file.read_text())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a process that is to reach it."""
        return {
            **child_environment(),
            "REQUESTS_CA_BUNDLE": self.description["ca_file"],
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": self.description["imds_url"],
        }

    def _ready(self) -> bool:
        if self._process.poll() is not None:
            log = Path(self._directory.name, "log").read_text(errors="replace")
            raise SoakError(f"the emulator has ended: {log[-500:]}")
        return self.file.exists()


class LoadProcess:
    """A process that keeps a cache busy.

    Parameters:
        emulator: what it talks to.
        subject: a subject's name.
        config: what else the load is told.
    """

    def __init__(self, emulator: EmulatorProcess, subject: str, **config: Any) -> None:
        self._emulator = emulator
        self._config = {
            "emulator": str(emulator.file),
            "subject": subject,
            "threads": 8,
            "pause": 0.02,
            **config,
        }
        self._reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.tally = Tally()

    def __enter__(self) -> Self:
        """Start it, and wait until it is under way."""
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.load", json.dumps(self._config)],
            cwd=ROOT,
            env=self._emulator.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        enough = 3 * self._config.get("tasks", self._config["threads"])
        try:
            wait_until(lambda: self.look().operations > enough, "the load is under way")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it, if it has not been stopped."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._errors.close()

    def tell(self, command: str) -> None:
        """Have it do something: ``pause``, ``resume``, ``step SECONDS``."""
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)

    def look(self) -> Tally:
        """Return the figures so far."""
        while not self._reports.empty():
            report = self._reports.get()
            if report is None:
                self._errors.seek(0)
                text = self._errors.read().decode(errors="replace")
                raise SoakError(f"the load has ended: {text[-1500:]}")
            self.tally = Tally.from_json(report["tally"])
        return self.tally

    def stop(self) -> Tally:
        """Stop it; return all its figures."""
        self.tell("stop")
        deadline = time.monotonic() + STOP_TIMEOUT
        while True:
            try:
                report = self._reports.get(timeout=deadline - time.monotonic())
            except (queue.Empty, ValueError):
                raise SoakError("the load does not stop") from None
            if report is None:
                self._reports.put(None)
                self.look()
            elif report["done"]:
                return Tally.from_json(report["tally"])

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._reports.put(json.loads(line))
        self._reports.put(None)
