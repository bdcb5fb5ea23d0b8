"""The addresses of a cluster's nodes: what a node may say another one is reached at.

A hijacked node may announce anything, and what it announces is connected to.
"""

import re
from ipaddress import IPv6Address
from typing import Any

Address = tuple[str, int]

#: Hosts that mean the host of the node that was asked: the node does not know its name,
#: or is configured not to announce it (``cluster-preferred-endpoint-type``).
NO_HOST = ("", "?")
#: Characters of a host name or address at most, as in DNS.
_MAX_HOST = 255
#: What Redis accepts as ``cluster-announce-hostname``, and the underscore, which names
#: of containers have. A name with an empty or an overlong part is among them, and can't
#: be looked up: like any other that nobody has, it may be reached at ``LOCATION``. None
#: begins with a dot: TLS has no such names.
_NAME = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{_MAX_HOST - 1}}}")


def is_host(host: Any) -> bool:
    """Whether something is written like a host name, or is an IP address.

    An IPv6 address may have no scope: that names an interface of the machine that
    connects, which no node knows, and may consist of any characters.
    """
    if not isinstance(host, str) or len(host) > _MAX_HOST:
        return False
    if _NAME.fullmatch(host):
        return True
    try:
        return IPv6Address(host).scope_id is None
    except ValueError:
        return False


def is_port(port: Any) -> bool:
    """Whether something is the number of a port that can be connected to."""
    return type(port) is int and 0 < port < 65536
