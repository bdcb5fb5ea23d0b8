"""Patterns that match a cache's keys: Redis' glob patterns, with a regex to filter."""

import itertools
import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

#: Placeholders in a template of keys, for the name, the version, and more of a prefix.
NAME = "\0name\0"
VERSION = "\0version\0"
MORE = "\0more\0"
#: The placeholder for a version where a KEY_FUNCTION takes integers only.
_NUMBER = 7_403_271_905

#: The beginning of a glob pattern in which each byte stands for itself.
_PLAIN = re.compile(r"(?:\\.|[^*?[\\])*", re.DOTALL)
#: The versions of the keys beside a value that ``get_or_set()`` has computed.
_BESIDE = "stampede-(?:cost|lock):(?:-?[0-9]+|{own})"

#: Names and versions by which a cache's pattern is tested: it must match their keys.
_NAMES = ("", "name", "Another Name", "ключ", "x" * 300)
_VERSIONS = (0, 1, -1, 20, "beta", "")

#: Makes a key of a name, a version, and text to append to the cache's KEY_PREFIX.
MakeKey = Callable[[str, Any, str], str]


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """The keys of a cache.

    Parameters:
        glob: a glob pattern, which matches all of them, and maybe other keys.
        regex: matches the keys that are certainly this cache's.
        form: matches all keys that the cache can make: another cache with a longer
            prefix may have made some of them.
        others: the regular expressions of the other caches that are known.
    """

    glob: str
    regex: re.Pattern[bytes]
    form: re.Pattern[bytes]
    others: Sequence[re.Pattern[bytes]] = ()

    def doubts(self, key: bytes) -> bool:
        """Whether a key may be this cache's or that of a cache which is not known."""
        if self.regex.fullmatch(key) or not self.form.fullmatch(key):
            return False
        return not any(other.fullmatch(key) for other in self.others)


class Choice:
    """The choice of the keys in Redis that are certainly a cache's.

    Parameters:
        pattern: the pattern of the cache's keys.
    """

    def __init__(self, pattern: KeyPattern) -> None:
        self._pattern = pattern
        #: One of the keys of which that can't be told.
        self._doubtful: bytes | None = None

    def takes(self, key: bytes) -> bool:
        """Return whether a key is the cache's."""
        if self._pattern.regex.fullmatch(key):
            return True
        if self._doubtful is None and self._pattern.doubts(key):
            self._doubtful = key
        return False

    def check(self) -> None:
        """Tell of keys that were left although they may be the cache's.

        Raises:
            ValueError: there are some.
        """
        if self._doubtful is not None:
            raise ValueError(
                f"clear() has left keys such as {self._doubtful!r}: this cache can "
                "make them, with a version that is not a number, and so can a cache "
                "with a longer KEY_PREFIX. An entry of that cache in CACHES, with the "
                "same LOCATION, tells that they are not this cache's."
            )


@dataclass(frozen=True, slots=True)
class Beginning(Container[str]):
    """The keys that begin with a text."""

    text: str

    def __contains__(self, key: object) -> bool:
        return str(key).startswith(self.text)


def of_cache(make_key: MakeKey, version: Any) -> KeyPattern:
    """Return the pattern of a cache's keys, with all names and versions.

    A key with the version "b" may also belong to another cache, whose prefix is longer
    by ":b". It counts as that cache's key if a number follows, which is that cache's
    version. A key whose own version is a number always counts as this cache's, as do
    the keys that it has beside those of ``get_or_set()``.

    Parameters:
        make_key: makes the cache's keys.
        version: the cache's own version, whose keys always count as its own.

    Raises:
        ValueError: no pattern can match all keys that the cache makes.
    """
    template, longer = _templates(make_key)
    # A version that occurs several times in a key is the same each time.
    forms = [
        _regex(template, r"-?[0-9]+", "number"),
        _regex(make_key(NAME, version, ""), "", "own"),
        _regex(template, _BESIDE.format(own=re.escape(str(version))), "beside"),
        f"{_unless(longer)}{_regex(template, '.*', 'any')}",
    ]
    regex = re.compile("|".join(forms).encode(), re.DOTALL)
    # Redis finds keys by the glob pattern, before the regular expression sees them.
    found = re.compile(_regex(template, ".*", "any").encode(), re.DOTALL)
    for key in _samples(make_key, version):
        if not (found.fullmatch(key) and regex.fullmatch(key)):
            raise _hidden()
    glob = glob_escape(template).replace(NAME, "*").replace(VERSION, "*")
    return KeyPattern(glob, regex, found)


def glob_escape(text: str) -> str:
    """Return a glob pattern that matches a text and nothing else."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)


def beginning_of(glob: str) -> Beginning:
    """Return the keys that may match a glob pattern of Redis, by how they begin.

    Whether they do is not told: where a pattern has many stars, that takes very long.
    """
    plain = _PLAIN.match(glob)
    assert plain is not None
    return Beginning(re.sub(r"\\(.)", r"\1", plain[0], flags=re.DOTALL))


def _templates(make_key: MakeKey) -> tuple[str, str | None]:
    """Return a key with placeholders for name and version, and one of a longer prefix.

    The second is ``None`` if the prefix does not occur in keys.
    """
    for mark in (VERSION, _NUMBER):
        try:
            template, longer = (
                make_key(NAME, mark, more).replace(str(mark), VERSION)
                for more in ("", MORE)
            )
        except Exception:
            continue  # any error of a KEY_FUNCTION that takes integers only
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
            continue  # A key that can't be made does not exist in Redis.
        yield key.encode()
