"""The progress display, on standard error."""

import sys
import threading
import time
from types import TracebackType
from typing import Self

EVERY_ON_A_TERMINAL = 0.5
EVERY_IN_A_LOG = 10.0


class Progress:
    """Tells how many rows are done, and how far those are that run."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._running: dict[str, str] = {}
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._over = threading.Event()
        self._terminal = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""
        self._over.set()
        self._thread.join()
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def say(self, row: str, text: str) -> None:
        """Note how far a row is."""
        with self._lock:
            self._running[row] = text

    def finished(self, row: str, text: str) -> None:
        """Note that a row is done, and tell how it ended."""
        with self._lock:
            self._running.pop(row, None)
            self._done += 1
            start = "\r\033[K" if self._terminal else ""
            gone = time.monotonic() - self._began
            line = f"{gone:4.0f} s  {self._done} of {self._total}  {row}: {text}"
            print(f"{start}{line}", file=sys.stderr, flush=True)

    def _tell(self) -> None:
        every = EVERY_ON_A_TERMINAL if self._terminal else EVERY_IN_A_LOG
        while not self._over.wait(every):
            with self._lock:
                gone = time.monotonic() - self._began
                rows = " | ".join(
                    f"{row}: {text}" for row, text in self._running.items()
                )
                line = f"{gone:4.0f} s  {self._done} of {self._total} done  {rows}"
                if self._terminal:
                    line = f"\r\033[K{line[:150]}"
                end = "" if self._terminal else "\n"
                print(line, end=end, file=sys.stderr, flush=True)
