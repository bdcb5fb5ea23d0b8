"""The answer to CLUSTER SLOTS: as Redis writes it, or none."""

from typing import Any

import pytest

from django_entra_redis.commands.slots import MAX_NODES, SlotRange, read_slots
from django_entra_redis.exceptions import InvalidReplyError

NODE = [b"10.0.0.5", 6379, b"id"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"10.0.0.5", "10.0.0.5"),
        (b"node-1.example", "node-1.example"),
        (b"fe80::1", "fe80::1"),
        ("node-1.example", "node-1.example"),
        # Redis does not know it, or is not to tell it.
        (None, "asked"),
        (b"", "asked"),
        (b"?", "asked"),
    ],
)
def test_hosts(host: Any, expected: str) -> None:
    """Without one it is the one that has been asked, of replicas, too."""
    entry = [0, 5, [host, 7000, b"id", [b"ip", b"10.0.0.5"]], [host, 7001]]
    assert read_slots([entry, [7, 7, NODE]], "asked") == [
        SlotRange(0, 5, ((expected, 7000), (expected, 7001))),
        SlotRange(7, 7, (("10.0.0.5", 6379),)),
    ]


@pytest.mark.parametrize(
    "reply",
    [
        None,
        5,
        b"text",
        [5],
        [[]],
        [[0]],
        [[0, 5]],
        [[5, 0, NODE]],
        [[-1, 0, NODE]],
        [[0, 16384, NODE]],
        [[0, 10**12, NODE]],
        [[b"0", b"5", NODE]],
        [[True, 5, NODE]],
        [[0, 5, None]],
        [[0, 5, []]],
        [[0, 5, [b"host"]]],
        [[0, 5, [b"host", 0]]],
        [[0, 5, [b"host", 65536]]],
        [[0, 5, [b"host", b"6379"]]],
        [[0, 5, [5, 6379]]],
        [[0, 5, [b"\xff", 6379]]],
        [[0, 5, [b"a\nb", 6379]]],
        [[0, 5, [b"host?ssl_cert_reqs=none#", 6379]]],
        [[0, 5, [b"a" * 256, 6379]]],
        [[0, 5, [[b"host"], 6379]]],
        # Slots that are told twice, and nodes without end.
        [[0, 16383, NODE], [0, 0, NODE]],
        [[0, 5, *([b"host", port] for port in range(1, MAX_NODES + 2))]],
    ],
)
def test_what_is_none(reply: Any) -> None:
    """It neither fills the memory nor fails with an error of Python's."""
    with pytest.raises(InvalidReplyError, match="CLUSTER SLOTS"):
        read_slots(reply, "asked")
