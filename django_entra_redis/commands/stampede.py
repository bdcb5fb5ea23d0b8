"""Two keys beside a computed value: the cost of its computation, and a lock.

They are keys of their own, since the value's key holds what any client of Django's
would write.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .operations import Operation, Operations
from .packing import pack_all, pack_get
from .replies import done, integer
from .request import Request

#: Seconds by which a value's end may seem to have moved though nobody has moved it:
#: PTTL rounds, the server's clock runs faster or slower than this machine's, and two
#: replicas that are asked in turn have clocks of their own.
TOLERANCE = 0.1
#: The reply to PTTL for a key without expiry.
_FOR_EVER = -1


@dataclass(frozen=True, slots=True)
class Names:
    """The keys of a computed value, of its cost and of its lock."""

    value: str
    cost: str
    lock: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that decide when a value is computed anew.

    Parameters:
        cost: seconds that its computation took; 0 if that is unknown.
        left: seconds until it expires; ``inf``: never.
    """

    cost: float = 0.0
    left: float = math.inf


@dataclass(frozen=True, slots=True)
class State:
    """What a value's key holds.

    Parameters:
        data: the bytes; ``None``: the key does not exist.
        left: seconds until it expires; ``inf``: never.
        asked, answered: the monotonic time before the request, and after the reply.
    """

    data: bytes | None = field(repr=False)
    left: float
    asked: float
    answered: float

    def is_still(self, before: "State") -> bool:
        """Whether nobody has written the key, or changed its expiry, since then.

        The server has told the two times at some moments of the two round trips, so
        that the time which has passed between them is not known more exactly.
        """
        least = before.left - (self.answered - before.asked) - TOLERANCE
        most = before.left - (self.asked - before.answered) + TOLERANCE
        return self.data == before.data and least <= self.left <= most


def is_due(facts: Facts, beta: float, draw: float) -> bool:
    """Whether to compute a value now, before it expires.

    This is XFetch (Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache
    Stampede Prevention").

    Parameters:
        facts: the facts of the value.
        beta: 1.0 is best on average, more is earlier.
        draw: a random number above 0, at most 1.
    """
    early = -facts.cost * beta * math.log(draw)
    return early > 0 and early >= facts.left


class Stampedes:
    """The operations on the two keys beside a value.

    Parameters:
        operations: the operations of the cache.
        monotonic: the clock, in seconds.
    """

    def __init__(
        self,
        operations: Operations,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._operations = operations
        self._monotonic = monotonic

    #: The results in an outage with ``ignore_exceptions``: every process computes the
    #: value for itself.
    empty_answers: Mapping[str, Callable[..., Any]] = {
        "facts": lambda names: Facts(),
        "state": lambda names: State(None, 0.0, 0.0, 0.0),
        "lock": lambda names, token, seconds: True,
        "unlock": lambda names: None,
        "unlock_if_own": lambda names, token: None,
        "note": lambda names, cost, timeout: None,
    }

    def facts(self, names: Names) -> Operation[Facts]:
        """Return the facts of a value."""
        left, cost = yield from self._left_and(names, names.cost)
        return Facts(_seconds(cost), left)

    def state(self, names: Names) -> Operation[State]:
        """Return what a value's key holds, and for how long."""
        asked = self._monotonic()
        left, data = yield from self._left_and(names, names.value)
        return State(data, left, asked, self._monotonic())

    def _left_and(self, names: Names, key: str) -> Operation[tuple[float, Any]]:
        """Return seconds until a value expires, and what another of its keys holds."""
        commands = [pack_all([("PTTL", names.value)]), pack_get(key)]
        keys = [names.value, key]
        replies = yield self._operations.each(commands, keys, write=False)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        left, data = replies
        return math.inf if left == _FOR_EVER else max(0, integer(left)) / 1000, data

    def lock(self, names: Names, token: str, seconds: float) -> Operation[bool]:
        """Acquire the lock of a value; return whether it was free.

        It is tried once: a second attempt would find the lock taken by the first.

        Parameters:
            names: the value's keys.
            token: what tells this holder from all others.
            seconds: seconds after which it is released, if its process has died.
        """
        command = ("SET", names.lock, token, "NX", "PX", int(seconds * 1000))
        return bool((yield Request(command, key=names.lock, once=True, parse=done)))

    def unlock(self, names: Names) -> Operation[None]:
        """Release the lock of a value."""
        yield Request(("DEL", names.lock), key=names.lock, parse=integer)

    def unlock_if_own(self, names: Names, token: str) -> Operation[None]:
        """Release the lock of a value unless another one holds it."""
        # From where it was written: a replica may not have it yet.
        if (yield Request(("GET", names.lock), key=names.lock)) == token.encode():
            yield from self.unlock(names)

    def note(self, names: Names, cost: float, timeout: int) -> Operation[None]:
        """Store the cost of a value for other processes.

        Parameters:
            names: the value's keys.
            cost: seconds that the computation took.
            timeout: seconds until the value expires.
        """
        command = ("SET", names.cost, f"{cost:.6f}", "EX", timeout)
        yield Request(command, key=names.cost, parse=done)


def _seconds(noted: Any) -> float:
    """Return a cost that another process has stored."""
    try:
        return max(0.0, float(noted))
    except (TypeError, ValueError):
        return 0.0
