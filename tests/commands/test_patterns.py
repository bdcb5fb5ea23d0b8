"""Patterns of keys: each cache's own, and nobody else's."""

from collections.abc import Callable
from typing import Any

import pytest

from django_entra_redis.commands.patterns import (
    Beginning,
    beginning_of,
    glob_escape,
    of_cache,
)
from tests.support.caches import Database


def default(name: str, version: Any, more: str) -> str:
    """Make keys as Django does, with the prefix "a"."""
    return f"a{more}:{version}:{name}"


def numbered(name: str, version: Any, more: str) -> str:
    """Make keys of versions that are integers."""
    return f"{version:03d}/{name}"


@pytest.mark.parametrize(
    ("make_key", "glob", "matching", "others"),
    [
        (
            default,
            "a:*:*",
            [
                b"a:1:",
                b"a:20:b:c",
                b"a:-3:\n\xff",
                b"a:1:2:3:4",
                b"a:beta:x",
                b"a:1.5:x",
                b"a::x",
                b"a:\xd9\xa1:x",
                # The cache's own version, whatever looks like a number in there.
                b"a:own:1:x",
            ],
            [
                b"b:1:x",
                b"a:1",
                # Caches whose prefix is longer.
                b"a:2fa:1:x",
                b"a:b:-2:",
                b"a::1:x",
                b"a:b:c:10:\n",
                b"ab:1:x",
            ],
        ),
        (
            lambda name, version, more: f"{version}/{name}/{version}",
            "*/*/*",
            [b"12/key/12", b"1//1", b"beta/key/beta", b"/key/"],
            [b"12/key/13", b"1/key/12", b"12/key/1"],
        ),
        (
            lambda name, version, more: f"{name}@{version}.a{more}",
            "*@*.a",
            [b"key@1.a", b"x@y@-7.a", b"key@beta.a"],
            [b"key@1.ab", b"key@beta.ab", b"key@1xa"],
        ),
        (numbered, "*/*", [b"001/x", b"-01/x", b"123456/x/y"], [b"001", b"x001"]),
        # A name twice; and no version in it at all.
        (lambda name, version, more: f"{name}|a{more}|{name}", "*|a|*", [b"x|a|x"], []),
        (
            lambda name, version, more: f"a.c{more}:{name}",
            "a.c:*",
            [b"a.c:x"],
            [b"abc:"],
        ),
    ],
)
def test_keys_of_a_cache(
    make_key: Callable[[str, Any, str], str],
    glob: str,
    matching: list[bytes],
    others: list[bytes],
) -> None:
    """They are its own in all versions, and none of a cache with a longer prefix."""
    pattern = of_cache(make_key, 1 if make_key is numbered else "own")
    assert pattern.glob == glob
    assert [key for key in matching if not pattern.regex.fullmatch(key)] == []
    assert [key for key in others if pattern.regex.fullmatch(key)] == []


def refusing(name: str, version: Any, more: str) -> str:
    """Know two versions by name."""
    return {1: "first", 2: "second"}[version] + name


@pytest.mark.parametrize(
    "make_key",
    [
        refusing,
        lambda name, version, more: str(hash((name, version, more))),
        lambda name, version, more: f"a:{version}:{hash(name)}",
        lambda name, version, more: f"a:{hash(version)}:{name}",
        lambda name, version, more: f"a:{version:x}:{name}",
        lambda name, version, more: f"a:{version}:{name[::-1]}",
        # One that hides a name if it is long, as memcached wants it.
        lambda name, version, more: f"a:{name}" if len(name) < 250 else "b:long",
        lambda name, version, more: f"a:{version}:{name}" if version != -1 else name,
        # One that leaves out the cache's own version.
        lambda name, version, more: (
            f"a:{name}" if version == 1 else f"a:{version}:{name}"
        ),
    ],
)
def test_keys_that_no_pattern_finds(make_key: Callable[[str, Any, str], str]) -> None:
    """It is told what the trouble is."""
    with pytest.raises(ValueError, match="KEY_FUNCTION hides names or versions"):
        of_cache(make_key, 1)


def test_escape() -> None:
    """What means something in a glob pattern means itself."""
    assert glob_escape("a*b?[c]\\^-d") == r"a\*b\?\[c\]\\\^\-d"


#: Keys that the patterns below tell from each other.
KEYS = [
    "",
    "a",
    "b",
    "ab",
    "a*b",
    "a?b",
    "[ab]",
    "a\\b",
    "a-b",
    "^",
    "a\nb",
    "é",
    "aéb",
]


@pytest.mark.parametrize(
    "glob",
    [
        *("", "*", "a*", "a?b", "a??b", "[ab]", "[^ab]", "[b-a]*", "a[*?]b", "a[^*]b"),
        *("?", r"a\*b", r"\a", r"a\\b", r"[\^]", "[^", "[a", "[]", "[^]", "[é]*"),
        r"a[a\-z]b",
    ],
)
def test_globs_as_redis_reads_them(database: Database, glob: str) -> None:
    """The keys that a pattern matches are among those that begin like it."""
    database.admin.flushall()
    database.admin.mset(dict.fromkeys(KEYS, "x"))
    try:
        found = {key.decode() for key in database.admin.keys(glob)}
    finally:
        database.admin.flushall()
    assert {key for key in KEYS if key in beginning_of(glob)} >= found


@pytest.mark.parametrize(
    ("glob", "text"),
    [
        *(("", ""), ("*", ""), ("a*b", "a"), ("a?b", "a"), ("a[b]", "a"), ("ab", "ab")),
        *(
            (r"a\*b*", "a*b"),
            (r"a\\b*", r"a\b"),
            (r"\[\^\n*", "[^n"),
            ("a\nb*", "a\nb"),
        ),
        *((f"a\\\n{'*' * 10_000}", "a\n"), ("a\\", "a")),
    ],
)
def test_beginnings(glob: str, text: str) -> None:
    """A pattern's text before its first wildcard, without escapes."""
    assert beginning_of(glob) == Beginning(text)
