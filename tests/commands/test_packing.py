"""Commands as bytes: the same that redis-py makes of them."""

from typing import Any

import pytest
from redis import Connection

from django_entra_redis.commands.packing import pack_all, pack_get, pack_set

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


@pytest.mark.parametrize("value", [True, None, object(), {"a": 1}])
def test_what_is_no_bytes(value: Any) -> None:
    """A serializer that gives something else is told so."""
    with pytest.raises(TypeError, match="A serializer is to give bytes, str, int or"):
        pack_set("key", value, None)
