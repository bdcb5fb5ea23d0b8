"""The straight path: operations that take a command and its reply each, in one call.

:mod:`..commands.operations` describes each operation, for every kind of client, as a
generator of requests; to drive it costs more than to pack a command. Where the first
request of an operation is all that there is to it, :class:`StraightPath` packs the same
bytes, has them exchanged on an idle connection, and reads the same answer out of the
reply; so with the commands of
``set_many()``, in one piece. Whatever else there is falls back to the generator: no
connection that could be used as it is, tools that observe redis-py, an error, a retry,
a refusal. A test drives both, and compares bytes, answers and errors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .._errors import without_frames
from ..commands.operations import Operation, Operations, no_such_key, pack_incr
from ..commands.packing import (
    pack_delete,
    pack_exists,
    pack_expire,
    pack_get,
    pack_get_many,
    pack_set,
    pack_sets,
)
from ..commands.replies import (
    Parse,
    all_done,
    done,
    done_or_integer,
    integer,
    sum_or_nothing,
    value_of,
    values_of,
)
from ..commands.request import Request
from ..connections.endpoint import Endpoint
from ..connections.pool import MISSED, ConnectionPool
from .observation import SEAM
from .redirects import batch_error

T = TypeVar("T")
Ask = Callable[..., Any]

#: Bytes of a command at most: more may not go out in one piece.
LONGEST = 64 * 1024
#: Of several commands together: no server refuses a value that is smaller.
LONGEST_OF_MANY = 512 * 1024
#: What is said by a reply to a command that changes one key.
_PLAIN = (bool, int)
#: And by any reply that is no failure.
_SAID = frozenset((bool, bytes, int, list, type(None)))


@dataclass(slots=True)
class FirstTry:
    """A try of a request whose operation is not done with it.

    Parameters:
        came: what went wrong, or the replies, some of which tell of errors.
        began: when it began, as ``time.monotonic()`` has it.
    """

    came: Any
    began: float

    def take(self) -> Any:
        """Return what came of it, once: as an error is raised, the frames that it comes
        through hold this, which must not hold it."""
        came, self.came = self.came, None
        return without_frames(came) if isinstance(came, Exception) else came


class Driver(Protocol):
    """What a client is asked for: see :class:`~.sync.Client`."""

    operations: Operations
    endpoints: Sequence[Endpoint]
    ignored: tuple[type[Exception], ...]

    def run(self, operation: Callable[..., Operation[T]], *args: Any) -> T:
        """Carry out an operation; return its result."""
        ...


class ResumingDriver(Driver, Protocol):
    """A client of one server, which can also go on after a try that has failed."""

    def resume(
        self, first: FirstTry, operation: Callable[..., Operation[T]], *args: Any
    ) -> T:
        """Carry out an operation whose first request has been tried once."""
        ...


class GeneralPath:
    """Single-key operations, each with the generator that describes it.

    Parameters:
        client: carries them out.
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


