"""Which fixes of a report are tried, in which order, and how they are ranked then. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from trainlint.fixes.edit import Attempt, Fix
from trainlint.records import ReportedFinding
from trainlint.rule import Severity
from trainlint.verification.changes import Change

_SEVERE: Final = ("error", "warning")
# Of fixes that gain about as much the least invasive comes first.
CLOSE: Final = 0.15
# From an option of the training to a change of the architecture.
_INVASIVENESS: Final = {
    "attribute": 1,
    "learning-rate": 1,
    "weight-decay": 1,
    "batch-size": 1,
    "rebuilt": 2,
    "without": 2,
    "unfreeze": 2,
    "loss": 2,
    "initialise": 3,
    "activation": 4,
    "norm": 5,
    "residual": 6,
}
_OPTION: Final = 0
_LAYER: Final = 2


@dataclass(frozen=True)
class Candidate:
    """A fix to be tried, by its place: of which finding of the report, or of which symptom of that."""

    finding: int
    symptom: int | None
    fix: int
    change: Change

    def owner(self, findings: Sequence[ReportedFinding]) -> ReportedFinding:
        """The finding whose fix it is."""
        head = findings[self.finding]
        return head if self.symptom is None else head.symptoms[self.symptom]


def candidates(findings: Sequence[ReportedFinding], *, live: bool = False) -> list[Candidate]:
    """What can be tried of the fixes of errors and warnings: the most severe first, first choices first.

    A finding without any shows those of its symptoms. What was tried already is left as it is.
    """
    found: list[Candidate] = []
    for place, finding in enumerate(findings):
        if finding.severity not in _SEVERE:
            continue
        own = list(_of(finding, place, None, live=live))
        if not own:
            for number, symptom in enumerate(finding.symptoms):
                own += _of(symptom, place, number, live=live)
        found += own
    return sorted(
        found,
        key=lambda c: (Severity(findings[c.finding].severity).rank, c.fix, c.finding),
    )


def _of(
    finding: ReportedFinding, place: int, symptom: int | None, *, live: bool
) -> Iterator[Candidate]:
    for number, fix in enumerate(finding.fixes):
        change = Change.of(fix, live=live)
        if change is not None and fix.verified is None and fix.attempt is None:
            yield Candidate(place, symptom, number, change)


def with_attempts(
    findings: Sequence[ReportedFinding], attempts: Sequence[tuple[Candidate, Attempt]]
) -> list[ReportedFinding]:
    """The findings with what came of trying their fixes, ranked anew."""
    changed = list(findings)
    for candidate, attempt in attempts:
        head = changed[candidate.finding]
        if candidate.symptom is None:
            changed[candidate.finding] = _with(head, candidate.fix, attempt)
        else:
            symptoms = list(head.symptoms)
            symptoms[candidate.symptom] = _with(symptoms[candidate.symptom], candidate.fix, attempt)
            changed[candidate.finding] = msgspec.structs.replace(head, symptoms=symptoms)
    return sorted(map(_ranked, changed), key=_rank)  # a stable sort: the rank that they had counts


def _with(finding: ReportedFinding, place: int, attempt: Attempt) -> ReportedFinding:
    fixes = list(finding.fixes)
    fixes[place] = with_attempt(fixes[place], attempt)
    return msgspec.structs.replace(finding, fixes=fixes)


def with_attempt(fix: Fix, attempt: Attempt) -> Fix:
    """The fix with what came of trying it: a proof, if nothing speaks against it."""
    is_proof = not attempt.reason
    return msgspec.structs.replace(
        fix, verified=attempt if is_proof else None, attempt=None if is_proof else attempt
    )


def _ranked(finding: ReportedFinding) -> ReportedFinding:
    return msgspec.structs.replace(
        finding,
        fixes=ranked(finding.fixes),
        symptoms=[
            msgspec.structs.replace(symptom, fixes=ranked(symptom.fixes))
            for symptom in finding.symptoms
        ],
    )


def _rank(finding: ReportedFinding) -> tuple[int, float]:
    return Severity(finding.severity).rank, -gain_of(finding)


def gain_of(finding: ReportedFinding) -> float:
    """What the best of its verified fixes gains, or of its symptoms'; 0 without one."""
    fixes = [*finding.fixes, *(fix for symptom in finding.symptoms for fix in symptom.fixes)]
    return max((_gain(fix) for fix in fixes if fix.verified is not None), default=0.0)


def _gain(fix: Fix) -> float:
    gain = None if fix.verified is None else fix.verified.gain
    return 0.0 if gain is None else gain


def ranked(fixes: Sequence[Fix]) -> list[Fix]:
    """Verified ones first, by gain; then what may help; last what was tried and failed.

    Of those within 15 % of the best gain the least invasive comes first. Otherwise the order stays: a
    rule's own first choice comes before its second.
    """
    best = max((_gain(fix) for fix in fixes if fix.verified is not None), default=0.0)

    def key(fix: Fix) -> tuple[float, ...]:
        if fix.verified is not None:
            is_close = _gain(fix) >= (1 - CLOSE) * best
            return (0, 0, invasiveness(fix)) if is_close else (0, 1, -_gain(fix))
        has_failed = fix.attempt is not None and fix.attempt.cleared is False
        return (2,) if has_failed else (1,)

    return sorted(fixes, key=key)


def invasiveness(fix: Fix) -> int:
    """0 for an option of the training, up to 6 for another architecture."""
    if fix.patches:
        return max(_INVASIVENESS.get(patch.kind, _OPTION) for patch in fix.patches)
    if len(fix.edits) == 1:
        edit = fix.edits[0]
        is_literal = edit.location != edit.end_location and "(" not in edit.content
        return 1 if is_literal else _LAYER
    return _LAYER
