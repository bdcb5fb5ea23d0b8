"""A site with one page that reads the cache, for requests under ASGI."""

from django.core.cache import caches
from django.http import HttpRequest, HttpResponse
from django.urls import path


async def page(request: HttpRequest, name: str) -> HttpResponse:
    """Read a cache a few times."""
    cache = caches[name]
    for _ in range(3):
        await cache.aget("key")
    return HttpResponse(b"ok")


urlpatterns = [path("<name>", page)]
