"""What the site does when its cache, and so its sessions, cannot be reached."""

from collections.abc import Callable

from django.conf import settings
from django.core.cache import caches
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from redis.exceptions import RedisError


class CacheOutageMiddleware:
    """Answers 503 where Django would log everybody out.

    Django's sessions take a cache that fails for one that has nothing: the visitor is
    a stranger, and the answer deletes the session's cookie. Goes before
    ``SessionMiddleware``.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Look again, where somebody with a session's cookie has no session."""
        response = self.get_response(request)
        if settings.SESSION_COOKIE_NAME in request.COOKIES and (
            request.session.is_empty()
        ):
            try:
                caches[settings.SESSION_CACHE_ALIAS].get("outage")
            except RedisError:
                return unavailable()
        return response


def unavailable() -> HttpResponse:
    """Say that it is the cache that failed; nothing here needs a session."""
    return render(None, "testproject/unavailable.html", status=503)
