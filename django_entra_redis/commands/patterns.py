"""Patterns of keys: Redis' glob patterns, and what these can't say."""

import re
from dataclasses import dataclass

#: What stands for a key's name, and for a version, in a template of keys.
NAME = "\0name\0"
VERSION = "\0version\0"


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """The keys of a cache.

    Parameters:
        glob: a glob pattern, which matches them all, and maybe others.
        regex: what a key is to match as a whole, too, if anything.
    """

    glob: str
    regex: re.Pattern[bytes] | None = None


def of_all_versions(template: str, *, numbered: bool) -> KeyPattern:
    """Return the pattern of a cache's keys, of all names and versions.

    Parameters:
        template: a key with :data:`NAME` and :data:`VERSION` in their places.
        numbered: whether versions are integers. With "*" for them a cache with the
            prefix "a" would take the keys of one with "a:b" for its own, and a glob
            pattern can't say that something has digits alone.
    """
    glob = glob_escape(template).replace(NAME, "*")
    if not numbered:
        return KeyPattern(glob.replace(VERSION, "*"))
    first, *others = (
        re.escape(text).replace(re.escape(NAME), ".*")
        for text in template.split(VERSION)
    )
    # The same version in all places.
    numbers = [r"(-?[0-9]+)", *[r"\1"] * len(others)]
    parts = map("".join, zip(numbers, others, strict=False))
    regex = re.compile("".join([first, *parts]).encode(), re.DOTALL)
    return KeyPattern(glob.replace(VERSION, "[0-9-]*"), regex)


def glob_escape(text: str) -> str:
    """Return text for a glob pattern that matches just it."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)
