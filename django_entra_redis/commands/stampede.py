"""The keys beside a computed value's: what it cost to compute, and a lock.

The value itself stays as any client of Django's writes it, so that what is to be known
of it needs a key of its own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .operations import Operation, Operations
from .packing import pack_all, pack_get
from .replies import done, integer
from .request import Request

#: What Redis says of a key that lives for ever.
_FOR_EVER = -1


@dataclass(frozen=True, slots=True)
class Names:
    """A key that ``get_or_set()`` computes the value of, and those beside it."""

    value: str
    cost: str
    lock: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What tells when a value is to be computed anew.

    Parameters:
        cost: seconds that it took to compute; 0 where nobody has measured that.
        left: seconds that it still lives, ``inf`` for ever.
    """

    cost: float = 0.0
    left: float = math.inf


def is_due(facts: Facts, beta: float, draw: float) -> bool:
    """Whether a value is to be computed now, before it expires (XFetch: Vattani,
    Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention").

    Parameters:
        facts: those of the value.
        beta: how much earlier than is best on average.
        draw: a random number above 0, at most 1.
    """
    early = -facts.cost * beta * math.log(draw)
    return early > 0 and early >= facts.left


class Stampedes:
    """Operations on the keys beside a value's.

    Parameters:
        operations: those of the cache.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    #: What each answers while Redis can't be used, with ``ignore_exceptions``: in an
    #: outage each computes for itself.
    empty_answers: Mapping[str, Callable[..., Any]] = {
        "facts": lambda names: Facts(),
        "lock": lambda names, seconds: True,
        "unlock": lambda names: None,
        "note": lambda names, cost, timeout: None,
    }

    def facts(self, names: Names) -> Operation[Facts]:
        """Return what is known of a value."""
        commands = [pack_all([("PTTL", names.value)]), pack_get(names.cost)]
        keys = [names.value, names.cost]
        replies = yield self._operations.each(commands, keys, write=False)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        left, cost = replies
        known = math.inf if left == _FOR_EVER else max(0, integer(left)) / 1000
        return Facts(_seconds(cost), known)

    def lock(self, names: Names, seconds: float) -> Operation[bool]:
        """Take the lock of a value; return whether it was free.

        Parameters:
            seconds: how long it is held at most, also by a process that dies.
        """
        command = ("SET", names.lock, 1, "NX", "PX", int(seconds * 1000))
        return bool((yield Request(command, key=names.lock, parse=done)))

    def unlock(self, names: Names) -> Operation[None]:
        """Let go of the lock."""
        yield Request(("DEL", names.lock), key=names.lock, parse=integer)

    def note(self, names: Names, cost: float, timeout: int) -> Operation[None]:
        """Have others know what a value has cost.

        Parameters:
            cost: in seconds.
            timeout: seconds that the value lives.
        """
        command = ("SET", names.cost, f"{cost:.6f}", "EX", timeout)
        yield Request(command, key=names.cost, parse=done)


def _seconds(noted: Any) -> float:
    """Return a cost as another process has noted it."""
    try:
        return max(0.0, float(noted))
    except (TypeError, ValueError):
        return 0.0
