"""System checks: what is wrong with the settings, without asking the network."""

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register

from ._errors import ConfigurationError, Problem
from .cache.backend import entra_caches
from .cautions import (
    cache_cautions,
    celery_cautions,
    identity_cautions,
    secret_cautions,
)
from .conf.identities import identity_problems, load_identity
from .conf.location import read_url
from .conf.options import CacheOptions, database_problems
from .serializers import serializer_problems
from .types import EntraRedisOptions


@register(Tags.caches)
def check_identities(**kwargs: Any) -> list[CheckMessage]:
    """Check ``ENTRA_REDIS``, unless all caches do without it.

    That is a developer's machine, with the same settings file, but not the secrets.
    """
    caches = entra_caches().values()
    if caches and not any(cache.wants_identity for cache in caches):
        return []
    return _errors(identity_problems())


@register(Tags.caches)
def check_caches(**kwargs: Any) -> list[CheckMessage]:
    """Check the settings of each cache that this backend serves."""
    problems: list[Problem] = []
    for alias, cache in entra_caches().items():
        where = f"CACHES[{alias!r}]"
        try:
            options = cache.read_options(where)
            problems += serializer_problems(
                options.serializer,
                options.compressor,
                where,
                fallbacks=options.compressor_fallbacks,
            )
            problems += database_problems(options, where)
            problems += _unknown_options(options, where, clustered=cache.clustered)
            if options.identity is not None:
                load_identity(options.identity)
        except ConfigurationError as error:
            problems += error.problems
    said = identity_problems()
    return _errors([problem for problem in problems if problem not in said])


@register(Tags.caches)
def check_cautions(**kwargs: Any) -> list[CheckMessage]:
    """Warn of what works, but should not be."""
    found = cache_cautions() + celery_cautions()
    if any(cache.wants_identity for cache in entra_caches().values()):
        found += identity_cautions()
    return _messages(Warning, found)


@register(Tags.caches, deploy=True)
def check_secrets(**kwargs: Any) -> list[CheckMessage]:
    """Warn of secrets in the source of a site in production."""
    return _messages(Warning, secret_cautions())


def _unknown_options(
    options: CacheOptions, where: str, *, clustered: bool
) -> list[Problem]:
    """Return which options nobody knows.

    redis-py knows more of them than are usual, and they differ with its version; to ask
    it takes longer than a check should.
    """
    urls = [url for server in options.servers if (url := read_url(server))]
    schemes = {url.scheme for url in urls}
    given = {*options.connection, *(key for url in urls for key in url.said)}
    usual = {
        key
        for key in EntraRedisOptions.__annotations__
        if (clustered or key != "address_remap")
        and (schemes == {"rediss"} or not key.startswith("ssl_"))
    }
    if given <= {*usual, "host"} and "unix" not in schemes:
        return []
    from .connections.arguments import unknown_options

    return unknown_options(options, where, clustered=clustered)


def _errors(problems: Sequence[Problem]) -> list[CheckMessage]:
    return _messages(Error, problems)


def _messages(
    kind: type[Error | Warning], problems: Sequence[Problem]
) -> list[CheckMessage]:
    return [
        kind(
            f"{problem.where}: {problem.message}",
            hint=problem.hint,
            id=f"django_entra_redis.{problem.id}",
        )
        for problem in problems
    ]
