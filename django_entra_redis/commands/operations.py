"""The operations of Django's and django-redis' cache API as Redis commands.

Each operation is a generator: it yields a :class:`Request`, is sent the reply, and
returns the result of the cache API's method. The synchronous and the asynchronous
client drive the same operations.
"""

import logging
import re
import time
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
from .packing import (
    length,
    pack_all,
    pack_deletes,
    pack_get,
    pack_gets,
    pack_set,
    pack_sets,
)
from .patterns import Choice, KeyPattern, beginning_of
from .replies import (
    INTEGER,
    Parse,
    done,
    done_or_integer,
    has_error,
    integer,
    scanned,
    sum_or_nothing,
    value_of,
    values_of,
)
from .request import Request
from .server_facts import EVERYTHING, ServerFacts, ends_at_once

logger = logging.getLogger(__name__)

T = TypeVar("T")


Operation = Generator[Request, Any, T]

#: The reply to TTL for a key without expiry.
_NO_EXPIRY = -1
#: The beginning of an error reply to FLUSHDB that is about the server's state.
_STATE = re.compile(r"(?!FLUSH)[A-Z]{3,} ")
#: The cursors at the beginning and at the end of a SCAN.
START: Any = 0
END = 0
#: Keys that one SCAN command examines: enough to make the round trips few, and few
#: enough not to block the server.
BATCH = 1000

# Increments a key that exists, in one round trip; returns nothing if there is none.
# Lua's numbers are exact only up to 2 ** 53: above that the value is read as text.
INCR_SCRIPT = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  local sum = redis.call('INCRBY', KEYS[1], ARGV[1])
  if sum < 2^53 and sum > -2^53 then return sum end
  return redis.call('GET', KEYS[1])
