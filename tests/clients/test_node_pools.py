"""The pools to a cluster's nodes: each as that to LOCATION, elsewhere."""

from typing import Any

import pytest
import redis
from redis.connection import parse_url

from django_entra_redis.clients.node_pools import NodePools
from django_entra_redis.conf.options import parse_options
from django_entra_redis.exceptions import InvalidReplyError


def pools_of(url: str, **options: Any) -> NodePools:
    """Return the pools to the nodes of such a cluster."""
    options = {"identity": None, **options}
    return NodePools(parse_options([url], options, clustered=True))


@pytest.mark.parametrize(
    "url",
    [
        "redis://far",
        "rediss://far:10000/0?socket_timeout=7",
        "redis://u:p%40@far?max_connections=3&client_name=a%2Bb",
        "redis://",
    ],
)
@pytest.mark.parametrize("host", ["10.0.0.1", "node.example", "::1"])
@pytest.mark.parametrize("kind", [None, redis.BlockingConnectionPool])
def test_another_place(url: str, host: str, kind: type[Any] | None) -> None:
    """Whatever else LOCATION says is so for each node."""
    options = {} if kind is None else {"pool_class": kind}
    pool = pools_of(url, **options).at(host, 8501).pool
    read = parse_url(url)
    read.pop("connection_class", None)
    most = read.pop("max_connections", pool.max_connections)
    said = {**read, "host": host, "port": 8501}
    assert pool.max_connections == most
    assert said.items() <= pool.connection_kwargs.items()
    assert issubclass(pool.connection_class, redis.SSLConnection) is (
        url.startswith("rediss")
    )
    assert isinstance(pool, kind or redis.ConnectionPool)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("x?credential_provider=os.abort#", 1),
        ("10.0.0.1", 0),
        ("10.0.0.1", 65536),
        ("10.0.0.1", "6379"),
        ("a" * 1_000_000, 1),
        (["10.0.0.1"], 1),
    ],
)
def test_what_is_no_place(host: Any, port: Any) -> None:
    """redis-py's own clients do not check what a node announces."""
    pools = pools_of("redis://far")
    with pytest.raises(InvalidReplyError, match="No node") as caught:
        pools(host=host, port=port)
    assert len(str(caught.value)) < 300


def test_name_of_other_letters() -> None:
    """LOCATION may have one, and nodes without a name are reached there."""
    pools = pools_of("redis://ré.example")
    assert pools.first.name == "ré.example:6379"
    assert pools.at("ré.example", 8501).name == "ré.example:8501"
