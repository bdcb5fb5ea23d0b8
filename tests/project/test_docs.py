"""The README and ``docs/``: what they show runs, and what they name is there.

Blocks and tables are found by what is in them, wherever they stand.
"""

import copy
import doctest
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
from django.core.checks import run_checks
from django.core.management import get_commands, load_command_class
from django.dispatch import Signal
from django.test import override_settings
from django.urls import include, path

from django_entra_redis import exceptions
from django_entra_redis.credentials import provider as credentials
from django_entra_redis.signals import token_renewal_failed, token_renewed
from django_entra_redis.status import Status
from tests.support.commands import (
    ROOT,
    environment_exists,
    environments_in,
    python_modules_in,
)

from .test_house import PUBLIC

PAGES = {
    file: file.read_text(encoding="utf-8")
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
#: Where links to files of the repository begin that are no pages.
REPOSITORY = "https://github.com/django-entra-redis/django-entra-redis/blob/main/"
TEXT = "".join(PAGES.values())
SOURCE = "".join(
    file.read_text(encoding="utf-8")
    for file in (ROOT / "django_entra_redis").rglob("*.py")
)
LOCATION = "rediss://contoso.westeurope.redis.azure.net:10000"
#: Languages of blocks that nothing here could run.
SHOWN = {"{eval-rst}", "{toctree}", "text", "yaml", "dockerfile", "ini", "toml", "html"}
#: What a block of commands may begin with; how they are called is for others to say.
PROGRAMS = {
    *("az", "celery", "curl", "docker", "git", "gunicorn", "kubectl", "uvicorn"),
    *(
        "cd",
        "django-admin",
        "export",
        "for",
        "mkdir",
        "source",
        "sleep",
        "do",
        "done",
        "sudo",
    ),
}
#: Packages that examples import, and that need not be installed.
OTHERS = (
    "azure.monitor.opentelemetry",
    "django_entra_redis.opentelemetry",
    "fakeredis",
    "newrelic",
    "newrelic.agent",
    "opentelemetry",
    "opentelemetry.metrics",
    "prometheus_client",
)


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks() -> Iterator[tuple[str, str, str]]:
    """Yield the place, the language and the text of each block of code."""
    fence = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    for file, page in PAGES.items():
        for match in fence.finditer(page):
            line = page.count("\n", 0, match.start()) + 1
            text = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
            yield f"{file.parent.name}-{file.stem}-line-{line}", match[2], text


def blocks_in(language: str) -> list[Any]:
    """Return the blocks in a language, as parameters that name their places."""
    return [
        pytest.param(text, id=place)
        for place, found, text in blocks()
        if found == language
    ]


# -- Python


class FakeMeter:
    """Asks what it is to observe, once."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_observable_gauge(self, name: str, callbacks: Any, **kwargs: Any) -> None:
        """Call back."""
        for callback in callbacks:
            list(callback(None))


@pytest.fixture
def reader(
    monkeypatch: pytest.MonkeyPatch, receivers_kept: None
) -> Iterator[dict[str, Any]]:
    """Return the names that somebody who copies an example has at hand already."""
    for name in OTHERS:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    metrics = sys.modules["opentelemetry.metrics"]
    metrics.get_meter = FakeMeter  # type: ignore[attr-defined]
    for variable in ("CLIENT_ID", "TENANT_ID", "FEDERATED_TOKEN_FILE"):
        monkeypatch.setenv(f"AZURE_{variable}", "given")
    monkeypatch.setenv("REPORTS_SECRET", "given")
    monkeypatch.setenv("REDIS_URL", LOCATION)
    cache = {
        "BACKEND": "django_entra_redis.cache.EntraRedisCache",
        "LOCATION": LOCATION,
    }
    identity = {"CREDENTIAL": "given", "USERNAME": "tester"}
    with override_settings(ENTRA_REDIS={"default": identity}):
        yield {
            "CACHES": {"default": cache},
            "INSTALLED_APPS": [],
            "include": include,
            "path": path,
        }
        credentials.reset()


@pytest.mark.parametrize("code", blocks_in("python"))
def test_python_runs(code: str, reader: dict[str, Any]) -> None:
    """It runs as it stands, and the settings in it pass the system checks."""
    namespace = copy.copy(reader)
    exec(compile(code, "a page", "exec"), namespace)
    names = ("CACHES", "ENTRA_REDIS")
    found = {name: namespace[name] for name in names if name in namespace}
    with override_settings(**found):
        errors = [message for message in run_checks() if message.is_serious()]
    assert errors == []


@pytest.mark.parametrize("code", blocks_in("python"))
def test_receivers_take_what_is_sent(code: str, reader: dict[str, Any]) -> None:
    """Those that an example connects raise nothing."""
    exec(compile(code, "a page", "exec"), reader)
    now = datetime.now(UTC)
    status = Status("default", "credential", "oid", now, now, now, 1, 1, "down")
    sent: list[tuple[Signal, dict[str, str]]] = [
        (token_renewed, {}),
        (token_renewal_failed, {"error": "down"}),
    ]
    for signal, more in sent:
        answers = signal.send_robust(
            "default", identity="default", status=status, **more
        )
        assert [answer for _, answer in answers if isinstance(answer, Exception)] == []


# -- commands


def commands(text: str) -> list[list[str]]:
    """Return the commands in a block, each in its words, without comments."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("&;"):
                found.append(words)
                words = []
            else:
                words.append(word)
        found.append(words)
    return [words for words in found if words]


def options_of(words: list[str]) -> list[str]:
    """Return the options in a synopsis or a command: ``[--cache ALIAS]`` has one."""
    return re.findall(r"--[a-z-]+", " ".join(words))


def check_command(words: list[str]) -> str | None:
    """Return what is wrong with a command; ``None`` if nothing is."""
    if words[0] == "manage.py":
        applications = get_commands()
        if words[1] not in applications:
            return f"there is no command {words[1]}"
        command = load_command_class(applications[words[1]], words[1])
        known = command.create_parser("manage.py", words[1])._option_string_actions
        unknown = [name for name in options_of(words) if name not in known]
        return f"there is no {unknown}" if unknown else None
    if words[0].startswith("python") and words[1] == "-m":
        text = " ".join(words)
        if words[2] == "tox":
            names = environments_in(text)
            unknown = [name for name in names if not environment_exists(name)]
            return f"there is no {unknown}" if unknown else None
        if words[2] in ("pip", "venv"):
            return None
        there = python_modules_in(text) and find_spec(words[2])
        return None if there else f"there is no module {words[2]}"
    if words[0] in ("python", "python3") or "=" in words[0]:
        return check_command(words[1:])
    if words[0].startswith("rediss://") or words[0] in PROGRAMS:
        return None
    return f"{words[0]} is unknown"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("python manage.py entra_redis_check --json", None),
        ("manage.py entra_redis_check [--cache ALIAS]... [--watch]", None),
        ("manage.py check --deploy", None),
        ("manage.py check --no-such", "there is no"),
        ("manage.py entra_redis_look", "there is no"),
        ("python -m tox run -e demo -- --serve", None),
        ("python -m tox run -e lint", "there is no"),
        ("python -m pip install tox", None),
        ("NAME=value python manage.py entra_redis_check --json", None),
        ("python -m emulator --help", None),
        ("python -m testproject.nothing", "there is no"),
        ("rediss://contoso:10000/0", None),
        ("az webapp show  # what is there", None),
        ("rm -rf", "is unknown"),
    ],
)
def test_faults_are_found(line: str, fault: str | None) -> None:
    """The test below can fail."""
    (words,) = commands(line)
    found = check_command(words)
    assert found is None if fault is None else fault in str(found)


