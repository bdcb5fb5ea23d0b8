"""The advice: what can go wrong, why, and what to do; here and in the documentation."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import django_entra_redis
from django_entra_redis.diagnostics.advice import ADVICE

PACKAGE = Path(django_entra_redis.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "failure-codes.md"
#: The tables that map something to a code.
TABLES = re.compile(r"_\w*CODES$")


def emitted(tree: ast.AST) -> Iterator[str]:
    """Yield the codes that a module's source names: as arguments, and in tables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "code":
            yield from constants(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "StepError":
            yield from constants(node.args[0])
        elif isinstance(node, ast.AnnAssign) and TABLES.match(ast.unparse(node.target)):
            assert isinstance(node.value, ast.Dict)
            for value in node.value.values:
                yield from constants(value)


def constants(node: ast.AST) -> Iterator[str]:
    """Yield the text in an expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def test_every_code_has_its_advice() -> None:
    """A code that is nowhere explained would be a riddle."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        found |= set(emitted(ast.parse(path.read_text(encoding="utf-8"))))
    assert len(found) > len(ADVICE) / 2
    assert found - ADVICE.keys() == set()


def test_no_advice_is_idle() -> None:
    """A code that nothing in the package names any more has no place in it."""
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
        if path.name != "advice.py"
    )
    assert {code for code in ADVICE if f'"{code}"' not in text} == set()


@pytest.mark.parametrize("code", ADVICE)
def test_form(code: str) -> None:
    """A cause and a cure, in sentences or a command, without trailing space."""
    advice = ADVICE[code]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)+|unexpected", code)
    assert advice.cause.endswith(".")
    assert advice.cure == advice.cure.strip()
    assert str(advice) == f"{advice.cause} {advice.cure}"


def test_page_has_a_question_for_each() -> None:
    """It asks once for each code, in the order of the steps."""
    text = PAGE.read_text(encoding="utf-8")
    questions = re.findall(r"^### (.+\?)\n\nCode: `(\w+)`\.$", text, re.MULTILINE)
    assert len(questions) == len(re.findall(r"^### ", text, re.MULTILINE))
    assert [code for _, code in questions] == list(ADVICE)
