"""The topology of a cluster: which node has which key, for all caches of a process.

A background thread asks the nodes anew after a redirection or a lost node, at most once
per ``PAUSE``, so that nobody waits for it whose node is where it was.
"""

import random
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

from .._fork import Order, register
from ..commands.drivers import bare
from ..commands.request import Request
from ..commands.resp import SLOTS
from ..commands.slots import NO_HOST, Address, SlotRange, read_slots
from ..conf.options import CacheOptions
from ..connections.endpoint import Endpoint
from ..connections.outage import Outages
from ..connections.registry import get_or_make
from ..exceptions import ClusterUnavailableError, EntraRedisError, WrongBackendError
from .node_pools import NodePools
from .single_flight import SingleFlight
from .sync import carry_out

#: Seconds between two looks at the topology at least, however many redirections or
#: failures ask for one.
PAUSE = 0.1
#: Seconds that a command which has failed waits for a look before it is tried again.
DISCOVERY_WAIT = 1.0
#: Seconds that anybody waits for a look at most, however many nodes are silent.
LONGEST = 10.0
#: Seconds for which a node that could not be asked is asked after the others.
AVOIDED = 30.0
#: Seconds that one waits for it whose node is known to be down: where other nodes
#: answer, a look takes some milliseconds.
SHORT_PATIENCE = 0.2