def test_lines_of_several_commands() -> None:
    """They are taken apart as a shell does it."""
    assert commands("a 'b c' && d \\\n  e; f # g\n") == [
        ["a", "b c"],
        ["d", "e"],
        ["f"],
    ]


@pytest.mark.parametrize("text", blocks_in("") + blocks_in("console"))
def test_commands_are_there(text: str) -> None:
    """They name what is there, with the options that it has."""
    found = commands(text)
    assert found
    assert [fault for words in found if (fault := check_command(words))] == []


def test_commands_in_the_text_are_there() -> None:
    """So do those within a sentence."""
    names = environments_in(TEXT)
    assert "demo" in names
    assert [name for name in names if not environment_exists(name)] == []
    modules = python_modules_in(TEXT)
    assert modules
    assert [name for name in modules if not find_spec(name)] == []
    inline = re.findall(r"`(?:python )?(manage\.py [^`]+)`", prose(TEXT))
    assert inline
    assert [fault for text in inline if (fault := check_command(text.split()))] == []


def test_every_block_is_looked_at() -> None:
    """A language that none of these tests knows may hold anything."""
    languages = {language for _, language, _ in blocks()}
    assert languages - SHOWN - {"python", "console", "json", ""} == set()
    assert not [
        text
        for _, language, text in blocks()
        if language == "json" and not json.loads(text)
    ]


