"""System checks of the settings, which make no requests."""

import inspect
import os
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.utils.module_loading import import_string

from ._errors import ConfigurationError, Problem
from .cache.backend import EntraRedisCache, entra_caches
from .conf.identities import (
    Identity,
    identity_aliases,
    identity_problems,
    is_identity_binding,
    load_identity,
)
from .conf.keys import ASYNCHRONOUS
from .conf.location import is_loopback, read_url, transport
from .conf.options import OWN, CacheOptions, database_problems, sent_credentials
from .conf.services import service_of
from .serializers import serializer_problems
from .types import EntraRedisOptions

#: The ports of the nodes of an OSS cluster, which clients are redirected to.
_NODE_PORTS = frozenset((*range(8500, 8600), *range(15000, 16000)))


@register(Tags.caches)
def check_identities(**kwargs: Any) -> list[CheckMessage]:
    """Check ``ENTRA_REDIS``, unless no cache has an identity.

    A developer's machine may have the same settings file, but not the secrets.
    """
    caches = entra_caches().values()
    if caches and not any(cache.wants_identity for cache in caches):
        return []
    return _errors([*identity_problems(), *_credential_problems()])


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
def check_warnings(**kwargs: Any) -> list[CheckMessage]:
    """Warn of settings that work, and should be changed."""
    found = _cache_warnings() + _celery_warnings()
    if any(cache.wants_identity for cache in entra_caches().values()):
        found += _identity_warnings()
    return _messages(Warning, found)


@register(Tags.caches, deploy=True)
def check_secrets(**kwargs: Any) -> list[CheckMessage]:
    """Warn of secrets in the source of a site in production."""
    return _messages(Warning, _secret_warnings())


def _credential_problems() -> list[Problem]:
    """Return the problems of dotted paths that lead to an asynchronous credential."""
    found = []
    for alias in identity_aliases():
        try:
            path = load_identity(alias).credential
        except ConfigurationError:
            continue
        if isinstance(path, str) and _is_asynchronous(path):
            found.append(
                Problem(
                    "E007",
                    f"ENTRA_REDIS[{alias!r}]['CREDENTIAL']",
                    f"'{path}' is asynchronous.",
                    ASYNCHRONOUS,
                )
            )
    return found


def _is_asynchronous(path: str) -> bool:
    """Whether a dotted path leads to an asynchronous credential, or a maker of one.

    Nothing is called, and no attribute of an object is computed. azure.identity, which
    is large, is not imported: of its names only those in "aio" are asynchronous.
    """
    if path.startswith("azure.identity."):
        return False
    try:
        value = import_string(path)
    # Whoever uses it is told: a module may need what is not there at a check.
    except Exception:
        return False
    # isinstance() would have Django's lazy objects make what they stand for.
    kind: Any = type(value)
    if kind is FunctionType:
        return inspect.iscoroutinefunction(value)
    get_token = inspect.getattr_static(
        value if issubclass(kind, type) else kind, "get_token", None
    )
    return inspect.iscoroutinefunction(getattr(get_token, "__func__", get_token))


def _cache_warnings() -> list[Problem]:
    """Return warnings about the caches: settings that work and should be changed."""
    found: list[Problem] = []
    for alias, cache in entra_caches().items():
        try:
            options = cache.read_options()
        except ConfigurationError:
            continue  # That is an error, and told as one.
        for server in options.servers:
            found += _server_warnings(f"CACHES[{alias!r}]", server, options)
        found += _session_warnings(alias, cache, options)
    # Without duplicates: several servers often have the same problem.
    return list(dict.fromkeys(found))


def _celery_warnings() -> list[Problem]:
    """Return a warning if Celery's workers lose their broker at each expiry.

    kombu authenticates connections again only in its own event loop, which it does not
    have in pools of greenlets.
    """
    pool = getattr(settings, "CELERY_WORKER_POOL", None)
    urls = [
        str(getattr(settings, f"CELERY_{name}", ""))
        for name in ("BROKER_URL", "BROKER_READ_URL", "RESULT_BACKEND")
    ]
    if pool not in ("gevent", "eventlet") or not any(
        "credential_provider=django_entra_redis" in url for url in urls
    ):
        return []
    return [
        Problem(
            "W007",
            "CELERY_WORKER_POOL",
            f"with '{pool}' the worker loses its broker whenever a token expires.",
            "Use 'prefork' or 'threads': kombu renews its connections only there.",
        )
    ]


def _identity_warnings() -> list[Problem]:
    """Return warnings of identities whose federated token is not for Entra."""
    found = []
    for alias in identity_aliases():
        try:
            identity = load_identity(alias)
        except ConfigurationError:
            continue  # That is an error, and told as one.
        if is_identity_binding(identity, os.environ):
            found.append(
                Problem(
                    "W008",
                    f"ENTRA_REDIS[{alias!r}]",
                    "its federated token is for AKS' identity binding "
                    "($AZURE_KUBERNETES_TOKEN_PROXY is set), and Entra refuses it.",
                    "Set CREDENTIAL to azure.identity's WorkloadIdentityCredential("
                    "enable_azure_proxy=True), which asks the proxy.",
                )
            )
    return found


