"""The path of single-key operations in a cache with a client-side cache."""

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from redis.exceptions import TimeoutError

from .observation import INSTRUMENTATION
from .straight import SingleKey


class CopyingPath:
    """Reads a copy where there is one, and otherwise takes the path without copies.

    A write always takes that path, and then drops the copy of its key.

    Parameters:
        client: a :class:`~.client_side_cache.CopyingCacheClient`.
        path: the path without copies.
    """

    def __init__(self, client: Any, path: SingleKey) -> None:
        self._client = client
        self._path = path
        self._loads = client.operations.loads
        self._keeps = client.keeps
        self._find = client.local.find
        self._is_cold = client.local.copies.is_cold
        self._drop = client.local.copies.drop_one

    def get(self, key: str, default: Any) -> Any:
        """Return a key's value."""
        copy = self._find(key)
        if copy is not None:
            if copy.data is not None:
                return self._loads(copy.data)
        # As CopyingClient.wants does, in a call less.
        elif not self._is_cold(key) and self._keeps(key):
            return self._fetch(key, default)
        return self._path.get(key, default)

    def _fetch(self, key: str, default: Any) -> Any:
        """Return a key's value, and keep a copy."""
        client, instrumentation = self._client, INSTRUMENTATION
        # Observing tools do not see this path: while there are any, it is not taken.
        if instrumentation.client.execute_command is not instrumentation.own_command:
            return client.run(client.operations.get, key, default)
        began = monotonic()
        try:
            call = client.tracker.ask(key)
        except TimeoutError as error:
            attempts = client.first_attempt(client.endpoints[0], [key], began)
            client.give_up(attempts, error)
            return self._path.get(key, default)
        if call is None:
            return client.run(client.operations.get, key, default)
        if call.values is None:
            return self._path.get(key, default)
        data = call.values[0]
        return default if data is None else self._loads(data)

    def has_key(self, key: str) -> bool:
        """Return whether a key is there."""
        copy = self._find(key)
        if copy is not None and copy.data is not None:
            return True
        return self._path.has_key(key)

    def set(self, key: str, value: Any, timeout: int | None) -> None:
        """Set a key."""
        try:
            self._path.set(key, value, timeout)
        finally:
            self._drop(key)

    def add(self, key: str, value: Any, timeout: int | None) -> bool:
        """Set a key that does not exist; return whether it was set."""
        try:
            return self._path.add(key, value, timeout)
        finally:
            self._drop(key)

    def replace(self, key: str, value: Any, timeout: int | None) -> bool:
        """Set a key only if it is there; return whether it was set."""
        try:
            return self._path.replace(key, value, timeout)
        finally:
            self._drop(key)

    def touch(self, key: str, timeout: int | None) -> bool:
        """Set a key's timeout; return whether it is there."""
        try:
            return self._path.touch(key, timeout)
        finally:
            self._drop(key)

    def delete(self, key: str) -> bool:
        """Delete a key; return whether it was there."""
        try:
            return self._path.delete(key)
        finally:
            self._drop(key)

    def get_many(self, keys: Sequence[str], names: Sequence[Any]) -> dict[Any, Any]:
        """Return the values of the keys that are there, by the keys' names."""
        found: dict[Any, Any] = self._client.run(
            self._client.operations.get_many, keys, names
        )
        return found

    def set_many(
        self, keys: Sequence[str], data: Mapping[Any, Any], timeout: int | None
    ) -> list[Any]:
        """Set several keys; return the names of those that Redis refused."""
        refused: list[Any] = self._client.run(
            self._client.operations.set_many, keys, data, timeout
        )
        return refused

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete several keys."""
        self._client.run(self._client.operations.delete_many, keys)

    def time_to_live(self, command: str, key: str) -> int | None:
        """Return the time until a key expires."""
        return self._path.time_to_live(command, key)

    def change_expiry(self, command: str, key: str, *amount: int) -> bool:
        """Change when a key expires; return whether it is there."""
        try:
            return self._path.change_expiry(command, key, *amount)
        finally:
            self._drop(key)

    def incr(self, key: str, delta: int) -> int:
        """Add to a number; return the sum."""
        try:
            return self._path.incr(key, delta)
        finally:
            self._drop(key)
