"""Which keys copies are kept of."""

from typing import Any

import pytest

from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.cache.copied_keys import SESSIONS
from tests.support.caches import make_cache


class Keyed(EntraRedisCache):
    """A cache that makes its keys in its own way."""

    def make_key(self, key: str, version: int | None = None) -> str:
        """Return a key."""
        return f"<{version}|{key}>"


def keeps(
    key: str,
    prefixes: Any = None,
    *,
    kind: type[EntraRedisCache] = EntraRedisCache,
    version: Any = None,
    **params: Any,
) -> bool:
    """Return whether copies are kept of a key."""
    options = {"identity": None, "client_side_cache": {"prefixes": prefixes}}
    cache = kind("redis://h", {**params, "OPTIONS": options})
    client: Any = cache._cache
    kept: bool = client.keeps(cache.make_key(key, version))
    return kept


def test_all_but_sessions() -> None:
    """Unless asked for otherwise."""
    assert keeps("menu")
    assert keeps("menu", KEY_PREFIX="a:b", version=7)
    assert not keeps(f"{SESSIONS}cacheabc")
    assert not keeps(f"{SESSIONS}cacheabc", [""])


@pytest.mark.parametrize("prefixes", [None, [""], ["", "menu"]])
def test_sessions_wherever_their_name_begins(prefixes: Any) -> None:
    """A version may have a colon, and a cache's attributes may change."""
    session = f"{SESSIONS}cacheabc"
    assert not keeps(session, prefixes, VERSION="v:1")
    assert not keeps(session, prefixes, version="v:1")
    options = {"identity": None, "client_side_cache": {"prefixes": prefixes}}
    cache = EntraRedisCache("redis://h", {"KEY_PREFIX": "p", "OPTIONS": options})
    client: Any = cache._cache
    for prefix in ("longer:x", "p:x", "", "q"):
        cache.key_prefix = prefix
        assert not client.keeps(cache.make_key(session))


def test_versions_with_a_colon() -> None:
    """The cache's own one is known."""
    assert keeps("menu:1", ["menu"], VERSION="v:1")
    assert not keeps("other", ["menu"], VERSION="v:1")
    assert keeps(f"{SESSIONS}cacheabc", [SESSIONS], VERSION="v:1")


def test_a_key_prefix_that_is_changed() -> None:
    """No key is taken for one of another name."""
    options = {"identity": None, "client_side_cache": {"prefixes": ["menu"]}}
    cache = EntraRedisCache("redis://h", {"KEY_PREFIX": "long", "OPTIONS": options})
    client: Any = cache._cache
    assert client.keeps(cache.make_key("menu"))
    cache.key_prefix = ""
    assert not client.keeps(cache.make_key("xx:menu"))


def test_prefixes() -> None:
    """Are those of the names, whatever is put before these."""
    assert keeps("menu:1", ["flags", "menu"])
    assert keeps("menu:1", ["flags", "menu"], KEY_PREFIX="x", version=9)
    assert not keeps("other", ["flags", "menu"])
    # A prefix that is no text counts as the text that keys have.
    assert keeps("menu:1", ["menu"], KEY_PREFIX=15)
    assert not keeps("x", [])
    assert keeps(f"{SESSIONS}cacheabc", ["menu", SESSIONS])


def test_keys_of_one_s_own() -> None:
    """Where the name can be found in them."""
    parts: Any = {"KEY_FUNCTION": lambda key, prefix, version: f"{version}|{key}!"}
    assert keeps("menu", ["menu"], **parts)
    assert not keeps("other", ["menu"], **parts)
    assert not keeps("menu", ["menu"], version=9, **parts)
    hidden: Any = {"KEY_FUNCTION": lambda key, prefix, version: str(hash(key))}
    assert not keeps("menu", **hidden)
    assert keeps("menu", ["menu"], kind=Keyed)
    assert not keeps(f"{SESSIONS}x", kind=Keyed)


@pytest.mark.parametrize("value", [True, {}])
def test_caches_that_make_keys_differently(value: Any) -> None:
    """Each keeps copies by its own keys, also with no setting but the defaults."""

    def hide(key: str, prefix: str, version: int) -> str:
        return str(hash(key))

    params = {"KEY_FUNCTION": hide}
    options: Any = {"identity": None, "client_side_cache": value}
    plain = make_cache("redis://localhost", **options)
    hiding = make_cache("redis://localhost", params=params, **options)
    clients: list[Any] = [plain._cache, hiding._cache]
    assert clients[0].keeps(plain.make_key("menu"))
    assert not clients[1].keeps(hiding.make_key("menu"))
