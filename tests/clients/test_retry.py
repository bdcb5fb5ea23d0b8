"""The retry rule."""

from typing import Any

import pytest
from redis.backoff import ConstantBackoff, DecorrelatedJitterBackoff
from redis.exceptions import (
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from django_entra_redis.clients.retry import (
    BACKOFF,
    RETRIES,
    RetryPolicy,
    make_policy,
)
from django_entra_redis.exceptions import TokenError, UncertainResultError


@pytest.mark.parametrize(
    ("error", "failures", "pause"),
    [
        (ConnectionError(), 1, 0.5),
        (ConnectionError(), 2, 0.5),
        (ConnectionError(), 3, None),
        (ResponseError(), 1, None),
        # To redis-py these are connection errors.
        (TokenError("none"), 1, None),
        (UncertainResultError(), 1, None),
    ],
)
def test_pause(error: Exception, failures: int, pause: float | None) -> None:
    """It depends on the error and on the tries so far alone."""
    policy = RetryPolicy((ConnectionError,), 2, ConstantBackoff(0.5))
    assert policy.pause(error, failures) == pause


def test_without_end() -> None:
    """redis-py takes a negative number of retries for no bound."""
    policy = RetryPolicy((ConnectionError,), -1, ConstantBackoff(0.5))
    assert policy.pause(ConnectionError(), 1000) == 0.5


@pytest.mark.parametrize(
    ("connection", "errors"),
    [
        ({}, (ConnectionError, ReadOnlyError)),
        ({"retry_on_timeout": True}, (ConnectionError, ReadOnlyError, TimeoutError)),
        (
            {"retry_on_error": [OutOfMemoryError]},
            (ConnectionError, ReadOnlyError, OutOfMemoryError),
        ),
    ],
)
def test_options(connection: dict[str, Any], errors: tuple[type[Exception]]) -> None:
    """redis-py's options say what is worth another try."""
    assert make_policy(connection, ReadOnlyError) == RetryPolicy(
        errors, RETRIES, BACKOFF
    )


def test_a_policy_of_ones_own() -> None:
    """A Retry in OPTIONS counts as it is; its backoff is not shared."""
    backoff = DecorrelatedJitterBackoff()
    policy = make_policy({"retry": Retry(backoff, 7, (TimeoutError,))}, ReadOnlyError)
    assert (policy.errors, policy.retries) == ((TimeoutError,), 7)
    assert type(policy.backoff) is type(backoff)
    assert policy.backoff is not backoff
