"""The clients of a cache on a Redis Cluster (Azure's OSS cluster policy).

They send the requests of :mod:`..commands.cluster` to the nodes that :mod:`.topology`
names, and follow the redirections of these ("Redis cluster specification").
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from django.utils.functional import cached_property
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

from .._errors import without_frames
from ..commands.cluster import ClusterOperations
from ..commands.drivers import adrive, drive
from ..commands.operations import Operation
from ..commands.packing import pack_all
from ..commands.replies import has_error
from ..commands.request import Batch, Broadcast, Request, Visit
from ..conf.options import CacheOptions
from ..connections.endpoint import Endpoint
from ..connections.event_loops import LoopConnections
from ..connections.idle_exchange import FirstTry
from ..connections.outage import OUTAGE_ERRORS
from ..exceptions import (
    ClusterUnavailableError,
    ConnectionPoolTimeout,
    ServerDownError,
)
from .asynchronous import AsyncCacheClient
from .attempts import Attempts
from .cluster_observation import ASYNC_CLUSTER_INSTRUMENTATION, CLUSTER_INSTRUMENTATION
from .node_batch import NodeBatch
from .redirects import cluster_error
from .retry import is_final
from .straight import SingleKey
from .straight_cluster import ClusterPath
from .sync import Client
from .topology import get_topology

T = TypeVar("T")

#: Redirections that one command follows at most: as many as redis-py follows.
REDIRECTIONS = 16
#: Error replies while the cluster changes: the command has not been carried out.
CHANGING = (AskError, ClusterDownError, TryAgainError)
#: Error replies of a changing cluster, or of a failover, after which a request is
#: retried.
RETRIED = (ClusterDownError, ReadOnlyError, TryAgainError)
_ASKING = pack_all([("ASKING",)])

#: A request, and the endpoint of the node that it is sent to.
Hop = tuple[Endpoint, Request]
#: Requests for several nodes; ``None``: discover the topology anew.
Visits = list[Visit] | None


class ClusterClient(Client):
    """The synchronous client of ``EntraRedisClusterCache``.

    Parameters:
        options: the cache's settings.
    """

    instrumentation = CLUSTER_INSTRUMENTATION

    def __init__(self, options: CacheOptions) -> None:
        self.topology = get_topology(options)
        first = self.topology.nodes.first
        super().__init__(options, [first], ClusterOperations, *RETRIED)

    def get_client(self, key: str | None = None, *, write: bool = False) -> Any:
        """Return a redis-py client, for commands that Django's cache API lacks.

        Parameters:
            key, write: unused; the client finds the node itself.
        """
        return self.topology.client

    def get_lock_client(self) -> Any:
        """Return a redis-py client for locks."""
        return self.topology.client

    def note_ignored(self, error: Exception) -> None:
        """Note that an operation got the answer of an empty cache."""
        if self.topology.known and isinstance(error, ClusterUnavailableError):
            self.topology.outages.failed(
                error, began=time.monotonic(), tries=1, command="", covered=True
            )

    def note_success(self) -> None:
        """Note that an operation has been carried out."""
        if self.topology.outages.any:
            self.topology.outages.answered(write=False)

    def endpoint_for(self, request: Request) -> Endpoint:
        """Return the node that a request for one command is sent to first."""
        if isinstance(request, Visit):
            return self.topology.endpoint_at(request.address)
        assert request.key is not None
        return self.topology.endpoint_of(request.key)

    def translate(self, error: RedisError) -> RedisError:
        """Translate an error reply of a changing cluster into the package's error."""
        if isinstance(cluster_error(error), CHANGING):
            return ClusterUnavailableError(f"The cluster is changing: {error}")
        return error

    @cached_property
    def single_key(self) -> SingleKey:
        """The path that operations on a single key take."""
        # A subclass may override `run()`, which the straight path does not call.
        ordinary = type(self) is ClusterClient and not self.ignored
        return ClusterPath(self, self.topology) if ordinary else super().single_key

    def carry_on(
        self, endpoint: Endpoint, request: Request, made: list[FirstTry]
    ) -> Any:
        """Carry out a request on the nodes that have its keys; ignore the endpoint.

        See :meth:`Client.carry_on`.
        """
        if not self.topology.known:
            with self.first_discovery():
                self.with_retries(self.topology.ensure, self.topology.catch_up)
        if isinstance(request, Batch):
            replies = self._rechecked(lambda: self._scatter(request))
            return drive(self.retry_errors(request, replies), self.execute)
        if isinstance(request, Broadcast):
            return drive(self.broadcast(request), self._visit)
        attempts = self.attempts(request)

        def hop(hop: Hop) -> Any:
            return self.attempt(attempts, *hop, made)

        try:
            reply = self.with_retries(
                lambda: self._rechecked(lambda: drive(self.route(request), hop)),
                self.topology.catch_up,
            )
        except RedisError as error:
            self.give_up(attempts, error)
            raise
        attempts.succeeded(reply)
        return reply

    @contextmanager
    def first_discovery(self) -> Iterator[None]:
        """Note whether the discovery of the nodes, in the context, succeeds.

        Raises:
            ServerDownError: it has just failed, and another request is trying again.
        """
        outages = self.topology.outages
        began = outages.enter()
        try:
            yield
        except OUTAGE_ERRORS as error:
            covered = bool(self.ignored)
            # Each node was asked several times: two tries or more count as down.
            outages.failed(error, began=began, tries=2, command="", covered=covered)
            raise
        outages.answered(write=False)

    def _rechecked(self, attempt: Callable[[], T]) -> T:
        """Call a function, and once more if a node is down that has been replaced."""
        try:
            return attempt()
        except ServerDownError:
            if not self.topology.recheck():
                raise
        return attempt()

    def reported_endpoint(self, request: Request) -> Endpoint:
        """Return the server in ``LOCATION``: the request's nodes are not known yet."""
        return self.endpoints[0]

    def _visit(self, visits: Visits) -> Any:
        if visits is None:
            return self.topology.discover()
        return [self.execute(visit) for visit in visits]

    def broadcast(
        self, request: Broadcast
    ) -> Generator[Visits, list[Any], dict[str, Any]]:
        """Yield one request for each primary; return the replies by address.

        Where the topology may have changed it is discovered anew, and if there are
        other primaries now, they are sent the request.
        """
        addresses = list(self.topology.primaries)
        try:
            replies = yield [request.to(address) for address in addresses]
        except RedisError as error:
            if not suggests_topology_change(error):
                raise
            failure = without_frames(error)
        else:
            return dict(zip(addresses, replies, strict=True))
        yield None
        known, addresses = addresses, list(self.topology.primaries)
        if addresses == known:
            try:
                raise failure
            finally:
                # Otherwise a frame of its traceback would keep the error alive.
                del failure
        replies = yield [request.to(address) for address in addresses]
        return dict(zip(addresses, replies, strict=True))

    def route(self, request: Request) -> Generator[Hop, Any, Any]:
        """Yield each node that a request for one command is sent to: one, and another
        for each redirection; return the reply."""
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
                failure = without_frames(cluster_error(error))
            if not isinstance(failure, AskError):
                self.suspect(failure)
                try:
                    raise failure
                finally:
                    # Otherwise a frame of its traceback would keep the error alive.
                    del failure
            endpoint = self.topology.follow(failure, endpoint)
            asking = not isinstance(failure, MovedError)
        raise ClusterUnavailableError(f"Nodes redirect in a circle: {failure}")

    def retry_errors(self, batch: Batch, replies: list[Any]) -> Operation[list[Any]]:
        """Yield the commands of a batch that failed, one by one; return all replies.

        Only errors of a changing cluster, and broken connections, are retried.
        """
        if not has_error(replies):
            return replies
        hopeless = False
        for position, reply in enumerate(replies):
            if not _is_unsettled(reply):
                continue
            if hopeless and not isinstance(cluster_error(reply), AskError):
                # The command before has used up its retries: the cluster is down.
                replies[position] = self.translate(reply)
                continue
            try:
                replies[position] = yield batch.single(position)
            except ResponseError as error:
                replies[position] = without_frames(self.translate(error))
                hopeless = _is_unsettled(error)
        return replies

    def suspect(self, error: Exception) -> None:
        """Have the topology discovered anew if an error may come of its change."""
        if suggests_topology_change(error):
            self.topology.refresh()

    def _scatter(self, batch: Batch) -> list[Any]:
        """Send the parts of a batch to all their nodes at once; return the replies."""
        replies: list[Any] = [None] * batch.count
        # Once one node has timed out, the others have had as much time as it.
        waited = False
        with ExitStack() as stack:
            parts = [
                (
                    self.attempts_of_part(batch, endpoint, indexes),
                    NodeBatch(endpoint),
                    indexes,
                )
                for endpoint, indexes in self.topology.parts(batch.keys).items()
            ]
            for attempts, part, _ in parts:
                stack.enter_context(part)
                part.send(attempts.request)
            for attempts, part, indexes in parts:
                got = part.receive(wait=not waited)
                if not isinstance(got, Exception):
                    attempts.succeeded(got)
                elif isinstance(got, TimeoutError) and not waited:
                    waited = True
                    if self.give_up(attempts, got):
                        self.suspect(got)
                        raise got
                self.put_replies(replies, indexes, got)
        return replies

    def attempts_of_part(
        self, batch: Batch, endpoint: Endpoint, indexes: Sequence[int]
    ) -> Attempts:
        """Begin the first attempt at a node's part of a batch: these positions in it.

        Raises:
            ServerDownError: the node is down, and another request is probing it.
        """
        attempts = self.attempts(batch.part(indexes))
        try:
            attempts.begin(endpoint)
        except ServerDownError as error:
            self.suspect(error)
            raise
        return attempts

    def put_replies(self, replies: list[Any], indexes: Sequence[int], got: Any) -> None:
        """Put a node's replies, or its one error, at their positions in all replies."""
        if isinstance(got, Exception):
            if is_final(got):
                raise got
            self.suspect(got)
            got = [got] * len(indexes)
        for at, reply in zip(indexes, got, strict=True):
            replies[at] = reply


