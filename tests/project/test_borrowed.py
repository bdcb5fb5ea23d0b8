"""The private names of other packages that this one uses: all of them, and why.

A release of theirs may take any of these away. Then the test of that name fails, and
says what has to be done without it; a use that is not listed fails, too.
"""

import ast
import asyncio
import functools
import importlib
import importlib.machinery
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import pytest
import redis
import redis.asyncio
import urllib3
from asgiref.sync import SyncToAsync
from django.contrib.sessions.backends.base import SessionBase
from django.core.cache.backends.redis import RedisCache
from django.db.models.options import Options
from django.dispatch import Signal
from django.http import HttpResponse
from django.utils.log import log_response
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.cluster import ClusterPipeline as AsyncClusterPipeline
from redis.asyncio.connection import Connection as AsyncConnection
from redis.backoff import NoBackoff
from redis.connection import SSLConnection
from redis.event import RegisterReAuthForPooledConnections, RegisterReAuthForPubSub
from redis.retry import Retry

from .test_house import PACKAGE, modules

#: The major version of the redis-py that is installed.
REDIS = int(redis.__version__.partition(".")[0])


#: redis-py's listeners that register callbacks for new tokens.
LISTENERS: list[Any] = [RegisterReAuthForPooledConnections, RegisterReAuthForPubSub]


@dataclass(frozen=True)
class Borrowed:
    """A private name, who uses it, and what would be the way without it.

    Parameters:
        owner: where it comes from.
        users: the modules of this package that use it.
        missing: the public name that there is not.
        there: whether it is still there.
    """

    owner: str
    users: frozenset[str]
    missing: str
    there: Callable[[], bool]


def async_pool() -> Any:
    """Return an asyncio pool of redis-py's, without a connection."""
    return redis.asyncio.ConnectionPool()


def marks_responses() -> bool:
    """Whether Django marks a response by that name once it has been logged."""
    response = HttpResponse(status=503)
    log_response("", response=response, level="debug")
    return getattr(response, "_has_been_logged", False)


