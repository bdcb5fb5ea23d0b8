"""The synchronous client: carries the cache's operations out on pooled connections.

Commands go out packed on a connection that the client has checked out itself: a
``redis.Redis`` for each operation costs more than the command.
"""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
from django.utils.functional import cached_property
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

from ..commands.drivers import bare, clear_frames, drive
from ..commands.operations import Operation, Operations
from ..commands.request import Request
from ..commands.resp import UNREADABLE
from ..conf.options import CacheOptions
from ..connections.endpoint import Endpoint, get_endpoint
from ..connections.outage import OUTAGE_ERRORS
from ..connections.pool import check_out
from ..exceptions import InvalidReplyError, UncertainResultError, WrongBackendError
from ..serializers import make_serializer
from .lending import LentRetry, PoolView, lending
from .observation import SEAM, Seam
from .redirects import cluster_error, concerns_all, redirection
from .retry import make_policy
from .straight import Failure, GeneralPath, SingleKey, single_key_path
from .tries import Tries

T = TypeVar("T")


class Client(ABC):
    """Carries out a cache's operations: what all kinds of server have in common.

    Parameters:
        options: what the cache's settings ask for.
        endpoints: the servers in ``LOCATION``; the first is written to.
        operations: the operations that it carries out.
        retried: errors that are worth another try, besides a broken connection.
    """

    #: Where tools observe the requests of such a client.
    seam: Seam

    def __init__(
        self,
        options: CacheOptions,
        endpoints: Sequence[Endpoint],
        operations: type[Operations],
        *retried: type[Exception],
    ) -> None:
        self.options = options
        self.endpoints = endpoints
        self.policy = make_policy(options.connection, *retried)
        #: Errors that a cache with ``ignore_exceptions`` covers up.
        self.ignored: tuple[type[Exception], ...] = (
            OUTAGE_ERRORS if options.ignore_exceptions else ()
        )
        serializer = make_serializer(
            options.serializer,
            options.compressor,
            fallbacks=options.compressor_fallbacks,
            max_value_bytes=options.max_value_bytes,
        )
        self.operations = operations(serializer, endpoints[0].facts)

    @abstractmethod
    def get_client(self, key: str | None = None, *, write: bool = False) -> redis.Redis:
        """Return redis-py's client for what Django's cache API does not have."""

    @abstractmethod
    def get_lock_client(self) -> redis.Redis:
        """Return redis-py's client for locks.

        It repeats nothing: a lock that was taken twice would be nobody's.
        """

    @abstractmethod
    def endpoint_for(self, request: Request) -> Endpoint:
        """Return a server that may carry out a request."""

    def run(self, operation: Callable[..., Operation[T]], *args: Any) -> T:
        """Carry out an operation; return its result.

        With ``ignore_exceptions`` an outage makes it the answer of an empty cache.

        Parameters:
            operation: a method of an object with ``empty_answers``.
            args: the method's arguments.

        Raises:
            UncertainResultError: the connection broke when a command that must not be
                applied twice might have been.
            TokenError, TokenRefusedError, ConnectionPoolTimeout: no connection.
            redis.RedisError: what redis-py raises.
        """
        execute: Callable[[Request], Any] = self.execute
        seam = self.seam
        if (
            seam.client.execute_command is not seam.own_command
            or seam.pipeline.execute is not seam.own_execute
        ) and not seam.idle():
            execute = self.observe
        try:
            result = drive(operation(*args), execute, self.translate)
        except self.ignored as error:
            clear_frames(error)
            self.note_ignored(error)
        except BaseException as error:
            clear_frames(error)
            raise
        else:
            self.note_success()
            return result
        answer: T = empty_answer(operation, *args)
        return answer

    def execute(self, request: Request) -> Any:
        """Carry out a request, repeatedly if need be and if that is safe."""
        return self.execute_at(self.endpoint_seen(request), request)

    # What servers are blamed for is noted with each request's tries; this is for what
    # is not, or not theirs alone.
    @abstractmethod
    def note_ignored(self, error: Exception) -> None:
        """Note that an operation has been answered as from an empty cache."""

    @abstractmethod
    def note_success(self) -> None:
        """Note that an operation has been carried out."""

    def tries(self, request: Request) -> Tries:
        """Return what is to be told of each try of a request."""
        return Tries(request, covered=bool(self.ignored))

    def give_up(self, tries: Tries, error: Exception) -> bool:
        """Note that a request has failed in the end; return whether that has told that
        its server is down."""
        if (endpoint := tries.gave_up(error)) is None:
            return False
        well = endpoint.answers(tries.patience)
        tries.second_opinion(well)
        return not well

    @abstractmethod
    def execute_at(self, endpoint: Endpoint, request: Request) -> Any:
        """Do as :meth:`execute` does, with an endpoint of :meth:`endpoint_seen`."""

    @abstractmethod
    def endpoint_seen(self, request: Request) -> Endpoint:
        """Return the server that tools are told a request goes to."""

    def observe(self, request: Request) -> Any:
        """Do as :meth:`execute` does, through what tools have made of redis-py."""
        endpoint = self.endpoint_seen(request)
        return self.seam.call(
            endpoint.pool, request, lambda: self.execute_at(endpoint, request)
        )

    @cached_property
    def single_key(self) -> SingleKey:
        """What carries out the operations on one key."""
        return GeneralPath(self)

    @abstractmethod
    def translate(self, error: RedisError) -> RedisError:
        """Return what to raise for an error of the server's."""

    def persist(
        self, attempt: Callable[[], T], before_retry: Callable[[], None] | None = None
    ) -> T:
        """Attempt something until it succeeds or the retry policy gives up.

        Parameters:
            attempt: what to do.
            before_retry: is called before each try but the first.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except RedisError as error:
                failures += 1
                pause = self.policy.pause(error, failures)
                clear_frames(error)
                if pause is None:
                    raise
            time.sleep(pause)
            if before_retry is not None:
                before_retry()


class CacheClient(Client):
    """What ``EntraRedisCache`` does its work with.

    Parameters:
        options: what the cache's settings ask for.
    """

    seam = SEAM

    @cached_property
    def single_key(self) -> SingleKey:
        """What carries out the operations on one key."""
        # Whoever derives from this has more to do with each.
        ordinary = type(self) is CacheClient
        return single_key_path(self) if ordinary else GeneralPath(self)

    def resume(
        self, failure: Failure, operation: Callable[..., Operation[T]], *args: Any
    ) -> T:
        """Carry out an operation whose first request has been tried once, and failed.

        Parameters:
            failure: what went wrong.
            operation, args: see :meth:`run`.

        Raises:
            What :meth:`run` raises.
        """
        failures = [failure]

        def execute(request: Request) -> Any:
            return self._execute(self.endpoint_for(request), request, failures)

        try:
            return drive(operation(*args), execute, self.translate)
        except BaseException as error:
            clear_frames(error)
            raise

    def __init__(self, options: CacheOptions) -> None:
        endpoints = [get_endpoint(server, options) for server in options.servers]
        super().__init__(options, endpoints, Operations, ReadOnlyError)
        self._writer = endpoints[0]
        self._readers = endpoints[1:] or endpoints

    # At first use: each thread and each ASGI request has a cache of its own, and most
    # of these need none.
    @cached_property
    def _clients(self) -> list[redis.Redis]:
        retry = LentRetry(self.policy)
        return [
            redis.Redis(connection_pool=lending(one.pool, retry))
            for one in self.endpoints
        ]

    @cached_property
    def _lock_client(self) -> redis.Redis:
        pool: Any = PoolView(self._writer.pool, None)
        return redis.Redis(connection_pool=pool)

    def get_client(self, key: str | None = None, *, write: bool = False) -> redis.Redis:
        """Return redis-py's client for what Django's cache API does not have.

        Parameters:
            key: unused; Django's client has it.
            write: whether the client must be the first server's.
        """
        if write or len(self.endpoints) == 1:
            return self._clients[0]
        return random.choice(self._clients[1:])

    def get_lock_client(self) -> redis.Redis:
        """Return redis-py's client for locks."""
        return self._lock_client

    def endpoint_for(self, request: Request) -> Endpoint:
        """Return a server that may carry out a request."""
        if request.write or len(self._readers) == 1:
            return self._writer if request.write else self._readers[0]
        return random.choice(self._readers)

    def execute_at(self, endpoint: Endpoint, request: Request) -> Any:
        """Do as :meth:`execute` does, on a given server."""
        return self._execute(endpoint, request, [])

    def _execute(
        self, endpoint: Endpoint, request: Request, made: list[Failure]
    ) -> Any:
        """Carry out a request of which one try may have been made, which is taken out
        of the list then."""
        tries = self.tries(request)

        def attempt() -> Any:
            if made:
                failure = made.pop()
                tries.begun(endpoint, failure.began)
                raise outcome(request, failure.take())
            tries.begin(endpoint)
            return carry_out(endpoint.pool, request)

        try:
            reply = self.persist(attempt)
        except RedisError as error:
            self.give_up(tries, error)
            raise
        tries.succeeded(reply)
        return reply

    def note_ignored(self, error: Exception) -> None:
        """Do nothing: one server is to blame, and that is noted."""

    def note_success(self) -> None:
        """Do nothing."""

    def endpoint_seen(self, request: Request) -> Endpoint:
        """Return the server that tools are told a request goes to."""
        return self.endpoint_for(request)

    def translate(self, error: RedisError) -> RedisError:
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


