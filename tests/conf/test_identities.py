"""The settings of identities: what they may be, and what is said of the others."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.functional import SimpleLazyObject
from hypothesis import given, settings
from hypothesis import strategies as st

from django_entra_redis._errors import ConfigurationError, Problem
from django_entra_redis.conf.identities import (
    KEYS,
    KINDS,
    Identity,
    identity_aliases,
    identity_problems,
    load_identity,
    parse_identity,
)
from django_entra_redis.conf.policy import Policy
from django_entra_redis.exceptions import EntraRedisError

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "66666666-7777-8888-9999-000000000000"
APPLICATION = {
    "KIND": "service_principal",
    "TENANT_ID": TENANT,
    "CLIENT_ID": CLIENT,
    "CLIENT_SECRET": "hush",
}
#: What AKS sets in a pod.
POD = {
    "AZURE_TENANT_ID": TENANT,
    "AZURE_CLIENT_ID": CLIENT,
    "AZURE_FEDERATED_TOKEN_FILE": "/var/run/token",
    "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.us/",
}


class Credential:
    """Somebody's credential."""

    def get_token(self, *scopes: str) -> None:
        """Would return a token."""


class AsynchronousCredential:
    """A credential such as azure.identity.aio's."""

    async def get_token(self, *scopes: str) -> None:
        """Would return a token."""


def parse(entry: Any, environ: dict[str, str] | None = None) -> Identity:
    """Return an identity, with nothing in the environment unless given."""
    return parse_identity("default", entry, environ or {})


def faults(entry: Any, environ: dict[str, str] | None = None) -> list[Problem]:
    """Return what is said of an identity that can't be used."""
    with pytest.raises(ConfigurationError) as caught:
        parse(entry, environ)
    return list(caught.value.problems)


def fault(entry: Any, environ: dict[str, str] | None = None) -> Problem:
    """Return the one thing that is said of an identity that can't be used."""
    (problem,) = faults(entry, environ)
    return problem


# -- what is right


def test_defaults() -> None:
    """An empty entry is the machine's managed identity, in the public cloud."""
    identity = parse({})
    assert identity == Identity(alias="default", kind="managed_identity")
    assert identity.authority_host == "login.microsoftonline.com"
    assert identity.scope == "https://redis.azure.com/.default"
    assert identity.instance_discovery is True
    assert identity.policy == Policy(ratio=0.7, margin=180, timeout=10)


def test_every_key() -> None:
    """Each key that is common to all kinds ends up where it belongs."""
    identity = parse(
        {
            **APPLICATION,
            "AUTHORITY_HOST": "login.chinacloudapi.cn",
            "INSTANCE_DISCOVERY": False,
            "SCOPE": "api://redis/.default",
            "USERNAME": "me",
            "REFRESH_RATIO": 0.5,
            "REFRESH_MARGIN": 0,
            "REQUEST_TIMEOUT": 3,
        }
    )
    assert (identity.tenant_id, identity.client_id) == (TENANT, CLIENT)
    assert identity.client_secret == "hush"
    assert identity.authority_host == "login.chinacloudapi.cn"
    assert identity.instance_discovery is False
    assert identity.scope == "api://redis/.default"
    assert identity.username == "me"
    assert identity.policy == Policy(ratio=0.5, margin=0, timeout=3)


def test_certificate() -> None:
    """In place of a secret; its path may be text or a Path."""
    entry: dict[str, Any] = {
        **APPLICATION,
        "CLIENT_SECRET": None,
        "CLIENT_CERTIFICATE": "/run/cert.pem",
        "CLIENT_CERTIFICATE_PASSWORD": "hush",
        "SEND_CERTIFICATE_CHAIN": True,
    }
    identity = parse(entry)
    assert identity.client_certificate == Path("/run/cert.pem")
    assert identity.client_certificate_password == "hush"
    assert identity.send_certificate_chain is True
    assert parse({**entry, "CLIENT_CERTIFICATE": Path("/run/cert.pem")}) == identity


