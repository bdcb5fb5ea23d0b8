"""The registry of objects that the caches of a process share, such as endpoints."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from django.core.signals import setting_changed

from .._fork import ForkSafeLock
from ..conf.options import CacheOptions

T = TypeVar("T")

# Guards the dictionaries below.
_lock = ForkSafeLock()
_shared: dict[Hashable, Any] = {}
_common: dict[Hashable, Any] = {}


def get_or_make(
    kind: str, servers: Sequence[str], options: CacheOptions, make: Callable[[], Any]
) -> Any:
    """Return an object that caches share whose identity and options are the same.

    Parameters:
        kind: the kind of object, such as ``"endpoint"``.
        servers: the URLs that it connects to.
        options: the cache's settings.
        make: makes the object, which must have a ``disconnect()`` method.
    """
    key = (
        kind,
        *servers,
        options.identity,
        options.allow_plaintext_token,
        options.pool_timeout,
        options.idle_timeout,
        options.node_domain,
        _key(options.pool_class),
        _key(options.parser_class),
        _key(options.connection),
    )
    with _lock.current:
        if key not in _shared:
            # The key may have the id() of an option's value. To keep the options keeps
            # that id from being given to another object.
            _shared[key] = (make(), options)
        return _shared[key][0]


def in_common(key: Hashable, make: Callable[[], T]) -> T:
    """Return what cache objects of equal settings have in common.

    Parameters:
        key: tells it from all else.
        make: makes it if it is not there yet; two threads may at once, of which one's
            is taken.
    """
    # What is made while all is forgotten goes where nobody looks any more.
    common = _common
    found: T | None = common.get(key)
    if found is not None:
        return found
    made = make()
    with _lock.current:
        kept: T = common.setdefault(key, made)
    return kept


def reset() -> None:
    """Close all connections and forget what has been shared."""
    global _common
    disconnect()
    with _lock.current:
        _shared.clear()
        _common = {}


def disconnect() -> None:
    """Close all connections; new ones use the identities' current settings."""
    with _lock.current:
        found = [made for made, _ in _shared.values()]
    for made in found:
        made.disconnect()


class PlainKey(tuple[Hashable, ...]):
    """What tells settings from others, and shows nothing of them: Django's debug page
    prints the local variables that it is in."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<settings>"


def plain_key(*settings: Any) -> PlainKey | None:
    """Return what tells settings from others; ``None`` where it takes more to tell than
    what is written there: an object may be another one next time."""
    try:
        return PlainKey([_key(value, _refuse) for value in settings])
    except _NotPlainError:
        return None


class _NotPlainError(Exception):
    """Settings have an object in them."""


def _refuse(value: Any) -> int:
    raise _NotPlainError


def _key(value: Any, identify: Callable[[Any], int] = id) -> Hashable:
    """Return a hashable form of an option's value: its content, or else its id()."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if isinstance(value, Mapping):
        items = [(str(key), _key(item, identify)) for key, item in value.items()]
        return tuple(sorted(items))
    if isinstance(value, list | tuple | set | frozenset):
        return (kind, *[_key(item, identify) for item in value])
    if isinstance(value, str | bytes | int | float | type):
        return kind, value
    return kind, identify(value)


_PLAIN = frozenset((str, bytes, int, float, bool, type(None)))


def _on_setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting == "CACHES":
        reset()
    elif setting == "ENTRA_REDIS":
        # Only disconnected, not forgotten: the caches still have these pools, which
        # must be reached at the next change, too.
        disconnect()


setting_changed.connect(_on_setting_changed)
