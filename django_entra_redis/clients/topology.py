"""The topology of a cluster: which node has which slot, for all caches of a process.

A discovery sends CLUSTER SLOTS to nodes until all slots are known. After a redirection
or a lost node it runs in a background thread, so that requests to the nodes that have
not moved go on meanwhile.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    MovedError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from .._errors import without_frames
from .._fork import Order, register
from ..commands.addresses import NO_HOST, Address
from ..commands.request import Request
from ..commands.resp import SLOTS
from ..commands.slots import SlotRange, read_slots, slots_of
from ..conf.options import CacheOptions
from ..connections.endpoint import Endpoint
from ..connections.outage import Outages
from ..connections.refusals import is_about_the_server
from ..connections.registry import get_or_make
from ..exceptions import ClusterUnavailableError, EntraRedisError, WrongBackendError
from .lending import own_provider, through_expiries
from .node_pools import NodePools
from .single_flight import SingleFlight
from .sync import carry_out

#: Seconds between two discoveries at least, however many redirections or failures ask
#: for one: a failover makes many of them at once.
PAUSE = 0.1
#: Seconds that a failed request waits for a discovery before it is retried.
DISCOVERY_WAIT = 1.0
#: Seconds to wait for a discovery at most, however many nodes do not answer.
LONGEST = 10.0
#: Seconds for which a node that did not answer is asked after the others.
AVOIDED = 30.0
#: Seconds that a request waits for a discovery while its node is known to be down.
#: Where other nodes answer, a discovery takes some milliseconds.
SHORT_PATIENCE = 0.2


class Topology:
    """The nodes of a cluster, their slots, and the discovery of both.

    Parameters:
        options: the cache's settings.
    """

    def __init__(self, options: CacheOptions) -> None:
        self.nodes = NodePools(options)
        self._client: Any = None
        # Nodes that did not answer, and until when the others are asked first.
        self._avoided: dict[Endpoint, float] = {}
        #: The primary of each slot; None before the first discovery. Readers need no
        #: lock: a discovery replaces the list, and a redirection one item of it.
        self.slots: list[Endpoint | None] | None = None
        #: Outages of the cluster as a whole: no node answers, or a slot has no node.
        self.outages = Outages(f"the cluster of {self.nodes.first.name}")
        # The number of discoveries that have succeeded.
        self._discoveries = 0
        # Whether a request has waited for a discovery in vain since the last success.
        self._discovery_fails = False
        # When the last discovery that succeeded began.
        self._discovered_at = -PAUSE
        #: The number of nodes that are not primaries.
        self.replicas = 0
        #: The endpoints of all primaries, by address.
        self.primaries: dict[str, Endpoint] = {}
        # The endpoints of all nodes, by address.
        self._all: dict[str, Endpoint] = {}
        #: The copies of its values in this process, by the settings that ask for them.
        self.local_copies: dict[Any, Any] = {}
        self._flight: SingleFlight[None] = SingleFlight(self._discover, pause=PAUSE)
        register(self, Order.CONNECTIONS)

    # -- which node ------------------------------------------------------------------

    @property
    def known(self) -> bool:
        """Whether a discovery has succeeded."""
        return self.slots is not None

    def serving(self) -> set[Endpoint] | None:
        """Return the endpoints of the nodes that have slots; ``None`` before the first
        discovery."""
        return None if self.slots is None else set(filter(None, self.slots))

    def endpoint_of(self, key: str | bytes) -> Endpoint:
        """Return the endpoint of the primary that has a key.

        Raises:
            ClusterUnavailableError: no node has its slot, or no discovery has
                succeeded yet.
        """
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        endpoint = self.slots[slot] if self.slots is not None else None
        if endpoint is None:
            self.refresh()
            raise ClusterUnavailableError(f"No node of the cluster serves slot {slot}.")
        return endpoint

    def endpoint_at(self, address: str) -> Endpoint:
        """Return the endpoint of a node, which may have become a replica: a SCAN that
        began on it as a primary continues there.

        Raises:
            ClusterUnavailableError: the node has left the cluster.
        """
        try:
            return self._all[address]
        except KeyError:
            raise ClusterUnavailableError(
                f"The cluster has no node {address} any more."
            ) from None

    def parts(self, keys: Iterable[str | bytes]) -> dict[Endpoint, list[int]]:
        """Return the endpoint of each node that has keys, with its keys' positions.

        The order of the endpoints is always the same, so that threads which check out
        connections of several pools can't deadlock.

        Raises:
            ClusterUnavailableError: no node has the slot of one of the keys.
        """
        keys, slots = list(keys), self.slots
        owners: list[Any] = (
            [slots[slot] for slot in slots_of(keys)] if slots else [None]
        )
        found: defaultdict[Any, list[int]] = defaultdict(list)
        if None in owners:
            # It raises the error, unless a discovery has just succeeded.
            owners = [self.endpoint_of(key) for key in keys]
        for position, endpoint in enumerate(owners):
            found[endpoint].append(position)
        return dict(sorted(found.items(), key=lambda item: id(item[0])))

    def follow(self, redirect: Any, asked: Endpoint) -> Endpoint:
        """Return the endpoint of the node that an error reply redirects to.

        Parameters:
            redirect: the error reply, MOVED or ASK.
            asked: the endpoint of the node that sent it.

        Raises:
            ConfigurationError: a token would be sent to the node in plain text.
        """
        # A redirection without a host leads to another port of the same host.
        host = redirect.host if redirect.host not in NO_HOST else asked.host
        endpoint = self.nodes.at(*self.nodes.remap(host, redirect.port))
        if isinstance(redirect, MovedError):
            assert self.slots is not None
            self.slots[redirect.slot_id] = endpoint
            # Other slots have probably moved, too.
            self.refresh()
        return endpoint

    # -- discovery -------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """redis-py's client for the cluster, on the same pools.

        Raises:
            What :meth:`ensure` raises.
        """
        self.ensure()
        # In an outage the client of redis-py 5 forgets its nodes, one after the other,
        # and never finds any again: it is replaced.
        if self._client is None or not self._client.nodes_manager.startup_nodes:
            # Two threads may each make one; either will do.
            self._client = self._attempt(self._make_client)
        return self._client

    def refresh(self) -> None:
        """Begin a discovery in the background, unless there has just been one."""
        self._flight.hint()

    def catch_up(self) -> None:
        """Wait for a discovery, ``DISCOVERY_WAIT`` at most."""
        self._flight.catch_up(DISCOVERY_WAIT)

    async def acatch_up(self) -> None:
        """Do as :meth:`catch_up` does, without blocking the event loop."""
        await self._flight.acatch_up(DISCOVERY_WAIT)

    def recheck(self) -> bool:
        """Wait briefly for a discovery, since a node is down; return if it succeeds.

        While discoveries fail, or while one is younger than ``PAUSE``, it returns at
        once: otherwise each operation of a page would wait.
        """
        if (known := self._recent()) is not None:
            return known
        before = self._discoveries
        self._flight.catch_up(SHORT_PATIENCE)
        self._discovery_fails = self._discoveries == before
        return not self._discovery_fails

    async def arecheck(self) -> bool:
        """Do as :meth:`recheck` does, without blocking the event loop."""
        if (known := self._recent()) is not None:
            return known
        before = self._discoveries
        await self._flight.acatch_up(SHORT_PATIENCE)
        self._discovery_fails = self._discoveries == before
        return not self._discovery_fails

    def _recent(self) -> bool | None:
        """Return whether a recent discovery has succeeded; ``None``: there is none."""
        if self._discovery_fails:
            self.refresh()
            return False
        return True if monotonic() - self._discovered_at < PAUSE else None

    def ensure(self) -> None:
        """Discover the topology, unless it is known.

        Raises:
            TokenError, TokenRefusedError: no connection could be authenticated.
            ClusterUnavailableError, ConnectionError: no node answers.
            WrongBackendError: the server is not a node of a cluster.
            ConfigurationError: a token would be sent to a node in plain text.
        """
        if self.slots is None:
            self.discover()

    def discover(self) -> None:
        """Discover the topology, or wait for the discovery that is under way.

        Raises:
            What :meth:`ensure` raises.
        """
        try:
            self._flight.join(self._longest())
        except TimeoutError:
            raise _discovery_timeout() from None

    async def adiscover(self) -> None:
        """Do as :meth:`discover` does, without blocking the event loop."""
        try:
            await self._flight.ajoin(self._longest())
        except TimeoutError:
            raise _discovery_timeout() from None

    def _longest(self) -> float:
        """Return the seconds to wait for a discovery.

        Where a token has to be requested first, that has its own time: otherwise a
        silent identity endpoint would be told as nodes that do not answer.
        """
        provider = own_provider(self.nodes.first.pool)
        if provider is None or provider.renewal.fresh() is not None:
            return LONGEST
        return LONGEST + provider.renewal.policy.timeout

    def disconnect(self) -> None:
        """Close all connections."""
        self.nodes.disconnect()

    def after_fork_in_child(self) -> None:
        """Forget the discovery and the client of the parent process."""
        self._flight.reset()
        # The client's locks may have been held at the fork. It is kept for ever, since
        # its finalizer would wait for them.
        _inherited.append(self._client)
        self._client = None

    def _make_client(self) -> Any:
        make: Any = _Client
        client = make(
            url=self.nodes.url,
            startup_nodes=self.nodes.startup_nodes()[1:],
            connection_pool_class=self.nodes.lend,
            **self.nodes.cluster_options,
        )
        client.provider = own_provider(self.nodes.first.pool)
        return client

    def _attempt(self, make: Callable[[], Any]) -> Any:
        """Make redis-py's client, whose constructor discovers the cluster itself."""
        try:
            return make()
        except Exception as error:
            failure = discovery_error(error)
        try:
            raise failure.with_traceback(None)
        finally:
            del failure

    def _discover(self) -> None:
        try:
            self._ask_nodes()
        except EntraRedisError as error:
            failure: Exception = error
        except ResponseError as error:
            failure = slots_error(error)
        except RedisError as error:
            failure = error
        except Exception as error:  # such as one from the user's address_remap
            failure = slots_error(error)
        else:
            return
        failure.__cause__ = failure.__context__ = None
        try:
            raise failure.with_traceback(None)
        finally:
            del failure

    def _ask_nodes(self) -> None:
        """Ask nodes until all slots are known; keep their answers.

        Raises:
            The error of the first node, where all fail.
        """
        began = monotonic()
        found = _Nodes()
        failure: Exception | None = None
        for endpoint in self._candidates():
            try:
                read = partial(read_slots, asked=endpoint.host)
                request = Request(("CLUSTER", "SLOTS"), parse=read)
                ranges = carry_out(endpoint.pool, request)
            except (RedisError, OSError) as error:
                failure = failure or without_frames(error)
                self._avoided[endpoint] = monotonic() + AVOIDED
                continue
            for each in ranges:
                nodes = [self.nodes.remap(*address) for address in each.nodes]
                found.add(each, [(node, self.nodes.at(*node)) for node in nodes])
            if found.complete:
                break
        if not found.all:
            raise failure or no_slots()
        if self.nodes.cluster_options["require_full_coverage"] and not found.complete:
            raise ClusterUnavailableError(
                "The nodes of the cluster do not have all slots "
                "(OPTIONS['require_full_coverage'])."
            )
        self.primaries, self.replicas = found.primaries, found.replicas
        self._all, self.slots = found.all, found.slots
        self._discoveries += 1
        self._discovered_at = began
        self._discovery_fails = False
        self.nodes.keep(found.addresses)

    def _candidates(self) -> list[Endpoint]:
        """Return the nodes to ask, in this order: the servers in LOCATION first.

        Nodes that have split off the cluster know one another alone: asked first, they
        would never lead back to it. A node that has just failed is asked last, since it
        may fail again only after the connect timeout.
        """
        now = monotonic()
        self._avoided = {
            endpoint: until for endpoint, until in self._avoided.items() if until > now
        }
        known = list(self._all.values())
        if not self.nodes.cluster_options.get("dynamic_startup_nodes", True):
            known = []
        random.shuffle(known)
        asked = dict.fromkeys([*self.nodes.startup, *known])
        return sorted(asked, key=self._avoided.__contains__)


