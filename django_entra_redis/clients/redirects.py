"""Cluster error replies: MOVED, ASK, CLUSTERDOWN, TRYAGAIN, CROSSSLOT.

redis-py 6 and newer parses them into exception classes of their own on every
connection; redis-py 5 does so in its cluster client alone. This module makes up the
difference. The "Redis cluster specification" says what each reply means.
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
    """Return an error reply as an exception of redis-py's class for it.

    A redirection without a usable address becomes an :exc:`InvalidReplyError`.
    """
    text = str(error)
    if type(error) is ResponseError:
        word, _, rest = text.partition(" ")
        if word in _KINDS and not is_malformed_redirect(text):
            return _KINDS[word](rest)
    elif isinstance(error, AskError):
        # redis-py has removed the first word.
        text = f"MOVED {text}"
    if is_malformed_redirect(text):
        return InvalidReplyError(f"A redirection leads nowhere: {text[:100]!r}.")
    return error


def redirection(error: Exception) -> Exception | None:
    """Return an error reply if it says that the key is on another node, else None."""
    found = cluster_error(error)
    elsewhere = isinstance(found, AskError | ClusterCrossSlotError)
    return found if elsewhere else None


def batch_error(replies: Iterable[Any]) -> Exception | None:
    """Return the first error reply that speaks for a whole batch, if there is one.

    Such an error (READONLY, LOADING, MOVED) is about the server, not about the command
    that it answers: the batch as a whole is retried, or fails.
    """
    for reply in replies:
        if isinstance(reply, Exception) and (
            isinstance(reply, ConnectionError | ReadOnlyError)
            or redirection(reply) is not None
        ):
            return reply
    return None
