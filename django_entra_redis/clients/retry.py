"""The retry rule: whether a request that failed is sent again, and when.

One rule for both kinds of client: threads sleep for the pause, event loops await it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.backoff import AbstractBackoff, ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError, TimeoutError

from ..exceptions import EntraRedisError, InvalidReplyError

#: Retries after the first try: as many as redis-py 6 and newer make by default.
RETRIES = 3
#: Seconds, about 0.15 in all: a restart of the connection is sat out, and a request
#: that can't be served is not held up.
BACKOFF = ExponentialWithJitterBackoff(base=0.02, cap=0.5)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to send a request again.

    Parameters:
        errors: what is worth another try.
        retries: tries after the first one; below 0 without end.
        backoff: gives the seconds to wait from the number of failures so far.
    """

    errors: tuple[type[Exception], ...]
    retries: int
    backoff: AbstractBackoff

    def pause(self, error: Exception, failures: int) -> float | None:
        """Return the seconds to wait before the next try; ``None`` to give up.

        Parameters:
            error: what the last try raised.
            failures: tries so far, 1 or more.
        """
        if is_final(error) or not isinstance(error, self.errors):
            return None
        if 0 <= self.retries < failures:
            return None
        if failures == 1:
            self.backoff.reset()
        return self.backoff.compute(failures)


def is_final(error: Exception) -> bool:
    """Whether another try would not help, though to redis-py it is a connection error.

    There is no token, no free connection, or a command may have been carried out that
    must not be twice. What is no reply is another matter: another connection may have
    another server at its end.
    """
    own = isinstance(error, EntraRedisError)
    return own and not isinstance(error, InvalidReplyError)


def make_policy(connection: Mapping[str, Any], *errors: type[Exception]) -> RetryPolicy:
    """Return the retry policy that a cache's settings ask for.

    Parameters:
        connection: the options that go on to redis-py.
        errors: what is worth another try besides a connection that broke.
    """
    more = list(connection.get("retry_on_error", ()))
    if connection.get("retry_on_timeout"):
        more.append(TimeoutError)
    retry = connection.get("retry")
    if retry is None:
        return RetryPolicy((ConnectionError, *errors, *more), RETRIES, BACKOFF)
    # redis-py has no public way to ask a Retry for these; a test fails when they go.
    return RetryPolicy(
        (*retry._supported_errors, *more),
        retry._retries,
        # Some backoffs remember the last pause.
        copy.deepcopy(retry._backoff),
    )
