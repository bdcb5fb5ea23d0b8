"""The straight path: operations of one command and its reply, without a generator.

:mod:`..commands.operations` describes each operation, for every kind of client, as a
generator of requests; to drive it costs more than to pack a command. If the first
request is all that an operation needs, :class:`StraightPath` packs the same bytes,
exchanges them for a reply on an idle connection, and parses the same result out of it;
so it does with all commands of ``set_many()`` or ``delete_many()`` at once. Everything
else falls back to the generator: no connection that is ready, tools that observe
redis-py, an error, a retry, a refusal. A test drives both paths, and compares bytes,
results and errors.
"""

from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Any, Protocol, TypeVar

from ..commands.operations import (
    Operation,
    Operations,
    no_such_key,
    pack_incr,
    time_left,
)
from ..commands.packing import (
    pack_delete,
    pack_deletes,
    pack_get,
    pack_get_many,
    pack_on_key,
    pack_set,
    pack_sets,
    pack_sets_in_one,
)
from ..commands.replies import (
    INTEGER,
    SUM,
    VALUE,
    Parse,
    all_done,
    all_integers,
    done,
    done_or_integer,
    integer,
    sum_or_nothing,
    value_of,
    values_of,
)
from ..commands.request import Request
from ..commands.server_facts import ends_at_once
from ..connections.endpoint import Endpoint
from ..connections.idle_exchange import (
    MISSED,
    Exchange,
    FirstTry,
    exchanges,
    make_exchange,
)
from .observation import INSTRUMENTATION
from .redirects import batch_error

T = TypeVar("T")

#: Types of the result of a command that changes one key.
_PLAIN = (bool, int)


class Driver(Protocol):
    """The part of a client that is used here: see :class:`~.sync.Client`."""

    operations: Operations
    endpoints: Sequence[Endpoint]
    ignored: tuple[type[Exception], ...]

    def run(self, operation: Callable[..., Operation[T]], *args: Any) -> T:
        """Carry out an operation; return its result."""
        ...


class ResumingDriver(Driver, Protocol):
    """A client that can also continue after a first try."""

    def resume(
        self, first: FirstTry, operation: Callable[..., Operation[T]], *args: Any
    ) -> T:
        """Carry out an operation whose first request has already been tried once."""
        ...


