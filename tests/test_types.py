"""What is there for type checkers holds at run time, too.

tox's environment ``types`` has mypy and pyright check tests/typing; here it is run.
"""

import importlib
import inspect
import subprocess
import sys
from typing import get_args

from django.test import override_settings
from redis.cluster import RedisCluster
from redis.connection import ConnectionPool, SSLConnection

from django_entra_redis import signals, types
from django_entra_redis.conf.identities import KEYS, KINDS, identity_problems
from django_entra_redis.conf.options import CacheOptions, parse_options
from django_entra_redis.connections.defaults import with_defaults
from django_entra_redis.credentials import provider as credentials
from django_entra_redis.status import Status

from .typing import settings

LOCATION = "rediss://contoso.westeurope.redis.azure.net:10000"
#: What redis-py has to say where, and how, it connects: LOCATION says it.
LOCATIONS = {"host", "port"}


def test_identity_keys() -> None:
    """The keys are those that the settings' reader knows, and so are the kinds."""
    assert types.IdentitySettings.__annotations__.keys() == KEYS.keys()
    kinds, _ = get_args(types.IdentitySettings.__annotations__["KIND"])
    assert set(get_args(kinds)) == set(KINDS)


def test_own_options() -> None:
    """The backend's own options are what its parser takes out for itself."""
    fields = set(CacheOptions.__dataclass_fields__)
    assert fields - {"servers", "connection"} == types.OwnOptions.__annotations__.keys()


def test_other_options() -> None:
    """The others are redis-py's; those are among them that the backend sets itself."""
    known = types.EntraRedisOptions.__annotations__.keys()
    own = types.OwnOptions.__annotations__.keys()
    taken = {
        name
        for kind in (ConnectionPool, RedisCluster, *SSLConnection.__mro__)
        for name in inspect.signature(kind).parameters
    }
    # redis-py 7 has the first, newer ones the last; older ones take the two others.
    taken |= {"driver_info", "lib_name", "lib_version", "maint_notifications_config"}
    assert known - own - taken == set()
    assert not known & LOCATIONS
    defaults = with_defaults(LOCATION, parse_options([LOCATION], {})).connection
    assert defaults.keys() - known == set()


def test_status_of_the_signals() -> None:
    """What is sent is what the types say."""
    assert types.TokenRenewed.__annotations__.keys() == {"signal", "identity", "status"}
    failed = types.TokenRenewalFailed.__annotations__.keys()
    assert failed - types.TokenRenewed.__annotations__.keys() == {"error"}


def test_they_cost_nothing_at_start_up() -> None:
    """A settings file that imports them imports nothing else with them."""
    code = (
        "import django_entra_redis.types, sys; print(*sorted(name for name in "
        "sys.modules if name.startswith(('django', 'redis', 'msal'))))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert output.split() == ["django_entra_redis", "django_entra_redis.types"]


def test_settings_as_users_write_them() -> None:
    """The settings that pass the type checkers pass the system checks, too."""
    with override_settings(ENTRA_REDIS=settings.ENTRA_REDIS):
        assert identity_problems() == []
    options = parse_options([LOCATION], settings.OPTIONS)
    assert (options.identity, options.pool_timeout) == ("reports", 1)
    token = settings.FixedCredential().get_token("scope")
    assert token.token == "secret"


def test_clients_as_users_make_them() -> None:
    """The provider and its status are what type checkers take them for."""
    with override_settings(ENTRA_REDIS=settings.ENTRA_REDIS, CACHES=settings.CACHES):
        clients = importlib.import_module("tests.typing.clients")
        status = clients.STATUS
        assert (status.identity, status.kind) == ("reports", "service_principal")
    credentials.reset()


def test_receivers_as_users_write_them(receivers_kept: None) -> None:
    """The receivers that pass the type checkers get what they expect."""
    receivers = importlib.import_module("tests.typing.receivers")
    error = "the endpoint is down"
    status = Status("reports", "credential", None, None, None, None, 0, 0, None)
    values = {"sender": "reports", "identity": "reports", "status": status}
    signals.token_renewed.send(**values)
    signals.token_renewal_failed.send(**values, error=error)
    assert [
        ("reports", "reports"),
        ("reports", "0"),
        ("reports", error),
    ] == receivers.RECEIVED
