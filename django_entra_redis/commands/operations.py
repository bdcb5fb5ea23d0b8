"""Django's cache operations as Redis commands, whoever carries them out.

Each operation is a generator: it yields :class:`Request`, is sent the reply, and
returns what Django's cache API returns. The synchronous and the asynchronous client
are two drivers of the same operations.
"""

import logging
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from redis.exceptions import ClusterCrossSlotError, ResponseError

from ..serializers import Serializer
from .packing import pack_all, pack_get, pack_set
from .patterns import KeyPattern
from .servers import Server, refuses_scripts

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Request:
    """Commands to carry out.

    Parameters:
        command: one command's words, or any number of commands packed.
        count: 0 for one command, whose reply is wanted; else how many commands there
            are, whose replies are wanted as a list. Error replies stand in there.
        key: the key that decides which node of a cluster it is for.
        write: whether it must be the server that is written to.
        once: whether it must not be applied twice.
    """

    __slots__ = ("command", "count", "key", "once", "write")

    @property
    def name(self) -> str:
        """The command's name; of several, packed already, what they are."""
        return "commands" if isinstance(self.command, bytes) else str(self.command[0])

    @property
    def packed(self) -> bytes:
        """The commands as they are sent.

        Raises:
            TypeError, ValueError: an argument can't be sent.
        """
        command = self.command
        return command if isinstance(command, bytes) else pack_all([command])

    def __init__(
        self,
        command: tuple[Any, ...] | bytes,
        count: int = 0,
        *,
        key: str | bytes | None = None,
        write: bool = True,
        once: bool = False,
    ) -> None:
        self.command = command
        self.count = count
        self.key = key
        self.write = write
        self.once = once


Operation = Generator[Request, Any, T]

#: Where a SCAN begins, and what tells that it is over.
START: Any = 0
END = 0
#: Keys that a SCAN looks at in one go.
BATCH = 1000

# Counts a key that is there, in one round trip; nothing where there is none. Numbers
# of Lua's are exact up to 2 ** 53 alone.
INCR_SCRIPT = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  local sum = redis.call('INCRBY', KEYS[1], ARGV[1])
  if sum < 2^53 and sum > -2^53 then return sum end
  return redis.call('GET', KEYS[1])
