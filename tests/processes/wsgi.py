"""The site for gunicorn: uses the cache before the workers are forked."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.settings")
application = get_wsgi_application()

from tests.processes.account import give_account  # noqa: E402 - needs the settings

PARENT = give_account()
