"""What is installed and what would be uploaded.

Those marked ``package`` build sdist and wheel and use them in an empty environment;
``tox -e package`` runs them. The others look at the package as it is installed here.
"""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import django_entra_redis

ROOT = Path(__file__).parents[2]
NAME = "django-entra-redis"

#: When the release was, as SOURCE_DATE_EPOCH says it: an even second, for the wheel.
EPOCH = 1_767_225_600
#: What an sdist holds at its top, beside what is made for it.
TOP = {
    ".ci",
    ".github",
    ".pre-commit-config.yaml",
    ".readthedocs.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "benchmarks",
    "django_entra_redis",
    "docs",
    "emulator",
    "pyproject.toml",
    "soak",
    "testproject",
    "tests",
    "tox.ini",
}
#: Tests that read files of the checkout, in a few seconds.
READING = [
    "tests/diagnostics/test_advice.py",
    "tests/project/test_contributing.py",
    "tests/project/test_docs.py",
    "tests/project/test_house.py",
    "tests/project/test_packaging.py",
]

SETTINGS = """
INSTALLED_APPS += ["django_entra_redis"]
CACHES = {
    "default": {
        "BACKEND": "django_entra_redis.cache.EntraRedisCache",
        "LOCATION": "rediss://contoso.westeurope.redis.azure.net:10000",
    }
}
"""


