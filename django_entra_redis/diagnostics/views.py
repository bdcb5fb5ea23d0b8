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

    With ``?ping=1`` each cache has to answer too, where the site's addresses allow it.

    Parameters:
        ping: whether caches are asked for whoever asks: that takes a worker's time.
    """
    wanted = request.GET.get("ping") == "1"
    caches = caches_health() if wanted and ping else []
    # Afterwards: whoever asks a cache has waited for a token.
    identities = identities_health()
    ok = all(item.ok for item in identities) and all(item.ok for item in caches)
    report = _report(ok, identities, caches)
    if wanted and not ping:
        report["ping"] = "off"
    response = JsonResponse(report, status=200 if ok else 503)
    # Django would log each 503, and mail it to the admins, as often as a probe asks.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


@never_cache
@require_safe
@login_not_required
def live(request: HttpRequest, *, ping: bool = False) -> JsonResponse:
    """Answer 200: an outage is nothing that ends with a restart of this process.

    Parameters:
        ping: what include() gives to all views alike; unused.
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
