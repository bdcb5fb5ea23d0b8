"""The site's pages."""

import sys
from datetime import UTC, datetime

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import cache_page, never_cache
from django.views.defaults import server_error as default_server_error
from redis.exceptions import RedisError

from testproject.snapshot import status_snapshot
from testproject.visits import count_visit


@login_required
@never_cache
def home(request: HttpRequest) -> HttpResponse:
    """Count a visit and show both counters."""
    visits = count_visit(request.session)
    return render(request, "testproject/home.html", {"visits": visits})


@cache_page(10)
def clock(request: HttpRequest) -> HttpResponse:
    """A page that the cache keeps for ten seconds: its clock stands still."""
    context = {"rendered_at": datetime.now(UTC)}
    return render(request, "testproject/clock.html", context)


@login_required
@never_cache
def status(request: HttpRequest) -> HttpResponse:
    """Identities and caches of this process, for staff."""
    if not _is_staff(request):
        raise PermissionDenied
    context = {"snapshot": status_snapshot()}
    return render(request, "testproject/status.html", context)


@never_cache
def status_json(request: HttpRequest) -> JsonResponse:
    """The same as data. A script is told to log in, not sent to a page."""
    if not request.user.is_authenticated:
        return JsonResponse({"error": "Log in first."}, status=401)
    if not _is_staff(request):
        return JsonResponse({"error": "For staff only."}, status=403)
    return JsonResponse(status_snapshot())


def server_error(request: HttpRequest) -> HttpResponse:
    """Say 503 when it is the cache that failed: sessions live there."""
    # Django calls this from within its except block, without the exception.
    if isinstance(sys.exception(), RedisError):
        # Nothing on this page needs a session.
        return render(None, "testproject/unavailable.html", status=503)
    return default_server_error(request)


def _is_staff(request: HttpRequest) -> bool:
    # A project's own user model need not have the attribute.
    return getattr(request.user, "is_staff", False)
