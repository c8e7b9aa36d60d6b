"""Which files of the project a file imports, from its syntax: an edit of any other one does not concern it.

Too many are no harm, since they are only looked at again. Imports no torch.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from trainlint.fixes.source import SourceText

# What imports by a name that the syntax does not show.
_OPEN_ENDED: Final = frozenset({"importlib", "__import__", "runpy", "exec", "path_hooks"})


def imported_files(filename: str) -> frozenset[str] | None:
    """Real paths of the file and of what it imports, by way of others too; None where that is not known."""
    start = Path(os.path.realpath(filename))
    bases = (*start.parents, Path(os.path.realpath(Path.cwd())))
    found: set[str] = set()
    waiting = [start, *(folder / "__init__.py" for folder in start.parents)]
    while waiting:
        path = Path(os.path.realpath(waiting.pop()))
        if str(path) in found or not path.is_file():
            continue
        found.add(str(path))
        text = SourceText.read(str(path))
        if text is None or text.tree is None:
            continue
        for names in _imported(text.tree):
            if names is None:
                return None
            waiting += _candidates(names, path, bases)
    return frozenset(found)


def _imported(tree: ast.Module) -> Iterator[tuple[int, Sequence[str]] | None]:
    """(levels up, parts of the name) of each import; None for one that is not written down."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            yield from ((node.level, [*parts, alias.name]) for alias in node.names)
        elif _is_open_ended(node):
            yield None


def _is_open_ended(node: ast.AST) -> bool:
    """`importlib`, or `sys.path`."""
    if isinstance(node, ast.Attribute):
        return node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id == "sys"
    return isinstance(node, ast.Name) and node.id in _OPEN_ENDED


def _candidates(
    imported: tuple[int, Sequence[str]], importer: Path, bases: Sequence[Path]
) -> Iterator[Path]:
    """Where the module may lie, and the packages around it."""
    level, parts = imported
    starts = [importer.parents[level - 1]] if 0 < level <= len(importer.parents) else bases
    for base in starts:
        if level == 0 and not _holds(base, parts[0]):
            continue
        for count in range(len(parts) + 1):
            place = base.joinpath(*parts[:count])
            yield place / "__init__.py"
            if count:
                yield place.with_name(f"{place.name}.py")


def _holds(folder: Path, name: str) -> bool:
    return (folder / name).is_dir() or (folder / f"{name}.py").is_file()
