"""The backend's part of ``OPTIONS["client_side_cache"]``: which keys are copied."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.core.cache.backends.base import default_key_func
from django.utils.functional import cached_property

#: The prefix of the names of Django's sessions in a cache. They are not copied unless
#: one of ``prefixes`` begins with it.
SESSIONS = "django.contrib.sessions."

if TYPE_CHECKING:
    from ..conf.options import CacheOptions
    from ..status import ClientSideCacheInfo


class CopyingMethods:
    """The methods of a cache for its client-side cache."""

    if TYPE_CHECKING:
        _cache: Any
        _makes_keys: bool

        @cached_property
        def options(self) -> CacheOptions:
            """What the settings ask for."""
            ...

    def client_side_cache_info(self) -> "ClientSideCacheInfo | None":
        """Return a snapshot of this process's client-side cache; ``None``: without
        ``OPTIONS["client_side_cache"]``."""
        if self.options.client_side_cache is None:
            return None
        info: ClientSideCacheInfo = self._cache.local.info()
        return info

    def copying(self) -> list[Callable[[str], bool]]:
        """Return the additional arguments of a client with copies."""
        settings = self.options.client_side_cache
        if settings is None:
            return []
        plain = not self._makes_keys
        return [make_filter(self, settings.prefixes, plain=plain)]


def make_filter(
    cache: Any, prefixes: tuple[str, ...] | None, *, plain: bool
) -> Callable[[str], bool]:
    """Return a function that returns whether copies are kept of a key in Redis.

    Parameters:
        cache: the cache, which makes the keys.
        prefixes: the prefixes of the names to copy; ``None``: all names.
        plain: whether the cache makes keys as Django does.
    """
    allowed = ("",) if prefixes is None else prefixes
    sessions = any(prefix.startswith(SESSIONS) for prefix in allowed)
    if prefixes is None and plain and cache.key_func is default_key_func:
        return lambda made: SESSIONS not in made
    name_of = _name_of(cache, plain=plain)

    def keeps(made: str) -> bool:
        name = name_of(made)
        return (
            name is not None
            and name.startswith(allowed)
            # Anywhere in the key: where its name begins can't always be told, as with a
            # version that has a colon in it.
            and (sessions or SESSIONS not in made)
        )

    return keeps


def _name_of(cache: Any, *, plain: bool) -> Callable[[str], str | None]:
    """Return a function that returns the name in a key; ``None``: it can't be found."""
    if plain and cache.key_func is default_key_func:
        prefix = f"{cache.key_prefix}:"
        own, start = f"{prefix}{cache.version}:", len(prefix)

        def name_in(made: str) -> str | None:
            if made.startswith(own):
                return made[len(own) :]
            # Of another version, which ends at the next colon. A key without the prefix
            # was made after the cache's ``key_prefix`` was changed.
            known = made.startswith(prefix)
            return made[start:].partition(":")[2] if known else None

        return name_in
    try:
        before, after = cache.around_name()
    except ValueError:
        return lambda made: None
    end = -len(after) or None

    def name_of(made: str) -> str | None:
        # The name can only be found in keys with the cache's own version.
        known = made.startswith(before) and made.endswith(after)
        return made[len(before) : end] if known else None

    return name_of