def empty_answer(operation: Any, *args: Any) -> Any:
    """Return what an operation answers as from an empty cache.

    Raises:
        ValueError: an empty cache would raise it, too.
    """
    return operation.__self__.empty_answers[operation.__name__](*args)


def carry_out(pool: Any, request: Request) -> Any:
    """Carry out a request once; return the reply, or the replies."""
    packed = request.packed
    connection = check_out(pool)
    clean = False
    try:
        # Packed here, not by redis-py: its packers differ with and without hiredis,
        # which ends the process where an integer is too long for Python.
        connection.send_packed_command([packed])
        if request.count:
            reply: Any = read_many(connection, request)
            if failure := concerns_all(reply):
                raise failure
        else:
            reply = request.read(read_one(connection))
        clean = True
        return reply
    except ResponseError as error:
        # Everything has been read. A replica, though, is not what DNS names any more
        # after a failover.
        clean = not isinstance(error, ReadOnlyError)
        raise
    except (ConnectionError, TimeoutError) as error:
        failure = outcome(request, error)
    finally:
        # Whatever else went wrong, a reply may be on its way that the next command
        # would take for its own.
        if not clean:
            connection.disconnect()
        pool.release(connection)
    raise failure


def outcome(request: Request, error: Exception) -> Exception:
    """Return what to raise for a request after whose sending an error came."""
    broken = isinstance(error, ConnectionError | TimeoutError)
    # Some of these are the server's answer: it did not do it.
    told = isinstance(error, AuthenticationError | BusyLoadingError)
    return uncertain(request, error) if request.once and broken and not told else error


