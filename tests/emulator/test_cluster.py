"""The emulator's Redis Cluster: that it behaves as Redis and Azure's OSS policy do."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.cluster
from redis.crc import key_slot

from emulator import Emulator, EmulatorControl, Node
from emulator import cluster as clusters
from emulator.cluster import ADDRESS, SLOTS
from emulator.server import ServerError
from emulator.sockets import hold
from tests.support.caches import wait_until
from tests.support.clusters import admin, mend, primaries, replica_of

# A key of each third of the slots, and so of each of three primaries.
KEYS = ("b", "c", "a")
ROOT = Path(__file__).parents[2]


def place(node: Node) -> tuple[str, int]:
    """Return where clients find a node."""
    host, _, port = node.address.partition(":")
    return host, int(port)


def connect(emulator: Emulator, node: Node, **options: Any) -> redis.Redis:
    """Return a client of one node, through the gateway and with a token."""
    host, port = place(node)
    options = {
        "username": emulator.application.object_id,
        "password": emulator.issue_token(),
        "ssl_check_hostname": False,
        "retry": None,
        **options,
    }
    return redis.Redis(
        host, port, ssl=True, ssl_ca_certs=str(emulator.ca_file), **options
    )


def url_client(emulator: Emulator, tls: bool = True) -> redis.Redis:
    """Return a client of whichever node the emulator's own ports lead to."""
    options: dict[str, Any] = {
        "username": emulator.application.object_id,
        "password": emulator.issue_token(),
        "retry": None,
    }
    if not tls:
        return redis.Redis.from_url(emulator.plaintext_url, **options)
    options["ssl_ca_certs"] = str(emulator.ca_file)
    return redis.Redis.from_url(emulator.redis_url, **options)


@contextmanager
def cluster_client(emulator: Emulator) -> Iterator[Any]:
    """Give redis-py's own cluster client, which verifies no more than the CA."""
    made: Any = redis.cluster.RedisCluster.from_url(
        emulator.redis_url,
        username=emulator.application.object_id,
        password=emulator.issue_token(),
        ssl_ca_certs=str(emulator.ca_file),
        ssl_check_hostname=False,
    )
    try:
        yield made
    finally:
        made.close()


def refuses(node: Node) -> bool:
    """Tell whether connections to a node are refused."""
    try:
        socket.create_connection(place(node)).close()
    except ConnectionRefusedError:
        return True
    return False


Answer = tuple[str, tuple[str, int] | None]


def answers(client: redis.Redis, *commands: tuple[str, ...]) -> list[Answer]:
    """Run commands in one go; return what Redis says to each, and where it leads to.

    Only newer releases of redis-py have classes for this in a client of one server.
    """
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        replies = pipeline.execute(raise_on_error=False)
    found: list[Answer] = []
    for reply in replies:
        if isinstance(reply, redis.ResponseError):
            text = f"{type(reply).__name__} {reply}".removeprefix("ResponseError ")
            kind = text.split()[0].removesuffix("Error").upper()
            host, _, port = text.split()[-1].rpartition(":")
            leads = kind in ("ASK", "MOVED")
            found.append((kind, (host, int(port)) if leads else None))
        else:
            found.append(("OK", None))
    return found


def owner(emulator: Emulator, key: str) -> Node:
    """Return the primary that has a key."""
    for node in primaries(emulator):
        with admin(emulator, node.number) as connection:
            if answers(connection, ("EXISTS", key)) == [("OK", None)]:
                return node
    raise AssertionError(f"nobody has {key}")  # pragma: no cover


def servers(directory: Path) -> list[int]:
    """Find the servers that run below a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we were looking
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append(int(process.name))
    return found


# -- what clients see


def test_ports_that_another_cluster_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are left to it, although its node does not listen there yet."""
    offered: list[int] = []

    def offer(host: str, port: int) -> socket.socket:
        return hold(host, port or (offered.pop() if offered else 0))

    with ExitStack() as stack:
        while not offered:
            theirs = stack.enter_context(hold("127.0.0.1", 0)).getsockname()[1]
            with suppress(OSError), hold("127.0.0.1", theirs - clusters._BUS) as ours:
                offered.append(ours.getsockname()[1])
        monkeypatch.setattr(clusters, "hold", offer)
        found = clusters._hold_ports()
        for sock in found:
            stack.enter_context(sock)
        assert offered == []
        assert theirs not in {sock.getsockname()[1] for sock in found}


