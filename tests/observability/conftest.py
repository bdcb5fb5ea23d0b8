"""Leaves these tests out where the tools are missing: they have a tox environment."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("sentry_sdk") else ["test_*.py"]
