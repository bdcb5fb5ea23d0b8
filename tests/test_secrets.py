"""Nothing secret is told: by no log, error, repr, status, signal or debug page."""

import asyncio
import base64
import io
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
import redis
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.core.checks import Tags, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import override_settings
from django.views.debug import ExceptionReporter

from django_entra_redis import aget_redis_connection, get_redis_connection
from django_entra_redis.cache import EntraRedisCache
from django_entra_redis.conf.identities import load_identity
from django_entra_redis.connections import event_loops
from django_entra_redis.credentials.provider import (
    EntraCredentialProvider,
    RedisToken,
    get_credential_provider,
)
from django_entra_redis.exceptions import (
    EntraRedisError,
    TokenError,
    TokenRefusedError,
)
from django_entra_redis.signals import token_renewal_failed, token_renewed
from emulator import Emulator
from testproject.snapshot import look_at_cache
from tests.support.caches import make_cache, wait_until
from tests.support.failing_clients import (
    FAULTS,
    failure,
    failure_to_authenticate_anew,
    traces_in,
)
from tests.support.sites import BACKEND, CLUSTER_BACKEND, Credential, ScriptedServer


class Log(logging.Handler):
    """Keeps every record of every logger, at any level."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it with everything that a formatter might show."""
        self.told.append(f"{self.format(record)} {record.__dict__}")


class Secrets:
    """Everything secret of an emulator, and what has been told meanwhile."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.told: list[str] = []
        self.log = Log()
        self._lock = threading.Lock()
        self._tokens: set[str] = set()

    def token(self, value: str) -> None:
        """Note a token that has been issued."""
        with self._lock:
            self._tokens.add(value)

    def hear(self, **kwargs: Any) -> None:
        """Note what a signal says."""
        self.told.append(repr(kwargs))

    def check(self) -> None:
        """Fail if anything secret is in what was told or logged."""
        application = self.emulator.application
        plain = {
            application.secret,
            application.certificate_password,
            self.emulator.application_expired_secret,
            self.emulator.federated_token_file.read_text().strip(),
            self.emulator.app_service_header,
            # The last part of the signature names a token as well as all of it.
            *(token[-40:] for token in self._tokens),
        }
        secrets = set(plain)
        for secret in plain:
            secrets.add(quote(secret, safe=""))
            secrets.add(base64.b64encode(secret.encode()).decode())
        key = application.certificate_pem.read_text().split("-----")[2]
        secrets |= {line for line in key.splitlines() if len(line) > 40}
        told = "\n".join(self.told + self.log.told)
        found = [secret[:6] for secret in secrets if secret in told]
        assert not found


@pytest.fixture
def secrets(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secrets]:
    """Give the secrets; at the test's end see that none was told."""
    made = Secrets(emulator)
    level = logging.root.level
    logging.root.setLevel(logging.DEBUG)
    logging.root.addHandler(made.log)
    issue = emulator._directory.issue

    def noting(*args: Any, **kwargs: Any) -> Any:
        token = issue(*args, **kwargs)
        made.token(token.value)
        return token

    monkeypatch.setattr(emulator._directory, "issue", noting)
    for signal in (token_renewed, token_renewal_failed):
        signal.connect(made.hear)
    yield made
    # An emulator that goes away during a TLS handshake makes Python leak the socket.
    wait_until(
        lambda: (
            "entra-redis-token-request:default"
            not in [thread.name for thread in threading.enumerate()]
        )
    )
    for signal in (token_renewed, token_renewal_failed):
        signal.disconnect(made.hear)
    logging.root.removeHandler(made.log)
    logging.root.setLevel(level)
    made.check()


def application(emulator: Emulator, **entry: Any) -> dict[str, Any]:
    """Return an entry of ENTRA_REDIS for the emulator's application."""
    return {
        "KIND": "service_principal",
        "TENANT_ID": emulator.tenant_id,
        "CLIENT_ID": emulator.application.client_id,
        "AUTHORITY_HOST": emulator.authority_host,
        "INSTANCE_DISCOVERY": False,
        "REQUEST_TIMEOUT": 5,
        **entry,
    }