class _Nodes:
    """The answers of nodes to CLUSTER SLOTS; for each slot the first answer counts."""

    def __init__(self) -> None:
        self.slots: list[Endpoint | None] = [None] * SLOTS
        #: Endpoints by address, as text.
        self.all: dict[str, Endpoint] = {}
        self.primaries: dict[str, Endpoint] = {}
        self.addresses: set[Address] = set()

    @property
    def complete(self) -> bool:
        """Whether each slot has a node."""
        return None not in self.slots

    @property
    def replicas(self) -> int:
        """The number of nodes that are not primaries."""
        return len(self.all) - len(self.primaries)

    def add(self, found: SlotRange, nodes: Sequence[tuple[Address, Endpoint]]) -> None:
        """Add the nodes of a range of slots, the primary first."""
        (address, primary), *_ = nodes
        free = [s for s in range(found.first, found.last + 1) if not self.slots[s]]
        if not free:
            return
        for slot in free:
            self.slots[slot] = primary
        self.primaries[_name(*address)] = primary
        for address, endpoint in nodes:
            self.addresses.add(address)
            self.all[_name(*address)] = endpoint


def no_slots() -> ClusterUnavailableError:
    """Return the error of a cluster in which no node has any slot."""
    return ClusterUnavailableError(
        "The cluster does not list its nodes: none of them has any slot."
    )


