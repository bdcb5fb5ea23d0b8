"""Azure's Redis services, recognized by the suffixes of their host names.

A host name may lead to another service than its suffix says: after a migration that of
an Azure Cache for Redis leads to an Azure Managed Redis. The server's replies count
more than its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Service:
    """One of Azure's Redis services.

    Parameters:
        name: Azure's name for it.
        port: its port for TLS.
        one_database: whether it has database 0 only.
    """

    name: str
    port: int
    one_database: bool


MANAGED = Service("Azure Managed Redis", 10000, one_database=True)
CACHE = Service("Azure Cache for Redis", 6380, one_database=False)

#: By the suffix of the host name: the public cloud, China, the United States'
#: government, and the sovereign clouds.
SERVICES: Mapping[str, Service] = {
    ".redis.azure.net": MANAGED,
    ".redis.chinacloudapi.cn": MANAGED,
    ".redis.usgovcloudapi.net": MANAGED,
    ".redis.sovcloud-api.de": MANAGED,
    ".redis.sovcloud-api.fr": MANAGED,
    ".redis.sovcloud-api.sg": MANAGED,
    # Its predecessor, the Enterprise tiers of Azure Cache for Redis.
    ".redisenterprise.cache.azure.net": MANAGED,
    ".redis.cache.windows.net": CACHE,
    ".redis.cache.chinacloudapi.cn": CACHE,
    ".redis.cache.usgovcloudapi.net": CACHE,
    ".redis.cache.sovcloud-api.de": CACHE,
    ".redis.cache.sovcloud-api.fr": CACHE,
}


def service_of(host: str) -> Service | None:
    """Return the service that a host name belongs to; ``None``: none of Azure's."""
    name = host.lower().rstrip(".")
    return next((SERVICES[end] for end in SERVICES if name.endswith(end)), None)
