"""The clients of a cache on a Redis Cluster (Azure's OSS cluster policy).

They carry out the operations of :mod:`.sharding` on the nodes that :mod:`.topology`
knows of, and go where nodes redirect them ("Redis cluster specification").
"""

import asyncio
from collections.abc import Awaitable, Generator, Sequence
from contextlib import ExitStack
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from ..commands.cluster import ClusterOperations
from ..commands.drivers import adrive, drive
from ..commands.operations import Operation
from ..commands.packing import pack_all
from ..commands.request import Batch, Broadcast, Request, Visit
from ..conf.options import CacheOptions
from ..connections.endpoint import Endpoint
from ..connections.event_loops import LoopConnections
from ..exceptions import (
    ClusterUnavailableError,
    ConnectionPoolTimeout,
)
from .asynchronous import AsyncCacheClient
from .cluster_observation import ASYNC_CLUSTER_SEAM, CLUSTER_SEAM
from .parts import Part
from .redirects import cluster_error
from .retry import is_final
from .sync import Client, carry_out
from .topology import get_topology

#: Redirections that one command may meet, as redis-py has it.
REDIRECTIONS = 16
#: What a node answers while the cluster changes: nothing was carried out.
CHANGING = (AskError, ClusterDownError, TryAgainError)
#: Which of these, and of a failover's errors, are worth another try.
RETRIED = (ClusterDownError, ReadOnlyError, TryAgainError)
_ASKING = pack_all([("ASKING",)])

#: A request, and the endpoint of the node that is to carry it out.
Hop = tuple[Endpoint, Request]
#: What several nodes are to carry out; ``None``: a look at the topology.
Visits = list[Visit] | None


class ClusterClient(Client):
    """What ``EntraRedisClusterCache`` does its work with.

    Parameters:
        options: what the cache's settings ask for.
    """

    seam = CLUSTER_SEAM

    def __init__(self, options: CacheOptions) -> None:
        self.topology = get_topology(options)
        first = self.topology.nodes.first
        super().__init__(options, [first], ClusterOperations, *RETRIED)

    def get_client(self, key: str | None = None, *, write: bool = False) -> Any:
        """Return redis-py's client for what Django's cache API does not have.

        Parameters:
            key, write: unused; the client finds the node itself.
        """
        return self.topology.client

    def get_lock_client(self) -> Any:
        """Return redis-py's client for locks."""
        return self.topology.client

    def endpoint_for(self, request: Request) -> Endpoint:
        """Return the node that a request for one command goes to."""
        if isinstance(request, Visit):
            return self.topology.endpoint_at(request.address)
        assert request.key is not None
        return self.topology.endpoint_of(request.key)

    def explain(self, error: RedisError) -> RedisError:
        """Return what to raise for an error of the server's."""
        if isinstance(cluster_error(error), CHANGING):
            return ClusterUnavailableError(f"The cluster is changing: {error}")
        return error

    def execute(self, request: Request) -> Any:
        """Carry out a request, repeatedly if need be and if that is safe."""
        if not self.topology.known:
            self.persist(self.topology.ensure, self.topology.catch_up)
        if isinstance(request, Batch):
            return drive(self.settle(request, self._scatter(request)), self.execute)
        if isinstance(request, Broadcast):
            return drive(self.broadcast(request), self._visit)
        return self.persist(
            lambda: drive(self.route(request), _hop), self.topology.catch_up
        )

    def execute_at(self, endpoint: Endpoint, request: Request) -> Any:
        """Do as :meth:`execute` does, which finds the nodes."""
        return self.execute(request)

    def endpoint_seen(self, request: Request) -> Endpoint:
        """Return the server in ``LOCATION``: the nodes are found later, and may be
        many."""
        return self.endpoints[0]

    def _visit(self, visits: Visits) -> Any:
        if visits is None:
            return self.topology.look()
        return [self.execute(visit) for visit in visits]

    def broadcast(
        self, request: Broadcast
    ) -> Generator[Visits, list[Any], dict[str, Any]]:
        """Yield the requests of each primary, for their replies; return these by the
        primaries' addresses."""
        addresses = list(self.topology.primaries)
        try:
            replies = yield [request.to(address) for address in addresses]
        except RedisError as error:
            if not tells_of_change(error):
                raise
            failure = error
        else:
            return dict(zip(addresses, replies, strict=True))
        yield None
        known, addresses = addresses, list(self.topology.primaries)
        if addresses == known:
            raise failure
        replies = yield [request.to(address) for address in addresses]
        return dict(zip(addresses, replies, strict=True))

    def route(self, request: Request) -> Generator[Hop, Any, Any]:
        """Yield where a request for one command is to be carried out; return the reply.

        That is one node, unless it redirects to another.
        """
        endpoint = self.endpoint_for(request)
        failure: Exception | None = None
        asking = False
        for _ in range(REDIRECTIONS):
            try:
                if asking:
                    _, reply = yield endpoint, _asking(request)
                    return request.read(_answer(reply))
                return (yield endpoint, request)
            except RedisError as error:
                failure = cluster_error(error)
            if not isinstance(failure, AskError):
                self.suspect(failure)
                raise failure
            endpoint = self.topology.follow(failure, endpoint)
            asking = not isinstance(failure, MovedError)
        raise ClusterUnavailableError(f"Nodes redirect in a circle: {failure}")

    def settle(self, batch: Batch, replies: list[Any]) -> Operation[list[Any]]:
        """Have commands carried out one by one that could not be with the others."""
        hopeless = False
        for place, reply in enumerate(replies):
            if not _is_unsettled(reply):
                continue
            if hopeless and not isinstance(cluster_error(reply), AskError):
                # One has been tried for long enough for all: the cluster is down.
                replies[place] = self.explain(reply)
                continue
            try:
                replies[place] = yield batch.single(place)
            except ResponseError as error:
                replies[place] = self.explain(error)
                hopeless = _is_unsettled(error)
        return replies

    def suspect(self, error: Exception) -> None:
        """Look at the topology anew if an error may tell of a change."""
        if tells_of_change(error):
            self.topology.refresh()

    def _scatter(self, batch: Batch) -> list[Any]:
        """Carry out commands on all their nodes at once; return the replies."""
        replies: list[Any] = [None] * batch.count
        # All were asked at once: the time spent on one counts for the others.
        waited = False
        with ExitStack() as stack:
            parts = [
                (Part(endpoint.pool), places)
                for endpoint, places in self.topology.parts(batch.keys).items()
            ]
            for part, places in parts:
                stack.enter_context(part)
                part.send(batch.part(places))
            for part, places in parts:
                got = part.receive(wait=not waited)
                waited = waited or isinstance(got, TimeoutError)
                self.place(replies, places, got)
        return replies

    def place(self, replies: list[Any], places: Sequence[int], got: Any) -> None:
        """Put the replies of a node, or its one failure, in their places."""
        if isinstance(got, Exception):
            if is_final(got):
                raise got
            self.suspect(got)
            got = [got] * len(places)
        for at, reply in zip(places, got, strict=True):
            replies[at] = reply


