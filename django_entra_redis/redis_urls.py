"""``?credential_provider=dotted.path`` in the URLs that redis-py reads.

For packages that take nothing but a URL.

redis-py keeps what parses a URL's parameters in a table. It is added to once redis-py
is imported, and not imported for that: most processes that start don't need it.
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
        path: the dotted path of a provider, or of what makes one without arguments.

    Raises:
        ImproperlyConfigured: there is none, or it is something else.
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
    """Have redis-py understand the parameter, now or once it is imported."""
    for name in MODULES:
        if name in sys.modules:
            # Waits for another thread that is importing it.
            _extend(importlib.import_module(name))
        elif not any(isinstance(f, _Finder) and f.name == name for f in sys.meta_path):
            sys.meta_path.insert(0, _Finder(name))


def _extend(module: ModuleType) -> None:
    """Add the parameter to a module's table, unless redis-py has it by now."""
    table = module.URL_QUERY_ARGUMENT_PARSERS
    if PARAMETER in table:
        return
    if isinstance(table, dict):
        table[PARAMETER] = provider_at
    else:
        # That of event loops is read-only, but looked up anew for each URL.
        changed = MappingProxyType({**table, PARAMETER: provider_at})
        module.URL_QUERY_ARGUMENT_PARSERS = changed  # type: ignore[attr-defined] # untyped


class _Finder:
    """Finds one module as it would be found without this, and acts once it is loaded.

    Parameters:
        name: the module's.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return how to load the module; ``None`` of any other."""
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
