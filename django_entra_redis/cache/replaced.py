"""Methods of a cache that tools replace, such as Sentry and django-debug-toolbar.

They put a function of their own in the place of ``get``, ``set`` and so on of the cache
object. Django's asynchronous methods end in these, in a thread, so that such a tool
sees them, too; those of this package do the same from then on, on that object.
"""

import functools
import inspect
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async


class ReplacedMethods:
    """Has ``aget()`` go through ``get()`` once that has been replaced, and so on."""

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
    """Call what has been put in a method's place, as Django does it."""
    if name == "get_or_set":
        args = tuple(_synchronous(given) for given in args)
        kwargs = {key: _synchronous(given) for key, given in kwargs.items()}
    return await sync_to_async(getattr(cache, name))(*args, **kwargs)


def _synchronous(given: Any) -> Any:
    """Return a function that a thread can call in place of a coroutine function."""
    return async_to_sync(given) if inspect.iscoroutinefunction(given) else given
