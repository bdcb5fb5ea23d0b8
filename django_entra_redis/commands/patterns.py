"""Patterns of keys: Redis' glob patterns, and what these can't say."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

#: What stands for a key's name, for a version, and for more of a prefix, in a template
#: of keys.
NAME = "\0name\0"
VERSION = "\0version\0"
MORE = "\0more\0"
#: The same for versions where a KEY_FUNCTION takes integers alone.
_NUMBER = 7_403_271_905

#: Names and versions whose keys a cache's pattern has to match before it is believed.
_NAMES = ("", "name", "Another Name", "ключ", "x" * 300)
_VERSIONS = (0, 1, -1, 20, "beta")

#: Makes a key of a name, a version, and what comes after the cache's KEY_PREFIX.
MakeKey = Callable[[str, Any, str], str]


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """The keys of a cache.

    Parameters:
        glob: a glob pattern, which matches them all, and maybe others.
        regex: what a key is to match as a whole, too, if anything.
    """

    glob: str
    regex: re.Pattern[bytes] | None = None


def of_cache(make_key: MakeKey, version: Any) -> KeyPattern:
    """Return the pattern of a cache's keys, of all names and versions.

    A key of the version "b" may be one of another cache, whose prefix is longer by
    ":b". It is taken for that one's if what comes then reads as a version's number:
    of a number as version nobody doubts.

    Parameters:
        make_key: the cache's own way to make keys.
        version: the cache's own, whose keys are its own in any case.

    Raises:
        ValueError: the way in which keys are made leaves no pattern that finds all.
    """
    template, longer = _templates(make_key)
    # The same version in all places.
    forms = [
        _regex(template, r"-?[0-9]+", "number"),
        _regex(make_key(NAME, version, ""), "", "own"),
        f"{_unless(longer)}{_regex(template, '.+', 'any')}",
    ]
    regex = re.compile("|".join(forms).encode(), re.DOTALL)
    if not all(regex.fullmatch(key) for key in _samples(make_key, version)):
        raise _hidden()
    glob = glob_escape(template).replace(NAME, "*").replace(VERSION, "*")
    return KeyPattern(glob, regex)


def glob_escape(text: str) -> str:
    """Return text for a glob pattern that matches just it."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)


def _templates(make_key: MakeKey) -> tuple[str, str | None]:
    """Return a key with marks in the places of name and version, and the same with a
    longer prefix, if that shows."""
    for mark in (VERSION, _NUMBER):
        try:
            template, longer = (
                make_key(NAME, mark, more).replace(str(mark), VERSION)
                for more in ("", MORE)
            )
        except Exception:
            continue  # whatever a KEY_FUNCTION raises that takes integers alone
        return template, longer if MORE in longer else None
    raise _hidden()


def _regex(template: str, version: str, group: str) -> str:
    """Return a regular expression for a template of keys."""
    first, *others = (
        re.escape(text).replace(re.escape(NAME), ".*").replace(re.escape(MORE), ".+")
        for text in template.split(VERSION)
    )
    versions = [f"(?P<{group}>{version})", *[f"(?P={group})"] * len(others)]
    return first + "".join(
        found + text for found, text in zip(versions, others, strict=False)
    )


def _hidden() -> ValueError:
    return ValueError(
        "This cache's KEY_FUNCTION hides names or versions, so that clear() could not "
        "find all of its keys (OPTIONS['clear_by_scan']): both should go into a key as "
        "they are."
    )


def _unless(longer: str | None) -> str:
    if longer is None:
        return ""
    return rf"(?!{_regex(longer, r'-?[0-9]+', 'longer')}\Z)"


def _samples(make_key: MakeKey, version: Any) -> Iterator[bytes]:
    for name, shown in itertools.product(_NAMES, (version, *_VERSIONS)):
        try:
            key = make_key(name, shown, "")
        except Exception:
            continue  # A key that can't be made is not there.
        yield key.encode()
