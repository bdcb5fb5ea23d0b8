"""What the tests of the diagnosis examine: a site, and servers to fail it."""

import io
import json
import socketserver
import threading
import time
from collections.abc import Mapping
from typing import Any, cast

import pytest
from django.core.cache import caches
from django.core.management import call_command
from django.test import override_settings

from django_entra_redis.cache import EntraRedisCache
from emulator import Emulator

BACKEND = "django_entra_redis.cache.EntraRedisCache"
CLUSTER_BACKEND = "django_entra_redis.cache.EntraRedisClusterCache"


class Site:
    """A site with one cache, all right until a test changes something.

    ``location``, ``cache``, ``options`` and ``identity`` are its settings; ``patience``
    is the ``--timeout`` that it is checked with.
    """

    def __init__(self, emulator: Emulator, patch: pytest.MonkeyPatch) -> None:
        self.emulator = emulator
        self.patch = patch
        self.patience = 20.0
        self.location: Any = emulator.redis_url
        self.cache: dict[str, Any] = {}
        self.options: dict[str, Any] = {"ssl_ca_certs": str(emulator.ca_file)}
        application = emulator.application
        self.identity: Any = {
            "KIND": "service_principal",
            "TENANT_ID": emulator.tenant_id,
            "CLIENT_ID": application.client_id,
            "CLIENT_SECRET": application.secret,
            **self.authority,
        }
        patch.setenv("REQUESTS_CA_BUNDLE", str(emulator.ca_file))

    @property
    def authority(self) -> dict[str, Any]:
        """The settings of every identity that asks Entra."""
        return {
            "AUTHORITY_HOST": self.emulator.authority_host,
            "INSTANCE_DISCOVERY": False,
        }

    def use_certificate(self, path: object, password: str | None = None) -> None:
        """Be a service principal with a certificate."""
        del self.identity["CLIENT_SECRET"]
        self.identity["CLIENT_CERTIFICATE"] = str(path)
        self.identity["CLIENT_CERTIFICATE_PASSWORD"] = password

    def use_workload_identity(self, path: object) -> None:
        """Be a federated workload with its token in a file."""
        del self.identity["CLIENT_SECRET"]
        self.identity |= {"KIND": "workload_identity", "TOKEN_FILE": str(path)}

    def use_managed_identity(self, **settings: Any) -> None:
        """Be a managed identity on a virtual machine."""
        self.identity = {"KIND": "managed_identity", **settings}
        self.patch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", self.emulator.imds_url)

    def use_app_service(self) -> None:
        """Be a managed identity on App Service."""
        self.identity = {"KIND": "managed_identity"}
        self.patch.setenv("IDENTITY_ENDPOINT", self.emulator.app_service_endpoint)
        self.patch.setenv("IDENTITY_HEADER", self.emulator.app_service_header)

    def use_token(self, token: str, **settings: Any) -> None:
        """Have a credential of its own, which hands out this token."""
        self.identity = {"CREDENTIAL": Credential(token), **settings}

    def use_server(self, server: "ScriptedServer") -> None:
        """Have no identity, and such a server for a Redis."""
        self.location = server.url
        self.options = {"identity": None}

    def settings(self) -> override_settings:
        """Return what has Django use this site's settings."""
        cache = {
            "BACKEND": BACKEND,
            "LOCATION": self.location,
            "OPTIONS": self.options,
            **self.cache,
        }
        return override_settings(
            CACHES={"default": cache}, ENTRA_REDIS={"default": self.identity}
        )

    def backend(self) -> EntraRedisCache:
        """Return the cache; within :meth:`settings`."""
        return cast(EntraRedisCache, caches["default"])

    def check(self) -> "Outcome":
        """Return what ``entra_redis_check --json`` says."""
        output = io.StringIO()
        status = 0
        begun = time.monotonic()
        with self.settings():
            try:
                call_command(
                    "entra_redis_check",
                    "--json",
                    "--cache=default",
                    f"--timeout={self.patience}",
                    stdout=output,
                )
            except SystemExit as error:
                status = cast(int, error.code)
        return Outcome(status, output.getvalue(), time.monotonic() - begun)


class Outcome:
    """What the command has said of the site's cache."""

    def __init__(self, status: int, text: str, seconds: float) -> None:
        self.status = status
        self.text = text
        self.seconds = seconds
        self.document: dict[str, Any] = json.loads(text)
        (self.report,) = self.document["caches"]
        self.steps: list[dict[str, Any]] = self.report["steps"]

    @property
    def details(self) -> dict[str, str]:
        """What was found, by step."""
        return {step["name"]: step["detail"] for step in self.steps}


class Credential:
    """Somebody's credential; hands out one token, or raises."""

    def __init__(self, token: str | Exception, lifetime: float = 3600.0) -> None:
        self.token: Any = token
        self.expires_on = time.time() + lifetime

    def get_token(self, *scopes: str) -> "Credential":
        """Return an object with ``token`` and ``expires_on``."""
        if isinstance(self.token, Exception):
            raise self.token
        return self


class ScriptedServer(socketserver.ThreadingTCPServer):
    """A server that answers each command, by its name, with bytes of the test's.

    Parameters:
        answers: by command; ``b""`` says nothing at all. Without one, SET and GET do
            what they are for, and any other command gets OK.
    """

    daemon_threads = True

    def __init__(self, answers: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.answers = answers
        self.values: dict[str, str] = {}
        self.connections = 0
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        """End it."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Conversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = cast(ScriptedServer, self.server)
        server.connections += 1
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line.removeprefix(b"*"))):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length + 2)[:-2].decode())
            self.wfile.write(self._answer(words, server))

    def _answer(self, words: list[str], server: ScriptedServer) -> bytes:
        name = words[0].upper()
        if name in server.answers:
            return server.answers[name]
        if name == "SET":
            server.values[words[1]] = words[2]
        if name == "GET":
            value = server.values[words[1]]
            return f"${len(value)}\r\n{value}\r\n".encode()
        return b"+OK\r\n"
