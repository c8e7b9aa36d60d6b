"""Which fixes help together: from the best one on, one more as long as that clears a finding.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from trainlint.errors import TrainlintError
from trainlint.fixes.edit import Fix, Safety
from trainlint.records import AppliedFix, CombinedFixes, ReportedFinding
from trainlint.rule import Severity
from trainlint.verification.candidates import CLOSE, Candidate, candidates, ranked, with_attempt
from trainlint.verification.changes import Budget, Maker, Outcome, Trial, Version
from trainlint.verification.judging import Checked, Verdict, difference, judged
from trainlint.verification.measured_rates import with_rates

_SEVERE: Final = ("error", "warning")
_MOST_ROUNDS: Final = 8

# Gives of an outcome the findings that would be reported of that version.
Judge = Callable[[Outcome, Version], Sequence[ReportedFinding]]


@dataclass(frozen=True)
class Try:
    """A fix of a finding that was tried, and what came of it."""

    finding: ReportedFinding
    fix: Fix
    version: Version
    verdict: Verdict
    outcome: Outcome
    turn: int = 0


@dataclass(frozen=True)
class Combination:
    """What was applied, and the version that it makes."""

    repair: CombinedFixes
    version: Version
    fixes: Sequence[Fix]
    findings: Sequence[ReportedFinding]


def combined(
    target: str,
    control: Outcome,
    first: Sequence[Try],
    make: Maker,
    budget: Budget,
    judge: Judge,
    *,
    live: bool = False,
) -> Combination | None:
    """The combination of fixes that is left when no other clears a finding without loss.

    `first` are the single fixes that were tried. None where not one of them helps.
    """
    applied: list[Try] = []
    failed: set[tuple[str, str, str]] = set()
    tries = first
    left: Sequence[ReportedFinding] = ()
    while True:
        failed |= {_key(each) for each in tries if each.verdict.attempt.cleared is False}
        best = _best(tries)
        if best is None:
            break
        applied.append(best)
        left = judge(best.outcome, best.version)
        if len(applied) >= _MOST_ROUNDS or budget.is_spent:
            break
        tries = _tried(target, applied[-1], left, failed, make, budget, live=live)
    if not applied:
        return None
    last = applied[-1]
    whole = difference(control, last.outcome)
    severe = [each for each in left if each.severity in _SEVERE]
    repair = CombinedFixes(
        fixes=[_record(each) for each in applied],
        measure=whole.measure,
        before=whole.before,
        after=whole.after,
        gain=whole.gain,
        error=whole.error,
        steps=whole.steps,
        seeds=whole.seeds,
        left=[f"{each.code} {each.name}" for each in severe],
    )
    return Combination(
        repair, last.version, [each.fix for each in applied], [each.finding for each in applied]
    )


def _tried(
    target: str,
    last: Try,
    left: Sequence[ReportedFinding],
    failed: set[tuple[str, str, str]],
    make: Maker,
    budget: Budget,
    *,
    live: bool,
) -> list[Try]:
    """One more fix, each of what is left, upon what is applied."""
    before = Checked(list(last.outcome.findings or ()), last.outcome.result)
    left = with_rates(left, last.version, make, budget)
    wanted: list[tuple[Candidate, Version]] = []
    for candidate in candidates(left, live=live):
        finding = candidate.owner(left)
        if (finding.code, finding.module, finding.fixes[candidate.fix].title) in failed:
            continue
        try:
            wanted.append((candidate, last.version.changed(candidate.change)))
        except TrainlintError:
            continue
    if not wanted:
        return []
    outcomes = make([Trial(target, version) for _, version in wanted], budget, None)
    found = []
    for turn, ((candidate, version), outcome) in enumerate(zip(wanted, outcomes, strict=True)):
        finding = candidate.owner(left)
        verdict = judged(finding, before, last.outcome, outcome, candidate.change.edits)
        fix = finding.fixes[candidate.fix]
        found.append(Try(finding, fix, version, verdict, outcome, turn))
    return found


def _key(each: Try) -> tuple[str, str, str]:
    return (each.finding.code, each.finding.module, each.fix.title)


def _may_be_applied(each: Try) -> bool:
    """Whether it clears its finding and brings no other, and either costs nothing or has to be.

    A fault may lower the loss of the first steps: gradients that are never cleared, say, are a momentum.
    What is plainly meant, or an error, is mended all the same, as long as the model then learns.
    """
    verdict = each.verdict
    has_to_be = each.fix.safety == Safety.SAFE or each.finding.severity == Severity.ERROR
    return verdict.clears and (not verdict.costs or (has_to_be and verdict.trains))


def _best(tries: Sequence[Try]) -> Try | None:
    """Of the most severe finding with a verified fix, or else one that is cleared, the first in rank.

    Of findings whose fixes gain about as much, the one whose fix clears most of the others too.
    """
    groups: dict[int, list[Try]] = {}
    for each in tries:
        if _may_be_applied(each):
            groups.setdefault(id(each.finding), []).append(each)
    if not groups:
        return None

    def gain(group: Sequence[Try]) -> float:
        gains = [e.verdict.attempt.gain or 0.0 for e in group if not e.verdict.attempt.reason]
        return max(gains, default=0.0)

    most = max(map(gain, groups.values()))

    def order(group: Sequence[Try]) -> tuple[float, ...]:
        rank = Severity(group[0].finding.severity).rank
        costs = all(e.verdict.costs for e in group)
        is_close = gain(group) >= (1 - CLOSE) * most
        # Of those that gain about as much, the one that leaves least to be found is nearest the cause.
        left = min(map(_left, group)) if is_close else math.inf
        return (costs, not gain(group), rank, left, -gain(group), group[0].turn)

    chosen = min(groups.values(), key=order)
    if not all(each.verdict.costs for each in chosen):
        chosen = [each for each in chosen if not each.verdict.costs]
    fixes = [with_attempt(each.fix, each.verdict.attempt) for each in chosen]
    first = ranked(fixes)[0]
    return next(each for each, fix in zip(chosen, fixes, strict=True) if fix is first)


def _left(each: Try) -> int:
    """How many errors and warnings stand when it was made."""
    return sum(finding.severity in _SEVERE for finding in each.outcome.findings or ())


def _record(each: Try) -> AppliedFix:
    finding = each.finding
    return AppliedFix(
        finding.code, finding.name, finding.module, each.fix.title, edited=bool(each.fix.edits)
    )
