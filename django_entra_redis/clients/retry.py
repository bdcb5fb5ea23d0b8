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
#: Three pauses take about 0.15 s in all: long enough for a new connection, and short
#: enough for a request that fails in the end.
BACKOFF = ExponentialWithJitterBackoff(base=0.02, cap=0.5)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to send a request again.

    Parameters:
        errors: the errors after which a request is retried.
        retries: attempts after the first one; below 0: without end.
        backoff: computes the seconds to wait from the number of failures so far.
    """

    errors: tuple[type[Exception], ...]
    retries: int
    backoff: AbstractBackoff

    def pause(self, error: Exception, failures: int) -> float | None:
        """Return the seconds to wait before the next attempt; ``None``: give up.

        Parameters:
            error: what the last attempt raised.
            failures: attempts so far, 1 or more.
        """
        if is_final(error) or not isinstance(error, self.errors):
            return None
        if 0 <= self.retries < failures:
            return None
        if failures == 1:
            self.backoff.reset()
        return self.backoff.compute(failures)


def is_final(error: Exception) -> bool:
    """Whether a request must not be retried, though its error is a ConnectionError.

    That is so for the package's own errors: there is no token, no free connection, or
    the command may have been carried out already. The exception is an invalid reply: a
    new connection may lead to another server.
    """
    own = isinstance(error, EntraRedisError)
    return own and not isinstance(error, InvalidReplyError)


def make_policy(connection: Mapping[str, Any], *errors: type[Exception]) -> RetryPolicy:
    """Return the retry policy that a cache's settings ask for.

    Parameters:
        connection: the options that are passed on to redis-py.
        errors: errors after which a request is retried, besides a broken connection.
    """
    more = list(connection.get("retry_on_error", ()))
    if connection.get("retry_on_timeout"):
        more.append(TimeoutError)
    retry = connection.get("retry")
    if retry is None:
        return RetryPolicy((ConnectionError, *errors, *more), RETRIES, BACKOFF)
    # redis-py has no public attributes for these; a test fails when they disappear.
    return RetryPolicy(
        (*retry._supported_errors, *more),
        retry._retries,
        # A copy, since some backoffs remember the last pause.
        copy.deepcopy(retry._backoff),
    )
