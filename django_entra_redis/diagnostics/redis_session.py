"""A session with a server of a cache: authenticate, send commands, read replies."""

from collections.abc import Mapping
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    ConnectionError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)

from ..clients.redirects import cluster_error
from ..connections.refusals import TOO_MANY_CLIENTS
from ..exceptions import TokenError, TokenRefusedError, WrongDatabaseError
from ..identity.redaction import redact
from ..identity.token import Token
from .runner import StepError

#: Failure codes by classes of errors. The first that fits counts, since some classes
#: are subclasses of others.
_REPLY_CODES: Mapping[type[Exception], str] = {
    NoPermissionError: "access_policy_too_narrow",
    OutOfMemoryError: "server_out_of_memory",
    ReadOnlyError: "server_read_only",
    AskError: "cluster_policy_oss",  # MOVED is one, too
    ClusterDownError: "cluster_policy_oss",
    ClusterCrossSlotError: "cluster_policy_oss",
    BusyLoadingError: "server_loading",
    InvalidResponse: "not_redis",
    TimeoutError: "server_timeout",
}
#: The audiences of a token for Redis: the resource, and the application ID of Azure
#: Cache for Redis, which is the same in every tenant.
AUDIENCES = ("https://redis.azure.com", "acca5fbb-b7e4-4009-81f1-37e38fd66d78")


class RedisSession:
    """A connection that is being examined.

    Parameters:
        connection: a connection like the cache's, not connected yet.
        token: the token that it authenticates with; ``None``: there is no identity.
    """

    def __init__(self, connection: Any, token: Token | None) -> None:
        self._connection = connection
        self._token = token

    def begin(self) -> None:
        """Connect and authenticate.

        Raises:
            StepError: either failed.
        """
        try:
            self._connection.connect()
        except TokenError as error:
            raise StepError(error.code, str(error)) from None
        except TokenRefusedError as error:
            raise StepError(_why_refused(self._token), str(error)) from None
        except WrongDatabaseError as error:
            raise StepError("database_refused", str(error)) from None
        except AuthenticationError as error:
            raise StepError("auth_password", f"{error}.") from None
        except RedisError as error:
            code = _code_of(error)
            if TOO_MANY_CLIENTS.search(str(error)):
                code = "auth_max_clients"
            elif code == "server_failed":
                code = "auth_failed"
            raise StepError(code, f"{error}.") from None

    def ask(self, *command: Any) -> Any:
        """Send a command; return the reply.

        Raises:
            StepError: the reply is an error, or there is none.
        """
        try:
            self._connection.send_command(*command)
            return self._connection.read_response()
        except RedisError as error:
            failure = error
        code = _code_of(failure)
        if isinstance(failure, AuthenticationError):
            code = "auth_password" if self._token is None else "access_lost"
        elif code == "server_failed" and isinstance(failure, ConnectionError):
            code = self._why_closed()
        secrets = [] if self._token is None else [self._token.value]
        raise StepError(code, f"{command[0]}: {redact(str(failure), secrets)}.")

    def end(self) -> None:
        """Disconnect."""
        self._connection.disconnect()

    def _why_closed(self) -> str:
        """Reconnect, to find out why the server has closed the connection."""
        self.end()
        try:
            self._connection.connect()
        except TokenRefusedError:
            return "access_lost"
        except RedisError:
            pass
        return "server_closed"


def _code_of(error: Exception) -> str:
    error = cluster_error(error)
    for kind, code in _REPLY_CODES.items():
        if isinstance(error, kind):
            return code
    return "server_failed"


def _why_refused(token: Token | None) -> str:
    claims = {} if token is None else token.claims
    if token is not None and token.username in (claims.get("appid"), claims.get("azp")):
        return "auth_username_is_client_id"
    audience = str(claims.get("aud", "")).rstrip("/")
    if audience and audience not in AUDIENCES:
        return "auth_wrong_audience"
    return "auth_refused"
