"""The system checks' warnings: what works, but should not be."""

import ssl
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.core.checks import CheckMessage, Tags, Warning, run_checks
from django.test import modify_settings, override_settings
from redis.connection import SSLConnection
from redis.credentials import UsernamePasswordCredentialProvider

from django_entra_redis.checks import check_secrets
from django_entra_redis.conf import app_installed as installed
from django_entra_redis.conf.app_installed import check_installed, warn_if_missing
from tests.support.sites import BACKEND

HOST = "contoso.westeurope.redis.azure.net"
TLS = f"rediss://{HOST}:10000"
SECRET = "an-open-secret"
PRINCIPAL = {
    "KIND": "service_principal",
    "TENANT_ID": "contoso.onmicrosoft.com",
    "CLIENT_ID": "client",
    "CLIENT_SECRET": SECRET,
}


def warned(
    location: Any = TLS, alias: str = "default", **options: Any
) -> list[tuple[str | None, str]]:
    """Return the ids and texts of what the checks say about a cache."""
    cache = {"BACKEND": BACKEND, "LOCATION": location, "OPTIONS": options}
    local = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    with override_settings(
        CACHES={"default": local, alias: cache}, ENTRA_REDIS={"default": {}}
    ):
        messages = run_checks(tags=[Tags.caches])
    for message in messages:
        assert isinstance(message, Warning)
        assert message.hint
    return [
        ((message.id or "").removeprefix("django_entra_redis."), message.msg)
        for message in messages
    ]


@pytest.mark.parametrize(
    ("location", "options"),
    [
        (TLS, {}),
        ("rediss://contoso.redis.cache.windows.net:6380", {}),
        ("rediss://contoso.westeurope.redis.azure.net:8501", {}),
        ("rediss://cache.example:7000", {"ssl_ca_certs": "/ca.pem"}),
        ("rediss://localhost:6379", {"ssl_cert_reqs": "none"}),
        ("redis://127.0.0.1", {"allow_plaintext_token": True}),
        ("unix:///run/redis.sock", {}),
        ("redis://contoso.redis.cache.windows.net:6379", {"identity": None}),
        (TLS, {"ignore_exceptions": True}),
        (TLS, {"ssl_cert_reqs": "required", "ssl_check_hostname": True}),
    ],
)
def test_nothing_to_warn_of(location: str, options: dict[str, Any]) -> None:
    """What is as it should be, or is nobody else's business, is left alone."""
    assert warned(location, **options) == []


def test_plain_text() -> None:
    """A token over the network in plain text, which the settings allow."""
    (found,) = warned(f"redis://{HOST}:10000", allow_plaintext_token=True)
    assert found == (
        "W001",
        f"CACHES['default']['LOCATION']: tokens cross the network to {HOST} in plain "
        "text.",
    )


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        (HOST, ":6380", 10000),
        (HOST, "", 10000),
        ("Contoso.Redis.Cache.Windows.Net", ":10000", 6380),
        ("contoso.redis.cache.windows.net", ":6379", 6380),
        ("contoso.redis.cache.usgovcloudapi.net", ":443", 6380),
        ("contoso.redis.usgovcloudapi.net", ":6380", 10000),
        ("contoso.redis.chinacloudapi.cn", ":6380", 10000),
        ("contoso.redis.sovcloud-api.sg", ":6380", 10000),
        ("contoso.redis.cache.sovcloud-api.fr", ":10000", 6380),
    ],
)
def test_port(host: str, port: str, expected: int) -> None:
    """A port that is not the one of the host's Azure domain."""
    (found,) = warned(f"rediss://{host}{port}")
    number = port.removeprefix(":") or "6379"
    assert found == (
        "W002",
        f"CACHES['default']['LOCATION']: {host.lower()} does not listen for TLS on "
        f"port {number}.",
    )