BORROWED = {
    "_wrap_socket_with_ssl": Borrowed(
        "redis.connection.SSLConnection",
        frozenset({"connections.tls", "connections.endpoint", "diagnostics.network"}),
        "a way to give a connection its SSL context, or to have the one that it makes "
        "of its options: each would build its own, nine tenths of a TLS connect",
        lambda: callable(getattr(SSLConnection, "_wrap_socket_with_ssl", None)),
    ),
    "_connect": Borrowed(
        "redis.connection.SSLConnection and Connection, and asyncio's connections",
        frozenset(
            {
                "connections.connection",
                "connections.lent_connection",
                "connections.tls",
            }
        ),
        "a way to try a second host for a connection before it counts as failed; a "
        "ConnectionError for a name that Python can't look up",
        lambda: all(
            callable(getattr(kind, "_connect", None))
            for kind in (AsyncConnection, SSLConnection)
        ),
    ),
    "_connection_arguments": Borrowed(
        "redis.asyncio.connection.Connection",
        frozenset({"connections.lent_connection"}),
        "a way to give a connection its SSL context, and the name that the server's "
        "certificate must be for",
        lambda: callable(getattr(AsyncConnection, "_connection_arguments", None)),
    ),
    "_writer": Borrowed(
        "redis.asyncio.connection.AbstractConnection",
        frozenset({"connections.lent_connection"}),
        "a way to disconnect without waiting for the end of a silent server's TLS",
        lambda: hasattr(AsyncConnection(), "_writer"),
    ),
    "_get_free_connections": Borrowed(
        "redis.ConnectionPool, from redis-py 8 on",
        frozenset({"connections.pool"}),
        "a way for a pool of one's own to say how many connections are idle",
        lambda: REDIS < 8 or hasattr(redis.ConnectionPool, "_get_free_connections"),
    ),
    "_get_in_use_connections": Borrowed(
        "redis.ConnectionPool, from redis-py 8 on",
        frozenset({"connections.pool"}),
        "a way for a pool of one's own to say which connections are in use",
        lambda: REDIS < 8 or hasattr(redis.ConnectionPool, "_get_in_use_connections"),
    ),
    "_available_connections": Borrowed(
        "redis.asyncio.ConnectionPool",
        frozenset({"credentials.client_callbacks"}),
        "a way to have idle connections forget that they should reconnect",
        lambda: hasattr(async_pool(), "_available_connections"),
    ),
    "_in_use_connections": Borrowed(
        "redis.asyncio.ConnectionPool",
        frozenset({"credentials.client_callbacks"}),
        "a way to have connections reconnect when they come back, in place of an AUTH "
        "whose reply the next task would read",
        lambda: hasattr(async_pool(), "_in_use_connections"),
    ),
    "_connect_callbacks": Borrowed(
        "redis.asyncio.connection.AbstractConnection, and its synchronous namesake",
        frozenset({"credentials.client_callbacks"}),
        "a way to ask a connection whether it is subscribed",
        lambda: all(
            hasattr(connection, "_connect_callbacks")
            for connection in (AsyncConnection(), redis.Connection())
        ),
    ),
    "_event": Borrowed(
        "redis.event's listeners that authenticate anew",
        frozenset({"credentials.client_callbacks"}),
        "the pools and connections that a callback for a new token belongs to",
        lambda: all(hasattr(kind(), "_event") for kind in LISTENERS),
    ),
    "_raise": Borrowed(
        "the beginning of the names of the same listeners' callbacks for errors",
        frozenset({"credentials.client_callbacks"}),
        "a way to tell a callback for errors from one for tokens",
        lambda: all(
            hasattr(kind, name)
            for kind in LISTENERS
            for name in ("_raise_on_error", "_raise_on_error_async")
        ),
    ),
    "_lock": Borrowed(
        "redis.ConnectionPool",
        frozenset({"credentials.client_callbacks"}),
        "a hook after a fork for pools that users hold, whose lock stays locked; in "
        "redis-py 5 a lock that a client can take again as it is garbage collected",
        lambda: hasattr(redis.ConnectionPool(), "_lock"),
    ),
    "_backoff": Borrowed(
        "redis.retry.Retry",
        frozenset({"clients.retry"}),
        "a way to ask a retry policy when to try again, without handing it the call",
        lambda: hasattr(Retry(NoBackoff(), 1), "_backoff"),
    ),
    "_retries": Borrowed(
        "redis.retry.Retry",
        frozenset({"clients.retry"}),
        "get_retries() on every redis-py from 5.3 on",
        lambda: hasattr(Retry(NoBackoff(), 1), "_retries"),
    ),
    "_supported_errors": Borrowed(
        "redis.retry.Retry",
        frozenset({"clients.retry", "connections.connection"}),
        "a way to ask a retry policy which errors it covers",
        lambda: hasattr(Retry(NoBackoff(), 1), "_supported_errors"),
    ),
    "_cache": Borrowed(
        "Django's RedisCache",
        frozenset({"cache.backend", "diagnostics.overview", "diagnostics.steps"}),
        "a way to give a backend its client; RedisCache's own methods use it",
        lambda: hasattr(RedisCache, "_cache"),
    ),
    "_meta": Borrowed(
        "Django's models, whose documented API it is for readers",
        frozenset({"contrib.admin.admin"}),
        "a way to register a page of the admin that is no model's",
        lambda: hasattr(Options, "contribute_to_class"),
    ),
    "_has_been_logged": Borrowed(
        "Django's responses",
        frozenset({"diagnostics.views"}),
        "a way to answer 503 without a record in the log for each",
        marks_responses,
    ),
    "_get_new_session_key": Borrowed(
        "Django's SessionBase",
        frozenset({"sessions"}),
        "a new session's key without a round trip that asks whether it is taken",
        lambda: hasattr(SessionBase, "_get_new_session_key"),
    ),
    "_aget_new_session_key": Borrowed(
        "Django's SessionBase",
        frozenset({"sessions"}),
        "the same in an event loop",
        lambda: hasattr(SessionBase, "_aget_new_session_key"),
    ),
    "_current_frames": Borrowed(
        "sys",
        frozenset({"_fork"}),
        "a way to tell whether another thread is importing a module",
        lambda: hasattr(sys, "_current_frames"),
    ),
    "_getframe": Borrowed(
        "sys",
        frozenset({"credentials.provider"}),
        "what tells a provider which connection it is asked for: redis-py does not",
        lambda: hasattr(sys, "_getframe"),
    ),
    "_internal_execute_command": Borrowed(
        "redis.RedisCluster",
        frozenset({"clients.cluster_observation"}),
        "a way to have execute_command(), as tools have wrapped it, carry out what has "
        "been routed already",
        lambda: hasattr(redis.RedisCluster, "_internal_execute_command"),
    ),
    **{
        name: Borrowed(
            "redis.asyncio.RedisCluster",
            frozenset({"clients.cluster_observation"}),
            "the same for an event loop",
            functools.partial(hasattr, redis.asyncio.RedisCluster, name),
        )
        for name in ("_determine_nodes", "_determine_slot", "_execute_command")
    },
    "_execute": Borrowed(
        "redis.asyncio's ClusterPipeline, up to redis-py 5",
        frozenset({"clients.cluster_observation"}),
        "the same for several commands",
        lambda: REDIS > 5 or hasattr(AsyncClusterPipeline, "_execute"),
    ),
    "_initialize": Borrowed(
        "redis.asyncio.RedisCluster's objects",
        frozenset({"clients.cluster_observation"}),
        "a way to tell a client of a cluster that it knows the nodes",
        lambda: hasattr(redis.asyncio.RedisCluster("localhost"), "_initialize"),
    ),
}