# -- what is stated twice


def test_generated_pages() -> None:
    """They are what ``python docs/generate.py`` makes of the code."""
    generated = runpy.run_path(str(ROOT / "docs" / "generate.py"))["generated"]
    pages = [file for file in PAGES if "<!-- generated: " in PAGES[file]]
    assert len(pages) > 2
    assert [file.name for file in pages if generated(PAGES[file]) != PAGES[file]] == []


def test_system_checks() -> None:
    """The page has each, and no other."""
    page = PAGES[ROOT / "docs" / "reference" / "system-checks.md"]
    listed = re.findall(r"^\| `django_entra_redis\.([EW]\d{3})`", page, re.MULTILINE)
    assert sorted(listed) == sorted(set(re.findall(r'\b([EW]0\d\d)"', SOURCE)))


def test_errors() -> None:
    """The page has a heading for each, and names what of redis-py's it is."""
    page = PAGES[ROOT / "docs" / "reference" / "errors.md"]
    parts = re.split(r"^## `(\w+)`$", page, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(found) == set(exceptions.__all__)
    for name, text in found.items():
        bases = {
            base.__name__
            for base in getattr(exceptions, name).__bases__
            if base.__module__ != "django_entra_redis._errors"
        }
        assert [base for base in bases if f"`{base}`" not in text] == []


# -- docstrings


def test_docstrings_examples() -> None:
    """What they show is what comes out."""
    shown = 0
    for name in PUBLIC:
        module, _, attribute = name.rpartition(".")
        public = getattr(import_module(module), attribute)
        finder = doctest.DocTestFinder(recurse=False)
        scope = vars(import_module(getattr(public, "__module__", module)))
        for test in finder.find(public, name, globs=dict(scope)):
            result = doctest.DocTestRunner().run(test)
            assert result.failed == 0, name
            shown += result.attempted
    assert shown > 5


# -- what is found

#: What people ask, as the words that they search for, and the page that answers.
QUESTIONS = {
    "user-assigned identity app service": "how-to/app-service.md",
    "uncertainresulterror": "how-to/incidents.md",
    "run tests without azure": "how-to/development.md",
    "wrongpass": "how-to/incidents.md",
    "move from django-redis": "how-to/migrate-django-redis.md",
    "celery entra id": "how-to/celery.md",
    "aks workload identity": "how-to/aks.md",
    "certificate verify failed": "how-to/incidents.md",
    "which policy": "how-to/cluster.md",
    "health probes": "how-to/monitoring.md",
    "pool_timeout": "reference/options.md",
    "aadsts7000215": "reference/failure-codes.md",
    "repeated": "explanation/repeats.md",
    "worker loses broker": "how-to/celery.md",
    "moved": "how-to/incidents.md",
    "sessions": "how-to/sessions.md",
    "spans twice": "how-to/observability.md",
    "prometheus": "how-to/monitoring.md",
}


@pytest.mark.parametrize("words", QUESTIONS)
def test_headings_answer_questions(words: str) -> None:
    """Few pages have a heading with the words; the one that answers is among them."""
    found = {
        file.relative_to(ROOT / "docs").as_posix()
        for file, page in PAGES.items()
        if file.name != "README.md"
        and any(
            all(word in heading.lower() for word in words.split())
            for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
        )
    }
    assert QUESTIONS[words] in found
    assert len(found) < 4


def test_readme_is_an_overview() -> None:
    """A newcomer reads it in one go."""
    assert len(PAGES[ROOT / "README.md"].splitlines()) <= 200


def test_every_page_is_listed() -> None:
    """Each is in the contents of its folder, or of the site."""
    for file in PAGES:
        if file.name not in ("README.md", "index.md"):
            contents = PAGES[file.parent / "index.md"]
            contents += PAGES[ROOT / "docs" / "project.md"]
            assert f"({file.name})" in contents, file


# -- names


def anchors(file: Path) -> set[str]:
    """Return what a link to a page may end in: GitHub's names of its headings."""
    titles = re.findall(r"^#+ (.*)$", prose(PAGES[file]), re.MULTILINE)
    names = [re.sub(r"[^\w -]", "", title.lower()) for title in titles]
    return {"", *(name.replace(" ", "-") for name in names)}


@pytest.mark.parametrize(
    "file", PAGES, ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_links_lead_somewhere(file: Path) -> None:
    """To a heading, or to a file of the repository."""
    text = prose(PAGES[file]).replace(REPOSITORY, f"{ROOT}/")
    for name, anchor in re.findall(r"\]\((?!https://)([^)\s#]*)#?([^)\s]*)\)", text):
        target = (file.parent / name).resolve() if name else file
        assert target.is_file(), name
        assert anchor in (anchors(target) if target in PAGES else [""]), anchor


def test_files_are_there() -> None:
    """What holds a promise, and what is there to be read, exists."""
    named = re.findall(r"`((?:tests|benchmarks|testproject|docs)/[\w./-]+)`", TEXT)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def missing(name: str) -> bool:
    """Whether a dotted path within the package leads nowhere."""
    module: ModuleType | None = None
    parts = name.split(".")
    for number in range(1, len(parts) + 1):
        try:
            module = import_module(".".join(parts[:number]))
        except ModuleNotFoundError:
            rest = parts[number - 1 :]
            return len(rest) > 1 or not hasattr(module, rest[0])
    return False


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("django_entra_redis.cache.EntraRedisCache", False),
        ("django_entra_redis.urls", False),
        ("django_entra_redis.cache.Nothing", True),
        ("django_entra_redis.nothing.EntraRedisCache", True),
    ],
)
def test_missing_names_are_found(name: str, expected: bool) -> None:
    """The test below can fail."""
    assert missing(name) == expected


def test_dotted_paths_lead_somewhere() -> None:
    """Modules, classes and functions are there; so are the checks and the extras."""
    names = set(re.findall(r"\bdjango_entra_redis(?:\.[A-Za-z_]\w*)+", TEXT))
    checks = {name for name in names if re.search(r"\.[EW]\d{3}$", name)}
    # These need packages of somebody else's.
    names -= checks | {
        "django_entra_redis.contrib.admin.admin",
        "django_entra_redis.health_check.EntraRedis",
        "django_entra_redis.opentelemetry",
        "django_entra_redis.opentelemetry.EntraRedisInstrumentor",
    }
    assert len(names) > 5
    assert [name for name in sorted(names) if missing(name)] == []
    ids = set(re.findall(r"\b[EW]0\d\d\b", TEXT))
    assert not [number for number in ids if f'{number}"' not in SOURCE]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"django-entra-redis\[([\w-]+)\]", TEXT))
    assert extras
    assert extras <= project["optional-dependencies"].keys()