@pytest.mark.parametrize("key", ["CLIENT_ID", "OBJECT_ID", "RESOURCE_ID"])
def test_user_assigned_identity(key: str) -> None:
    """A managed identity can be named in three ways."""
    identity = parse({"KIND": "managed_identity", key: "which"})
    assert getattr(identity, key.lower()) == "which"


@pytest.mark.parametrize(
    "credential", [Credential(), Credential, lambda: Credential(), "azure.identity.X"]
)
def test_credential(credential: object) -> None:
    """An object, what makes one, or the path of either stands in place of a kind."""
    identity = parse({"CREDENTIAL": credential, "USERNAME": "me"})
    assert identity.kind == "credential"
    assert identity.credential is credential


@pytest.mark.parametrize("nothing", [None, ""])
def test_what_an_absent_variable_gives_counts_as_absent(nothing: object) -> None:
    """``os.environ.get()`` in the settings needs no condition around it."""
    assert parse(dict.fromkeys(KEYS, nothing)) == parse({})


@pytest.mark.parametrize(
    "host", ["login.example", "https://login.example", "https://login.example/"]
)
def test_authority_host_in_any_form(host: str) -> None:
    """With or without scheme and trailing slash, in settings and environment."""
    assert parse({"AUTHORITY_HOST": host}).authority_host == "login.example"
    assert parse({}, {"AZURE_AUTHORITY_HOST": host}).authority_host == "login.example"
    named = parse({"AUTHORITY_HOST": "a"}, {"AZURE_AUTHORITY_HOST": host})
    assert named.authority_host == "a"


def test_authority_host_by_its_address() -> None:
    """Such as a double's of Entra's, on this machine."""
    for host in ("127.0.0.1:8000", "[::1]:8000"):
        assert parse({"AUTHORITY_HOST": host}).authority_host == host


# -- the environment

SECRET = {"AZURE_CLIENT_SECRET": "hush"}
CERTIFICATE = {
    "AZURE_CLIENT_CERTIFICATE_PATH": "/c.pem",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD": "hush",
}


@pytest.mark.parametrize(
    ("environ", "kind", "proof"),
    [
        ({**POD, **CERTIFICATE, **SECRET}, "service_principal", "client_secret"),
        ({**POD, **CERTIFICATE}, "service_principal", "client_certificate"),
        (POD, "workload_identity", "token_file"),
        ({**POD, "AZURE_FEDERATED_TOKEN_FILE": ""}, "managed_identity", None),
        ({"AZURE_CLIENT_ID": CLIENT}, "managed_identity", None),
        # Incomplete: not what anybody meant.
        ({"AZURE_CLIENT_ID": CLIENT, **SECRET}, "managed_identity", None),
        ({"AZURE_TENANT_ID": TENANT, **SECRET}, "managed_identity", None),
        ({}, "managed_identity", None),
    ],
)
def test_environment(environ: dict[str, str], kind: str, proof: str | None) -> None:
    """The first complete one of secret, certificate, token file; else managed."""
    for entry in ({}, {"KIND": "environment"}):
        identity = parse(entry, environ)
        assert identity.kind == kind
        assert identity.client_id == (environ.get("AZURE_CLIENT_ID"))
        proofs = ("client_secret", "client_certificate", "token_file")
        assert [p for p in proofs if getattr(identity, p)] == ([proof] if proof else [])
        password = identity.client_certificate_password
        assert bool(password) == (proof == "client_certificate")


def test_chain_of_the_environments_certificate() -> None:
    """It is sent where there is a certificate, and no matter elsewhere."""
    entry = {"SEND_CERTIFICATE_CHAIN": True}
    assert parse(entry, {**POD, **CERTIFICATE}).send_certificate_chain is True
    assert parse(entry, {**POD, **SECRET}).send_certificate_chain is False


