"""The platforms that offer managed identities, and what tells each of them.

msal chooses among them by the environment variables that are set, and by Azure Arc's
agent; this module describes its choice, for the errors of a request that fails.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from msal import managed_identity

#: Statuses of an endpoint that is not ready yet ("How to use managed identities for
#: Azure resources on an Azure VM to acquire an access token";
#: Azure/azure-sdk-for-net#28568).
NOT_YET = frozenset({404, 410})


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A platform with an endpoint of managed identity.

    Parameters:
        name: what it is called.
        endpoint: the variable with the endpoint's URL; ``None`` if that is fixed.
        secret: the variable with the secret that each request carries, if one does.
        announced: whether something on this machine says that the endpoint exists, so
            that one which can't be reached is not up.
        not_yet: statuses of an endpoint that is not ready yet.
    """

    name: str
    endpoint: str | None = None
    secret: str | None = None
    announced: bool = True
    not_yet: frozenset[int] = NOT_YET


VIRTUAL_MACHINE = Platform(
    name="a virtual machine",
    endpoint="AZURE_POD_IDENTITY_AUTHORITY_HOST",
    announced=False,
)
APP_SERVICE = Platform(
    name="App Service", endpoint="IDENTITY_ENDPOINT", secret="IDENTITY_HEADER"
)
# From Service Fabric, a 404 means that there is no such identity.
SERVICE_FABRIC = Platform(
    name="Service Fabric",
    endpoint="IDENTITY_ENDPOINT",
    secret="IDENTITY_HEADER",
    not_yet=frozenset(),
)
MACHINE_LEARNING = Platform(
    name="Azure Machine Learning", endpoint="MSI_ENDPOINT", secret="MSI_SECRET"
)
AZURE_ARC = Platform(name="Azure Arc", endpoint="IDENTITY_ENDPOINT")

_SOURCES: Mapping[object, Platform] = {
    managed_identity.APP_SERVICE: APP_SERVICE,
    managed_identity.SERVICE_FABRIC: SERVICE_FABRIC,
    managed_identity.MACHINE_LEARNING: MACHINE_LEARNING,
    managed_identity.AZURE_ARC: AZURE_ARC,
}


def find_platform() -> Platform:
    """Return the platform that msal takes this machine for."""
    source = managed_identity.get_managed_identity_source()
    return _SOURCES.get(source, VIRTUAL_MACHINE)


#: What is missing beside a variable for a platform to be recognised by it.
_COMPANIONS: Mapping[str, str] = {
    "IDENTITY_ENDPOINT": "$IDENTITY_HEADER (App Service, Container Apps, Service "
    "Fabric) or $IMDS_ENDPOINT (Azure Arc)",
    "IDENTITY_HEADER": "$IDENTITY_ENDPOINT",
    "MSI_ENDPOINT": "$MSI_SECRET (Azure Machine Learning)",
    "MSI_SECRET": "$MSI_ENDPOINT",
}


def find_incomplete() -> str | None:
    """Return what is to be said of variables that are only partly set, if some are.

    They count where a virtual machine's endpoint was asked for want of another one.
    """
    for name, missing in _COMPANIONS.items():
        if os.environ.get(name):
            return f"${name} is set without {missing}"
    return None
