"""Instrumentation: it lets tracers, error reporters and metrics observe requests.

Such tools replace ``execute_command`` of redis-py's clients, and ``execute`` of its
pipelines, by functions of their own. The package's clients use neither, so that the
tools would see nothing. Therefore, once a tool has replaced one of them, each request
is made through that function, on a redis-py client made for this request. That client
has a pool of one connection, and where redis-py asks this connection's retry policy to
send the command, the policy has the package carry out the request instead. Without
such a tool, a request costs a comparison more.
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

from ..commands.request import Request
from ..commands.resp import PythonReader

#: Carries out a request: returns its reply, or in an event loop an awaitable of it.
CarryOut = Callable[[], Any]
Command = tuple[Any, ...]
#: Returns a context manager around a request, from its commands and the options of the
#: connections that it goes out on.
Observer = Callable[[list[Command], Mapping[str, Any]], AbstractContextManager[None]]

_observer: Observer | None = None
_instrumentations: list["Instrumentation"] = []


class Instrumentation:
    """The two functions of one kind of redis-py client that tools may have replaced.

    Parameters:
        client: redis-py's class whose ``execute_command`` carries out a command.
        pipeline: redis-py's class whose ``execute`` carries out several.
        make_client: makes a client for one request, from the pool that it seems to
            use and the function that carries out the request.
        make_pipeline: makes a pipeline for one request, from the same two and the
            commands.
        asynchronous: whether the results of both functions are awaitables.
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
        # redis-py's own functions, once they have been seen: a tool may have replaced
        # them before, and may put them back later.
        self.own_command: Any = None
        self.own_execute: Any = None
        _instrumentations.append(self)

    def observed(self) -> bool:
        """Whether a tool observes requests.

        Where speed matters, callers make the comparison themselves: while no tool
        observes, both functions are the ``own`` ones.
        """
        return (
            self.client.execute_command is not self.own_command
            or self.pipeline.execute is not self.own_execute
        ) and not self.idle()

    def idle(self) -> bool:
        """Whether no tool observes requests, found out without the ``own`` ones."""
        command, execute = self.client.execute_command, self.pipeline.execute
        if is_own(command):
            self.own_command = command
        if is_own(execute):
            self.own_execute = execute
        if _observer is not None:
            self.forget()
        return command is self.own_command and execute is self.own_execute

    def forget(self) -> None:
        """Make every comparison fail, so that callers ask :meth:`idle`."""
        self.own_command = self.own_execute = None

    def call(self, pool: Any, request: Request, carry_out: CarryOut) -> Any:
        """Carry out a request through the functions of the observing tools.

        Parameters:
            pool: the pool of the server that the tools are to see.
            request: the request.
            carry_out: carries out the request.

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
    """Enter an observer's context manager around each request; ``None`` ends that."""
    global _observer
    _observer = observer
    for instrumentation in _instrumentations:
        instrumentation.forget()


def is_own(function: Any) -> bool:
    """Whether a function is redis-py's own, not a replacement."""
    if type(function) is not FunctionType:
        return False
    # Those of a function made by exec() may have no name, or none that is text.
    module = str(function.__globals__.get("__name__"))
    return module.partition(".")[0] == "redis"


def commands_of(request: Request) -> list[Command]:
    """Return the commands of a request in the form in which redis-py takes them."""
    if not isinstance(request.command, bytes):
        return [request.command]
    found: list[Command] = []
    reader = PythonReader(Exception)
    reader.feed(request.packed)
    while isinstance(words := reader.gets(), list):
        found.append(_readable(words))
    return found


def _readable(words: list[Any]) -> Command:
    """Return a command with its name and key decoded; values stay bytes."""
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

    redis-py hands its attempt to the policy. This one drops it and has the package
    carry out the request, with the package's own retries.
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
        """Whether redis-py should reconnect: never."""
        return False


class Pool:
    """A stand-in for the connection pool of a redis-py client.

    Parameters:
        pool: the pool of the server that the tools are to see.
        carry_out: carries out the request.
    """

    def __init__(self, pool: Any, carry_out: CarryOut) -> None:
        self.connection_kwargs = pool.connection_kwargs
        self._connection = _Connection(pool, carry_out)

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Return the one connection."""
        return self._connection

    def release(self, connection: Any) -> Any:
        """Do nothing: there is no connection to release."""


class AsyncPool(Pool):
    """A stand-in for the connection pool of a redis-py asyncio client."""

    async def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Return the one connection."""
        return self._connection

    async def release(self, connection: Any) -> Any:
        """Do nothing: there is no connection to release."""


@functools.cache
def _template(kind: Any) -> Any:
    """Return a client to copy, since making a new one costs more than a command."""
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
INSTRUMENTATION = Instrumentation(
    redis.Redis,
    redis.client.Pipeline,
    _client,
    functools.partial(_pipeline, _client),
)
ASYNC_INSTRUMENTATION = Instrumentation(
    redis.asyncio.Redis,
    redis.asyncio.client.Pipeline,
    _async_client,
    functools.partial(_pipeline, _async_client),
    asynchronous=True,
)
