"""The one reader of servers' URLs."""

import sys

import pytest
from redis.connection import parse_url

from django_entra_redis.conf.location import read_url, transport


class Unrelated:
    """A class that has nothing to do with redis-py's connections."""


@pytest.mark.parametrize(
    ("url", "host", "port", "moved"),
    [
        ("redis://far", "far", 6379, "redis://10.0.0.1:8501"),
        ("rediss://far:10000/0?a=b", "far", 10000, "rediss://10.0.0.1:8501/0?a=b"),
        ("redis://u:p%40@far/1", "far", 6379, "redis://u:p%40@10.0.0.1:8501/1"),
        ("redis://", "localhost", 6379, "redis://10.0.0.1:8501"),
    ],
)
def test_another_host(url: str, host: str, port: int, moved: str) -> None:
    """A cluster's node is reached as its first server is, but elsewhere."""
    location = read_url(url)
    assert location is not None
    assert (location.host, location.port) == (host, port)
    assert location.at("10.0.0.1", 8501) == moved
    said, changed = parse_url(url), parse_url(moved)
    where = {"host": "10.0.0.1", "port": 8501}
    assert {**said, **where} == changed


def test_another_host_by_ipv6() -> None:
    """Its address is put in brackets."""
    location = read_url("rediss://far:1")
    assert location is not None
    assert parse_url(location.at("::1", 2))["host"] == "::1"


def test_repr_has_no_secret() -> None:
    """A URL may hold a password."""
    location = read_url("redis://user:sesame@far?password=sesame")
    assert "sesame" not in repr(location)


@pytest.mark.parametrize("without", [True, False])
def test_a_class_of_ones_own(without: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has nothing of redis-py's protects nothing."""
    if without:
        monkeypatch.delitem(sys.modules, "redis.connection")
    assert transport("rediss", {"connection_class": Unrelated}) == "redis"
