"""``include("django_entra_redis.urls")``: addresses for probes.

With ``{"ping": True}`` after it in ``path()`` readiness takes ``?ping=1``.
"""

from django.urls import path

from .diagnostics.views import live, ready

app_name = "django_entra_redis"

urlpatterns = [
    path("", ready, name="health"),
    path("ready/", ready, name="ready"),
    path("live/", live, name="live"),
]
