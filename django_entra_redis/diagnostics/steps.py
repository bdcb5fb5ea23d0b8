"""The steps of ``entra_redis_check``, from the settings to a round trip.

Each step is a function that returns its finding, or raises :class:`StepError`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from redis.exceptions import NoPermissionError, RedisError

from .._errors import ConfigurationError
from ..cache.backend import EntraRedisCache, EntraRedisClusterCache
from ..clients.topology import Topology
from ..conf.identities import Identity, load_identity
from ..conf.options import database_problems
from ..connections.tracking import refusal_of
from ..credentials.provider import EntraCredentialProvider
from ..exceptions import TokenError, WrongBackendError
from .network import ProbedServer
from .redis_session import RedisSession
from .round_trip import facts_of, try_out
from .runner import Diagnosis, Step, StepError


def diagnose(alias: str, cache: EntraRedisCache, timeout: float) -> Iterator[Step]:
    """Examine a cache; yield each step's outcome, up to the first that fails.

    Parameters:
        alias: its name in ``CACHES``.
        timeout: seconds that all steps may take together.
    """
    return Diagnosis(alias, cache, timeout).take(STEPS)


def diagnose_each(
    chosen: Mapping[str, EntraRedisCache | Step], timeout: float
) -> Iterator[tuple[str, EntraRedisCache | Step, Iterator[Step]]]:
    """Examine several caches; yield each with its steps, before they are taken.

    Parameters:
        chosen: the caches by their names in ``CACHES``; for one that is not there, the
            step that has failed.
        timeout: seconds that all steps of all of them may take together.
    """
    deadline = time.monotonic() + timeout
    for number, (alias, cache) in enumerate(chosen.items()):
        # The time that one cache does not use is shared by the caches after it.
        share = (deadline - time.monotonic()) / (len(chosen) - number)
        if isinstance(cache, Step):
            yield alias, cache, iter([cache])
        else:
            yield alias, cache, diagnose(alias, cache, share)


def _settings(diagnosis: Diagnosis) -> str:
    where = f"CACHES[{diagnosis.alias!r}]"
    try:
        options = diagnosis.cache.read_options(where)
        identity = options.identity and load_identity(options.identity)
        diagnosis.servers = [
            ProbedServer(endpoint.pool, diagnosis.left)
            for endpoint in diagnosis.cache._cache.endpoints
        ]
        for server in diagnosis.servers:
            server.connection()
        missing = database_problems(options, where)
    except ConfigurationError as error:
        raise _invalid(error) from None
    # A user's class, or redis-py with the options that are passed on to it, may raise
    # any exception.
    except Exception as error:
        what = f"{where}['OPTIONS']: {error}."
        raise StepError("settings_invalid", what) from None
    for problem in missing:
        raise StepError("database_refused", f"{problem.where}: {problem.message}")
    if not identity:
        return "no identity (OPTIONS['identity'] is None)"
    diagnosis.identity = identity
    client = f", client {identity.client_id}" if identity.client_id else ""
    return f"identity '{identity.alias}': {identity.kind}{client}"


def _invalid(error: ConfigurationError) -> StepError:
    """Return the problems of settings as a step's error."""
    hint = " ".join(problem.hint for problem in error.problems)
    what = " ".join(f"{p.where}: {p.message}" for p in error.problems)
    return StepError("settings_invalid", what, hint)


def _dns(diagnosis: Diagnosis) -> str:
    return _found(server.resolve() for server in diagnosis.servers)


def _tcp(diagnosis: Diagnosis) -> str:
    return _found(server.reach() for server in diagnosis.servers)


def _tls(diagnosis: Diagnosis) -> str:
    return _found(server.shake_hands() for server in diagnosis.servers)


def _token(diagnosis: Diagnosis) -> str:
    if diagnosis.identity is None:
        return "not used"
    renewal = EntraCredentialProvider(diagnosis.identity.alias).renewal
    try:
        diagnosis.token = token = renewal.current()
    except TokenError as error:
        code = _narrowed(error.code, diagnosis.identity)
        raise StepError(code, str(error)) from None
    claims = token.claims
    parts = [f"principal {renewal.status().oid}"]
    if claims.get("tid"):
        parts.append(f"tenant {claims['tid']}")
    application = claims.get("appid") or claims.get("azp")
    if application:
        parts.append(f"application {application}")
    now = renewal.clock.monotonic()
    parts.append(f"{_span(now - token.received_at)} old")
    parts.append(f"expires in {_span(token.expires_at - now)}")
    # Without a time for it, the renewal is under way.
    due_at = renewal.state.due_at or now
    parts.append(f"renewed in {_span(max(0.0, due_at - now))}")
    return ", ".join(parts)


