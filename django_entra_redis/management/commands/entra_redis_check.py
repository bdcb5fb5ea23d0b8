"""``manage.py entra_redis_check``: is the token right, is the cache reached?"""

import json
import os
import shutil
import sys
import textwrap
import threading
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.core.cache import caches
from django.core.management.base import BaseCommand, CommandError
from django.utils.module_loading import import_string

from django_entra_redis.cache.backend import EntraRedisCache, entra_caches
from django_entra_redis.diagnostics.runner import Step
from django_entra_redis.diagnostics.steps import diagnose_each
from django_entra_redis.signals import token_renewal_failed, token_renewed
from django_entra_redis.status import Status


class Command(BaseCommand):
    """Examines the caches step by step."""

    help = (
        "Checks each Entra cache step by step, from the settings to a round trip, and "
        "says of the first step that fails why and what to do. Exit status 0 when all "
        "passed, 1 otherwise."
    )
    # Broken settings are a failed step, not a crash.
    requires_system_checks = []  # noqa: RUF012 - as Django declares it

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument(
            "--cache",
            action="append",
            metavar="ALIAS",
            help="a cache to check; may be given again (default: every Entra cache)",
        )
        parser.add_argument(
            "--timeout",
            type=_seconds,
            default=30.0,
            metavar="S",
            help="seconds that the check may take (default: 30)",
        )
        parser.add_argument(
            "--json", action="store_true", help="print one JSON document"
        )
        parser.add_argument(
            "--watch",
            action="store_true",
            help="go on until Ctrl-C, with a line for each renewal of the token",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Check, print, and exit."""
        if options["json"] and options["watch"]:
            # Not argparse's group, whose exit status is 2.
            raise CommandError("--json and --watch exclude each other.")
        try:
            ok = self._check(options)
            self.stdout.flush()
        except KeyboardInterrupt:
            raise SystemExit(130) from None  # As shells tell of Ctrl-C.
        except BrokenPipeError:
            # Whoever read has seen enough: Python's manual, "Note on SIGPIPE".
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ok = False
        if not ok:
            raise SystemExit(1)

    def _check(self, options: Mapping[str, Any]) -> bool:
        """Check and print; return whether all passed."""
        chosen = _choose(options["cache"])
        reports = []
        for alias, cache, steps in diagnose_each(chosen, options["timeout"]):
            if not options["json"]:
                self.stdout.write(self.style.MIGRATE_HEADING(_title(alias, cache)))
                steps = self._shown(steps)
            reports.append(_report(alias, cache, list(steps)))
        ok = bool(reports) and all(report["ok"] for report in reports)
        if options["json"]:
            self.stdout.write(json.dumps({"ok": ok, "caches": reports}, indent=2))
        elif not reports:
            self.stdout.write("No cache in CACHES has an Entra identity.")
        if ok and options["watch"]:
            self._watch()
        return ok

    def _shown(self, steps: Iterator[Step]) -> Iterator[Step]:
        """Print each step as it comes."""
        for step in steps:
            mark = self.style.SUCCESS("ok  ") if step.ok else self.style.ERROR("FAIL")
            label = f"  {step.name:<11}"
            lines = _wrap(f"{step.detail} ({step.ms:.0f} ms)", len(label) + 5)
            self.stdout.write(f"{label}{mark} {lines}")
            if not step.ok:
                self.stdout.write(f"{'':13}code: {step.code}")
                self.stdout.write(f"{'':13}{_wrap(str(step.hint), 13)}")
            yield step

    def _watch(self) -> None:
        """Print a line for each renewal until Ctrl-C."""

        def renewed(sender: str, status: Status, **kwargs: Any) -> None:
            line = f"token renewed, expires {_clock(status.expires_at)}"
            self._line(sender, f"{line}, next {_clock(status.next_renewal_at)}")

        def failed(sender: str, error: str, **kwargs: Any) -> None:
            self._line(sender, self.style.ERROR(f"renewal failed: {error}"))

        self._over = threading.Event()
        token_renewed.connect(renewed)
        token_renewal_failed.connect(failed)
        self.stdout.write("Watching renewals; Ctrl-C ends it.")
        self.stdout.flush()
        try:
            self._wait()
        except KeyboardInterrupt:
            self.stdout.write("")
        finally:
            token_renewed.disconnect(renewed)
            token_renewal_failed.disconnect(failed)

    def _wait(self) -> None:
        self._over.wait()
        raise BrokenPipeError  # In the main thread, which can end the command.

    def _line(self, identity: str, text: str) -> None:
        try:
            self.stdout.write(f"{datetime.now():%H:%M:%S} {identity}: {text}")
            self.stdout.flush()
        except BrokenPipeError:
            self._over.set()


def _seconds(text: str) -> float:
    """Return the value of ``--timeout``."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _choose(aliases: list[str] | None) -> dict[str, EntraRedisCache | Step]:
    """Return the caches to be checked; of one that is not there the step that fails."""
    found = entra_caches()
    if aliases is None:
        aliases = [
            alias
            for alias in caches
            if (_has_identity(found[alias]) if alias in found else _is_ours(alias))
        ]
    known = ", ".join(found) or "none"
    return {alias: found.get(alias) or _missing(alias, known) for alias in aliases}


def _is_ours(alias: str) -> bool:
    entry = caches.settings[alias]
    backend = str(entry.get("BACKEND")) if isinstance(entry, Mapping) else ""
    try:
        return issubclass(import_string(backend), EntraRedisCache)
    except Exception:
        return backend.startswith("django_entra_redis.")


def _missing(alias: str, known: str) -> Step:
    """Return why a cache is not among those to be checked."""
    detail = f"'{alias}' is not a cache of django_entra_redis in CACHES."
    hint = f"Those there are: {known}."
    try:
        if alias in caches.settings:
            _ = caches[alias]
    except Exception as error:
        # Django could not even build it.
        what = " ".join(f"{type(error).__name__}: {error}".split())
        detail = f"CACHES['{alias}'] can't be used: {what}"
        hint = "Look at its BACKEND, KEY_FUNCTION and OPTIONS."
    return Step("settings", False, 0.0, detail, "settings_invalid", hint)


def _has_identity(cache: EntraRedisCache) -> bool:
    try:
        return cache.options.identity is not None
    except Exception:
        return True  # The first step says what is wrong.


def _title(alias: str, cache: EntraRedisCache | Step) -> str:
    return f"Cache '{alias}' at {_location(cache)}"


def _location(cache: EntraRedisCache | Step) -> str:
    return "?" if isinstance(cache, Step) else cache.location


def _report(
    alias: str, cache: EntraRedisCache | Step, steps: list[Step]
) -> dict[str, Any]:
    identity = None
    # Without one where the first step has said what is wrong.
    if not isinstance(cache, Step) and steps[0].ok:
        identity = cache.options.identity
    return {
        "cache": alias,
        "ok": all(step.ok for step in steps),
        "location": _location(cache),
        "identity": identity,
        "steps": [asdict(step) | {"ms": round(step.ms, 2)} for step in steps],
    }


def _wrap(text: str, indent: int) -> str:
    """Return text in lines for the terminal, all but the first indented."""
    width = max(40, min(100, shutil.get_terminal_size((80, 24)).columns))
    return textwrap.fill(
        text, width - indent, break_long_words=False, break_on_hyphens=False
    ).replace("\n", "\n" + " " * indent)


def _clock(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment.astimezone():%H:%M:%S}"
