"""The one reader of servers' URLs."""

import sys

import pytest
from redis.connection import parse_url

from django_entra_redis.conf.location import read_url, transport


class Unrelated:
    """A class that has nothing to do with redis-py's connections."""


@pytest.mark.parametrize(
    "url",
    [
        "redis://far",
        "rediss://far:10000/0?a=b",
        "redis://u:p%40@far/1",
        "redis://",
        "rediss://[::1]:1",
    ],
)
def test_address(url: str) -> None:
    """A server is where redis-py takes it to be, with Redis' defaults."""
    location = read_url(url)
    assert location is not None
    read = {"host": "localhost", "port": 6379, **parse_url(url)}
    assert (location.host, location.port) == (read["host"], read["port"])


def test_repr_has_no_secret() -> None:
    """A URL may hold a password."""
    location = read_url("redis://user:sesame@far?password=sesame")
    assert "sesame" not in repr(location)


@pytest.mark.parametrize(
    "path", ["", "/0", "/7", "/٣", "/ 1", "/1/2", "/1_0", "/x", "/²", "/-1", "/%37"]
)
def test_database(path: str) -> None:
    """It is the one that redis-py takes it for."""
    location = read_url(f"redis://far{path}")
    assert location is not None
    assert location.database({}) == str(parse_url(f"redis://far{path}").get("db", 0))


@pytest.mark.parametrize("without", [True, False])
def test_a_class_of_ones_own(without: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has nothing of redis-py's protects nothing."""
    if without:
        monkeypatch.delitem(sys.modules, "redis.connection")
    assert transport("rediss", {"connection_class": Unrelated}) == "redis"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://Cache:6379", ("cache", "6379", "0")),
        ("rediss://u:p@cache/3", ("cache", "6379", "3")),
        ("redis://cache?db=3", ("cache", "6379", "3")),
        ("unix:///run/redis.sock?db=3", ("/run/redis.sock", "3")),
    ],
)
def test_place(url: str, place: tuple[str, ...]) -> None:
    """One database is known as one, however it is written."""
    location = read_url(url)
    assert location is not None
    assert location.place({}) == place
