"""The synchronous client: carries out a cache's operations on pooled connections.

The client checks out a connection and sends packed commands on it. A ``redis.Redis``
for each operation, as Django's own backend makes one, costs more than the command.
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

from .._errors import without_frames
from ..commands.drivers import clear_frames, drive
from ..commands.operations import Operation, Operations
from ..commands.request import Request
from ..commands.resp import UNREADABLE
from ..conf.options import CacheOptions
from ..connections.endpoint import Endpoint, get_endpoint
from ..connections.idle_exchange import FirstTry
from ..connections.outage import OUTAGE_ERRORS
from ..connections.pool import check_out
from ..connections.refusals import refused_from
from ..exceptions import InvalidReplyError, UncertainResultError, WrongBackendError
from ..serializers import make_serializer
from .attempts import Attempts
from .lending import LentRetry, LockClient, lending, own_provider
from .observation import INSTRUMENTATION, Instrumentation
from .redirects import batch_error, cluster_error, redirection
from .retry import make_policy
from .straight import GeneralPath, SingleKey, single_key_path

T = TypeVar("T")


class Client(ABC):
    """Base of the synchronous clients: runs operations, retries, notes outages.

    Parameters:
        options: the cache's settings.
        endpoints: the servers in ``LOCATION``; the first one takes the writes.
        operations: the class of the operations that the client carries out.
        retried: errors after which a request is retried, besides a broken connection.
    """

    #: The redis-py class by which tools observe the requests of this client.
    instrumentation: Instrumentation

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
        #: Errors that become an empty answer: none without ``ignore_exceptions``.
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
        """Return a redis-py client, for commands that Django's cache API lacks."""

    @abstractmethod
    def get_lock_client(self) -> redis.Redis:
        """Return a redis-py client for locks.

        It does not retry: when the reply to a SET NX is lost, the retry would find the
        lock taken, by this very process, and nobody would release it.
        """

    @abstractmethod
    def endpoint_for(self, request: Request) -> Endpoint:
        """Return a server that can carry out a request."""

    def run(self, operation: Callable[..., Operation[T]], *args: Any) -> T:
        """Carry out an operation; return its result.

        With ``ignore_exceptions``, the result in an outage is that of an empty cache.

        Parameters:
            operation: a method of :class:`~..commands.operations.Operations`.
            args: the method's arguments.

        Raises:
            UncertainResultError: the connection broke after a command was sent that
                must not be carried out twice.
            TokenError, TokenRefusedError, ConnectionPoolTimeout: no connection could be
                authenticated, or none was free.
            redis.RedisError: any other failure of the connection or the command.
        """
        execute: Callable[[Request], Any] = self.execute
        instrumentation = self.instrumentation
        if (
            instrumentation.client.execute_command is not instrumentation.own_command
            or instrumentation.pipeline.execute is not instrumentation.own_execute
        ) and not instrumentation.idle():
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
        """Carry out a request; retry it where the retry policy allows that."""
        return self.execute_at(self.reported_endpoint(request), request)

    def execute_at(self, endpoint: Endpoint, request: Request) -> Any:
        """Carry out a request as :meth:`execute` does.

        Parameters:
            endpoint: what :meth:`reported_endpoint` returned for the request.
            request: the request.
        """
        return self.carry_on(endpoint, request, [])

    @abstractmethod
    def carry_on(
        self, endpoint: Endpoint, request: Request, made: list[FirstTry]
    ) -> Any:
        """Carry out a request of which an attempt may have been made already.

        Parameters:
            endpoint: what :meth:`reported_endpoint` returned for the request.
            request: the request.
            made: the attempt, or nothing. It is removed, so that the operation's next
                request begins without it.
        """

    def attempt(
        self,
        attempts: Attempts,
        endpoint: Endpoint,
        request: Request,
        made: list[FirstTry],
    ) -> Any:
        """Carry out a request once; return its reply, or that of the attempt made."""
        if made:
            first = made.pop()
            attempts.begun(first.endpoint, first.began)
            came = first.take()
            if isinstance(came, Exception):
                raise error_to_raise(request, came)
            return came
        attempts.begin(endpoint)
        return carry_out(endpoint.pool, request)

    def resume(
        self, first: FirstTry, operation: Callable[..., Operation[T]], *args: Any
    ) -> T:
        """Carry out an operation whose first request has been attempted once already.

        That attempt counts for the retry policy. Errors are never ignored here: with
        ``ignore_exceptions``, clients make no such attempts.

        Parameters:
            first: the attempt.
            operation, args: see :meth:`run`.

        Raises:
            What :meth:`run` raises.
        """
        made = [first]

        def execute(request: Request) -> Any:
            return self.carry_on(self.reported_endpoint(request), request, made)

        try:
            return drive(operation(*args), execute, self.translate)
        except BaseException as error:
            clear_frames(error)
            raise

    # The outages of one server are noted by `Attempts`. These two are for outages of a
    # cluster as a whole.
    @abstractmethod
    def note_ignored(self, error: Exception) -> None:
        """Note that an operation got the answer of an empty cache."""

    @abstractmethod
    def note_success(self) -> None:
        """Note that an operation has been carried out."""

    def attempts(self, request: Request) -> Attempts:
        """Return the record of the attempts at a request, which is still empty."""
        return Attempts(request, covered=bool(self.ignored))

    def give_up(self, attempts: Attempts, error: Exception) -> bool:
        """Note a request's last error; return whether that means the server is down.

        In doubt the server is asked once more, on a new connection.
        """
        if (endpoint := attempts.gave_up(error)) is None:
            return False
        well = endpoint.answers(attempts.second_opinion_timeout)
        attempts.second_opinion(well)
        return not well

    @abstractmethod
    def reported_endpoint(self, request: Request) -> Endpoint:
        """Return the server that a request goes to, as reported to observing tools."""

    def observe(self, request: Request) -> Any:
        """Carry out a request as :meth:`execute` does, visible to observing tools."""
        endpoint = self.reported_endpoint(request)
        return self.instrumentation.call(
            endpoint.pool, request, lambda: self.execute_at(endpoint, request)
        )

    @cached_property
    def single_key(self) -> SingleKey:
        """The path that operations on a single key take."""
        return GeneralPath(self)

    @abstractmethod
    def translate(self, error: RedisError) -> RedisError:
        """Return the error that an operation raises for an error reply."""

    def with_retries(
        self, attempt: Callable[[], T], before_retry: Callable[[], None] | None = None
    ) -> T:
        """Call a function until it succeeds or the retry policy gives up.

        Parameters:
            attempt: the function; its result is returned.
            before_retry: called before each attempt but the first.
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
    """The synchronous client of ``EntraRedisCache``.

    Parameters:
        options: the cache's settings.
    """

    instrumentation = INSTRUMENTATION

    @cached_property
    def single_key(self) -> SingleKey:
        """The path that operations on a single key take."""
        # A subclass may override `run()`, which the straight path does not call.
        ordinary = type(self) is CacheClient
        return single_key_path(self, self.endpoints) if ordinary else super().single_key

    def __init__(self, options: CacheOptions) -> None:
        endpoints = [get_endpoint(server, options) for server in options.servers]
        super().__init__(options, endpoints, Operations, ReadOnlyError)
        self._primary = endpoints[0]
        self._readers = endpoints[1:] or endpoints

    # Made at first use: Django makes a cache object for each thread and each ASGI
    # request, and few of them need redis-py's clients.
    @cached_property
    def _clients(self) -> list[redis.Redis]:
        pools = [endpoint.pool for endpoint in self.endpoints]
        retry = LentRetry(self.policy, own_provider(pools[0]))
        return [redis.Redis(connection_pool=lending(pool, retry)) for pool in pools]

    @cached_property
    def _lock_client(self) -> redis.Redis:
        return LockClient(self._primary, self.give_up)

    def get_client(self, key: str | None = None, *, write: bool = False) -> redis.Redis:
        """Return a redis-py client, for commands that Django's cache API lacks.

        Parameters:
            key: unused; Django's own client has this parameter.
            write: whether to return the client of the first server in ``LOCATION``.
        """
        if write or len(self.endpoints) == 1:
            return self._clients[0]
        return random.choice(self._clients[1:])

    def get_lock_client(self) -> redis.Redis:
        """Return a redis-py client for locks, which does not retry."""
        return self._lock_client

    def endpoint_for(self, request: Request) -> Endpoint:
        """Return a server that can carry out a request: the first, or any replica."""
        if request.write or len(self._readers) == 1:
            return self._primary if request.write else self._readers[0]
        return random.choice(self._readers)

    def carry_on(
        self, endpoint: Endpoint, request: Request, made: list[FirstTry]
    ) -> Any:
        """See :meth:`Client.carry_on`."""
        attempts = self.attempts(request)
        try:
            reply = self.with_retries(
                lambda: self.attempt(attempts, endpoint, request, made)
            )
        except RedisError as error:
            self.give_up(attempts, error)
            raise
        attempts.succeeded(reply)
        return reply

    def note_ignored(self, error: Exception) -> None:
        """Do nothing: the outage of the server has been noted already."""

    def note_success(self) -> None:
        """Do nothing: the success of the server has been noted already."""

    def reported_endpoint(self, request: Request) -> Endpoint:
        """Return the server that the request goes to."""
        return self.endpoint_for(request)

    def translate(self, error: RedisError) -> RedisError:
        """Translate a redirection into the advice to use the cluster backend."""
        found = redirection(error)
        if found is None:
            return error
        if isinstance(found, ClusterCrossSlotError):
            return found  # A server with the Enterprise cluster policy sends it, too.
        return WrongBackendError(
            "The server is a node of a cluster (OSS cluster policy), which holds other "
            "keys than this one's: BACKEND should be "
            "'django_entra_redis.cache.EntraRedisClusterCache'."
        )


def empty_answer(operation: Any, *args: Any) -> Any:
    """Return the result that an operation would have on an empty cache.

    Raises:
        ValueError: the operation would raise it on an empty cache.
    """
    return operation.__self__.empty_answers[operation.__name__](*args)


def carry_out(pool: Any, request: Request) -> Any:
    """Carry out a request once; return its reply, or the replies of a batch.

    Parameters:
        pool: the pool to take a connection from.
        request: the request.
    """
    packed = request.packed
    connection = check_out(pool)
    clean = False
    try:
        # Packed by this package: redis-py's packers differ with and without hiredis,
        # and hiredis aborts the process for an integer that Python can't convert.
        refused = send_packed(connection, packed, request)
        if request.count:
            reply: Any = refused or read_many(connection, request)
            if failure := batch_error(reply):
                raise failure
        else:
            reply = request.read(read_one(connection))
        clean = not refused
        return reply
    except ResponseError as error:
        # The reply has been read in full, so that the connection can be used again. Not
        # after READONLY: this server was the primary, and DNS may name another by now.
        clean = not isinstance(error, ReadOnlyError)
        raise
    except (ConnectionError, TimeoutError) as error:
        failure = error_to_raise(request, error)
    finally:
        # A reply may still arrive, which the next command would take for its own.
        if not clean:
            connection.disconnect()
        pool.release(connection)
    raise failure


def send_packed(connection: Any, packed: bytes, request: Request) -> list[Any] | None:
    """Send a request; return the replies to a batch of which the server has refused to
    read the rest, else ``None``.

    Raises:
        ResponseError: the server has refused a single command.
        ConnectionError, TimeoutError: the connection broke.
    """
    try:
        connection.send_packed_command([packed])
    except ResponseError:
        replies = refused_from(getattr(connection, "early_replies", ()), request.count)
        if not request.count or replies is None:
            raise
        found: list[Any] = request.read(replies)
        return found
    return None


def error_to_raise(request: Request, error: Exception) -> Exception:
    """Return the error to raise for a request that failed after it had been sent."""
    broken = isinstance(error, ConnectionError | TimeoutError)
    # redis-py derives these two from ConnectionError, but they are error replies: the
    # server has not carried the command out.
    replied = isinstance(error, AuthenticationError | BusyLoadingError)
    if request.once and broken and not replied:
        return uncertain(request, error)
    return error


def read_one(connection: Any) -> Any:
    """Read a reply.

    Raises:
        ResponseError: the reply is an error.
        InvalidReplyError: the bytes received are not a reply.
        ConnectionError, TimeoutError: the connection broke, or no reply came in time.
    """
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        if isinstance(found := cluster_error(error), InvalidReplyError):
            # A copy: a frame of the traceback would keep this one alive.
            raise InvalidReplyError(*found.args) from None
        raise
    except UNREADABLE as error:
        detail = str(error) or type(error).__name__
        raise InvalidReplyError(
            f"The server's answer is not a Redis reply ({detail})."
        ) from None


def read_many(connection: Any, request: Request) -> list[Any]:
    """Read the replies of a batch; return them, error replies as exceptions.

    Raises:
        What :func:`read_one` raises, except ResponseError.
    """
    replies: list[Any] = []
    with connection.expecting(request.count):
        for _ in range(request.count):
            try:
                replies.append(read_one(connection))
            except ResponseError as error:
                # With its frames, the error would hold this list, and the list it.
                replies.append(without_frames(error))
            except ConnectionError:
                refused = refused_from(replies, request.count)
                if refused is None:
                    raise
                connection.disconnect()
                replies = refused
                break
    found: list[Any] = request.read(replies)
    return found


def uncertain(request: Request, error: Exception) -> UncertainResultError:
    """Return the error to raise for a command that may have been carried out."""
    return UncertainResultError(
        f"The connection broke before Redis replied to {request.name}, which may have "
        f"been carried out, so that it is not retried: {error}"
    )
