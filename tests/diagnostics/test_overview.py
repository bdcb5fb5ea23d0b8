"""The overview of identities and caches that people read."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.core.cache import caches
from django.test import override_settings
from redis.exceptions import ConnectionError as RedisConnectionError

from django_entra_redis.diagnostics.overview import CacheOverview, describe, overview
from django_entra_redis.status import Status
from emulator import Emulator
from tests.support.caches import Database, let_in
from tests.support.sites import BACKEND, CLUSTER_BACKEND


def of(location: str, backend: str = BACKEND, **options: Any) -> override_settings:
    """Return what has Django use one cache."""
    cache = {"BACKEND": backend, "LOCATION": location, "OPTIONS": options}
    return override_settings(CACHES={"default": cache})


def only() -> CacheOverview:
    """Return what is seen of the only cache."""
    (seen,) = overview().caches
    return seen


class OwnPool(redis.ConnectionPool):
    """A pool of the user's own, which does not tell how many connections it has."""


@pytest.mark.parametrize(
    ("age", "changes", "state"),
    [
        (4.0, {}, "fresh"),
        (8.0, {}, "due"),
        (8.0, {"next_renewal_at": None}, "fresh"),
        (8.0, {"last_error": "no route"}, "failing"),
        (10.0, {"last_error": "no route"}, "expired"),
        (4.0, {"expires_at": None}, "waiting"),
    ],
)
def test_states_of_a_token(age: float, changes: dict[str, Any], state: str) -> None:
    """One word says how an identity is, the worst first."""
    begin = datetime(2026, 11, 24, 12, tzinfo=UTC)
    values: dict[str, Any] = {
        "identity": "default",
        "kind": "managed_identity",
        "oid": "oid",
        "renewed_at": begin,
        "next_renewal_at": begin + timedelta(seconds=7),
        "expires_at": begin + timedelta(seconds=10),
        "renewals": 1,
        "failures": 0,
        "last_error": None,
    }
    status = Status(**{**values, **changes})
    seen = describe(status, begin + timedelta(seconds=age))
    assert (seen.state, seen.last_error) == (state, status.last_error)


def test_identity_and_cache(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are as they are right after the first answer."""
    with (
        let_in(emulator, monkeypatch),
        of(emulator.redis_url, ssl_ca_certs=str(emulator.ca_file)),
    ):
        seen = overview()
    (identity,), (cache,) = seen.identities, seen.caches
    assert (identity.identity, identity.state) == ("default", "fresh")
    assert identity.status is not None
    assert identity.status.oid == emulator.application.object_id
    assert cache.health.ok
    assert (cache.idle, cache.in_use) == (1, 0)
    assert (cache.outages, cache.copies) == ((), None)
    assert seen.at <= datetime.now(UTC)


def test_a_cluster(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections are those to all nodes."""
    with (
        let_in(cluster, monkeypatch),
        of(
            cluster.redis_url,
            CLUSTER_BACKEND,
            ssl_ca_certs=str(cluster.ca_file),
        ),
    ):
        caches["default"].set_many({str(number): number for number in range(50)})
        cache = only()
    assert cache.backend == "EntraRedisClusterCache"
    assert cache.health.ok
    assert (cache.idle or 0) + (cache.in_use or 0) >= 3
    assert cache.outages == ()


def test_an_outage(tmp_path: Path, redis_server: str) -> None:
    """It is on the page while there is one, with what it has cost; so are copies."""
    server = Database(tmp_path, redis_server)
    try:
        with of(server.url, identity=None, client_side_cache=True):
            cache = caches["default"]
            cache.set("key", 1)
            assert cache.get("key") == 1
            before = only()
            server.stop()
            for _ in range(2):
                with pytest.raises(RedisConnectionError):
                    cache.set("key", 2)
            during = only()
    finally:
        server.stop()
    assert before.identity is None
    assert before.outages == ()
    assert before.copies is not None
    assert not during.health.ok
    (outage,) = during.outages
    assert outage.what == "can't be used"
    assert outage.failures >= 2
    assert outage.since >= 0


def test_a_pool_that_does_not_tell(tmp_path: Path, redis_server: str) -> None:
    """With a pool class of the user's own the number of connections is unknown."""
    server = Database(tmp_path, redis_server)
    try:
        with of(server.url, identity=None, pool_class=OwnPool):
            cache = only()
    finally:
        server.stop()
    assert cache.health.ok
    assert (cache.idle, cache.in_use) == (None, None)


def test_settings_that_can_not_be_used() -> None:
    """The cache is there, with the kind of its error and nothing more."""
    with of("redis://localhost", identity=None, nonsense=1):
        cache = only()
    assert not cache.health.ok
    assert cache.health.error
    assert cache.idle is None
