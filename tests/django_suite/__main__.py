"""Run Django's tests on the control and on ours, and compare."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import django

from emulator import PROFILES, Emulator
from emulator.cluster import check_server
from emulator.server import ServerError, find_server

from .report import NOTHING, Report, faults
from .selection import CLUSTER_LACKS, DATABASE_LACKS, FAKE_LACKS, LABELS, LEFT_OUT
from .source import fetch
from .target import VARIABLE, Target

SETTINGS = "tests.django_suite.settings"
CONTROL = "django.core.cache.backends.redis.RedisCache"
CLUSTER = "django_entra_redis.cache.EntraRedisClusterCache"
#: The backends that are compared with it, and how each does its work.
OURS = {
    "django_entra_redis.cache.EntraRedisCache": "synchronous",
    CLUSTER: "on a cluster",
    "tests.django_suite.adapters.LoopPerCallCache": "asynchronous, a loop per call",
    "tests.django_suite.adapters.LoopPerTestCache": "asynchronous, a loop per test",
}


def run(tests: Path, target: Target, environment: Mapping[str, str]) -> Report:
    """Run the selected tests on one target in a process of their own."""
    report = Path(target.report)
    report.unlink(missing_ok=True)
    result = subprocess.run(
        [
            *(sys.executable, "runtests.py", "--settings", SETTINGS),
            *("--parallel", "1", "--noinput", *LABELS),
        ],
        cwd=tests,
        env={
            **os.environ,
            **environment,
            VARIABLE: target.dump(),
            # Django's tests are top-level packages; all else comes from where it
            # comes from here.
            "PYTHONPATH": os.pathsep.join([str(tests), *sys.path]),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    sys.stdout.write(f"{target.backend}\n{result.stdout}\n")
    text = report.read_text() if report.exists() else NOTHING.dump()
    return Report.load(text, result.returncode)


def compared(profile: str | None) -> dict[str, str]:
    """Return those of ours that can be run here, or on a service of Azure."""
    if profile is not None and not PROFILES[profile].primaries:
        return {name: how for name, how in OURS.items() if name != CLUSTER}
    if profile is not None:
        return {CLUSTER: OURS[CLUSTER]}
    try:
        check_server(None)
    except ServerError as error:  # pragma: no cover - a machine has one or it has not
        if os.environ.get("CI") == "true":
            raise
        sys.stdout.write(f"{OURS[CLUSTER]}: left out, since {error}\n")
        return {name: how for name, how in OURS.items() if name != CLUSTER}
    return OURS


def main(tests: Path, directory: Path, profile: str | None) -> int:
    """Run all, print the counts and what was left out; 0 when ours are as good.

    Parameters:
        tests: Django's.
        directory: where the reports go.
        profile: the service of Azure to be on; ``None``: a plain redis-server.
    """
    ours_here = compared(profile)
    service = PROFILES.get(profile or "")

    def special(backend: str) -> dict[str, str]:
        """Return what is left out with one backend alone, each with the reason."""
        if backend == CLUSTER:
            return CLUSTER_LACKS
        return DATABASE_LACKS if service and service.one_database else {}

    lacking = {} if find_server() else FAKE_LACKS

    def target(backend: str, location: str, **more: Any) -> Target:
        name = f"{profile}-{backend.rpartition('.')[2]}.json"
        report = str(directory / name)
        return Target(backend=backend, location=location, report=report, **more)

    # The tests mostly sleep: all runs at once, each with a Redis of its own.
    with ExitStack() as stack:
        plain, *entra = (
            stack.enter_context(
                Emulator(
                    token_lifetime=3600.0,
                    cluster=3 if name == CLUSTER else 0,
                    profile=None if name == CONTROL else profile,
                )
            )
            for name in (CONTROL, *ours_here)
        )
        executor = stack.enter_context(ThreadPoolExecutor(1 + len(ours_here)))
        running = executor.submit(
            run,
            tests,
            target(CONTROL, plain.backend_url, left_out=tuple(lacking)),
            {},
        )
        ours = [
            executor.submit(
                run,
                tests,
                target(
                    backend,
                    emulator.redis_url,
                    options={
                        "ssl_ca_certs": str(emulator.ca_file),
                        # Where FLUSHDB is refused.
                        "clear_by_scan": profile == "acr",
                    },
                    databases=not (service and service.one_database),
                    left_out=tuple(LEFT_OUT | lacking | special(backend)),
                ),
                # No proxy of this machine's leads to the emulator.
                emulator.environ("service_principal") | {"NO_PROXY": "localhost"},
            )
            for backend, emulator in zip(ours_here, entra, strict=True)
        ]
        control = running.result()
        reports = [future.result() for future in ours]
        authenticated = [emulator.stats.auths for emulator in entra]
    lines = [
        f"Django {django.get_version()}, its own tests",
        f"RedisCache, plain Redis: {control}",
        f"EntraRedisCache, TLS and a token, {profile or 'a redis-server'},",
        *(
            f"- {how}: {report}, {auths} connections"
            for how, report, auths in zip(
                ours_here.values(), reports, authenticated, strict=True
            )
        ),
        f"left out, {len(LEFT_OUT | lacking)} names:",
        *(f"  {name}: {reason}" for name, reason in LEFT_OUT.items()),
        *(f"  {name}: {reason}" for name, reason in lacking.items()),
        *(
            f"  {name} ({how}): {why}"
            for backend, how in ours_here.items()
            for name, why in special(backend).items()
        ),
    ]
    found = [
        f"{how}: {fault}"
        for (backend, how), report, auths in zip(
            ours_here.items(), reports, authenticated, strict=True
        )
        for fault in faults(control, report, LEFT_OUT | special(backend), auths)
    ]
    lines += found or ["no fault"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if found else 0


parser = argparse.ArgumentParser(prog="python -m tests.django_suite")
parser.add_argument("--directory", type=Path, required=True, help="for Django's source")
parser.add_argument(
    "--profile",
    action="append",
    choices=PROFILES,
    help="the service of Azure to be on; may be given again: at the same time",
)
options = parser.parse_args()
directory = options.directory.resolve()
tests, profiles = fetch(directory), options.profile or [None]
with ThreadPoolExecutor(len(profiles)) as executor:
    sys.exit(max(executor.map(lambda name: main(tests, directory, name), profiles)))
