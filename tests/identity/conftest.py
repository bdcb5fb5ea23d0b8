"""What all tests of identities have to keep to."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def nothing_logged_by_msal(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which msal logs an ERROR: it would, at each retry."""
    yield
    logged = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.levelno >= logging.ERROR and record.name.startswith("msal")
    ]
    assert logged == []