class StraightPath:
    """Operations on one key, or on several in one piece.

    See :class:`~..commands.operations.Operations`.

    Parameters:
        client: carries out what falls back.
    """

    def __init__(self, client: ResumingDriver) -> None:
        self._client = client
        self._operations = operations = client.operations
        self._dumps, self._loads = operations.dumps, operations.loads
        self._write = _make_ask(client.endpoints[0])
        self._read = _make_ask(client.endpoints[-1])

    def get(self, key: str, default: Any) -> Any:
        """Return a key's value."""
        said = self._read(pack_get(key), value_of)
        if type(said) is bytes:
            return self._loads(said)
        if said is None:
            return default
        return self._fall_back(said, self._operations.get, key, default)

    def set(self, key: str, value: Any, timeout: int | None) -> None:
        """Set a key."""
        packed = pack_set(key, self._dumps(value), timeout)
        said = self._write(packed, done_or_integer)
        # DEL answers with a number.
        if type(said) not in _PLAIN:
            self._fall_back(said, self._operations.set, key, value, timeout)

    def add(self, key: str, value: Any, timeout: int | None) -> bool:
        """Set a key that is not there; return whether it was set."""
        data = self._dumps(value)
        if timeout == 0:
            said = self._write(pack_exists(key), integer)
            if type(said) is int:
                return not said
        else:
            said = self._write(pack_set(key, data, timeout, "NX"), done)
            if type(said) is bool:
                return said
        return self._fall_back(said, self._operations.add, key, value, timeout)

    def replace(self, key: str, value: Any, timeout: int | None) -> bool:
        """Set a key only if it is there; return whether it was set."""
        if timeout == 0:
            said = self._write(pack_delete(key), integer)
        else:
            packed = pack_set(key, self._dumps(value), timeout, "XX")
            said = self._write(packed, done)
        if type(said) in _PLAIN:
            return bool(said)
        return self._fall_back(said, self._operations.replace, key, value, timeout)

    def touch(self, key: str, timeout: int | None) -> bool:
        """Set a key's timeout; return whether it is there."""
        said = MISSED  # Without a timeout it takes two commands.
        if timeout is not None:
            said = self._write(pack_expire(key, timeout), integer)
        if type(said) is int:
            return bool(said)
        return self._fall_back(said, self._operations.touch, key, timeout)

    def delete(self, key: str) -> bool:
        """Delete a key; return whether it was there."""
        said = self._write(pack_delete(key), integer)
        if type(said) is int:
            return bool(said)
        return self._fall_back(said, self._operations.delete, key)

    def has_key(self, key: str) -> bool:
        """Return whether a key is there."""
        said = self._read(pack_exists(key), integer)
        if type(said) is int:
            return bool(said)
        return self._fall_back(said, self._operations.has_key, key)

    def incr(self, key: str, delta: int) -> int:
        """Add to a number; return the sum.

        Raises:
            ValueError: the key is not there.
        """
        said = MISSED
        if self._operations.server.runs_scripts:
            said = self._write(pack_incr(key, delta), sum_or_nothing)
        if type(said) is int:
            return said
        if said is None:
            raise no_such_key(key)
        return self._fall_back(said, self._operations.incr, key, delta)

    def get_many(self, keys: Sequence[str], names: Sequence[Any]) -> dict[Any, Any]:
        """Return the values of the keys that are there, by the keys' names."""
        if not keys:
            return {}
        said = self._read(pack_get_many(keys), values_of(len(keys)))
        if type(said) is list:
            return self._operations.by_name(names, said)
        return self._fall_back(said, self._operations.get_many, keys, names)

    def set_many(
        self, keys: Sequence[str], data: Mapping[Any, Any], timeout: int | None
    ) -> list[Any]:
        """Set several keys; return the names of those that Redis refused."""
        if not keys:
            return []
        commands = pack_sets(keys, map(self._dumps, data.values()), timeout)
        said = self._write(b"".join(commands), _read_sets, len(keys))
        if said is True:
            return []
        return self._fall_back(said, self._operations.set_many, keys, data, timeout)

    def _fall_back(
        self, said: Any, operation: Callable[..., Operation[T]], *args: Any
    ) -> T:
        """Have the client carry out an operation, of which one try may have failed."""
        if said is MISSED:
            return self._client.run(operation, *args)
        return self._client.resume(said, operation, *args)


def _read_sets(replies: list[Any]) -> Any:
    """Return ``True`` if all keys have been set; else the error reply that stands for
    all, or all replies, read."""
    if all_done(replies):
        return True
    request = Request(b"", len(replies), parse=done_or_integer)
    return batch_error(replies) or request.read(replies)


def _make_ask(endpoint: Endpoint) -> Ask:
    """Return what has commands answered, if that takes no more than an idle
    connection: it returns what :meth:`ConnectionPool.exchange` does, what is more than
    an answer as a :class:`FirstTry`."""
    exchange, clock = endpoint.pool.exchange, endpoint.pool.clock
    seam, outages = SEAM, endpoint.outages

    def ask(packed: bytes, parse: Parse, count: int = 0) -> Any:
        if (
            # Tools observe, or nobody has looked yet whether they do.
            seam.client.execute_command is not seam.own_command
            or (count and seam.pipeline.execute is not seam.own_execute)
            # The server is down, and somebody else is asking already.
            or outages.any
            # It may hang up meanwhile, and say why before that.
            or len(packed) > (LONGEST_OF_MANY if count else LONGEST)
        ):
            return MISSED
        began = clock()
        said = exchange(packed, parse, began, count)
        if type(said) in _SAID and not (count and said is not True):
            outages.answered_at = began
            return said
        return said if said is MISSED else FirstTry(said, began)

    return ask


SingleKey = GeneralPath | StraightPath


def single_key_path(client: ResumingDriver) -> SingleKey:
    """Return the straight path where a client's requests need no more than a command
    and a reply, else the general one.

    It is decided once, as the client is made.
    """
    pools = [endpoint.pool for endpoint in client.endpoints]
    if (
        client.ignored
        or len(pools) > 2  # Which replica reads is drawn anew for each request.
        or not all(type(pool) is ConnectionPool and pool.exchanges for pool in pools)
    ):
        return GeneralPath(client)
    return StraightPath(client)
