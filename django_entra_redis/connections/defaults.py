"""Defaults of connections, unless ``OPTIONS`` say otherwise."""

import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import django
import redis
from redis.connection import SSLConnection, UnixDomainSocketConnection

from ..conf.location import read_url
from ..conf.options import CacheOptions
from .arguments import connection_kind


def _tcp_options() -> dict[int, int]:
    """Return the TCP options by which a dead peer is noticed in about 15 s."""
    wanted = {
        "TCP_KEEPIDLE": 30,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 15000,
    }
    return {
        getattr(socket, name): value
        for name, value in wanted.items()
        if hasattr(socket, name)
    }


def _driver() -> dict[str, Any]:
    """Return how connections introduce themselves to the server: as Django's do."""
    version = django.get_version()
    if hasattr(redis, "DriverInfo"):
        info = redis.DriverInfo().add_upstream_driver("django", version)
        return {"driver_info": info}
    return {"lib_name": f"redis-py(django_v{version})"}


def _maintenance() -> dict[str, Any]:
    """Return what keeps redis-py from asking for notifications of maintenance.

    It does so in RESP 3, and has other threads change the connections of a pool then.
    """
    if not hasattr(redis, "maint_notifications"):
        return {}
    off = redis.maint_notifications.MaintNotificationsConfig(enabled=False)
    return {"maint_notifications_config": off}


# redis-py's own, before its version 8, wait for ever. Constants, because what the pools
# of a process are told apart by includes the identity of such objects.
_DEFAULTS: Mapping[str, Any] = {
    "socket_connect_timeout": 5.0,
    "socket_timeout": 5.0,
    # RESP 3 brings a cache nothing but push messages between its replies.
    "protocol": 2,
    **_driver(),
    **_maintenance(),
}
_TCP_DEFAULTS: Mapping[str, Any] = {
    "socket_keepalive": True,
    "socket_keepalive_options": _tcp_options(),
}
# None means something to redis-py in these: no bound, or no introduction. Elsewhere it
# would switch off, or leave to redis-py's version, what must not be.
_NONE_COUNTS = (
    "driver_info",
    "lib_name",
    "lib_version",
    "socket_connect_timeout",
    "socket_timeout",
)


def with_defaults(server: str, options: CacheOptions) -> CacheOptions:
    """Return a cache's options with what suits a server on Azure filled in.

    Parameters:
        server: its URL, which says what kind of connection it takes.
    """
    given, defaults = dict(options.connection), dict(_DEFAULTS)
    if given.keys() & {"driver_info", "lib_name", "lib_version"}:
        for key in _driver():
            del defaults[key]
    kind = given.get("connection_class") or connection_kind(server)
    if not issubclass(kind, UnixDomainSocketConnection):
        defaults |= _TCP_DEFAULTS
    if issubclass(kind, SSLConnection):
        location = read_url(server)
        said = location.said if location else {}
        # redis-py 5.3 does not compare the certificate's name with the host's.
        asked = {**given, **said}.get("ssl_cert_reqs", "required")
        defaults["ssl_check_hostname"] = asked not in (None, "none", 0)
    for key in defaults.keys() - set(_NONE_COUNTS):
        if key in given and given[key] is None:
            del given[key]
    return replace(options, connection={**defaults, **given})
