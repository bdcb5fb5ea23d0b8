"""Write what pages repeat of the code: settings, options, failure codes, the soak.

``python docs/generate.py`` rewrites the parts of pages between their marks; a test
compares them with the code. Meanings come from the docstrings of ``types.py``, defaults
from the dataclasses, causes and remedies from ``diagnostics/advice.py``, figures from
``soak/results.md``.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from django_entra_redis import types  # noqa: E402 - the path is set above
from django_entra_redis.conf.identities import KEYS, Identity  # noqa: E402
from django_entra_redis.conf.options import (  # noqa: E402
    CacheOptions,
    ClientSideCaching,
    Stampede,
    parse_options,
)
from django_entra_redis.connections.defaults import with_defaults  # noqa: E402
from django_entra_redis.connections.pool import MAX_CONNECTIONS  # noqa: E402
from django_entra_redis.diagnostics.advice import ADVICE  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
LOCATION = "rediss://contoso.westeurope.redis.azure.net:10000"
#: Defaults that are no values, or that read better in words.
IN_WORDS = {
    "CREDENTIAL": "none",
    "TOKEN_FILE": "none",
    "USERNAME": "the token's `oid` claim",
    "compressor_fallbacks": "`[]`",
    "driver_info": "names Django",
    "lib_name": "names Django, before redis-py 7",
    "maint_notifications_config": "`MaintNotificationsConfig(enabled=False)`",
    "prefixes": "all keys",
    "retry": "3 retries",
    "serializer": "Django's, which is pickle",
    "socket_keepalive_options": "as below",
}


def members(name: str) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the type and the meaning of each key of a TypedDict."""
    (tree,) = (
        node
        for node in ast.parse(inspect.getsource(types)).body
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    for position, node in enumerate(tree.body):
        if isinstance(node, ast.AnnAssign):
            kind = ast.unparse(node.annotation).replace(" | None", "")
            match tree.body[position + 1 : position + 2]:
                case [ast.Expr(ast.Constant(str(text)))]:
                    words = " ".join(text.split()).replace("``", "`")
                    yield ast.unparse(node.target), kind, words
                case _:
                    raise SystemExit(f"{name}.{ast.unparse(node.target)}: no docstring")


def default(key: str, field: Field[Any] | None) -> str:
    """Return a key's default as the reference shows it."""
    if key in IN_WORDS:
        return IN_WORDS[key]
    if field is None or field.default in (MISSING, None):
        return "none"
    value = field.default
    return f"`{value!r}`" if not isinstance(value, str) else f'`"{value}"`'


def entry(key: str, kind: str, words: str, facts: list[str]) -> str:
    """Return the section about a key."""
    return f"### `{key}`\n\n{' '.join(facts)}\nType: `{kind}`.\n\n{words}\n\n"


def identity() -> Iterator[str]:
    """Yield the sections about the keys of an identity."""
    known = {one.name.upper(): one for one in fields(Identity)}
    for key, kind, words in members("IdentitySettings"):
        said = '`"environment"`' if key == "KIND" else default(key, known[key])
        facts = [f"Default: {said}."]
        declared = KEYS[key]
        if declared.variable:
            facts.append(f"Environment variable: `${declared.variable}`.")
        if declared.kinds:
            kinds = ", ".join(f"`{kind}`" for kind in sorted(declared.kinds))
            facts.append(f"Kinds: {kinds}.")
        yield entry(key, kind, words, facts)


def own_options() -> Iterator[str]:
    """Yield the sections about the options that the backend itself reads."""
    yield from sections("OwnOptions", CacheOptions)


def client_side_cache() -> Iterator[str]:
    """Yield the sections about the client-side cache."""
    yield from sections("ClientSideCacheSettings", ClientSideCaching)


def stampede() -> Iterator[str]:
    """Yield the sections about stampedes."""
    yield from sections("StampedeSettings", Stampede)


def sections(name: str, made: Any) -> Iterator[str]:
    """Yield the sections about the keys of a TypedDict, whose values a class takes."""
    known = {one.name: one for one in fields(made)}
    for key, kind, words in members(name):
        yield entry(key, kind, words, [f"Default: {default(key, known[key])}."])


def redis_py() -> Iterator[str]:
    """Yield the table of the options that go on to redis-py."""
    given = with_defaults(LOCATION, parse_options([LOCATION], {})).connection
    values = {**given, "max_connections": MAX_CONNECTIONS}
    yield "| option | default | meaning |\n|---|---|---|\n"
    for key, _, words in members("EntraRedisOptions"):
        said = f"`{values[key]!r}`" if key in values else "redis-py's"
        said = IN_WORDS.get(key, said)
        yield f"| `{key}` | {said} | {words} |\n"


def cache() -> Iterator[str]:
    """Yield the table of the keys of an entry of ``CACHES``."""
    yield "| key | meaning |\n|---|---|\n"
    for key, _, words in members("CacheSettings"):
        yield f"| `{key}` | {words} |\n"


def failure_codes() -> Iterator[str]:
    """Yield the sections about the codes, below the questions that the page has."""
    page = (REFERENCE / "failure-codes.md").read_text(encoding="utf-8")
    groups = re.findall(r"^(## .*)$|^### (.*)\n\nCode: `(\w+)`", page, re.MULTILINE)
    for group, question, code in groups:
        if group:
            yield f"{group}\n\n"
        elif code in ADVICE:
            advice = ADVICE[code]
            yield f"### {question}\n\nCode: `{code}`.\n\n{advice.cause}\n\n"
            yield f"**What to do.** {advice.cure}\n\n"


def soak() -> Iterator[str]:
    """Yield the table of faults: our figures, and the errors of the alternatives."""
    text = (ROOT / "soak" / "results.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    head, rows = rows[0], [row for row in rows[2:] if not row[0].startswith("---")]
    (ours, *others) = dict.fromkeys(row[1] for row in rows)
    cells = {(row[0], row[1]): row for row in rows}
    columns = [head[0], *head[2:8], *(f"errors: {name}" for name in others)]
    yield f"| {' | '.join(columns)} |\n|---|{'---:|' * 5}---|{'---:|' * len(others)}\n"
    for fault, name in cells:
        if name == ours:
            beside = (cells.get((fault, other), [""] * 3)[2] for other in others)
            figures = cells[fault, ours][2:8]
            yield f"| {' | '.join([fault, *figures, *beside])} |\n"


PARTS: Mapping[str, Callable[[], Iterator[str]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        cache,
        client_side_cache,
        failure_codes,
        identity,
        own_options,
        redis_py,
        soak,
        stampede,
    )
}


def generated(text: str) -> str:
    """Return a page with all that is between marks made anew."""
    return re.sub(
        r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)",
        lambda match: (
            f"{match[1]}\n{''.join(PARTS[match[2]]()).rstrip()}\n\n{match[3]}"
        ),
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Write the pages."""
    for file in sorted((ROOT / "docs").rglob("*.md")):
        text = file.read_text(encoding="utf-8")
        file.write_text(generated(text), encoding="utf-8")


if __name__ == "__main__":
    main()
