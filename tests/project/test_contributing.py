"""What contributors read and use is what is there."""

import json
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from django_entra_redis.conf.identities import KINDS
from django_entra_redis.identity import kinds as identities
from emulator import KINDS as EMULATED
from tests.support.commands import (
    ROOT,
    env_list,
    environment_exists,
    environments_in,
    expand,
    python_modules_in,
    table,
)

from .test_house import ROOMS

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
PRE_COMMIT = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
TOX = (ROOT / "tox.ini").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]


def claimed(prefix: str) -> list[str]:
    """Return the versions that the classifiers claim."""
    return [
        name.removeprefix(prefix)
        for name in PROJECT["classifiers"]
        if re.fullmatch(re.escape(prefix) + r"\d\.\d+", name)
    ]


PYTHONS = claimed("Programming Language :: Python :: ")
DJANGOS = claimed("Framework :: Django :: ")


def matrix(axis: str) -> list[str]:
    """Return the values of an axis of the workflow's matrix."""
    (values,) = re.findall(rf"^        {axis}: (\[.*\])$", WORKFLOW, re.MULTILINE)
    found: list[str] = json.loads(values)
    return found


def test_names_with_braces() -> None:
    """They are read as tox reads them."""
    assert list(expand("style")) == ["style"]
    assert list(expand("soak{,-short}")) == ["soak", "soak-short"]
    assert list(expand("a{1,2}-b{3,4}c")) == ["a1-b3c", "a1-b4c", "a2-b3c", "a2-b4c"]


@pytest.mark.parametrize(
    ("name", "there"),
    [
        *((name, True) for name in env_list()),
        ("soak", True),
        ("py311-pre", True),
        ("py312-django60-redis5", True),
        ("py312", False),
        ("py312-django70", False),
        ("lint", False),
    ],
)
def test_environments_are_told_from_what_is_none(name: str, there: bool) -> None:
    """The tests of the documentation's commands can fail."""
    assert environment_exists(name) == there


def test_the_map_has_every_room() -> None:
    """In the order in which they import from one another."""
    rows = table(CONTRIBUTING, "room of `django_entra_redis`")
    named = [name for row in rows for name in re.findall(r"^`(\w+)/`", row[0])]
    assert named == list(ROOMS)


def test_commands_are_there() -> None:
    """Each task's command names what tox.ini or the checkout has."""
    commands = [row[1] for row in table(CONTRIBUTING, "task")]
    assert len(commands) > 10
    names = environments_in(CONTRIBUTING + WORKFLOW + PRE_COMMIT)
    assert {"demo", "soak", "benchmarks", "style", "types", "package"} <= set(names)
    assert [name for name in names if not environment_exists(name)] == []
    assert not [name for name in python_modules_in(CONTRIBUTING) if not find_spec(name)]
    assert (ROOT / ".ci" / "run").is_file()


def test_files_are_there() -> None:
    """What the text sends its reader to exists."""
    package = ROOT / "django_entra_redis"
    named = re.findall(r"`([\w./-]+(?:/|\.(?:py|md|ini|toml|yaml)))`", CONTRIBUTING)
    assert len(named) > 50
    assert not [
        name
        for name in named
        if not ((ROOT / name).exists() or (package / name).exists())
    ]


def test_kinds_of_identity_agree() -> None:
    """What the settings know, the requests and the emulator know, too."""
    kinds = set(KINDS) - {"environment"}
    assert identities._KINDS.keys() == kinds | {"credential"}
    assert kinds <= set(EMULATED)


def test_workflow_covers_what_is_claimed() -> None:
    """Each Python with each Django that knows it, on each system and both redis-pys."""
    assert matrix("python") == PYTHONS
    assert matrix("django") == DJANGOS
    systems = [name.partition("-")[0] for name in matrix("os")]
    assert systems == ["ubuntu", "macos", "windows"]
    left_out = re.findall(r'\{ python: "(.+)", django: "(.+)" \}', WORKFLOW)
    assert left_out == [("3.11", "6.0"), ("3.11", "6.1")]
    for python in PYTHONS:
        for django in DJANGOS:
            for redis in matrix("redis"):
                name = f"py{python}-django{django}-{redis}".replace(".", "")
                assert environment_exists(name)


def test_workflow_has_the_oldest_and_the_newest_redis_py() -> None:
    """They are the bounds that the package states."""
    (redis,) = [
        requirement
        for requirement in map(Requirement, PROJECT["dependencies"])
        if requirement.name == "redis"
    ]
    bounds = {specifier.operator: specifier.version for specifier in redis.specifier}
    oldest, newest = (
        re.search(rf"^    {factor}: redis(.*)$", TOX, re.MULTILINE)
        for factor in matrix("redis")
    )
    assert oldest is not None
    assert newest is not None
    assert oldest[1].startswith(f"=={bounds['>=']}.")
    assert newest[1].endswith(f",<{bounds['<']}")


def test_workflow_runs_what_a_machine_runs() -> None:
    """One job is the script itself, with every Python that is claimed."""
    job = WORKFLOW.partition("  everything:\n")[2].partition("\n\n")[0]
    assert "- run: bash .ci/run\n" in job + "\n"
    assert sorted(re.findall(r"^            (3\.\d+)$", job, re.MULTILINE)) == PYTHONS


def test_what_ci_uses_is_pinned() -> None:
    """Nobody who moves a tag gets in; Dependabot moves the pins."""
    used = re.findall(r"uses: (.*)", WORKFLOW)
    assert used
    assert not [
        name
        for name in used
        if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", name)
    ]
    assert "github-actions" in Path(ROOT, ".github/dependabot.yml").read_text()


def test_hooks_are_pinned() -> None:
    """Each to a release, and ruff to one that tox's environment may have, too."""
    revisions = dict(re.findall(r"repo: (https.*)\n    rev: v([\d.]+)\n", PRE_COMMIT))
    assert len(revisions) == PRE_COMMIT.count("repo: https")
    (ruff,) = [
        version
        for name, version in revisions.items()
        if name.endswith("ruff-pre-commit")
    ]
    (wanted,) = re.findall(r"^    (ruff>.*)$", TOX, re.MULTILINE)
    assert Requirement(wanted).specifier.contains(ruff)
