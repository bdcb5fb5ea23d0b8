"""The site in processes of its own: management commands and the server."""

import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

MANAGE = Path(__file__).resolve().parent / "manage.py"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0
# An identity or a proxy that happens to be configured here is not the emulator's.
FOREIGN = re.compile(
    r"(AZURE|DJANGO|ENTRA|IDENTITY|IMDS|MSI|REDIS)_.*|(https?|all|no)_proxy",
    re.IGNORECASE,
)


class SiteError(Exception):
    """The site does not start, or a command does not end."""


class SiteProcess:
    """The site with a database in ``directory``, reaching a cache by ``environ``.

    Parameters:
        directory: where its database and its log go.
        environ: what the emulator says, or Azure would.
        stopping: set when somebody wants everything to end.
    """

    def __init__(
        self,
        directory: Path,
        environ: Mapping[str, str],
        stopping: threading.Event | None = None,
    ) -> None:
        self.log = directory / "site.log"
        self.password = secrets.token_urlsafe(9)
        self.url = ""
        self.environ = {
            **{k: v for k, v in os.environ.items() if not FOREIGN.fullmatch(k)},
            "DATABASE_PATH": str(directory / "db.sqlite3"),
            "DEMO_PASSWORD": self.password,
            "DJANGO_RUNSERVER_HIDE_WARNING": "true",
            "DJANGO_SECRET_KEY": secrets.token_urlsafe(40),
            "DJANGO_SETTINGS_MODULE": "testproject.settings",
            "PYTHONUNBUFFERED": "1",
            **environ,
        }
        self._stopping = stopping or threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server."""
        self.stop()

    @property
    def pid(self) -> int | None:
        """The server's process id while there is one."""
        return self._process.pid if self._process is not None else None

    def manage(self, *arguments: str, timeout: float = 60.0) -> tuple[int, str]:
        """Run a management command; return its exit status and its output."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = self._spawn(*arguments, output=output, errors=errors)
            deadline = time.monotonic() + timeout
            try:
                while process.poll() is None:
                    if self._stopping.wait(0.02):
                        raise SiteError(f"{arguments[0]} was stopped")
                    if time.monotonic() > deadline:
                        raise SiteError(f"{arguments[0]} took over {timeout:.0f} s")
            finally:
                _end(process, grace=0.0)
            # What is logged goes below the output, not into the middle of a line.
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
            return process.returncode, "".join(texts)

    def serve(self, port: int = 0) -> str:
        """Start the server, on a free port unless given; return its address."""
        with self.log.open("wb") as log:
            process = self._process = self._spawn(
                "leashed_server", f"127.0.0.1:{port}", output=log, errors=log
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            text = self.log.read_text(errors="replace")
            if match := re.search(r"server at (http://\S+/)", text):
                self.url = match[1]
                return self.url
            if process.poll() is not None:
                raise SiteError(f"the site does not start:\n{text}")
            if self._stopping.wait(0.02):
                raise SiteError("the site was stopped before it had started")
            if time.monotonic() > deadline:
                raise SiteError(f"the site took over {START_TIMEOUT:.0f} s to start")

    def running(self) -> bool:
        """Whether the server is up."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the server, if it was started."""
        if self._process is not None:
            _end(self._process, grace=STOP_TIMEOUT)
            self._process = None

    def _spawn(
        self, *arguments: str, output: IO[bytes], errors: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(MANAGE), *arguments],
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            # Ctrl-C is for the process that has started it, which then stops it.
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Let go of the leash; what has not ended after ``grace`` is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
