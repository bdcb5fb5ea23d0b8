"""The commands that the documentation names: whether they are there."""

import itertools
import re
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[2]

_TOX = RawConfigParser()
_TOX.read(ROOT / "tox.ini", encoding="utf-8")


def expand(name: str) -> Iterator[str]:
    """Yield the names that one with braces stands for: ``py31{1,2}`` is two."""
    parts = re.split(r"\{([^}]*)\}", name)
    for chosen in itertools.product(*(part.split(",") for part in parts[1::2])):
        yield "".join(
            text + choice
            for text, choice in itertools.zip_longest(parts[::2], chosen, fillvalue="")
        )


def env_list() -> list[str]:
    """Return the environments that ``tox run`` runs."""
    return _TOX["tox"]["env_list"].split()


def environment_exists(name: str) -> bool:
    """Whether tox.ini means something by an environment, and by each of its factors."""
    sections = {
        environment
        for section in _TOX.sections()
        if section.startswith("testenv:")
        for environment in expand(section.removeprefix("testenv:"))
    }
    settings = _TOX["testenv"]["deps"] + _TOX["testenv"]["commands"]
    conditions = re.findall(r"^(\w+): ", settings, re.MULTILINE)
    python, *others = name.split("-")
    combined = re.fullmatch(r"py31\d", python) and set(others) <= set(conditions)
    return name in sections or bool(combined and others)


def environments_in(text: str) -> list[str]:
    """Return the environments that the tox commands in a text name."""
    return re.findall(r"tox (?:run|exec) -e ([\w-]+)", text)


def python_modules_in(text: str) -> list[str]:
    """Return the modules of the checkout that the commands in a text run."""
    pattern = r"python -m ((?:testproject|benchmarks|emulator|soak|tests)[\w.]*)"
    return re.findall(pattern, text)


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables in a Markdown text, each as rows of cells, the header first."""
    found = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|[ :|-]+\|", line):
            rows = itertools.takewhile(
                lambda row: row.startswith("|"),
                [lines[number - 1], *lines[number + 1 :]],
            )
            found.append(
                [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
            )
    return found


def table(text: str, heading: str) -> list[list[str]]:
    """Return the rows of the one table whose first column is headed so."""
    (found,) = [table[1:] for table in tables(text) if table[0][0] == heading]
    return found
