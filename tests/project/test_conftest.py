"""The fixtures that every test runs with."""

import os
import threading
from collections.abc import Iterator

import pytest

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
