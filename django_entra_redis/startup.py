"""Which identities are renewed from the start."""

from .cache import entra_caches
from .conf import identity_aliases
from .credentials import start_renewal
from .problems import ConfigurationError


def identities_in_use() -> list[str]:
    """Return the identities that caches name, and those that the settings define.

    None where all caches do without: that is a developer's machine, with the same
    settings file.
    """
    caches = entra_caches().values()
    identities = {cache.identity for cache in caches if cache.identity is not None}
    if identities or not caches:
        identities |= set(identity_aliases())
    return sorted(identities)


def start_renewals() -> None:
    """Start a renewal thread for each identity in use."""
    for identity in identities_in_use():
        try:
            start_renewal(identity, 0.0)
        except ConfigurationError:
            # The system checks say what is wrong, and first use raises it.
            continue
