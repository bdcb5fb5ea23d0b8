"""What the tests of clusters have in common."""

import redis

from emulator import Emulator, Node

LIFETIME = 3600.0


def mend(emulator: Emulator) -> None:
    """Have all nodes run, and nobody connected; end faults, delete all data."""
    emulator.faults.recover()
    emulator.freeze(False)
    emulator.break_tls(None)
    emulator.break_redis(None)
    emulator.token_lifetime = LIFETIME
    emulator.drop_connections()
    for node in emulator.nodes():
        if not node.alive:
            emulator.restart_node(node.number)
    emulator.settle()
    for node in primaries(emulator):
        with admin(emulator, node.number) as connection:
            connection.flushall()


def primaries(emulator: Emulator) -> list[Node]:
    """Return the primaries that live."""
    return [n for n in emulator.nodes() if n.alive and n.role == "primary"]


def replica_of(emulator: Emulator, number: int) -> Node:
    """Return the replica of a primary."""
    return next(node for node in emulator.nodes() if node.replica_of == number)


def admin(emulator: Emulator, number: int) -> redis.Redis:
    """Return an administrator's client of one node, past the gateway."""
    return redis.Redis.from_url(emulator.node_url(number), decode_responses=True)
