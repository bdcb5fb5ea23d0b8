"""The clients of a cache on a Redis Cluster (Azure's OSS cluster policy).

They carry out the operations of :mod:`..commands.cluster` on the nodes that
:mod:`.topology` knows of, and go where nodes redirect them ("Redis cluster
specification").
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

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
from ..commands.drivers import adrive, bare, drive
from ..commands.operations import Operation
from ..commands.packing import pack_all
from ..commands.request import Batch, Broadcast, Request, Visit
from ..conf.options import CacheOptions
from ..connections.endpoint import Endpoint
from ..connections.event_loops import LoopConnections
from ..connections.outage import OUTAGE_ERRORS
from ..connections.pool import check_out
from ..exceptions import (
    ClusterUnavailableError,
    ConnectionPoolTimeout,
    ServerDownError,
)
from .asynchronous import AsyncCacheClient
from .cluster_observation import ASYNC_CLUSTER_SEAM, CLUSTER_SEAM
from .redirects import cluster_error
from .retry import is_final
from .sync import Client, carry_out, read_many
from .topology import get_topology
from .tries import Tries

T = TypeVar("T")

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

    def note_ignored(self, error: Exception) -> None:
        """Note that an operation has been answered as from an empty cache."""
        if self.topology.known and isinstance(error, ClusterUnavailableError):
            self.topology.outages.failed(
                error, began=time.monotonic(), tries=1, command="", covered=True
            )

    def note_success(self) -> None:
        """Note that an operation has been carried out."""
        if self.topology.outages.any:
            self.topology.outages.answered(write=False)

    def endpoint_for(self, request: Request) -> Endpoint:
        """Return the node that a request for one command goes to."""
        if isinstance(request, Visit):
            return self.topology.endpoint_at(request.address)
        assert request.key is not None
        return self.topology.endpoint_of(request.key)

    def translate(self, error: RedisError) -> RedisError:
        """Return what to raise for an error of the server's."""
        if isinstance(cluster_error(error), CHANGING):
            return ClusterUnavailableError(f"The cluster is changing: {error}")
        return error

    def execute_at(self, endpoint: Endpoint, request: Request) -> Any:
        """See :meth:`Client.execute_at`; the nodes are found in here."""
        if not self.topology.known:
            with self.first_look():
                self.persist(self.topology.ensure, self.topology.catch_up)
        if isinstance(request, Batch):
            replies = self._rechecked(lambda: self._scatter(request))
            return drive(self.retry_errors(request, replies), self.execute)
        if isinstance(request, Broadcast):
            return drive(self.broadcast(request), self._visit)
        tries = self.tries(request)

        def hop(hop: Hop) -> Any:
            endpoint, request = hop
            tries.begin(endpoint)
            return carry_out(endpoint.pool, request)

        try:
            reply = self.persist(
                lambda: self._rechecked(lambda: drive(self.route(request), hop)),
                self.topology.catch_up,
            )
        except RedisError as error:
            self.give_up(tries, error)
            raise
        tries.succeeded(reply)
        return reply

    @contextmanager
    def first_look(self) -> Iterator[None]:
        """Note whether it can be found out which nodes there are.

        Raises:
            ServerDownError: it could not a moment ago, and somebody is asking already.
        """
        outages = self.topology.outages
        began = outages.enter()
        try:
            yield
        except OUTAGE_ERRORS as error:
            covered = bool(self.ignored)
            # Each node has been asked, several times.
            outages.failed(error, began=began, tries=2, command="", covered=covered)
            raise
        outages.answered(write=False)

    def _rechecked(self, attempt: Callable[[], T]) -> T:
        """Attempt something, anew if a node is down that another may stand in for."""
        try:
            return attempt()
        except ServerDownError:
            if not self.topology.recheck():
                raise
        return attempt()

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
            failure = bare(error)
        else:
            return dict(zip(addresses, replies, strict=True))
        yield None
        known, addresses = addresses, list(self.topology.primaries)
        if addresses == known:
            try:
                raise failure
            finally:
                # Else it would be kept by a frame of its own traceback.
                del failure
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
                failure = bare(cluster_error(error))
            if not isinstance(failure, AskError):
                self.suspect(failure)
                try:
                    raise failure
                finally:
                    # Else it would be kept by a frame of its own traceback.
                    del failure
            endpoint = self.topology.follow(failure, endpoint)
            asking = not isinstance(failure, MovedError)
        raise ClusterUnavailableError(f"Nodes redirect in a circle: {failure}")

    def retry_errors(self, batch: Batch, replies: list[Any]) -> Operation[list[Any]]:
        """Have commands carried out one by one that could not be with the others."""
        hopeless = False
        for place, reply in enumerate(replies):
            if not _is_unsettled(reply):
                continue
            if hopeless and not isinstance(cluster_error(reply), AskError):
                # One has been tried for long enough for all: the cluster is down.
                replies[place] = self.translate(reply)
                continue
            try:
                replies[place] = yield batch.single(place)
            except ResponseError as error:
                replies[place] = bare(self.translate(error))
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
                (
                    self.tries_of_part(batch, endpoint, places),
                    _NodeBatch(endpoint.pool),
                    places,
                )
                for endpoint, places in self.topology.parts(batch.keys).items()
            ]
            for tries, part, _ in parts:
                stack.enter_context(part)
                part.send(tries.request)
            for tries, part, places in parts:
                got = part.receive(wait=not waited)
                if not isinstance(got, Exception):
                    tries.succeeded(got)
                elif isinstance(got, TimeoutError) and not waited:
                    waited = True
                    if self.give_up(tries, got):
                        self.suspect(got)
                        raise got
                self.put_replies(replies, places, got)
        return replies

    def tries_of_part(
        self, batch: Batch, endpoint: Endpoint, places: Sequence[int]
    ) -> Tries:
        """Return the first try of a node's part of a batch.

        Raises:
            ServerDownError: the node is down, and somebody else is asking already.
        """
        tries = self.tries(batch.part(places))
        try:
            tries.begin(endpoint)
        except ServerDownError as error:
            self.suspect(error)
            raise
        return tries

    def put_replies(self, replies: list[Any], places: Sequence[int], got: Any) -> None:
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

    async def execute_at(
        self, connections: LoopConnections, endpoint: Endpoint, request: Request
    ) -> Any:
        """See :meth:`ClusterClient.execute_at`."""
        cluster, topology = self.cluster, self.cluster.topology

        async def again(request: Request) -> Any:
            return await self.execute(connections, request)

        tries = cluster.tries(request)

        async def hop(hop: Hop) -> Any:
            tries.begin(hop[0])
            return await self.call(connections, *hop)

        async def visit(visits: Visits) -> Any:
            if visits is None:
                return await topology.alook()
            # Nothing is under way any more, such as a FLUSHDB, when the error is told.
            replies = await asyncio.gather(*map(again, visits), return_exceptions=True)
            for reply in replies:
                if isinstance(reply, BaseException):
                    try:
                        raise reply
                    finally:
                        del reply, replies
            return replies

        if not topology.known:
            with cluster.first_look():
                await self.persist(topology.alook)
        if isinstance(request, Batch):
            replies = await self._rechecked(lambda: self._scatter(connections, request))
            return await adrive(cluster.retry_errors(request, replies), again)
        if isinstance(request, Broadcast):
            return await adrive(cluster.broadcast(request), visit)
        try:
            reply = await self.persist(
                lambda: self._rechecked(lambda: adrive(cluster.route(request), hop)),
                topology.acatch_up,
            )
        except RedisError as error:
            await self.give_up(tries, connections, error)
            raise
        tries.succeeded(reply)
        return reply

    async def _rechecked(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Attempt something, anew if a node is down that another may stand in for."""
        try:
            return await attempt()
        except ServerDownError:
            if not await self.cluster.topology.arecheck():
                raise
        return await attempt()

    async def _scatter(self, connections: LoopConnections, batch: Batch) -> list[Any]:
        """Carry out commands on all their nodes at once; return the replies."""
        replies: list[Any] = [None] * batch.count
        parts = self.cluster.topology.parts(batch.keys)
        tried = [
            self.cluster.tries_of_part(batch, endpoint, places)
            for endpoint, places in parts.items()
        ]
        answers = await asyncio.gather(
            *(
                self.ask(connections, endpoint, tries.request)
                for tries, endpoint in zip(tried, parts, strict=True)
            ),
            return_exceptions=True,
        )
        for tries, places, answer in zip(tried, parts.values(), answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, RedisError):
                raise answer
            if not isinstance(answer, BaseException):
                tries.succeeded(answer)
            elif isinstance(answer, TimeoutError) and (
                await self.give_up(tries, connections, answer)
            ):
                self.cluster.suspect(answer)
                raise answer
            self.cluster.put_replies(replies, places, answer)
        return replies


class _NodeBatch:
    """The part of a batch that goes to one node, while other nodes carry out theirs.

    Its connection is sent the commands first and asked for the replies later.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._connection: Any = None
        self._failure: Exception | None = None
        self._clean = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            # A reply may be on its way that the next command would take for its own.
            if not self._clean:
                self._connection.disconnect()
            self._pool.release(self._connection)

    def send(self, request: Request) -> None:
        """Check the connection out and send commands."""
        self._request = request
        try:
            self._connection = check_out(self._pool)
            self._connection.send_packed_command([request.packed])
        except (ConnectionError, TimeoutError) as error:
            self._failure = bare(error)

    def receive(self, *, wait: bool = True) -> list[Any] | Exception:
        """Return the replies, or what has gone wrong.

        Parameters:
            wait: whether to wait for the first of them.
        """
        if self._failure is None:
            try:
                if not (wait or self._connection.can_read(timeout=0)):
                    raise TimeoutError("Timeout reading from socket")
                replies = read_many(self._connection, self._request)
            except (ConnectionError, TimeoutError) as error:
                self._failure = bare(error)
            else:
                self._clean = True
                return replies
        return self._failure


def tells_of_change(error: Exception) -> bool:
    """Whether an error may come of a change of the topology."""
    known = isinstance(error, AuthenticationError | ConnectionPoolTimeout)
    kinds = (ConnectionError, TimeoutError, *RETRIED)
    return isinstance(error, kinds) and not known


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
