"""What an identity costs: the same server, pool and commands with it and without."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.core.cache import caches
from django.test import override_settings

from .contenders import PATIENCE, one_kilobyte
from .report import Report, Target, show, show_ratio
from .rounds import cpu_of, duel
from .servers import EmulatorProcess

TARGET = Target(1.02, at_most=True)
_WITH, _WITHOUT = "with", "without"


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def identity_settings(description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of the emulator's application."""
    return {
        "default": {
            "KIND": "service_principal",
            "TENANT_ID": description["tenant_id"],
            "CLIENT_ID": description["application"]["client_id"],
            "CLIENT_SECRET": description["application"]["secret"],
            "AUTHORITY_HOST": description["authority_host"],
            "INSTANCE_DISCOVERY": False,
        }
    }


def with_and_without(
    emulator: EmulatorProcess, url: str, options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return two caches' settings: with an identity, and with a token for password."""
    backend = {"BACKEND": "django_entra_redis.cache.EntraRedisCache", "LOCATION": url}
    options = {**options, "socket_timeout": PATIENCE}
    fixed = {
        "identity": None,
        "username": emulator.description["application"]["object_id"],
        "password": emulator.control.issue_token(),
    }
    return {
        _WITH: {**backend, "OPTIONS": dict(options)},
        _WITHOUT: {**backend, "OPTIONS": {**options, **fixed}},
    }


def measure_identity(emulator: EmulatorProcess, report: Report) -> None:
    """Measure get() and set() with an identity and without one."""
    report.line(
        "Client CPU time with an Entra identity and with a fixed password, through "
        "the emulator, in µs: median (minimum-maximum)."
    )
    report.line()
    report.table("operation", "Entra", "none", "of the cost", "target")
    description = emulator.description
    ways = {
        "TLS": (description["redis_url"], {"ssl_ca_certs": description["ca_file"]}),
        "plain text": (description["plaintext_url"], {}),
    }
    for way, (url, options) in ways.items():
        with (
            environment({"REQUESTS_CA_BUNDLE": description["ca_file"]}),
            override_settings(
                CACHES=with_and_without(emulator, url, options),
                ENTRA_REDIS=identity_settings(description),
            ),
        ):
            for name in ("get", "set"):
                samples = {}
                for alias in (_WITH, _WITHOUT):
                    cache, value = caches[alias], one_kilobyte()
                    cache.set("key", value)
                    operation = {
                        "get": partial(cache.get, "key"),
                        "set": partial(cache.set, "key", value),
                    }[name]
                    samples[alias] = cpu_of(operation)
                what = f"{name}, 1 KB dict, {way}"
                # The two differ by less than single samples of one of them do.
                rounds = report.rounds * 4
                result = report.settle(
                    what, duel(samples[_WITHOUT], samples[_WITH], rounds)
                )
                report.row(
                    what,
                    show(result.theirs),
                    show(result.ours),
                    show_ratio(result.ratio, 3),
                    report.verdict(what, result.ratio, TARGET),
                )
            entra: Any = caches[_WITH]
            none: Any = caches[_WITHOUT]
            pools = entra.get_pool(), none.get_pool()
            lent = [pool.get_connection() for pool in pools]
            # What a checkout does to a connection that is connected.
            theirs, ours = (cpu_of(connection.connect) for connection in lent)
            result = report.settle(
                f"looking at the token, {way}", duel(ours, theirs, report.rounds)
            )
            report.row(
                f"looking at the token, {way}",
                show(result.theirs),
                show(result.ours),
                f"+{(result.theirs.median - result.ours.median) * 1e6:.2f} µs",
                "",
            )
            for pool, connection in zip(pools, lent, strict=True):
                pool.release(connection)
    report.line()
