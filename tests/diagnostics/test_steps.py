"""The diagnosis: every fault made real, and told apart from all others."""

import contextlib
import json
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis

from django_entra_redis.diagnostics import network as endpoints
from django_entra_redis.diagnostics import steps
from django_entra_redis.diagnostics.advice import ADVICE
from django_entra_redis.diagnostics.runner import Diagnosis, Step
from django_entra_redis.diagnostics.steps import STEPS, diagnose
from emulator import Emulator
from emulator.certificates import CertificateAuthority
from tests.support.http import serve
from tests.support.sites import CLUSTER_BACKEND, Credential, ScriptedServer, Site

#: Seconds that the end of a check may take beyond its ``--timeout``.
GRACE = 10.0
#: What a check of a fault that makes it wait is given.
SHORT = 4.0
GUID = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def site(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site that has nothing wrong with it."""
    return Site(emulator, monkeypatch)


@contextlib.contextmanager
def scripted(**answers: bytes) -> Iterator[ScriptedServer]:
    """Run a server that answers commands with these bytes."""
    server = ScriptedServer(answers)
    try:
        yield server
    finally:
        server.stop()


# -- the faults ----------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """Something that can be wrong.

    Parameters:
        code: what it is to be called.
        step: where it is to be found; several with "|" between.
        make: makes it so; what it yields for is undone afterwards.
        real: whether only a real redis-server can have it.
        says: what the message is to hold, likewise.
    """

    code: str
    step: str
    make: Callable[[Site], Any]
    real: bool
    says: str


FAULTS: dict[str, Fault] = {}
Make = Callable[[Site], Any]


def fault(
    code: str, step: str, *, real: bool = False, says: str = ""
) -> Callable[[Make], Make]:
    """Add a fault to the list, under the name of the function that makes it."""

    def add(make: Make) -> Make:
        FAULTS[make.__name__] = Fault(code, step, make, real, says)
        return make

    return add


@fault("settings_invalid", "settings", says="there is no key 'CLIENT'")
def identity_with_an_unknown_key(site: Site) -> None:
    site.identity = {"CLIENT": "x"}


@fault("settings_invalid", "settings", says="['CLIENT_SECRET']")
def secret_with_a_line_break(site: Site) -> None:
    site.identity["CLIENT_SECRET"] += "\n"


@fault("settings_invalid", "settings", says="$AZURE_CLIENT_SECRET")
def secret_of_the_environment_with_a_line_break(site: Site) -> None:
    environ = site.emulator.environ("service_principal")
    for name, value in environ.items():
        site.patch.setenv(name, f"{value}\n" if name.endswith("SECRET") else value)
    site.identity = {}


@fault("settings_invalid", "settings", says="['pool_timeout']")
def option_of_the_wrong_type(site: Site) -> None:
    site.options["pool_timeout"] = "long"


@fault("settings_invalid", "settings", says="there is no such option")
def option_that_redis_py_does_not_know(site: Site) -> None:
    site.options["sockets"] = 2


@fault("settings_invalid", "settings", says="No module named 'nowhere'")
def dotted_path_that_leads_nowhere(site: Site) -> None:
    site.options["serializer"] = "nowhere.Serializer"


class Unmade(redis.Connection):
    """A connection that can't be made."""

    def __init__(self, **kwargs: Any) -> None:
        raise LookupError("no connection today")


@fault("settings_invalid", "settings", says="['OPTIONS']: no connection today.")
def class_of_ones_own_that_fails(site: Site) -> None:
    site.options["connection_class"] = Unmade


@fault("settings_invalid", "settings", says="LOCATION")
def location_that_is_no_url(site: Site) -> None:
    site.location = "rediss://[localhost"


@fault("settings_invalid", "settings", says="LOCATION")
def location_that_is_empty(site: Site) -> None:
    site.location = []


@fault("dns_not_found", "dns", says="not known")
def host_that_does_not_resolve(site: Site) -> None:
    # Too long for any name server to be asked.
    site.location = f"rediss://{'a.' * 130}invalid:10000"


@fault("dns_not_found", "dns", says="label empty")
def host_that_can_be_no_name(site: Site) -> None:
    site.location = "rediss://contoso..redis.azure.net:10000"


@fault("dns_timeout", "dns")
def name_server_that_is_down(site: Site) -> None:
    error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    def fail(*args: object) -> None:
        raise error

    site.patch.setattr(endpoints.socket, "getaddrinfo", fail)  # type: ignore[attr-defined]


@fault("dns_timeout", "dns", says="no answer within")
def name_server_that_hangs(site: Site) -> Iterator[None]:
    site.patience = 2.0
    over = threading.Event()
    site.patch.setattr(
        endpoints.socket,  # type: ignore[attr-defined]
        "getaddrinfo",
        lambda *args: over.wait(60) and [],
    )
    yield
    over.set()


@fault("tcp_refused", "tcp", says="refused")
def port_that_is_closed(site: Site) -> Iterator[None]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        site.location = f"rediss://127.0.0.1:{bound.getsockname()[1]}"
        yield


@fault("tcp_refused", "tcp", says="No such file")
def socket_file_that_is_not_there(site: Site) -> None:
    site.location = f"unix://{site.emulator.directory}/none.sock"
    site.options = {}


@fault("tcp_timeout", "tcp")
def firewall_that_drops_packets(site: Site) -> Iterator[None]:
    # A queue of connections that is full drops them, too.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with contextlib.ExitStack() as waiting:
            for _ in range(3):
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(address)
            site.location = f"rediss://127.0.0.1:{address[1]}"
            site.options["socket_connect_timeout"] = 0.3
            yield


@fault("tcp_unreachable", "tcp", says="unreachable")
def network_without_a_route(site: Site) -> None:
    site.location = "rediss://255.255.255.255:10000"


@fault("port_silent", "tls")
def port_that_is_silent(site: Site) -> None:
    site.emulator.freeze()
    site.patience = SHORT


@fault("port_silent", "tls")
def plaintext_port_that_is_silent(site: Site) -> None:
    site.emulator.freeze()
    site.location = site.emulator.plaintext_url
    site.options = {}
    site.patience = SHORT


@fault("tls_plaintext_server", "tls")
def plaintext_server_where_tls_is_expected(site: Site) -> None:
    site.emulator.break_tls("plaintext")
    site.patience = SHORT


@fault("tls_plaintext_server", "tls")
def web_server_where_tls_is_expected(site: Site) -> Iterator[None]:
    # Answers whatever it gets, as a web server says "400 Bad Request".
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            server.accept()[0].close()  # the step before
            with server.accept()[0] as client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        site.location = f"rediss://127.0.0.1:{server.getsockname()[1]}"
        yield
        thread.join()


@fault("tls_expected", "tls")
def tls_where_plain_text_is_configured(site: Site) -> None:
    site.location = site.emulator.redis_url.replace("rediss", "redis")
    site.options = {}


@fault("tls_expected", "tls")
def server_that_resets_plain_text(site: Site) -> None:
    site.emulator.break_tls("closed")
    site.location = site.emulator.redis_url.replace("rediss", "redis")
    site.options = {}


@fault("not_redis", "tls")
def something_else_than_redis(site: Site) -> Iterator[None]:
    with scripted(PING=b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        site.use_server(server)
        yield


@fault("tls_closed", "tls")
def server_that_closes_in_the_handshake(site: Site) -> None:
    site.emulator.break_tls("closed")


@fault("tls_untrusted", "tls")
def certificate_that_is_not_trusted(site: Site) -> None:
    site.emulator.break_tls("untrusted")


@fault("tls_untrusted", "tls")
def authority_that_the_machine_does_not_know(site: Site) -> None:
    site.options = {}


@fault("tls_expired", "tls")
def certificate_that_has_expired(site: Site) -> None:
    site.emulator.break_tls("expired")


@fault("tls_not_yet_valid", "tls")
def certificate_of_the_future(site: Site) -> None:
    site.emulator.break_tls("not_yet_valid")


@fault("tls_hostname", "tls")
def certificate_for_another_name(site: Site) -> None:
    site.emulator.break_tls("hostname")
    site.options["ssl_check_hostname"] = True


@fault("tls_too_old", "tls")
def tls_that_is_too_old(site: Site) -> None:
    site.emulator.break_tls("too_old")


@fault(
    "tls_file_unreadable",
    "tls",
    says="OPTIONS['ssl_ca_certs'] names '/nowhere/ca.pem', which can't be used: No",
)
def authority_file_that_is_not_there(site: Site) -> None:
    site.options["ssl_ca_certs"] = "/nowhere/ca.pem"


@fault("tls_file_unreadable", "tls", says="no certificate in PEM form")
def authority_file_without_certificates(site: Site) -> None:
    path = site.emulator.directory / "no.pem"
    path.write_bytes(b"\x30\x82\x03")
    site.options["ssl_ca_certs"] = str(path)


@fault("tls_file_unreadable", "tls", says="['ssl_ca_certs'] names '/', which can't be")
def authority_file_that_is_a_directory(site: Site) -> None:
    site.options["ssl_ca_certs"] = "/"


@fault("tls_file_unreadable", "tls", says="OPTIONS['ssl_ca_path'] names '/nowhere'")
def authority_directory_that_is_not_there(site: Site) -> None:
    del site.options["ssl_ca_certs"]
    site.options["ssl_ca_path"] = "/nowhere"


@fault("tls_file_unreadable", "tls", says="named by its hash")
def authority_directory_without_hashes(site: Site) -> None:
    del site.options["ssl_ca_certs"]
    site.options["ssl_ca_path"] = str(site.emulator.directory)


@fault("tls_file_unreadable", "tls", says="OPTIONS['ssl_keyfile'] names '/nowhere'")
def key_file_that_is_not_there(site: Site) -> None:
    certificate = site.emulator.application.certificate_pem
    site.options |= {"ssl_certfile": str(certificate), "ssl_keyfile": "/nowhere"}


@fault("tls_file_unreadable", "tls", says="$SSL_CERT_FILE names '/nowhere'")
def variable_for_a_file_that_is_not_there(site: Site) -> None:
    del site.options["ssl_ca_certs"]
    site.patch.setenv("SSL_CERT_FILE", "/nowhere")


@fault("tls_file_unreadable", "tls", says="$SSL_CERT_DIR names '/nowhere'")
def variable_for_a_directory_that_is_not_there(site: Site) -> None:
    del site.options["ssl_ca_certs"]
    site.patch.delenv("SSL_CERT_FILE", raising=False)
    site.patch.setenv("SSL_CERT_DIR", "/nowhere")


@fault("tls_untrusted", "tls")
def variable_for_a_file_of_another_authority(site: Site) -> None:
    path = site.emulator.directory / "other.pem"
    path.write_bytes(CertificateAuthority().pem)
    del site.options["ssl_ca_certs"]
    site.patch.setenv("SSL_CERT_FILE", str(path))


@fault("tls_failed", "tls", says="NO_CERTIFICATE_ASSIGNED|KEY_VALUES_MISMATCH")
def certificate_with_another_ones_key(site: Site) -> None:
    certificate = next(site.emulator.directory.glob("server-*.pem"))
    key = site.emulator.application.certificate_pem
    site.options |= {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


@fault("settings_invalid", "settings", says="ssl_ciphers")
def ciphers_that_do_not_exist(site: Site) -> None:
    site.options["ssl_ciphers"] = "NONE-OF-THESE"


@fault("token_unreachable", "token")
def identity_endpoint_that_is_unreachable(site: Site) -> None:
    site.emulator.faults.fail("refused")


@fault("token_timeout", "token", says="REQUEST_TIMEOUT")
def identity_endpoint_that_hangs(site: Site) -> None:
    site.emulator.faults.fail("hang")
    site.identity["REQUEST_TIMEOUT"] = 0.5


@fault("token_timeout", "token", says="no answer within")
def identity_endpoint_that_hangs_longer_than_the_check(site: Site) -> None:
    site.emulator.faults.fail("hang")
    site.patience = SHORT


@fault("token_proxy", "token")
def proxy_that_is_not_there(site: Site) -> None:
    site.patch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")


@fault("token_endpoint_untrusted", "token")
def proxy_that_looks_into_tls(site: Site) -> None:
    site.patch.delenv("REQUESTS_CA_BUNDLE")


@fault("token_not_json", "token")
def login_page_of_a_proxy(site: Site) -> None:
    site.emulator.faults.fail("html")


@fault("token_endpoint_failing", "token")
def identity_endpoint_that_fails(site: Site) -> None:
    site.emulator.faults.fail("500", endpoint="token")


@fault("token_endpoint_failing", "token")
def identity_endpoint_that_is_overloaded(site: Site) -> None:
    site.emulator.faults.fail("429", endpoint="token")


@fault("token_bad_answer", "token")
def answer_that_is_no_token(site: Site) -> None:
    site.emulator.faults.fail("garbage", endpoint="token")


@fault(
    "token_redirected", "token", says="a redirect to itself. Redirects are not followed"
)
def answer_that_sends_elsewhere(site: Site) -> None:
    site.emulator.faults.fail("302", endpoint="token")


@fault("token_patched_late", "token", says="monkey-patched after urllib3")
def ssl_that_gevent_has_patched_too_late(site: Site) -> None:
    # As gevent's setter of the property does, where urllib3 has the old class.
    def call_itself(self: ssl.SSLContext, value: object) -> None:
        call_itself(self, value)

    site.patch.setattr(
        ssl.SSLContext,
        "minimum_version",
        property(lambda self: ssl.TLSVersion.TLSv1_2, call_itself),
    )


@fault("token_unknown_tenant", "token")
def wrong_tenant(site: Site) -> None:
    site.identity["TENANT_ID"] = GUID


@fault("token_unknown_client", "token")
def unknown_client(site: Site) -> None:
    site.identity["CLIENT_ID"] = GUID


@fault("token_wrong_secret", "token")
def wrong_secret(site: Site) -> None:
    site.identity["CLIENT_SECRET"] = "guessed"


@fault("token_expired_secret", "token")
def expired_secret(site: Site) -> None:
    site.identity["CLIENT_SECRET"] = site.emulator.application_expired_secret


@fault("token_client_disabled", "token")
def application_that_is_disabled(site: Site) -> None:
    site.emulator.faults.fail("AADSTS7000112", endpoint="token")


@fault("token_blocked", "token")
def conditional_access_that_blocks(site: Site) -> None:
    site.emulator.faults.fail("AADSTS53003", endpoint="token")


@fault("token_wrong_cloud", "token")
def tenant_of_another_cloud(site: Site) -> None:
    site.emulator.faults.fail("AADSTS900432", endpoint="token")


@fault("token_request_loop", "token")
def request_loop(site: Site) -> None:
    site.emulator.faults.fail("AADSTS50196", endpoint="token")


@fault("token_identity_binding", "token", says="AADSTS")
def token_for_the_proxy_of_an_identity_binding(site: Site) -> None:
    site.use_workload_identity(site.emulator.federated_token_file)
    site.patch.setenv("AZURE_KUBERNETES_TOKEN_PROXY", "https://proxy.invalid")
    site.emulator.faults.fail("AADSTS700212", endpoint="token")


@fault("token_federation_blocked", "token")
def policy_against_federation(site: Site) -> None:
    site.emulator.faults.fail("AADSTS7002381", endpoint="token")


@fault("token_assertion_of_entra", "token")
def token_of_entra_for_an_assertion(site: Site) -> None:
    site.emulator.faults.fail("AADSTS700231", endpoint="token")


@fault("token_resource_missing", "token")
def tenant_without_redis(site: Site) -> None:
    site.emulator.faults.fail("AADSTS500011", endpoint="token")


@fault("token_resource_disabled", "token")
def tenant_that_has_disabled_redis(site: Site) -> None:
    site.emulator.faults.fail("AADSTS500014", endpoint="token")


@fault("token_certificate_expired", "token", says="The key used is expired")
def own_certificate_that_has_expired(site: Site) -> None:
    site.emulator.rotate_certificate(expired=True)
    site.use_certificate(site.emulator.application.certificate_pem)


@fault("token_certificate_expired", "token", says="as the emulator was told")
def own_certificate_that_has_expired_in_other_words(site: Site) -> None:
    application = site.emulator.application
    site.emulator.rotate_certificate(expired=True)
    site.use_certificate(application.certificate_pfx, application.certificate_password)
    site.emulator.faults.fail("AADSTS700027", endpoint="token")


@fault("token_certificate_expired", "token", says="The key used is expired")
def certificate_that_expires_by_the_clock_of_entra(site: Site) -> None:
    site.use_certificate(site.emulator.application.certificate_pem)
    site.emulator.set_clock(40 * 86400.0)


@fault("token_failed", "token", says="AADSTS9999999")
def refusal_that_nobody_knows(site: Site) -> None:
    site.emulator.faults.fail("AADSTS9999999", endpoint="token")


@fault("certificate_unreadable", "token")
def certificate_file_that_is_not_there(site: Site) -> None:
    site.use_certificate("/nowhere/app.pem")


@fault("certificate_unusable", "token")
def wrong_password_of_the_certificate(site: Site) -> None:
    site.use_certificate(site.emulator.application.certificate_pfx, "guessed")


@fault("certificate_unusable", "token", says="it should be an RSA key")
def elliptic_key_of_the_certificate(site: Site) -> None:
    path = site.emulator.directory / "elliptic.pem"
    path.write_bytes(CertificateAuthority().server_pem("localhost"))
    site.use_certificate(path)


@fault("certificate_unusable", "token", says="none of its certificates")
def key_of_another_certificate(site: Site) -> None:
    path = site.emulator.directory / "mixed.pem"
    pem = site.emulator.application.certificate_pem.read_bytes()
    key = pem[pem.index(b"-----BEGIN PRIVATE KEY") :]
    path.write_bytes(key + site.emulator.ca_file.read_bytes())
    site.use_certificate(path)


@fault("token_certificate_not_registered", "token")
def certificate_that_is_not_registered(site: Site) -> None:
    old = site.emulator.directory / "old.pem"
    old.write_bytes(site.emulator.application.certificate_pem.read_bytes())
    site.emulator.rotate_certificate()
    site.use_certificate(old)


@fault("token_file_unreadable", "token")
def federated_token_file_that_is_not_there(site: Site) -> None:
    site.use_workload_identity("/nowhere/token")


@fault("token_assertion_expired", "token")
def federated_token_that_has_expired(site: Site) -> None:
    path = site.emulator.directory / "expired"
    path.write_text(site.emulator.federated_token(-3600.0))
    site.use_workload_identity(path)


@fault("token_assertion_rejected", "token")
def federated_token_of_somebody_else(site: Site) -> None:
    path = site.emulator.directory / "other"
    claims = jwt.decode(
        site.emulator.federated_token(), options={"verify_signature": False}
    )
    other = {**claims, "sub": "system:serviceaccount:other:other"}
    path.write_text(jwt.encode(other, "k" * 32, "HS256"))
    site.use_workload_identity(path)


@fault("token_wrong_scope", "token")
def wrong_scope(site: Site) -> None:
    site.identity["SCOPE"] = "https://cache.example/.default"


@fault("token_wrong_scope", "token")
def wrong_scope_of_a_managed_identity(site: Site) -> None:
    site.use_managed_identity(SCOPE="https://cache.example/.default")


@fault("managed_identity_unavailable", "token")
def managed_identity_where_there_is_none(site: Site) -> None:
    site.use_managed_identity()
    site.emulator.faults.fail("refused")


@fault("managed_identity_timeout", "token")
def managed_identity_that_hangs(site: Site) -> None:
    site.use_managed_identity(REQUEST_TIMEOUT=0.5)
    site.emulator.faults.fail("hang")


@fault("managed_identity_unknown", "token")
def managed_identity_that_is_unknown(site: Site) -> None:
    site.use_managed_identity(CLIENT_ID=GUID)


@fault("managed_identity_ambiguous", "token")
def several_managed_identities_and_none_named(site: Site) -> None:
    site.use_managed_identity()
    site.emulator.system_assigned_enabled = False


@fault("managed_identity_refused", "token")
def header_of_another_app_service(site: Site) -> None:
    site.use_app_service()
    site.patch.setenv("IDENTITY_HEADER", "guessed")


@fault("token_endpoint_failing", "token", says="HTTP 410")
def virtual_machine_that_is_not_ready(site: Site) -> None:
    # Azure/azure-sdk-for-net#28568
    site.use_managed_identity()
    site.emulator.faults.fail("410", endpoint="imds")


@fault("token_endpoint_failing", "token", says="HTTP 500: An unexpected error")
def app_service_that_fails(site: Site) -> None:
    # Azure/azure-sdk-for-net#40848
    site.use_app_service()
    site.emulator.faults.fail("500", endpoint="app_service")


@fault("token_endpoint_failing", "token", says="HTTP 500: pod list is empty")
def endpoint_of_a_cluster_that_fails(site: Site) -> None:
    # Azure/azure-sdk-for-net#19241
    site.use_managed_identity()
    site.emulator.faults.fail("500", endpoint="imds", body="pod list is empty")


@fault("managed_identity_ambiguous", "token", says="Unable to load")
def container_app_whose_identity_is_not_named(site: Site) -> None:
    # Azure/data-api-builder#1939
    site.use_app_service()
    words = '{"statusCode":400,"message":"Unable to load the proper Managed Identity."}'
    site.emulator.faults.fail("400", endpoint="app_service", body=words)


@fault("managed_identity_unavailable", "token", says="HTTP 403: connecting to")
def docker_desktop(site: Site) -> None:
    # Azure/azure-sdk-for-python#31759
    site.use_managed_identity()
    words = "connecting to 169.254.169.254:80: dial tcp: connectex: unreachable network"
    site.emulator.faults.fail("403", endpoint="imds", body=words)


@fault("managed_identity_not_up", "token", says="$IDENTITY_ENDPOINT tells of")
def sidecar_that_is_not_up_yet(site: Site) -> None:
    site.use_app_service()
    site.emulator.faults.fail("refused")


@fault("managed_identity_variables", "token", says="is not a URL")
def endpoint_without_a_scheme(site: Site) -> None:
    site.use_app_service()
    site.patch.setenv("IDENTITY_ENDPOINT", "localhost:42356/msi/token")


@fault("managed_identity_variables", "token", says="$MSI_ENDPOINT is set without")
def cloud_shell(site: Site) -> None:
    site.use_managed_identity()
    site.emulator.faults.fail("refused")
    site.patch.setenv("MSI_ENDPOINT", "http://localhost:50342/oauth2/token")


@fault("token_endpoint_failing", "token", says="HTTP 425")
def authority_that_is_asked_too_early(site: Site) -> None:
    site.emulator.faults.fail("425", endpoint="token", body="<html>Too Early</html>")


@fault("arc_key_unreadable", "token", says="No such file")
def key_of_azure_arc_that_is_not_there(site: Site) -> Iterator[None]:
    challenge = "Basic realm=/var/opt/azcmagent/tokens/none.key"
    with serve(401, b"", WWW_Authenticate=challenge) as (url, _):
        site.identity = {"KIND": "managed_identity"}
        site.patch.setenv("IDENTITY_ENDPOINT", url)
        site.patch.setenv("IMDS_ENDPOINT", url)
        yield


@fault("token_expiry_unreadable", "token", says="expires_on is '11/05/2021 15:18")
def app_service_of_2017(site: Site) -> Iterator[None]:
    # AzureAD/microsoft-authentication-library-for-python#760, Azure/azure-cli#19480
    answer = {
        "access_token": site.emulator.issue_token(),
        "expires_on": "11/05/2021 15:18:31 +00:00",
    }
    with serve(200, json.dumps(answer).encode()) as (url, _):
        site.identity = {"KIND": "managed_identity"}
        site.patch.setenv("MSI_ENDPOINT", url)
        site.patch.setenv("MSI_SECRET", "sesame")
        yield


@fault("token_ca_bundle", "token", says="$REQUESTS_CA_BUNDLE names '/nowhere/ca.pem'")
def bundle_that_is_not_there(site: Site) -> None:
    site.patch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")


@fault("token_file_unusable", "token", says="is empty")
def federated_token_file_that_is_empty(site: Site) -> None:
    path = site.emulator.directory / "empty"
    path.write_text("\n")
    site.use_workload_identity(path)


@fault("azure_identity_missing", "token")
def azure_identity_that_is_not_installed(site: Site) -> None:
    site.patch.setitem(sys.modules, "azure.identity", None)
    site.identity = {"CREDENTIAL": "azure.identity.DefaultAzureCredential"}


@fault("credential_import", "token")
def credential_that_can_not_be_imported(site: Site) -> None:
    site.identity = {"CREDENTIAL": "nowhere.Credential"}


@fault("credential_raised", "token", says="no luck today")
def credential_that_raises(site: Site) -> None:
    site.identity = {"CREDENTIAL": Credential(ValueError("no luck today"))}


@fault("token_without_oid", "token")
def token_without_oid(site: Site) -> None:
    site.use_token(site.emulator.issue_token(oid=None))


@fault("token_expired_already", "token", says="the identity endpoint's own clock")
def endpoint_that_hands_out_old_tokens(site: Site) -> None:
    site.use_app_service()
    site.emulator.token_lifetime = -60.0


@fault("token_expired_already", "token", says="'exp' claim")
def credential_that_hands_out_old_tokens(site: Site) -> None:
    site.use_token(site.emulator.issue_token(lifetime=-60.0))


@fault("credential_asynchronous", "token", says="azure.identity.aio")
def credential_that_is_asynchronous(site: Site) -> None:
    site.identity = {"CREDENTIAL": lambda: AsynchronousCredential()}


@fault("settings_invalid", "settings", says="['CREDENTIAL']")
def credential_that_is_plainly_asynchronous(site: Site) -> None:
    site.identity = {"CREDENTIAL": "azure.identity.aio.DefaultAzureCredential"}


@fault("token_clock_off", "token", says="s ahead of the identity endpoint's")
def clock_that_is_ahead_of_the_token(site: Site) -> None:
    site.use_app_service()
    site.emulator.set_clock(-86400.0)


@fault("token_clock_off", "token", says="AADSTS700024")
def clock_that_is_behind_the_certificate(site: Site) -> None:
    site.use_certificate(site.emulator.application.certificate_pem)
    site.emulator.set_clock(86400.0)


@fault("auth_refused", "auth")
def principal_without_an_access_policy(site: Site) -> None:
    site.emulator.set_access(site.emulator.application.object_id, None)


@fault("auth_refused", "auth", says="username-password pair")
def refusal_in_the_words_of_azure(site: Site) -> None:
    # dapr/components-contrib#3554, sonus21/rqueue#253
    site.emulator.refusal = "ERR WRONGPASS invalid username-password pair"
    site.emulator.set_access(site.emulator.application.object_id, None)


@fault("auth_refused", "auth", says="[2J ]0;hello refused")
def refusal_that_would_clear_the_terminal(site: Site) -> None:
    site.emulator.refusal = "ERR \x1b[2J \x1b]0;hello\x07 refused"
    site.emulator.set_access(site.emulator.application.object_id, None)


@fault("auth_username_is_client_id", "auth")
def client_id_refused_in_the_words_of_azure(site: Site) -> None:
    site.emulator.refusal = "ERR WRONGPASS invalid username-password pair"
    site.identity["USERNAME"] = site.emulator.application.client_id


@fault("auth_max_clients", "auth", says="max number of clients")
def connections_all_taken_in_a_cluster_of_redis(site: Site) -> Iterator[None]:
    words = b"-ERR max number of clients + cluster connections reached\r\n"
    with scripted(AUTH=words) as server:
        site.location, site.options = server.url, {}
        yield


@fault("auth_username_is_client_id", "auth")
def user_name_that_is_the_client_id(site: Site) -> None:
    site.identity["USERNAME"] = site.emulator.application.client_id


@fault("auth_wrong_audience", "auth")
def token_for_another_audience(site: Site) -> None:
    site.use_token(site.emulator.issue_token(audience="https://management.azure.com"))


@fault("auth_refused", "auth")
def token_that_is_opaque(site: Site) -> None:
    site.use_token("opaque", USERNAME=site.emulator.application.object_id)


@fault("auth_max_clients", "auth", real=True)
def connections_all_taken(site: Site) -> None:
    site.emulator.break_redis("max_clients")


@fault("server_loading", "auth")
def redis_that_lets_nobody_in_while_it_loads(site: Site) -> Iterator[None]:
    with scripted(AUTH=b"-LOADING Redis is loading the dataset\r\n") as server:
        site.location, site.options = server.url, {}
        yield


@fault("auth_failed", "auth", says="reset|closed")
def connection_that_breaks_at_once(site: Site) -> None:
    # After the handshake's step, which has the port as it should be.
    take = STEPS["token"]

    def then_break(diagnosis: Diagnosis) -> str:
        site.emulator.break_tls("closed")
        return take(diagnosis)

    site.patch.setitem(STEPS, "token", then_break)


@fault("token_file_unreadable", "auth")
def token_that_is_gone_when_it_is_needed(site: Site) -> None:
    # Its life is over when the connection wants it, and the next one can't be had.
    path = site.emulator.directory / "soon-gone"
    path.write_text(site.emulator.federated_token())
    site.use_workload_identity(path)
    site.emulator.token_lifetime = 1.0
    take = STEPS["token"]

    def then_wait(diagnosis: Diagnosis) -> str:
        found = take(diagnosis)
        path.unlink()
        assert diagnosis.token is not None
        renewal = endpoints_renewal(diagnosis)
        while not diagnosis.token.expired(renewal.clock):
            threading.Event().wait(0.02)
        return found

    site.patch.setitem(STEPS, "token", then_wait)


class AsynchronousCredential:
    """A credential such as those of azure.identity.aio."""

    async def get_token(self, *scopes: str) -> None:
        """Begin, which nobody is to do."""


def endpoints_renewal(diagnosis: Diagnosis) -> Any:
    """Return what renews the token of a cache under diagnosis."""
    return diagnosis.servers[0].pool.connection_kwargs["credential_provider"].renewal


# Where it shows depends on whether redis-py says anything before it is asked to.
@fault("auth_password", "auth|ping")
def no_identity_where_one_is_needed(site: Site) -> None:
    site.options["identity"] = None


@fault("auth_password", "auth")
def password_that_is_wrong(site: Site) -> None:
    site.location = site.emulator.redis_url.replace("//", "//user:guessed@")
    site.options["identity"] = None


@fault("auth_password", "auth")
def wrong_password_in_the_words_of_azure(site: Site) -> None:
    site.emulator.refusal = "ERR WRONGPASS invalid username-password pair"
    site.location = site.emulator.redis_url.replace("//", "//user:guessed@")
    site.options["identity"] = None


@fault("server_loading", "ping", real=True)
def redis_that_is_loading(site: Site) -> None:
    site.emulator.break_redis("loading")


@fault("server_out_of_memory", "round_trip", real=True)
def redis_out_of_memory(site: Site) -> None:
    site.emulator.break_redis("full")


@fault("server_read_only", "round_trip", real=True)
def redis_that_is_a_replica(site: Site) -> None:
    site.emulator.break_redis("read_only")


@fault("access_policy_too_narrow", "auth", real=True, says="+client|setname")
def access_policy_without_client_names(site: Site) -> None:
    site.options["client_name"] = "web"
    site.emulator.set_access(
        site.emulator.application.object_id, "+@all -client|setname ~* &*"
    )


@fault("access_policy_too_narrow", "ping", real=True, says="PING")
def access_policy_without_ping(site: Site) -> None:
    site.emulator.set_access(
        site.emulator.application.object_id, "+@read +@write -ping ~*"
    )


@fault(
    "access_policy_too_narrow",
    "round_trip",
    real=True,
    says="SET, INCRBY, PERSIST, EXPIRE, DEL, SCAN, UNLINK on keys such as 'site:1:*'",
)
def access_policy_that_is_read_only(site: Site) -> None:
    site.cache["KEY_PREFIX"] = "site"
    site.options["clear_by_scan"] = True
    site.emulator.set_access(
        site.emulator.application.object_id, "+get +mget +exists +ping ~*"
    )


@fault("access_policy_too_narrow", "round_trip", real=True, says="':1:*'")
def access_policy_for_other_keys(site: Site) -> None:
    site.emulator.set_access(site.emulator.application.object_id, "+@all ~other:*")


@fault("cluster_policy_oss", "round_trip", says="MOVED|7000")
def key_on_another_node(site: Site) -> Iterator[None]:
    with scripted(
        INFO=b"-ERR not here\r\n", SET=b"-MOVED 7000 127.0.0.1:8501\r\n"
    ) as server:
        site.use_server(server)
        yield


@fault("cluster_policy_oss", "round_trip", says="cluster is down")
def cluster_behind_something_that_adds_err(site: Site) -> Iterator[None]:
    with scripted(SET=b"-ERR CLUSTERDOWN The cluster is down\r\n") as server:
        site.use_server(server)
        yield


@fault("database_refused", "settings", says="database 1, and Azure Managed Redis")
def database_of_a_managed_redis(site: Site) -> None:
    site.location = "rediss://contoso.westeurope.redis.azure.net:10000/1"


@fault("database_refused", "auth", says="refuses database 7 (no such thing)")
def database_that_is_not_there(site: Site) -> Iterator[None]:
    with scripted(SELECT=b"-ERR no such thing.\r\n") as server:
        site.use_server(server)
        site.options["db"] = 7
        yield


@fault("access_policy_too_narrow", "auth", says="SELECT")
def database_that_the_policy_forbids(site: Site) -> Iterator[None]:
    with scripted(SELECT=b"-NOPERM SELECT\r\n") as server:
        site.use_server(server)
        site.options["db"] = 7
        yield


@fault("cluster_policy_oss", "round_trip", says="MGET")
def cluster_of_one_node(site: Site) -> Iterator[None]:
    with scripted(
        INFO=b"-ERR not here\r\n", MGET=b"-CROSSSLOT\r\n", CLUSTER=b"*0\r\n"
    ) as server:
        site.use_server(server)
        yield


def slots(last: int, port: int, host: bytes = b"127.0.0.1") -> bytes:
    """Return what a cluster of one node says, whose slots end somewhere."""
    node = b"*3\r\n$%d\r\n%b\r\n:%d\r\n$2\r\nid\r\n" % (len(host), host, port)
    return b"*1\r\n*3\r\n:0\r\n:%d\r\n%b" % (last, node)


@fault(
    "cluster_policy_enterprise",
    "ping",
    says="cluster support disabled|CLUSTER",
    real=True,
)
def no_cluster(site: Site) -> None:
    site.cache["BACKEND"] = CLUSTER_BACKEND


@fault("cluster_node_unreachable", "ping", says="127.0.0.1:1: Connection refused")
def node_behind_a_firewall(site: Site) -> Iterator[None]:
    with scripted(CLUSTER=slots(16383, 1)) as server:
        site.use_server(server)
        site.cache["BACKEND"] = CLUSTER_BACKEND
        yield


@fault("settings_invalid", "ping", says="in plain text to 192.0.2.2:6379")
def node_beyond_the_forwarded_port(site: Site) -> Iterator[None]:
    with scripted(CLUSTER=slots(16383, 6379, b"192.0.2.2")) as server:
        site.location, site.options = server.url, {}
        site.cache["BACKEND"] = CLUSTER_BACKEND
        yield


@fault("cluster_unavailable", "ping", says="does not list its nodes")
def cluster_that_forgets_its_nodes(site: Site) -> Iterator[None]:
    with scripted(CLUSTER=b"*0\r\n") as server:
        site.use_server(server)
        site.cache["BACKEND"] = CLUSTER_BACKEND
        yield


@fault("cluster_unavailable", "round_trip", says="serves slot")
def slots_that_nobody_serves(site: Site) -> Iterator[None]:
    with scripted() as server:
        server.answers = {"CLUSTER": slots(1, server.server_address[1])}
        site.use_server(server)
        site.cache["BACKEND"] = CLUSTER_BACKEND
        yield


@fault("cluster_unavailable", "round_trip", says="CLUSTERDOWN|cluster is down")
def cluster_that_is_down(site: Site) -> Iterator[None]:
    with scripted() as server:
        server.answers = {
            "CLUSTER": slots(16383, server.server_address[1]),
            "SET": b"-CLUSTERDOWN The cluster is down\r\n",
        }
        site.use_server(server)
        site.cache["BACKEND"] = CLUSTER_BACKEND
        yield


@fault("server_failed", "ping", says="ERR of its own|of its own")
def error_that_nobody_knows(site: Site) -> Iterator[None]:
    with scripted(PING=b"-ERR of its own\r\n") as server:
        site.use_server(server)
        yield


@fault("not_redis", "ping")
def answer_that_is_no_reply(site: Site) -> Iterator[None]:
    # The first PING, in plain text, is that of the step "tls".
    with scripted(INFO=b"-ERR\r\n", PING=b"-ERR\r\n") as server:
        take = STEPS["auth"]

        def then_talk_otherwise(diagnosis: Diagnosis) -> str:
            server.answers = {"PING": b"HTTP/1.1 400 Bad Request\r\n\r\n"}
            return take(diagnosis)

        site.patch.setitem(STEPS, "auth", then_talk_otherwise)
        site.use_server(server)
        yield


@fault("server_timeout", "round_trip", says="no answer within|Timeout")
def redis_that_falls_silent(site: Site) -> Iterator[None]:
    with scripted(SET=b"") as server:
        site.use_server(server)
        site.options["socket_timeout"] = 1.0
        yield


@fault("server_timeout", "round_trip", says="no answer within")
def redis_that_is_silent_for_longer_than_the_check(site: Site) -> Iterator[None]:
    with scripted(SET=b"") as server:
        site.use_server(server)
        site.patience = SHORT
        site.options["socket_timeout"] = 60
        yield


@fault("round_trip_wrong_value", "round_trip", says="is not there")
def value_that_is_gone_at_once(site: Site) -> Iterator[None]:
    with scripted(GET=b"$-1\r\n") as server:
        site.use_server(server)
        yield


@fault("round_trip_wrong_value", "round_trip", says="another value")
def value_that_somebody_else_wrote(site: Site) -> Iterator[None]:
    with scripted(GET=b"$1\r\nx\r\n") as server:
        site.use_server(server)
        yield


@fault("replica_behind", "round_trip")
def replica_that_is_none(site: Site) -> Iterator[None]:
    with scripted(GET=b"$-1\r\n") as server:
        site.options = {}
        site.location = [site.emulator.plaintext_url, server.url]
        yield


@fault("tcp_refused", "tcp")
def replica_that_is_down(site: Site) -> None:
    site.location = [site.location, "rediss://127.0.0.1:1"]


@fault("unexpected", "dns", says="RuntimeError: told to")
def error_in_the_check_itself(site: Site) -> None:
    def fail(diagnosis: Diagnosis) -> str:
        raise RuntimeError("told to")

    site.patch.setitem(STEPS, "dns", fail)


#: Those that only end with what comes between two steps; they have tests of their own.
IN_BETWEEN = {"access_lost", "server_closed"}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str, site: Site, request: pytest.FixtureRequest) -> None:
    """It is found at its step, within the time, by its code, and no secret is told."""
    fault = FAULTS[name]
    if fault.real:
        request.getfixturevalue("redis_server")
    made = fault.make(site)
    with contextlib.ExitStack() as stack:
        if made is not None:
            stack.enter_context(contextlib.contextmanager(lambda: made)())
        outcome = site.check()
    *passed, failed = outcome.steps
    assert outcome.seconds < site.patience + GRACE
    assert failed["code"] == fault.code, failed
    assert failed["name"] in fault.step.split("|")
    assert outcome.status == 1
    assert not outcome.document["ok"]
    assert not outcome.report["ok"]
    assert [step["name"] for step in outcome.steps] == list(STEPS)[: len(passed) + 1]
    for step in passed:
        assert (step["ok"], step["code"], step["hint"]) == (True, None, None)
    assert failed["detail"].isprintable()
    assert any(says in failed["detail"] for says in fault.says.split("|"))
    if fault.code != "settings_invalid":
        assert failed["hint"] == str(ADVICE[fault.code])
    application = site.emulator.application
    for secret in (
        application.secret,
        application.certificate_password,
        site.emulator.application_expired_secret,
        site.emulator.app_service_header,
        "guessed",
        "eyJ",  # what every JWT begins with
    ):
        assert secret not in outcome.text
    assert "Traceback" not in outcome.text


def test_every_advice_has_its_fault() -> None:
    """There is no advice for what is never found, and no fault without advice."""
    assert {fault.code for fault in FAULTS.values()} | IN_BETWEEN == ADVICE.keys()


# -- what is found where nothing is wrong --------------------------------------------


def test_passing_run(site: Site) -> None:
    """Each step tells what somebody who looks for a fault would like to know."""
    outcome = site.check()
    assert outcome.status == 0
    assert outcome.document["ok"]
    assert outcome.report["cache"] == "default"
    assert outcome.report["identity"] == "default"
    assert outcome.report["location"] == site.location
    assert [step["name"] for step in outcome.steps] == list(STEPS)
    assert all(step["ms"] >= 0 for step in outcome.steps)
    application, details = site.emulator.application, outcome.details
    assert details["settings"] == (
        f"identity 'default': service_principal, client {application.client_id}"
    )
    assert re.fullmatch(r"localhost is [0-9a-f.:, ]+", details["dns"])
    assert re.fullmatch(r"connected to [0-9a-f.:]+", details["tcp"])
    assert re.fullmatch(
        r"TLSv1\.3, certificate good until \d{4}-\d\d-\d\d \((29|30) days\)",
        details["tls"],
    )
    assert re.fullmatch(
        f"principal {application.object_id}, tenant {site.emulator.tenant_id}, "
        f"application {application.client_id}, \\d+ s old, expires in (59|60) min, "
        r"renewed in (2|3|4)\d min",
        details["token"],
    )
    assert details["auth"] == f"authenticated as {application.object_id}"
    number = r"\d+\.\d\d"
    assert re.match(
        rf"min {number}, median {number}, max {number} ms of 20", details["round_trip"]
    )


def test_server(site: Site, redis_server: str) -> None:
    """What the server says of itself is told: version, policies."""
    details = site.check().details
    assert re.fullmatch(
        r"Redis [\d.]+, standalone: one endpoint for all keys", details["ping"]
    )
    assert details["round_trip"].endswith("; memory policy noeviction")


def test_long_lived_token(site: Site) -> None:
    """Spans of hours are not told in minutes, nor those of a minute."""
    site.emulator.token_lifetime = 86400.0
    assert "expires in 24.0 h" in site.check().details["token"]


def test_managed_identity(site: Site) -> None:
    """A token of a managed identity is as good, the client not named."""
    site.use_managed_identity()
    details = site.check().details
    assert details["settings"] == "identity 'default': managed_identity"
    assert (
        details["auth"] == f"authenticated as {site.emulator.system_assigned.object_id}"
    )


def test_token_without_tenant_and_application(site: Site) -> None:
    """What a token does not say is left out."""
    site.use_token(site.emulator.issue_token(tid=None, appid=None, azp=None))
    found = site.check().details["token"]
    assert found.startswith(f"principal {site.emulator.application.object_id}, ")
    assert "tenant" not in found
    assert "application" not in found


def test_no_identity(site: Site) -> None:
    """A cache without Entra is checked as far as that goes."""
    with scripted(INFO=b"-NOPERM\r\n") as server:
        site.use_server(server)
        outcome = site.check()
    assert (outcome.status, outcome.report["identity"]) == (0, None)
    details = outcome.details
    assert details["settings"] == "no identity (OPTIONS['identity'] is None)"
    assert details["tls"] == "not used: redis://"
    assert (details["token"], details["auth"]) == ("not used", "not used")
    assert details["ping"] == "server version not told (INFO is refused)"
    assert "memory" not in details["round_trip"]


def test_no_scripts(site: Site, redis_server: str) -> None:
    """A policy without EVAL will do; it is told what that costs."""
    site.emulator.set_access(
        site.emulator.application.object_id, "+@all -@scripting ~* &*"
    )
    outcome = site.check()
    assert outcome.status == 0
    assert "no scripts (EVAL), so incr() takes" in outcome.details["round_trip"]


def test_no_keys_across_slots(site: Site) -> None:
    """A server that has all keys, and takes one at a time, will do."""
    with scripted(MGET=b"-CROSSSLOT\r\n", CLUSTER=b"-ERR not allowed\r\n") as server:
        site.use_server(server)
        outcome = site.check()
    assert outcome.status == 0
    assert "so get_many() sends a GET each" in outcome.details["round_trip"]


def test_certificate_not_verified(site: Site) -> None:
    """Whoever has switched verification off is told so."""
    site.options = {"ssl_cert_reqs": "none"}
    assert site.check().details["tls"] == (
        "TLSv1.3, certificate NOT verified (ssl_cert_reqs)"
    )


def test_unix_socket(site: Site, tmp_path: Path) -> None:
    """A socket in the file system has neither name nor port."""
    with socket.socket(socket.AF_UNIX) as listener, scripted() as server:
        path = tmp_path / "redis.sock"
        listener.bind(str(path))
        listener.listen()
        serving = threading.Thread(target=relay, args=(listener, server))
        serving.start()
        site.location, site.options = f"unix://{path}", {"identity": None}
        outcome = site.check()
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()
    assert outcome.details["dns"] == "not used: a Unix socket"
    assert outcome.details["tcp"] == f"connected to {path}"
    assert outcome.status == 0


def relay(listener: socket.socket, server: ScriptedServer) -> None:
    """Pass connections on to a scripted server until the listener is shut down."""
    while True:
        try:
            client = listener.accept()[0]
        except OSError:
            return
        server.process_request(client, ("unix", 0))


def test_replicas(site: Site) -> None:
    """Every server in LOCATION is looked at; what they have in common is told once."""
    site.location = [site.location, site.location.replace("localhost", "127.0.0.1")]
    site.options["ssl_check_hostname"] = False
    outcome = site.check()
    assert outcome.status == 0
    assert outcome.details["dns"].endswith("; 127.0.0.1 is 127.0.0.1")
    assert outcome.details["tcp"] == "connected to 127.0.0.1"


def test_cluster(cluster: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's policy is found, and each of its primaries is examined."""
    site = Site(cluster, monkeypatch)
    failed = site.check().steps[-1]
    assert (failed["name"], failed["code"]) == ("ping", "cluster_policy_oss")
    site.cache["BACKEND"] = CLUSTER_BACKEND
    site.options["clear_by_scan"] = True
    outcome = site.check()
    assert outcome.report["ok"]
    assert outcome.details["ping"].endswith("OSS cluster of 3 primaries and 3 replicas")
    assert "ms of 60" in outcome.details["round_trip"]
    # A hash tag keeps all keys on one node: the others have nothing to try.
    site.cache["KEY_PREFIX"] = "{site}"
    outcome = site.check()
    assert outcome.report["ok"]
    assert "ms of 20" in outcome.details["round_trip"]
    rules = "+@all ~* &*"
    cluster.set_access(cluster.application.object_id, f"{rules} -cluster")
    failed = site.check().steps[-1]
    cluster.set_access(cluster.application.object_id, rules)
    assert (failed["name"], failed["code"]) == ("ping", "access_policy_too_narrow")
    assert "+cluster|slots" in failed["detail"]


# -- what comes between two steps ----------------------------------------------------


def after(site: Site, step: str, event: Callable[[], object]) -> Step:
    """Have something happen after a step; return the check's last one."""
    with site.settings():
        for last in diagnose("default", site.backend(), site.patience):
            if last.name == step:
                event()
    return last


def test_access_lost(site: Site) -> None:
    """An access policy that is taken away between two steps is told from a failure."""
    oid = site.emulator.application.object_id
    last = after(site, "auth", lambda: site.emulator.set_access(oid, None))
    assert (last.name, last.code) == ("ping", "access_lost")


def test_authentication_lost(site: Site) -> None:
    """So is a Redis that knows the connection no more."""
    site.location, site.options = site.emulator.plaintext_url, {}
    with scripted(PING=b"-NOAUTH Authentication required.\r\n") as server:
        site.location = server.url
        outcome = site.check()
    assert (outcome.steps[-1]["name"], outcome.steps[-1]["code"]) == (
        "ping",
        "access_lost",
    )


def test_no_password(site: Site) -> None:
    """Without an identity it is a password that is missing."""
    with scripted(PING=b"-NOAUTH Authentication required.\r\n") as server:
        site.use_server(server)
        outcome = site.check()
    assert outcome.steps[-1]["code"] == "auth_password"


def test_connection_closed(site: Site) -> None:
    """A connection that breaks, where a new one is let in, is a failover."""
    last = after(site, "ping", site.emulator.drop_connections)
    assert (last.name, last.code) == ("round_trip", "server_closed")


def test_server_gone(site: Site) -> None:
    """A connection that breaks, where there is no new one either, is one too."""

    def end() -> None:
        site.emulator.break_tls("closed")
        site.emulator.drop_connections()

    last = after(site, "ping", end)
    assert (last.name, last.code) == ("round_trip", "server_closed")


def test_long_words(site: Site) -> None:
    """Whatever other software writes, somebody is to read it."""
    diagnosis = Diagnosis("default", site.backend(), site.patience)
    (step,) = diagnosis.take({"settings": lambda diagnosis: "x y " * 25000})
    assert len(step.detail) < 2100
    assert step.detail.endswith("...")


def test_what_is_not_to_be_shown(site: Site) -> None:
    """Whatever other software writes, secrets are struck out, and it is one line."""
    with site.settings():
        diagnosis = Diagnosis("default", site.backend(), site.patience)
        list(diagnosis.take({"settings": STEPS["settings"], "token": STEPS["token"]}))
        assert diagnosis.token is not None

        def tell(diagnosis: Diagnosis) -> str:
            assert diagnosis.token is not None
            secret = site.emulator.application.secret
            return f"{diagnosis.token.value}\n  and {secret} in ../file.."

        (step,) = diagnosis.take({"token": tell})
    assert step.detail == "*** and *** in ../file."


# -- copies in the process -----------------------------------------------------------


def test_copies(site: Site, redis_server: str) -> None:
    """Whether Redis tells of changes is a detail, and no fault."""
    site.options["client_side_cache"] = True
    details = site.check().details
    assert details["ping"].endswith("client_side_cache: Redis invalidates copies")
    site.emulator.set_access(
        site.emulator.application.object_id, "+@all -client|tracking ~* &*"
    )
    outcome = site.check()
    assert outcome.report["ok"]
    assert "no copies are kept (CLIENT TRACKING: " in outcome.details["ping"]


def test_copies_on_a_cluster(
    cluster: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of its primaries is asked; what it can't answer is no fault either."""
    site = Site(cluster, monkeypatch)
    site.cache["BACKEND"] = CLUSTER_BACKEND
    site.options["client_side_cache"] = True
    details = site.check().details
    assert details["ping"].endswith("client_side_cache: Redis invalidates copies")

    def refuse(target: object) -> None:
        raise TimeoutError("too late")

    monkeypatch.setattr(steps, "refusal_of", refuse)
    assert site.check().details["ping"].endswith("no copies are kept (too late)")
