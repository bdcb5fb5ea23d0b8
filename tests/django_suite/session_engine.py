"""Django's tests of cache sessions and of the middleware, on this package's engine."""

from django.test import override_settings

# Of the source that the suite has fetched; it has no types.
from sessions_tests import tests  # type: ignore[import-not-found]

from django_entra_redis.sessions import SessionStore


class EntraSessionTests(tests.CacheSessionTests):  # type: ignore[misc]
    """Sessions in the cache."""

    backend = SessionStore


@override_settings(SESSION_ENGINE="django_entra_redis.sessions")
class EntraSessionMiddlewareTests(tests.SessionMiddlewareTests):  # type: ignore[misc]
    """Requests whose sessions are there."""

    #: Decodes the session as the engine of the database has encoded it.
    test_empty_session_saved = None
