"""Settings that Django's ``runtests.py`` runs with here."""

from django.core.cache import CacheHandler

from .target import Target

TARGET = Target.from_environment()

SECRET_KEY = "for tests only"
USE_TZ = False
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3"},
    "other": {"ENGINE": "django.db.backends.sqlite3"},
}
TEST_RUNNER = "tests.django_suite.runner.Runner"

# The tests of the Redis backend run only where it is configured.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": TARGET.location,
    }
}
# Variables say the rest; a private authority is unknown to the public directory.
# The emulators of all runs share a process, which on a small machine may be slow.
ENTRA_REDIS = {"default": {"INSTANCE_DISCOVERY": False, "REQUEST_TIMEOUT": 60}}

# The tests override CACHES in decorators and with statements; all of them come by here.
_configure = CacheHandler.configure_settings


def _configure_for_target(handler, settings):  # type: ignore[no-untyped-def]
    return TARGET.applied_to(_configure(handler, settings))


CacheHandler.configure_settings = _configure_for_target  # type: ignore[method-assign]
