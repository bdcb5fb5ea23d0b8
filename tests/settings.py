"""Django settings of the tests: the least that the package runs with.

Tests that need a cache or an identity bring it with ``override_settings``.
"""

SECRET_KEY = "for tests only"
USE_TZ = True
INSTALLED_APPS = ["django_entra_redis"]
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
# No identity: the app's default one would ask the machine's identity endpoint.
ENTRA_REDIS: dict[str, dict[str, object]] = {}
