"""Which files of the project a file imports, from its syntax: an edit of any other one does not concern it.

Too many are no harm, since they are only looked at again. Imports no torch.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from trainlint.errors import LoadError
from trainlint.fixes.text import SourceText
from trainlint.overlay import version_of

# What imports by a name that the syntax does not show.
_OPEN_ENDED: Final = frozenset({"importlib", "__import__", "runpy", "exec", "path_hooks"})


Imported = tuple[int, Sequence[str]]


def imported_files(*filenames: str) -> frozenset[str] | None:
    """Real paths of the files and of all that they import, at any remove; None where that is not known."""
    starts = [Path(os.path.realpath(filename)) for filename in filenames]
    folders = list(dict.fromkeys(folder for start in starts for folder in start.parents))
    bases = (*folders, Path(os.path.realpath(Path.cwd())))
    found: set[str] = set()
    waiting = [*starts, *(folder / "__init__.py" for folder in folders)]
    while waiting:
        path = Path(os.path.realpath(waiting.pop()))
        if str(path) in found or not path.is_file():
            continue
        found.add(str(path))
        imported = _imports_of(str(path), version_of(str(path)))
        if imported is None:
            return None
        for names in imported:
            waiting += _candidates(names, path, bases)
    return frozenset(found)


def module_file(dotted: str) -> Path:
    """The file of a module, found without importing anything. Raises `LoadError`."""
    folders: Sequence[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    for part in dotted.split("."):
        spec = None if folders is None else PathFinder.find_spec(part, folders)
        if spec is None:
            raise LoadError(f"there is no module {dotted} here")
        locations = spec.submodule_search_locations
        folders = None if locations is None else list(locations)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise LoadError(f"{dotted} is no Python file")
    return Path(spec.origin)


@lru_cache(maxsize=4096)
def _imports_of(path: str, _version: object) -> tuple[Imported, ...] | None:
    """What one file imports, parsed once a version of it; None where an import is not written down."""
    text = SourceText.read(path)
    if text is None or text.tree is None:
        return ()
    imported = list(imports_in(text.tree))
    return None if None in imported else tuple(each for each in imported if each is not None)


def imports_in(tree: ast.Module) -> Iterator[Imported | None]:
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


def _candidates(imported: Imported, importer: Path, bases: Sequence[Path]) -> Iterator[Path]:
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