def private(name: str) -> bool:
    """Whether a name begins with one underscore, and is more than that."""
    return name[:1] == "_" and name[1:2] not in ("_", "") and name.isidentifier()


def own_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module gives itself, and its objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif is_own(node) and isinstance(node.ctx, ast.Store):
            yield node.attr


def is_own(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Whether it is an attribute of the object or class that the code is part of."""
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) in (
        "self",
        "cls",
    )


def foreign(tree: ast.AST, package: set[str]) -> Iterator[str]:
    """Yield the private names in a module that are not its own.

    Those are: of ``self``, what no module of the package defines; of other objects,
    what this module does not define, or what it sets; besides what is overridden by way
    of ``super()``, imported, or named in a string.
    """
    module = set(own_names(tree))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            known = package if is_own(node) else module
            beneath = ast.unparse(node.value) == "super()"
            stored = isinstance(node.ctx, ast.Store) and not is_own(node)
            if node.attr not in known or stored or beneath:
                names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        yield from filter(private, names)


def overridden(module: str) -> Iterator[str]:
    """Yield the private names of other packages that a module's classes override."""
    namespace = vars(importlib.import_module(f"{PACKAGE}.{module}"))
    for kind in namespace.values():
        if isinstance(kind, type) and kind.__module__ == f"{PACKAGE}.{module}":
            for base in kind.__mro__:
                origin = base.__module__.partition(".")[0]
                if origin != PACKAGE and origin not in sys.stdlib_module_names:
                    names = vars(kind).keys() & vars(base).keys()
                    # Python's own marks of an abstract class and of a protocol.
                    yield from filter(private, names - {"_abc_impl", "_is_protocol"})


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("pool._lock", {"_lock"}),
        ("self._lock", {"_lock"}),
        ("self._own", set()),
        ("self._elsewhere", set()),
        ("pool._elsewhere", {"_elsewhere"}),
        ("pool._here = 1", {"_here"}),
        ("self._here = 1; pool._here", set()),
        ("def _here(): pass\npool._here()", set()),
        ("_here = 1; module._here", set()),
        ("def _here(self): super()._here()", {"_here"}),
        ("getattr(pool, '_lock')", {"_lock"}),
        ("from redis import _parsers", {"_parsers"}),
        ("x.__class__; x._; '_'; 'a'; '_ a'", set()),
    ],
)
def test_uses_are_found(code: str, found: set[str]) -> None:
    """The test below sees every way of using a name that is somebody else's."""
    assert set(foreign(ast.parse(code), {"_own", "_elsewhere", "_here"})) == found


def test_all_uses_are_listed() -> None:
    """A new use has to state the public way that is missing; an old one may go."""
    trees = modules()
    package = {name for tree in trees.values() for name in own_names(tree)}
    found = {
        (name, module)
        for module, tree in trees.items()
        for name in foreign(tree, package)
    }
    # What these derive from need not be installed, or among the apps of the tests, and
    # is named in public only.
    optional = {"contrib.admin.admin", "health_check", "opentelemetry"}
    for module in trees.keys() - optional:
        found |= {(name, module) for name in overridden(module)}
    listed = {(name, user) for name, entry in BORROWED.items() for user in entry.users}
    # Not each version of redis-py has all of them to override.
    newer = {
        ("_execute", "clients.cluster_observation"),
        ("_get_free_connections", "connections.pool"),
        ("_get_in_use_connections", "connections.pool"),
    }
    # A name of its own that __getattr__() is asked for.
    asked_for = {("_single_key", "cache.backend")}
    assert found | newer == listed | asked_for


@pytest.mark.parametrize("name", BORROWED)
def test_it_is_still_there(name: str) -> None:
    """What is borrowed has not been taken away."""
    entry = BORROWED[name]
    users = ", ".join(f"{user}.py" for user in sorted(entry.users))

    async def look() -> bool:
        return entry.there()

    # In a loop, for what is asyncio's.
    assert asyncio.run(look()), (
        f"{entry.owner} has no {name} any more. {users} used it for want of "
        f"{entry.missing}."
    )


