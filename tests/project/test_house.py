"""How the package is built: which module may import which, and how long they are."""

import ast
import functools
import graphlib
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import django_entra_redis

PACKAGE = "django_entra_redis"
ROOT = Path(django_entra_redis.__file__).parent

#: The rooms, in the order of the data's way: a room imports from those before it.
ROOMS = (
    "conf",
    "identity",
    "credentials",
    "commands",
    "connections",
    "clients",
    "cache",
    "diagnostics",
)
#: Public values and what all may import; they stand before the rooms, and the other
#: modules of the top level, Django's entry points, after them.
VALUES = {
    "_errors",
    "_fork",
    "compressors",
    "exceptions",
    "messagepack",
    "plain_pickles",
    "serializers",
    "signals",
    "status",
    "types",
}

#: Packages that a room must not know, and why. The commands know no other room either.
STRANGERS = {
    "conf": {"redis", "msal"},  # settings are read by `manage.py check`, quickly
    "identity": set[str](),
    "credentials": {"msal"},
    "commands": {"asyncio", "socket", "threading", "msal"},  # whoever carries them out
    "connections": {"msal"},
    "clients": {"msal"},
    "cache": {"msal"},
    "diagnostics": {"msal"},
}

#: What can be imported without Django's settings and apps.
PUBLIC = (
    "django_entra_redis.aget_redis_connection",
    "django_entra_redis.get_redis_connection",
    "django_entra_redis.cache.EntraRedisCache",
    "django_entra_redis.cache.EntraRedisClusterCache",
    "django_entra_redis.compressors.ZlibCompressor",
    "django_entra_redis.credentials.EntraCredentialProvider",
    "django_entra_redis.credentials.get_credential_provider",
    "django_entra_redis.exceptions.EntraRedisError",
    "django_entra_redis.serializers.JSONSerializer",
    "django_entra_redis.sessions.SessionStore",
    "django_entra_redis.signals.token_renewal_failed",
    "django_entra_redis.signals.token_renewed",
    "django_entra_redis.status.Status",
    "django_entra_redis.types.IdentitySettings",
    "django_entra_redis.urls.urlpatterns",
)

#: Imports inside of functions, all for start-up time, none to dodge a circle.
LAZY = {
    ("apps", "checks"),
    ("apps", "cache.in_use"),
    ("checks", "connections.arguments"),
    ("contrib.admin.admin", "contrib.admin.page"),
    ("cache.get_or_set", "cache.drivers"),
    ("cache.get_or_set", "cache.stampede"),
    ("connections.endpoint", "connections.tracking"),
    ("cache.backend", "clients.kinds"),
    ("cache.backend", "clients.loop_clients"),
    ("cache.backend", "clients.loop_cluster_clients"),
    ("clients.kinds", "clients.asynchronous"),
    ("clients.kinds", "clients.client_side_cache"),
    ("clients.kinds", "clients.client_side_cluster"),
    ("clients.kinds", "clients.cluster"),
    ("clients.kinds", "clients.sync"),
    ("cache.django_redis", "clients.client_side_cache"),
    ("cache.django_redis", "cache.locks"),
    ("credentials.provider", "identity.kinds"),
    ("messagepack", "plain_pickles"),
    ("serializers", "messagepack"),
    ("serializers", "plain_pickles"),
}

#: Modules of more lines than `LENGTH`, and why each is one noun all the same.
LONG = {
    "cache.backend": "Django's cache API, each method for threads and for event loops",
    "credentials.renewal": "the threads and those who wait for them share one lock",
    "diagnostics.advice": "one table, of a cause and a cure for each failure",
}
LENGTH = 500


@functools.cache
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
    known = modules().keys()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node.module or "", node.level, module)
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and called(node) == "import_module":
            names = [
                absolute(name.lstrip("."), len(name) - len(name.lstrip(".")), module)
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant)
                for name in [str(argument.value)]
            ]
        else:
            continue
        for name in names:
            inner = name.removeprefix(f"{PACKAGE}.")
            if inner != name and inner in known:
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


