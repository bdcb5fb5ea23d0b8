"""Django settings of the servers and workers: the emulator comes by the environment."""

import json
import os
from pathlib import Path

from soak.subjects import OURS, make_settings

_emulator = json.loads(Path(os.environ["SOAK_EMULATOR"]).read_text())

globals().update(make_settings(OURS.name, _emulator))
DATABASES: dict[str, dict[str, str]] = {}
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "soak.site"
WSGI_APPLICATION = "soak.wsgi.application"

CELERY_BROKER_URL = CELERY_RESULT_BACKEND = (
    f"{_emulator['redis_url']}/0"
    "?credential_provider=django_entra_redis.credentials.EntraCredentialProvider"
)
CELERY_BROKER_USE_SSL = CELERY_REDIS_BACKEND_USE_SSL = {
    "ssl_cert_reqs": "required",
    "ssl_ca_certs": _emulator["ca_file"],
    # kombu reconnects its subscriptions before they expire.
    "protocol": 2,
}
# Its default, 10 s, is for tokens that last longer than these.
CELERY_BROKER_TRANSPORT_OPTIONS = {"reauth_check_interval": 0.2}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
