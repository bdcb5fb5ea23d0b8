"""What is put under load: this package, and what one would use in its place."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Bound on one token request, scaled down as the tokens' life is: what hangs must leave
#: time for another try.
REQUEST_TIMEOUT = 1.0
SOCKET_TIMEOUT = 1.5

Description = Mapping[str, Any]


@dataclass(frozen=True)
class Subject:
    """A cache backend with an identity.

    Parameters:
        name: what the command line calls it.
        title: what the table calls it.
        modules: what must be installed.
    """

    name: str
    title: str
    modules: tuple[str, ...] = ()


def find_missing(*modules: str) -> list[str]:
    """Return the modules that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


OURS = Subject("ours", "django-entra-redis")
DJANGO = Subject("django", "RedisCache + redis-entraid", ("redis_entraid",))
DJANGO_REDIS = Subject(
    "django-redis", "django-redis + redis-entraid", ("django_redis", "redis_entraid")
)
SUBJECTS = (OURS, DJANGO, DJANGO_REDIS)
ALTERNATIVES = (DJANGO, DJANGO_REDIS)


def make_settings(
    name: str,
    emulator: Description,
    variant: str = "",
) -> dict[str, Any]:
    """Return the Django settings that reach an emulator.

    Parameters:
        name: a subject's.
        emulator: its ``emulator.json``.
        variant: ``blocking``, ``pool_class``, ``replicas``, ``identities``,
            ``beside`` or ``cluster``: how our cache differs.
    """
    common: dict[str, Any] = {"USE_TZ": True, "SECRET_KEY": "for the soak only"}
    if name == OURS.name:
        return {
            **common,
            "INSTALLED_APPS": ["django_entra_redis"],
            "ENTRA_REDIS": {
                name: {**identity, "REQUEST_TIMEOUT": REQUEST_TIMEOUT}
                for name, identity in make_identities(
                    emulator, two=variant == "identities"
                ).items()
            },
            "CACHES": _our_caches(emulator, variant),
        }
    provider = _redis_entraid(emulator)
    tls = {"ssl_ca_certs": emulator["ca_file"], "socket_timeout": SOCKET_TIMEOUT}
    if name == DJANGO.name:
        cache = {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": emulator["redis_url"],
            "OPTIONS": {**tls, "credential_provider": provider},
        }
    else:
        cache = {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": emulator["redis_url"],
            "OPTIONS": {
                "CONNECTION_POOL_KWARGS": {**tls, "credential_provider": provider}
            },
        }
    return {**common, "CACHES": {"default": cache}}


def make_identities(emulator: Description, *, two: bool = False) -> dict[str, Any]:
    """Return ``ENTRA_REDIS`` for an emulator: one identity, or two."""
    application = emulator["application"]
    identities = {
        "default": {
            "KIND": "service_principal",
            "TENANT_ID": emulator["tenant_id"],
            "CLIENT_ID": application["client_id"],
            "CLIENT_SECRET": application["secret"],
            "AUTHORITY_HOST": emulator["authority_host"],
            "INSTANCE_DISCOVERY": False,
        }
    }
    if two:
        # The emulator's second principal, by its instance metadata service.
        identities["other"] = {
            "KIND": "managed_identity",
            "CLIENT_ID": emulator["user_assigned"]["client_id"],
        }
    return identities


def _our_caches(emulator: Description, variant: str) -> dict[str, Any]:
    cache: dict[str, Any] = {
        "BACKEND": "django_entra_redis.cache.EntraRedisCache",
        "LOCATION": emulator["redis_url"],
        "OPTIONS": {
            "ssl_ca_certs": emulator["ca_file"],
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": SOCKET_TIMEOUT,
        },
    }
    caches = {"default": cache}
    options = cache["OPTIONS"]
    if variant == "cluster":
        cache["BACKEND"] = "django_entra_redis.cache.EntraRedisClusterCache"
    elif variant == "blocking":
        options |= {
            "pool_class": "redis.BlockingConnectionPool",
            "max_connections": 4,
            "timeout": 5,
        }
    elif variant == "pool_class":
        options["pool_class"] = "redis.ConnectionPool"
    elif variant == "replicas":
        # One server by two names: the first is written, the second read.
        cache["LOCATION"] = [emulator["redis_url"], f"{emulator['redis_url']}/0"]
    elif variant == "identities":
        caches["other"] = {**cache, "OPTIONS": {**options, "identity": "other"}}
    elif variant == "beside":
        # A second cache on a server that has no faults.
        caches["beside"] = {
            "BACKEND": cache["BACKEND"],
            "LOCATION": emulator["backend_url"],
            "OPTIONS": {"identity": None},
        }
    return caches


def _redis_entraid(emulator: Description) -> Any:
    """Return redis-entraid's provider, set up as ours is."""
    from msal import ConfidentialClientApplication
    from redis.auth.token_manager import RetryPolicy, TokenManagerConfig

    # It has no types.
    cred_provider = importlib.import_module("redis_entraid.cred_provider")
    identity_provider = importlib.import_module("redis_entraid.identity_provider")
    # create_from_service_principal() takes no authority but the public cloud's. What
    # it makes is made here, with its defaults, for the emulator's.
    application = ConfidentialClientApplication(
        emulator["application"]["client_id"],
        client_credential=emulator["application"]["secret"],
        authority=f"{emulator['authority_host']}/{emulator['tenant_id']}",
        instance_discovery=False,
        timeout=REQUEST_TIMEOUT,
    )
    return cred_provider.EntraIdCredentialsProvider(
        identity_provider.ServicePrincipalProvider(
            application, ["https://redis.azure.com/.default"]
        ),
        TokenManagerConfig(0.7, 0, 100, RetryPolicy(3, 3)),
    )