class AsyncClusterClient(AsyncCacheClient):
    """Carries out the operations of a cache on a cluster in an event loop.

    Parameters:
        client: the synchronous client of the same cache.
    """

    instrumentation = ASYNC_CLUSTER_INSTRUMENTATION

    def __init__(self, client: ClusterClient) -> None:
        super().__init__(client)
        self.cluster = client

    async def execute_at(
        self, connections: LoopConnections, endpoint: Endpoint, request: Request
    ) -> Any:
        """See :meth:`ClusterClient.execute_at`."""
        cluster, topology = self.cluster, self.cluster.topology

        async def again(request: Request) -> Any:
            return await self.execute(connections, request)

        attempts = cluster.attempts(request)

        async def hop(hop: Hop) -> Any:
            attempts.begin(hop[0])
            return await self.call(connections, *hop)

        async def visit(visits: Visits) -> Any:
            if visits is None:
                return await topology.adiscover()
            # All requests have ended before an error is raised, so that no FLUSHDB is
            # still under way then.
            replies = await asyncio.gather(*map(again, visits), return_exceptions=True)
            for reply in replies:
                if isinstance(reply, BaseException):
                    try:
                        raise reply
                    finally:
                        del reply, replies
            return replies

        if not topology.known:
            with cluster.first_discovery():
                await self.with_retries(topology.adiscover)
        if isinstance(request, Batch):
            replies = await self._rechecked(lambda: self._scatter(connections, request))
            return await adrive(cluster.retry_errors(request, replies), again)
        if isinstance(request, Broadcast):
            return await adrive(cluster.broadcast(request), visit)
        try:
            reply = await self.with_retries(
                lambda: self._rechecked(lambda: adrive(cluster.route(request), hop)),
                topology.acatch_up,
            )
        except RedisError as error:
            await self.give_up(attempts, connections, error)
            raise
        attempts.succeeded(reply)
        return reply

    async def _rechecked(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call a function, and once more if a node is down that has been replaced."""
        try:
            return await attempt()
        except ServerDownError:
            if not await self.cluster.topology.arecheck():
                raise
        return await attempt()

    async def _scatter(self, connections: LoopConnections, batch: Batch) -> list[Any]:
        """Send the parts of a batch to all their nodes at once; return the replies."""
        replies: list[Any] = [None] * batch.count
        parts = self.cluster.topology.parts(batch.keys)
        tried = [
            self.cluster.attempts_of_part(batch, endpoint, indexes)
            for endpoint, indexes in parts.items()
        ]
        answers = await asyncio.gather(
            *(
                self.ask(connections, endpoint, attempts.request)
                for attempts, endpoint in zip(tried, parts, strict=True)
            ),
            return_exceptions=True,
        )
        for attempts, indexes, answer in zip(
            tried, parts.values(), answers, strict=True
        ):
            if isinstance(answer, BaseException) and not isinstance(answer, RedisError):
                raise answer
            if not isinstance(answer, BaseException):
                attempts.succeeded(answer)
            elif isinstance(answer, TimeoutError) and (
                await self.give_up(attempts, connections, answer)
            ):
                self.cluster.suspect(answer)
                raise answer
            self.cluster.put_replies(replies, indexes, answer)
        return replies


def suggests_topology_change(error: Exception) -> bool:
    """Whether the cause of an error may be a change of the topology."""
    known = isinstance(error, AuthenticationError | ConnectionPoolTimeout)
    kinds = (ConnectionError, TimeoutError, *RETRIED)
    return isinstance(error, kinds) and not known


def _asking(request: Request) -> Request:
    """Return a request for a command, with ASKING before it.

    A node that a slot is being moved to accepts commands for it only right after that.
    """
    return Request(_ASKING + request.packed, 2, once=request.once)


def _answer(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


def _is_unsettled(reply: Any) -> bool:
    """Whether a command has not been carried out, or may not have been."""
    kinds = (*CHANGING, ConnectionError, ReadOnlyError, TimeoutError)
    return isinstance(reply, Exception) and isinstance(cluster_error(reply), kinds)
