"""The seam for tools that observe redis-py: tracers, error reporters, metrics.

Such tools replace ``execute_command`` of redis-py's clients and ``execute`` of its
pipelines by functions of their own. Where one has, each request goes through that
function as if redis-py carried it out: the client that it is called on has a pool of
one connection, whose retry policy carries the request out as it always is. Where they
are redis-py's own, nothing of this runs but a comparison.
"""

import copy
import functools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.client
import redis.client

from ..commands.request import Batch, Request
from ..commands.resp import PythonReader

#: Carries a request out: returns its reply, or in an event loop an awaitable of it.
CarryOut = Callable[[], Any]
Command = tuple[Any, ...]
#: Returns a context manager around a request, from its commands and the options of the
#: connections that it goes out on.
Observer = Callable[[list[Command], Mapping[str, Any]], AbstractContextManager[None]]

_observer: Observer | None = None
_seams: list["Seam"] = []


class Seam:
    """What redis-py has for one kind of client, and whether tools have replaced it.

    Parameters:
        client: redis-py's class whose ``execute_command`` carries a command out.
        pipeline: the one whose ``execute`` carries several out.
        make_client: returns a client for one request, from the pool that it seems to
            use and from what carries the request out.
        make_pipeline: returns a pipeline for one request, from the same and the
            commands.
        asynchronous: whether what these return is to be awaited.
    """

    __slots__ = (
        "asynchronous",
        "client",
        "make_client",
        "make_pipeline",
        "own_command",
        "own_execute",
        "pipeline",
    )

    def __init__(
        self,
        client: Any,
        pipeline: Any,
        make_client: Callable[[Any, CarryOut], Any],
        make_pipeline: Callable[[Any, CarryOut, list[Command]], Any],
        *,
        asynchronous: bool = False,
    ) -> None:
        self.asynchronous = asynchronous
        self.client = client
        self.pipeline = pipeline
        self.make_client = make_client
        self.make_pipeline = make_pipeline
        # Redis-py's own functions, as far as they have been seen: tools may have been
        # here before, and may go again.
        self.own_command: Any = None
        self.own_execute: Any = None
        _seams.append(self)

    def observed(self) -> bool:
        """Whether anybody observes.

        Callers in a hurry make the comparison themselves: while nobody does, both
        functions are the ``own`` ones.
        """
        return (
            self.client.execute_command is not self.own_command
            or self.pipeline.execute is not self.own_execute
        ) and not self.idle()

    def idle(self) -> bool:
        """Whether nobody observes, found out from the beginning."""
        command, execute = self.client.execute_command, self.pipeline.execute
        if is_own(command):
            self.own_command = command
        if is_own(execute):
            self.own_execute = execute
        if _observer is not None:
            self.forget()
        return command is self.own_command and execute is self.own_execute

    def forget(self) -> None:
        """Have everybody ask :meth:`idle` who compares."""
        self.own_command = self.own_execute = None

    def call(self, pool: Any, request: Request, carry_out: CarryOut) -> Any:
        """Carry a request out through the functions of those who observe.

        Parameters:
            pool: where the request seems to go.
            request: what is carried out.
            carry_out: does it.

        Returns:
            The reply, or in an event loop an awaitable of it.
        """
        commands, observer = commands_of(request), _observer

        def through() -> Any:
            if request.count:
                return self.make_pipeline(pool, carry_out, commands).execute()
            return self.make_client(pool, carry_out).execute_command(*commands[0])

        if observer is None:
            return through()
        within = observer(commands, pool.connection_kwargs)
        if self.asynchronous:
            return _await_within(within, through)
        with within:
            return through()


async def _await_within(
    within: AbstractContextManager[None], through: Callable[[], Awaitable[Any]]
) -> Any:
    with within:
        return await through()


def observe_with(observer: Observer | None) -> None:
    """Have a context manager around each request from now on; ``None`` ends that."""
    global _observer
    _observer = observer
    for seam in _seams:
        seam.forget()


def is_own(function: Any) -> bool:
    """Whether a function is redis-py's, and no replacement."""
    if type(function) is not FunctionType:
        return False
    module: str = function.__globals__["__name__"]
    return module.partition(".")[0] == "redis"


def commands_of(request: Request) -> list[Command]:
    """Return the commands of a request as redis-py's callers give them."""
    packed = request.commands if isinstance(request, Batch) else [request.command]
    found: list[Command] = []
    for command in packed:
        if not isinstance(command, bytes):
            found.append(command)
            continue
        reader = PythonReader(Exception)
        reader.feed(command)
        while isinstance(words := reader.gets(), list):
            found.append(_readable(words))
    return found


def _readable(words: list[Any]) -> Command:
    """Return a command with its name and its key as text; values stay bytes."""
    name, *arguments = words
    if arguments:
        arguments[0] = _text(arguments[0])
    return (_text(name), *arguments)


def _text(word: bytes) -> str | bytes:
    try:
        return word.decode()
    except UnicodeDecodeError:
        return word


class _Connection:
    """The one connection of a pool, which is also its own retry policy.

    redis-py asks the policy to carry out its attempt, and gets the request carried out
    in its stead, with the retries that this package makes.
    """

    def __init__(self, pool: Any, carry_out: CarryOut) -> None:
        options = pool.connection_kwargs
        self.host = options.get("host")
        self.port = options.get("port")
        self.db = options.get("db") or 0
        self.retry = self
        self._carry_out = carry_out

    def call_with_retry(self, *args: Any, **kwargs: Any) -> Any:
        """Carry out the request."""
        return self._carry_out()

    def should_reconnect(self) -> bool:
        """Whether the connection is to be made anew; never."""
        return False


class Pool:
    """Looks to a client like the pool of its connections.

    Parameters:
        pool: the pool that the request seems to go to.
        carry_out: carries it out.
    """

    def __init__(self, pool: Any, carry_out: CarryOut) -> None:
        self.connection_kwargs = pool.connection_kwargs
        self._connection = _Connection(pool, carry_out)

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Return the one connection."""
        return self._connection

    def release(self, connection: Any) -> Any:
        """Do nothing: the connection is none."""


class AsyncPool(Pool):
    """The same for an asyncio client."""

    async def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Return the one connection."""
        return self._connection

    async def release(self, connection: Any) -> Any:
        """Do nothing: the connection is none."""


@functools.cache
def _template(kind: Any) -> Any:
    """Return a client to copy: to make one costs more than the command."""
    return kind(connection_pool=Pool(redis.ConnectionPool(), tuple))


def _client(pool: Any, carry_out: CarryOut) -> Any:
    client = copy.copy(_template(redis.Redis))
    client.connection_pool = Pool(pool, carry_out)
    return client


def _async_client(pool: Any, carry_out: CarryOut) -> Any:
    client = copy.copy(_template(redis.asyncio.Redis))
    client.connection_pool = AsyncPool(pool, carry_out)
    return client


def _pipeline(
    make_client: Callable[[Any, CarryOut], Any],
    pool: Any,
    carry_out: CarryOut,
    commands: list[Command],
) -> Any:
    pipeline = make_client(pool, carry_out).pipeline(transaction=False)
    pipeline.command_stack = [(command, {}) for command in commands]
    return pipeline


#: Clients of one server, in threads and in event loops.
SEAM = Seam(
    redis.Redis,
    redis.client.Pipeline,
    _client,
    functools.partial(_pipeline, _client),
)
ASYNC_SEAM = Seam(
    redis.asyncio.Redis,
    redis.asyncio.client.Pipeline,
    _async_client,
    functools.partial(_pipeline, _async_client),
    asynchronous=True,
)
