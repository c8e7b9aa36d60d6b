"""Findings that were there before: a file of them, so that only new ones fail a run. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from trainlint.errors import UsageError
from trainlint.fingerprints import in_repository
from trainlint.records import Report


class Entry(msgspec.Struct, frozen=True):
    """A finding as the baseline keeps it: `fingerprint` decides, the rest is for those who read it."""

    fingerprint: str
    code: str
    target: str
    message: str


class Baseline(msgspec.Struct, frozen=True):
    """The file: `{"version": 1, "findings": [...]}`, in a steady order."""

    findings: list[Entry] = []
    version: int = 1


def read_baseline(path: Path) -> Baseline:
    """The baseline in a file. Raises `UsageError` where there is none, or something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Baseline)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no baseline: {error}") from None


def write_baseline(report: Report, path: Path) -> None:
    """Write all findings of the report to the file. Raises `UsageError` where it cannot be written."""
    entries = [
        Entry(f.fingerprint, f.code, in_repository(f.target), f.message) for f in report.findings
    ]
    entries.sort(key=lambda entry: (entry.target, entry.code, entry.fingerprint))
    data = msgspec.json.format(msgspec.json.encode(Baseline(entries)), indent=2)
    try:
        path.write_bytes(data + b"\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def without(report: Report, baseline: Baseline) -> tuple[Report, int, list[Entry]]:
    """(the report without the findings of the baseline, how many those were, entries that are gone).

    An entry is gone if its target was checked and the finding did not come again.
    """
    known = {entry.fingerprint for entry in baseline.findings}
    kept = [finding for finding in report.findings if finding.fingerprint not in known]
    met = {finding.fingerprint for finding in report.findings}
    checked = {in_repository(t.target) for t in report.targets if t.status == "ok"}
    gone = [
        entry
        for entry in baseline.findings
        if entry.fingerprint not in met and entry.target in checked
    ]
    dropped = len(report.findings) - len(kept)
    return msgspec.structs.replace(report, findings=kept), dropped, _sorted(gone)


def remarks(name: str, dropped: int, gone: Iterable[str]) -> Iterator[str]:
    """What it did, a line each; `gone` are targets and codes: `net.py::Net: NRM001`."""
    if dropped:
        said = "finding stands" if dropped == 1 else "findings stand"
        yield f"{dropped} {said} in {name}, left out"
    for entry in gone:
        yield f"{entry} of {name} no longer occurs"


def _sorted(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.target, entry.code))
