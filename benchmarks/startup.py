"""What start-up costs: ``manage.py check``, the whole process."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .contenders import DJANGO, OURS
from .report import Report, Target, show, show_ratio
from .rounds import Sample, duel

TARGET = Target(1.1, at_most=True)
_SETTINGS = """\
SECRET_KEY = "benchmark"
USE_TZ = True
INSTALLED_APPS = [{apps}"django.contrib.contenttypes", "django.contrib.auth"]
CACHES = {{"default": {{"BACKEND": "{backend}", "LOCATION": "{location}"}}}}
"""


def measure_startup(report: Report) -> None:
    """Measure ``manage.py check`` with this backend and with Django's own."""
    report.line(
        "`manage.py check` in ms, the whole process: median (minimum-maximum); with "
        "two of Django's own apps. Ours has an identity in the settings."
    )
    report.line()
    report.table("", OURS, DJANGO, "of the cost", "target")
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        directory = Path(name)
        (directory / "ours.py").write_text(
            _SETTINGS.format(
                apps='"django_entra_redis", ',
                backend="django_entra_redis.cache.EntraRedisCache",
                location="rediss://contoso.westeurope.redis.azure.net:10000",
            )
        )
        (directory / "theirs.py").write_text(
            _SETTINGS.format(
                apps="",
                backend="django.core.cache.backends.redis.RedisCache",
                location="redis://localhost:6379",
            )
        )
        kinds: dict[str, Callable[[Path, str], Sample]] = {
            "CPU": _cpu_sample,
            "by the clock": _clock_sample,
        }
        for what, kind in kinds.items():
            result = report.settle(
                f"manage.py check, {what}",
                duel(kind(directory, "theirs"), kind(directory, "ours"), report.rounds),
            )
            report.row(
                what,
                show(result.theirs, 1e-3),
                show(result.ours, 1e-3),
                show_ratio(result.ratio),
                report.verdict(f"manage.py check, {what}", result.ratio, TARGET),
            )
        if shutil.which("hyperfine"):
            report.progress("hyperfine")
            ours, theirs = _hyperfine(directory, report.rounds)
            report.row(
                "hyperfine, minimum",
                f"{ours * 1000:.0f}",
                f"{theirs * 1000:.0f}",
                f"{ours / theirs:.2f}x",
                # Not in turns: other work on the machine weighs on one of them.
                "",
            )
    report.line()


def _command() -> list[str]:
    return [sys.executable, "-m", "django", "check"]


def _environment(directory: Path, settings: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(directory), *filter(None, sys.path)]),
        "DJANGO_SETTINGS_MODULE": settings,
        # Bytecode as after an installation, also of a checkout, and where the
        # environment says to write none.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(directory / "bytecode"),
    }


def _check(directory: Path, settings: str) -> float:
    """Run one check; return the CPU seconds that it took."""
    process = subprocess.Popen(
        _command(),
        env=_environment(directory, settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"the check with {settings} failed"
    return used.ru_utime + used.ru_stime


def _cpu_sample(directory: Path, settings: str) -> Sample:
    return lambda count: sum(_check(directory, settings) for _ in range(count))


def _clock_sample(directory: Path, settings: str) -> Sample:
    def sample(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            _check(directory, settings)
        return time.perf_counter() - begin

    return sample


def _hyperfine(directory: Path, rounds: int) -> tuple[float, float]:
    """Return the shortest run of both by hyperfine, which does one after the other."""
    result = directory / "hyperfine.json"
    command = " ".join(_command())
    subprocess.run(
        [
            *("hyperfine", "--shell=none", "--style=none", "--warmup=1"),
            *("--runs", str(max(rounds, 2)), "--export-json", str(result)),
            *("--parameter-list", "settings", "ours,theirs"),
            f"env DJANGO_SETTINGS_MODULE={{settings}} {command}",
        ],
        env=_environment(directory, ""),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    ours, theirs = json.loads(result.read_text())["results"]
    return ours["min"], theirs["min"]
