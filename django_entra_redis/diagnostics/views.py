"""The views behind liveness and readiness probes."""

from collections.abc import Sequence
from dataclasses import asdict

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .health import CacheHealth, IdentityHealth, caches_health, identities_health


@never_cache
@require_safe
@login_not_required
def ready(request: HttpRequest, *, ping: bool = False) -> JsonResponse:
    """Answer 200 if each identity has a valid token, 503 otherwise.

    With ``?ping=1`` each cache has to reply, too, if the site's URLconf allows that.

    Parameters:
        request: the request.
        ping: whether ``?ping=1`` is allowed: anyone could occupy a worker with it.
    """
    wanted = request.GET.get("ping") == "1"
    caches = caches_health() if wanted and ping else []
    # After the PINGs, which wait for a token if there is none yet.
    identities = identities_health()
    ok = all(item.ok for item in identities) and all(item.ok for item in caches)
    report = _report(ok, identities, caches)
    if wanted and not ping:
        report["ping"] = "off"
    response = JsonResponse(report, status=200 if ok else 503)
    # Django would log each 503, and mail it to the admins, as often as a probe asks.
    response._has_been_logged = True  # type: ignore[attr-defined] # as Django sets it
    return response


@never_cache
@require_safe
@login_not_required
def live(request: HttpRequest, *, ping: bool = False) -> JsonResponse:
    """Answer 200, always: a restart of this process would not end an outage.

    Parameters:
        request: the request.
        ping: unused; include() passes it to all views.
    """
    return JsonResponse(_report(True, identities_health(), []))


def _report(
    ok: bool, identities: Sequence[IdentityHealth], caches: Sequence[CacheHealth]
) -> dict[str, object]:
    report: dict[str, object] = {
        "ok": ok,
        "identities": [asdict(identity) for identity in identities],
    }
    if caches:
        report["caches"] = [asdict(cache) for cache in caches]
    return report
