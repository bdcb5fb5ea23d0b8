"""The slots of keys, and the reply to CLUSTER SLOTS, which says whose they are.

A hijacked node may reply anything: a reply in another form than Redis', or one that
would fill the memory, is refused.
"""

from binascii import crc_hqx
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from redis.crc import key_slot

from ..exceptions import InvalidReplyError
from .addresses import NO_HOST, Address, is_host, is_port
from .packing import encode
from .resp import SLOTS

#: Nodes of a cluster at most; Redis Cluster is designed for up to a thousand.
MAX_NODES = 4096


@dataclass(frozen=True, slots=True)
class SlotRange:
    """A range of slots with the same nodes.

    Parameters:
        first, last: the first and the last slot.
        nodes: the address of the primary, then those of its replicas.
    """

    first: int
    last: int
    nodes: tuple[Address, ...]


def slots_of(keys: Sequence[str | bytes]) -> list[int]:
    """Return the slot of each key ("Redis cluster specification", "Key distribution
    model")."""
    try:
        names = [*map(str.encode, keys)]  # type: ignore[arg-type]  # as nearly always
    except TypeError:
        names = [encode(key) for key in keys]
    if b"{" in b"".join(names):
        return [*map(key_slot, names)]
    # What key_slot() makes of a key without a hash tag.
    return [found & (SLOTS - 1) for found in map(crc_hqx, names, repeat(0))]


def read_slots(reply: Any, asked: str) -> list[SlotRange]:
    """Parse the reply to CLUSTER SLOTS.

    Parameters:
        reply: the reply.
        asked: the host of the node that sent it.

    Raises:
        InvalidReplyError: it does not have the form of such a reply.
    """
    try:
        ranges = [_read_range(*entry, asked=asked) for entry in reply]
    except (TypeError, ValueError):
        ranges = None
    if (
        ranges is None
        or sum(found.last - found.first + 1 for found in ranges) > SLOTS
        or len({node for found in ranges for node in found.nodes}) > MAX_NODES
    ):
        raise InvalidReplyError("The reply to CLUSTER SLOTS is malformed.")
    return ranges


def _read_range(first: Any, last: Any, *nodes: Any, asked: str) -> SlotRange:
    if not (type(first) is type(last) is int and 0 <= first <= last < SLOTS and nodes):
        raise ValueError
    return SlotRange(
        first, last, tuple(_read_node(*node, asked=asked) for node in nodes)
    )


def _read_node(host: Any, port: Any, *_: Any, asked: str) -> Address:
    name = host.decode() if isinstance(host, bytes) else host
    if not is_port(port):
        raise ValueError
    if name is None or name in NO_HOST:
        return asked, port
    if not is_host(name):
        raise ValueError
    return name, port
