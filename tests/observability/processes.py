"""Each tool runs in a process of its own: none takes back all that it has wrapped."""

import subprocess
import sys


def run(name: str, *arguments: str) -> str:
    """Return what a module of these tests prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.observability.{name}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