def test_nodes(cluster: Emulator) -> None:
    """Three primaries share the slots; each has a replica."""
    nodes = cluster.nodes()
    assert [node.number for node in nodes] == [1, 2, 3, 4, 5, 6]
    assert all(node.alive for node in nodes)
    assert sum(node.slots for node in nodes) == SLOTS
    first = primaries(cluster)
    assert len(first) == 3
    assert all(node.slots in (5461, 5462) for node in first)
    replicas = [node for node in nodes if node.role == "replica"]
    assert {node.replica_of for node in replicas} == {node.number for node in first}
    assert {node.address.partition(":")[0] for node in nodes} == {ADDRESS}
    assert len({node.address for node in nodes}) == 6


def test_redis_names_the_gateways(cluster: Emulator) -> None:
    """CLUSTER SLOTS leads to them, asked at any node, with no reply rewritten."""
    expected = {place(node) for node in cluster.nodes()}
    for node in cluster.nodes():
        with connect(cluster, node) as made:
            reply: Any = made.execute_command("CLUSTER", "SLOTS")
        ranges = [(first, last) for first, last, *_ in reply]
        assert (ranges[0][0], ranges[-1][1]) == (0, SLOTS - 1)
        named = {(host.decode(), port) for _, _, *at in reply for host, port, *_ in at}
        assert named == expected


def test_a_token_at_each_node(cluster: Emulator) -> None:
    """Each asks for one, and the journal says which it was."""
    for node in cluster.nodes():
        for wrong in ({"username": None, "password": None}, {"password": "wrong"}):
            with (
                connect(cluster, node, **wrong) as made,
                pytest.raises(redis.AuthenticationError),
            ):
                made.ping()
        assert not cluster.authentications[-1].accepted
        assert cluster.authentications[-1].node == node.number
        with connect(cluster, node) as made:
            assert made.ping()
        assert cluster.authentications[-1].accepted
        assert cluster.authentications[-1].node == node.number


def test_no_certificate_names_the_nodes(cluster: Emulator) -> None:
    """Who verifies a node by its address is right to refuse; by LOCATION's, not."""
    trusting = ssl.create_default_context(cafile=str(cluster.ca_file))
    for node in cluster.nodes():
        with (
            socket.create_connection(place(node)) as sock,
            pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"),
        ):
            trusting.wrap_socket(sock, server_hostname=ADDRESS)
        with (
            socket.create_connection(place(node)) as sock,
            trusting.wrap_socket(sock, server_hostname="localhost") as wrapped,
        ):
            assert wrapped.version()


def test_moved(cluster: Emulator) -> None:
    """A key of another node's is there, where MOVED says."""
    first = primaries(cluster)[0]
    own, *foreign = sorted(KEYS, key=lambda key: owner(cluster, key) != first)
    assert len({owner(cluster, key) for key in KEYS}) == 3
    with connect(cluster, first) as made:
        assert made.set(own, "value")
        for key in foreign:
            target = place(owner(cluster, key))
            assert answers(made, ("SET", key, "value")) == [("MOVED", target)]


def test_redis_url_leads_to_nodes_in_turn(cluster: Emulator) -> None:
    """Also without TLS, on its own port; every node is met."""
    for tls in (True, False):
        before = len(cluster.authentications)
        for _ in cluster.nodes():
            with url_client(cluster, tls=tls) as made:
                assert made.ping()
        met = {record.node for record in cluster.authentications[before:]}
        assert met == {node.number for node in cluster.nodes()}


def test_cluster_client(cluster: Emulator) -> None:
    """redis-py's finds every node by itself."""
    with cluster_client(cluster) as made:
        for number in range(100):
            made.set(f"key {number}", number)
        assert [int(made.get(f"key {number}")) for number in range(100)] == list(
            range(100)
        )
        sizes = []
        for node in primaries(cluster):
            with admin(cluster, node.number) as connection:
                sizes.append(connection.dbsize())
        assert sum(sizes) == 100
        assert min(sizes) > 10
        assert cluster.stats.connections_open >= 3


# -- what holds for one gateway holds for all of them


