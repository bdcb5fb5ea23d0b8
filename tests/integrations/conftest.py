"""Leaves out the tests of packages that are not there; tox -e integrations has all."""

from importlib.util import find_spec

#: Each test module, and the package that it is about.
PACKAGES = {
    "test_celery.py": "celery",
    "test_channels.py": "channels_redis",
    "test_ecosystem.py": "huey",
    "test_greenlets.py": "gevent",
    "test_rq.py": "django_rq",
}

collect_ignore = [
    module for module, package in PACKAGES.items() if find_spec(package) is None
]
