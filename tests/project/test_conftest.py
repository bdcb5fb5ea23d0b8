"""The fixtures that every test runs with."""

import os
import threading
from collections.abc import Iterator

import pytest
import redis

from tests.conftest import pytest_pyfunc_call
from tests.support.machine import lacks

#: What Azure App Service and a proxy would bring along.
MACHINE = {
    "AZURE_CLIENT_ID": "somebody",
    "IDENTITY_ENDPOINT": "http://169.254.129.2:8081/msi/token",
    "https_proxy": "http://proxy.example:3128",
}


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """Put these variables there before the first fixture of a test runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in MACHINE.items():
            patch.setenv(name, value)
        yield


def test_the_machine_does_not_reach_the_tests() -> None:
    """Neither an identity nor a proxy of the machine is visible to a test."""
    assert not MACHINE.keys() & os.environ.keys()


def test_a_thread_that_is_ending_is_waited_for() -> None:
    """Only a thread that does not end fails the test that started it."""
    threading.Timer(0.05, threading.Event().set).start()


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    """It is skipped on a contributor's machine, and fails where nothing may be."""
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no such thing"):
        lacks("no such thing")


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        (
            "Error in ACL SETUSER modifier '-client|kill': Unknown command or category "
            "name in ACL",
            pytest.skip.Exception,
        ),
        ("WRONGTYPE", redis.ResponseError),
    ],
)
def test_an_old_server(
    request: pytest.FixtureRequest, message: str, outcome: type[BaseException]
) -> None:
    """Only rules for subcommands, which Redis 6 does not know, skip a test."""
    running = pytest_pyfunc_call(request.node)
    next(running)
    with pytest.raises(outcome):
        running.throw(redis.ResponseError(message))