@pytest.mark.parametrize(
    ("variable", "sent"),
    [
        *(("1", True), ("true", True), ("True", True), ("yes", True)),
        *(("", False), ("0", False), ("False", False), (" off ", False)),
    ],
)
def test_chain_that_the_environment_asks_for(variable: str, sent: bool) -> None:
    """azure-identity's variable counts, and the settings go before it."""
    chain = {"AZURE_CLIENT_SEND_CERTIFICATE_CHAIN": variable}
    environ = {**POD, **CERTIFICATE, **chain}
    assert parse({}, environ).send_certificate_chain is sent
    for chosen in (True, False):
        entry = {"SEND_CERTIFICATE_CHAIN": chosen}
        assert parse(entry, environ).send_certificate_chain is chosen
    assert parse({}, {**POD, **SECRET, **chain}).send_certificate_chain is False
    assert parse({}, chain).kind == "managed_identity"


@pytest.mark.parametrize(
    "entry",
    [
        APPLICATION,
        {"KIND": "managed_identity"},
        {"KIND": "workload_identity"},
        {"CREDENTIAL": "a.b"},
        {},
    ],
)
def test_no_chain_fits_every_identity(entry: dict[str, Any]) -> None:
    """What is as it would be without it is no error."""
    chainless = {**entry, "SEND_CERTIFICATE_CHAIN": False}
    assert parse(chainless, POD) == parse(entry, POD)


def test_the_real_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another one, the process's variables are read, each time anew."""
    assert parse_identity("default", {}).kind == "managed_identity"
    for name, value in POD.items():
        monkeypatch.setenv(name, value)
    identity = parse_identity("default", {})
    assert identity.kind == "workload_identity"
    assert identity.authority_host == "login.microsoftonline.us"


def test_workload_identity() -> None:
    """What the settings say goes before what AKS says."""
    identity = parse({"KIND": "workload_identity", "CLIENT_ID": "other"}, POD)
    assert (identity.tenant_id, identity.client_id) == (TENANT, "other")
    assert identity.token_file == Path("/var/run/token")


# -- what is wrong


@pytest.mark.parametrize("entry", [None, [], "default", 5])
def test_entry_is_no_dictionary(entry: object) -> None:
    """It should be one, if an empty one."""
    problem = fault(entry)
    assert (problem.id, problem.where) == ("E001", "ENTRA_REDIS['default']")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("TENANTID", "Did you mean 'TENANT_ID'?"),
        ("tenant_id", "Did you mean 'TENANT_ID'?"),
        ("SECRET_OF_MINE", "The keys are KIND, TENANT_ID"),
        (5, "The keys are KIND"),
    ],
)
def test_unknown_key(key: object, hint: str) -> None:
    """The key is named, and the one that was meant."""
    problem = fault({key: "value"})
    assert problem.id == "E002"
    assert repr(key) in problem.message
    assert hint in problem.hint


@pytest.mark.parametrize("kind", ["", None])
def test_no_kind_is_the_environment(kind: object) -> None:
    """A kind that is not given is the default one."""
    assert parse({"KIND": kind}, POD).kind == "workload_identity"


@pytest.mark.parametrize("kind", ["managed", "MANAGED_IDENTITY", "credential"])
def test_unknown_kind(kind: str) -> None:
    """All kinds there are get listed."""
    problem = fault({"KIND": kind})
    assert (problem.id, problem.where) == ("E003", "ENTRA_REDIS['default']['KIND']")
    assert all(repr(name) in problem.hint for name in KINDS)


@pytest.mark.parametrize("key", ["TENANT_ID", "CLIENT_ID", "CLIENT_SECRET"])
def test_missing_key_of_an_application(key: str) -> None:
    """It is named, and what to do about it."""
    problem = fault({**APPLICATION, key: ""})
    assert problem.id == "E004"
    assert problem.message == f"{key} is missing."
    assert f"Set {key}" in problem.hint


