"""The steps of ``entra_redis_check``, from the settings to a round trip.

Each step is a function that returns what it found, or raises :class:`StepError`.
"""

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
from .redis_session import Conversation
from .round_trip import facts_of, try_out
from .runner import Examination, Step, StepError


def diagnose(alias: str, cache: EntraRedisCache, timeout: float) -> Iterator[Step]:
    """Examine a cache; yield each step's outcome, up to the first that fails.

    Parameters:
        alias: its name in ``CACHES``.
        timeout: seconds that all steps may take together.
    """
    return Examination(alias, cache, timeout).take(STEPS)


def _settings(exam: Examination) -> str:
    where = f"CACHES[{exam.alias!r}]"
    try:
        options = exam.cache.read_options(where)
        identity = options.identity and load_identity(options.identity)
        exam.servers = [
            ProbedServer(endpoint.pool, exam.left)
            for endpoint in exam.cache._cache.endpoints
        ]
        for server in exam.servers:
            server.connection()
        missing = database_problems(options, where)
    except ConfigurationError as error:
        raise _invalid(error) from None
    # What a dotted path leads to, and what redis-py makes of the options that go on
    # to it, may raise anything.
    except Exception as error:
        what = f"{where}['OPTIONS']: {error}."
        raise StepError("settings_invalid", what) from None
    for problem in missing:
        raise StepError("database_refused", f"{problem.where}: {problem.message}")
    if not identity:
        return "no identity (OPTIONS['identity'] is None)"
    exam.identity = identity
    client = f", client {identity.client_id}" if identity.client_id else ""
    return f"identity '{identity.alias}': {identity.kind}{client}"


def _invalid(error: ConfigurationError) -> StepError:
    """Return what is wrong with the settings as a step's error."""
    hint = " ".join(problem.hint for problem in error.problems)
    what = " ".join(f"{p.where}: {p.message}" for p in error.problems)
    return StepError("settings_invalid", what, hint)


def _dns(exam: Examination) -> str:
    return _found(server.resolve() for server in exam.servers)


def _tcp(exam: Examination) -> str:
    return _found(server.reach() for server in exam.servers)


def _tls(exam: Examination) -> str:
    return _found(server.shake_hands() for server in exam.servers)


def _token(exam: Examination) -> str:
    if exam.identity is None:
        return "not used"
    renewal = EntraCredentialProvider(exam.identity.alias).renewal
    try:
        exam.token = token = renewal.current()
    except TokenError as error:
        code = _narrowed(error.code, exam.identity)
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
    # Where it is due, it is under way.
    due_at = renewal.state.due_at or now
    parts.append(f"renewed in {_span(max(0.0, due_at - now))}")
    return ", ".join(parts)


def _narrowed(code: str, identity: Identity) -> str:
    """Return what a failed token request's code means for this sort of identity."""
    if code == "token_assertion_expired" and identity.client_certificate:
        # What a certificate signs is made anew for each request.
        return "token_clock_off"
    if code == "token_timeout" and identity.kind == "managed_identity":
        return "managed_identity_timeout"
    return code


def _auth(exam: Examination) -> str:
    for server in exam.servers:
        conversation = Conversation(server.connection(), exam.token)
        exam.conversations.append(conversation)
        conversation.begin()
    return (
        "not used" if exam.token is None else f"authenticated as {exam.token.username}"
    )


def _ping(exam: Examination) -> str:
    cache = exam.cache
    found = _found(_version(talk, cache.clustered) for talk in exam.conversations)
    if isinstance(cache, EntraRedisClusterCache):
        found = f"{found}; {_nodes(exam, cache.get_topology())}"
    if cache.options.client_side_cache is not None:
        found = f"{found}; {_copies(exam)}"
    return found


def _copies(exam: Examination) -> str:
    """Return whether there are copies in this process of what it reads."""
    cache = exam.cache
    endpoint = cache._cache.endpoints[0]
    if isinstance(cache, EntraRedisClusterCache):
        endpoint = next(iter(cache.get_topology().primaries.values()))
    left = exam.left()
    target = replace(endpoint.target, connect_timeout=left, timeout=left)
    reason: object
    try:
        info = cache.client_side_cache_info()
        reason = (info and info.unsupported) or refusal_of(target)
    except (RedisError, OSError) as error:
        reason = error
    if reason is None:
        return "client_side_cache: Redis tells of changes"
    return f"client_side_cache: no copies are kept ({reason})"


def _version(conversation: Conversation, clustered: bool) -> str:
    conversation.ask("PING")
    try:
        facts = facts_of(conversation.ask("INFO", "server"))
    except StepError:
        return "server version not told (INFO is refused)"
    version, mode = facts.get("redis_version", "?"), facts.get("redis_mode", "?")
    if clustered:
        return f"Redis {version}"
    if mode == "cluster":
        raise StepError("cluster_policy_oss", f"Redis {version} runs as a cluster.")
    return f"Redis {version}, {mode}: one endpoint for all keys"


def _nodes(exam: Examination, topology: Topology) -> str:
    """Be let in at every primary of a cluster; return what the cluster consists of."""
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
        node = ProbedServer(endpoint.pool, exam.left)
        try:
            node.reach()
            node.shake_hands()
        except StepError as error:
            raise StepError("cluster_node_unreachable", f"{error}") from None
        conversation = Conversation(node.connection(), exam.token)
        exam.conversations.append(conversation)
        conversation.begin()
        exam.nodes[address] = conversation
    primaries, replicas = len(topology.primaries), topology.replicas
    found = f"OSS cluster of {primaries} primaries and {replicas} replicas"
    for announced, host in topology.nodes.routes.items():
        if announced != host:
            found += f"; nodes at {announced} are reached at {host}, at their ports"
    return found


STEPS: Mapping[str, Callable[[Examination], str]] = {
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
    """Return what was found at the servers, each thing once."""
    return "; ".join(dict.fromkeys(found))


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
