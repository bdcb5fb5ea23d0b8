"""The source of the installed Django, which its wheel's tests are not in."""

import subprocess
import sys
import tarfile
from pathlib import Path

import django


def fetch(directory: Path) -> Path:
    """Download and unpack the sdist of the installed version; return its ``tests``."""
    version = django.get_version()
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet"),
            *("--no-deps", "--no-binary", "django", "--dest", str(directory)),
            f"django=={version}",
        ],
        check=True,
    )
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    (runtests,) = directory.glob("*/tests/runtests.py")
    return runtests.parent
