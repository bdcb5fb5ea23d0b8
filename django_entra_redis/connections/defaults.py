"""Defaults of a connection's options, which ``OPTIONS`` override."""

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
    """Return the TCP options by which the kernel notices a dead peer.

    It probes an idle connection after 30 s and closes it after 3 probes, 5 s apart; it
    closes one whose data is not acknowledged for 15 s.
    """
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
    """Return the options by which connections name their driver, as Django's do."""
    version = django.get_version()
    if hasattr(redis, "DriverInfo"):
        info = redis.DriverInfo().add_upstream_driver("django", version)
        return {"driver_info": info}
    return {"lib_name": f"redis-py(django_v{version})"}


def _maintenance() -> dict[str, Any]:
    """Return the options that keep redis-py 8 from subscribing to notifications.

    In RESP 3 it would, and would then change connections from other threads.
    """
    try:
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:  # redis-py 5 and 6 know none
        return {}
    return {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}


# Before redis-py 8, its own timeouts are None: without end. These are constants, since
# pools are shared by caches whose options are the same objects.
_DEFAULTS: Mapping[str, Any] = {
    "socket_connect_timeout": 5.0,
    "socket_timeout": 5.0,
    # For a cache, RESP 3 would only add push messages between the replies.
    "protocol": 2,
    **_driver(),
    **_maintenance(),
}
_TCP_DEFAULTS: Mapping[str, Any] = {
    "socket_keepalive": True,
    "socket_keepalive_options": _tcp_options(),
}
# Options in which None has a meaning: no timeout, or no driver's name. In the others
# None would switch off a default that is needed, and counts as not given.
_NONE_COUNTS = (
    "driver_info",
    "lib_name",
    "lib_version",
    "socket_connect_timeout",
    "socket_timeout",
)


def with_defaults(server: str, options: CacheOptions) -> CacheOptions:
    """Return a cache's options, filled in with defaults that suit a server on Azure.

    Parameters:
        server: its URL, whose scheme tells the kind of connection.
        options: the cache's settings.
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
        arguments = location.arguments if location else {}
        # redis-py 5.3 does not check the certificate's host name by default.
        verify = {**given, **arguments}.get("ssl_cert_reqs", "required")
        defaults["ssl_check_hostname"] = verify not in (None, "none", 0)
    for key in defaults.keys() - set(_NONE_COUNTS):
        if key in given and given[key] is None:
            del given[key]
    return replace(options, connection={**defaults, **given})
