"""Patterns of keys: each cache's own, and nobody else's."""

import re

import pytest

from django_entra_redis.commands.patterns import (
    NAME,
    VERSION,
    glob_escape,
    of_all_versions,
)


@pytest.mark.parametrize(
    ("template", "glob", "matching", "others"),
    [
        (
            f"a:{VERSION}:{NAME}",
            "a:[0-9-]*:*",
            [b"a:1:", b"a:20:b:c", b"a:-3:\n\xff"],
            [b"a:2fa:1:x", b"a::x", b"a:1", b"b:1:x", b"a:\xd9\xa1:x", b"a:1.5:x"],
        ),
        (
            f"{VERSION}/{NAME}/{VERSION}",
            "[0-9-]*/*/[0-9-]*",
            [b"12/key/12", b"1//1"],
            [b"12/key/13", b"1/key/12", b"12/key/1"],
        ),
        # No version in it at all.
        (f"a.c:{NAME}", "a.c:*", [b"a.c:x"], [b"abc:x"]),
    ],
)
def test_numbered_versions(
    template: str, glob: str, matching: list[bytes], others: list[bytes]
) -> None:
    """A version is an integer, and the same wherever it stands."""
    pattern = of_all_versions(template, numbered=True)
    assert pattern.glob == glob
    assert isinstance(pattern.regex, re.Pattern)
    assert all(map(pattern.regex.fullmatch, matching))
    assert not any(map(pattern.regex.fullmatch, others))


def test_versions_that_are_no_numbers() -> None:
    """Of these nothing is known."""
    pattern = of_all_versions(f"a:{VERSION}:{NAME}", numbered=False)
    assert (pattern.glob, pattern.regex) == ("a:*:*", None)


def test_escape() -> None:
    """What means something in a glob pattern means itself."""
    assert glob_escape("a*b?[c]\\^-d") == r"a\*b\?\[c\]\\\^\-d"