def _discovery_timeout() -> ClusterUnavailableError:
    return ClusterUnavailableError(
        f"No node of the cluster has answered CLUSTER SLOTS within {LONGEST:g} s."
    )


def _name(host: str, port: int) -> str:
    return f"{host}:{port}"


class _Client(RedisCluster):
    """redis-py's cluster client, which raises a ``RedisError`` in an outage, too.

    A token's expiry begins the count of its retries anew.
    """

    #: The provider of the tokens that its connections authenticate with, if any.
    provider: Any = None

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Carry out a command."""
        execute: Any = super().execute_command
        try:
            return through_expiries(self.provider, lambda: execute(*args, **kwargs))
        except RedisClusterException as error:
            outage = error.__cause__ or not self.nodes_manager.startup_nodes
            # Without an outage, the caller has made a mistake.
            failure = discovery_error(error) if outage else error
        try:
            raise failure.with_traceback(None)
        finally:
            del failure


# redis-py's clients of the parent process.
_inherited: list[object] = []


def get_topology(options: CacheOptions) -> Topology:
    """Return the process's topology for a cache's options."""
    found: Topology = get_or_make(
        "cluster", options.servers, options, lambda: Topology(options)
    )
    return found


def discovery_error(error: Exception) -> Exception:
    """Translate an error of redis-py's cluster discovery into the package's own."""
    cause = error.__cause__ if isinstance(error, RedisClusterException) else None
    error = cause if isinstance(cause, Exception) else error
    if isinstance(error, RedisError | EntraRedisError):
        error.__cause__ = error.__context__ = None
        return error
    refusal = error.__context__
    return slots_error(refusal if isinstance(refusal, ResponseError) else error)


def slots_error(error: Exception) -> Exception:
    """Translate a node's error reply to CLUSTER SLOTS into the package's own error."""
    if isinstance(error, NoPermissionError):
        return NoPermissionError(
            f"{error}. The access policy should allow +cluster|slots, the command that "
            "returns which node has which keys."
        )
    if isinstance(error, ResponseError) and not is_about_the_server(error):
        return WrongBackendError(
            f"The server is not a node of a Redis Cluster ({error}): BACKEND should be "
            "'django_entra_redis.cache.EntraRedisCache' (Enterprise cluster policy, or "
            "no cluster)."
        )
    return ClusterUnavailableError(
        f"The cluster does not list its nodes ({type(error).__name__}: {error})."
    )
