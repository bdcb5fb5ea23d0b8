"""The synchronous client: carries the cache's operations out on pooled connections.

Commands go out packed on a connection that the client has checked out itself: a
``redis.Redis`` for each operation costs more than the command. What goes wrong is
left to redis-py's own retry policy.
"""

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import redis
from django.utils.functional import cached_property
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ConnectionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from ..commands.drivers import drive
from ..commands.forgiving import ForgivingOperations
from ..commands.operations import Operation, Operations, Request
from ..commands.servers import Server
from ..conf.options import CacheOptions
from ..connections.defaults import with_defaults
from ..connections.pool import get_pool
from ..exceptions import EntraRedisError, UncertainResultError, WrongBackendError
from ..serializers import make_serializer
from .redirects import concerns_all, redirection

T = TypeVar("T")

#: When to try again what broke, and how often.
BACKOFF = ExponentialWithJitterBackoff(base=0.02, cap=0.5)
RETRIES = 3

# By the pool, since each thread has its own clients.
_servers: WeakKeyDictionary[Any, Server] = WeakKeyDictionary()


class Client(ABC):
    """Carries out a cache's operations: what all kinds of server have in common.

    Parameters:
        options: what the cache's settings ask for.
        repeatable: errors beside those of a connection that are worth another try.
    """

    #: The pools to the servers in ``LOCATION``.
    pools: list[Any]
    operations: Operations

    def __init__(self, options: CacheOptions, *repeatable: type[Exception]) -> None:
        self.options = options
        self._retry = make_retry(options.connection, *repeatable)

    def make_operations(self, kind: type[Operations], shared: Any) -> Operations:
        """Return the operations of a cache.

        Parameters:
            kind: their class.
            shared: what caches have in common that have one server.
        """
        return kind(
            make_serializer(
                self.options.serializer,
                self.options.compressor,
                fallbacks=self.options.compressor_fallbacks,
                max_value_bytes=self.options.max_value_bytes,
            ),
            _servers.setdefault(shared, Server()),
        )

    @abstractmethod
    def get_client(self, key: str | None = None, *, write: bool = False) -> redis.Redis:
        """Return redis-py's client for what Django's cache API does not have."""

    @abstractmethod
    def pool_for(self, request: Request) -> Any:
        """Return the pool of a server that may carry out a request."""

    def run(self, operation: Operation[T]) -> T:
        """Carry out an operation; return its result.

        Raises:
            UncertainResultError: the connection broke when a command that must not be
                applied twice might have been.
            TokenError, TokenRefusedError, ConnectionPoolTimeout: no connection.
            redis.RedisError: what redis-py raises.
        """
        return drive(operation, self.execute, self.explain)

    @abstractmethod
    def execute(self, request: Request) -> Any:
        """Carry out a request, repeatedly if need be and if that is safe."""

    @abstractmethod
    def explain(self, error: RedisError) -> RedisError:
        """Return what to raise for an error of the server's."""

    def repeat(self, failure: Exception, carry_out: Callable[[], Any]) -> Any:
        """Have redis-py's retry policy decide on a failure and what comes after it."""
        pending = [failure]

        def attempt() -> tuple[Any, Exception | None]:
            try:
                if pending:
                    raise pending.pop()
                return carry_out(), None
            except EntraRedisError as error:
                # No token, no free connection, or an uncertain result: returned, so
                # that the policy, to which these are connection errors, lets them be.
                return None, error

        reply, error = copy.deepcopy(self._retry).call_with_retry(attempt, _ignore)
        if error is not None:
            raise error
        return reply


