"""Commands as bytes: the same that redis-py makes of them."""

import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Connection

from django_entra_redis.commands import packing
from django_entra_redis.commands.operations import INCR_SHA, pack_incr
from django_entra_redis.commands.packing import (
    pack_all,
    pack_delete,
    pack_deletes,
    pack_get,
    pack_get_many,
    pack_gets,
    pack_on_key,
    pack_set,
    pack_sets,
    pack_sets_in_one,
)

VALUES = [b"bytes", bytearray(b"array"), memoryview(b"view"), "text é", 7, -1, 1.5]


def packed(*command: Any) -> bytes:
    """Return what redis-py sends for a command."""
    return b"".join(Connection().pack_command(*command))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("timeout", [None, 0, 300])
def test_set(value: Any, timeout: int | None) -> None:
    """SET with and without a timeout, and DEL for one of 0."""
    expiry = () if timeout is None else ("EX", timeout)
    # Without hiredis redis-py takes no bytearray.
    data = bytes(value) if isinstance(value, bytearray) else value
    command = ("SET", "clé", data, *expiry) if timeout != 0 else ("DEL", "clé")
    assert pack_set("clé", value, timeout) == packed(*command)


def test_get_and_several() -> None:
    """GET, and several commands in one piece."""
    assert pack_get("clé") == packed("GET", "clé")
    commands = [("EXISTS", "a"), ("EXPIRE", "a", 60)]
    assert pack_all(commands) == b"".join(packed(*command) for command in commands)


#: Of a length that is in the tables, and of one that is not.
KEYS = ["key", "clé", "k" * 511, "k" * 512, "é" * 300]


@pytest.mark.parametrize("key", KEYS)
def test_single_keys(key: str) -> None:
    """The commands of one key, and SET under a condition."""
    assert pack_delete(key) == packed("DEL", key)
    assert pack_get(key) == packed("GET", key)
    assert pack_get_many(["other", key]) == packed("MGET", "other", key)
    assert pack_on_key("EXISTS", key) == packed("EXISTS", key)
    assert pack_on_key("EXPIRE", key, 300) == packed("EXPIRE", key, 300)
    assert pack_set(key, b"x", 0, "NX") == packed("SET", key, "x", "NX", "EX", 0)
    assert pack_set(key, b"x", None, "XX") == packed("SET", key, "x", "XX")
    assert pack_set(key, b"x" * 512, None) == packed("SET", key, "x" * 512)
    for delta in (1, -5, 2**70):
        counting = ("EVALSHA", INCR_SHA, 1, key, delta)
        assert pack_incr(key, delta) == packed(*counting) == pack_all([counting])


@pytest.mark.parametrize("keys", [KEYS, KEYS[:3], ["key", "other"], []])
def test_several_keys(keys: list[str]) -> None:
    """Whatever their lengths, they are packed as each alone."""
    assert pack_deletes(keys) == b"".join(packed("DEL", key) for key in keys)
    assert pack_gets(keys) == b"".join(packed("GET", key) for key in keys)
    values: list[Any] = [7, b"bytes", "text", -1, 1.5][: len(keys)]
    for timeout in (None, 300):
        expiry = () if timeout is None else ("EX", timeout)
        each = [
            packed("SET", key, value, *expiry)
            for key, value in zip(keys, values, strict=True)
        ]
        assert pack_sets(keys, values, timeout) == each
        assert pack_sets_in_one(keys, values, timeout) == b"".join(each)
    assert pack_sets(keys, values, 0) == [packed("DEL", key) for key in keys]
    assert pack_sets_in_one(keys, values, 0) == pack_deletes(keys)


def test_values_of_keys_that_are_deleted() -> None:
    """They are serialized all the same, so that one which can't be is an error."""
    with pytest.raises(TypeError, match="pickle"):
        pack_sets(["key"], map(pickle.dumps, [threading.Lock()]), 0)


def test_timeouts_are_not_kept_for_ever() -> None:
    """However many a site has."""
    for timeout in range(1, 1000):
        expected = packed("SET", "key", "x", "EX", timeout)
        assert pack_set("key", b"x", timeout) == expected
    assert len(packing._SETS) <= packing._MOST_SETS


class Added(dict[Any, Any]):
    """What is known of SETs, to which another thread adds at every look."""

    def __iter__(self) -> Iterator[Any]:
        found = super().__iter__()
        self[len(self)] = ()
        return found


def test_timeouts_of_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One may add what is known of a SET while another removes the oldest."""
    monkeypatch.setattr(packing, "_SETS", Added())
    for timeout in range(1, packing._MOST_SETS + 5):
        expected = packed("SET", "key", "x", "EX", timeout)
        assert pack_set("key", b"x", timeout) == expected


@pytest.mark.parametrize("value", [True, None, object(), {"a": 1}])
def test_what_is_no_bytes(value: Any) -> None:
    """A serializer that gives something else is told so."""
    with pytest.raises(
        TypeError, match="A serializer should return bytes, str, int or"
    ):
        pack_set("key", value, None)
