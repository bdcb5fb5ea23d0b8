"""A site whose pages use the cache, for real servers to serve."""

from django.http import HttpRequest, JsonResponse
from django.urls import path

from soak.account import own_account


def use(request: HttpRequest, name: str) -> JsonResponse:
    """Use the cache; show what has become of that."""
    return JsonResponse(own_account().use(name))


urlpatterns = [path("use/<name>", use)]
