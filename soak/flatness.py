"""The rows in which nothing may grow: ``python -m soak.flatness CONFIG``."""

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soak.children import (
    ROOT,
    EmulatorProcess,
    SoakError,
    child_environment,
)
from soak.outcome import Bars, Outcome
from soak.stage import Stage
from soak.subjects import OURS, make_identities, make_settings

NUMBERS = {"threads": (1_000, 10_000), "overrides": (100, 1_000), "loops": (100, 1_000)}
#: What the interpreter's own caches and free lists may take.
MEMORY = 8_000_000
BATCH = 50
TIMEOUT = 600.0


def measure_flatness(kind: str, stage: Stage) -> Outcome:
    """Have a process go through many of something, and see what is left of them."""
    number = NUMBERS[kind][not stage.short]
    bars = Bars()
    stage.say(f"{number} {kind}")
    # Tokens that last: what is counted is not to be mixed with renewals.
    with EmulatorProcess(3600.0) as emulator:
        config = {"emulator": str(emulator.file), "kind": kind, "number": number}
        done = subprocess.run(
            [sys.executable, "-m", "soak.flatness", json.dumps(config)],
            cwd=ROOT,
            env={
                **child_environment(),
                "REQUESTS_CA_BUNDLE": emulator.description["ca_file"],
            },
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise SoakError(f"{kind}: {done.stderr[-1500:]}")
        stats = emulator.control.stats
    found = json.loads(done.stdout)
    before, after = found["before"], found["after"]
    bars.at_most("threads", after["threads"], before["threads"] + 1)
    # The pool grows up to as many connections as there are threads at a time.
    room = max(before["descriptors"] + 2, BATCH + 10 if kind == "threads" else 0)
    bars.at_most("file descriptors", after["descriptors"], room)
    bars.equal("errors", found["errors"], [])
    bars.at_most("bytes of memory", after["memory"], before["memory"] + MEMORY)
    if kind == "threads":
        # One batch of them runs at a time.
        bars.at_most("connections", stats.connections_opened, BATCH)
        bars.equal("token requests", stats.token_requests, 1)
    growth = (after["memory"] - before["memory"]) / 1e6
    return Outcome(
        errors=len(found["errors"]),
        connections=stats.connections_opened,
        auths=stats.auths,
        token_requests=stats.token_requests,
        closed_in_use=stats.closed_by_expiry_in_use,
        note=(
            f"threads {before['threads']} → {after['threads']}, "
            f"descriptors {before['descriptors']} → {after['descriptors']}, "
            f"memory {growth:+.1f} MB"
        ),
        problems=tuple(bars.problems),
    )


def look() -> dict[str, int]:
    """Return what the process holds."""
    gc.collect()
    descriptors = Path("/proc/self/fd")
    statm = Path("/proc/self/statm")
    return {
        "threads": threading.active_count(),
        "descriptors": len(list(descriptors.iterdir())) if descriptors.exists() else 0,
        "memory": int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if statm.exists()
        else 0,
    }


def main(arguments: list[str]) -> int:
    """Do it, and print what there was before and after."""
    config = json.loads(arguments[0])
    emulator = json.loads(Path(config["emulator"]).read_text())
    import django
    from django.conf import settings
    from django.core.cache import cache
    from django.test import override_settings

    made = make_settings(OURS.name, emulator)
    # No outage is played here: the default will do.
    made["ENTRA_REDIS"] = make_identities(emulator)
    settings.configure(**made)
    django.setup()
    errors: list[Exception] = []

    def use() -> None:
        try:
            cache.set("flat", 1)
            assert cache.get("flat") == 1
        except Exception as error:
            errors.append(error)

    async def ause() -> None:
        try:
            await asyncio.gather(*(cache.aget("flat") for _ in range(3)))
        except Exception as error:
            errors.append(error)

    def threads(number: int) -> None:
        for _ in range(number // BATCH):
            batch = [threading.Thread(target=use) for _ in range(BATCH)]
            for thread in batch:
                thread.start()
            for thread in batch:
                thread.join()

    def overrides(number: int) -> None:
        for count in range(number):
            changed = make_identities(emulator)
            changed["default"]["REFRESH_RATIO"] = 0.5 + count / 10_000
            with override_settings(ENTRA_REDIS=changed):
                use()

    def loops(number: int) -> None:
        for _ in range(number):
            asyncio.run(ause())

    kinds: dict[str, Callable[[int], Any]] = {
        "threads": threads,
        "overrides": overrides,
        "loops": loops,
    }
    run = kinds[config["kind"]]
    # Once round, for what is made at first use.
    use()
    run(BATCH)
    before = look()
    run(config["number"])
    use()
    texts = [f"{type(error).__name__}: {error}"[:200] for error in errors]
    print(json.dumps({"before": before, "after": look(), "errors": texts}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