def test_missing_keys_of_a_workload() -> None:
    """Each names the variable that could bring it."""
    problems = faults({"KIND": "workload_identity"})
    assert [problem.id for problem in problems] == ["E004"] * 3
    text = " ".join(map(str, problems))
    for key in ("TENANT_ID", "CLIENT_ID", "FEDERATED_TOKEN_FILE"):
        assert f"$AZURE_{key}" in text


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (
            {**APPLICATION, "CLIENT_CERTIFICATE": "/c"},
            "CLIENT_SECRET and CLIENT_CERTIFICATE",
        ),
        (
            {**APPLICATION, "CLIENT_CERTIFICATE_PASSWORD": "hush"},
            "CLIENT_CERTIFICATE_PASSWORD without CLIENT_CERTIFICATE",
        ),
        (
            {**APPLICATION, "SEND_CERTIFICATE_CHAIN": True},
            "SEND_CERTIFICATE_CHAIN without CLIENT_CERTIFICATE",
        ),
        (
            {"KIND": "managed_identity", "CLIENT_ID": "a", "OBJECT_ID": "b"},
            "CLIENT_ID and OBJECT_ID",
        ),
        (
            {"KIND": "environment", "CREDENTIAL": "a.b"},
            "CREDENTIAL and KIND",
        ),
    ],
)
def test_contradiction(entry: dict[str, Any], named: str) -> None:
    """What excludes each other is named together."""
    problem = fault(entry)
    assert problem.id == "E005"
    assert named in problem.message


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        (
            {"CLIENT_SECRET": "hush"},
            "CLIENT_SECRET is not used by KIND 'environment'.",
            "Set KIND to 'service_principal', or remove it.",
        ),
        (
            {"TENANT_ID": "a", "CLIENT_ID": "b", "CLIENT_SECRET": "hush"},
            "CLIENT_ID and CLIENT_SECRET and TENANT_ID are not used by KIND "
            "'environment'.",
            "Set KIND to 'service_principal', or remove them.",
        ),
        (
            {"KIND": "managed_identity", "OBJECT_ID": "a", "TENANT_ID": "b"},
            "TENANT_ID is not used by KIND 'managed_identity'.",
            "Remove it.",
        ),
        (
            {"KIND": "managed_identity", "TENANT_ID": "a"},
            "TENANT_ID is not used by KIND 'managed_identity'.",
            "Set KIND to 'service_principal' or 'workload_identity', or remove it.",
        ),
        (
            {"CREDENTIAL": "a.b", "CLIENT_ID": "a"},
            "CLIENT_ID is not used with CREDENTIAL.",
            "Remove it, or CREDENTIAL.",
        ),
        (
            {"CREDENTIAL": "a.b", "CLIENT_ID": "a", "TENANT_ID": "b"},
            "CLIENT_ID and TENANT_ID are not used with CREDENTIAL.",
            "Remove them, or CREDENTIAL.",
        ),
    ],
)
def test_key_of_another_kind(entry: dict[str, Any], message: str, hint: str) -> None:
    """Keys without effect are told, with the kinds that know all that is given."""
    problem = fault(entry)
    assert (problem.id, problem.message, problem.hint) == ("E006", message, hint)


@pytest.mark.parametrize(
    "key", ["CLIENT_SECRET", "CLIENT_CERTIFICATE_PASSWORD", "CLIENT_ID", "SCOPE"]
)
@settings(deadline=None)
@given(
    st.binary(min_size=1)
    | st.integers(min_value=1)
    | st.lists(st.text(), min_size=1)
    | st.just(True)
)
def test_no_text(key: str, value: object) -> None:
    """What is to be text and is none is told, and is not shown."""
    problem = fault({key: value})
    assert (problem.id, problem.where) == ("E007", f"ENTRA_REDIS['default']['{key}']")
    assert problem.hint == "It should be a string."
    assert len(problem.message) < 80