class Topology:
    """The nodes of a cluster.

    Parameters:
        options: what the cache's settings ask for.
    """

    def __init__(self, options: CacheOptions) -> None:
        self.nodes = NodePools(options)
        self._client: Any = None
        # Nodes that could not be asked, and until when others are asked before them.
        self._avoided: dict[Endpoint, float] = {}
        # By slot; None before the first look. Replaced as a whole, but for the slots
        # that redirections tell of: readers need no lock.
        self._slots: list[Endpoint | None] | None = None
        # Looks that have succeeded, and whether the last has not when somebody waited.
        #: Those of the cluster as a whole: no node can be asked, or none has a slot.
        self.outages = Outages(f"the cluster of {self.nodes.first.name}")
        self._looks = 0
        self._unseen = False
        self.replicas = 0
        #: The endpoints of all primaries, by address.
        self.primaries: dict[str, Endpoint] = {}
        # And of all nodes.
        self._all: dict[str, Endpoint] = {}
        self._flight: SingleFlight[None] = SingleFlight(self._look, pause=PAUSE)
        register(self, Order.CONNECTIONS)

    # -- which node ------------------------------------------------------------------

    @property
    def known(self) -> bool:
        """Whether there has been a look at it."""
        return self._slots is not None

    def endpoint_of(self, key: str | bytes) -> Endpoint:
        """Return the endpoint of the primary that has a key.

        Raises:
            ClusterUnavailableError: none has it, or there has not been a look.
        """
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        endpoint = self._slots[slot] if self._slots is not None else None
        if endpoint is None:
            self.refresh()
            raise ClusterUnavailableError(f"No node of the cluster serves slot {slot}.")
        return endpoint

    def endpoint_at(self, address: str) -> Endpoint:
        """Return the endpoint of a node: a SCAN goes on where a primary is none any
        more.

        Raises:
            ClusterUnavailableError: there is none of that address any more.
        """
        try:
            return self._all[address]
        except KeyError:
            raise ClusterUnavailableError(
                f"The cluster has no node {address} any more."
            ) from None

    def parts(self, keys: Iterable[str | bytes]) -> dict[Endpoint, list[int]]:
        """Return the endpoints that have some keys, each with the places of its keys.

        In one order for all: threads that check connections out of several pools do
        not wait for each other.

        Raises:
            ClusterUnavailableError: none has one of them.
        """
        found: dict[Endpoint, list[int]] = {}
        for place, key in enumerate(keys):
            found.setdefault(self.endpoint_of(key), []).append(place)
        return dict(sorted(found.items(), key=lambda item: id(item[0])))

    def follow(self, redirect: Any, asked: Endpoint) -> Endpoint:
        """Return the endpoint of the node that a node redirects to.

        Parameters:
            redirect: the error reply.
            asked: the endpoint of the node that gave it.

        Raises:
            ConfigurationError: a token would go there in plain text.
        """
        # Without a host it is the same one, on another port.
        host = redirect.host if redirect.host not in NO_HOST else asked.host
        endpoint = self.nodes.at(*self.nodes.remap(host, redirect.port))
        if isinstance(redirect, MovedError):
            assert self._slots is not None
            self._slots[redirect.slot_id] = endpoint
            # It is seldom the only one that has moved.
            self.refresh()
        return endpoint

    # -- looking at it ---------------------------------------------------------------

    @property
    def client(self) -> Any:
        """redis-py's client for the cluster, on the same pools.

        Raises:
            What :meth:`ensure` does.
        """
        self.ensure()
        # redis-py's own, before its version 6, forgets one node after the other in an
        # outage, and then does not find any again.
        if self._client is None or not self._client.nodes_manager.startup_nodes:
            # Two threads may make one each, and that is all right.
            self._client = self._attempt(self._make_client)
        return self._client

    def refresh(self) -> None:
        """Have somebody look at it, soon; wait for nothing."""
        self._flight.hint()

    def catch_up(self) -> None:
        """Wait until somebody has looked at it, but not for long."""
        self._flight.catch_up(DISCOVERY_WAIT)

    async def acatch_up(self) -> None:
        """Do as :meth:`catch_up` does, without blocking the event loop."""
        await self._flight.acatch_up(DISCOVERY_WAIT)

    def recheck(self) -> bool:
        """Have somebody look at it whose node is down; return whether they have.

        Nobody waits for that while no look succeeds.
        """
        if self._unseen:
            self.refresh()
            return False
        looks = self._looks
        self._flight.catch_up(SHORT_PATIENCE)
        self._unseen = self._looks == looks
        return not self._unseen

    async def arecheck(self) -> bool:
        """Do as :meth:`recheck` does, without blocking the event loop."""
        if self._unseen:
            self.refresh()
            return False
        looks = self._looks
        await self._flight.acatch_up(SHORT_PATIENCE)
        self._unseen = self._looks == looks
        return not self._unseen

    def ensure(self) -> None:
        """Return when there has been a look at it.

        Raises:
            TokenError, TokenRefusedError: nobody is let in.
            ClusterUnavailableError, ConnectionError: no node can be asked.
            WrongBackendError: it is no cluster.
            ConfigurationError: a token would go to a node in plain text.
        """
        if self._slots is None:
            self.look()

    def look(self) -> None:
        """Have somebody look at it; wait for that.

        Raises:
            What :meth:`ensure` does.
        """
        try:
            self._flight.join(LONGEST)
        except TimeoutError:
            raise _not_told() from None

    async def alook(self) -> None:
        """Do as :meth:`look` does, without blocking the event loop."""
        try:
            await self._flight.ajoin(LONGEST)
        except TimeoutError:
            raise _not_told() from None

    def disconnect(self) -> None:
        """Close all connections."""
        self.nodes.disconnect()

    def after_fork_in_child(self) -> None:
        """Go on in a child process, in which no look is under way."""
        self._flight.reset()
        # They may have been locked at the fork, and take their locks to be collected.
        _inherited.append(self._client)
        self._client = None

    def _make_client(self) -> Any:
        make: Any = _Client
        return make(
            url=self.nodes.url,
            startup_nodes=self.nodes.startup_nodes()[1:],
            connection_pool_class=self.nodes.lend,
            **self.nodes.cluster_options,
        )

    def _attempt(self, make: Callable[[], Any]) -> Any:
        """Make something of redis-py's that looks at the cluster."""
        try:
            return make()
        except Exception as error:
            failure = discovery_error(error)
        try:
            raise failure.with_traceback(None)
        finally:
            del failure

    def _look(self) -> None:
        try:
            self._ask_nodes()
        except EntraRedisError as error:
            failure: Exception = error
        except ResponseError as error:
            failure = slots_error(error)
        except RedisError as error:
            failure = error
        except Exception as error:  # also what a user's address_remap raises
            failure = slots_error(error)
        else:
            return
        failure.__cause__ = failure.__context__ = None
        try:
            raise failure.with_traceback(None)
        finally:
            del failure

    def _ask_nodes(self) -> None:
        """Ask nodes until all slots are known; take note of what they say.

        Raises:
            What the first node fails with, where all fail.
        """
        found = _Nodes()
        failure: Exception | None = None
        for endpoint in self._candidates():
            try:
                read = partial(read_slots, asked=endpoint.host)
                request = Request(("CLUSTER", "SLOTS"), parse=read)
                ranges = carry_out(endpoint.pool, request)
            except (RedisError, OSError) as error:
                failure = failure or bare(error)
                self._avoided[endpoint] = monotonic() + AVOIDED
                continue
            for each in ranges:
                nodes = [self.nodes.remap(*address) for address in each.nodes]
                found.add(each, [(node, self.nodes.at(*node)) for node in nodes])
            if found.complete:
                break
        if not found.all:
            raise failure or ClusterUnavailableError(
                "The cluster does not list its nodes: none of them has any slot."
            )
        if self.nodes.cluster_options["require_full_coverage"] and not found.complete:
            raise ClusterUnavailableError(
                "The nodes of the cluster do not have all slots "
                "(OPTIONS['require_full_coverage'])."
            )
        self.primaries, self.replicas = found.primaries, found.replicas
        self._all, self._slots = found.all, found.slots
        self._looks += 1
        self._unseen = False
        self.nodes.keep(found.addresses)

    def _candidates(self) -> list[Endpoint]:
        """Return whom to ask: the servers in LOCATION first.

        Else nodes that say that they are all there is would be asked for ever after.
        One that has just failed is asked after the others, though: it may take as long
        as a connection does to fail.
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
    """What nodes have said of their cluster; of each slot whoever is asked first."""

    def __init__(self) -> None:
        self.slots: list[Endpoint | None] = [None] * SLOTS
        #: Endpoints by address, as text.
        self.all: dict[str, Endpoint] = {}
        self.primaries: dict[str, Endpoint] = {}
        self.addresses: set[Address] = set()

    @property
    def complete(self) -> bool:
        """Whether each slot is somebody's."""
        return None not in self.slots

    @property
    def replicas(self) -> int:
        """How many nodes have no slot of their own."""
        return len(self.all) - len(self.primaries)

    def add(self, found: SlotRange, nodes: Sequence[tuple[Address, Endpoint]]) -> None:
        """Take note of who has some slots, the primary first."""
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


