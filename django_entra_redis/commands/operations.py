"""The operations of Django's and django-redis' cache API as Redis commands.

Each operation is a generator: it yields a :class:`Request`, is sent the reply, and
returns what the cache API returns. The synchronous and the asynchronous client are two
drivers of the same operations.
"""

import logging
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha1
from typing import Any, TypeVar

from redis.exceptions import (
    ClusterCrossSlotError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ResponseError,
)

from ..serializers import PickleSerializer, Serializer
from .packing import length, pack_all, pack_delete, pack_get, pack_set, pack_sets
from .patterns import KeyPattern
from .replies import (
    Parse,
    done,
    done_or_integer,
    integer,
    scanned,
    sum_or_nothing,
    value_of,
    values_of,
)
from .request import Request

logger = logging.getLogger(__name__)

T = TypeVar("T")


Operation = Generator[Request, Any, T]

#: What Redis answers to TTL of a key that has no expiry.
_NO_EXPIRY = -1
#: How an error reply to FLUSHDB begins that is about the server.
_STATE = re.compile(r"(?!FLUSH)[A-Z]{3,} ")
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


INCR_SHA = sha1(INCR_SCRIPT.encode()).hexdigest()
_INCR = f"*5\r\n$7\r\nEVALSHA\r\n$40\r\n{INCR_SHA}\r\n$1\r\n1\r\n$"


def pack_incr(key: str, delta: int) -> bytes:
    """Return what counts a key that is there, with a script that the server knows."""
    by = str(delta)
    return f"{_INCR}{length(key)}\r\n{key}\r\n${len(by)}\r\n{by}\r\n".encode()


class ServerFacts:
    """Facts that operations have found out about the server that is written to."""

    runs_scripts = True

    def refuse_scripts(self, error: ResponseError) -> None:
        """Remember that the server refuses to run scripts, and log it."""
        self.runs_scripts = False
        logger.warning(
            "Redis lets no scripts run here (%s): incr() takes two round trips from "
            "now on, as Django's own does.",
            error,
        )


def no_such_key(key: str) -> ValueError:
    """Return what incr() raises of a key that is not there."""
    return ValueError(f"Key '{key}' not found.")


def _not_counted(key: str, delta: int) -> Any:
    raise no_such_key(key)


#: What each operation answers, as from an empty cache, while Redis can't be used and
#: ``OPTIONS["ignore_exceptions"]`` is set: by the operation's name, from its arguments.
_EMPTY_ANSWERS: Mapping[str, Callable[..., Any]] = {
    "add": lambda key, value, timeout: False,
    "get": lambda key, default: default,
    "set": lambda key, value, timeout: None,
    "touch": lambda key, timeout: False,
    "delete": lambda key: False,
    "get_many": lambda keys, names: {},
    "has_key": lambda key: False,
    "incr": _not_counted,
    "count": lambda key, delta: delta,
    # None of them is set.
    "set_many": lambda keys, data, timeout: list(data),
    "delete_many": lambda keys: None,
    "clear": lambda: False,
    "clear_matching": lambda pattern: False,
    "replace": lambda key, value, timeout: False,
    "time_to_live": lambda command, key: 0,
    "change_expiry": lambda command, key, *amount: False,
    "scan": lambda cursor, pattern, count: (END, []),
    "delete_matching": lambda pattern, count, regex=None: 0,
}