@pytest.mark.parametrize(
    ("location", "options", "switch"),
    [
        (TLS, {"ssl_cert_reqs": None}, "ssl_cert_reqs"),
        (TLS, {"ssl_cert_reqs": "none"}, "ssl_cert_reqs"),
        (TLS, {"ssl_cert_reqs": "optional"}, "ssl_cert_reqs"),
        (f"{TLS}?ssl_cert_reqs=none", {}, "ssl_cert_reqs"),
        (TLS, {"ssl_check_hostname": False}, "ssl_check_hostname"),
        (f"{TLS}/0?ssl_check_hostname=no", {}, "ssl_check_hostname"),
        # redis-py goes by what is true: these are not.
        (TLS, {"ssl_cert_reqs": False}, "ssl_cert_reqs"),
        (TLS, {"ssl_cert_reqs": ssl.CERT_NONE}, "ssl_cert_reqs"),
        (TLS, {"ssl_cert_reqs": ssl.CERT_OPTIONAL}, "ssl_cert_reqs"),
        (TLS, {"ssl_check_hostname": ""}, "ssl_check_hostname"),
        (TLS, {"ssl_check_hostname": []}, "ssl_check_hostname"),
        (TLS, {"ssl_check_hostname": 0}, "ssl_check_hostname"),
        (TLS, {"ssl_check_hostname": 0.0}, "ssl_check_hostname"),
        # TLS and the host may be asked for in other ways.
        (
            "redis://10.0.0.1:10000",
            {"connection_class": SSLConnection, "ssl_cert_reqs": "none"},
            "ssl_cert_reqs",
        ),
        ("rediss://?host=10.0.0.1&ssl_cert_reqs=none", {}, "ssl_cert_reqs"),
        ("rediss://", {"host": "10.0.0.1", "ssl_cert_reqs": "none"}, "ssl_cert_reqs"),
        ("rediss://%31%30.0.0.1/?ssl_cert_reqs=none", {}, "ssl_cert_reqs"),
    ],
)
def test_verification(location: str, options: dict[str, Any], switch: str) -> None:
    """A certificate that nobody verifies, in whichever spelling."""
    (found,) = warned(location, **options)
    text = f"CACHES['default']: the server's certificate is not verified ({switch})."
    assert found == ("W003", text)


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ("rediss://:hush@10.0.0.1", {"ssl_cert_reqs": "none"}),
        ("rediss://10.0.0.1?ssl_cert_reqs=none", {"password": "hush"}),
        ("rediss://10.0.0.1", {"username": "me", "ssl_check_hostname": False}),
        (
            "rediss://10.0.0.1",
            {
                "credential_provider": UsernamePasswordCredentialProvider(),
                "ssl_check_hostname": None,
            },
        ),
    ],
)
def test_verification_without_an_identity(
    location: str, options: dict[str, Any]
) -> None:
    """A password is taken as a token is; where there is none, nothing is."""
    (found,) = warned(location, identity=None, **options)
    assert found[0] == "W003"
    near = location.replace("10.0.0.1", "127.0.0.1")
    assert warned(near, identity=None, **options) == []
    nothing = dict.fromkeys(("username", "password", "credential_provider"))
    bare = {**options, **nothing, "identity": None}
    assert warned(location.replace(":hush@", ""), **bare) == []
    # What else is told of tokens is no matter of a password's.
    plain = "redis://:hush@contoso.redis.cache.windows.net:1"
    assert warned(plain, identity=None, allow_plaintext_token=True) == []


def test_verification_that_is_left_open() -> None:
    """None switches nothing off here, but it does in redis-py's own clients."""
    (found,) = warned(TLS, ssl_check_hostname=None)
    text = "CACHES['default']: it has ssl_check_hostname None, which is taken for True."
    assert found == ("W003", text)


@pytest.mark.parametrize("value", ["required", ssl.CERT_REQUIRED, 2])
def test_verification_in_each_spelling(value: Any) -> None:
    """What redis-py takes for verification is nothing to warn of."""
    assert warned(TLS, ssl_cert_reqs=value, ssl_check_hostname=1) == []


def test_several_servers() -> None:
    """Each is looked at, and what they have in common is told once."""
    found = warned([TLS, TLS, f"rediss://{HOST}"], ssl_cert_reqs="none")
    assert sorted(number for number, _ in found if number) == ["W002", "W003"]


