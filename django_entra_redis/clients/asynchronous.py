"""The asynchronous client: carries out a cache's operations in an event loop.

It wraps the synchronous client of the same cache, which has the settings, the endpoints
and the decisions; this module has what awaits.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from redis.exceptions import RedisError, ResponseError

from ..commands.drivers import adrive, clear_frames
from ..commands.operations import Operation
from ..commands.packing import pack_all, pack_get, pack_set
from ..commands.replies import VALUE, done_or_integer, value_of
from ..commands.request import Request
from ..connections.endpoint import Endpoint
from ..connections.event_loops import LoopConnections, connections_of
from ..connections.idle_exchange import FirstTry
from ..connections.memory import SMALL, keep_memory
from ..connections.multiplexed import MultiplexedConnection
from ..connections.protocol import (
    ConnectionLostError,
    RedisProtocol,
    ReplyTimeoutError,
)
from ..exceptions import InvalidReplyError
from .attempts import Attempts
from .observation import ASYNC_INSTRUMENTATION
from .redirects import batch_error
from .sync import CacheClient, Client, empty_answer, uncertain

T = TypeVar("T")


class AsyncCacheClient:
    """Carries out the operations of a cache in an event loop.

    Parameters:
        client: the synchronous client of the same cache.
    """

    #: The redis-py class by which tools observe the requests of this client.
    instrumentation = ASYNC_INSTRUMENTATION

    def __init__(self, client: Client) -> None:
        self.client = client
        options = client.options
        # Whether an event loop's own connections can do all that the settings ask for.
        # Otherwise the synchronous client does the work in a thread.
        self._native = (
            not (options.pool_class or options.parser_class)
            and options.connection.get("connection_class") is None
            and all(endpoint.multiplexes for endpoint in client.endpoints)
        )
        # Whether the first attempt at a request takes no more than the loop's
        # connection. Subclasses have more to do; which of several replicas reads is
        # drawn anew for each request.
        self._direct = (
            type(self) is AsyncCacheClient
            and type(client) is CacheClient
            and len(client.endpoints) <= 2
        )
        self._primary, self._reader = client.endpoints[0], client.endpoints[-1]

    # -- the operations that are carried out most, in one coroutine ------------------

    async def get(self, key: str, default: Any) -> Any:
        """Return a key's value: what :meth:`run` does with the operation ``get``."""
        operations, endpoint = self.client.operations, self._reader
        ready = self._ready(endpoint)
        if ready is None:
            return await self.run(operations.get, key, default)
        # From here on as in _drive(), without a generator and a request.
        connections, connection, protocol = ready
        began = monotonic()
        try:
            reply = await protocol.submit(pack_get(key))
            if type(reply) not in VALUE:
                reply = value_of(connection.take(protocol, reply, 0))
        except RedisError as error:
            _distrust(connections, endpoint, error)
            first = FirstTry(endpoint, error, began)
        else:
            endpoint.outages.heard(began)
            if reply is None:
                return default
            if len(reply) > SMALL:
                keep_memory(len(reply))
            return operations.loads(reply)
        return await self._resume(connections, first, operations.get, key, default)

    async def set(self, key: str, value: Any, timeout: int | None) -> None:
        """Set a key: what :meth:`run` does with the operation ``set``."""
        operations, endpoint = self.client.operations, self._primary
        ready = self._ready(endpoint)
        if ready is None:
            await self.run(operations.set, key, value, timeout)
            return
        connections, connection, protocol = ready
        packed = pack_set(key, operations.dumps(value), timeout)
        began = monotonic()
        try:
            reply = await protocol.submit(packed)
            if reply != b"OK":
                done = done_or_integer(connection.take(protocol, reply, 0))
                if type(done) is int:  # With a timeout of 0 it is a DEL.
                    operations.server.removing((key,))
        except RedisError as error:
            _distrust(connections, endpoint, error)
            first = FirstTry(endpoint, error, began)
        else:
            endpoint.outages.heard(began)
            return
        await self._resume(connections, first, operations.set_packed, key, packed)

    def _ready(
        self, endpoint: Endpoint
    ) -> tuple[LoopConnections, MultiplexedConnection, RedisProtocol] | None:
        """Return the connection of the running loop to a server, if a command can go
        straight to it."""
        instrumentation = self.instrumentation
        if (
            not self._direct
            or not self._native
            or self.client.ignored
            or instrumentation.client.execute_command is not instrumentation.own_command
            or endpoint.outages.any
        ):
            return None
        connections = connections_of(asyncio.get_running_loop())
        if not connections.open:
            return None
        connection = connections.to(endpoint)
        protocol = connection.ready
        return None if protocol is None else (connections, connection, protocol)

    async def _resume(
        self,
        connections: LoopConnections,
        first: FirstTry,
        operation: Callable[..., Operation[T]],
        *args: Any,
    ) -> T:
        """Carry out an operation whose first request has failed once already.

        Parameters:
            connections: the loop's connections.
            first: the failed attempt, which counts for the retry policy.
            operation, args: see :meth:`run`.
        """
        generator = operation(*args)
        try:
            request = next(generator)
            return await self._carry_on(connections, generator, request, [first])
        except BaseException as error:
            clear_frames(error)
            raise

    # -- any operation ---------------------------------------------------------------

    async def run(self, operation: Callable[..., Operation[T]], *args: Any) -> T:
        """Carry out an operation; return its result.

        Raises:
            What :meth:`Client.run` raises.
        """
        client = self.client
        connections = (
            connections_of(asyncio.get_running_loop()) if self._native else None
        )
        if connections and not (connections.open or await connections.count()):
            connections = None
        execute: Callable[[Request], Awaitable[Any]] | None = None
        if self.instrumentation.observed():
            execute = functools.partial(self.observe, connections)
        elif connections is None:
            return await sync_to_async(client.run)(operation, *args)
        elif not self._direct:
            execute = functools.partial(self.execute, connections)
        try:
            if execute is not None:
                result = await adrive(operation(*args), execute, client.translate)
            else:
                assert connections is not None
                result = await self._drive(connections, operation(*args))
        except client.ignored as error:
            clear_frames(error)
            client.note_ignored(error)
        except BaseException as error:
            clear_frames(error)
            raise
        else:
            client.note_success()
            return result
        answer: T = empty_answer(operation, *args)
        return answer

    async def _drive(self, connections: LoopConnections, generator: Operation[T]) -> T:
        """Drive an operation, whose first request goes straight to the connection.

        To await a reply through as many coroutines as retries and outages take costs
        more than the request. They come in when that first attempt has failed.
        """
        client = self.client
        made: list[FirstTry] = []
        try:
            request = next(generator)
            endpoint = client.endpoint_for(request)
            connection = connections.to(endpoint)
            protocol = None if endpoint.outages.any else connection.ready
            if protocol is not None:
                began = monotonic()
                try:
                    reply = await protocol.submit(request.packed, request.count)
                    if request.count or isinstance(reply, Exception):
                        reply = connection.take(protocol, reply, request.count)
                    reply = request.read(reply)
                    if request.count:
                        attempts = client.attempts(request)
                        attempts.begun(endpoint, began)
                        _check_batch(reply)
                        attempts.succeeded(reply)
                    else:
                        endpoint.outages.heard(began)
                except RedisError as error:
                    _distrust(connections, endpoint, error)
                    made.append(
                        FirstTry(endpoint, _error_to_raise(request, error), began)
                    )
                else:
                    request = generator.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result
        return await self._carry_on(connections, generator, request, made)

    async def _carry_on(
        self,
        connections: LoopConnections,
        generator: Operation[T],
        request: Request,
        made: list[FirstTry],
    ) -> T:
        """Drive an operation from a request on.

        Parameters:
            made: a failed attempt at that request, or nothing.
        """
        client = self.client

        def execute(request: Request) -> Awaitable[Any]:
            endpoint = client.endpoint_for(request)
            return self._execute(connections, endpoint, request, made)

        return await adrive(generator, execute, client.translate, request)

    def execute(self, connections: LoopConnections, request: Request) -> Awaitable[Any]:
        """Carry out a request; retry it where the retry policy allows that."""
        endpoint = self.client.reported_endpoint(request)
        return self.execute_at(connections, endpoint, request)

    async def execute_at(
        self, connections: LoopConnections, endpoint: Endpoint, request: Request
    ) -> Any:
        """Carry out a request as :meth:`execute` does, on a given server."""
        return await self._execute(connections, endpoint, request, [])

    async def _execute(
        self,
        connections: LoopConnections,
        endpoint: Endpoint,
        request: Request,
        made: list[FirstTry],
    ) -> Any:
        """Carry out a request on a given server.

        Parameters:
            made: a failed attempt that was made already, or nothing. It is removed, so
                that the operation's next request begins without it.
        """
        attempts = self.client.attempts(request)

        async def attempt() -> Any:
            if made:
                first = made.pop()
                attempts.begun(first.endpoint, first.began)
                raise first.take()
            attempts.begin(endpoint)
            return await self.call(connections, endpoint, request)

        try:
            reply = await self.with_retries(attempt)
        except RedisError as error:
            await self.give_up(attempts, connections, error)
            raise
        attempts.succeeded(reply)
        return reply

    async def give_up(
        self, attempts: Attempts, connections: LoopConnections, error: Exception
    ) -> bool:
        """Do as :meth:`Client.give_up` does, without blocking the event loop."""
        if (endpoint := attempts.gave_up(error)) is None:
            return False
        well = await _answers(connections, endpoint, attempts.second_opinion_timeout)
        attempts.second_opinion(well)
        return not well

    async def observe(
        self, connections: LoopConnections | None, request: Request
    ) -> Any:
        """Carry out a request as :meth:`execute` does, visible to observing tools.

        Parameters:
            connections: the loop's connections; ``None``: the synchronous client
                carries the request out in a thread.
            request: the request.
        """
        client, endpoint = self.client, self.client.reported_endpoint(request)

        def carry_out() -> Awaitable[Any]:
            if connections is None:
                return sync_to_async(client.execute_at)(endpoint, request)
            return self.execute_at(connections, endpoint, request)

        return await self.instrumentation.call(endpoint.pool, request, carry_out)

    async def call(
        self, connections: LoopConnections, endpoint: Endpoint, request: Request
    ) -> Any:
        """Carry out a request once, on the loop's connection to an endpoint."""
        try:
            reply = await self.ask(connections, endpoint, request)
        except (ConnectionLostError, ReplyTimeoutError, InvalidReplyError) as error:
            doubt = _error_to_raise(request, error)
            if doubt is error:
                raise
        else:
            if request.count:
                _check_batch(reply)
            return reply
        raise doubt

    async def ask(
        self, connections: LoopConnections, endpoint: Endpoint, request: Request
    ) -> Any:
        """Send a request; return its parsed reply, or replies."""
        reply = await connections.to(endpoint).call(request.packed, request.count)
        try:
            return request.read(reply)
        except InvalidReplyError:
            # The bytes that follow can't be trusted either.
            connections.close(endpoint)
            raise

    async def with_retries(
        self,
        attempt: Callable[[], Awaitable[T]],
        before_retry: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Do as :meth:`Client.with_retries` does, without blocking the event loop."""
        failures = 0
        while True:
            try:
                return await attempt()
            except RedisError as error:
                failures += 1
                pause = self.client.policy.pause(error, failures)
                clear_frames(error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)
            if before_retry is not None:
                await before_retry()


def _distrust(
    connections: LoopConnections, endpoint: Endpoint, error: Exception
) -> None:
    """Close the connection after an invalid reply: the bytes that follow can't be
    trusted either."""
    if isinstance(error, InvalidReplyError):
        connections.close(endpoint)


def _check_batch(replies: Sequence[Any]) -> None:
    """Raise the error reply that speaks for a whole batch, if there is one."""
    if failure := batch_error(replies):
        raise failure


def _error_to_raise(request: Request, error: Exception) -> Exception:
    """Return the error to raise for a request that failed; see
    :func:`.sync.error_to_raise`, which knows no event loop's errors."""
    broken = isinstance(
        error, ConnectionLostError | ReplyTimeoutError | InvalidReplyError
    )
    if broken and request.once and getattr(error, "sent", True):
        return uncertain(request, error)
    return error


async def _answers(
    connections: LoopConnections, endpoint: Endpoint, timeout: float
) -> bool:
    """Return whether a server answers on a new connection of the loop.

    Parameters:
        connections: the loop's connections, of which the last one has been closed.
        endpoint: the server.
        timeout: seconds to wait for the answer.
    """
    try:
        async with asyncio.timeout(timeout):
            await connections.to(endpoint).call(pack_all([("PING",)]))
    except ResponseError:
        return True  # PING may be forbidden to this user, but the server answers.
    except (RedisError, TimeoutError):
        return False
    return True
