"""Other packages on a cache or an identity of this one, with tokens that last 6 s.

``python -m soak.ecosystem`` runs each package's own calls in a process of its own, all
at once, until three tokens have expired, and prints a table: what had to be configured,
the spans that OpenTelemetry's instrumentation saw of one call, and the errors. A token
in a span counts as one.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from soak.packages import CELERY, ROWS, AsyncWork, Row

LIFE = 6.0
EXPIRIES = 3
#: Seconds that a package's calls go on for; then that a process may take altogether.
DURATION = LIFE * EXPIRIES
PATIENCE = 120.0
#: Seconds between two calls: connections are busy, idle for a moment, and for longer.
PAUSES = (0.0, 0.05, 0.3)

BACKEND = "django_entra_redis.cache.EntraRedisCache"
SERIALIZER = "django_entra_redis.serializers.JSONSerializer"
PROVIDER = "django_entra_redis.credentials.EntraCredentialProvider"


def configure(row: Row, *, as_json: bool = False) -> None:
    """Set Django up with a row's settings, and maybe with the serializer for JSON."""
    django = import_module("django")
    location, ca = os.environ["REDIS_URL"], os.environ["REDIS_CA_CERTS"]
    names: dict[str, Any] = {
        "EntraCredentialProvider": import_module(
            "django_entra_redis.credentials"
        ).EntraCredentialProvider,
        "LOCATION": location,
        "URL": f"{location}?credential_provider={PROVIDER}&retry_on_timeout=true"
        f"&ssl_ca_certs={quote(ca)}",
        "CA": ca,
        "HOST": urlsplit(location).hostname,
        "PORT": urlsplit(location).port,
        "BACKEND": BACKEND,
        "CACHES": {
            "default": {
                "BACKEND": BACKEND,
                "LOCATION": location,
                "OPTIONS": {"ssl_ca_certs": ca},
            }
        },
    }
    exec("\n".join((row.before, *row.lines, row.more)), names)
    if as_json:
        names["CACHES"]["default"]["KEY_PREFIX"] = "json"
        names["CACHES"]["default"]["OPTIONS"]["serializer"] = SERIALIZER
    apps = ("contenttypes", "auth", "sessions", "messages", "admin")
    import_module("django.conf").settings.configure(
        **{name: value for name, value in names.items() if name.isupper()},
        SECRET_KEY="for the soak only",
        USE_TZ=True,
        INSTALLED_APPS=[
            *(f"django.contrib.{app}" for app in apps),
            "django_entra_redis",
            *row.apps,
        ],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        },
        ENTRA_REDIS={"default": {"INSTANCE_DISCOVERY": False}},
    )
    django.setup()


@contextmanager
def _spans() -> Iterator[Callable[[], list[Any]]]:
    """Have redis-py instrumented; yield what returns the spans since it was asked."""
    export = import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    trace = import_module("opentelemetry.sdk.trace")
    processor = import_module("opentelemetry.sdk.trace.export").SimpleSpanProcessor
    exporter, provider = export.InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(processor(exporter))
    instrumentor = import_module("opentelemetry.instrumentation.redis")
    instrumentor.RedisInstrumentor().instrument(tracer_provider=provider)

    def take() -> list[Any]:
        spans = list(exporter.get_finished_spans())
        exporter.clear()
        return spans

    yield take


def try_json(row: Row) -> dict[str, Any]:
    """Do a row's work once with the serializer for JSON; return how it fails."""
    configure(row, as_json=True)
    try:
        work, awork = row.make()
        if work is not None:
            work()
        if awork is not None:
            asyncio.run(_await(awork))
    except Exception as error:
        return {"json": type(error).__name__}
    return {"json": "works"}


async def _await(awork: AsyncWork) -> None:
    await awork()