def _secret_warnings() -> list[Problem]:
    """Return warnings of secrets in the settings' source of a site in production."""
    if settings.DEBUG:
        return []
    source = _settings_source()
    found = []
    for alias in identity_aliases():
        try:
            identity = load_identity(alias)
        except ConfigurationError:
            continue
        for key, secret in _secrets(identity).items():
            if secret and secret in source:
                found.append(
                    Problem(
                        "W004",
                        f"ENTRA_REDIS[{alias!r}][{key!r}]",
                        "a secret is written into the settings' source.",
                        "Whoever reads the code can use it: take it from the "
                        "environment or a secret store, and make a new one.",
                    )
                )
    return found


def _server_warnings(
    where: str, server: str, options: CacheOptions
) -> Iterator[Problem]:
    read = read_url(server)
    assert read is not None  # read_options() has refused what is no URL.
    # As in redis-py, the URL overrides OPTIONS.
    given = {**options.connection, **read.arguments}
    scheme, port = transport(read.scheme, given), read.port
    host = str(given.get("host") or "localhost").lower()
    location = f"{where}['LOCATION']"
    if scheme == "unix" or is_loopback(host):
        return
    if options.identity is not None:
        yield from _token_warnings(location, scheme, host, port, options)
    elif not sent_credentials(given):
        return
    if scheme == "rediss" and (switch := _unverified(given)) is not None:
        sent = "password" if options.identity is None else "token"
        yield Problem(
            "W003",
            where,
            f"the server's certificate is not verified ({switch}).",
            f"Anybody between here and there can take the {sent}: remove the option. "
            "For a private certificate authority set ssl_ca_certs.",
        )
    elif scheme == "rediss" and given.get("ssl_check_hostname", True) is None:
        yield Problem(
            "W003",
            where,
            "it has ssl_check_hostname None, which is taken for True.",
            "Remove the option: redis-py's own clients take None for False.",
        )


def _token_warnings(
    location: str, scheme: str, host: str, port: int, options: CacheOptions
) -> Iterator[Problem]:
    """Yield the warnings of a server that tokens are sent to."""
    if scheme == "redis" and options.allow_plaintext_token:
        yield Problem(
            "W001",
            location,
            f"tokens cross the network to {host} in plain text.",
            "Use rediss://. Whoever reads a token can use it until it expires.",
        )
    service = service_of(host)
    if service and port != service.port and port not in _NODE_PORTS:
        yield Problem(
            "W002",
            location,
            f"{host} does not listen for TLS on port {port}.",
            f"It should be port {service.port}.",
        )


def _unverified(given: Mapping[str, Any]) -> str | None:
    """Return the option that switches the verification off, if one does.

    redis-py takes a mode's name or its number, and any true value; in a URL, texts. A
    value that is not known to switch it on counts as off.
    """
    required = given.get("ssl_cert_reqs", "required")
    if str(required).lower() != "required" and required != ssl.CERT_REQUIRED:
        return "ssl_cert_reqs"
    checked = given.get("ssl_check_hostname")
    off = ("", "false", "0", "f", "n", "no")
    if checked is not None and (not checked or str(checked).lower() in off):
        return "ssl_check_hostname"
    return None


def _session_warnings(
    alias: str, cache: EntraRedisCache, options: CacheOptions
) -> Iterator[Problem]:
    if (
        options.ignore_exceptions
        and alias == settings.SESSION_CACHE_ALIAS
        and settings.SESSION_ENGINE == "django.contrib.sessions.backends.cache"
    ):
        yield Problem(
            "W005",
            f"CACHES[{alias!r}]['OPTIONS']['ignore_exceptions']",
            "sessions are in a cache that hides its outages.",
            "An outage would log everybody out without a word, and logging in would "
            "hang, as Django looks for a free session key: set "
            "SESSION_ENGINE to 'django_entra_redis.sessions', which raises then, or "
            "SESSION_CACHE_ALIAS to a cache without ignore_exceptions.",
        )


def _secrets(identity: Identity) -> Mapping[str, str | None]:
    return {
        "CLIENT_SECRET": identity.client_secret,
        "CLIENT_CERTIFICATE_PASSWORD": identity.client_certificate_password,
    }


def _settings_source() -> str:
    """Return the source of the settings module, and of the modules beside it."""
    module = sys.modules.get(getattr(settings, "SETTINGS_MODULE", None) or "")
    path = getattr(module, "__file__", None)
    if path is None:
        return ""
    return "\n".join(
        file.read_text(encoding="utf-8", errors="replace")
        for file in Path(path).parent.glob("*.py")
    )


def _unknown_options(
    options: CacheOptions, where: str, *, clustered: bool
) -> list[Problem]:
    """Return the problems of options that are unknown, or should be a class.

    The usual options are known without redis-py, whose import would make every check
    slow. It is imported for others, since its options differ between versions.
    """
    urls = [url for server in options.servers if (url := read_url(server))]
    schemes = {url.scheme for url in urls}
    in_urls = {key for url in urls for key in url.arguments}
    usual = {
        key
        for key in EntraRedisOptions.__annotations__
        if (clustered or key != "address_remap")
        and (schemes == {"rediss"} or not key.startswith("ssl_"))
    }
    if (
        options.connection.keys() <= {*usual, "host"}
        and in_urls <= {*usual, "host"} - {*OWN, "connection_class"}
        and "unix" not in schemes
        and options.pool_class is options.parser_class is None
    ):
        return []
    from .connections.arguments import class_problems, unknown_options

    return [
        *class_problems(options, where),
        *unknown_options(options, where, clustered=clustered),
    ]


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