def test_whole_emulator_at_once(cluster: Emulator) -> None:
    """Expiry, revocation, access, resets, silence and TLS faults reach every node."""
    nodes = cluster.nodes()
    name = cluster.application.object_id

    def open_all(**options: Any) -> list[redis.Redis]:
        made = [
            stack.enter_context(connect(cluster, node, **options)) for node in nodes
        ]
        assert all(one.ping() for one in made)
        return made

    before = cluster.stats
    with ExitStack() as stack:
        open_all()
        opened = cluster.stats.connections_opened - before.connections_opened
        assert opened == cluster.drop_connections() == len(nodes)
        open_all()
        cluster.revoke(name)
        wait_until(lambda: cluster.stats.connections_open == 0)
        for made in open_all():
            value = cluster.issue_token(lifetime=1.0)
            assert made.execute_command("AUTH", name, value)
        wait_until(lambda: cluster.stats.connections_open == 0)
        assert cluster.stats.closed_by_expiry == before.closed_by_expiry + len(nodes)
        open_all()
        cluster.set_access(name, None)
        wait_until(lambda: cluster.stats.connections_open == 0)
        cluster.set_access(name, "+@all -dbsize ~* &*")
        for made in open_all():
            with pytest.raises(redis.exceptions.NoPermissionError):
                made.dbsize()
        cluster.set_access(name, "+@all ~* &*")
        cluster.freeze()
        for node in nodes:
            silent = stack.enter_context(socket.create_connection(place(node)))
            silent.settimeout(0.1)
            with pytest.raises(TimeoutError):
                silent.recv(1)
        cluster.freeze(False)
        cluster.break_tls("untrusted")
        for node in nodes:
            made = stack.enter_context(connect(cluster, node))
            with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY"):
                made.ping()


def test_trouble_of_all_nodes(cluster: Emulator) -> None:
    """All are full at once; what a cluster's node cannot be is refused."""
    cluster.break_redis("full")
    with cluster_client(cluster) as made:
        for key in KEYS:
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                made.set(key, "value")
        cluster.break_redis(None)
        for key in KEYS:
            assert made.set(key, "value")
    with pytest.raises(ValueError, match="full, max_clients"):
        cluster.break_redis("read_only")


# -- what becomes of nodes


def test_killed_node(cluster: Emulator) -> None:
    """Its replica takes over within seconds; what it was comes back as a replica."""
    lost = owner(cluster, "a")
    heir = replica_of(cluster, lost.number)
    with cluster_client(cluster) as made, connect(cluster, lost) as direct:
        for key in KEYS:
            made.set(key, "value")
        # The heir has it, too.
        with admin(cluster, lost.number) as connection:
            assert connection.wait(1, 10_000) == 1
        direct.ping()
        direct_connection = direct.connection_pool.get_connection()
        begin = time.monotonic()
        cluster.kill_node(lost.number)
        with pytest.raises(redis.ConnectionError):
            direct_connection.read_response()
        direct_connection.disconnect()
        assert refuses(lost)
        assert not cluster.nodes()[lost.number - 1].alive
        with redis.Redis.from_url(cluster.backend_url) as connection:
            assert connection.ping()
        cluster.settle()
        assert time.monotonic() - begin < 20
        assert cluster.nodes()[heir.number - 1].role == "primary"
        for key in KEYS:
            assert made.get(key) == b"value"
    with pytest.raises(ValueError, match="no running primary"):
        cluster.migrate_slots(lost.number, heir.number, 1)
    with pytest.raises(ValueError, match="no running replica"):
        cluster.failover(lost.number)
    # The others do not take it for alive, nor does the port of all.
    with url_client(cluster) as some:
        assert some.ping()
    # What changes meanwhile, it has heard of when it comes back.
    newcomer = cluster.user_assigned.object_id
    cluster.set_access(newcomer, "+ping ~* &*")
    mend(cluster)
    assert not refuses(lost)
    back = cluster.nodes()[lost.number - 1]
    assert (back.alive, back.role, back.replica_of) == (True, "replica", heir.number)
    user = {"username": newcomer, "password": cluster.issue_token(newcomer)}
    with connect(cluster, back, **user) as limited:
        assert limited.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            limited.dbsize()
    cluster.set_access(newcomer, "+@all ~* &*")
    with pytest.raises(ValueError, match="is running"):
        cluster.restart_node(lost.number)


