"""Views that use sessions and the cache in each of Django's own ways."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import engines
from django.urls import path
from django.views.decorators.cache import cache_page

#: What was really made, and not taken out of the cache.
made: dict[str, int] = {"page": 0, "fragment": 0}

FRAGMENT = "{% load cache %}{% cache 600 fragment %}{{ make }}{% endcache %}"


async def count_asynchronously(request: HttpRequest) -> HttpResponse:
    """Count a visitor's visits with the sessions' asynchronous methods."""
    session: Any = request.session
    visits = await session.aget("visits", 0) + 1
    await session.aset("visits", visits)
    return HttpResponse(str(visits))


def count(request: HttpRequest) -> HttpResponse:
    """Count on with the others."""
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(str(request.session["visits"]))


@cache_page(600)
async def page(request: HttpRequest) -> HttpResponse:
    """Return a page that is made once."""
    made["page"] += 1
    return HttpResponse("page")


def make_fragment() -> str:
    """Return what is made once."""
    made["fragment"] += 1
    return "fragment"


def fragment(request: HttpRequest) -> HttpResponse:
    """Return a page a part of which is made once."""
    template = engines["django"].from_string(FRAGMENT)
    return HttpResponse(template.render({"make": make_fragment}))


def tell(request: HttpRequest) -> HttpResponse:
    """Tell what was really made."""
    return JsonResponse(made)


urlpatterns = [
    path("acount", count_asynchronously),
    path("count", count),
    path("page", page),
    path("fragment", fragment),
    path("made", tell),
]
