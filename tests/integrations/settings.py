"""Django settings of the workers: where Redis is comes from the environment."""

import os
from urllib.parse import urlsplit

from django_entra_redis.credentials import EntraCredentialProvider
from tests.integrations.workers import RATIO

_redis = urlsplit(os.environ["REDIS_URL"])

SECRET_KEY = "for tests only"
USE_TZ = True
INSTALLED_APPS = ["django_entra_redis"]
DATABASES: dict[str, dict[str, str]] = {}
ENTRA_REDIS = {"default": {"INSTANCE_DISCOVERY": False, "REFRESH_RATIO": RATIO}}

PROVIDER = "django_entra_redis.credentials.EntraCredentialProvider"
# RESP 2: kombu reconnects its subscriptions before they expire.
TLS = {
    "ssl_cert_reqs": "required",
    "ssl_ca_certs": os.environ["REDIS_CA_CERTS"],
    "protocol": 2,
}
CELERY_BROKER_URL = f"{_redis.geturl()}/0?credential_provider={PROVIDER}"
CELERY_RESULT_BACKEND = CELERY_BROKER_URL
CELERY_BROKER_USE_SSL = TLS
CELERY_REDIS_BACKEND_USE_SSL = TLS
# Its default, 10 s, is for tokens that last longer than these.
CELERY_BROKER_TRANSPORT_OPTIONS = {"reauth_check_interval": 0.2}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True

if "RQ" in os.environ:
    INSTALLED_APPS.append("django_rq")
RQ_QUEUES = {
    "default": {
        "HOST": _redis.hostname,
        "PORT": _redis.port,
        "SSL": True,
        "REDIS_CLIENT_KWARGS": {
            "credential_provider": EntraCredentialProvider(),
            "ssl_ca_certs": os.environ["REDIS_CA_CERTS"],
        },
    }
}
