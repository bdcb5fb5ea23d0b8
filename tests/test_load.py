"""No request notices a renewal: threads at work while tokens run out."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from django_entra_redis.credentials import get_credential_provider
from emulator import Emulator
from tests.support.caches import PATIENCE, let_in, make_cache, wait_until

LIFE = 6.0
THREADS = 8
#: Seconds between two turns of a thread.
REST = 0.03
#: Nothing may notice a renewal: it is early enough for a machine that is busy.
RATIO = 0.4
#: About 12 seconds of tokens that last for 6.
RENEWALS = 4


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Run Entra and its Redis with tokens that last for seconds."""
    with (
        Emulator(token_lifetime=LIFE) as emulator,
        let_in(emulator, monkeypatch, refresh_ratio=RATIO),
    ):
        yield emulator


@pytest.mark.parametrize("pool_class", [None, "redis.BlockingConnectionPool"])
def test_load(short_lived: Emulator, pool_class: str | None) -> None:
    """Through renewals there is no error, and not one request for a token too many."""
    options: dict[str, Any] = {"ssl_ca_certs": str(short_lived.ca_file)}
    if pool_class is not None:
        options["pool_class"] = pool_class
    status = get_credential_provider().status
    done = threading.Event()

    def work(number: int) -> int:
        # One for each thread, as Django has it.
        cache = make_cache(short_lived.redis_url, **options)
        turns = 0
        while not done.is_set():
            turns += 1
            cache.set(f"key-{number}", turns)
            assert cache.get(f"key-{number}") == turns
            # Threads that never rest keep a small machine from all else.
            time.sleep(REST)
        return turns

    with ThreadPoolExecutor(THREADS) as executor:
        futures = [executor.submit(work, number) for number in range(THREADS)]
        wait_until(
            lambda: (
                status().renewals >= RENEWALS
                or any(future.done() for future in futures)
            )
        )
        # On to the next expiry: it is then that a connection left behind is closed.
        expires_at = status().expires_at
        wait_until(
            lambda: (
                status().expires_at != expires_at
                or any(future.done() for future in futures)
            )
        )
        done.set()
        assert all(future.result(PATIENCE) for future in futures)
    wait_until(lambda: short_lived.stats.token_requests == status().renewals + 1)
    stats = short_lived.stats
    assert stats.closed_by_expiry_in_use == 0
    assert stats.token_failures == 0
    assert stats.auths_refused == 0
    # One that has been idle through an expiry is opened anew when it is needed again.
    lasting = stats.connections_opened - stats.closed_by_expiry
    assert lasting <= THREADS
    assert stats.auths >= lasting * RENEWALS