class Operations:
    """The operations of a cache.

    They take keys as Redis has them, and timeouts as Django's backend makes them:
    whole seconds, ``None`` for no expiry, 0 for at once.

    Parameters:
        serializer: turns values into bytes and back.
        server: facts about the server that is written to.
    """

    empty_answers = _EMPTY_ANSWERS

    def __init__(self, serializer: Serializer, server: ServerFacts) -> None:
        self.dumps, self.loads = serializer.dumps, serializer.loads
        # As int() does, to which all else than digits is an error.
        self._reads_digits = type(serializer) is PickleSerializer
        self.server = server

    def add(self, key: str, value: Any, timeout: int | None) -> Operation[bool]:
        """Set a key that is not there; return whether it was set."""
        data = self.dumps(value)
        if timeout == 0:
            # It expires at once, yet Django wants to know whether it was there.
            return not (yield Request(("EXISTS", key), key=key, parse=integer))
        expiry = () if timeout is None else ("EX", timeout)
        command = ("SET", key, data, "NX", *expiry)
        return bool((yield Request(command, key=key, once=True, parse=done)))

    def get(self, key: str, default: Any) -> Operation[Any]:
        """Return a key's value."""
        data = yield Request(pack_get(key), key=key, write=False, parse=value_of)
        return default if data is None else self.loads(data)

    def set(self, key: str, value: Any, timeout: int | None) -> Operation[None]:
        """Set a key."""
        packed = pack_set(key, self.dumps(value), timeout)
        yield Request(packed, key=key, parse=done_or_integer)

    def touch(self, key: str, timeout: int | None) -> Operation[bool]:
        """Set a key's timeout; return whether it is there."""
        if timeout is not None:
            command = ("EXPIRE", key, timeout)
            return bool((yield Request(command, key=key, parse=integer)))
        if (yield Request(("PERSIST", key), key=key, parse=integer)):
            return True
        # It says the same of a key without a timeout and of none. In a request of its
        # own: on a cluster either may be redirected.
        return bool((yield Request(("EXISTS", key), key=key, parse=integer)))

    def delete(self, key: str) -> Operation[bool]:
        """Delete a key; return whether it was there."""
        return bool((yield Request(("DEL", key), key=key, parse=integer)))

    def get_many(
        self, keys: Sequence[str], names: Iterable[Any]
    ) -> Operation[dict[Any, Any]]:
        """Return the values of the keys that are there, by the keys' names."""
        if not keys:
            return {}
        try:
            command = ("MGET", *keys)
            found = yield Request(command, write=False, parse=values_of(len(keys)))
        except ClusterCrossSlotError:
            # Of a node of a cluster, whose answer to GET tells that it is one; or of a
            # server that has all the keys, and takes them one by one.
            commands = [pack_get(key) for key in keys]
            each = self.each(commands, keys, write=False, parse=value_of)
            found = sound((yield each))
        return self.by_name(names, found)

    def by_name(
        self, names: Iterable[Any], found: Sequence[bytes | None]
    ) -> dict[Any, Any]:
        """Return the values that are there, by the keys' names.

        Parameters:
            found: what Redis has of each, in the order of the names.
        """
        if self._reads_digits and found[0] is not None and found[0].isdigit():
            # Counters, as often as not: all at once, where all of them are.
            with suppress(TypeError, ValueError):
                return dict(zip(names, map(int, found), strict=True))  # type: ignore[arg-type]
        loads = self.loads
        return {
            name: loads(data)
            for name, data in zip(names, found, strict=True)
            if data is not None
        }

    def has_key(self, key: str) -> Operation[bool]:
        """Return whether a key is there."""
        request = Request(("EXISTS", key), key=key, write=False, parse=integer)
        return bool((yield request))

    def incr(self, key: str, delta: int) -> Operation[int]:
        """Add to a number; return the sum.

        Raises:
            ValueError: the key is not there.
        """
        value = None
        if self.server.runs_scripts:
            try:
                # EVAL where the server is new, or has been restarted.
                for how, script in (("EVALSHA", INCR_SHA), ("EVAL", INCR_SCRIPT)):
                    counting = (how, script, 1, key, delta)
                    with suppress(NoScriptError):
                        value = yield Request(
                            counting, key=key, once=True, parse=sum_or_nothing
                        )
                        break
            except ResponseError as error:
                if not refuses_scripts(error):
                    raise
                self.server.refuse_scripts(error)
        if not self.server.runs_scripts and (
            yield Request(("EXISTS", key), key=key, parse=integer)
        ):
            command = ("INCRBY", key, delta)
            value = yield Request(command, key=key, once=True, parse=integer)
        if value is None:
            raise no_such_key(key)
        return int(value)

    def count(self, key: str, delta: int) -> Operation[int]:
        """Add to a number, or to 0 where there is none; return the sum."""
        command = ("INCRBY", key, delta)
        request = Request(command, key=key, once=True, parse=integer)
        return int((yield request))

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
        commands = pack_sets(keys, map(self.dumps, data.values()), timeout)
        replies = yield self.each(commands, keys, parse=done_or_integer)
        failed = {
            name: reply
            for name, reply in zip(data, replies, strict=True)
            if isinstance(reply, Exception)
        }
        # That a server is full is logged by the client, once.
        odd = [e for e in failed.values() if not isinstance(e, OutOfMemoryError)]
        if odd:
            logger.warning(
                "%d of %d keys could not be set: %s", len(failed), len(data), odd[0]
            )
        return list(failed)

    def each(
        self,
        commands: Sequence[bytes],
        keys: Sequence[str | bytes],
        *,
        write: bool = True,
        parse: Parse | None = None,
    ) -> Request:
        """Return the request for commands that have a key each."""
        return Request(
            b"".join(commands), len(commands), keys=keys, write=write, parse=parse
        )

    # A command for each key: under active geo-replication, as on a cluster, DEL and
    # UNLINK take several only if they are in one slot.

    def delete_many(self, keys: Sequence[str]) -> Operation[None]:
        """Delete several keys."""
        if keys:
            commands = [pack_delete(key) for key in keys]
            sound((yield self.each(commands, keys, parse=integer)))

    def clear(self) -> Operation[bool]:
        """Empty the whole database."""
        try:
            return (yield from self.flush())
        except ResponseError as error:
            if not refuses_flushing(error):
                raise
            failure = type(error)(
                f"{error}. Where FLUSHDB is refused (active geo-replication, an access "
                "policy), set OPTIONS['clear_by_scan'] to True: clear() then deletes "
                "the keys of this cache alone."
            )
        raise failure

    def flush(self) -> Operation[bool]:
        """Delete every key."""
        return bool((yield Request(("FLUSHDB",), parse=done)))

    def replace(self, key: str, value: Any, timeout: int | None) -> Operation[bool]:
        """Set a key only if it is there; return whether it was set."""
        if timeout == 0:
            return bool((yield Request(("DEL", key), key=key, parse=integer)))
        data = self.dumps(value)
        expiry = () if timeout is None else ("EX", timeout)
        command = ("SET", key, data, "XX", *expiry)
        return bool((yield Request(command, key=key, parse=done)))

    def time_to_live(self, command: str, key: str) -> Operation[int | None]:
        """Return how long a key will live: ``None`` for ever, 0 if it is not there.

        Parameters:
            command: TTL (seconds) or PTTL (milliseconds).
        """
        left = yield Request((command, key), key=key, write=False, parse=integer)
        return None if left == _NO_EXPIRY else max(0, int(left))

    def change_expiry(self, command: str, key: str, *amount: int) -> Operation[bool]:
        """Change when a key expires; return whether it is there.

        Parameters:
            command: EXPIRE, PEXPIRE, EXPIREAT, PEXPIREAT or PERSIST.
            amount: the command's argument; nothing for PERSIST.
        """
        return bool((yield Request((command, key, *amount), key=key, parse=integer)))

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
        found: tuple[int, list[bytes]] = yield Request(command, parse=scanned)
        return found

    def unlink(self, keys: Sequence[bytes]) -> Operation[int]:
        """Delete keys as they come from :meth:`scan`; return how many there were."""
        if not keys:
            return 0
        commands = [pack_all([("UNLINK", key)]) for key in keys]
        return sum(sound((yield self.each(commands, keys, parse=integer))))

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


def sound(replies: Sequence[Any]) -> Sequence[Any]:
    """Return replies, unless one is an error, which is raised."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def refuses_flushing(error: ResponseError) -> bool:
    """Whether an error tells that FLUSHDB is not for everybody here.

    What a connection began with is not its affair, nor what state the server is in,
    which is what an error's first word tells of ("MISCONF", "BUSY", "MOVED").
    """
    plain = type(error) is ResponseError and not _STATE.match(str(error))
    return plain or type(error) is NoPermissionError


def refuses_scripts(error: ResponseError) -> bool:
    """Whether an error reply tells that no scripts may run."""
    text = str(error).lower()
    return "eval" in text and ("no permissions" in text or "unknown command" in text)
