"""Leaves these tests out where the tools are missing: tox -e integrations has all."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("sentry_sdk") else ["test_*.py"]
