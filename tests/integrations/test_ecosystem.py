"""The packages that are most used with Redis: their own calls, through expiries."""

import subprocess
import sys

from tests.support.commands import ROOT


def test_the_most_used() -> None:
    """None of them raises an error, and each of them has made calls."""
    done = subprocess.run(
        [sys.executable, "-m", "soak.ecosystem", "--short"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n| ") >= 10