def test_sessions() -> None:
    """Sessions in a cache that is empty in an outage."""
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache"):
        assert warned(ignore_exceptions=False) == []
        assert warned(alias="other", ignore_exceptions=True) == []
        (found,) = warned(ignore_exceptions=True, identity=None)
    assert found[0] == "W005"
    with override_settings(
        SESSION_ENGINE="django.contrib.sessions.backends.cached_db",
    ):
        assert warned(ignore_exceptions=True) == []


def test_errors_go_before_warnings() -> None:
    """Settings that can't be used are told as such, and once."""
    bad = {"BACKEND": BACKEND, "LOCATION": f"redis://{HOST}"}
    with override_settings(CACHES={"default": bad}, ENTRA_REDIS={"default": {}}):
        (message,) = run_checks(tags=[Tags.caches])
    assert message.id == "django_entra_redis.E022"


# -- secrets in the source -----------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a settings module's source."""
    path = tmp_path / "settings_of_a_site.py"
    path.write_text("import os\n")
    module = ModuleType("settings_of_a_site")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "settings_of_a_site", module)
    return path


def secrets(identity: Any, **settings: Any) -> list[CheckMessage]:
    """Return what the check of secrets says, as ``check --deploy`` runs it."""
    with override_settings(
        **{
            "ENTRA_REDIS": {"default": identity},
            "SETTINGS_MODULE": "settings_of_a_site",
            "DEBUG": False,
            **settings,
        }
    ):
        return check_secrets()


@pytest.mark.parametrize("name", ["settings_of_a_site.py", "base.py"])
def test_secret_in_the_source(source: Path, name: str) -> None:
    """A secret in the settings module, or in one beside it, is told; not repeated."""
    source.with_name(name).write_text(f'SECRET = "{SECRET}"\n')
    (message,) = secrets(PRINCIPAL)
    assert message.id == "django_entra_redis.W004"
    assert message.msg == (
        "ENTRA_REDIS['default']['CLIENT_SECRET']: a secret is written into the "
        "settings' source."
    )
    assert SECRET not in str(message)


def test_password_of_a_certificate_in_the_source(source: Path) -> None:
    """It is a secret, too."""
    source.write_text(f'PASSWORD = "{SECRET}"\n')
    identity = {
        "KIND": "service_principal",
        "TENANT_ID": "contoso.onmicrosoft.com",
        "CLIENT_ID": "client",
        "CLIENT_CERTIFICATE": "/mnt/app.pfx",
        "CLIENT_CERTIFICATE_PASSWORD": SECRET,
    }
    (message,) = secrets(identity)
    assert "CLIENT_CERTIFICATE_PASSWORD" in message.msg


def test_secret_from_elsewhere(source: Path) -> None:
    """One that the source does not hold has come from where it should."""
    assert secrets(PRINCIPAL) == []


def test_secret_in_development(source: Path) -> None:
    """With DEBUG on it is a developer's affair, and so is an invalid identity."""
    source.write_text(f'SECRET = "{SECRET}"\n')
    assert secrets(PRINCIPAL, DEBUG=True) == []
    assert secrets({"X": 1}) == []


def test_settings_without_a_source() -> None:
    """Settings that were configured by hand have no source to look into."""
    assert secrets(PRINCIPAL, SETTINGS_MODULE=None) == []


def test_only_for_deployment(source: Path) -> None:
    """An ordinary ``check`` leaves the source alone; ``--deploy`` reads it."""
    source.write_text(f'SECRET = "{SECRET}"\n')
    cache = {"BACKEND": BACKEND, "LOCATION": TLS}
    with override_settings(
        CACHES={"default": cache},
        ENTRA_REDIS={"default": PRINCIPAL},
        SETTINGS_MODULE="settings_of_a_site",
    ):
        assert run_checks(tags=[Tags.caches]) == []
        (message,) = run_checks(tags=[Tags.caches], include_deployment_checks=True)
    assert message.id == "django_entra_redis.W004"


BROKER = (
    f"{TLS}/0?credential_provider="
    "django_entra_redis.credentials.EntraCredentialProvider"
)


@pytest.mark.parametrize("name", ["BROKER_URL", "BROKER_READ_URL", "RESULT_BACKEND"])
@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_celery_with_greenlets(name: str, pool: str) -> None:
    """kombu does not renew its connections there."""
    with override_settings(**{"CELERY_WORKER_POOL": pool, f"CELERY_{name}": BROKER}):
        ((number, said),) = warned()
    assert number == "W007"
    assert f"with '{pool}' the worker loses its broker" in said