def _not_told() -> ClusterUnavailableError:
    return ClusterUnavailableError(
        f"No node of the cluster has told within {LONGEST:g} s where the keys are."
    )


def _name(host: str, port: int) -> str:
    return f"{host}:{port}"


class _Client(RedisCluster):
    """redis-py's client, whose errors are ``RedisError`` also in an outage."""

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Carry out a command."""
        try:
            return super().execute_command(*args, **kwargs)  # type: ignore[no-untyped-call]
        except RedisClusterException as error:
            outage = error.__cause__ or not self.nodes_manager.startup_nodes
            # Else it is a mistake of the caller's.
            failure = discovery_error(error) if outage else error
        try:
            raise failure.with_traceback(None)
        finally:
            del failure


_inherited: list[object] = []


def get_topology(options: CacheOptions) -> Topology:
    """Return the process's topology for a cache's options."""
    found: Topology = get_or_make(
        "cluster", options.servers, options, lambda: Topology(options)
    )
    return found


def discovery_error(error: Exception) -> Exception:
    """Return what to raise for what redis-py has raised as it looked."""
    cause = error.__cause__ if isinstance(error, RedisClusterException) else None
    error = cause if isinstance(cause, Exception) else error
    if isinstance(error, RedisError | EntraRedisError):
        error.__cause__ = error.__context__ = None
        return error
    refusal = error.__context__
    return slots_error(refusal if isinstance(refusal, ResponseError) else error)


def slots_error(error: Exception) -> Exception:
    """Return what to raise where a node does not answer CLUSTER SLOTS."""
    if isinstance(error, NoPermissionError):
        return NoPermissionError(
            f"{error}. The access policy should allow +cluster|slots, by which "
            "the cluster tells which node has which keys."
        )
    # With a script: that is no refusal.
    if isinstance(error, ResponseError) and not str(error).startswith("BUSY "):
        return WrongBackendError(
            f"The server is not a node of a cluster that clients see ({error}): its "
            "BACKEND should be 'django_entra_redis.cache.EntraRedisCache' "
            "(Enterprise cluster policy, or no cluster)."
        )
    return ClusterUnavailableError(
        f"The cluster does not list its nodes ({type(error).__name__}: {error})."
    )