end"""


class Operations:
    """The operations of a cache.

    They take keys as Redis has them, and timeouts as Django's backend makes them:
    whole seconds, ``None`` for no expiry, 0 for at once.

    Parameters:
        serializer: turns values into bytes and back.
        server: what has been found out about the server that is written to.
    """

    def __init__(self, serializer: Serializer, server: Server) -> None:
        self.dumps, self.loads = serializer.dumps, serializer.loads
        self.server = server

    def add(self, key: str, value: Any, timeout: int | None) -> Operation[bool]:
        """Set a key that is not there; return whether it was set."""
        data = self.dumps(value)
        if timeout == 0:
            # It expires at once, yet Django wants to know whether it was there.
            return not (yield Request(("EXISTS", key), key=key))
        expiry = () if timeout is None else ("EX", timeout)
        reply = yield Request(("SET", key, data, "NX", *expiry), key=key, once=True)
        return reply is not None

    def get(self, key: str, default: Any) -> Operation[Any]:
        """Return a key's value."""
        data = yield Request(pack_get(key), key=key, write=False)
        return default if data is None else self.loads(data)

    def set(self, key: str, value: Any, timeout: int | None) -> Operation[None]:
        """Set a key."""
        yield Request(pack_set(key, self.dumps(value), timeout), key=key)

    def touch(self, key: str, timeout: int | None) -> Operation[bool]:
        """Set a key's timeout; return whether it is there."""
        if timeout is not None:
            return bool((yield Request(("EXPIRE", key, timeout), key=key)))
        if (yield Request(("PERSIST", key), key=key)):
            return True
        # It says the same of a key without a timeout and of none. In a request of its
        # own: on a cluster either may be redirected.
        return bool((yield Request(("EXISTS", key), key=key)))

    def delete(self, key: str) -> Operation[bool]:
        """Delete a key; return whether it was there."""
        return bool((yield Request(("DEL", key), key=key)))

    def get_many(
        self, keys: Sequence[str], names: Iterable[Any]
    ) -> Operation[dict[Any, Any]]:
        """Return the values of the keys that are there, by the keys' names."""
        if not keys:
            return {}
        try:
            found = yield Request(("MGET", *keys), write=False)
        except ClusterCrossSlotError:
            # Of a node of a cluster, whose answer to GET tells that it is one; or of a
            # server that has all the keys, and takes them one by one.
            commands = [pack_get(key) for key in keys]
            found = sound((yield self.each(commands, keys, write=False)))
        loads = self.loads
        return {
            name: loads(data)
            for name, data in zip(names, found, strict=True)
            if data is not None
        }

    def has_key(self, key: str) -> Operation[bool]:
        """Return whether a key is there."""
        return bool((yield Request(("EXISTS", key), key=key, write=False)))

    def incr(self, key: str, delta: int) -> Operation[int]:
        """Add to a number; return the sum.

        Raises:
            ValueError: the key is not there.
        """
        value = None
        if self.server.runs_scripts:
            try:
                value = yield Request(
                    ("EVAL", INCR_SCRIPT, 1, key, delta), key=key, once=True
                )
            except ResponseError as error:
                if not refuses_scripts(error):
                    raise
                self.server.refuse_scripts(error)
        if not self.server.runs_scripts and (yield Request(("EXISTS", key), key=key)):
            value = yield Request(("INCRBY", key, delta), key=key, once=True)
        if value is None:
            raise ValueError(f"Key '{key}' not found.")
        return int(value)

    def set_many(
        self, keys: Sequence[str], data: Mapping[Any, Any], timeout: int | None
    ) -> Operation[list[Any]]:
        """Set several keys in one round trip.

        Parameters:
            keys: as Redis has them.
            data: the values by the keys' names, in the order of the keys.
            timeout: in seconds.

        Returns:
            The names of those that Redis refused.
        """
        if not keys:
            return []
        dumps = self.dumps
        commands = [
            pack_set(key, dumps(value), timeout)
            for key, value in zip(keys, data.values(), strict=True)
        ]
        replies = yield self.each(commands, keys)
        failed = {
            name: reply
            for name, reply in zip(data, replies, strict=True)
            if isinstance(reply, Exception)
        }
        if failed:
            logger.warning(
                "%d of %d keys could not be set: %s",
                len(failed),
                len(data),
                next(iter(failed.values())),
            )
        return list(failed)

    def each(
        self,
        commands: Sequence[bytes],
        keys: Sequence[str | bytes],
        *,
        write: bool = True,
    ) -> Request:
        """Return the request for commands that have a key each."""
        return Request(b"".join(commands), len(commands), write=write)

    # A command for each key: under active geo-replication, as on a cluster, DEL and
    # UNLINK take several only if they are in one slot.

    def delete_many(self, keys: Sequence[str]) -> Operation[None]:
        """Delete several keys."""
        if keys:
            sound((yield self.each([pack_all([("DEL", key)]) for key in keys], keys)))

    def clear(self) -> Operation[bool]:
        """Empty the whole database."""
        try:
            return (yield from self.flush())
        except ResponseError as error:
            failure = type(error)(
                f"{error}. Where FLUSHDB is refused (active geo-replication, an access "
                "policy), set OPTIONS['clear_by_scan'] to True: clear() then deletes "
                "the keys of this cache alone."
            )
        raise failure

    def flush(self) -> Operation[bool]:
        """Delete every key."""
        return bool((yield Request(("FLUSHDB",))))

    def scan(
        self, cursor: Any, pattern: str, count: int
    ) -> Operation[tuple[Any, list[bytes]]]:
        """Return some of the keys that match a glob pattern, and where to go on.

        Parameters:
            cursor: :data:`START`, or where to go on; :data:`END` comes with the last.
            count: keys to look at.
        """
        # Not a replica: the next call may get another one, to which it means nothing.
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", count)
        cursor, keys = yield Request(command)
        return int(cursor), keys

    def unlink(self, keys: Sequence[bytes]) -> Operation[int]:
        """Delete keys as they come from :meth:`scan`; return how many there were."""
        if not keys:
            return 0
        commands = [pack_all([("UNLINK", key)]) for key in keys]
        return sum(sound((yield self.each(commands, keys))))

    def delete_matching(
        self,
        pattern: str,
        count: int = BATCH,
        regex: re.Pattern[bytes] | None = None,
    ) -> Operation[int]:
        """Delete the keys that match a glob pattern; return how many there were.

        Parameters:
            count: keys to look at in one go.
            regex: what a key is to match as a whole, too.
        """
        cursor, deleted = START, 0
        while True:
            cursor, keys = yield from self.scan(cursor, pattern, count)
            if regex is not None:
                keys = [key for key in keys if regex.fullmatch(key)]
            deleted += yield from self.unlink(keys)
            if cursor == END:
                return deleted

    def clear_matching(self, pattern: KeyPattern) -> Operation[bool]:
        """Delete the keys that match a pattern."""
        yield from self.delete_matching(pattern.glob, regex=pattern.regex)
        return True

    def forgive(self, operation: Operation[T], empty: Any) -> Operation[T]:
        """Return an operation that may answer as from an empty cache; this does not.

        Parameters:
            operation: what to do.
            empty: the answer while Redis can't be used; an exception is raised.
        """
        return operation


def sound(replies: Sequence[Any]) -> Sequence[Any]:
    """Return replies, unless one is an error, which is raised."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