ENTRIES: dict[str, Callable[[Emulator], dict[str, Any]]] = {
    "secret": lambda emulator: application(
        emulator, CLIENT_SECRET=emulator.application.secret
    ),
    "certificate": lambda emulator: application(
        emulator,
        CLIENT_CERTIFICATE=emulator.application.certificate_pfx,
        CLIENT_CERTIFICATE_PASSWORD=emulator.application.certificate_password,
        SEND_CERTIFICATE_CHAIN=True,
    ),
    "pem": lambda emulator: application(
        emulator, CLIENT_CERTIFICATE=emulator.application.certificate_pem
    ),
    "federated": lambda emulator: application(
        emulator, KIND="workload_identity", TOKEN_FILE=emulator.federated_token_file
    ),
    "app_service": lambda emulator: {"KIND": "managed_identity"},
}


@pytest.mark.parametrize("kind", ENTRIES)
@pytest.mark.parametrize("mode", [None, "500", "html", "garbage", "invalid_client"])
def test_nothing_secret_is_told(
    secrets: Secrets, kind: str, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the settings to the redis-py client, whether it goes well or not."""
    emulator = secrets.emulator
    for name, value in emulator.environ("app_service").items():
        monkeypatch.setenv(name, value)
    told = secrets.told
    with override_settings(ENTRA_REDIS={"default": ENTRIES[kind](emulator)}):
        told.append(repr(load_identity("default")))
        provider = EntraCredentialProvider()
        heard: list[RedisToken] = []
        provider.on_next(heard.append)
        if mode is not None:
            emulator.faults.fail(mode)
            with pytest.raises(TokenError) as info:
                provider.get_credentials()
            told += [str(info.value), repr(info.value), repr(provider.status())]
            emulator.faults.recover()
        provider.renewal.start()
        wait_until(lambda: heard)
        assert any("'name': 'urllib3" in line for line in secrets.log.told)
        assert any("'name': 'msal" in line for line in secrets.log.told)
        renewal = provider.renewal
        token = renewal.current()
        told += map(repr, (provider, renewal, renewal.state, token, heard[0]))
        told += [str(token), repr(provider.status())]


@pytest.mark.parametrize(
    "entry",
    [
        {"CLIENT_SECRET": "never-tell-this", "CLIENT_CERTIFICATE": "/x.pem"},
        {"CLIENT_SECRET": "never-tell-this", "TENANT_ID": "a b"},
        {"CLIENT_SECRET": ["never-tell-this"]},
    ],
)
def test_errors_of_settings(secrets: Secrets, entry: dict[str, Any]) -> None:
    """What is wrong with the settings is told without what they hold.

    Nor does Django's debug page show it, which prints each frame's variables.
    """
    entry = application(secrets.emulator, **entry)
    with (
        override_settings(ENTRA_REDIS={"default": entry}),
        pytest.raises(EntraRedisError) as info,
    ):
        get_credential_provider()
    told = f"{info.value!s} {info.value!r} {debug_page(info.value)}"
    assert "never-tell-this" not in told
    assert "get_credential_provider" in told


def debug_page(error: BaseException) -> str:
    """Return the page that Django shows where DEBUG is on, and the mail to admins."""
    assert error.__traceback__ is not None
    # Without the test's own frame, in which everything secret is at hand.
    trace = error.__traceback__ = error.__traceback__.tb_next
    reporter: Any = ExceptionReporter(None, type(error), error, trace)
    with override_settings(DEBUG=True, ROOT_URLCONF="testproject.urls"):
        html: str = reporter.get_traceback_html()
        text: str = reporter.get_traceback_text()
    return html + text


def cache(emulator: Emulator) -> BaseCache:
    """Return a cache on the emulator."""
    return make_cache(
        emulator.redis_url, ssl_ca_certs=str(emulator.ca_file), socket_timeout=5
    )


def refuse(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the application's access away."""
    emulator.set_access(emulator.application.object_id, None)


def break_off(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections die when AUTH is sent."""
    send: Any = redis.connection.AbstractConnection.send_packed_command

    def dying(self: Any, command: Any, check_health: bool = True) -> None:
        self._sock.shutdown(2)
        send(self, command, check_health)

    monkeypatch.setattr(
        redis.connection.AbstractConnection, "send_packed_command", dying
    )


def no_answer(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the server be silent from the first AUTH on."""
    monkeypatch.setattr(redis.connection.AbstractConnection, "read_response", _time_out)


def _time_out(self: Any, *args: Any, **kwargs: Any) -> None:
    password = self.credential_provider.get_credentials()[1]
    raise redis.TimeoutError(f"Timeout reading from socket of {len(password)}")


def no_token(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the request for a token fail."""
    emulator.faults.fail("invalid_client")


def no_authority(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the authority close its connections."""
    emulator.faults.fail("reset")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (refuse, TokenRefusedError),
        (break_off, redis.ConnectionError),
        (no_answer, redis.TimeoutError),
        (no_token, TokenError),
        (no_authority, TokenError),
    ],
)
@pytest.mark.parametrize("authenticated", [False, True])
def test_debug_page(
    secrets: Secrets,
    fault: Callable[[Emulator, pytest.MonkeyPatch], None],
    error: type[Exception],
    authenticated: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Django's debug page shows each frame's variables: none of them is a token.

    Nor are those of an error's cause and context.
    """
    emulator = secrets.emulator
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(emulator.ca_file))
    entry = ENTRIES["secret"](emulator)
    with override_settings(ENTRA_REDIS={"default": entry}):
        used = cache(emulator)
        if authenticated and error is not TokenError:
            get_credential_provider().get_credentials()
        fault(emulator, monkeypatch)
        with pytest.raises(error) as info:
            used.get("key")
        secrets.told.append(debug_page(info.value))
        assert "EntraRedisCache" in secrets.told[-1]
        emulator.faults.recover()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
def test_debug_page_of_clients(fault: str, asynchronous: bool, protocol: int) -> None:
    """Nor is it in the frames of a client of the user's own that can't connect."""
    error = failure(fault, asynchronous=asynchronous, protocol=protocol)
    told = debug_page(error)
    assert "send_command" in told or "read_response" in told
    assert traces_in(told) == []


def test_debug_page_of_a_client_that_authenticates_anew() -> None:
    """Nor where redis-py sends a newer token into a connection that has broken."""
    told = debug_page(failure_to_authenticate_anew())
    assert "re_auth" in told
    assert traces_in(told) == []


def ask_in_a_loop(alias: str) -> None:
    """Ask a cache for a key in an event loop that connects at once."""
    with patch.object(event_loops, "FIRST_OPERATIONS", 0):
        asyncio.run(caches[alias].aget("key"))


def ask_a_client(alias: str) -> None:
    """Ask a client that a cache lends."""
    get_redis_connection(alias).get("key")


def ask_a_client_in_a_loop(alias: str) -> None:
    """Ask a client that a cache lends to an event loop."""

    async def main() -> None:
        await (await aget_redis_connection(alias)).get("key")

    asyncio.run(main())


#: All that authenticates.
WAYS: list[Callable[[str], object]] = [
    lambda alias: caches[alias].get("key"),
    ask_in_a_loop,
    ask_a_client,
    ask_a_client_in_a_loop,
]


@pytest.mark.parametrize("backend", [BACKEND, CLUSTER_BACKEND])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "words",
    [
        "-ERR bad {} \x1b[2J",
        "-WRONGPASS bad {} \x1b[2J",
        "-ERR max number of clients reached \x1b[2J {}",
        "-LOADING {} \x1b[2J",
        "-READONLY \u202e {}",
        "?{}",
        ":{}",
        "-MOVED {} host:1",
    ],
)
def test_servers_that_quote_the_token(
    backend: str, way: Callable[[str], object], words: str, request: Any
) -> None:
    """What a server has been sent is in none of its words that are told."""
    token = "0paque.Secret-Tok3n_Value9xyz"
    answer = f"{words.format(token)}\r\n".encode()
    server = ScriptedServer({"AUTH": answer, "HELLO": answer})
    request.addfinalizer(server.stop)
    output, log = io.StringIO(), Log()
    logger = logging.getLogger("django_entra_redis")
    logger.addHandler(log)
    request.addfinalizer(lambda: logger.removeHandler(log))
    entry = {"CREDENTIAL": Credential(token), "USERNAME": "user"}
    cache = {"BACKEND": backend, "LOCATION": server.url}
    with override_settings(CACHES={"default": cache}, ENTRA_REDIS={"default": entry}):
        with pytest.raises((redis.RedisError, ValueError)) as info:
            way("default")
        with pytest.raises(SystemExit):
            call_command("entra_redis_check", "--json", stdout=output)
    text = f"{info.value} {output.getvalue()} {''.join(log.told)}"
    assert "".join(text.split()).isprintable()
    assert token not in f"{text} {debug_page(info.value)}"


@pytest.mark.parametrize("backend", [BACKEND, CLUSTER_BACKEND])
@pytest.mark.parametrize("query", ["", "?S3cret=Key@localhost"])
def test_password_of_a_cache_with_a_misspelt_option(backend: str, query: str) -> None:
    """The error that names the option has no frame that knows the URL."""
    settings = {
        "BACKEND": backend,
        "LOCATION": f"rediss://:{'1' if query else 'S3cretKey@localhost'}{query}",
        "OPTIONS": {"identity": None, "max_connectoins": 5},
    }
    with override_settings(CACHES={"default": settings}):
        told = [repr(run_checks(tags=[Tags.caches]))]
        with pytest.raises(ImproperlyConfigured, match="max_connectoins") as info:
            caches["default"].get("key")
        told.append(repr(info.value))
    told.append(debug_page(info.value))
    assert "there is no such option" in told[0]
    assert "S3cret" not in "".join(told)


#: LOCATIONs whose password is not escaped, so that it ends up in any part of the URL.
MALFORMED = [
    "rediss://:Abc/S3cretKey=@contoso.redis.cache.windows.net:6380",
    "rediss://:1/S3cretKey=@localhost:1",
    "rediss://:Abc#S3cretKey@localhost:1",
    "rediss://:1#S3cretKey@localhost:1",
    "rediss://:Abc?S3cretKey@localhost:1",
    "rediss://:1?S3cretKey@localhost:1",
    "rediss://:Abc,S3cretKey@localhost:1",
    "rediss://:1;S3cretKey@localhost:1",
    "rediss://localhost:1?password=Abc@S3cretKey",
    "rediss://:S3cretKey",
    "unix://:1/S3cretKey@/run/redis.sock",
    "default:S3cretKey@contoso:6380",
    ":S3cretKey@h:6380",
    b"rediss://:S3cretKey@h:6380",
]


@pytest.mark.parametrize("location", MALFORMED)
@pytest.mark.parametrize("identity", ["default", None])
@pytest.mark.parametrize("backend", [BACKEND, CLUSTER_BACKEND])
def test_password_in_a_malformed_location(
    location: Any, identity: str | None, backend: str
) -> None:
    """No part of it is told by command, checks, status page, cache and debug page."""
    settings = {
        "BACKEND": backend,
        "LOCATION": location,
        "OPTIONS": {"identity": identity, "socket_connect_timeout": 1},
    }
    output = io.StringIO()
    with override_settings(CACHES={"default": settings}, ENTRA_REDIS={"default": {}}):
        for arguments in ([], ["--json"]):
            with pytest.raises(SystemExit):
                call_command(
                    "entra_redis_check", "--cache=default", *arguments, stdout=output
                )
        told = [output.getvalue(), repr(run_checks(tags=[Tags.caches]))]
        told.append(repr(look_at_cache("default")))
        used = caches["default"]
        assert isinstance(used, EntraRedisCache)
        assert used.location == "?"
        told.append(repr(used))
        errors = []
        try:
            used.read_options()
        except ImproperlyConfigured as error:
            errors.append(error)
    # Here, since the page shows the settings, too.
    for raised in errors:
        told += [debug_page(raised), repr(raised)]
    for part in ("Abc", "S3cret"):
        assert part not in "".join(told)
