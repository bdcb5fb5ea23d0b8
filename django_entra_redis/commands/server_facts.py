"""The facts of a server that all caches of a process share; removals of its keys."""

import logging
from collections.abc import Callable, Container, Sequence

from redis.exceptions import ResponseError

logger = logging.getLogger(__name__)


class ServerFacts:
    """Facts that operations have found out about the server that takes the writes."""

    runs_scripts = True
    _on_removal: "OnRemoval | None" = None

    def before_removals(self, call: "OnRemoval") -> None:
        """Have a function called before keys are removed: the one of the computations
        of ``get_or_set()``, which is set as soon as there is one of them."""
        self._on_removal = call

    def removing(self, keys: Container[str]) -> None:
        """Note that keys are about to be removed, whether they exist or not."""
        if self._on_removal is not None:
            self._on_removal(self, keys)

    def refuse_scripts(self, error: ResponseError) -> None:
        """Remember that the server refuses to run scripts, and log it."""
        self.runs_scripts = False
        logger.warning(
            "Redis refuses to run scripts (%s): incr() takes two round trips from now "
            "on, as Django's own does.",
            error,
        )


#: Is called with the server's facts and the keys.
OnRemoval = Callable[[ServerFacts, Container[str]], None]


class Everything(Container[str]):
    """All keys of a server."""

    def __contains__(self, key: object) -> bool:
        """Return that it contains the key."""
        return True


EVERYTHING = Everything()


def ends_at_once(command: str, amount: Sequence[int], now: float) -> bool:
    """Whether a command that changes when a key expires removes the key.

    Parameters:
        command: EXPIRE, PEXPIRE, EXPIREAT, PEXPIREAT or PERSIST.
        amount: the command's argument; nothing for PERSIST.
        now: seconds since the epoch.
    """
    begin = now if command.endswith("AT") else 0
    unit = 1000 if command.startswith("PEX") else 1
    return any(number <= begin * unit for number in amount)
