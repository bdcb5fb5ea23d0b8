"""``?credential_provider=dotted.path`` in the URLs that redis-py reads.

For packages that take nothing but a URL. redis-py keeps the parsers of a URL's
parameters in a table; ours is added to it once redis-py is imported. redis-py is not
imported for that, as many processes of a Django project never need it.
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

PARAMETER = "credential_provider"
#: The modules that have a table: for threads, and for event loops.
MODULES = ("redis.connection", "redis.asyncio.connection")


def provider_at(path: str) -> Any:
    """Return the credential provider that a URL names.

    Parameters:
        path: the dotted path of a provider, or of a callable that returns one.

    Raises:
        ImproperlyConfigured: nothing is there, or it is no provider.
    """
    try:
        found = import_string(path)
        provider = found() if callable(found) else found
    except Exception as error:
        message = f"{path!r} can't be used ({type(error).__name__}: {error})."
    else:
        if hasattr(provider, "get_credentials"):
            return provider
        message = f"{path!r} is not a credential provider."
    raise ImproperlyConfigured(
        f"?{PARAMETER}= in a Redis URL: {message} It should be a dotted path, such as "
        "'django_entra_redis.credentials.EntraCredentialProvider'."
    )


def register() -> None:
    """Add the parameter to redis-py's tables, now or once they are imported."""
    for name in MODULES:
        if name in sys.modules:
            # Waits for another thread that is importing it.
            _extend(importlib.import_module(name))
        elif not any(isinstance(f, _Finder) and f.name == name for f in sys.meta_path):
            sys.meta_path.insert(0, _Finder(name))


def _extend(module: ModuleType) -> None:
    """Add the parameter to a module's table, unless it is there already."""
    table = module.URL_QUERY_ARGUMENT_PARSERS
    if PARAMETER in table:
        return
    if isinstance(table, dict):
        table[PARAMETER] = provider_at
    else:
        # The asynchronous table is read-only, but looked up anew for each URL.
        changed = MappingProxyType({**table, PARAMETER: provider_at})
        module.URL_QUERY_ARGUMENT_PARSERS = changed  # type: ignore[attr-defined] # untyped


class _Finder:
    """Lets one module be found as usual, and extends its table once it is loaded.

    Parameters:
        name: the module's name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the module's spec; ``None`` for any other module."""
        if name != self.name:
            return None
        with contextlib.suppress(ValueError):  # another thread was faster
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        if loader is not None:
            loader.exec_module = functools.partial(_load, loader.exec_module)
        return spec


def _load(load: Callable[[ModuleType], None], module: ModuleType) -> None:
    load(module)
    _extend(module)
