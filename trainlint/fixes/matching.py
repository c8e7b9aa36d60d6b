"""Compare the findings before and after an edit: which are gone, which are new.

A finding is known again by its rule and its place, mapped through our own edits, and by how many modules it
is about. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from trainlint.fixes.composing import Change, Rows
from trainlint.records import RUN_STOPPED, Report, ReportedFinding, TargetResult
from trainlint.rule import Severity

_WARNING: Final = Severity.WARNING.rank


def every_finding(report: Report) -> Iterator[ReportedFinding]:
    """All findings, and below each one its symptoms."""
    for finding in report.findings:
        yield finding
        yield from finding.symptoms


@dataclass(frozen=True)
class Edited:
    """One file before and after its changes, to find places of the one in the other."""

    before: str
    after: str
    changes: Sequence[Change]


@dataclass(frozen=True)
class Problem:
    """Something that an edit made worse, and the target in which it shows."""

    target: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """What came of an edit: targets that are `still_there`, and the `problems` that it made.

    `revealed` tells that there are new findings which count as hidden before.
    """

    still_there: list[ReportedFinding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    revealed: bool = False

    @property
    def is_good(self) -> bool:
        """Whether the edit may stay."""
        return not self.still_there and not self.problems


def judge(
    before: Report, after: Report, edited: Mapping[str, Edited], targets: Sequence[ReportedFinding]
) -> Verdict:
    """Whether the findings `targets` of `before` are gone in `after`, nothing new came, and all still runs.

    `edited` are the files that were changed in between, by their real paths.
    """
    places = _Places(edited)
    now = list(every_finding(after))
    still_there = [
        target for target in targets if any(places.are_same(target, other) for other in now)
    ]
    fixed = [target for target in targets if target not in still_there]
    problems = [*_broken(before, after)]
    known = list(every_finding(before))
    revealed = False
    for finding in now:
        if Severity(finding.severity).rank > _WARNING:
            continue
        same = [other for other in known if places.are_same(other, finding)]
        counted = max((_count(other) for other in same), default=0)
        if counted >= _count(finding) and not _is_worse(finding, same):
            continue
        if _is_revealed(finding, before, fixed):
            revealed = True
        else:
            text = f"{finding.code} {finding.name} appeared{_where(finding)}"
            problems.append(Problem(finding.target, text))
    return Verdict(still_there, list(dict.fromkeys(problems)), revealed)


def _is_revealed(
    finding: ReportedFinding, before: Report, fixed: Iterable[ReportedFinding]
) -> bool:
    """Whether the first run could not have come to it: it was there, and is seen now for the first time."""
    result = next((each for each in before.targets if each.target == finding.target), None)
    if result is None or result.status != "ok" or finding.stage not in result.stages:
        return True
    # Behind an error, which kept the model from running or from learning, lesser faults are not judged.
    return finding.severity != Severity.ERROR and any(
        other.severity == Severity.ERROR and other.target == finding.target for other in fixed
    )


def _broken(before: Report, after: Report) -> Iterator[Problem]:
    """What could be built, or run, before and cannot now."""
    now = {result.target: result for result in after.targets}
    for result in before.targets:
        if result.status != "ok":
            continue
        other = now.get(result.target)
        if other is None:
            yield Problem(result.target, f"{result.target} is not found any more")
        elif other.status != "ok":
            yield Problem(result.target, f"{result.target}: {other.reason}")
        elif "signal" in result.stages and "signal" not in other.stages:
            yield Problem(result.target, f"{result.target} does not run any more")
        else:
            stops = _stops(other) - _stops(result)
            yield from (Problem(result.target, text) for text in sorted(stops))
    for name, other in now.items():
        if other.status == "error" and not any(each.target == name for each in before.targets):
            yield Problem(name, f"{name}: {other.reason}")


def _stops(result: TargetResult) -> set[str]:
    """Why the run of the file stopped before its end, wherever that was."""
    stops = (note for note in result.notes if note.startswith(RUN_STOPPED))
    return {f"the run of the file stops: {note.partition(': ')[2]}" for note in stops}


def _count(finding: ReportedFinding) -> int:
    """How many modules it is about."""
    modules = finding.evidence.get("modules")
    return len(modules) if isinstance(modules, list) else 1


def _is_worse(finding: ReportedFinding, before: Sequence[ReportedFinding]) -> bool:
    """Whether it has become an error."""
    return finding.severity == Severity.ERROR and all(
        other.severity != Severity.ERROR for other in before
    )


def _where(finding: ReportedFinding) -> str:
    if finding.filename is None or finding.location is None:
        return f" in {finding.module}" if finding.module else ""
    return f" at {finding.filename}:{finding.location.row}"


class _Places:
    """Places of findings, before and after."""

    def __init__(self, edited: Mapping[str, Edited]) -> None:
        self._edited = edited
        self._rows = {name: (Rows(file.before), Rows(file.after)) for name, file in edited.items()}

    def are_same(self, old: ReportedFinding, new: ReportedFinding) -> bool:
        """Whether the finding of before the edit is that of after it."""
        if old.code != new.code:
            return False
        if old.filename is None or new.filename is None or not (old.location and new.location):
            return (old.filename, old.target, old.module) == (
                new.filename,
                new.target,
                new.module,
            )
        name = os.path.realpath(old.filename)
        if name != os.path.realpath(new.filename):
            return False
        if name not in self._edited:
            return old.location == new.location
        try:
            rows, new_rows = self._rows[name]
            start, end = rows.offset(old.location), rows.offset(old.end_location or old.location)
            new_start = new_rows.offset(new.location)
            new_end = new_rows.offset(new.end_location or new.location)
        except ValueError:
            return False
        start, end, is_touched = mapped(start, end, self._edited[name].changes)
        if is_touched:
            return start <= new_end and new_start <= end
        return start == new_start or (end == new_end and end > start)


def mapped(start: int, end: int, changes: Sequence[Change]) -> tuple[int, int, bool]:
    """(start, end, whether a change lies in it) of what was from `start` to `end`.

    Ends that lie in replaced text become the ends of what replaces it.
    """
    new_start, new_end, is_touched = start, end, False
    for change in changes:
        grown = len(change.content) - (change.end - change.start)
        if change.end <= start:
            new_start += grown
        elif change.start < start:
            new_start += change.start - start
        if change.end < end or (change.end == end and change.start < end):
            new_end += grown
        elif change.start < end:
            new_end += change.start + len(change.content) - end
        is_touched |= change.start < end and start < change.end
    return new_start, max(new_start, new_end), is_touched
