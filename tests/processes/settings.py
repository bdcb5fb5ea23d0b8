"""Settings of the processes: the emulator comes in by the environment."""

import importlib
import json
import os

SECRET_KEY = "for tests only"
USE_TZ = True
ALLOWED_HOSTS = ["127.0.0.1"]
DEBUG = True
ROOT_URLCONF = "tests.processes.site"
INSTALLED_APPS = ["django_entra_redis"]
# Waits are long, so that a process which sits one out is told from one which does not.
ENTRA_REDIS = {
    "default": {
        "INSTANCE_DISCOVERY": False,
        "REQUEST_TIMEOUT": 60,
        **json.loads(os.environ.get("TEST_IDENTITY", "{}")),
    }
}
CACHES = {
    "default": {
        "BACKEND": "django_entra_redis.cache.EntraRedisCache",
        "LOCATION": os.environ["REDIS_URL"],
        "OPTIONS": {
            "ssl_ca_certs": os.environ["REDIS_CA_CERTS"],
            "socket_timeout": 60,
            "socket_connect_timeout": 60,
        }
        if os.environ["REDIS_URL"].startswith("rediss")
        else {},
    }
}
# A module that a test changes, for the reloader to see.
if os.environ.get("TEST_MODULE"):
    importlib.import_module(os.environ["TEST_MODULE"])
