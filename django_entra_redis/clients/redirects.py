"""Cluster error replies: MOVED, ASK, CLUSTERDOWN, TRYAGAIN, CROSSSLOT.

redis-py makes these errors of their own kinds: since its version 6 everywhere, before
that in its cluster client alone ("Redis cluster specification").
"""

from collections.abc import Iterable, Mapping
from typing import Any

from redis.exceptions import (
    AskError,
    ClusterCrossSlotError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from ..commands.resp import is_malformed_redirect
from ..exceptions import InvalidReplyError

_KINDS: Mapping[str, type[ResponseError]] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "CROSSSLOT": ClusterCrossSlotError,
    "MOVED": MovedError,
    "TRYAGAIN": TryAgainError,
}


def cluster_error(error: Exception) -> Exception:
    """Return an error reply as the kind that it is of.

    A redirection that leads nowhere is an :exc:`InvalidReplyError`.
    """
    text = str(error)
    if type(error) is ResponseError:
        word, _, rest = text.partition(" ")
        if word in _KINDS and not is_malformed_redirect(text):
            return _KINDS[word](rest)
    elif isinstance(error, AskError):
        # redis-py has taken the first word off.
        text = f"MOVED {text}"
    if is_malformed_redirect(text):
        return InvalidReplyError(f"A redirection leads nowhere: {text[:100]!r}.")
    return error


def redirection(error: Exception) -> Exception | None:
    """Return an error reply if it tells that the key is on another node."""
    found = cluster_error(error)
    elsewhere = isinstance(found, AskError | ClusterCrossSlotError)
    return found if elsewhere else None


def concerns_all(replies: Iterable[Any]) -> Exception | None:
    """Return the error reply among many, if one, that is not of its command alone.

    It comes from a server that carries none of the commands out, or not all.
    """
    for reply in replies:
        if isinstance(reply, Exception) and (
            isinstance(reply, ConnectionError | ReadOnlyError)
            or redirection(reply) is not None
        ):
            return reply
    return None
