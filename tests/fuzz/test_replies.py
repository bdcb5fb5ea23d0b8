"""Replies of any kind to any command, and keys of any kind."""

import fnmatch
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.exceptions import AskError, MovedError, ResponseError

from django_entra_redis.clients.redirects import cluster_error
from django_entra_redis.commands import replies
from django_entra_redis.commands.patterns import of_cache
from django_entra_redis.commands.resp import SLOTS
from django_entra_redis.commands.slots import read_slots
from django_entra_redis.exceptions import InvalidReplyError

quick = settings(deadline=None, database=None)

scalars = (
    st.none()
    | st.integers()
    | st.integers(0, SLOTS)
    | st.binary(max_size=12)
    | st.sampled_from([b"OK", b"0", b"17", b"?", b"", True, 1.5, "text"])
)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4))
PARSERS = [
    replies.integer,
    replies.value_of,
    replies.done,
    replies.done_or_integer,
    replies.sum_or_nothing,
    replies.scanned,
    replies.values_of(2),
]


@pytest.mark.parametrize("parse", PARSERS)
@quick
@given(reply=anything)
def test_any_reply(parse: replies.Parse, reply: Any) -> None:
    """It says something, or is none."""
    with suppress(InvalidReplyError):
        parse(reply)


nodes = st.lists(scalars, max_size=4) | st.tuples(
    st.sampled_from([None, b"", b"?", b"10.0.0.1", b"\xff"]), st.integers(-1, 70_000)
).map(list)
ranges = st.lists(
    st.integers(-1, SLOTS + 1) | st.integers() | nodes | scalars, max_size=5
)


#: A few slots' right reply, or nearly.
right = st.builds(
    lambda first, count, port: [first, first + count, [b"10.0.0.1", port, b"id"]],
    st.integers(0, SLOTS - 1),
    st.integers(0, 3),
    st.integers(1, 70_000),
)


@quick
@given(reply=st.lists(right | ranges | anything, max_size=4) | anything)
@example(reply=[[0, 5, [b"10.0.0.1", 7000, b"id"]]])
def test_any_topology(reply: Any) -> None:
    """What comes of it is within bounds."""
    try:
        found = read_slots(reply, "asked")
    except InvalidReplyError:
        return
    for each in found:
        assert 0 <= each.first <= each.last < SLOTS
        assert all(host and 0 < port < 65536 for host, port in each.nodes)


@quick
@given(
    text=st.text(max_size=30)
    | st.builds(
        "{} {} {}:{}".format,
        st.sampled_from(["MOVED", "ASK", "moved", "CLUSTERDOWN"]),
        st.integers(-2, SLOTS + 2) | st.text(max_size=3),
        st.sampled_from(["", "h", "::1", "a b"]),
        st.integers(-1, 65_537) | st.text(max_size=3),
    )
)
def test_any_redirection(text: str) -> None:
    """It leads to a port of a host for a slot, or is none."""
    found = cluster_error(ResponseError(text))
    if isinstance(found, AskError | MovedError):
        assert 0 <= found.slot_id < SLOTS
        assert 0 < found.port < 65536
    else:
        assert isinstance(found, ResponseError | InvalidReplyError)


parts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)


@quick
@given(prefix=parts, version=st.integers() | parts.filter(bool), name=parts)
def test_any_key(prefix: str, version: Any, name: str) -> None:
    """A cache clears each key of its own version, and all of versions with numbers."""
    pattern = of_cache(
        lambda name, version, more: f"{prefix}{more}:{version}:{name}", version
    )
    key = f"{prefix}:{version}:{name}"
    assert pattern.regex.fullmatch(key.encode())
    # What Redis is asked for is no narrower. Python's patterns escape in brackets.
    glob = re.sub(r"\\(.)", _bracketed, pattern.glob, flags=re.DOTALL)
    assert fnmatch.fnmatchcase(key, glob)


def _bracketed(found: re.Match[str]) -> str:
    return found[1] if found[1] in "\\^-]" else f"[{found[1]}]"
