"""What a cluster's nodes may announce as an address."""

from typing import Any

import pytest

from django_entra_redis.commands.addresses import is_host, is_port


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.5",
        "node-1.nodes.example",
        "NODE.example.",
        "redis_node_1",
        "a" * 255,
        # They can't be looked up, but Redis lets nodes have such names.
        "node..example",
        "a" * 64,
        "::1",
        "fe80::1",
        "::ffff:10.0.0.5",
        "2001:db8:0:0:0:0:0:1",
    ],
)
def test_hosts(host: str) -> None:
    """Names, and addresses of both kinds."""
    assert is_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "?",
        ".",
        ".nodes.example",
        "a" * 256,
        "a" * 1_000_000,
        ":" * 1_000_000,
        "host\n",
        "host\0",
        "%00",
        "a b",
        "\x1b[2J",
        "[::1]",
        "10.0.0.5:6379",
        "::1%eth0",
        "::1%?port=1",
        "user@host",
        "/tmp/redis",
        "host/1",
        "host#",
        "x?credential_provider=os.abort#",
        "é.example",
        "\u3002.x",
        "\u0661",
        None,
        5,
        b"host",
        ["host"],
    ],
)
def test_what_is_none(host: Any) -> None:
    """Nothing that has a meaning in a URL or a path, or can't be printed."""
    assert not is_host(host)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (1, True),
        (65535, True),
        (0, False),
        (-1, False),
        (65536, False),
        (True, False),
        ("6379", False),
        (b"6379", False),
        (None, False),
    ],
)
def test_ports(port: Any, expected: bool) -> None:
    """Numbers within bounds."""
    assert is_port(port) is expected
