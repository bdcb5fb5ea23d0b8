"""Tools that teams run: what they see of Django's cache, they see of this one."""

import json

import pytest

from tests.observability.processes import run
from tests.support.caches import Database
from tests.support.failing_clients import TOKEN, traces_in

TOOLS = [
    "azure_monitor",
    "ddtrace",
    "elastic",
    "native",
    "new_relic",
    "opentelemetry",
    "sentry",
    "toolbar",
]


@pytest.fixture(scope="module")
def database(database: Database) -> Database:
    """Let somebody in with a token."""
    rules = ("on", f">{TOKEN}", "+@all", "~*", "&*")
    database.admin.execute_command("ACL", "SETUSER", "the-object-id", *rules)
    return database


@pytest.mark.parametrize("tool", TOOLS)
def test_as_many_spans_as_on_djangos_cache(database: Database, tool: str) -> None:
    """Each call is one, in a thread and in an event loop, and no token is in any."""
    server = f"redis://{database.address[0]}:{database.address[1]}"
    lines = run("spans", tool, database.url, server).splitlines()
    django, ours = (json.loads(line) for line in lines if line.startswith("{"))
    assert django["sync"] == ours["sync"] == [1] * 8
    assert django["async"] == [1] * 10
    assert ours["async"] == [1] * 16
    assert traces_in("".join(ours["told"])) == []
