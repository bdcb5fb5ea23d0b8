"""The answer to CLUSTER SLOTS: which nodes have which keys ("CLUSTER SLOTS").

A node that has been hijacked may answer anything: what is not as Redis writes it, or
would fill the memory, is no answer.
"""

from dataclasses import dataclass
from typing import Any

from ..exceptions import InvalidReplyError
from .resp import SLOTS

#: Nodes of a cluster at most; it is made for a thousand.
MAX_NODES = 4096
#: Characters of a host name or address at most, as in DNS.
_MAX_HOST = 255
#: What stands for a host where the node does not know it, or is not to tell it: then it
#: is the one that has been asked (``cluster-preferred-endpoint-type``).
NO_HOST = ("", "?")

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class SlotRange:
    """Slots that the same nodes have.

    Parameters:
        first, last: the first of them and the last.
        nodes: the primary's address, and those of its replicas.
    """

    first: int
    last: int
    nodes: tuple[Address, ...]


def read_slots(reply: Any, asked: str) -> list[SlotRange]:
    """Return what a node answers to CLUSTER SLOTS.

    Parameters:
        asked: the host of the node that has been asked.

    Raises:
        InvalidReplyError: it is no such answer.
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
        raise InvalidReplyError("What CLUSTER SLOTS has been answered with is none.")
    return ranges


def _read_range(first: Any, last: Any, *nodes: Any, asked: str) -> SlotRange:
    if not (type(first) is type(last) is int and 0 <= first <= last < SLOTS and nodes):
        raise ValueError
    return SlotRange(
        first, last, tuple(_read_node(*node, asked=asked) for node in nodes)
    )


def _read_node(host: Any, port: Any, *_: Any, asked: str) -> Address:
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or name in NO_HOST:
        name = asked
    if not (type(port) is int and 0 < port < 65536):
        raise ValueError
    if not (isinstance(name, str) and name.isprintable() and len(name) <= _MAX_HOST):
        raise ValueError
    return name, port