def test_failover(cluster: Emulator) -> None:
    """As planned, by way of HTTP, and nothing is lost of what is written meanwhile."""
    control = EmulatorControl.from_file(cluster.directory / "emulator.json")
    before = owner(cluster, "a")
    heir = replica_of(cluster, before.number)
    stop = threading.Event()
    written = 0
    with cluster_client(cluster) as made:

        def write() -> None:
            nonlocal written
            while not stop.is_set():
                assert made.incr("a") == written + 1
                written += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            control.failover(heir.number)
            seen = written
            wait_until(lambda: written > seen)
        finally:
            stop.set()
            writer.join()
        assert int(made.get("a")) == written
    assert control.nodes() == cluster.nodes()
    assert owner(cluster, "a").number == heir.number
    assert cluster.nodes()[before.number - 1].replica_of == heir.number
    control.settle()


def test_resharding(cluster_server: str) -> None:
    """A node joins and is given slots; clients meet ASK, TRYAGAIN and MOVED."""
    with Emulator(cluster=1, redis_server=cluster_server) as emulator:
        control = EmulatorControl.from_file(emulator.directory / "emulator.json")
        assert [(n.role, n.slots) for n in emulator.nodes()] == [("primary", SLOTS)]
        added = control.add_node()
        assert added == emulator.nodes()[1]
        assert (added.number, added.role, added.slots) == (2, "primary", 0)
        # redis-py's client does not get along with ASK to a node without any slot.
        emulator.migrate_slots(1, 2, 1)
        # Of the slot that goes next; and of all others.
        tag = next(n for n in range(SLOTS * 50) if key_slot(b"%d" % n) == 1)
        keys = [f"{{{tag}}}{number}" for number in range(150)]
        others = [str(number) for number in range(100)]
        (old, new) = emulator.nodes()
        with cluster_client(emulator) as made, connect(emulator, old) as direct:
            for key in keys + others:
                made.set(key, key)
            mover = threading.Thread(
                target=control.migrate_slots, args=(1, 2, 1, 3.0), daemon=True
            )
            with admin(emulator, 2) as connection:
                before = connection.dbsize()
                mover.start()
                wait_until(lambda: connection.dbsize() == before + 75)
            met = answers(direct, *(("GET", key) for key in keys), ("MGET", *keys))
            # The emulator goes on serving meanwhile.
            assert mover.is_alive()
            assert met.count(("ASK", place(new))) == 75
            assert met.count(("OK", None)) == 75
            assert met[-1] == ("TRYAGAIN", None)
            assert [made.get(key) for key in keys] == [key.encode() for key in keys]
            mover.join()
            assert answers(direct, ("GET", keys[0])) == [("MOVED", place(new))]
            emulator.migrate_slots(1, 2, 50)
            for key in keys + others:
                assert made.get(key) == key.encode()
        assert [node.slots for node in emulator.nodes()] == [SLOTS - 52, 52]
        with connect(emulator, new) as direct:
            assert direct.dbsize() >= len(keys)
        for wrong in ((2, 1, 53), (2, 1, 0), (2, 2, 1)):
            with pytest.raises(ValueError, match="52 slots to give"):
                emulator.migrate_slots(*wrong)
        with pytest.raises(ValueError, match="no running replica"):
            emulator.failover(2)
        # Where there is no replica, a node takes its place again, and has no data.
        emulator.kill_node(1)
        emulator.kill_node(2)
        assert all(not node.alive for node in emulator.nodes())
        with url_client(emulator) as made, pytest.raises(redis.ConnectionError):
            made.ping()
        with pytest.raises(ServerError, match="do not come to agree"):
            emulator.settle(timeout=0.1)
        control.kill_node(1)
        for number in (1, 2):
            control.restart_node(number)
        control.settle()
        with cluster_client(emulator) as made:
            assert made.get(keys[0]) is None
            assert made.set(keys[0], "value")


@contextmanager
def bad_request() -> Iterator[None]:
    """Expect the answer 400, and close it."""
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        yield
    caught.value.close()


def test_mistakes(cluster: Emulator) -> None:
    """A node that there is not is told, here and over HTTP."""
    control = EmulatorControl(cluster.control_url, cluster.ca_file)
    for ask in (cluster.kill_node, cluster.restart_node, cluster.failover):
        with pytest.raises(ValueError, match="one of 1 to 6, not 7"):
            ask(7)
    for order in (control.kill_node, control.restart_node, control.failover):
        with bad_request():
            order(7)


def test_no_cluster(emulator: Emulator) -> None:
    """One server has no nodes."""
    control = EmulatorControl(emulator.control_url, emulator.ca_file)
    assert emulator.nodes() == control.nodes() == []
    with pytest.raises(ServerError, match="this is no cluster"):
        emulator.add_node()
    with bad_request():
        control.add_node()


