"""What django-redis' API has beside Django's, as Redis commands: how long keys live,
and which there are.

Like :mod:`.operations`, generators that any client carries out.
"""

from typing import Any

from .operations import END, Operation, Operations, Request

#: What Redis says of a key that lives for ever.
_FOR_EVER = -1


class Keyspace:
    """Operations on keys.

    Parameters:
        operations: those of the cache.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def set_if(
        self, key: str, value: Any, timeout: int | None, *, there: bool
    ) -> Operation[bool]:
        """Set a key only if it is there, or only if it is not; return whether it was
        set."""
        if not there:
            return self._operations.add(key, value, timeout)
        return self._operations.forgive(self._replace(key, value, timeout), False)

    def _replace(self, key: str, value: Any, timeout: int | None) -> Operation[bool]:
        if timeout == 0:
            return bool((yield Request(("DEL", key), key=key)))
        data = self._operations.dumps(value)
        expiry = () if timeout is None else ("EX", timeout)
        return bool((yield Request(("SET", key, data, "XX", *expiry), key=key)))

    def life(self, command: str, key: str) -> Operation[int | None]:
        """Return how long a key will live: ``None`` for ever, 0 if it is not there.

        Parameters:
            command: TTL (seconds) or PTTL (milliseconds).
        """
        return self._operations.forgive(self._life(command, key), 0)

    def _life(self, command: str, key: str) -> Operation[int | None]:
        left = yield Request((command, key), key=key, write=False)
        return None if left == _FOR_EVER else max(0, int(left))

    def change_life(self, command: str, key: str, *amount: int) -> Operation[bool]:
        """Have a key live shorter or longer; return whether it is there.

        Parameters:
            command: EXPIRE, PEXPIRE, EXPIREAT, PEXPIREAT or PERSIST.
            amount: what the command takes; nothing for PERSIST.
        """
        return self._operations.forgive(self._change(command, key, *amount), False)

    def _change(self, command: str, key: str, *amount: int) -> Operation[bool]:
        return bool((yield Request((command, key, *amount), key=key)))

    def scan(
        self, cursor: Any, pattern: str, count: int
    ) -> Operation[tuple[Any, list[bytes]]]:
        """Return some of the keys that match a pattern, and where to go on."""
        empty: tuple[Any, list[bytes]] = (END, [])
        return self._operations.forgive(
            self._operations.scan(cursor, pattern, count), empty
        )

    def delete_matching(self, pattern: str, count: int) -> Operation[int]:
        """Delete the keys that match a pattern; return how many there were."""
        return self._operations.forgive(
            self._operations.delete_matching(pattern, count), 0
        )