class CacheClient(Client):
    """What ``EntraRedisCache`` does its work with.

    Parameters:
        options: what the cache's settings ask for.
    """

    def __init__(self, options: CacheOptions) -> None:
        super().__init__(options, ReadOnlyError)
        self.pools = [
            get_pool(server, with_defaults(server, options))
            for server in options.servers
        ]
        self._writer = self.pools[0]
        self._readers = self.pools[1:] or self.pools
        kind = ForgivingOperations if options.ignore_exceptions else Operations
        self.operations = self.make_operations(kind, self._writer)

    # At first use: each thread and each ASGI request has a cache of its own, and most
    # of these need none.
    @cached_property
    def _clients(self) -> list[redis.Redis]:
        return [redis.Redis(connection_pool=pool) for pool in self.pools]

    def get_client(self, key: str | None = None, *, write: bool = False) -> redis.Redis:
        """Return redis-py's client for what Django's cache API does not have.

        Parameters:
            key: unused; Django's client has it.
            write: whether the client must be the first server's.
        """
        if write or len(self.pools) == 1:
            return self._clients[0]
        return random.choice(self._clients[1:])

    def pool_for(self, request: Request) -> Any:
        """Return the pool of a server that may carry out a request."""
        if request.write or len(self._readers) == 1:
            return self._writer if request.write else self._readers[0]
        return random.choice(self._readers)

    def execute(self, request: Request) -> Any:
        """Carry out a request, repeatedly if need be and if that is safe."""
        pool = self.pool_for(request)
        try:
            return carry_out(pool, request)
        except RedisError as error:
            failure = error
        return self.repeat(failure, lambda: carry_out(pool, request))

    def explain(self, error: RedisError) -> RedisError:
        """Return what to raise for an error of the server's."""
        found = redirection(error)
        if found is None:
            return error
        if isinstance(found, ClusterCrossSlotError):
            return found  # It alone does not tell of a cluster.
        return WrongBackendError(
            "The server is a node of a cluster (OSS cluster policy), which holds other "
            "keys than this one's: BACKEND should be "
            "'django_entra_redis.cache.EntraRedisClusterCache'."
        )


def _ignore(error: Exception) -> None:
    """Do nothing about a failure: the connection has been closed already."""


def carry_out(pool: Any, request: Request) -> Any:
    """Carry out a request once; return the reply, or the replies."""
    packed = request.packed
    connection = pool.get_connection()
    clean = False
    try:
        # Packed here, not by redis-py: its packers differ with and without hiredis,
        # which ends the process where an integer is too long for Python.
        connection.send_packed_command([packed])
        if request.count:
            reply: Any = read_many(connection, request.count)
            if failure := concerns_all(reply):
                raise failure
        else:
            reply = connection.read_response(disable_decoding=True)
        clean = True
        return reply
    except ResponseError as error:
        # Everything has been read. A replica, though, is not what DNS names any more
        # after a failover.
        clean = not isinstance(error, ReadOnlyError)
        raise
    except (ConnectionError, TimeoutError) as error:
        # Some of these are the server's answer: it did not do it.
        if not request.once or isinstance(
            error, AuthenticationError | BusyLoadingError
        ):
            raise
        doubt = uncertain(request, error)
    finally:
        # Whatever else went wrong, a reply may be on its way that the next command
        # would take for its own.
        if not clean:
            connection.disconnect()
        pool.release(connection)
    raise doubt


def read_many(connection: Any, count: int) -> list[Any]:
    """Return several replies; an error that is one stands in its place."""
    replies: list[Any] = []
    for _ in range(count):
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except ResponseError as error:
            replies.append(error)
    return replies


def uncertain(request: Request, error: Exception) -> UncertainResultError:
    """Return what to raise for a command that may or may not have been carried out."""
    return UncertainResultError(
        f"The connection broke before Redis answered {request.name}, which is "
        f"not repeated, since it may have been carried out: {error}"
    )


def make_retry(connection: Mapping[str, Any], *kinds: type[Exception]) -> Retry:
    """Return the retry policy for commands that are safe to repeat.

    Parameters:
        connection: what the settings ask for.
        kinds: errors beside those of a connection that are worth it.
    """
    retry = copy.deepcopy(connection.get("retry"))
    if retry is None:
        retry = Retry(BACKOFF, RETRIES, (ConnectionError, *kinds))
    errors = list(connection.get("retry_on_error", ()))
    if connection.get("retry_on_timeout"):
        errors.append(TimeoutError)
    retry.update_supported_errors(errors)
    return retry