#: What comes along with text that is read from files, and can't be seen.
invisible = st.characters(categories=["Cc", "Cf", "Zl", "Zp"])
unseen = st.text(st.sampled_from(" \t\u00a0\u2003") | invisible, min_size=1)
#: Values that are right but for that, by key.
RIGHT = {
    "TENANT_ID": TENANT,
    "CLIENT_ID": CLIENT,
    "CLIENT_SECRET": "hush",
    "OBJECT_ID": CLIENT,
    "RESOURCE_ID": "/subscriptions/1",
    "USERNAME": CLIENT,
    "SCOPE": "https://redis.azure.com/.default",
    "AUTHORITY_HOST": "login.example",
}


@settings(deadline=None)
@given(st.sampled_from(list(RIGHT)), unseen, st.booleans())
def test_what_files_bring_along(key: str, extra: str, before: bool) -> None:
    """A line break or a space that nobody sees is told, and the value is not."""
    value = extra + RIGHT[key] if before else RIGHT[key] + extra
    problem = fault({key: value})
    assert (problem.id, problem.where) == ("E007", f"ENTRA_REDIS['default']['{key}']")
    assert "line break or a space" in problem.hint
    assert "hush" not in str(problem)


@pytest.mark.parametrize("key", ["CLIENT_CERTIFICATE_PASSWORD", "TOKEN_FILE"])
def test_line_breaks_of_passwords_and_paths(key: str) -> None:
    """A space may be a part of these; a line break is not."""
    for text in ("hush\n", "\r\nhush", "hush\0", "\u202ahush", "hush\x1a", "hush\x85"):
        assert "line break" in fault({key: text}).hint
    entry = {**APPLICATION, "CLIENT_SECRET": None, "CLIENT_CERTIFICATE": " c.pem"}
    identity = parse({**entry, "CLIENT_CERTIFICATE_PASSWORD": " hush "})
    assert identity.client_certificate_password == " hush "
    assert identity.client_certificate == Path(" c.pem")


@pytest.mark.parametrize("name", [*POD, "AZURE_CLIENT_SECRET"])
def test_variable_with_a_line_break(name: str) -> None:
    """Variables are named that have one."""
    environ = {**POD, **SECRET}
    if name == "AZURE_FEDERATED_TOKEN_FILE":
        del environ["AZURE_CLIENT_SECRET"]
    problem = fault({}, {**environ, name: f"{environ[name]}\n"})
    assert (problem.id, problem.where) == ("E007", f"${name}")
    assert "line break" in problem.hint


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("KIND", 5, "a string"),
        ("TENANT_ID", "https://login/tenant", "a GUID"),
        ("TENANT_ID", 5, "a string"),
        ("CLIENT_ID", 5, "a string"),
        ("CLIENT_SECRET", b"hush", "a string"),
        ("CLIENT_CERTIFICATE", 5, "path of a file"),
        ("TOKEN_FILE", b"/x", "path of a file"),
        ("SEND_CERTIFICATE_CHAIN", 1, "True or False"),
        ("CREDENTIAL", "azure.identity.aio.AzureCliCredential", "not be asynchronous"),
        ("CREDENTIAL", AsynchronousCredential(), "not be asynchronous"),
        ("CREDENTIAL", AsynchronousCredential, "not be asynchronous"),
        ("CREDENTIAL", AsynchronousCredential().get_token, "not be asynchronous"),
        ("INSTANCE_DISCOVERY", "no", "True or False"),
        ("AUTHORITY_HOST", "http://login.example", "login.microsoftonline.com"),
        ("AUTHORITY_HOST", "https://login.example/tenant", "host such as"),
        ("AUTHORITY_HOST", 5, "a string"),
        *(
            ("AUTHORITY_HOST", host, "host such as")
            for host in (
                "login.example:port",
                "login.example:65536",
                "login.example:443:1",
                "login..example",
                ".example",
                "a" * 64,
                ":443",
                "::1",
                "[::1",
                "[::g]",
                "[1::2::3]",
                "[::1]x",
            )
        ),
        ("SCOPE", "https://redis.azure.com", "end in '/.default'"),
        ("CREDENTIAL", 5, "get_token"),
        ("REFRESH_RATIO", 0, "above 0 and up to 0.99"),
        ("REFRESH_RATIO", 1.5, "above 0 and up to 0.99"),
        ("REFRESH_RATIO", 0.995, "above 0 and up to 0.99"),
        ("REFRESH_RATIO", True, "above 0 and up to 0.99"),
        ("REFRESH_MARGIN", -1, "a number of seconds"),
        ("REFRESH_MARGIN", "180", "a number of seconds"),
        ("REQUEST_TIMEOUT", 0, "above 0"),
        ("REQUEST_TIMEOUT", math.nan, "above 0"),
        ("REQUEST_TIMEOUT", math.inf, "above 0"),
    ],
)
def test_value_that_cannot_be_used(key: str, value: object, hint: str) -> None:
    """The key is named, and what its value should be, but never the value."""
    problem = fault({key: value})
    assert (problem.id, problem.where) == ("E007", f"ENTRA_REDIS['default']['{key}']")
    assert hint in problem.hint
    assert "hush" not in str(problem)


