"""A cache's ``LOCATION``: the one place that reads the URLs of servers.

It reads them as redis-py's own parser does, but without importing redis-py, which would
make the system checks slow.
"""

import ipaddress
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .._fork import no_fork

SCHEMES = ("redis", "rediss", "unix")
#: The port where a URL names none.
PORT = 6379


@dataclass(frozen=True, slots=True)
class Location:
    """A server's URL and its parts.

    Parameters:
        url: the URL.
        scheme: one of ``SCHEMES``.
        host, port: the server's address, with Redis' defaults filled in.
        path: the path of a Unix socket, or the number of a database.
        arguments: the arguments for redis-py's connections that the URL contains, as
            text, by their names.
    """

    url: str = field(repr=False)
    scheme: str
    host: str
    port: int
    path: str = field(repr=False)
    arguments: Mapping[str, str] = field(repr=False)

    @property
    def redacted(self) -> str | None:
        """The URL without parts that may be secret; ``None``: any part may be.

        A password that is not escaped may reach into any part of the URL.
        """
        url = urlsplit(self.url)
        if "@" in url.path + url.query + url.fragment:
            return None
        return f"{self.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"

    def database(self, connection: Mapping[str, Any]) -> str:
        """Return the number of the database that a cache uses.

        Parameters:
            connection: the options that are passed on to redis-py. The URL overrides
                them.
        """
        return str({**connection, **self.values}.get("db") or 0)

    def place(self, connection: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what tells a database of a server from all others.

        Parameters:
            connection: as of :meth:`database`.
        """
        unix = self.scheme == "unix"
        address = (self.path,) if unix else (self.host.lower(), str(self.port))
        return *address, self.database(connection)

    @property
    def values(self) -> Mapping[str, str]:
        """The arguments, and the database that the path names, as text.

        redis-py ignores a path that is not a number; a Unix socket's path is a file.
        """
        if self.scheme == "unix":
            return self.arguments
        try:
            number = int(unquote(self.path).replace("/", ""))
        except ValueError:
            return self.arguments
        return {"db": str(number), **self.arguments}


def read_url(server: Any) -> Location | None:
    """Return a server's URL and its parts; ``None``: it is not the URL of a server."""
    try:
        if not server.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
            return None
        url = urlsplit(server)
        arguments = {key: values[0] for key, values in parse_qs(url.query).items()}
        given = {
            "username": url.username,
            "password": url.password,
            "host": url.hostname,
        }
        port = url.port  # raises ValueError if it is not a number
    except (ValueError, TypeError, AttributeError):
        return None
    # The "@" follows a password with an unescaped "/" or "#"; but a Unix socket's path
    # may have one, too.
    if "@" in url.path + url.fragment and (url.netloc or url.scheme != "unix"):
        return None
    arguments |= {key: unquote(value) for key, value in given.items() if value}
    host = arguments.get("host", "localhost")
    return Location(server, url.scheme, host, port or PORT, url.path, arguments)


def split_location(location: Any) -> tuple[str, ...]:
    """Return the servers of a ``LOCATION``, split as Django's ``RedisCache`` does.

    A value that is neither text nor a list, such as the ``None`` of an unset variable,
    is returned as it is: :func:`parse_options` reports it.
    """
    if isinstance(location, str):
        return tuple(re.split("[;,]", location))
    return tuple(location) if isinstance(location, Iterable) else (location,)


def redacted_urls(servers: Iterable[Any]) -> list[str]:
    """Return the servers' URLs without parts that may be secret.

    It is "?" alone if any part of one may be secret: a password with an unescaped comma
    or semicolon has been split into several "servers".
    """
    found = []
    for server in servers:
        location = read_url(server)
        redacted = location.redacted if location else None
        if redacted is None:
            return ["?"]
        found.append(redacted)
    return found or ["?"]


def transport(scheme: str, connection: Mapping[str, Any]) -> str:
    """Return the scheme that a connection has in fact.

    A ``connection_class`` in ``OPTIONS`` counts more than the URL's scheme.

    Parameters:
        scheme: the URL's scheme.
        connection: the options that are passed on to redis-py.
    """
    kind = connection.get("connection_class")
    if not isinstance(kind, type):
        return scheme
    # Where there is such a class, redis-py has been imported; this module does not.
    classes = sys.modules.get("redis.connection")
    if classes is None:
        return "redis"
    if issubclass(kind, classes.SSLConnection):
        return "rediss"
    return "unix" if issubclass(kind, classes.UnixDomainSocketConnection) else "redis"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback interface.

    Of names, only localhost may be, and only if it resolves to loopback addresses
    alone: a hosts file or a DNS server may have other addresses for it.
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        if host.lower() != "localhost":
            return False
    try:
        # A child that is forked in the midst of a lookup may wait for ever in its own:
        # the C library's locks stay locked.
        with no_fork():
            found = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(is_loopback(str(address[0])) for *_, address in found)
