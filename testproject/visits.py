"""Two visit counters: one in the visitor's session, one in the cache for all."""

from dataclasses import dataclass

from django.contrib.sessions.backends.base import SessionBase
from django.core.cache import cache

KEY = "visits"


@dataclass(frozen=True, slots=True)
class Visits:
    """How often this visitor has been here, and how often everybody has."""

    yours: int
    everybody: int


def count_visit(session: SessionBase) -> Visits:
    """Count a visit on both counters."""
    session[KEY] = session.get(KEY, 0) + 1
    try:
        everybody = cache.incr(KEY)
    except ValueError:
        # The first visit of all. Two of them at once: add() lets one through.
        cache.add(KEY, 0, timeout=None)
        everybody = cache.incr(KEY)
    return Visits(session[KEY], everybody)