def test_variable_that_cannot_be_used() -> None:
    """The variable is named, and not called missing as well."""
    problem = fault({}, {**POD, "AZURE_TENANT_ID": "no tenant!"})
    assert (problem.id, problem.where) == ("E007", "$AZURE_TENANT_ID")
    problem = fault({"KIND": "managed_identity"}, {"AZURE_AUTHORITY_HOST": "http://x"})
    assert (problem.id, problem.where) == ("E007", "$AZURE_AUTHORITY_HOST")


def test_all_that_is_wrong_is_said_at_once() -> None:
    """Nobody has to put it right piece by piece."""
    problems = faults({"TENANT": "a", "REFRESH_RATIO": 7, "INSTANCE_DISCOVERY": 0})
    assert [problem.id for problem in problems] == ["E002", "E007", "E007"]


# -- the settings module


def test_no_setting_at_all() -> None:
    """It means one identity, of the environment."""
    with override_settings():
        del django_settings.ENTRA_REDIS
        assert identity_aliases() == ["default"]
        assert identity_aliases(default=False) == []
        assert load_identity("default").kind == "managed_identity"
        assert identity_problems() == []


def test_settings_are_read_at_use() -> None:
    """``override_settings`` works, since nothing is remembered."""
    with override_settings(ENTRA_REDIS={"one": {}, "two": APPLICATION}):
        assert identity_aliases() == ["one", "two"]
        assert identity_aliases(default=False) == ["one", "two"]
        assert load_identity("two").client_secret == "hush"
    assert identity_aliases() == []


@pytest.mark.parametrize(
    ("entries", "known"), [({}, "none"), ({"one": {}, "two": {}}, "'one', 'two'")]
)
def test_no_such_identity(entries: dict[str, Any], known: str) -> None:
    """The ones there are get listed."""
    with (
        override_settings(ENTRA_REDIS=entries),
        pytest.raises(ImproperlyConfigured, match=f"no such identity.*{known}") as info,
    ):
        load_identity("other")
    assert isinstance(info.value, ConfigurationError)
    assert info.value.problems[0].id == "E008"


@pytest.mark.parametrize("entries", [None, [], "default"])
def test_setting_is_no_dictionary(entries: object) -> None:
    """Run time and check say the same, and nothing is renewed."""
    with override_settings(ENTRA_REDIS=entries):
        (problem,) = identity_problems()
        assert (problem.id, problem.where) == ("E001", "ENTRA_REDIS")
        assert identity_aliases() == []
        with pytest.raises(ConfigurationError) as info:
            load_identity("default")
    assert info.value.problems == (problem,)


