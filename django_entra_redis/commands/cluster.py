"""The operations of a cache on a Redis Cluster, whose keys lie on several nodes.

Redis takes several keys in one command only if they are in one slot. Therefore each key
has a command of its own, and all commands for one node are sent to it at once.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .operations import END, START, Operation, Operations, checked
from .packing import pack_gets
from .replies import Parse, done, scanned, value_of
from .request import Batch, Broadcast, Request, Visit


class ClusterOperations(Operations):
    """Operations of a cache on a Redis Cluster; those inherited have a single key."""

    def each(
        self,
        commands: Sequence[bytes],
        keys: Sequence[str | bytes],
        *,
        write: bool = True,
        parse: Parse | None = None,
    ) -> Request:
        """Return the request for several commands with one key each."""

        def pack(indexes: Sequence[int]) -> bytes:
            return b"".join([commands[index] for index in indexes])

        return Batch(pack, keys, write=write, parse=parse)

    def each_key(
        self,
        pack: Callable[[Sequence[str]], bytes],
        keys: Sequence[str],
        *,
        write: bool = True,
        parse: Parse | None = None,
    ) -> Request:
        """Return the request for the same command of each key."""

        def pack_some(indexes: Sequence[int]) -> bytes:
            return pack([keys[index] for index in indexes])

        return Batch(pack_some, keys, write=write, parse=parse)

    def get_many(
        self, keys: Sequence[str], names: Iterable[Any]
    ) -> Operation[dict[Any, Any]]:
        """Return the values of keys that exist, by the keys' names."""
        if not keys:
            return {}
        found = yield self.each_key(pack_gets, keys, write=False, parse=value_of)
        return self.by_name(names, checked(found))

    def flush(self) -> Operation[bool]:
        """Empty every primary."""
        replies = yield Broadcast(("FLUSHDB",), parse=done)
        return all(replies.values())

    def scan(
        self, cursor: Any, pattern: str, count: int
    ) -> Operation[tuple[Any, list[bytes]]]:
        """Return some of the keys that match a glob pattern, and the next cursor.

        A cursor holds the addresses of the primaries that have more keys, each with its
        own cursor.
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
