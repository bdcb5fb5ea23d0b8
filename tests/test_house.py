"""How the package is built: which module may import which, and how long they are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import django_entra_redis

PACKAGE = "django_entra_redis"
ROOT = Path(django_entra_redis.__file__).parent

#: Each module's floor; imports only run downwards.
FLOORS = {
    "problems": 0,
    "exceptions": 0,
    "signals": 0,
    "status": 0,
    "tokens": 0,
    "schedule": 0,
    "keys": 0,
    "forks": 0,
    "imports": 0,
    "packing": 0,
    "redirections": 0,
    "driving": 0,
    "flights": 0,
    "resp": 0,
    "advice": 0,
    "installed": 0,
    "types": 1,
    "conf": 1,
    "options": 1,
    "state": 1,
    "reauthentication": 1,
    "renewal": 1,
    "sessions": 1,
    "subscriptions": 1,
    "compressors": 1,
    "serializers": 1,
    "failures": 1,
    "identities": 2,
    "credentials": 3,
    "registry": 3,
    "tls": 3,
    "connections": 4,
    "pools": 4,
    "nodes": 4,
    "complaints": 4,
    "topology": 4,
    "defaults": 4,
    "links": 4,
    "channels": 4,
    "servers": 3,
    "operations": 4,
    "forgiving": 4,
    "sharding": 4,
    "keyspace": 4,
    "locks": 4,
    "clients": 5,
    "aio": 5,
    "parts": 5,
    "cluster": 5,
    "compatibility": 6,
    "cache": 6,
    "examination": 6,
    "conversation": 6,
    "endpoints": 6,
    "trial": 6,
    "diagnosis": 6,
    "startup": 7,
    "cautions": 7,
    "checks": 7,
    "apps": 7,
    "health": 8,
    "probes": 9,
    "health_check": 9,
    "urls": 10,
    "management.commands.entra_redis_check": 7,
}

#: Imports on one and the same floor, in one direction only.
NEIGHBOURS = {
    # Apart for the sake of start-up time: the others need redis-py.
    ("exceptions", "problems"),
    ("imports", "forks"),
    ("tokens", "exceptions"),
    ("renewal", "state"),
    ("serializers", "compressors"),
    ("pools", "connections"),
    ("nodes", "defaults"),
    ("nodes", "pools"),
    ("topology", "complaints"),
    ("topology", "nodes"),
    ("channels", "connections"),
    ("channels", "links"),
    ("forgiving", "operations"),
    ("keyspace", "operations"),
    ("sharding", "forgiving"),
    ("sharding", "operations"),
    ("aio", "clients"),
    ("cluster", "aio"),
    ("cluster", "clients"),
    ("cluster", "parts"),
    ("parts", "clients"),
    ("cache", "compatibility"),
    ("examination", "cache"),
    ("conversation", "examination"),
    ("endpoints", "examination"),
    ("diagnosis", "cache"),
    ("diagnosis", "conversation"),
    ("diagnosis", "endpoints"),
    ("diagnosis", "examination"),
    ("diagnosis", "trial"),
    ("trial", "cache"),
    ("trial", "conversation"),
    ("trial", "examination"),
    ("checks", "cautions"),
    # Imported when Django has its settings, and in the background.
    ("apps", "checks"),
    ("apps", "startup"),
}

#: Imports inside of functions, all for start-up time, none to dodge a circle.
LAZY = {
    ("apps", "checks"),
    ("apps", "startup"),
    ("cache", "aio"),
    ("cache", "clients"),
    ("cache", "cluster"),
    ("compatibility", "keyspace"),
    ("compatibility", "locks"),
    ("credentials", "identities"),
}

#: Modules of more lines than `LENGTH`, and why.
LONG = {
    "advice": "a table: every failure's cause and cure",
    "cache": "Django's whole cache API, for both kinds of caller",
    "channels": "a loop's one connection, its token and who waits for it: one state",
    "cluster": "both clients of a cluster, which decide everything alike",
    "compatibility": "every method of django-redis, for both kinds of caller",
    "links": "what is sent, read and waited for on one connection: one state",
    "renewal": "the threads and those who wait for them, who share one lock",
}
LENGTH = 300


def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of each module; packages have nothing in them."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "__init__.py"
    }


def absolute(name: str, level: int, module: str) -> str:
    """Return the full name of what a module imports."""
    if not level:
        return name
    parents = [PACKAGE, *module.split(".")][:-level]
    return ".".join([*parents, *filter(None, [name])])


def imported(tree: ast.AST, module: str) -> Iterator[str]:
    """Yield the modules of the package that some code imports, in whatever way."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node.module or "", node.level, module)
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and called(node) == "import_module":
            names = [
                f"{PACKAGE}{argument.value!s}"
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant)
            ]
        else:
            continue
        for name in names:
            inner = name.removeprefix(f"{PACKAGE}.")
            if inner != name and inner in FLOORS:
                yield inner


