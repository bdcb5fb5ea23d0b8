"""The registry of what the caches of a process share, such as endpoints."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from django.core.signals import setting_changed

from .._fork import ForkSafeLock
from ..conf.options import CacheOptions

# Guards the dictionary below.
_lock = ForkSafeLock()
_shared: dict[Hashable, Any] = {}


def get_or_make(
    kind: str, servers: Sequence[str], options: CacheOptions, make: Callable[[], Any]
) -> Any:
    """Return what caches share if nothing distinguishes their connections.

    Neither the identity may differ nor any option.

    Parameters:
        kind: what it is.
        servers: the URLs that it leads to.
        options: what the cache's settings ask for.
        make: makes it if it is not there yet; it is to have a ``disconnect()``.
    """
    key = (
        kind,
        *servers,
        options.identity,
        options.allow_plaintext_token,
        options.pool_timeout,
        options.node_domain,
        _key(options.pool_class),
        _key(options.parser_class),
        _key(options.connection),
    )
    with _lock.current:
        if key not in _shared:
            # The options go along: what they hold must not be collected, and its id
            # given to something else, while the key is there.
            _shared[key] = (make(), options)
        return _shared[key][0]


def reset() -> None:
    """Close all connections and forget what has been shared."""
    disconnect()
    with _lock.current:
        _shared.clear()


def disconnect() -> None:
    """Close all connections; new ones look anew who they are."""
    with _lock.current:
        found = [made for made, _ in _shared.values()]
    for made in found:
        made.disconnect()


def _key(value: Any) -> Hashable:
    """Return what tells an option from another one; the object itself if need be."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _key(item)) for key, item in value.items()))
    if isinstance(value, list | tuple | set | frozenset):
        return (type(value), *map(_key, value))
    if value is None or isinstance(value, str | bytes | int | float | type):
        return (type(value), value)
    return (type(value), id(value))


def _on_setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting == "CACHES":
        reset()
    elif setting == "ENTRA_REDIS":
        # The caches live on, each with its pool: a pool that is forgotten here would
        # keep its connections' identity at the next change.
        disconnect()


setting_changed.connect(_on_setting_changed)