#: Public attributes of other packages' objects that are overwritten: by the module that
#: does, why, and whether they are still there.
OVERWRITTEN: dict[tuple[str, str], tuple[str, Callable[[], bool]]] = {
    ("SyncToAsync.single_thread_executor", "connections.event_loops"): (
        "asgiref has no hook for forks: its executors' threads end with the parent",
        lambda: all(
            hasattr(SyncToAsync, name)
            for name in (
                "single_thread_executor",
                "context_to_thread_executor",
                "deadlock_context",
            )
        ),
    ),
    ("self._close.atexit", "connections.loop_watch"): (
        "finalize's own documentation has it set so; it has no argument for it",
        lambda: hasattr(weakref.finalize, "atexit"),
    ),
    ("loader.exec_module", "redis_urls"): (
        "Python has no hook for what is to be done once a module has been imported",
        lambda: hasattr(importlib.machinery.SourceFileLoader, "exec_module"),
    ),
    ("module.URL_QUERY_ARGUMENT_PARSERS", "redis_urls"): (
        "redis-py has no way to add a parser of a URL's parameter",
        lambda: all(
            hasattr(module, "URL_QUERY_ARGUMENT_PARSERS")
            for module in (redis.connection, redis.asyncio.connection)
        ),
    ),
    ("signal.lock", "credentials.provider"): (
        "Django's signals have no hook for forks: a parent's thread may be sending one",
        lambda: hasattr(Signal(), "lock"),
    ),
    ("connection.send_command", "credentials.masking"): (
        "redis-py has no hook for what is sent when a connection authenticates",
        lambda: hasattr(redis.Connection(), "send_command"),
    ),
    ("connection.retry", "connections.pool"): (
        "redis-py's own pools do the same in set_retry()",
        lambda: hasattr(redis.Connection(), "retry"),
    ),
    ("node.connection_class", "clients.loop_cluster_clients"): (
        "redis-py's asynchronous client of a cluster has no argument for the class",
        lambda: hasattr(ClusterNode("127.0.0.1", 1), "connection_class"),
    ),
    ("client.connection_pool", "clients.observation"): (
        "redis-py's clients can't be made for one request without making all of them",
        lambda: hasattr(redis.Redis(), "connection_pool"),
    ),
    ("pipeline.command_stack", "clients.observation"): (
        "redis-py's own way to queue a command packs and counts what is sent already",
        lambda: hasattr(redis.Redis().pipeline(), "command_stack"),
    ),
    ("manager.pool_classes_by_scheme", "identity.http"): (
        "urllib3's documentation has its pools customized so",
        lambda: hasattr(urllib3.PoolManager(), "pool_classes_by_scheme"),
    ),
    ("response._has_been_logged", "diagnostics.views"): (
        "Django would log each 503 of a probe",
        marks_responses,
    ),
}
#: What is Python's own, and set by everybody.
PYTHONS = {"__cause__", "__context__", "__notes__", "__suppress_context__", "daemon"}


def attributes_set(tree: ast.AST) -> Iterator[str]:
    """Yield the attributes that a module sets on objects other than its own."""
    annotated = {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    slots = {
        element.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__"
        for element in ast.walk(node.value)
        if isinstance(element, ast.Constant)
    }
    own = annotated | slots | set(attributes_of_self(tree))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and not is_own(node)
            and node.attr not in own | PYTHONS
        ):
            yield ast.unparse(node)


def attributes_of_self(tree: ast.AST) -> Iterator[str]:
    """Yield the attributes that the classes of a module set on themselves."""
    for node in ast.walk(tree):
        if is_own(node) and isinstance(node.ctx, ast.Store):
            yield node.attr


#: Attributes that a module sets on objects of another module of this package.
KNOWN = {
    ("diagnosis.identity", "diagnostics.steps"),
    ("diagnosis.servers", "diagnostics.steps"),
    ("diagnosis.token", "diagnostics.steps"),
    # Marks of the pool's, on connections of classes that this package makes.
    ("connection.pool_lent", "connections.pool"),
    ("connection.pool_generation", "connections.pool"),
    ("connection.idle_since", "connections.pool"),
    ("connection.idle_since", "connections.idle_exchange"),
    # The one attribute of an outage's record that callers in a hurry set.
    ("outages.answered_at", "connections.idle_exchange"),
    # As long as it is instrumented.
    ("ConnectionPool.check_out", "opentelemetry"),
}


def test_what_is_overwritten_is_listed() -> None:
    """Whatever is set on somebody else's object has its reason."""
    found = {
        (name, module)
        for module, tree in modules().items()
        for name in attributes_set(tree)
    }
    assert found == OVERWRITTEN.keys() | KNOWN


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_what_is_overwritten_is_there(name: tuple[str, str]) -> None:
    """A release that takes it away is noticed."""
    reason, there = OVERWRITTEN[name]
    assert there(), reason
