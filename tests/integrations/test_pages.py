"""Django's own uses of a cache, under ASGI: sessions, pages, fragments."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emulator import Emulator
from tests.integrations.workers import DURATION, EXPIRIES, LIFE, PATIENCE, environment


@pytest.mark.usefixtures("redis_server")
@pytest.mark.parametrize("engine", ["cache", "cached_db"])
def test_pages(engine: str, tmp_path: Path) -> None:
    """No visit is lost, and nothing is made twice, through all expiries."""
    with Emulator(token_lifetime=LIFE) as emulator:
        visitors = subprocess.run(
            [
                *(sys.executable, "-m", "tests.integrations.visitors"),
                *(engine, str(tmp_path / "database")),
            ],
            env=environment(emulator, DJANGO_SETTINGS_MODULE=""),
            capture_output=True,
            text=True,
            timeout=DURATION + PATIENCE,
        )
        assert visitors.returncode == 0, visitors.stderr
        stats = emulator.stats
    report = json.loads(visitors.stdout)
    assert min(report["visits"]) > EXPIRIES
    assert report["made"] == {"page": 1, "fragment": 1}
    assert stats.token_requests > EXPIRIES
    assert stats.auths_refused == 0
    assert stats.closed_by_expiry_in_use == 0