def _narrowed(code: str, identity: Identity) -> str:
    """Return a more specific code for a failed token request, if there is one."""
    if code == "token_assertion_expired" and identity.client_certificate:
        # An assertion signed by a certificate is made anew for each request.
        return "token_clock_off"
    if code == "token_timeout" and identity.kind == "managed_identity":
        return "managed_identity_timeout"
    return code


def _auth(diagnosis: Diagnosis) -> str:
    for server in diagnosis.servers:
        session = RedisSession(server.connection(), diagnosis.token)
        diagnosis.sessions.append(session)
        session.begin()
    return (
        "not used"
        if diagnosis.token is None
        else f"authenticated as {diagnosis.token.username}"
    )


def _ping(diagnosis: Diagnosis) -> str:
    cache = diagnosis.cache
    found = _found(_version(talk, cache.clustered) for talk in diagnosis.sessions)
    if isinstance(cache, EntraRedisClusterCache):
        found = f"{found}; {_nodes(diagnosis, cache.get_topology())}"
    if cache.options.client_side_cache is not None:
        found = f"{found}; {_copies(diagnosis)}"
    return found


def _copies(diagnosis: Diagnosis) -> str:
    """Return whether the client-side cache works."""
    cache = diagnosis.cache
    endpoint = cache._cache.endpoints[0]
    if isinstance(cache, EntraRedisClusterCache):
        endpoint = next(iter(cache.get_topology().primaries.values()))
    left = diagnosis.left()
    target = replace(endpoint.target, connect_timeout=left, timeout=left)
    reason: object
    try:
        info = cache.client_side_cache_info()
        reason = (info and info.unsupported) or refusal_of(target)
    except (RedisError, OSError) as error:
        reason = error
    if reason is None:
        return "client_side_cache: Redis invalidates copies"
    return f"client_side_cache: no copies are kept ({reason})"


def _version(session: RedisSession, clustered: bool) -> str:
    session.ask("PING")
    try:
        facts = facts_of(session.ask("INFO", "server"))
    except StepError:
        return "server version not told (INFO is refused)"
    version, mode = facts.get("redis_version", "?"), facts.get("redis_mode", "?")
    if clustered:
        return f"Redis {version}"
    if mode == "cluster":
        raise StepError("cluster_policy_oss", f"Redis {version} runs as a cluster.")
    return f"Redis {version}, {mode}: one endpoint for all keys"


def _nodes(diagnosis: Diagnosis, topology: Topology) -> str:
    """Authenticate at every primary of a cluster; return a summary of the cluster."""
    try:
        topology.ensure()
    except ConfigurationError as error:
        raise _invalid(error) from None
    except WrongBackendError as error:
        raise StepError("cluster_policy_enterprise", str(error)) from None
    except NoPermissionError as error:
        raise StepError("access_policy_too_narrow", str(error)) from None
    except RedisError as error:
        raise StepError("cluster_unavailable", f"{error}.") from None
    for address, endpoint in topology.primaries.items():
        node = ProbedServer(endpoint.pool, diagnosis.left)
        try:
            node.reach()
            node.shake_hands()
        except StepError as error:
            raise StepError("cluster_node_unreachable", f"{error}") from None
        session = RedisSession(node.connection(), diagnosis.token)
        diagnosis.sessions.append(session)
        session.begin()
        diagnosis.nodes[address] = session
    primaries, replicas = len(topology.primaries), topology.replicas
    found = f"OSS cluster of {primaries} primaries and {replicas} replicas"
    for announced, host in topology.nodes.routes.items():
        if announced != host:
            found += f"; nodes at {announced} are reached at {host}, at their ports"
    return found


STEPS: Mapping[str, Callable[[Diagnosis], str]] = {
    "settings": _settings,
    "dns": _dns,
    "tcp": _tcp,
    "tls": _tls,
    "token": _token,
    "auth": _auth,
    "ping": _ping,
    "round_trip": try_out,
}


def _found(found: Iterator[str]) -> str:
    """Return the findings at all servers, without repetitions."""
    return "; ".join(dict.fromkeys(found))


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
