"""Settings of the site: everything that differs between places is environment.

``REDIS_URL``
    The cache, e.g. ``rediss://contoso.westeurope.redis.azure.net:10000``. An Azure
    cache needs nothing else where there is a managed identity; the package reads
    Azure's own ``AZURE_*`` variables itself. Without it: a Redis on this machine,
    and no Entra.
``REDIS_CA_CERTS``
    PEM file of the authority that signed the cache's certificate, where the system
    does not know it (the emulator's).
``REDIS_CLUSTER``
    ``1``: the cache is a Redis Cluster (on Azure: it has the OSS cluster policy).
``ENTRA_REDIS_EMULATOR``
    ``1``: tokens come from ``emulator``, an authority that Microsoft's
    instance discovery has never heard of.
``DATABASE_PATH``
    SQLite file with the users; beside ``manage.py`` unless given.
``DJANGO_ALLOWED_HOSTS``, ``DJANGO_SECRET_KEY``
    Host names, comma-separated, and the key that opening the site to others needs.
``DJANGO_DEBUG``
    ``1``: Django's debug pages.
"""

import os
from pathlib import Path
from typing import Any

import django
from django.core.exceptions import ImproperlyConfigured

HERE = Path(__file__).resolve().parent

DEBUG = os.environ.get("DJANGO_DEBUG") == "1"

_hosts = [
    host.strip()
    for host in os.environ.get("DJANGO_ALLOWED_HOSTS", "").split(",")
    if host.strip()
]
ALLOWED_HOSTS = [*_hosts, "localhost", "127.0.0.1", "[::1]"]
# Azure's front ends end TLS: the browser says https where Django sees http.
CSRF_TRUSTED_ORIGINS = [f"https://{host}" for host in _hosts if host != "*"]

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "")
if not SECRET_KEY:
    if _hosts:
        raise ImproperlyConfigured(
            "DJANGO_ALLOWED_HOSTS opens the site to others: set DJANGO_SECRET_KEY, "
            "to a long random text."
        )
    # Known to everybody, and good enough for a site that only loopback reaches:
    # logins survive a restart.
    SECRET_KEY = "django-insecure-the-test-project-on-loopback-only"

INSTALLED_APPS = [
    "testproject",
    "django_entra_redis",
    "django_entra_redis.contrib.admin",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

if django.VERSION >= (6, 0):
    # No page needs a script or a style of its own within it.
    MIDDLEWARE.append("django.middleware.csp.ContentSecurityPolicyMiddleware")
    SECURE_CSP = {"default-src": ["'self'"]}

ROOT_URLCONF = "testproject.urls"
WSGI_APPLICATION = "testproject.wsgi.application"
ASGI_APPLICATION = "testproject.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [HERE / "templates"],
        # Those of the admin, and its page of identities and caches.
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE_PATH") or HERE / "db.sqlite3",
    }
}
# As safe as the default and ten times as fast, which is felt where many log in at once.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.ScryptPasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

_url = os.environ.get("REDIS_URL", "")
_options: dict[str, Any] = {}
if not _url:
    _url = "redis://localhost:6379"
    _options["identity"] = None
if os.environ.get("REDIS_CA_CERTS"):
    _options["ssl_ca_certs"] = os.environ["REDIS_CA_CERTS"]

_backend = "EntraRedisCache"
if os.environ.get("REDIS_CLUSTER") == "1":
    _backend = "EntraRedisClusterCache"

CACHES = {
    "default": {
        "BACKEND": f"django_entra_redis.cache.{_backend}",
        "LOCATION": _url,
        "KEY_PREFIX": "testproject",
        "OPTIONS": _options,
    }
}

# On Azure there is no need for this block.
if not os.environ.get("REDIS_URL"):
    ENTRA_REDIS: dict[str, Any] = {}
elif os.environ.get("ENTRA_REDIS_EMULATOR") == "1":
    ENTRA_REDIS = {"default": {"INSTANCE_DISCOVERY": False}}

# In an outage it raises an error; Django's own would log everybody out.
SESSION_ENGINE = "django_entra_redis.sessions"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"

STATIC_URL = "static/"

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        # Django's own tells nobody of a request that failed unless DEBUG is on.
        "django": {"handlers": ["console"], "level": "WARNING"},
        "django_entra_redis": {"handlers": ["console"], "level": "INFO"},
    },
}
