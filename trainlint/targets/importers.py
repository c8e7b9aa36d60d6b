"""Which files of a project import the given ones: the models that a changed building block is part of.

By text and syntax alone, nearest first, within bounds of time and number. A name that a package hands on
leads to the file that defines it, so that not all users of the package count. Imports no torch.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from trainlint.fixes.writing import is_root
from trainlint.targets.discovery import builds_models, is_searched, is_test_file, source_folders
from trainlint.targets.imports import Imported, imports_in

MOST: Final = 20
SECONDS: Final = 2.0
_PACKAGE: Final = "__init__.py"
_FROM_PACKAGE: Final = re.compile(r"\bfrom\s+\.+\s*import\b")
# Whole import statements, also over several lines: parsing nothing else takes a hundredth of the time.
_STATEMENTS: Final = re.compile(r"^[ \t]*(?:from|import)\b(?:\\\n|[^\n(]|\([^)]*\))*", re.MULTILINE)


@dataclass(frozen=True)
class Importers:
    """Files with models, as the user would type them here; whether there may be more of them."""

    files: Sequence[Path]
    is_cut: bool = False


def importers_of(
    files: Iterable[Path],
    is_wanted: Callable[[Path], bool],
    most: int = MOST,
    seconds: float = SECONDS,
) -> Importers:
    """The files that import one of these, at any remove, of those that are wanted.

    Only what may build models is asked about. What is given is not among them.
    """
    deadline = time.monotonic() + seconds
    given = {Path(os.path.realpath(file)) for file in files if builds_models(file)}
    given = {file for file in given if not is_test_file(file)}
    found: list[Path] = []
    for root, own in _by_project(given).items():
        for path in _Project(root, deadline).importers(own):
            if path not in given and is_wanted(path):
                if len(found) == most:
                    return Importers(found, is_cut=True)
                found.append(Path(os.path.relpath(path)))
    return Importers(found, is_cut=time.monotonic() > deadline)


def _by_project(files: Iterable[Path]) -> dict[Path, set[Path]]:
    projects: dict[Path, set[Path]] = {}
    for file in sorted(files):
        projects.setdefault(_root_of(file), set()).add(file)
    return projects


def _root_of(file: Path) -> Path:
    """The repository, else the project; the file's own folder where nothing marks either."""
    repository = next((each for each in file.parents if (each / ".git").exists()), None)
    return repository or next(filter(is_root, file.parents), file.parent)


class _Project:
    """The Python files below a folder, and who imports whom."""

    def __init__(self, root: Path, deadline: float) -> None:
        self._root = root
        self._deadline = deadline
        self._statements = dict(self._read())

    def _read(self) -> Iterator[tuple[Path, tuple[str, ...]]]:
        is_marked = is_root(self._root) or (self._root / ".git").exists()
        for folder in source_folders(self._root) if is_marked else iter([self._root]):
            for path in sorted(folder.glob("*.py")):
                if time.monotonic() > self._deadline:
                    return
                if is_searched(path.relative_to(self._root)):
                    found = _STATEMENTS.findall(_content(path))
                    yield Path(os.path.realpath(path)), tuple(found)

    def importers(self, files: set[Path]) -> Iterator[Path]:
        """All files that import these, those in one step first."""
        reached, level = set(files), set(files)
        while level:
            mention = _mention_of(level)
            following = set()
            for path in sorted(self._statements.keys() - reached):
                if time.monotonic() > self._deadline:
                    return
                if any(map(mention, self._statements[path])) and self._imports(path) & reached:
                    following.add(path)
            yield from sorted(following)
            reached |= following
            level = following

    def _imports(self, path: Path) -> frozenset[Path]:
        """The files of the project that it imports itself, or by a name that a package hands on."""
        imported = _parsed(self._statements[path])
        return frozenset(
            file for level, parts in imported for file in self._resolved(path, level, tuple(parts))
        )

    def _resolved(
        self,
        importer: Path,
        level: int,
        parts: tuple[str, ...],
        seen: frozenset[Path] = frozenset(),
    ) -> Iterator[Path]:
        for base in self._bases(importer, level):
            module = _module_at(base.joinpath(*parts))
            if module is not None:
                yield module
                return
            holder = _module_at(base.joinpath(*parts[:-1])) if parts[1:] or level else None
            if holder is not None:
                yield from self._definers(holder, parts[-1], seen)
                return

    def _definers(self, holder: Path, name: str, seen: frozenset[Path]) -> Iterator[Path]:
        """Where a name of a module comes from, if that is a package that only hands it on."""
        if holder.name != _PACKAGE or name == "*" or holder in seen:
            yield holder
            return
        found: list[Path] = []
        seen |= {holder}
        for level, parts in _parsed(self._statements.get(holder, ())):
            if parts[-1] == name:
                found += self._resolved(holder, level, tuple(parts), seen)
            elif parts[-1] == "*":
                starred = self._resolved(holder, level, tuple(parts[:-1]), seen)
                found += [file for file in starred if _pattern((name,)).search(_content(file))]
        yield from found or [holder]

    def _bases(self, importer: Path, level: int) -> Iterator[Path]:
        """The folders in which the import may begin, the likeliest first."""
        if level:
            yield from importer.parents[level - 1 : level]
            return
        inside = [folder for folder in importer.parents if folder.is_relative_to(self._root)]
        yield from dict.fromkeys((*inside, self._root / "src", Path(os.path.realpath(Path.cwd()))))


def _module_at(place: Path) -> Path | None:
    """The file of the module, or of the package, at this place."""
    places = [place / _PACKAGE]
    if place.name:
        places.append(place.with_name(f"{place.name}.py"))
    return next((Path(os.path.realpath(path)) for path in places if path.is_file()), None)


def _mention_of(files: Iterable[Path]) -> Callable[[str], bool]:
    """Whether an import may be of one of the files: it has the name of the module or of its package."""
    names = {path.parent.name if path.name == _PACKAGE else path.stem for path in files}
    words = _pattern(tuple(sorted(names)))
    is_package = any(path.name == _PACKAGE for path in files)
    return lambda text: (
        words.search(text) is not None or (is_package and _FROM_PACKAGE.search(text) is not None)
    )


@lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b")


@lru_cache(maxsize=4096)
def _parsed(statements: tuple[str, ...]) -> tuple[Imported, ...]:
    """What is imported; of a text that only looks like an import, such as one in a docstring, nothing."""
    found: list[Imported] = []
    for statement in statements:
        with contextlib.suppress(SyntaxError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(textwrap.dedent(statement))
            found += (each for each in imports_in(tree) if each is not None)
    return tuple(found)


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
