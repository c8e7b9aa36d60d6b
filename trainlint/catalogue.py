"""The installed rules as their files declare them, read without importing any: a list within milliseconds.

For what cannot wait, such as the Tab key. A rule that is declared in another way than by `@rule("CODE"`
above a function with a docstring is not seen here; `trainlint.registry` has all of them.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

ENTRY_POINT_GROUP: Final = "trainlint.rules"
_RULE: Final = re.compile(
    r"""^@rule\(\s*["'](?P<code>\w+)["'].*?
    ^def[ ](?P<name>\w+)\(.*?
    ^[ ]+[rR]?\"\"\"(?P<summary>.*?)(?:\n|\"\"\")""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


@dataclass(frozen=True, order=True)
class Entry:
    """What names a rule, and the first line of its documentation."""

    code: str
    name: str
    family: str
    summary: str


def declared_rules() -> list[Entry]:
    """The rules of every installed pack, by code; of a pack that is not found, none."""
    return sorted({entry for folder in _packs() for entry in _declared_in(folder)})


def undeclared(selectors: Iterable[str]) -> list[str]:
    """Those that are no declared rule's code, beginning of one, name or family: misspelt, it seems."""
    entries = declared_rules()
    names = {"ALL", *(name for entry in entries for name in (entry.name, entry.family))}
    codes = tuple(entry.code for entry in entries)
    return [
        each
        for each in selectors
        if each not in names and not (each and any(code.startswith(each) for code in codes))
    ]


def _packs() -> Iterator[Path]:
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            spec = importlib.util.find_spec(entry_point.module)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.submodule_search_locations:
            yield from map(Path, spec.submodule_search_locations)
        elif spec is not None and spec.origin is not None:
            yield Path(spec.origin)


def _declared_in(place: Path) -> Iterator[Entry]:
    for path in place.rglob("*.py") if place.is_dir() else [place]:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for found in _RULE.finditer(text):
            name = found["name"].replace("_", "-")
            yield Entry(found["code"], name, path.parent.name, found["summary"].strip())
