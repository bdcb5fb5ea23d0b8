"""A cache's ``LOCATION``: the one place that reads the URLs of servers.

redis-py's own parser, which this follows, makes connections of a URL. It would bring in
redis-py, for which a system check is not worth waiting.
"""

import ipaddress
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

SCHEMES = ("redis", "rediss", "unix")
#: The port where a URL names none.
PORT = 6379


@dataclass(frozen=True, slots=True)
class Location:
    """A server's URL, read.

    Parameters:
        scheme: one of ``SCHEMES``.
        host, port: where it listens, with Redis' defaults filled in.
        path: of a Unix socket, or what stands for the number of a database.
        said: what the URL says of the connection, by the names of redis-py's arguments,
            as text; without what it does not say.
    """

    url: str = field(repr=False)
    scheme: str
    host: str
    port: int
    path: str = field(repr=False)
    said: Mapping[str, str] = field(repr=False)

    @property
    def bare(self) -> str | None:
        """The URL without what may be secret in it; ``None`` where that can't be told.

        A password that is not escaped may be in any part of it.
        """
        url = urlsplit(self.url)
        if "@" in url.path + url.query + url.fragment:
            return None
        return f"{self.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"

    def at(self, host: str, port: int) -> str:
        """Return the same URL for another host and port, such as a cluster's node."""
        url = urlsplit(self.url)
        user, at, _ = url.netloc.rpartition("@")
        shown = f"[{host}]" if ":" in host else host
        netloc = f"{user}{at}{shown}:{port}"
        return urlunsplit((url.scheme, netloc, url.path, url.query, url.fragment))

    def database(self, connection: Mapping[str, Any]) -> str:
        """Return the number of the database that a cache uses.

        Parameters:
            connection: the options that go on to redis-py, which the URL overrides.
        """
        said: dict[str, Any] = dict(self.said)
        path = unquote(self.path).replace("/", "")
        # redis-py passes over a path that is no number, and a socket's is a file's.
        if path.isdigit() and self.scheme != "unix":
            said = {"db": int(path), **said}
        return str({**connection, **said}.get("db") or 0)


def read_url(server: Any) -> Location | None:
    """Return what the URL of a server says; ``None``: it is no such URL."""
    try:
        if not server.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
            return None
        url = urlsplit(server)
        said = {key: values[0] for key, values in parse_qs(url.query).items()}
        given = {
            "username": url.username,
            "password": url.password,
            "host": url.hostname,
        }
        port = url.port  # raises where it is none
    except (ValueError, TypeError, AttributeError):
        return None
    # Of a password with a "/" or "#" that is not escaped; a socket may be named so.
    if "@" in url.path + url.fragment and (url.netloc or url.scheme != "unix"):
        return None
    said |= {key: unquote(value) for key, value in given.items() if value}
    host = said.get("host", "localhost")
    return Location(server, url.scheme, host, port or PORT, url.path, said)


def split_location(location: Any) -> tuple[str, ...]:
    """Return the servers of a ``LOCATION``, as Django's ``RedisCache`` splits it.

    Whatever is neither text nor a list (``None``, of a variable that isn't set) is
    left to :func:`parse_options` to find fault with.
    """
    if isinstance(location, str):
        return tuple(re.split("[;,]", location))
    return tuple(location) if isinstance(location, Iterable) else (location,)


def bare_urls(servers: Iterable[Any]) -> list[str]:
    """Return the servers' URLs without what may be secret in them; "?" where that can't
    be told of one: what is not escaped may even have been taken for several."""
    found = []
    for server in servers:
        location = read_url(server)
        bare = location.bare if location else None
        if bare is None:
            return ["?"]
        found.append(bare)
    return found or ["?"]


def transport(scheme: str, connection: Mapping[str, Any]) -> str:
    """Return the scheme that a connection really has.

    A class in ``OPTIONS`` goes before the one that the URL's scheme asks for.
    """
    kind = connection.get("connection_class")
    if not isinstance(kind, type):
        return scheme
    # Whoever has such a class has imported redis-py, which this module does without.
    classes = sys.modules.get("redis.connection")
    if classes is None:
        return "redis"
    if issubclass(kind, classes.SSLConnection):
        return "rediss"
    return "unix" if issubclass(kind, classes.UnixDomainSocketConnection) else "redis"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this very machine.

    The one name that may be is localhost, and it is only where it resolves to
    loopback addresses alone: a hosts file or a DNS server may lead it elsewhere.
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        if host.lower() != "localhost":
            return False
    try:
        found = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(is_loopback(str(address[0])) for *_, address in found)
