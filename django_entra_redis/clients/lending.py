"""Connections that a cache lends to redis-py's own clients.

A cache's connections try once: what is to be repeated, the cache repeats. redis-py's
clients leave that to the connection. One that they borrow has the retry policy for as
long as they have it, and a subscriber subscribes anew where it reconnects.
"""

import time
from collections.abc import Callable
from typing import Any

from redis.retry import Retry

from ..connections.pool import ConnectionPool, check_out, lend
from .retry import RetryPolicy, make_policy


class LentRetry(Retry):
    """A retry policy as redis-py's connections ask it.

    Parameters:
        policy: the cache's.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        super().__init__(policy.backoff, policy.retries, policy.errors)
        self._policy = policy

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        """Do something until it succeeds or the policy gives up; return the result.

        Parameters:
            do: what to do.
            fail: is told of each failure that the policy is for.
            is_retryable: decides, too, if it is given.
            with_failure_count: whether ``fail`` is to get the number of failures.
        """
        failures = 0
        while True:
            try:
                return do()
            except self._policy.errors as error:
                if is_retryable is not None and not is_retryable(error):
                    raise
                failures += 1
                pause = self._policy.pause(error, failures)
                fail(error, failures) if with_failure_count else fail(error)
                if pause is None:
                    raise
            time.sleep(pause)


class PoolView:
    """A pool as one of redis-py's clients sees it.

    Parameters:
        pool: the cache's.
        retry: what its connections repeat while they are lent; ``None`` for nothing.
    """

    def __init__(self, pool: Any, retry: LentRetry | None) -> None:
        self._pool = pool
        self._retry = retry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Check a connection out, repeatedly if need be."""
        return lend(lambda: check_out(self._pool), self._retry)

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        connection.lend(None)
        self._pool.release(connection)

    def set_retry(self, retry: Any) -> None:
        """Set the retry policy of the connections that are lent from now on."""
        self._retry = LentRetry(make_policy({"retry": retry}))


def lending(pool: Any, retry: LentRetry) -> Any:
    """Return a pool that lends its connections to redis-py's clients."""
    if not isinstance(pool, ConnectionPool):
        return PoolView(pool, retry)
    pool.lend_with(retry)
    return pool
