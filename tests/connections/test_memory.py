"""What large values cost in page faults, which only a new process can tell."""

import platform
import subprocess
import sys

import pytest

from tests.support.caches import Database
from tests.support.commands import ROOT

SIZE = 5_000_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc")
@pytest.mark.parametrize("operation", ["get", "aget"])
def test_memory_is_kept(database: Database, operation: str) -> None:
    """From one value to the next: five million bytes are 1,221 pages."""
    database.cache().set("key", "x" * SIZE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.processes.large_values"),
            *(database.url, operation),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    # Now and then the memory grows by a block: its pages are faults once in 20 times.
    assert int(done.stdout) < 300
