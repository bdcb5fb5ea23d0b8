"""A session engine: ``SESSION_ENGINE = "django_entra_redis.sessions"``.

Keys and values are those of Django's ``django.contrib.sessions.backends.cache``, so
that a switch, in either direction, logs no user out. A save takes one round trip in
place of two. An outage of Redis raises an error; with Django's engine users would get
an empty session, and be logged out.
"""

from typing import TYPE_CHECKING, Any

from django.contrib.sessions.backends.base import VALID_KEY_CHARS, UpdateError
from django.contrib.sessions.backends.cache import SessionStore as CacheSessionStore
from django.core.exceptions import ImproperlyConfigured
from django.utils.crypto import get_random_string
from redis.exceptions import RedisError

from .cache import EntraRedisCache
from .exceptions import MissingExtraError, UncertainResultError

#: Errors that do not mean that a session is gone: it can't be read at the moment.
_UNKNOWN = (RedisError, OSError, ImproperlyConfigured, MissingExtraError)


class SessionStore(CacheSessionStore):
    """A session in the cache that ``SESSION_CACHE_ALIAS`` names.

    Errors of Redis and of the identity are raised, also where the cache has
    ``ignore_exceptions``. In a cache of another package it does what Django's does.

    Parameters:
        session_key: the session's key; ``None`` for a new session.
    """

    if TYPE_CHECKING:  # Django's own, which the stubs lack.
        _get_session: Any
        _aget_session: Any

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        cache: Any = self._cache  # type: ignore[has-type]  # The stubs lack it, too.
        self._replaces = isinstance(cache, EntraRedisCache)
        self._cache = cache.strict if self._replaces else cache

    def load(self) -> dict[str, object]:
        """Return the session's data; nothing if there is no session, or a broken one.

        Raises:
            RedisError: Redis can't be reached.
        """
        try:
            found = self._cache.get(self.cache_key)
        except _UNKNOWN:
            raise
        # Any error of a value that is not a session, or a cookie that is not a key.
        except Exception:
            found = None
        return self._loaded(found)

    async def aload(self) -> dict[str, object]:
        """See :meth:`load`."""
        try:
            found = await self._cache.aget(await self.acache_key())
        except _UNKNOWN:
            raise
        except Exception:
            found = None
        return self._loaded(found)

    def create(self) -> None:
        """Make a new session under a new key.

        Raises:
            RedisError: Redis can't be reached.
        """
        try:
            super().create()
        except UncertainResultError:
            # There may be an empty session now whose key is lost: it will expire.
            super().create()

    async def acreate(self) -> None:
        """See :meth:`create`."""
        try:
            await super().acreate()
        except UncertainResultError:
            await super().acreate()

    def save(self, must_create: bool = False) -> None:
        """Store the session in one command, which decides whether it may.

        Raises:
            CreateError: ``must_create`` is set, and the session exists already.
            UpdateError: it is not set, and the session has been deleted meanwhile.
            RedisError: Redis can't be reached.
        """
        if must_create or self.session_key is None or not self._replaces:
            super().save(must_create)
            return
        key, session = self.cache_key, self._get_session()
        if not self._cache.set(key, session, self.get_expiry_age(), xx=True):
            raise UpdateError

    async def asave(self, must_create: bool = False) -> None:
        """See :meth:`save`."""
        if must_create or self.session_key is None or not self._replaces:
            await super().asave(must_create)
            return
        key, session = await self.acache_key(), await self._aget_session()
        age = await self.aget_expiry_age()
        if not await self._cache.aset(key, session, age, xx=True):
            raise UpdateError

    def _get_new_session_key(self) -> str:
        # Django first asks Redis whether the key is taken, which is as improbable as a
        # guessed session; create() would find out all the same.
        return get_random_string(32, VALID_KEY_CHARS)

    async def _aget_new_session_key(self) -> str:
        return self._get_new_session_key()

    def _loaded(self, found: dict[str, object] | None) -> dict[str, object]:
        if found is None:
            self._session_key = None
            return {}
        return found
