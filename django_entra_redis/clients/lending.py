"""Lending of a cache's connections to redis-py's own clients.

A cache retries requests itself, so that its connections do not. redis-py's clients
leave retries to the connection: one that they borrow has a retry policy for that time.
A subscriber's connection reconnects and subscribes again by it.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import ConnectionError, RedisError
from redis.retry import Retry

from ..commands.drivers import clear_frames
from ..commands.request import Request
from ..connections.endpoint import Endpoint
from ..connections.pool import ConnectionPool, check_out, lend
from ..credentials.provider import EntraCredentialProvider
from ..identity.token import Token
from .attempts import Attempts
from .retry import RetryPolicy, is_final, make_policy

T = TypeVar("T")


class LentRetry(Retry):
    """A cache's retry policy as a ``Retry`` of redis-py.

    A command that waits for hours, such as BLPOP on an empty list, is cut at each
    expiry of a token. Such a cut begins the count of failures anew.

    Parameters:
        policy: the cache's policy.
        provider: the provider of the tokens that its connections authenticate with;
            ``None``: they do not.
    """

    def __init__(
        self, policy: RetryPolicy, provider: EntraCredentialProvider | None = None
    ) -> None:
        super().__init__(policy.backoff, policy.retries, policy.errors)
        self._policy = policy
        self._provider = provider

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        """Call a function until it succeeds or the policy gives up; return its result.

        Parameters:
            do: the function.
            fail: called after each failure with the error.
            is_retryable: if given, also decides whether an error is retried.
            with_failure_count: whether ``fail`` also gets the number of failures.
        """
        failures = 0
        while True:
            token = latest_token(self._provider)
            try:
                return do()
            except self._policy.errors as error:
                if is_retryable is not None and not is_retryable(error):
                    raise
                if was_cut(error, token, self._provider):
                    failures = 0
                failures += 1
                pause = self._policy.pause(error, failures)
                fail(error, failures) if with_failure_count else fail(error)
                if pause is None:
                    raise
                # A frame of redis-py's may keep the error alive.
                clear_frames(error)
            time.sleep(pause)


def own_provider(pool: Any) -> EntraCredentialProvider | None:
    """Return the provider of a pool's identity; ``None``: it has no identity."""
    provider = pool.connection_kwargs.get("credential_provider")
    return provider if isinstance(provider, EntraCredentialProvider) else None


def latest_token(provider: EntraCredentialProvider | None) -> Token | None:
    """Return the token that connections authenticate with at the moment, if any."""
    return None if provider is None else provider.renewal.fresh()


def was_cut(
    error: Exception, token: Token | None, provider: EntraCredentialProvider | None
) -> bool:
    """Whether a token's expiry may have ended an attempt, rather than a fault.

    Parameters:
        error: what the attempt raised.
        token: the latest token when it began.
        provider: the provider of the tokens.
    """
    broken = isinstance(error, ConnectionError) and not is_final(error)
    return broken and latest_token(provider) is not token


def through_expiries(
    provider: EntraCredentialProvider | None, send: Callable[[], T]
) -> T:
    """Call a function that sends a command, and again each time that a token's expiry
    may have ended it; return its result.

    Parameters:
        provider: the provider of the tokens; ``None``: there are none.
        send: the function, which has used up its own retries when it raises.
    """
    while True:
        token = latest_token(provider)
        try:
            return send()
        except ConnectionError as error:
            if not was_cut(error, token, provider):
                raise


async def athrough_expiries(
    provider: EntraCredentialProvider | None, send: Callable[[], Awaitable[T]]
) -> T:
    """Do as :func:`through_expiries` does, for a coroutine function."""
    while True:
        token = latest_token(provider)
        try:
            return await send()
        except ConnectionError as error:
            if not was_cut(error, token, provider):
                raise


class PoolView:
    """A cache's pool, as one of redis-py's clients sees it.

    Parameters:
        pool: the cache's pool.
        retry: the retry policy of a connection while it is lent; ``None``: no retries.
    """

    def __init__(self, pool: Any, retry: LentRetry | None) -> None:
        self._pool = pool
        self._retry = retry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Check out a connection, with retries, and lend it."""
        return lend(lambda: check_out(self._pool), self._retry)

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        connection.lend(None)
        self._pool.release(connection)

    def set_retry(self, retry: Any) -> None:
        """Set the retry policy of connections that are lent from now on."""
        self._retry = LentRetry(make_policy({"retry": retry}), own_provider(self._pool))


class LockClient(Redis):
    """A client of redis-py's for locks, which does not retry.

    To acquire a lock fails at once while the server is known to be down, and one
    attempt at a time probes it, as with the cache's operations. What releases a lock or
    extends it is always sent: a lock that is not released may last for ever.

    Parameters:
        endpoint: the server.
        give_up: notes the error of a command's attempts.
    """

    def __init__(
        self, endpoint: Endpoint, give_up: Callable[[Attempts, Exception], Any]
    ) -> None:
        pool: Any = PoolView(endpoint.pool, None)
        super().__init__(connection_pool=pool)
        self._endpoint = endpoint
        self._give_up = give_up

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Carry out a command once; return its reply."""
        # Its errors are never hidden.
        attempts = Attempts(Request(args), covered=False)
        execute: Any = super().execute_command
        if args[0] == "SET":
            attempts.begin(self._endpoint)
        else:
            attempts.begun(self._endpoint, self._endpoint.outages.clock())
        try:
            reply = execute(*args, **options)
        except RedisError as error:
            self._give_up(attempts, error)
            raise
        attempts.succeeded(reply)
        return reply


def lending(pool: Any, retry: LentRetry) -> Any:
    """Return a pool that lends its connections to redis-py's clients."""
    if not isinstance(pool, ConnectionPool):
        return PoolView(pool, retry)
    pool.lend_with(retry)
    return pool