def rank(module: str) -> int:
    """Return the place of a module's room in the order of imports."""
    room = module.partition(".")[0]
    if room in ROOMS:
        return ROOMS.index(room)
    return -1 if module in VALUES else len(ROOMS)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import django_entra_redis.conf.options", {"conf.options"}),
        ("from django_entra_redis.conf.options import X", {"conf.options"}),
        ("from django_entra_redis import checks, signals", {"checks", "signals"}),
        ("from ..conf.options import X", {"conf.options"}),
        ("from ..conf import options", {"conf.options"}),
        ("from .locks import X", {"cache.locks"}),
        ("from . import locks", {"cache.locks"}),
        ("def f():\n if x:\n  from .locks import X", {"cache.locks"}),
        ("import_module('..conf.options', __package__)", {"conf.options"}),
        ("imports.import_module('.locks', __package__)", {"cache.locks"}),
        ("import_module('.locks').f()", {"cache.locks"}),
        ("importlib.import_module(name, package)", set()),
        ("import conf.options; from redis import locks; x.options()", set()),
    ],
)
def test_imports_are_found(code: str, found: set[str]) -> None:
    """The tests below see every way of importing."""
    assert set(imported(ast.parse(code), "cache.backend")) == found


def test_rooms_import_from_those_before_them() -> None:
    """And there is no circle of imports, inside of a room either."""
    assert [edge for edge in edges() if rank(edge[1]) > rank(edge[0])] == []
    graph = graphlib.TopologicalSorter[str]()
    for module, other in edges():
        graph.add(module, other)
    graph.prepare()


def test_commands_stand_alone() -> None:
    """They are carried out by clients of every kind, and know none of them."""
    rooms = {
        other.partition(".")[0]
        for room, other in edges()
        if room.startswith("commands.")
    }
    assert rooms & set(ROOMS) == {"commands"}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_paths(name: str) -> None:
    """What users import and write into settings stays where it is."""
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


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


def test_strangers() -> None:
    """No room imports what is another's business."""
    known = {
        (module.partition(".")[0], name.partition(".")[0])
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert {room for room, name in known if name == "msal"} == {"identity"}
    assert not {(room, name) for room in ROOMS for name in STRANGERS[room]} & known


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


def _raised_locals(path: Path) -> Iterator[str]:
    """Yield where a module raises an error from a local variable, and does not delete
    the variable: the frame and the error would keep each other alive."""

    def visit(node: ast.AST, deleted: frozenset[str]) -> Iterator[str]:
        match node:
            case ast.ExceptHandler(name=str(name)):
                deleted |= {name}
            case ast.Try(finalbody=[ast.Delete(targets=targets)]):
                deleted |= {ast.unparse(target) for target in targets}
            case ast.Raise(exc=ast.Name(id=name)):
                if name.islower() and name not in deleted:
                    yield f"{path}:{node.lineno}"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deleted)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), frozenset())


def test_frames_that_keep_their_error_alive_are_found(tmp_path: Path) -> None:
    """One that raises a local variable does, unless it deletes it."""
    path = tmp_path / "module.py"
    path.write_text("try:\n    raise kept\nfinally:\n    del other\nraise Error\n")
    assert [*_raised_locals(path)] == [f"{path}:2"]


@pytest.mark.parametrize("room", sorted({*ROOMS, "."} - {"clients", "commands"}))
def test_no_frame_keeps_its_error_alive(room: str) -> None:
    """Whatever the error's frames refer to would count as in use until a full garbage
    collection. The clients clear the frames of errors of their own and of commands."""
    folder = ROOT / room
    paths = folder.glob("*.py") if room == "." else folder.rglob("*.py")
    assert [found for path in paths for found in _raised_locals(path)] == []
