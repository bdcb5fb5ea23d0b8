"""The setting ``ENTRA_REDIS``: identities, parsed and checked.

One parser serves run time, which raises the problems, and the system checks, which list
them. Nothing is cached here, so that ``override_settings`` works.
"""

import difflib
import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from django.conf import settings

from .._errors import ConfigurationError, Problem, refuse_pickling
from .keys import (
    DAY,
    PUBLIC_CLOUD,
    REDIS_SCOPE,
    InvalidValueError,
    Key,
    declare,
    parse_credential,
    parse_flag,
    parse_host,
    parse_number,
    parse_password,
    parse_path,
    parse_scope,
    parse_tenant,
    parse_text,
)
from .policy import Policy

_DEFAULT = Policy()


#: The values of ``KIND``.
KINDS = ("environment", "managed_identity", "service_principal", "workload_identity")
#: The kinds that are an application registered in a tenant.
_APPLICATIONS = ("service_principal", "workload_identity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One entry of ``ENTRA_REDIS``, checked, with its defaults filled in.

    ``kind`` is one of ``managed_identity``, ``service_principal``,
    ``workload_identity`` and ``credential``; ``environment`` has been resolved to one
    of them by the environment variables.
    """

    __reduce_ex__ = refuse_pickling

    alias: str
    kind: str
    tenant_id: str | None = field(
        default=None,
        metadata=declare(
            parse_tenant,
            kinds=_APPLICATIONS,
            required=_APPLICATIONS,
            variable="AZURE_TENANT_ID",
        ),
    )
    client_id: str | None = field(
        default=None,
        metadata=declare(
            parse_text,
            kinds=("managed_identity", *_APPLICATIONS),
            required=_APPLICATIONS,
            exclusive=("managed_identity",),
            variable="AZURE_CLIENT_ID",
        ),
    )
    client_secret: str | None = field(
        default=None,
        repr=False,
        metadata=declare(
            parse_text,
            kinds=("service_principal",),
            exclusive=("service_principal",),
            variable="AZURE_CLIENT_SECRET",
        ),
    )
    client_certificate: Path | None = field(
        default=None,
        metadata=declare(
            parse_path,
            kinds=("service_principal",),
            exclusive=("service_principal",),
            variable="AZURE_CLIENT_CERTIFICATE_PATH",
        ),
    )
    client_certificate_password: str | None = field(
        default=None,
        repr=False,
        metadata=declare(
            parse_password,
            kinds=("service_principal",),
            variable="AZURE_CLIENT_CERTIFICATE_PASSWORD",
        ),
    )
    send_certificate_chain: bool = field(
        default=False,
        metadata=declare(
            parse_flag,
            kinds=("environment", "service_principal"),
            variable="AZURE_CLIENT_SEND_CERTIFICATE_CHAIN",
        ),
    )
    object_id: str | None = field(
        default=None,
        metadata=declare(
            parse_text, kinds=("managed_identity",), exclusive=("managed_identity",)
        ),
    )
    resource_id: str | None = field(
        default=None,
        metadata=declare(
            parse_text, kinds=("managed_identity",), exclusive=("managed_identity",)
        ),
    )
    token_file: Path | None = field(
        default=None,
        metadata=declare(
            parse_path,
            kinds=("workload_identity",),
            required=("workload_identity",),
            variable="AZURE_FEDERATED_TOKEN_FILE",
        ),
    )
    credential: Any = field(
        default=None,
        repr=False,
        metadata=declare(parse_credential, kinds=("credential",)),
    )
    authority_host: str = field(
        default=PUBLIC_CLOUD,
        metadata=declare(parse_host, variable="AZURE_AUTHORITY_HOST"),
    )
    instance_discovery: bool = field(default=True, metadata=declare(parse_flag))
    scope: str = field(default=REDIS_SCOPE, metadata=declare(parse_scope))
    username: str | None = field(default=None, metadata=declare(parse_text))
    refresh_ratio: float = field(
        default=_DEFAULT.ratio,
        metadata=declare(
            parse_number(0, 0.99, "a number above 0 and up to 0.99, such as 0.7")
        ),
    )
    refresh_margin: float = field(
        default=_DEFAULT.margin,
        metadata=declare(parse_number(-1e-09, DAY, "a number of seconds, such as 180")),
    )
    request_timeout: float = field(
        default=_DEFAULT.timeout,
        metadata=declare(
            parse_number(0, DAY, "a number of seconds above 0, such as 10")
        ),
    )

    @property
    def policy(self) -> Policy:
        """When to renew the token, and how long to wait for it."""
        return Policy(
            ratio=self.refresh_ratio,
            margin=self.refresh_margin,
            timeout=self.request_timeout,
        )


#: Every key of an entry, by its name.
KEYS: Mapping[str, Key] = {
    "KIND": Key(parse_text),
    **{
        one.name.upper(): one.metadata["key"]
        for one in fields(Identity)
        if "key" in one.metadata
    },
}
_VARIABLES: Mapping[str, str] = {
    name: known.variable for name, known in KEYS.items() if known.variable
}
#: The keys that have no meaning without CLIENT_CERTIFICATE.
_OF_CERTIFICATE = frozenset({"CLIENT_CERTIFICATE_PASSWORD", "SEND_CERTIFICATE_CHAIN"})
#: Values of an environment variable that mean no. azure-identity for Python takes any
#: text for yes, and azure-identity for other languages "true" and "1" alone.
_NO = frozenset({"0", "false", "no", "off"})

#: The kinds that environment variables can select, in azure-identity's order (secret,
#: certificate, federated token), with their required and their optional keys.
_FROM_ENVIRONMENT: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("service_principal", ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET"), ()),
    (
        "service_principal",
        ("TENANT_ID", "CLIENT_ID", "CLIENT_CERTIFICATE"),
        ("CLIENT_CERTIFICATE_PASSWORD", "SEND_CERTIFICATE_CHAIN"),
    ),
    ("workload_identity", ("TENANT_ID", "CLIENT_ID", "TOKEN_FILE"), ()),
)


def keys_of(kind: str) -> frozenset[str]:
    """Return the keys that a kind has besides those common to all."""
    return frozenset(name for name, known in KEYS.items() if kind in known.kinds)


def _required_by(kind: str) -> tuple[str, ...]:
    return tuple(name for name, known in KEYS.items() if kind in known.required)


def is_identity_binding(identity: Identity, environ: Mapping[str, str]) -> bool:
    """Whether a federated token is for AKS' identity bindings, not for Entra.

    Parameters:
        identity: the identity.
        environ: the environment variables.
    """
    return identity.token_file is not None and bool(
        environ.get("AZURE_KUBERNETES_TOKEN_PROXY")
    )


def identity_aliases(*, default: bool = True) -> list[str]:
    """Return the names of all identities.

    Parameters:
        default: whether to return the default identity if ``ENTRA_REDIS`` is not set.
    """
    entries = _entries() if default else getattr(settings, "ENTRA_REDIS", {})
    return [str(alias) for alias in entries] if isinstance(entries, Mapping) else []


def load_identity(alias: str) -> Identity:
    """Return one identity of the settings.

    Raises:
        ConfigurationError: it is missing, or has problems.
    """
    try:
        return _load_identity(alias)
    except ConfigurationError as error:
        problems = error.problems
    # Without the frames of the parsers: Django's debug page would print their local
    # variables, which hold secrets.
    raise ConfigurationError(problems)


def _load_identity(alias: str) -> Identity:
    entries = _entries()
    if not isinstance(entries, Mapping):
        raise ConfigurationError([_not_a_dict()])
    if alias not in entries:
        known = ", ".join(f"'{name}'" for name in entries) or "none"
        where = f"ENTRA_REDIS[{alias!r}]"
        hint = f"ENTRA_REDIS has: {known}. Add this identity, or name another one."
        problem = Problem("E008", where, "there is no such identity.", hint)
        raise ConfigurationError([problem])
    return parse_identity(alias, entries[alias])


def identity_problems() -> list[Problem]:
    """Return the problems of all identities."""
    entries = _entries()
    if not isinstance(entries, Mapping):
        return [_not_a_dict()]
    problems: list[Problem] = []
    for alias, entry in entries.items():
        try:
            parse_identity(alias, entry)
        except ConfigurationError as error:
            problems += error.problems
    return problems


def _entries() -> Any:
    return getattr(settings, "ENTRA_REDIS", {"default": {}})


def _not_a_dict() -> Problem:
    return Problem(
        "E001",
        "ENTRA_REDIS",
        "it is not a dictionary.",
        'It should map names to identities, such as {"default": {}}.',
    )


def parse_identity(
    alias: str, entry: Any, environ: Mapping[str, str] = os.environ
) -> Identity:
    """Check one entry of ``ENTRA_REDIS``.

    Parameters:
        alias: its name.
        entry: the dictionary in the settings. A key with an empty string or ``None``
            counts as not given, since that is the value of an unset variable.
        environ: the environment variables.

    Raises:
        ConfigurationError: the entry has problems.
    """
    where = f"ENTRA_REDIS[{alias!r}]"
    if not isinstance(entry, Mapping):
        raise ConfigurationError(
            [Problem("E001", where, "it is not a dictionary.", "It should be one: {}.")]
        )
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in KEYS:
            problems.append(_unknown_key(where, key))
        else:
            _parse(f"{where}[{key!r}]", key, value, values, problems)
    if not problems:
        values = _complete(where, values, environ, problems)
    if problems:
        raise ConfigurationError(problems)
    kind = values.pop("KIND")
    given = {key.lower(): value for key, value in values.items()}
    return Identity(alias=alias, kind=kind, **given)


def _parse(
    where: str, key: str, value: Any, values: dict[str, Any], problems: list[Problem]
) -> None:
    """Add a key's parsed value, if it is given, to the values, or its problem to the
    problems."""
    try:
        if value is not None and value != "":
            values[key] = KEYS[key].parse(value)
        return
    except InvalidValueError as error:
        hint = str(error)
    except Exception as error:
        # An object may compute its attributes, and Django's lazy ones are made when
        # they are looked at. The words of what they raise may hold a secret.
        hint = f"It raises {type(error).__name__} as soon as it is looked at."
    problems.append(Problem("E007", where, "its value can't be used.", hint))


def _unknown_key(where: str, key: Any) -> Problem:
    near = difflib.get_close_matches(str(key).upper(), KEYS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"The keys are {', '.join(KEYS)}."
    return Problem("E002", where, f"there is no key {key!r}.", hint)


def _complete(
    where: str,
    values: dict[str, Any],
    environ: Mapping[str, str],
    problems: list[Problem],
) -> dict[str, Any]:
    """Return the values, with those from the environment; add problems to the list."""
    no_chain = values.get("SEND_CERTIFICATE_CHAIN") is False
    if no_chain:
        del values["SEND_CERTIFICATE_CHAIN"]  # False may stand in any entry.
    kind = values.get("KIND", "environment")
    if kind not in KINDS:
        hint = f"It should be one of {', '.join(map(repr, KINDS))}."
        message = f"{kind!r} is not a known KIND."
        problems.append(Problem("E003", f"{where}['KIND']", message, hint))
        return values
    own = keys_of(kind)
    if "CREDENTIAL" in values:
        if "KIND" in values:
            message = "it has both CREDENTIAL and KIND."
            hint = "CREDENTIAL replaces KIND: remove one of them."
            problems.append(Problem("E005", where, message, hint))
        kind, own = "credential", keys_of("credential")
    given = {name for name in values if KEYS[name].kinds}
    if given - own:
        problems.append(_unused_keys(where, given, given - own, kind))
    if problems:
        return values
    if "AUTHORITY_HOST" not in values:
        values |= _from_environment(environ, ("AUTHORITY_HOST",), problems)
    if kind == "environment":
        kind, found = _resolve_environment(environ, problems)
        if "CLIENT_CERTIFICATE" not in found:
            values.pop("SEND_CERTIFICATE_CHAIN", None)
        if no_chain:
            found.pop("SEND_CERTIFICATE_CHAIN", None)
        values = found | values
    elif kind == "workload_identity":
        values = _from_environment(environ, _required_by(kind), problems) | values
    if not problems:
        _check_parts(where, kind, values, problems)
    return {**values, "KIND": kind}


def _unused_keys(where: str, given: Set[str], unused: Set[str], kind: str) -> Problem:
    are, it = ("are", "them") if len(unused) > 1 else ("is", "it")
    what = f"{' and '.join(sorted(unused))} {are} not used"
    if kind == "credential":
        hint = f"Remove {it}, or CREDENTIAL."
        return Problem("E006", where, f"{what} with CREDENTIAL.", hint)
    fitting = [repr(name) for name in KINDS if given <= keys_of(name)]
    hint = f"Remove {it}."
    if fitting:
        hint = f"Set KIND to {' or '.join(fitting)}, or remove {it}."
    return Problem("E006", where, f"{what} by KIND {kind!r}.", hint)


def _from_environment(
    environ: Mapping[str, str], keys: tuple[str, ...], problems: list[Problem]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in keys:
        value: Any = environ.get(_VARIABLES[key])
        if value:
            if key == "SEND_CERTIFICATE_CHAIN":
                value = value.strip().lower() not in _NO
            _parse(f"${_VARIABLES[key]}", key, value, values, problems)
    return values


def _resolve_environment(
    environ: Mapping[str, str], problems: list[Problem]
) -> tuple[str, dict[str, Any]]:
    """Return the kind that environment variables select, and its values.

    It is a managed identity if the variables of no other kind are complete.
    """
    given = {key for key, name in _VARIABLES.items() if environ.get(name)}
    for kind, needed, optional in _FROM_ENVIRONMENT:
        if given.issuperset(needed):
            return kind, _from_environment(environ, needed + optional, problems)
    return "managed_identity", _from_environment(environ, ("CLIENT_ID",), problems)


def _check_parts(
    where: str, kind: str, values: Mapping[str, Any], problems: list[Problem]
) -> None:
    """Add problems for keys that are missing, and for keys that exclude each other."""
    exclusive = [name for name, known in KEYS.items() if kind in known.exclusive]
    if kind == "service_principal":
        if not values.keys() & set(exclusive):
            message = "CLIENT_SECRET is missing."
            hint = (
                "Set CLIENT_SECRET, or CLIENT_CERTIFICATE to a PEM or PFX file's path."
            )
            problems.append(Problem("E004", where, message, hint))
        elif "CLIENT_CERTIFICATE" not in values and (
            stray := _OF_CERTIFICATE & values.keys()
        ):
            problems.append(
                Problem(
                    "E005",
                    where,
                    f"it has {' and '.join(sorted(stray))} without CLIENT_CERTIFICATE.",
                    "Remove it, or set CLIENT_CERTIFICATE.",
                )
            )
    for key in _required_by(kind):
        if key not in values:
            hint = f"Set {key}."
            if kind == "workload_identity":
                hint = (
                    f"Set {key}, or ${_VARIABLES[key]}, which AKS sets in pods with "
                    "the label azure.workload.identity/use."
                )
            problems.append(Problem("E004", where, f"{key} is missing.", hint))
    given = [key for key in exclusive if key in values]
    if len(given) > 1:
        message = f"it has {' and '.join(given)}."
        hint = "They contradict each other: keep one."
        problems.append(Problem("E005", where, message, hint))
