"""The keys in Redis, made and validated as Django does, in fewer calls."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.core.cache.backends.base import (
    MEMCACHE_MAX_KEY_LENGTH,
    BaseCache,
    default_key_func,
)

from .arguments import plain_text

_TEXT = frozenset((str,))


class KeyMethods:
    """Makes the keys in Redis out of the keys that callers give."""

    if TYPE_CHECKING:
        key_func: Any
        key_prefix: Any
        make_key: Any
        validate_key: Any
        version: Any

    #: The last prefix and version, and what their keys begin with.
    _beginning: tuple[Any, Any, str]
    #: Whether a subclass overrides what there is a short cut for here.
    _makes_keys: bool
    _validates: bool

    def _init_keys(self) -> None:
        # Past ReplacedMethods.__setattr__(): under ASGI, each request makes a cache.
        own = type(self)
        vars(self).update(
            _beginning=(object(), object(), ""),
            _validates=own.validate_key is not BaseCache.validate_key,
            _makes_keys=(
                own.make_key is not BaseCache.make_key
                or own.make_and_validate_key is not KeyMethods.make_and_validate_key
            ),
        )

    def _note_replaced(self, name: str) -> None:
        """Note that a method has been replaced on this object, as a test may do it."""
        if name == "validate_key":
            vars(self).update(_validates=True)
        elif name in ("make_key", "make_and_validate_key"):
            vars(self).update(_makes_keys=True)

    def make_and_validate_key(self, key: str, version: int | None = None) -> str:
        """Return the key in Redis; warn of one that memcached would not take."""
        made: str
        if self._makes_keys or self.key_func is not default_key_func:
            made = plain_text(self.make_key(key, version=version))
        else:
            # As Django's own functions do it, without two calls.
            shown = self.version if version is None else version
            prefix, known, beginning = self._beginning
            if shown is not known or self.key_prefix is not prefix:
                beginning = self._begin_key(shown)
            made = beginning + (key if type(key) is str else str(key))
        # What these let pass, Django's generator and regular expression would too.
        if (
            len(made) > MEMCACHE_MAX_KEY_LENGTH
            or " " in made
            or not made.isprintable()
            or self._validates
        ):
            self.validate_key(made)
        return made

    def _begin_key(self, version: Any) -> str:
        """Return what the keys of a version begin with, and note it for the next one.

        It is noted where it can't change without one of the two objects' being another.
        """
        prefix = self.key_prefix
        beginning = default_key_func("", prefix, version)
        if type(prefix) is str and type(version) is int:
            vars(self).update(_beginning=(prefix, version, beginning))
        return beginning

    def _make_and_validate_keys(
        self, keys: Iterable[Any], version: int | None
    ) -> list[str]:
        """Do as :meth:`make_and_validate_key` does for many keys at once."""
        if self.key_func is not default_key_func or self._makes_keys:
            return [self.make_and_validate_key(key, version) for key in keys]
        if type(keys) is not list:
            keys = list(keys)
        shown = self.version if version is None else version
        prefix: str = default_key_func("", self.key_prefix, shown)
        # Made of text, as the key function does it: an object's format may be another.
        texts = keys if _TEXT.issuperset(map(type, keys)) else _texts(keys)
        # All in one piece: a key with a space becomes two, and is warned of below.
        text = prefix + f" {prefix}".join(texts)
        made = text.split(" ")
        if (
            len(made) == len(texts) == len(keys)
            and text.isprintable()
            and not self._validates
            and max(map(len, made)) <= MEMCACHE_MAX_KEY_LENGTH
        ):
            return made
        # One by one: as Django, warn of those before one that has no text.
        return [self.make_and_validate_key(key, version) for key in keys]

    def _named(
        self, keys: Iterable[Any], version: int | None
    ) -> tuple[list[str], list[Any]]:
        """Return the keys in Redis, and their names: for names with the same key, the
        last one."""
        names = list(keys)
        made = self._make_and_validate_keys(names, version)
        named = dict(zip(made, names, strict=True))
        if len(named) < len(names):
            return list(named), list(named.values())
        return made, names


def _texts(keys: Iterable[Any]) -> list[str]:
    """Return the keys as text; nothing if one of them has none."""
    try:
        return [key if type(key) is str else str(key) for key in keys]
    except Exception:
        return []