class AsyncClusterClient(AsyncCacheClient):
    """Carries out the operations of a cache on a cluster in an event loop.

    Parameters:
        client: the synchronous client of the same cache.
    """

    seam = ASYNC_CLUSTER_SEAM

    def __init__(self, client: ClusterClient) -> None:
        super().__init__(client)
        self.cluster = client

    async def execute(self, connections: LoopConnections, request: Request) -> Any:
        """Carry out a request, repeatedly if need be and if that is safe."""
        cluster, topology = self.cluster, self.cluster.topology

        async def again(request: Request) -> Any:
            return await self.execute(connections, request)

        async def hop(hop: Hop) -> Any:
            return await self.call(connections, *hop)

        async def visit(visits: Visits) -> Any:
            if visits is None:
                return await topology.alook()
            # Nothing is under way any more, such as a FLUSHDB, when the error is told.
            replies = await asyncio.gather(*map(again, visits), return_exceptions=True)
            for reply in replies:
                if isinstance(reply, BaseException):
                    raise reply
            return replies

        if not topology.known:
            await self.persist(topology.alook)
        if isinstance(request, Batch):
            replies = await self._scatter(connections, request)
            return await adrive(cluster.settle(request, replies), again)
        if isinstance(request, Broadcast):
            return await adrive(cluster.broadcast(request), visit)
        return await self.persist(
            lambda: adrive(cluster.route(request), hop), topology.acatch_up
        )

    def execute_at(
        self, connections: LoopConnections, endpoint: Endpoint, request: Request
    ) -> Awaitable[Any]:
        """Do as :meth:`execute` does, which finds the nodes."""
        return self.execute(connections, request)

    async def _scatter(self, connections: LoopConnections, batch: Batch) -> list[Any]:
        """Carry out commands on all their nodes at once; return the replies."""
        replies: list[Any] = [None] * batch.count
        parts = self.cluster.topology.parts(batch.keys)
        answers = await asyncio.gather(
            *(
                self.ask(connections, endpoint, batch.part(places))
                for endpoint, places in parts.items()
            ),
            return_exceptions=True,
        )
        for places, answer in zip(parts.values(), answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, RedisError):
                raise answer
            self.cluster.place(replies, places, answer)
        return replies


def tells_of_change(error: Exception) -> bool:
    """Whether an error may come of a change of the topology."""
    known = isinstance(error, AuthenticationError | ConnectionPoolTimeout)
    kinds = (ConnectionError, TimeoutError, *RETRIED)
    return isinstance(error, kinds) and not known


def _hop(hop: Hop) -> Any:
    endpoint, request = hop
    return carry_out(endpoint.pool, request)


def _asking(request: Request) -> Request:
    """Return a request for one command as a node takes it that is about to get the
    slot: what ASKING says is true of the next command alone."""
    return Request(_ASKING + request.packed, 2, once=request.once)


def _answer(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


def _is_unsettled(reply: Any) -> bool:
    """Whether a command was not carried out, or nobody knows."""
    kinds = (*CHANGING, ConnectionError, ReadOnlyError, TimeoutError)
    return isinstance(reply, Exception) and isinstance(cluster_error(reply), kinds)