def project() -> dict[str, Any]:
    """Return the ``[project]`` table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())[
        "project"
    ]
    return table


@pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="needs tox's wheel")
def test_the_wheel_is_what_is_tested() -> None:
    """Under tox the tests import the package from the wheel, not from the checkout."""
    location = Path(django_entra_redis.__file__)
    assert location.parent.parent.name == "site-packages"


def test_version_has_one_source() -> None:
    """The distribution's version is the module's, and written down nowhere else."""
    version = django_entra_redis.__version__
    assert metadata.version(NAME) == version
    assert "version" in project()["dynamic"]
    assert version not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_readme_is_the_long_description() -> None:
    """An index shows the README, whose links lead to the repository from there."""
    message = metadata.metadata(NAME)
    assert message["Description-Content-Type"] == "text/markdown"
    description = str(message.json["description"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    base = f"{project()['urls']['Repository']}/blob/v{django_entra_redis.__version__}"
    images = base.replace("/blob/", "/raw/")
    assert f"]({base}/docs/reference/index.md)" in description
    assert f"]({images}/docs/how-it-works.svg)" in description
    assert re.findall(r"\]\((?!https?://|#)", description) == []
    relative = description.replace(f"{base}/", "").replace(f"{images}/", "")
    assert relative.strip() == readme.strip()


def test_metadata() -> None:
    """Licence, Python, dependencies and extras arrive as pyproject.toml says them."""
    message = metadata.metadata(NAME)
    assert message["Name"] == NAME
    assert message["Summary"] == project()["description"]
    assert message["License-File"] == "LICENSE"
    assert message["License-Expression"] == "MIT"
    assert message["Requires-Python"] == ">=3.11"
    requirements = metadata.requires(NAME)
    assert requirements is not None
    plain = {r.split(";")[0].strip() for r in requirements if "extra ==" not in r}
    assert plain == {"django>=5.2", "msal>=1.33", "redis<9,>=5.3"}
    assert set(message.get_all("Provides-Extra", [])) == {
        "azure-identity",
        "hiredis",
        "lz4",
        "msgpack",
        "opentelemetry",
        "ormsgpack",
        "zstd",
    }


def test_urls() -> None:
    """An index links to the repository, and to what is in it."""
    urls = dict(
        url.split(", ") for url in metadata.metadata(NAME).get_all("Project-URL", [])
    )
    assert urls == project()["urls"]
    assert urls["Repository"] == f"https://github.com/{NAME}/{NAME}"
    assert all(url.startswith(urls["Repository"]) for url in urls.values())
    assert (ROOT / urls["Changelog"].rpartition("/")[2]).is_file()


def test_classifiers_name_what_is_tested() -> None:
    """Each Python and Django that is claimed is one that tox runs, and the reverse."""
    classifiers = project()["classifiers"]
    tox = (ROOT / "tox.ini").read_text()
    environments = tox.partition("env_list =")[2].partition("skip_missing")[0]
    for claim, factor in (
        ("Programming Language :: Python :: 3.", "py3"),
        ("Framework :: Django :: ", "django"),
    ):
        claimed = {
            factor + name.removeprefix(claim).replace(".", "")
            for name in classifiers
            if name.startswith(claim)
        }
        tested = {
            part
            for environment in environments.split()
            for part in environment.split("-")
            if part.startswith(factor)
        }
        assert claimed == tested


def run(*command: object, directory: Path, **environment: str) -> str:
    """Run a command as a user would and return what it printed."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=directory,
        env={
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("COVERAGE_", "DJANGO_", "PYTHON"))
        }
        | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def build(source: Path, folder: Path) -> None:
    """Build the sdist, and the wheel from it, as an upload does."""
    run(
        *(sys.executable, "-m", "build", "--outdir", folder, source),
        directory=folder,
        SOURCE_DATE_EPOCH=str(EPOCH),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with what was built of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the sdist unpacks to, in another place."""
    (path,) = built.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """Return the one wheel."""
    (path,) = built.glob("*.whl")
    return path


@pytest.mark.package
def test_wheel_contents(wheel: Path) -> None:
    """The wheel holds every module of the package, its types and its licence only."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    version = django_entra_redis.__version__
    extra = f"django_entra_redis-{version}.dist-info/"
    files = {name for name in names if not name.startswith(extra)}
    source = ROOT / "django_entra_redis"
    assert files == {
        path.relative_to(ROOT).as_posix()
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert "django_entra_redis/py.typed" in files
    assert "django_entra_redis/management/commands/entra_redis_check.py" in files
    assert f"{extra}licenses/LICENSE" in names


@pytest.mark.package
def test_sdist_contents(built: Path) -> None:
    """The sdist holds what is needed to run the tests, and nothing by accident."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    expected = {
        path.relative_to(ROOT).as_posix()
        for top in TOP
        for path in [ROOT / top, *(ROOT / top).rglob("*")]
        if path.is_file()
        if "__pycache__" not in path.parts and path.suffix != ".sqlite3"
    }
    assert names - {".gitignore", "PKG-INFO"} == expected
    assert {member.mtime for member in members} == {EPOCH}


@pytest.mark.package
def test_builds_are_reproducible(built: Path, unpacked: Path, tmp_path: Path) -> None:
    """Whoever builds the sdist again gets the very same files, bit by bit."""
    for path in unpacked.rglob("*"):
        os.utime(path)
    build(unpacked, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in built.iterdir()
    }
    assert len(list(built.iterdir())) == 2


@pytest.mark.package
def test_tests_run_from_the_sdist(unpacked: Path) -> None:
    """Nothing that the tests read of the checkout is missing."""
    code = (
        "import sys, pytest; sys.path.insert(0, '.'); "
        "sys.exit(pytest.main(['-q', '-m', 'not package', '-k', 'not is_what_is_tested'"
        ", *sys.argv[1:]]))"
    )
    output = run(sys.executable, "-c", code, *READING, directory=unpacked)
    assert " passed" in output


@pytest.mark.package
def test_wheel_metadata_is_accepted(wheel: Path) -> None:
    """The wheel's metadata are those of the distribution that is installed here."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        message: Message = Parser().parsestr(archive.read(name).decode())
    assert message["Name"] == NAME
    assert message["Version"] == metadata.version(NAME)


@pytest.mark.package
def test_first_use_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """With only the wheel and its dependencies, ``manage.py check`` finds no fault."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, directory=tmp_path)

    run(
        python.with_name("django-admin"),
        "startproject",
        "site_of_a_user",
        directory=tmp_path,
    )
    site = tmp_path / "site_of_a_user"
    with (site / "site_of_a_user" / "settings.py").open("a") as settings:
        settings.write(SETTINGS)
    for module in ("cache", "credentials", "signals", "types"):
        run(python, "-c", f"import django_entra_redis.{module}", directory=tmp_path)
    output = run(python, "-W", "error", "manage.py", "check", directory=site)
    assert output == "System check identified no issues (0 silenced).\n"
    assert "entra_redis_check" in run(python, "manage.py", "help", directory=site)
