"""What the documentation says of the tests."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "explanation" / "promises.md"
PROMISES = PAGE.read_text(encoding="utf-8").partition("\n| promise ")[2]
HOLDERS = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", PROMISES)


def test_every_promise_is_held() -> None:
    """Each row of the table names who holds it."""
    rows = PROMISES.strip().splitlines()[2:]
    assert len(rows) > 10
    for row in rows:
        assert re.search(r"`[\w/]+\.py|`django_suite`", row.split(" | ")[-1]), row


@pytest.mark.parametrize(("module", "test"), HOLDERS)
def test_holder_is_there(module: str, test: str) -> None:
    """There is such a test."""
    source = (TESTS / module).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {test or 'test_'}", source, re.MULTILINE)