class GeneralPath:
    """The general path: each operation by its generator.

    Parameters:
        client: the client that carries out the operations.
    """

    def __init__(self, client: Driver) -> None:
        self._run, self._operations = client.run, client.operations

    def get(self, key: str, default: Any) -> Any:
        """Return a key's value."""
        return self._run(self._operations.get, key, default)

    def set(self, key: str, value: Any, timeout: int | None) -> None:
        """Set a key."""
        self._run(self._operations.set, key, value, timeout)

    def add(self, key: str, value: Any, timeout: int | None) -> bool:
        """Set a key that is not there; return whether it was set."""
        return self._run(self._operations.add, key, value, timeout)

    def replace(self, key: str, value: Any, timeout: int | None) -> bool:
        """Set a key only if it is there; return whether it was set."""
        return self._run(self._operations.replace, key, value, timeout)

    def touch(self, key: str, timeout: int | None) -> bool:
        """Set a key's timeout; return whether it is there."""
        return self._run(self._operations.touch, key, timeout)

    def delete(self, key: str) -> bool:
        """Delete a key; return whether it was there."""
        return self._run(self._operations.delete, key)

    def has_key(self, key: str) -> bool:
        """Return whether a key is there."""
        return self._run(self._operations.has_key, key)

    def incr(self, key: str, delta: int) -> int:
        """Add to a number; return the sum.

        Raises:
            ValueError: the key is not there.
        """
        return self._run(self._operations.incr, key, delta)

    def get_many(self, keys: Sequence[str], names: Sequence[Any]) -> dict[Any, Any]:
        """Return the values of the keys that are there, by the keys' names."""
        return self._run(self._operations.get_many, keys, names)

    def set_many(
        self, keys: Sequence[str], data: Mapping[Any, Any], timeout: int | None
    ) -> list[Any]:
        """Set several keys; return the names of those that Redis refused."""
        return self._run(self._operations.set_many, keys, data, timeout)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete several keys."""
        self._run(self._operations.delete_many, keys)

    def time_to_live(self, command: str, key: str) -> int | None:
        """Return the time until a key expires."""
        return self._run(self._operations.time_to_live, command, key)

    def change_expiry(self, command: str, key: str, *amount: int) -> bool:
        """Change when a key expires; return whether it is there."""
        return self._run(self._operations.change_expiry, command, key, *amount)


class StraightPath:
    """Operations on one key, or on several in one piece.

    See :class:`~..commands.operations.Operations`.

    Parameters:
        client: the client that carries out the operations which fall back.
        read, write: exchange commands that read, and that write, for replies.
    """

    def __init__(self, client: ResumingDriver, read: Exchange, write: Exchange) -> None:
        self._client = client
        self._operations = operations = client.operations
        self._dumps, self._loads = operations.dumps, operations.loads
        self._read, self._write = read, write

    def get(self, key: str, default: Any) -> Any:
        """Return a key's value."""
        result = self._read(key, pack_get(key), value_of, VALUE)
        if type(result) is bytes:
            return self._loads(result)
        if result is None:
            return default
        return self._fall_back(result, self._operations.get, key, default)

    def set(self, key: str, value: Any, timeout: int | None) -> None:
        """Set a key."""
        packed = pack_set(key, self._dumps(value), timeout)
        result = self._write(key, packed, done_or_integer)
        if result is not True:
            self._not_set(result, key, packed)

    def _not_set(self, result: Any, key: str, packed: bytes) -> None:
        # With a timeout of 0 it is a DEL, whose reply is a number.
        if type(result) is int:
            self._operations.server.removing((key,))
        elif result is not False:
            self._fall_back(result, self._operations.set_packed, key, packed)

    def add(self, key: str, value: Any, timeout: int | None) -> bool:
        """Set a key that is not there; return whether it was set."""
        data = self._dumps(value)
        if timeout == 0:
            result = self._write(key, pack_on_key("EXISTS", key), integer, INTEGER)
            if type(result) is int:
                return not result
        else:
            result = self._write(key, pack_set(key, data, timeout, "NX"), done)
            if type(result) is bool:
                return result
        return self._fall_back(result, self._operations.add, key, value, timeout)

    def replace(self, key: str, value: Any, timeout: int | None) -> bool:
        """Set a key only if it is there; return whether it was set."""
        if timeout == 0:
            self._operations.server.removing((key,))
            result = self._write(key, pack_delete(key), integer, INTEGER)
        else:
            packed = pack_set(key, self._dumps(value), timeout, "XX")
            result = self._write(key, packed, done)
        if type(result) in _PLAIN:
            return bool(result)
        return self._fall_back(result, self._operations.replace, key, value, timeout)

    def touch(self, key: str, timeout: int | None) -> bool:
        """Set a key's timeout; return whether it is there."""
        result = MISSED  # Without a timeout it takes two commands.
        if timeout is not None:
            if timeout == 0:
                self._operations.server.removing((key,))
            result = self._write(
                key, pack_on_key("EXPIRE", key, timeout), integer, INTEGER
            )
        if type(result) is int:
            return bool(result)
        return self._fall_back(result, self._operations.touch, key, timeout)

    def delete(self, key: str) -> bool:
        """Delete a key; return whether it was there."""
        self._operations.server.removing((key,))
        result = self._write(key, pack_delete(key), integer, INTEGER)
        if type(result) is int:
            return bool(result)
        return self._fall_back(result, self._operations.delete, key)

    def has_key(self, key: str) -> bool:
        """Return whether a key is there."""
        result = self._read(key, pack_on_key("EXISTS", key), integer, INTEGER)
        if type(result) is int:
            return bool(result)
        return self._fall_back(result, self._operations.has_key, key)

    def incr(self, key: str, delta: int) -> int:
        """Add to a number; return the sum.

        Raises:
            ValueError: the key is not there.
        """
        result = MISSED
        if self._operations.server.runs_scripts:
            result = self._write(key, pack_incr(key, delta), sum_or_nothing, SUM)
        if type(result) is int:
            return result
        if result is None:
            raise no_such_key(key)
        return self._fall_back(result, self._operations.incr, key, delta)

    def get_many(self, keys: Sequence[str], names: Sequence[Any]) -> dict[Any, Any]:
        """Return the values of the keys that are there, by the keys' names."""
        if not keys:
            return {}
        result = self._read(keys[0], pack_get_many(keys), values_of(len(keys)))
        if type(result) is list:
            return self._operations.by_name(names, result)
        return self._fall_back(result, self._operations.get_many, keys, names)

    def set_many(
        self, keys: Sequence[str], data: Mapping[Any, Any], timeout: int | None
    ) -> list[Any]:
        """Set several keys; return the names of those that Redis refused."""
        if not keys:
            return []
        if timeout == 0:
            self._operations.server.removing(keys)
        values = self._operations.dumps_each(data.values())
        packed = pack_sets_in_one(keys, values, timeout)
        result = self._write(keys[0], packed, _read_sets, count=len(keys))
        if result is True:
            return []
        commands = pack_sets(keys, values, timeout)
        packed_already = self._operations.set_many_packed
        return self._fall_back(result, packed_already, commands, keys, data)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete several keys."""
        if not keys:
            return
        self._operations.server.removing(keys)
        result = self._write(
            keys[0], pack_deletes(keys), _read_deletions, count=len(keys)
        )
        if result is not True:
            self._fall_back(result, self._operations.delete_many, keys)

    def time_to_live(self, command: str, key: str) -> int | None:
        """Return the time until a key expires."""
        result = self._read(key, pack_on_key(command, key), integer, INTEGER)
        if type(result) is int:
            return time_left(result)
        return self._fall_back(result, self._operations.time_to_live, command, key)

    def change_expiry(self, command: str, key: str, *amount: int) -> bool:
        """Change when a key expires; return whether it is there."""
        if ends_at_once(command, amount, time()):
            self._operations.server.removing((key,))
        result = self._write(key, pack_on_key(command, key, *amount), integer, INTEGER)
        if type(result) is int:
            return bool(result)
        change = self._operations.change_expiry
        return self._fall_back(result, change, command, key, *amount)

    def _fall_back(
        self, result: Any, operation: Callable[..., Operation[T]], *args: Any
    ) -> T:
        """Have the client carry out an operation, after a first try or none."""
        if result is MISSED:
            return self._client.run(operation, *args)
        return self._client.resume(result, operation, *args)


def _read_sets(replies: list[Any]) -> Any:
    """Return ``True`` if all keys have been set.

    Otherwise return the error reply that speaks for all, or the parsed replies.
    """
    return all_done(replies) or _read_each(replies, done_or_integer)


def _read_deletions(replies: list[Any]) -> Any:
    """Do as :func:`_read_sets` does, for keys that have been deleted."""
    return all_integers(replies) or _read_each(replies, integer)


def _read_each(replies: list[Any], parse: Parse) -> Any:
    """Return the error reply that speaks for all, or the parsed replies."""
    parsed = Request(b"", len(replies), parse=parse).read(replies)
    return batch_error(parsed) or parsed


SingleKey = GeneralPath | StraightPath


def single_key_path(client: ResumingDriver, endpoints: Sequence[Endpoint]) -> SingleKey:
    """Return the straight path if a client's settings allow it, else the general one.

    This is decided once for each client.

    Parameters:
        client: the client.
        endpoints: the server that takes the writes, and the others that are read, if
            any.
    """
    pools = [endpoint.pool for endpoint in endpoints]
    if (
        client.ignored
        or len(pools) > 2  # The general path chooses a replica for each request.
        or not all(map(exchanges, pools))
    ):
        return GeneralPath(client)
    writer, reader = endpoints[0], endpoints[-1]
    return StraightPath(
        client,
        make_exchange(reader, INSTRUMENTATION),
        make_exchange(writer, INSTRUMENTATION),
    )
