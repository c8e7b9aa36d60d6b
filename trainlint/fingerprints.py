"""Names of findings that survive edits of the file: what a baseline and a code host know them by.

A finding is named by its rule, its file, the function or class that it lies in, and its ordinal among the
findings of that rule there: no line numbers and no text. Imports no torch.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from trainlint.fixes.source import SourceText
from trainlint.overlay import version_of
from trainlint.records import ReportedFinding

_LENGTH = 32


def fingerprinted(findings: Sequence[ReportedFinding]) -> list[ReportedFinding]:
    """The same findings, each with its fingerprint. They name files as seen from the current folder."""
    ordinals = _ordinals(findings)
    return [
        msgspec.structs.replace(finding, fingerprint=_hashed(*_scope(finding), str(ordinal)))
        for finding, ordinal in zip(findings, ordinals, strict=True)
    ]


def fingerprints_under(findings: Sequence[ReportedFinding], target: str) -> list[str]:
    """What the fingerprints were if each finding's own target had this name, as a baseline writes it."""
    ordinals = _ordinals(findings)
    return [
        _hashed(*_renamed(_scope(finding), finding.target, target), str(ordinal))
        for finding, ordinal in zip(findings, ordinals, strict=True)
    ]


def _renamed(scope: tuple[str, ...], before: str, after: str) -> tuple[str, ...]:
    """The scope with the file and the class of one target in the place of another's."""
    (old_file, _, old), (file, _, name) = before.partition("::"), after.partition("::")
    code, place, qualified, *rest = scope
    if place == in_repository(old_file):
        place = file
        if qualified == old or qualified.startswith(f"{old}."):
            qualified = name + qualified[len(old) :]
    return code, place, qualified, *rest


def fingerprint_of(target: str) -> str:
    """The fingerprint of a target itself, for what is said of it as a whole."""
    file, _, name = target.partition("::")
    return _hashed("", in_repository(file), name)


def _ordinals(findings: Sequence[ReportedFinding]) -> list[int]:
    """The place of each among those of its rule and scope, in the order of the file."""
    in_file = sorted(range(len(findings)), key=lambda number: _position(findings[number]))
    counts: Counter[tuple[str, ...]] = Counter()
    ordinals = [0] * len(findings)
    for number in in_file:
        scope = _scope(findings[number])
        ordinals[number] = counts[scope]
        counts[scope] += 1
    return ordinals


def _position(finding: ReportedFinding) -> tuple[int, int, str]:
    place = finding.location
    return (0, 0, finding.module) if place is None else (place.row, place.column, finding.module)


def _scope(finding: ReportedFinding) -> tuple[str, ...]:
    if finding.filename is None or finding.location is None:
        target = finding.target.partition("::")
        return (finding.code, in_repository(target[0]), target[2], finding.module)
    return (
        finding.code,
        in_repository(finding.filename),
        _qualified_name(finding.filename, finding.location.row),
    )


def _hashed(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_LENGTH]


@lru_cache(maxsize=256)
def _scopes(filename: str, _: float | str) -> tuple[tuple[int, int, str], ...]:
    """(first row, last row, qualified name) of each function and class, the outer ones first."""
    text = SourceText.read(filename)
    if text is None or text.tree is None:
        return ()
    return tuple(_walk(text.tree, ""))


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[int, int, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}{child.name}"
            first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
            yield first, child.end_lineno or child.lineno, name
            yield from _walk(child, f"{name}.")
        else:
            yield from _walk(child, prefix)


def _qualified_name(filename: str, row: int) -> str:
    version = version_of(filename)
    if version is None:
        return ""
    names = [name for first, last, name in _scopes(filename, version) if first <= row <= last]
    return names[-1] if names else ""


def repository_of(filename: str) -> Path | None:
    """The root of the repository that the file lies in, or None."""
    return _root(str((Path.cwd() / filename).parent))


def in_repository(filename: str) -> str:
    """The file's path from the root of its repository, with `/`; as it is where there is none."""
    path = Path(filename)
    whole = Path.cwd() / path
    root = repository_of(filename)
    if root is None:
        return path.as_posix()
    return Path(os.path.normpath(whole)).relative_to(root).as_posix()


@lru_cache(maxsize=256)
def _root(folder: str) -> Path | None:
    here = Path(os.path.normpath(folder))
    return next((each for each in (here, *here.parents) if (each / ".git").exists()), None)