def called(node: ast.Call) -> str:
    """Return the name of the function that is called, without what it is part of."""
    return ast.unparse(node.func).rpartition(".")[2]


def edges() -> set[tuple[str, str]]:
    """Return who imports whom."""
    return {
        (module, other)
        for module, tree in modules().items()
        for other in imported(tree, module)
    }


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import django_entra_redis.conf", {"conf"}),
        ("from django_entra_redis.conf import Identity", {"conf"}),
        ("from django_entra_redis import conf, tokens", {"conf", "tokens"}),
        ("from .conf import Identity", {"conf"}),
        ("from . import conf", {"conf"}),
        ("def f():\n if x:\n  from .conf import Identity", {"conf"}),
        ("import_module('.conf', __package__)", {"conf"}),
        ("imports.import_module('.conf', __package__)", {"conf"}),
        ("import_module('.conf').f()", {"conf"}),
        ("importlib.import_module(name, package)", set()),
        ("import conf; from redis import tokens; x.conf()", set()),
    ],
)
def test_imports_are_found(code: str, found: set[str]) -> None:
    """The test below sees every way of importing."""
    assert set(imported(ast.parse(code), "cache")) == found


def test_every_module_has_a_floor() -> None:
    """A new one is to be given a place."""
    assert modules().keys() - FLOORS.keys() == set()


def test_imports_run_downwards() -> None:
    """From a floor only to those below it, and to the neighbours listed."""
    upwards = {
        (module, other)
        for module, other in edges()
        if FLOORS[other] >= FLOORS.get(module, 0)
    }
    assert upwards == NEIGHBOURS
    assert not {(other, module) for module, other in NEIGHBOURS} & NEIGHBOURS


def test_lazy_imports_are_listed() -> None:
    """Whatever is imported within a function is so for a reason."""
    lazy = {
        (module, other)
        for module, tree in modules().items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for other in imported(function, module)
    }
    assert lazy == LAZY


def test_what_must_not_be_known() -> None:
    """The renewal knows neither Django nor Redis; only identities know msal."""
    known = {
        (module, name.partition(".")[0])
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert ("renewal", "logging") in known
    assert not known & {("renewal", "django"), ("renewal", "redis")}
    assert {module for module, name in known if name == "msal"} == {"identities"}


def test_modules_are_small() -> None:
    """One that grows beyond a screenful of screens has more than one noun."""
    lengths = {
        module: len((ROOT / f"{module.replace('.', '/')}.py").read_text().splitlines())
        for module in modules()
    }
    assert {module for module, length in lengths.items() if length > LENGTH} == set(
        LONG
    )


def test_everything_public_is_documented() -> None:
    """Modules, and public classes and functions, each have a docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    scopes: list[tuple[str, ast.Module | ast.ClassDef]] = [*modules().items()]
    scopes += [
        (module, node)
        for module, tree in modules().items()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    missing = {
        f"{module}: {getattr(node, 'name', 'the module')}"
        for module, scope in scopes
        for node in (scope, *scope.body)
        if isinstance(node, kinds)
        if not getattr(node, "name", "").startswith("_")
        if not ast.get_docstring(node)
    }
    assert missing == set()
