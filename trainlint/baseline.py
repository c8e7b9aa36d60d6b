"""Findings that were there before: a file of them, so that only new ones fail a run. Imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from trainlint.errors import UsageError
from trainlint.fingerprints import fingerprints_under, in_repository, repository_of
from trainlint.fixes.text import SourceText
from trainlint.overlay import version_of
from trainlint.records import Report, ReportedFinding

_VERSION: Final = 1


class Entry(msgspec.Struct, frozen=True):
    """A finding as the baseline keeps it: `fingerprint` decides, the rest is for those who read it.

    Where a file or class has another name now, `target` and `message` tell which finding it is.
    """

    fingerprint: str
    code: str
    target: str
    message: str

    @property
    def file(self) -> str:
        """The file of the target, from the root of its repository."""
        return self.target.partition("::")[0]


class Baseline(msgspec.Struct, frozen=True):
    """The file: `{"version": 1, "findings": [...]}`, in a steady order."""

    findings: list[Entry]
    version: int


@dataclass(frozen=True)
class Compared:
    """A report without the findings of a baseline, how many those were, and entries that are gone.

    `moved` says of how many the file or the class has another name now.
    """

    report: Report
    dropped: int
    moved: int
    gone: list[Entry]


def read_baseline(path: Path) -> Baseline:
    """The baseline in a file. Raises `UsageError` where there is none, or something else."""
    try:
        baseline = msgspec.json.decode(path.read_bytes(), type=Baseline)
    except OSError as error:
        hint = f"; --write-baseline {path} makes it" if not path.exists() else ""
        raise UsageError(f"cannot read {path}: {error.strerror}{hint}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no baseline: {error}") from None
    if baseline.version != _VERSION:
        raise UsageError(f"{path} is no baseline: version {baseline.version}, not {_VERSION}")
    return baseline


def write_baseline(report: Report, path: Path) -> None:
    """Write all findings of the report to the file. Raises `UsageError` where it cannot be written."""
    entries = [
        Entry(f.fingerprint, f.code, in_repository(f.target), f.message) for f in report.findings
    ]
    entries.sort(key=lambda entry: (entry.target, entry.code, entry.fingerprint))
    data = msgspec.json.format(msgspec.json.encode(Baseline(entries, _VERSION)), indent=2)
    try:
        path.write_bytes(data + b"\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def without(report: Report, baseline: Baseline) -> Compared:
    """The report without the findings of the baseline.

    An entry is gone if its target was checked and the finding did not come again, or if its file or its
    class are no more. A finding that would have its fingerprint under that old name, with the same
    message, is taken for it: the file or the class was renamed.
    """
    met = {finding.fingerprint for finding in report.findings}
    known = {entry.fingerprint for entry in baseline.findings}
    checked = {in_repository(t.target) for t in report.targets if t.status == "ok"}
    roots = _roots(report)
    gone, homeless = [], []
    for entry in baseline.findings:
        if entry.fingerprint in met:
            continue
        if not _exists(entry.target, roots):
            homeless.append(entry)
        elif entry.target in checked:
            gone.append(entry)
    new = [finding for finding in report.findings if finding.fingerprint not in known]
    moved = dict(_moved(new, homeless))
    gone += [entry for entry in homeless if entry.fingerprint not in moved.values()]
    kept = [finding for finding in new if finding.fingerprint not in moved]
    return Compared(
        msgspec.structs.replace(report, findings=kept),
        len(report.findings) - len(kept),
        len(moved),
        sorted(gone, key=lambda entry: (entry.target, entry.code)),
    )


def remarks(name: str, dropped: int, gone: Iterable[str], moved: int = 0) -> Iterator[str]:
    """What it did, a line each; `gone` are targets and codes: `net.py::Net: NRM001`."""
    if dropped:
        said = "finding stands" if dropped == 1 else "findings stand"
        under = f" ({moved} under another name)" if moved else ""
        yield f"{dropped} {said} in {name}{under}, left out"
    for entry in gone:
        yield f"{entry} of {name} no longer occurs"


def _moved(
    findings: Sequence[ReportedFinding], homeless: Sequence[Entry]
) -> Iterator[tuple[str, str]]:
    """(fingerprint now, fingerprint in the baseline) of what has only another name."""
    left = {entry.fingerprint: entry for entry in homeless}
    for target in dict.fromkeys(entry.target for entry in homeless):
        before = fingerprints_under(findings, target)
        for finding, fingerprint in zip(findings, before, strict=True):
            entry = left.get(fingerprint)
            if entry is not None and entry.message == finding.message:
                del left[fingerprint]
                yield finding.fingerprint, fingerprint


def _roots(report: Report) -> list[Path]:
    """The repositories of what was checked; the current folder where there are none."""
    places = {target.target.partition("::")[0] for target in report.targets}
    found = {root for place in places if (root := repository_of(place)) is not None}
    return sorted(found) or [Path.cwd()]


def _exists(target: str, roots: Iterable[Path]) -> bool:
    """Whether there still is such a file, and such a name in it; of a module nobody knows."""
    file, _, name = target.partition("::")
    if ":" in file and not file.endswith(".py"):
        return True
    paths = [path for root in roots if (path := root / file).is_file()]
    return any(_has_name(str(path), name.partition(".")[0]) for path in paths)


def _has_name(filename: str, name: str) -> bool:
    """Whether it is bound in the file at module level, as far as that can be read."""
    names = _names_in(filename, version_of(filename))
    return not name or names is None or bool(names & {name, "*"})


@lru_cache(maxsize=64)
def _names_in(filename: str, _version: object) -> frozenset[str] | None:
    text = SourceText.read(filename)
    if text is None or text.tree is None:
        return None
    return frozenset(_names(text.tree))


def _names(tree: ast.Module) -> Iterator[str]:
    """More than those at module level: a name that is anywhere in the file is not gone for certain."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.asname or node.name
