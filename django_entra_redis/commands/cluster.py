"""The operations of a cache whose keys lie on several servers.

Redis takes several keys in one command only if they are in one slot. Hence each key
gets a command of its own, and what goes to one node goes there in one piece.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from .operations import END, START, Operation, Operations, sound
from .packing import pack_get
from .replies import Parse, done, scanned, value_of
from .request import Batch, Broadcast, Request, Visit


class ClusterOperations(Operations):
    """Operations of a cache on a Redis Cluster; those not here have one key."""

    def each(
        self,
        commands: Sequence[bytes],
        keys: Sequence[str | bytes],
        *,
        write: bool = True,
        parse: Parse | None = None,
    ) -> Request:
        """Return the request for commands that have a key each."""
        return Batch(commands, keys, write=write, parse=parse)

    def get_many(
        self, keys: Sequence[str], names: Iterable[Any]
    ) -> Operation[dict[Any, Any]]:
        """Return the values of the keys that are there, by the keys' names."""
        if not keys:
            return {}
        commands = [pack_get(key) for key in keys]
        found = yield self.each(commands, keys, write=False, parse=value_of)
        return self.by_name(names, sound(found))

    def flush(self) -> Operation[bool]:
        """Empty every primary."""
        replies = yield Broadcast(("FLUSHDB",), parse=done)
        return all(replies.values())

    def scan(
        self, cursor: Any, pattern: str, count: int
    ) -> Operation[tuple[Any, list[bytes]]]:
        """Return some of the keys that match a glob pattern, and where to go on.

        A cursor is the addresses of the primaries that have more, with each one's own.
        """
        options = ("MATCH", pattern, "COUNT", count)
        if cursor == START:
            replies = yield Broadcast(("SCAN", START, *options), parse=scanned)
            rest = ()
        else:
            (address, at), *rest = cursor
            reply = yield Visit(("SCAN", at, *options), address, scanned)
            replies = {address: reply}
        found: list[bytes] = []
        more = []
        for address, (at, keys) in replies.items():
            found += keys
            if at != END:
                more.append((address, at))
        return (*more, *rest) or END, found
