"""The errors of this package.

Configuration errors are Django's ``ImproperlyConfigured``; errors at run time are
redis-py's, so that ``except`` clauses written for a Redis cache go on working.
"""

from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoPermissionError,
    ResponseError,
)

from ._errors import (
    ConfigurationError,
    EntraRedisError,
    MissingExtraError,
    UnreadableValueError,
)

__all__ = [
    "ClusterUnavailableError",
    "ConfigurationError",
    "ConnectionPoolTimeout",
    "EntraRedisError",
    "GreetingNotPermittedError",
    "GreetingRefusedError",
    "InvalidReplyError",
    "MissingExtraError",
    "ServerDownError",
    "TokenError",
    "TokenRefusedError",
    "TokenRequestError",
    "UncertainResultError",
    "UnreadableValueError",
    "WrongBackendError",
    "WrongDatabaseError",
]


class TokenError(EntraRedisError, AuthenticationError):
    """There is no valid token: the identity could not get one.

    Parameters:
        message: what went wrong and what to do; it never has a secret.
        code: the failure code, see :mod:`.diagnostics.advice`.
    """

    def __init__(self, message: str, *, code: str = "token_failed") -> None:
        super().__init__(message)
        self.code = code


class TokenRequestError(TokenError):
    """One request for a token failed.

    Parameters:
        message, code: as above.
        retry_after: seconds that the endpoint asked to wait, or ``None``.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "token_failed",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class TokenRefusedError(EntraRedisError, AuthenticationError):
    """Redis refused a token that has not expired."""


class ConnectionPoolTimeout(EntraRedisError, ConnectionError):  # noqa: N818 - as TimeoutError is named
    """No connection became free within ``pool_timeout``."""


class InvalidReplyError(EntraRedisError, ConnectionError):
    """The server's answer is not a valid reply; the connection has been closed."""


class ClusterUnavailableError(EntraRedisError, ConnectionError):
    """No node of a cluster answers, or none serves the slot of a key at the moment."""


class ServerDownError(EntraRedisError, ConnectionError):
    """The server failed a moment ago, or took no writes, and another request is probing
    it: this one was not sent."""


class WrongBackendError(EntraRedisError, ResponseError):
    """The cache's ``BACKEND`` is not the one for the cluster policy of its server."""


class WrongDatabaseError(EntraRedisError, ResponseError):
    """The server does not have the database that ``LOCATION`` or ``OPTIONS`` name."""


class GreetingRefusedError(EntraRedisError, ResponseError):
    """Redis refused a command that ``OPTIONS`` ask for on each new connection."""


class GreetingNotPermittedError(GreetingRefusedError, NoPermissionError):
    """The principal's access policy does not allow that command."""


class UncertainResultError(EntraRedisError, ConnectionError):
    """The connection broke after a command that must not be repeated was sent.

    Whether Redis carried it out is unknown.
    """
