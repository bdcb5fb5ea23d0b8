"""Errors of cluster discovery, translated from redis-py's."""

from redis.exceptions import (
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from ..exceptions import ClusterUnavailableError, EntraRedisError, WrongBackendError


def explain(error: Exception) -> Exception:
    """Return what to raise for what redis-py has raised as it looked."""
    cause = error.__cause__ if isinstance(error, RedisClusterException) else None
    error = cause if isinstance(cause, Exception) else error
    if isinstance(error, RedisError | EntraRedisError):
        error.__cause__ = error.__context__ = None
        return error
    refusal = error.__context__
    return explain_refusal(refusal if isinstance(refusal, ResponseError) else error)


def explain_refusal(error: Exception) -> Exception:
    """Return what to raise where a node does not answer CLUSTER SLOTS."""
    if isinstance(error, NoPermissionError):
        return NoPermissionError(
            f"{error}. The access policy should allow +cluster|slots, by which "
            "the cluster tells which node has which keys."
        )
    # With a script: that is no refusal.
    if isinstance(error, ResponseError) and not str(error).startswith("BUSY "):
        return WrongBackendError(
            f"The server is not a node of a cluster that clients see ({error}): its "
            "BACKEND should be 'django_entra_redis.cache.EntraRedisCache' "
            "(Enterprise cluster policy, or no cluster)."
        )
    return ClusterUnavailableError(
        f"The cluster does not list its nodes ({type(error).__name__}: {error})."
    )
