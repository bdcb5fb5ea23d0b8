"""``OPTIONS["client_side_cache"]``: which keys copies are kept of, and what is told of
them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.core.cache.backends.base import default_key_func
from django.utils.functional import cached_property

#: What the names of Django's sessions in a cache begin with. There are no copies of
#: them unless one of ``prefixes`` begins so, too.
SESSIONS = "django.contrib.sessions."

if TYPE_CHECKING:
    from ..conf.options import CacheOptions
    from ..status import ClientSideCacheInfo


class CopyingMethods:
    """What a cache with copies has more."""

    if TYPE_CHECKING:
        _cache: Any
        _makes_keys: bool

        @cached_property
        def options(self) -> CacheOptions:
            """What the settings ask for."""
            ...

    def client_side_cache_info(self) -> "ClientSideCacheInfo | None":
        """Return a snapshot of the copies that this process keeps of values; ``None``
        without ``OPTIONS["client_side_cache"]``."""
        if self.options.client_side_cache is None:
            return None
        info: ClientSideCacheInfo = self._cache.local.info()
        return info

    def copying(self) -> list[Callable[[str], bool]]:
        """Return what a client with copies needs more than the options."""
        settings = self.options.client_side_cache
        if settings is None:
            return []
        plain = not self._makes_keys
        return [make_filter(self, settings.prefixes, plain=plain)]


def make_filter(
    cache: Any, prefixes: tuple[str, ...] | None, *, plain: bool
) -> Callable[[str], bool]:
    """Return what tells whether copies are kept of a key as Redis has it.

    Parameters:
        cache: the cache, which makes the keys.
        prefixes: what the keys' names begin with; ``None``: anything.
        plain: whether it makes them as Django does.
    """
    allowed = ("",) if prefixes is None else prefixes
    sessions = any(prefix.startswith(SESSIONS) for prefix in allowed)
    name_of = _name_of(cache, plain=plain)
    if prefixes is None and plain and cache.key_func is default_key_func:
        # What has no such word in it has no name that begins with it.
        return lambda made: (
            SESSIONS not in made or not (name_of(made) or "").startswith(SESSIONS)
        )

    def keeps(made: str) -> bool:
        name = name_of(made)
        return (
            name is not None
            and name.startswith(allowed)
            and (sessions or not name.startswith(SESSIONS))
        )

    return keeps


def _name_of(cache: Any, *, plain: bool) -> Callable[[str], str | None]:
    """Return what finds a key's name in the key; ``None`` where that can't be done."""
    if plain and cache.key_func is default_key_func:
        start = len(cache.key_prefix) + 1
        # The version ends at the next colon.
        return lambda made: made[start:].partition(":")[2]
    try:
        before, after = cache.around_name()
    except ValueError:
        return lambda made: None
    end = -len(after) or None

    def name_of(made: str) -> str | None:
        # Of another version than the cache's own the name can't be told.
        known = made.startswith(before) and made.endswith(after)
        return made[len(before) : end] if known else None

    return name_of
