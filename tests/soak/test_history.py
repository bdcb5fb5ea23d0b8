"""The history of versions per key: the checker, and a cache under load and faults."""

import os
import time
from typing import Any

import pytest

from emulator import Emulator
from soak.copies import MAX_BYTES, Found, running, settings_of
from soak.history import Read, Write, find_violations
from soak.readers import History
from tests.support.caches import PATIENCE

PROCESSES = 2

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


# -- the checker

WRITES = [
    Write(1, "k", 1, 10.0),
    Write(1, "k", 2, 20.0),
    Write(1, "k", 4, 40.0),
    Write(2, "other", 9, 0.0),
]


@pytest.mark.parametrize(
    ("read", "violation"),
    [
        (Read(2, "k", 1, 25.0), None),
        (Read(2, "k", 1, 25.1), (2, False)),
        (Read(2, "k", 2, 45.0), None),
        (Read(2, "k", 2, 46.0), (4, False)),
        (Read(2, "k", 3, 46.0), (4, False)),
        (Read(2, "k", 4, 1e9), None),
        (Read(2, "k", 5, 1e9), None),
        (Read(2, "unknown", 5, 1e9), None),
        (Read(1, "k", 1, 19.9), None),
        (Read(1, "k", 1, 20.1), (2, True)),
        (Read(2, "other", 8, 0.1), (9, True)),
    ],
)
def test_what_is_too_old(read: Read, violation: Any) -> None:
    """By when a newer version was there for sure; own ones count at once."""
    found = list(find_violations(WRITES, [read], 5.0))
    expected = [] if violation is None else [violation]
    assert [(each.newer, each.own) for each in found] == expected
    assert all(each.read is read for each in found)


def test_a_late_answer() -> None:
    """A version may be known to be there after a newer one is: that one counts."""
    writes = [Write(1, "k", 2, 50.0), Write(1, "k", 3, 20.0)]
    found = list(find_violations(writes, [Read(2, "k", 1, 26.0)], 5.0))
    assert [(each.newer, each.age) for each in found] == [(2, 6.0)]


def test_what_is_refused_is_not_written() -> None:
    """A cluster that is down refuses keys of ``set_many()``, which returns them."""
    history = History(1)
    history.wrote(["a", "b"], 5, ["b"])
    history.wrote(["a", "b"], 6, [])
    written = [(key, version) for key, version, _ in history.writes]
    assert written == [("a", 5), ("a", 6), ("b", 6)]
    assert len(history.errors) == 1


# -- a cache


def play(emulator: Emulator, seconds: float, broken: str | None = None) -> Found:
    """Put processes through drops, FLUSHDB and forks."""
    config = {
        **settings_of(emulator.description(), 0),
        "seconds": seconds,
        "broken": broken,
    }
    environment = {**os.environ, **emulator.environ()}
    with running(config, environment, PROCESSES) as found:
        ends_at = time.monotonic() + seconds
        while broken is None and time.monotonic() < ends_at:
            time.sleep(1.5)
            emulator.drop_connections()
        return found()


def test_under_load() -> None:
    """Tokens of 6 s, dropped connections and forks: nothing is older than it may be."""
    with Emulator(token_lifetime=6.0) as emulator:
        found = play(emulator, 8.0)
    assert found.violations == []
    assert found.errors == []
    assert found.reads > 50
    assert 0 < found.most_bytes <= 1.1 * MAX_BYTES


@pytest.mark.parametrize("broken", ["own", "deaf"])
def test_a_broken_cache_is_found_out(broken: str) -> None:
    """The checker sees what such a cache does wrong."""
    own: set[bool] = set()
    ends_at = time.monotonic() + PATIENCE
    with Emulator(token_lifetime=60.0) as emulator:
        # A busy machine does little in three seconds.
        while (broken == "own") not in own and time.monotonic() < ends_at:
            found = play(emulator, 3.0, broken)
            own = {violation.own for violation in found.violations}
    assert (broken == "own") in own
