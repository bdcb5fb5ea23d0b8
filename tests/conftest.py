"""Fixtures for all tests."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator

import django
import pytest
from asgiref.sync import sync_to_async
from redis.exceptions import ResponseError

from django_entra_redis.signals import token_renewal_failed, token_renewed
from emulator import Emulator
from emulator.cluster import check_server
from emulator.server import ServerError, find_server
from tests.support.caches import Database
from tests.support.clusters import mend
from tests.support.machine import lacks

with contextlib.suppress(ImportError):  # some environments of tox do without it
    from hypothesis import HealthCheck, settings

    # A busy machine makes any example slow, and fails none by that.
    settings.register_profile(
        "patient",
        parent=settings(),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("patient")
    settings.register_profile("few", parent=settings(), max_examples=25)
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pragma: no cover
    # Shells have what they run in the background ignore Ctrl-C, and so would all the
    # processes that tests start and end with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: What decides who asks whom for a token, and over which way: the machine's own
#: values must not reach a test, and one test's must not reach the next.
ENVIRONMENT = (
    "AZURE_",
    "ENTRA_REDIS",
    "IDENTITY_",
    "IMDS_",
    "MSI_",
    "REDIS_CA_CERTS",
    "REDIS_CLUSTER",
    "REDIS_URL",
    "ALL_PROXY",
    "CURL_CA_BUNDLE",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_",
)
#: Seconds that a test's threads may take to end after it.
PATIENCE = 10.0
#: The files that take longest.
LONGEST = {"test_cluster.py", "test_demo.py", "test_processes.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: no process is left alone with one in the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Leave all that has been imported out of garbage collections.

    Many tests collect garbage. To look through all modules, too, would take most of
    their time.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Skip a test whose redis-server, older than 7, knows no rules for subcommands."""
    try:
        return (yield)
    except ResponseError as error:
        if "Unknown command or category name in ACL" not in str(error):
            raise
    pytest.skip("needs access rules for subcommands, which Redis has from 7 on")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the machine's identity, proxies and certificates out of the environment."""
    for name in list(os.environ):
        if name.upper().startswith(ENVIRONMENT):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail a test after which threads run that would keep the process alive."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + PATIENCE
    left = [
        thread
        for thread in threading.enumerate()
        if thread not in before and not thread.daemon
    ]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    names = [thread.name for thread in left if thread.is_alive()]
    assert not names, f"threads left behind: {names}"


@pytest.fixture
def receivers_kept() -> Iterator[None]:
    """Have the signals forget whoever a test has connected."""
    signals = (token_renewed, token_renewal_failed)
    before = [list(sent.receivers) for sent in signals]
    yield
    for sent, receivers in zip(signals, before, strict=True):
        sent.receivers[:] = receivers
        sent.sender_receivers_cache.clear()


@pytest.fixture(scope="session")
def redis_server() -> str:
    """Return the path of a real redis-server, without which the test is skipped.

    Under ``CI=true`` it fails: there, nothing may be left out unnoticed.
    """
    path = find_server()
    if path is None:  # pragma: no cover - a machine has one or it has not
        lacks("no redis-server on PATH (Debian: apt-get install redis-server)")
    return path


@pytest.fixture(scope="module")
def database(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """Run a real redis-server for the tests of a module."""
    running = Database(tmp_path_factory.mktemp("redis"), redis_server)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def asgiref_thread() -> None:
    """Start asgiref's one thread, which belongs to no test."""
    asyncio.run(sync_to_async(int)())


@pytest.fixture(scope="session")
def cluster_server(redis_server: str) -> str:
    """Return the path of a redis-server that makes up a cluster, or skip the test.

    Under ``CI=true`` a Linux machine has to have one.
    """
    try:
        return check_server(None)
    except ServerError as error:  # pragma: no cover - a machine has one or it has not
        if sys.platform == "linux":
            lacks(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared_cluster(cluster_server: str) -> Iterator[Emulator]:
    """Run Entra and a Redis Cluster for all tests of a module."""
    with Emulator(cluster=3, redis_server=cluster_server) as running:
        yield running


@pytest.fixture
def cluster(shared_cluster: Emulator) -> Emulator:
    """Give a Redis Cluster of three primaries and three replicas, whole and empty.

    It is the module's: nodes that a test kills come back, and its counters go on.
    Tests that move slots or add nodes start one of their own.
    """
    mend(shared_cluster)
    return shared_cluster


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """Run Entra and its Redis on loopback, with tokens that last an hour."""
    with Emulator(token_lifetime=3600.0) as running:
        yield running