def measure(row: Row) -> dict[str, Any]:
    """Do a row's work until the tokens have expired; return what has been seen."""
    configure(row)
    errors: list[str] = []
    counts = {"calls": 0, "sync": 0, "async": 0}
    kept: list[Any] = []
    with _spans() as take:
        work, awork = row.make()
        until = time.monotonic() + DURATION
        take()

        async def alone() -> None:
            assert awork is not None
            first = True
            while first or time.monotonic() < until:
                try:
                    await awork()
                except Exception as error:
                    errors.append(f"{type(error).__name__}: {error}")
                counts["calls"] += 1
                spans = take()
                if first:
                    counts["async"] = len(spans)
                kept.extend(spans)
                first = False
                await asyncio.sleep(PAUSES[counts["calls"] % len(PAUSES)])

        first = True
        while work is not None and (first or time.monotonic() < until):
            try:
                work()
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
            counts["calls"] += 1
            spans = take()
            if first:
                counts["sync"] = len(spans)
            kept.extend(spans)
            first = False
            time.sleep(PAUSES[counts["calls"] % len(PAUSES)])
        if awork is not None:
            until = time.monotonic() + DURATION
            asyncio.run(alone())
    if any("eyJ" in str(dict(span.attributes or {})) for span in kept):
        errors.append("a token is in a span")
    return {
        **counts,
        "sync": counts["sync"] if work else None,
        "async": counts["async"] if awork else None,
        "errors": errors,
        "version": metadata.version(row.name.partition(" ")[0]),
    }


def run(row: Row, environ: Mapping[str, str], *options: str) -> "subprocess.Popen[str]":
    """Start a process that measures a row."""
    return subprocess.Popen(
        [sys.executable, "-m", "soak.ecosystem", "--row", row.name, *options],
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What it starts ends with it.
        start_new_session=True,
    )


def outcome(process: "subprocess.Popen[str]", deadline: float) -> dict[str, Any]:
    """Return what a process has printed; how it failed if it has printed nothing."""
    try:
        output, log = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        output, log = "", f"no end within {PATIENCE:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    try:
        found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = log.strip().splitlines()[-1:] or ["nothing was printed"]
        found = {
            "errors": last,
            "version": "?",
            "sync": None,
            "async": None,
            "calls": 0,
        }
    return found


def _shown(line: str) -> str:
    """Return a line of code for a cell of a table."""
    return "`{}`".format(line.replace("|", "\\|"))


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the documentation."""
    lines = [
        "| package | version | settings | spans, sync | spans, async | errors "
        "| `JSONSerializer` |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        if row.name in found:
            seen = found[row.name]
            lines_of = [_shown(line) for line in row.lines]
            if row.name != "celery" and row.lines[: len(CELERY)] == CELERY:
                lines_of[: len(CELERY)] = ["those of celery"]
            if row.code:
                lines_of.append(_shown(row.code))
            shown = "<br>".join(lines_of) or "none"
            spans = (
                "-" if seen[kind] is None else seen[kind] for kind in ("sync", "async")
            )
            cells = [row.name, seen["version"], shown, *spans, len(seen["errors"])]
            cells.append(seen.get("json", "-"))
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="the ten most used only")
    parser.add_argument("--only", action="append", help="this package; may be repeated")
    parser.add_argument("--write", type=Path, help="a file for the table")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    by_name = {row.name: row for row in ROWS}
    if arguments.row:
        act = try_json if arguments.json else measure
        print(json.dumps(act(by_name[arguments.row])), flush=True)
        # A worker's threads may not end by themselves.
        os._exit(0)
    from emulator import Emulator

    chosen = [
        row
        for row in ROWS
        if (row.name in arguments.only if arguments.only else not row.alone)
        and (row.short or not arguments.short)
    ]
    with Emulator(token_lifetime=LIFE) as emulator:
        environ = {**os.environ, **emulator.environ("service_principal")}
        deadline = time.monotonic() + PATIENCE
        processes = {row.name: run(row, environ) for row in chosen}
        found = {
            name: outcome(process, deadline) for name, process in processes.items()
        }
        if not arguments.short:
            deadline = time.monotonic() + PATIENCE
            processes = {row.name: run(row, environ, "--json") for row in chosen}
            for name, process in processes.items():
                found[name]["json"] = outcome(process, deadline).get("json", "?")
        refused = [a.reason for a in emulator.authentications if not a.accepted]
        tokens = emulator.stats.token_requests
    print(table(found))
    for name, seen in found.items():
        for error in dict.fromkeys(seen["errors"]):
            print(f"{name}: {error}", file=sys.stderr)
    print(f"{tokens} tokens, {len(refused)} refused", file=sys.stderr)
    if arguments.write:
        arguments.write.write_text(f"{table(found)}\n", encoding="utf-8")
    return (
        1 if any(seen["errors"] or not seen["calls"] for seen in found.values()) else 0
    )


if __name__ == "__main__":
    sys.exit(main())
