"""The asynchronous client: carries the cache's operations out in an event loop.

What it shares with the synchronous client of the same cache, it asks that one for.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from redis.exceptions import RedisError, ResponseError

from ..commands.drivers import adrive, clear_frames
from ..commands.operations import Operation
from ..commands.packing import pack_all
from ..commands.request import Request
from ..connections.endpoint import Endpoint
from ..connections.event_loops import LoopConnections, connections_of
from ..connections.protocol import ConnectionLostError, ReplyTimeoutError
from ..exceptions import InvalidReplyError
from .observation import ASYNC_SEAM
from .redirects import concerns_all
from .sync import Client, empty_answer, uncertain
from .tries import Tries

T = TypeVar("T")


class AsyncCacheClient:
    """Carries out the operations of a cache in an event loop.

    Parameters:
        client: the synchronous client of the same cache.
    """

    #: Where tools observe the requests of such a client.
    seam = ASYNC_SEAM

    def __init__(self, client: Client) -> None:
        self.client = client
        options = client.options
        self._native = (
            not (options.pool_class or options.parser_class)
            and options.connection.get("connection_class") is None
            and all(endpoint.multiplexes for endpoint in client.endpoints)
        )

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
        execute: Callable[[Request], Awaitable[Any]]
        if self.seam.observed():
            execute = functools.partial(self.observe, connections)
        elif connections is None:
            return await sync_to_async(client.run)(operation, *args)
        else:
            execute = functools.partial(self.execute, connections)
        try:
            result = await adrive(operation(*args), execute, client.translate)
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

    def execute(self, connections: LoopConnections, request: Request) -> Awaitable[Any]:
        """Carry out a request, repeatedly if need be and if that is safe."""
        endpoint = self.client.endpoint_seen(request)
        return self.execute_at(connections, endpoint, request)

    async def execute_at(
        self, connections: LoopConnections, endpoint: Endpoint, request: Request
    ) -> Any:
        """Do as :meth:`execute` does, with an endpoint of ``endpoint_seen()``."""
        tries = self.client.tries(request)

        async def attempt() -> Any:
            tries.begin(endpoint)
            return await self.call(connections, endpoint, request)

        try:
            reply = await self.persist(attempt)
        except RedisError as error:
            await self.give_up(tries, connections, error)
            raise
        tries.succeeded(reply)
        return reply

    async def give_up(
        self, tries: Tries, connections: LoopConnections, error: Exception
    ) -> bool:
        """Do as :meth:`Client.give_up` does, without blocking the event loop."""
        if (endpoint := tries.gave_up(error)) is None:
            return False
        well = await _answers(connections, endpoint, tries.patience)
        tries.second_opinion(well)
        return not well

    async def observe(
        self, connections: LoopConnections | None, request: Request
    ) -> Any:
        """Do as :meth:`execute` does, through what tools have made of redis-py.

        Parameters:
            connections: the loop's; ``None`` to carry it out in a thread.
        """
        client, endpoint = self.client, self.client.endpoint_seen(request)

        def carry_out() -> Awaitable[Any]:
            if connections is None:
                return sync_to_async(client.execute_at)(endpoint, request)
            return self.execute_at(connections, endpoint, request)

        return await self.seam.call(endpoint.pool, request, carry_out)

    async def call(
        self, connections: LoopConnections, endpoint: Endpoint, request: Request
    ) -> Any:
        """Carry out a request once, on the loop's connection to an endpoint."""
        try:
            reply = await self.ask(connections, endpoint, request)
        except (ConnectionLostError, ReplyTimeoutError, InvalidReplyError) as error:
            if not (request.once and getattr(error, "sent", True)):
                raise
            doubt = uncertain(request, error)
        else:
            if request.count and (failure := concerns_all(reply)):
                raise failure
            return reply
        raise doubt

    async def ask(
        self, connections: LoopConnections, endpoint: Endpoint, request: Request
    ) -> Any:
        """Send commands; return what the reply, or the replies, say."""
        reply = await connections.to(endpoint).call(request.packed, request.count)
        try:
            return request.read(reply)
        except InvalidReplyError:
            # What comes after it may be no better.
            connections.close(endpoint)
            raise

    async def persist(
        self,
        attempt: Callable[[], Awaitable[T]],
        before_retry: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Do as :meth:`Client.persist` does, without blocking the event loop."""
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


async def _answers(
    connections: LoopConnections, endpoint: Endpoint, patience: float
) -> bool:
    """Return whether a server answers on the loop's next connection, after one that has
    broken."""
    try:
        async with asyncio.timeout(patience):
            await connections.to(endpoint).call(pack_all([("PING",)]))
    except ResponseError:
        return True  # It may not be asked that, but it answers.
    except (RedisError, TimeoutError):
        return False
    return True
