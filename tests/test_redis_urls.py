"""``?credential_provider=`` in the URLs that redis-py reads."""

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import redis.asyncio
import redis.connection
from django.core.exceptions import ImproperlyConfigured

from django_entra_redis import redis_urls
from django_entra_redis.credentials import EntraCredentialProvider
from emulator import Emulator
from tests.support.caches import let_in

PROVIDER = "django_entra_redis.credentials.EntraCredentialProvider"

instance = EntraCredentialProvider("another")
nothing = object()


def url_of(path: str, url: str = "rediss://localhost:1") -> str:
    """Return a URL that names a provider."""
    return f"{url}?credential_provider={quote(path)}"


@pytest.fixture
def tables() -> Iterator[None]:
    """Put redis-py's tables back, and the finders."""
    finders = list(sys.meta_path)
    modules = [importlib.import_module(name) for name in redis_urls.MODULES]
    before = [dict(module.URL_QUERY_ARGUMENT_PARSERS) for module in modules]
    yield
    sys.meta_path[:] = finders
    for module, table in zip(modules, before, strict=True):
        module.URL_QUERY_ARGUMENT_PARSERS = table  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [redis.connection, redis.asyncio.connection])
def test_what_a_url_may_name(module: Any) -> None:
    """A provider's class, a provider, or what returns one."""
    made = module.parse_url(url_of(PROVIDER))["credential_provider"]
    assert isinstance(made, EntraCredentialProvider)
    assert made.identity == "default"
    found = module.parse_url(url_of(f"{__name__}.instance"))["credential_provider"]
    assert found is instance
    path = "django_entra_redis.credentials.get_credential_provider"
    with pytest.raises(ImproperlyConfigured, match="get_credential_provider"):
        # There is no identity in the tests' settings.
        module.parse_url(url_of(path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.Provider", "ModuleNotFoundError"),
        ("Provider", "ImportError"),
        (f"{__name__}.nothing", "is not a credential provider"),
        (f"{__name__}.url_of", "TypeError"),
    ],
)
def test_what_can_not_be_used(path: str, message: str) -> None:
    """The error names the parameter, and what it should be."""
    with pytest.raises(ImproperlyConfigured, match=message) as caught:
        redis.Redis.from_url(url_of(path))
    assert "?credential_provider= in a Redis URL" in str(caught.value)
    assert PROVIDER in str(caught.value)


def test_clients_of_such_urls_are_let_in(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kinds of client, made of nothing but a URL."""
    url = f"{url_of(PROVIDER, emulator.redis_url)}&ssl_ca_certs={emulator.ca_file}"

    async def ping() -> Any:
        async with redis.asyncio.Redis.from_url(url) as client:
            return await client.ping()

    with let_in(emulator, monkeypatch):
        with redis.Redis.from_url(url) as client:
            assert client.ping()
        assert asyncio.run(ping())


def test_another_entry_stays(tables: None) -> None:
    """Once redis-py knows the parameter itself, or somebody else has taught it."""
    redis.connection.URL_QUERY_ARGUMENT_PARSERS["credential_provider"] = str
    redis_urls.register()
    assert redis.connection.parse_url(url_of("x"))["credential_provider"] == "x"


def test_registered_before_redis_is_imported() -> None:
    """Nothing is imported for it, once is enough, and the module is as ever."""
    script = f"""
import inspect, json, sys
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django_entra_redis"], ENTRA_REDIS={{}})
before = len(sys.meta_path)
django.setup()
from django_entra_redis import redis_urls
redis_urls.register()
told = ["redis" in sys.modules, len(sys.meta_path) - before]
import redis
from redis.connection import parse_url
from redis.asyncio.connection import parse_url as aparse_url
url = {url_of(PROVIDER)!r}
told += [type(p(url)["credential_provider"]).__name__ for p in (parse_url, aparse_url)]
source = inspect.getsource(redis.connection)
told += [len(sys.meta_path) - before, "def parse_url" in source]
print(json.dumps(told))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    name = "EntraCredentialProvider"
    assert result.stderr == ""
    assert json.loads(result.stdout) == [False, 2, name, name, 0, True]


def test_a_finder_finds_its_module_once(tables: None) -> None:
    """Another thread may have been faster; another module is none of its business."""
    finder = redis_urls._Finder("json")
    assert finder.find_spec("redis") is None
    spec = finder.find_spec("json")
    assert spec is not None
    assert spec.name == "json"
    assert redis_urls._Finder("nowhere").find_spec("nowhere") is None