def test_problems_of_every_identity() -> None:
    """The check lists what is wrong with each."""
    entries = {"good": {}, "bad": {"KEY": 1}, "worse": {"KIND": "x"}}
    with override_settings(ENTRA_REDIS=entries):
        assert [problem.where for problem in identity_problems()] == [
            "ENTRA_REDIS['bad']",
            "ENTRA_REDIS['worse']['KIND']",
        ]


class Raising:
    """A credential that computes its method, and fails at it."""

    @property
    def get_token(self) -> Any:
        """Raise."""
        raise ValueError("hush")


class Unclassed:
    """An object that computes even its class, as Django's lazy ones do."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Raise."""
        raise OSError("hush")


def make_hushed() -> Any:
    """Make no credential."""
    raise LookupError("hush")


@pytest.mark.parametrize(
    ("make", "raised"),
    [
        (Raising, "ValueError"),
        (Unclassed, "OSError"),
        (lambda: SimpleLazyObject(make_hushed), "LookupError"),
    ],
)
def test_credential_that_raises_when_it_is_looked_at(
    make: Callable[[], Any], raised: str
) -> None:
    """The setting is named and the error's class, but not its words."""
    problem = fault({"CREDENTIAL": make()})
    where = "ENTRA_REDIS['default']['CREDENTIAL']"
    assert (problem.id, problem.where) == ("E007", where)
    assert f"It raises {raised}" in problem.hint
    assert "hush" not in str(problem)


def test_credential_that_computes_its_method() -> None:
    """It is a credential like any other, and so is a lazy one."""

    class Computing:
        @property
        def get_token(self) -> Any:
            return len

    for credential in (Computing(), SimpleLazyObject(Computing)):
        assert parse({"CREDENTIAL": credential}).credential is credential


# -- secrets, errors


def test_secrets_are_not_shown() -> None:
    """Neither repr nor str of an identity hold one."""
    certificate = {**APPLICATION, "CLIENT_SECRET": "", "CLIENT_CERTIFICATE": "/c"}
    for entry in (
        APPLICATION,
        {**certificate, "CLIENT_CERTIFICATE_PASSWORD": "hush"},
        {"CREDENTIAL": "hush.Credential"},
    ):
        assert "hush" not in f"{parse(entry)!r} {parse(entry)}"


def test_error_says_everything() -> None:
    """Its text names each key, the fault and the cure; it is Django's kind of error."""
    error = ConfigurationError(
        [Problem("E1", "A", "b.", "C."), Problem("", "D", "", "")]
    )
    assert isinstance(error, ImproperlyConfigured)
    assert isinstance(error, EntraRedisError)
    assert str(error) == "A: b. C. D:  "
    assert "b." in repr(error)


def test_error_goes_from_process_to_process() -> None:
    """It comes out of pickling and copying as it was."""
    error = ConfigurationError([Problem("E001", "ENTRA_REDIS", "is wrong.", "Fix.")])
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(twin) == str(error)
        assert (twin.problems, twin.args) == (error.problems, error.args)


# -- whatever a settings file holds

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner),
    max_leaves=4,
)
plausible = st.sampled_from(
    ["", "managed_identity", "service_principal", "workload_identity", TENANT, "/file"]
)


@settings(deadline=None, database=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(KEYS)) | st.text(), plausible | anything, max_size=7
    )
    | anything,
    st.dictionaries(
        st.sampled_from(sorted({*POD, *SECRET, *CERTIFICATE})), plausible | st.text()
    ),
)
def test_any_entry_is_an_identity_or_an_explanation(
    entry: Any, environ: dict[str, str]
) -> None:
    """Nothing but the package's own error comes of it, and it names a setting."""
    try:
        identity = parse_identity("default", entry, environ)
    except ConfigurationError as error:
        for problem in error.problems:
            assert problem.where.startswith(("ENTRA_REDIS", "$AZURE_"))
            assert problem.hint
    else:
        assert identity.kind in {*KINDS, "credential"} - {"environment"}
        assert "/" not in identity.authority_host
        assert 0 < identity.policy.ratio < 1
