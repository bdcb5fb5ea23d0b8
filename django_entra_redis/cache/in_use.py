"""The identities in use, whose renewals start with the process."""

from .._errors import ConfigurationError
from ..conf.identities import identity_aliases
from ..credentials.provider import start_renewal, started_identities
from .backend import entra_caches


def identities_in_use() -> list[str]:
    """Return the identities that caches name, and those that have been used.

    Other entries of the settings may be for another deployment, or for a developer's
    machine. Without any Entra cache all entries count: they may be for Celery.
    """
    caches = entra_caches().values()
    identities = {cache.identity for cache in caches if cache.identity is not None}
    if not caches:
        identities |= set(identity_aliases(default=False))
    return sorted(identities | started_identities())


def start_renewals() -> None:
    """Start a renewal thread for each identity in use."""
    for identity in identities_in_use():
        try:
            start_renewal(identity)
        except ConfigurationError:
            # The system checks report it, and the first use raises it.
            continue
