"""Which files a check of some targets depends on, by syntax alone, and what they hold. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainlint.errors import LoadError
from trainlint.fixes.writing import is_root, root_of
from trainlint.targets.discovery import source_folders
from trainlint.targets.imports import imported_files, module_file

_CONFIGURATION: Final = "pyproject.toml"


@dataclass(frozen=True)
class Scope:
    """Real paths of the files, and the folders in which one may change, appear or vanish."""

    files: frozenset[str]
    folders: frozenset[str]


def scope_of(targets: Sequence[str], config: Path | None) -> Scope:
    """The files of the targets, what these import from the project, and the configuration.

    Where it is not written down what a file imports, all Python files of its project.
    """
    files = {str(_configuration(config))}
    folders: set[str] = set()
    starts: list[str] = []
    for target in targets:
        path = _path_of(target)
        if path is None:
            continue
        if path.is_dir():
            below, around = _below(source_folders(path))
            starts += below
            folders |= around
        else:
            starts.append(str(path))
    imported = imported_files(*starts)
    if imported is None:
        imported, around = _below(
            place for root in {root_of(Path(start)) for start in starts} for place in _project(root)
        )
        folders |= around
    files |= {os.path.realpath(start) for start in starts} | imported
    return Scope(frozenset(files), frozenset(folders | {str(Path(file).parent) for file in files}))


def _path_of(target: str) -> Path | None:
    path = Path(target.partition("::")[0])
    if not path.exists() and ":" in target and not target.endswith(".py") and "::" not in target:
        with contextlib.suppress(LoadError):
            return module_file(target.partition(":")[0])
        return None
    return path


def _configuration(config: Path | None) -> Path:
    """The file that is read for settings, or that would be."""
    if config is not None:
        return Path(os.path.realpath(config))
    here = Path(os.path.realpath(Path.cwd()))
    places = [folder / _CONFIGURATION for folder in (here, *here.parents)]
    return next((place for place in places if place.is_file()), places[0])


def _project(root: Path) -> Iterator[Path]:
    """Its folders; one that nothing marks as a project may hold all that somebody owns: itself alone."""
    return source_folders(root) if is_root(root) else iter([root])


def _below(folders: Iterable[Path]) -> tuple[frozenset[str], frozenset[str]]:
    """The Python files in these folders, and the folders, by their real paths."""
    places = frozenset(os.path.realpath(folder) for folder in folders)
    files = (path for place in places for path in Path(place).glob("*.py"))
    return frozenset(map(os.path.realpath, files)), places


class Contents:
    """What files hold, as digests; read anew only where size, time or place on the disk are others."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int, int], bytes]] = {}

    def of(self, files: Iterable[str]) -> dict[str, bytes | None]:
        """A digest for each file, None for one that is not there."""
        return {file: self._digest(file) for file in files}

    def _digest(self, file: str) -> bytes | None:
        try:
            status = Path(file).stat()
            signature = status.st_ino, status.st_mtime_ns, status.st_size
            known = self._known.get(file)
            if known is None or known[0] != signature:
                digest = hashlib.blake2b(Path(file).read_bytes(), digest_size=16).digest()
                self._known[file] = known = signature, digest
        except OSError:
            return None
        return known[1]


def differing(
    before: Mapping[str, bytes | None], now: Mapping[str, bytes | None]
) -> frozenset[str]:
    """The files that changed, vanished or appeared; not those that only nobody imports any more."""
    shared = before.keys() & now.keys()
    changed = {file for file in shared if before[file] != now[file]}
    gone = {file for file in before.keys() - shared if not Path(file).exists()}
    return frozenset(changed | gone | (now.keys() - shared))