def read_one(connection: Any) -> Any:
    """Return a reply.

    Raises:
        ResponseError: it is an error.
        InvalidReplyError: what has come is no reply.
        ConnectionError, TimeoutError: nothing has come.
    """
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        if isinstance(cluster_error(error), InvalidReplyError):
            raise InvalidReplyError(f"A redirection leads nowhere: {error}") from None
        raise
    except UNREADABLE as error:
        said = str(error) or type(error).__name__
        raise InvalidReplyError(f"What has come is no reply ({said}).") from None


def read_many(connection: Any, request: Request) -> list[Any]:
    """Return several replies; an error that is one stands in its place.

    Raises:
        What :func:`read_one` does, but for error replies.
    """
    replies: list[Any] = []
    with connection.expecting(request.count):
        for _ in range(request.count):
            try:
                replies.append(read_one(connection))
            except ResponseError as error:
                # Else its traceback would keep this list, and that the error.
                replies.append(bare(error))
    found: list[Any] = request.read(replies)
    return found


def uncertain(request: Request, error: Exception) -> UncertainResultError:
    """Return what to raise for a command that may or may not have been carried out."""
    return UncertainResultError(
        f"The connection broke before Redis answered {request.name}, which is "
        f"not repeated, since it may have been carried out: {error}"
    )
