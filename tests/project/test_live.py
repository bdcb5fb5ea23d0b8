"""The live suite, against the emulator: it works before somebody has a subscription."""

import os
import subprocess
import sys

import pytest

from emulator import Emulator
from tests.support.commands import ROOT


@pytest.mark.parametrize("clustered", [False, True])
def test_live_suite(clustered: bool, cluster_server: str) -> None:
    """It passes through the same environment variables, and its report is printed."""
    primaries = 3 if clustered else 0
    with Emulator(
        token_lifetime=6.0, cluster=primaries, redis_server=cluster_server
    ) as emulator:
        environ = emulator.environ()
        result = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                "tests/live",
            ],
            cwd=ROOT,
            env={
                **os.environ,
                **environ,
                "AZURE_REDIS_URL": emulator.redis_url,
                "AZURE_REDIS_CA_CERTS": str(emulator.ca_file),
                "AZURE_REDIS_CLUSTER": str(int(clustered)),
                "AZURE_REDIS_INSTANCE_DISCOVERY": "0",
                "AZURE_REDIS_SHORT": "1",
            },
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert "4 passed" in result.stdout, result.stdout + result.stderr
    assert "live report" in result.stdout
    told = result.stdout.partition("live report")[2]
    assert "renewals: 3" in told
    secrets = (emulator.application.secret, emulator.application.object_id, "localhost")
    assert not [secret for secret in secrets if secret in told]


def test_skipped_without_a_cache() -> None:
    """Nobody's cache is touched by accident."""
    environ = {name: value for name, value in os.environ.items() if "AZURE" not in name}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/live"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "4 skipped" in result.stdout, result.stdout + result.stderr
