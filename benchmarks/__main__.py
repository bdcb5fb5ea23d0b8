"""Measure the package: ``python -m benchmarks``."""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import django
from django.conf import settings

from .placement import PLACEMENTS, placed
from .report import Report
from .servers import EmulatorProcess, RedisServer, ServerError, TlsServer

PARTS = (
    "operations",
    "tls",
    "threads",
    "tls-threads",
    "hot",
    "tls-hot",
    "async",
    "objects",
    "cluster",
    "identity",
    "connections",
    "connect",
    "start-up",
    "hiredis",
)
BY_THE_CLOCK = ("threads", "tls-threads", "connections", "start-up")
PACKAGES = (
    "django",
    "redis",
    "hiredis",
    "msal",
    "django-redis",
    "django-vcache",
    "django-cachex",
    "valkey-glide-sync",
)
DESCRIPTION = """\
Measure what the cache costs, in turns with Django's RedisCache, django-redis,
django-vcache and bare clients, on a redis-server that is started for it. The tables go
to standard output.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks", description=DESCRIPTION
    )
    result.add_argument(
        "parts",
        nargs="*",
        metavar="part",
        help=f"what to measure, of {', '.join(PARTS)} (default: all)",
    )
    result.add_argument(
        "--rounds",
        type=int,
        default=21,
        help="samples to take of each thing (default: 21)",
    )
    result.add_argument(
        "--cpus",
        choices=PLACEMENTS,
        default="one",
        help="the CPUs of client and server where CPU time is measured: one for both "
        "(the default: the steadiest), one each, or any",
    )
    result.add_argument(
        "--profile",
        metavar="OPERATION",
        help="show in place of it all where the time of get, set, incr, get_many(100) "
        "or set_many(100) goes",
    )
    result.add_argument(
        "--redis-server",
        default=os.environ.get("REDIS_SERVER") or shutil.which("redis-server"),
        metavar="PATH",
        help="the redis-server to run (default: $REDIS_SERVER, or the one on PATH)",
    )
    return result


def processor() -> str:
    """Return the processor's name and how many of it there are."""
    name = platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} x {name}"


def versions(server: RedisServer) -> str:
    """Return what runs, and on what."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {package}")
    found.append(f"redis-server {server.info('server')['redis_version']}")
    return f"{', '.join(found)}; {platform.system()}, {processor()}"


def measure(part: str, executable: str, cpus: str, report: Report) -> None:
    """Measure a part."""
    # After the settings: these import redis-py and Django's caches.
    from .cluster import measure_cluster
    from .connections import measure_connections
    from .hot import measure_hot
    from .identity import measure_identity
    from .objects import measure_objects
    from .operations import measure_operations, measure_threads
    from .parsers import measure_parsers
    from .startup import measure_startup
    from .tasks import measure_tasks
    from .tls import measure_connects

    alone: dict[str, Callable[[RedisServer, Report], None]] = {
        "operations": measure_operations,
        "threads": measure_threads,
        "tls": measure_operations,
        "tls-threads": measure_threads,
        "hot": measure_hot,
        "tls-hot": measure_hot,
        "async": measure_tasks,
        "objects": measure_objects,
        "cluster": measure_cluster,
        "connections": measure_connections,
        "hiredis": measure_parsers,
    }
    emulated: dict[str, Callable[[EmulatorProcess, Report], None]] = {
        "identity": measure_identity,
        "connect": measure_connects,
    }
    report.line(f"### {part}")
    report.line()
    # What is measured by the clock may use all that there is.
    with placed("any" if part in BY_THE_CLOCK else cpus) as servers:
        if part in alone:
            kind = TlsServer if part.startswith("tls") else RedisServer
            with kind(executable, servers) as server:
                alone[part](server, report)
        elif part in emulated:
            report.progress("starting the emulator")
            with EmulatorProcess(servers) as emulator:
                emulated[part](emulator, report)
        else:
            measure_startup(report)


def main(arguments: list[str] | None = None) -> int:
    """Measure; return 0 unless it could not be done."""
    options = parser().parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser().error(f"no such part: {', '.join(unknown)}")
    if options.rounds < 1:
        parser().error("--rounds should be 1 or more")
    if options.redis_server is None:
        parser().error("no redis-server on PATH (Debian: apt-get install redis-server)")
    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], ROOT_URLCONF="benchmarks.site", USE_TZ=True
        )
        django.setup()
    report = Report(options.rounds)
    try:
        with RedisServer(options.redis_server) as server:
            if options.profile:
                from .profiles import profile

                return profile(options.profile, server)
            report.line(versions(server))
        report.line()
        for part in PARTS:
            if part in (options.parts or PARTS):
                measure(part, options.redis_server, options.cpus, report)
    except ServerError as error:
        print(f"A server does not start: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if report.missed:
        report.line("Targets that were missed:")
        report.line()
        for miss in report.missed:
            report.line(f"- {miss}")
    else:
        report.line("All targets were reached.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