end"""


INCR_SHA = sha1(INCR_SCRIPT.encode()).hexdigest()
_INCR = f"*5\r\n$7\r\nEVALSHA\r\n$40\r\n{INCR_SHA}\r\n$1\r\n1\r\n$"


def pack_incr(key: str, delta: int) -> bytes:
    """Return EVALSHA of the script that increments a key."""
    by = "$1\r\n1" if delta == 1 else f"${len(str(delta))}\r\n{delta}"
    return f"{_INCR}{length(key)}\r\n{key}\r\n{by}\r\n".encode()


def no_such_key(key: str) -> ValueError:
    """Return the error that incr() raises for a key that does not exist."""
    return ValueError(f"Key '{key}' not found.")


def time_left(reply: int) -> int | None:
    """Return the time until a key expires, of the reply to TTL or PTTL: ``None``:
    never; 0: there is no such key."""
    return None if reply == _NO_EXPIRY else max(0, reply)


def _not_counted(key: str, delta: int) -> Any:
    raise no_such_key(key)


#: The result of each operation on an empty cache, by the operation's name, from its
#: arguments. In an outage it is the result with ``OPTIONS["ignore_exceptions"]``.
_EMPTY_ANSWERS: Mapping[str, Callable[..., Any]] = {
    "add": lambda key, value, timeout: False,
    "get": lambda key, default: default,
    "set": lambda key, value, timeout: None,
    "set_packed": lambda key, packed: None,
    "touch": lambda key, timeout: False,
    "delete": lambda key: False,
    "get_many": lambda keys, names: {},
    "has_key": lambda key: False,
    "incr": _not_counted,
    "count": lambda key, delta: delta,
    # The result is the keys that could not be set: all of them.
    "set_many": lambda keys, data, timeout: list(data),
    "set_many_packed": lambda commands, keys, data: list(data),
    "delete_many": lambda keys: None,
    "clear": lambda: False,
    "clear_matching": lambda pattern: False,
    "replace": lambda key, value, timeout: False,
    "time_to_live": lambda command, key: 0,
    "change_expiry": lambda command, key, *amount: False,
    "scan": lambda cursor, pattern, count: (END, []),
    "delete_matching": lambda pattern, count, wanted=None: 0,
}


class Operations:
    """The operations of a cache.

    Keys are those in Redis, with prefix and version. Timeouts are whole seconds,
    ``None`` for no expiry, 0 for at once, as Django's backend makes them.

    Parameters:
        serializer: turns values into bytes and back.
        server: facts about the server that takes the writes.
    """

    empty_answers = _EMPTY_ANSWERS

    def __init__(self, serializer: Serializer, server: ServerFacts) -> None:
        self.dumps, self.loads = serializer.dumps, serializer.loads
        # Whether it is Django's: it writes an int as it is, and reads digits as int()
        # does, to which all else is an error.
        self._is_djangos = type(serializer) is PickleSerializer
        self.server = server

    def dumps_each(self, values: Iterable[Any]) -> list[Any]:
        """Return what the serializer makes of each value."""
        values = [*values]  # Django's QueryDict gives its values once.
        # Counters, as often as not: then no call for each.
        if self._is_djangos and INTEGER.issuperset(map(type, values)):
            return values
        return [*map(self.dumps, values)]

    def add(self, key: str, value: Any, timeout: int | None) -> Operation[bool]:
        """Set a key that does not exist; return whether it was set."""
        data = self.dumps(value)
        if timeout == 0:
            # It would expire at once; the result still says whether it existed.
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
        yield from self.set_packed(key, pack_set(key, self.dumps(value), timeout))

    def set_packed(self, key: str, packed: bytes) -> Operation[None]:
        """Set a key by a command that has been packed already, as large values are."""
        reply = yield Request(packed, key=key, parse=done_or_integer)
        if type(reply) is int:  # With a timeout of 0 it is a DEL.
            self.server.removing((key,))

    def touch(self, key: str, timeout: int | None) -> Operation[bool]:
        """Set a key's timeout; return whether it exists."""
        if timeout is not None:
            if timeout == 0:
                self.server.removing((key,))
            command = ("EXPIRE", key, timeout)
            return bool((yield Request(command, key=key, parse=integer)))
        if (yield Request(("PERSIST", key), key=key, parse=integer)):
            return True
        # PERSIST replies the same for a key without a timeout and for a missing one.
        # EXISTS is a request of its own, since on a cluster either may be redirected.
        return bool((yield Request(("EXISTS", key), key=key, parse=integer)))

    def delete(self, key: str) -> Operation[bool]:
        """Delete a key; return whether it existed."""
        self.server.removing((key,))
        return bool((yield Request(("DEL", key), key=key, parse=integer)))

    def get_many(
        self, keys: Sequence[str], names: Iterable[Any]
    ) -> Operation[dict[Any, Any]]:
        """Return the values of keys that exist, by the keys' names."""
        if not keys:
            return {}
        try:
            command = ("MGET", *keys)
            found = yield Request(command, write=False, parse=values_of(len(keys)))
        except ClusterCrossSlotError:
            # A node of a cluster will redirect one of the GETs, and the user is told
            # so. A server with the Enterprise policy takes the keys one by one.
            each = self.each_key(pack_gets, keys, write=False, parse=value_of)
            found = checked((yield each))
        return self.by_name(names, found)

    def by_name(
        self, names: Iterable[Any], found: Sequence[bytes | None]
    ) -> dict[Any, Any]:
        """Return the values that are there, by the keys' names.

        Parameters:
            found: what Redis has of each, in the order of the names.
        """
        if self._is_djangos and found[0] is not None and found[0].isdigit():
            # Counters, as often as not: all at once, where all of them are.
            with suppress(TypeError, ValueError):
                return dict(zip(names, map(int, found), strict=True))  # type: ignore[arg-type]  # checked
        loads = self.loads
        return {
            name: loads(data)
            for name, data in zip(names, found, strict=True)
            if data is not None
        }

    def has_key(self, key: str) -> Operation[bool]:
        """Return whether a key exists."""
        request = Request(("EXISTS", key), key=key, write=False, parse=integer)
        return bool((yield request))

    def incr(self, key: str, delta: int) -> Operation[int]:
        """Add to a number; return the sum.

        Raises:
            ValueError: the key does not exist.
        """
        value = None
        if self.server.runs_scripts:
            try:
                known = False
                with suppress(NoScriptError):
                    value = yield _counting("EVALSHA", INCR_SHA, key, delta)
                    known = True
                if not known:  # yet, or any more: the server has restarted
                    value = yield _counting("EVAL", INCR_SCRIPT, key, delta)
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
            keys: the keys in Redis.
            data: the values by the keys' names, in the order of the keys.
            timeout: seconds until they expire; ``None``: never.

        Returns:
            The names of the keys that Redis refused to set.
        """
        if timeout == 0:
            self.server.removing(keys)
        commands = pack_sets(keys, self.dumps_each(data.values()), timeout)
        return (yield from self.set_many_packed(commands, keys, data))

    def set_many_packed(
        self, commands: Sequence[bytes], keys: Sequence[str], data: Iterable[Any]
    ) -> Operation[list[Any]]:
        """Set several keys by commands that have been packed already.

        Parameters:
            commands: the command of each key.
            keys: the keys in Redis.
            data: the keys' names.

        Returns:
            The names of the keys that Redis refused to set.
        """
        replies = yield self.each(commands, keys, parse=done_or_integer)
        if not has_error(replies):
            return []
        failed = {
            name: reply
            for name, reply in zip(data, replies, strict=True)
            if isinstance(reply, Exception)
        }
        # OutOfMemoryError is logged by the client, once per outage.
        odd = [e for e in failed.values() if not isinstance(e, OutOfMemoryError)]
        if odd:
            logger.warning(
                "%d of %d keys could not be set: %s", len(failed), len(keys), odd[0]
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
        """Return the request for several commands with one key each."""
        return Request(
            b"".join(commands), len(commands), keys=keys, write=write, parse=parse
        )

    def each_key(
        self,
        pack: Callable[[Sequence[str]], bytes],
        keys: Sequence[str],
        *,
        write: bool = True,
        parse: Parse | None = None,
    ) -> Request:
        """Return the request for the same command of each key.

        Parameters:
            pack: packs the command of each of some keys.
            keys: the keys.
            write, parse: see :class:`Request`.
        """
        return Request(pack(keys), len(keys), keys=keys, write=write, parse=parse)

    # One command for each key: under active geo-replication, as on a cluster, DEL and
    # UNLINK take several keys only if they are in one slot.

    def delete_many(self, keys: Sequence[str]) -> Operation[None]:
        """Delete several keys."""
        if keys:
            self.server.removing(keys)
            checked((yield self.each_key(pack_deletes, keys, parse=integer)))

    def clear(self) -> Operation[bool]:
        """Empty the whole database."""
        self.server.removing(EVERYTHING)
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
        """Set a key that exists; return whether it was set."""
        if timeout == 0:
            self.server.removing((key,))
            return bool((yield Request(("DEL", key), key=key, parse=integer)))
        data = self.dumps(value)
        expiry = () if timeout is None else ("EX", timeout)
        command = ("SET", key, data, "XX", *expiry)
        return bool((yield Request(command, key=key, parse=done)))

    def time_to_live(self, command: str, key: str) -> Operation[int | None]:
        """Return the time until a key expires: ``None``: never; 0: it does not exist.

        Parameters:
            command: TTL (seconds) or PTTL (milliseconds).
            key: the key.
        """
        left = yield Request((command, key), key=key, write=False, parse=integer)
        return time_left(left)

    def change_expiry(self, command: str, key: str, *amount: int) -> Operation[bool]:
        """Change when a key expires; return whether it exists.

        Parameters:
            command: EXPIRE, PEXPIRE, EXPIREAT, PEXPIREAT or PERSIST.
            key: the key.
            amount: the command's argument; nothing for PERSIST.
        """
        if ends_at_once(command, amount, time.time()):
            self.server.removing((key,))
        return bool((yield Request((command, key, *amount), key=key, parse=integer)))

    def scan(
        self, cursor: Any, pattern: str, count: int
    ) -> Operation[tuple[Any, list[bytes]]]:
        """Return the next cursor, and some of the keys that match a glob pattern.

        Parameters:
            cursor: :data:`START`, or the cursor of the call before. The last call
                returns :data:`END`.
            pattern: the glob pattern.
            count: the number of keys to examine.
        """
        # Not on a replica: the next call may go to another one, whose cursors differ.
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", count)
        found: tuple[int, list[bytes]] = yield Request(command, parse=scanned)
        return found

    def unlink(self, keys: Sequence[bytes]) -> Operation[int]:
        """Delete keys that :meth:`scan` has returned; return how many existed."""
        if not keys:
            return 0
        commands = [pack_all([("UNLINK", key)]) for key in keys]
        return sum(checked((yield self.each(commands, keys, parse=integer))))

    def delete_matching(
        self,
        pattern: str,
        count: int = BATCH,
        wanted: Callable[[bytes], Any] | None = None,
    ) -> Operation[int]:
        """Delete the keys that match a glob pattern; return how many were deleted.

        Parameters:
            pattern: the glob pattern.
            count: the number of keys that one SCAN examines.
            wanted: returns whether a key is to be deleted; ``None``: all are.
        """
        # Those that are being computed are not there to be found.
        self.server.removing(beginning_of(pattern))
        cursor, deleted = START, 0
        while True:
            cursor, keys = yield from self.scan(cursor, pattern, count)
            if wanted is not None:
                keys = list(filter(wanted, keys))
            deleted += yield from self.unlink(keys)
            if cursor == END:
                return deleted

    def clear_matching(self, pattern: KeyPattern) -> Operation[bool]:
        """Delete the keys of a cache.

        Raises:
            ValueError: there are other keys, of which it can't be told whether they are
                the cache's.
        """
        choice = Choice(pattern)
        yield from self.delete_matching(pattern.glob, wanted=choice.takes)
        choice.check()
        return True


def _counting(how: str, script: str, key: str, delta: int) -> Request:
    command = (how, script, 1, key, delta)
    return Request(command, key=key, once=True, parse=sum_or_nothing)


def checked(replies: Sequence[Any]) -> Sequence[Any]:
    """Return replies; raise the first that is an error."""
    if has_error(replies):
        raise next(reply for reply in replies if isinstance(reply, Exception))
    return replies


def refuses_flushing(error: ResponseError) -> bool:
    """Whether an error reply means that this user may not run FLUSHDB.

    Errors of authentication do not, nor those about the server's state, which begin
    with a word such as "MISCONF", "BUSY" or "MOVED".
    """
    plain = type(error) is ResponseError and not _STATE.match(str(error))
    return plain or type(error) is NoPermissionError


def refuses_scripts(error: ResponseError) -> bool:
    """Whether an error reply means that this user may not run scripts."""
    text = str(error).lower()
    return "eval" in text and ("no permissions" in text or "unknown command" in text)
