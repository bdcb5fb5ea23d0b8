"""Support for tools that replace a cache's methods (Sentry, django-debug-toolbar).

They replace ``get``, ``set`` and so on of a cache object by functions of their own.
Django's asynchronous methods call the synchronous ones in a thread, so that such a tool
sees asynchronous calls, too. This package's asynchronous methods do not; once a method
is replaced, its asynchronous twin on that object does what Django's does.
"""

import functools
import inspect
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync, sync_to_async


class _Twin(functools.partial[Any]):
    """What stands for an asynchronous method as long as its twin is replaced."""


_OURS = _Twin(bool)


class ReplacedMethods:
    """Makes ``aget()`` call ``get()`` once that has been replaced, and so on."""

    if TYPE_CHECKING:
        _note_replaced: Any

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Nothing more for all else: under ASGI, each request makes a cache.
        if callable(value) and hasattr(type(self), name):
            self._note_replaced(name)
            self._replace_twin(name, value)

    def _replace_twin(self, name: str, value: Any) -> None:
        twin = f"a{name}"
        if self._is_replaced(twin):
            return  # It stays what somebody has made it.
        if _is_method(self, name, value):
            # Put back by assignment.
            vars(self).pop(twin, None)
        elif inspect.iscoroutinefunction(getattr(type(self), twin, None)):
            super().__setattr__(twin, _Twin(_call, self, name))

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        twin = f"a{name}"
        if not self._is_replaced(twin):
            vars(self).pop(twin, None)

    def _is_replaced(self, twin: str) -> bool:
        """Whether an asynchronous method has been replaced by somebody else."""
        return not isinstance(vars(self).get(twin, _OURS), _Twin)


def _is_method(cache: Any, name: str, value: Any) -> bool:
    """Whether a value is the class's own method, bound to the object."""
    own = getattr(type(cache), name, None)
    return (
        getattr(value, "__self__", None) is cache
        and getattr(value, "__func__", None) is own
    )


async def _call(cache: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a replaced method in a thread, as Django does."""
    if name == "get_or_set":
        args = tuple(_synchronous(given) for given in args)
        kwargs = {key: _synchronous(given) for key, given in kwargs.items()}
    return await sync_to_async(getattr(cache, name))(*args, **kwargs)


def _synchronous(given: Any) -> Any:
    """Return a function that a thread can call in place of a coroutine function."""
    return async_to_sync(given) if inspect.iscoroutinefunction(given) else given
