"""Support for tools that replace a cache's methods (Sentry, django-debug-toolbar).

They replace ``get``, ``set`` and so on of a cache object by functions of their own.
Django's asynchronous methods call the synchronous ones in a thread, so that such a tool
sees asynchronous calls, too. This package's asynchronous methods do not; once a method
is replaced, its asynchronous twin on that object does what Django's does.
"""

import functools
import inspect
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async


class ReplacedMethods:
    """Makes ``aget()`` call ``get()`` once that has been replaced, and so on."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if callable(value):
            twin = f"a{name}"
            if inspect.iscoroutinefunction(getattr(type(self), twin, None)):
                super().__setattr__(twin, functools.partial(_call, self, name))

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        vars(self).pop(f"a{name}", None)


async def _call(cache: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a replaced method in a thread, as Django does."""
    if name == "get_or_set":
        args = tuple(_synchronous(given) for given in args)
        kwargs = {key: _synchronous(given) for key, given in kwargs.items()}
    return await sync_to_async(getattr(cache, name))(*args, **kwargs)


def _synchronous(given: Any) -> Any:
    """Return a function that a thread can call in place of a coroutine function."""
    return async_to_sync(given) if inspect.iscoroutinefunction(given) else given