# -- what it needs


def script(path: Path, text: str) -> str:
    """Write a program."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def test_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old Redis, none at all, another system, no number: told in a sentence."""
    old = script(tmp_path / "old", "echo Redis server v=6.2.14 sha=0")
    strange = script(tmp_path / "strange", "true")
    for executable in (old, strange):
        with pytest.raises(ServerError, match=r"version 7\.0 or later"):
            Emulator(cluster=3, redis_server=executable).start()
    for number in (-1, SLOTS + 1):
        with pytest.raises(ServerError, match="primaries, not"):
            Emulator(cluster=number).start()
    with monkeypatch.context() as patch:
        patch.setattr("emulator.cluster.find_servers", lambda: iter(()))
        with pytest.raises(ServerError, match="none on PATH"):
            Emulator(cluster=3).start()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ServerError, match="needs Linux"):
        Emulator(cluster=3).start()


# -- that nothing is left


def test_failed_start(tmp_path: Path, cluster_server: str) -> None:
    """When one node does not start, none is left."""
    home = tmp_path / "emulator"
    broken = script(
        tmp_path / "redis-server",
        f'case "$1" in *node-2/*) echo nothing doing; exit 1;; esac\n'
        f'exec {cluster_server} "$@"',
    )
    with pytest.raises(ServerError, match="nothing doing"):
        Emulator(cluster=2, redis_server=broken, directory=home).start()
    wait_until(lambda: not servers(home))


def test_stopped_while_it_waits(tmp_path: Path, cluster_server: str) -> None:
    """What waits for the nodes ends with the emulator, and starts no more of them."""
    emulator = Emulator(cluster=2, redis_server=cluster_server, directory=tmp_path)
    problems: list[Exception] = []
    with emulator:
        emulator.kill_node(2)

        def wait(work: Callable[[], object]) -> None:
            # redis-py's own, where a node goes away while it is asked.
            expected = (ServerError, RuntimeError, redis.RedisError)
            with pytest.raises(expected) as caught:
                work()
            problems.append(caught.value)

        waiting = threading.Thread(target=wait, args=(emulator.settle,))
        waiting.start()
    waiting.join()
    late = threading.Thread(target=wait, args=(lambda: emulator.restart_node(2),))
    late.start()
    late.join()
    assert len(problems) == 2
    wait_until(lambda: not servers(tmp_path))
    # It can be started again, in the same directory.
    with emulator:
        assert all(node.alive for node in emulator.nodes())


def test_fork(cluster: Emulator) -> None:
    """A child keeps no connection to a node open, and none of its ports."""
    node = cluster.nodes()[0]
    name = cluster.application.object_id
    with connect(cluster, node) as made:
        connection: Any = made.connection_pool.get_connection()
        connection.send_command("AUTH", name, cluster.issue_token(lifetime=2.0))
        connection.read_response()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover (measured in the parent only)
            os.close(writer)
            cluster.stop()
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        try:
            with pytest.raises(redis.ConnectionError):
                connection.read_response()
            connection.disconnect()
            cluster.kill_node(node.number)
            assert refuses(node)
        finally:
            os.close(writer)
            assert os.waitpid(child, 0)[1] == 0
    cluster.settle()
    assert all(other.alive for other in cluster.nodes()[1:])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_command(tmp_path: Path, cluster_server: str, number: signal.Signals) -> None:
    """It tells of the nodes; however it ends, so do they."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-W", "error", "-m", "emulator"),
            *("--cluster", "2", "--directory", str(tmp_path)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "REDIS_SERVER": cluster_server},
    )
    assert process.stdout is not None
    with process:
        lines: list[str] = []
        try:
            while not lines or "Ready" not in lines[-1]:
                lines.append(process.stdout.readline())
                assert lines[-1], lines
            control = EmulatorControl.from_file(tmp_path / "emulator.json")
            for node in control.nodes():
                assert any(f"{node.address} primary" in line for line in lines)
            assert "export REDIS_CLUSTER=1\n" in lines
            description = control.description()
            assert [Node(**one) for one in description["nodes"]] == control.nodes()
            assert len(servers(tmp_path)) == 2
            process.send_signal(number)
            process.wait()
        finally:
            process.kill()
    # Their ports may be those of other processes of the machine by now.
    wait_until(lambda: not servers(tmp_path))
