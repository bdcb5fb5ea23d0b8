"""Sentry, with its default settings."""

import json
from typing import Any

from tests.observability.processes import run
from tests.support.failing_clients import FAULTS, traces_in


def test_no_token_in_events() -> None:
    """The frames of clients that can't authenticate hold no token.

    Sentry sends the local variables of each frame, unless it is told not to.
    """
    told = run("sentry_events")
    events: list[dict[str, Any]] = json.loads(told)
    assert len(events) == 4 * len(FAULTS) + 1
    functions = {
        frame["function"]
        for event in events
        for value in event["exception"]["values"]
        for frame in value["stacktrace"]["frames"]
        if frame["vars"]
    }
    assert {"on_connect_check_health", "on_connect"} & functions
    assert "re_auth" in functions
    assert traces_in(told) == []
