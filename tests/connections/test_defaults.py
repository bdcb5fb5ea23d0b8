"""What connections get that OPTIONS say nothing of."""

import ssl
from typing import Any

import pytest

from django_entra_redis.conf.options import parse_options
from django_entra_redis.connections.defaults import with_defaults

LOCATION = "rediss://contoso.westeurope.redis.azure.net:10000"


def connection(**options: Any) -> dict[str, Any]:
    """Return what goes on to redis-py for a cache with these options."""
    parsed = parse_options([LOCATION], options)
    return dict(with_defaults(LOCATION, parsed).connection)


@pytest.mark.parametrize(
    "key",
    ["protocol", "socket_keepalive", "socket_keepalive_options", "ssl_check_hostname"],
)
def test_none_is_no_value(key: str) -> None:
    """What must not be left to redis-py's version is not switched off by a None."""
    assert connection(**{key: None}) == connection()
    assert connection()[key]


def test_none_for_no_bound() -> None:
    """redis-py takes it for no bound on these, and so do its users."""
    found = connection(socket_timeout=None, socket_connect_timeout=None)
    assert found["socket_timeout"] is found["socket_connect_timeout"] is None


@pytest.mark.parametrize("value", [None, "none", 0, False, ssl.CERT_NONE])
def test_no_verification(value: Any) -> None:
    """A name is not compared where its certificate is not verified."""
    assert connection(ssl_cert_reqs=value)["ssl_check_hostname"] is False