@pytest.mark.parametrize(
    ("pool", "broker"),
    [("prefork", BROKER), ("threads", BROKER), (None, BROKER), ("gevent", TLS)],
)
def test_celery_as_it_should_be(pool: str | None, broker: str) -> None:
    """Nothing is said of the other pools, nor of brokers without an identity."""
    with override_settings(CELERY_WORKER_POOL=pool, CELERY_BROKER_URL=broker):
        assert warned() == []


# -- without the app


def without_the_app(*arguments: str, **cache: Any) -> str:
    """Run Python where the app is not installed; return what it says."""
    caches = {"default": {"BACKEND": BACKEND, "LOCATION": TLS, "OPTIONS": cache}}
    code = f"""
from django.conf import settings
# As FixedCredential in the documentation: nobody is asked.
class Credential:
    token, expires_on = "secret", 2e10
    def get_token(self, *scopes):
        return self
settings.configure(
    CACHES={caches!r},
    ENTRA_REDIS={{"default": {{"CREDENTIAL": Credential(), "USERNAME": "tester"}}}},
)
import django
django.setup()
{"; ".join(arguments)}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


CHECK = "from django.core.management import call_command; call_command('check')"
ASK = (
    "from django_entra_redis.credentials import get_credential_provider as get; "
    "get().get_credentials(); get().get_credentials()"
)


def test_app_is_not_installed() -> None:
    """Django warns of it where the backend is there when its checks begin."""
    said = without_the_app("import django_entra_redis.cache", CHECK)
    assert "django_entra_redis.W006" in said
    assert "HINT: Add it" in said


def test_app_is_not_installed_and_a_token_is_asked_for() -> None:
    """It is logged, once."""
    assert without_the_app(ASK).count("is not in INSTALLED_APPS. Add it") == 1


def test_app_is_not_needed() -> None:
    """No cache has an identity: whoever uses the provider alone needs no app."""
    said = without_the_app("import django_entra_redis.cache", CHECK, ASK, identity=None)
    assert "INSTALLED_APPS" not in said


def test_app_is_installed(caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to say."""
    with override_settings(CACHES={"default": {"BACKEND": BACKEND, "LOCATION": TLS}}):
        assert check_installed() == []
        warn_if_missing()
    assert caplog.records == []


@modify_settings(INSTALLED_APPS={"remove": "django_entra_redis"})
def test_app_and_caches_that_are_missing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that can't be built is Django's to tell of; the others count."""
    monkeypatch.setattr(installed, "_warned", threading.Event())
    broken = {"BACKEND": "no.such.Backend"}
    good = {"BACKEND": BACKEND, "LOCATION": TLS}
    with override_settings(CACHES={"default": broken}):
        assert check_installed() == []
    with override_settings(CACHES={"default": broken, "good": good}):
        assert [message.id for message in check_installed()] == [
            "django_entra_redis.W006"
        ]
        warn_if_missing()
        warn_if_missing()
    assert len(caplog.records) == 1


# -- identity bindings ---------------------------------------------------------------


def test_identity_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A federated token that is for the cluster's proxy, and not for Entra."""
    workload = {"KIND": "workload_identity", "TENANT_ID": "t", "CLIENT_ID": "c"}
    identities = {
        "default": {**workload, "TOKEN_FILE": "/token"},
        "broken": workload,
        "other": {"KIND": "managed_identity"},
    }
    cache = {"BACKEND": BACKEND, "LOCATION": TLS}
    for identity, variable, ids in (
        ("default", "https://proxy", ["django_entra_redis.W008"]),
        ("default", "", []),
        (None, "https://proxy", []),
    ):
        monkeypatch.setenv("AZURE_KUBERNETES_TOKEN_PROXY", variable)
        caches = {"default": {**cache, "OPTIONS": {"identity": identity}}}
        with override_settings(CACHES=caches, ENTRA_REDIS=identities):
            found = run_checks(tags=[Tags.caches])
        warnings = [message for message in found if ".W" in str(message.id)]
        assert [message.id for message in warnings] == ids
