"""Of several fixes those that are good together: try them all, and where that fails, find out which not.

Comes in: fixes in order of rank, and a way to try some of them. Goes out: the trial of those that stay, and
the others with their reasons. What goes wrong in one file is not held against fixes of another. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trainlint.fixes.composing import Composition, Proposal
from trainlint.fixes.matching import Verdict
from trainlint.records import Report


@dataclass(frozen=True)
class Trial:
    """Some fixes made together, and what the check says of it."""

    composition: Composition
    report: Report
    verdict: Verdict


@dataclass
class Choice:
    """The trial of the fixes that stay, None where none does, and those `rejected`, with the reason.

    The rest was put off: it can be judged once the errors are gone that hide what it does.
    """

    best: Trial | None = None
    kept: list[Proposal] = field(default_factory=list)
    rejected: list[tuple[Proposal, str]] = field(default_factory=list)


Try = Callable[[Sequence[Proposal]], Trial]


def choose(proposals: Sequence[Proposal], make: Try) -> Choice:
    """Find those that are good together. All of them take one trial where all are good."""
    choice = Choice()
    known: dict[tuple[int, ...], Trial] = {}

    def attempt(some: Sequence[Proposal]) -> Trial:
        key = tuple(sorted(map(id, some)))
        if key not in known:
            known[key] = make(some)
        return known[key]

    whole = attempt(proposals)
    errors = [each for each in proposals if each.finding.severity == "error"]
    is_mixed = 0 < len(errors) < len(proposals)
    if whole.verdict.is_good and not (is_mixed and whole.verdict.revealed):
        choice.best, choice.kept = whole, list(proposals)
        return choice
    if is_mixed and whole.verdict.revealed:
        # Of what appears behind an error, nobody can say whether the other fixes made it.
        proposals, whole = errors, attempt(errors)
    groups = connected(proposals, lambda each: {*each.filenames, _file_of(each.finding.target)})
    blamed = [group for group in groups if _is_blamed(group, whole.verdict)] or groups
    innocent = [each for group in groups if group not in blamed for each in group]
    early: list[tuple[Proposal, int]] = []
    for group in ([innocent] if innocent else []) + blamed:
        _halve(group, attempt, choice, early)
    _second_chance(early, attempt, choice)
    return choice


def _halve(
    group: list[Proposal], attempt: Try, choice: Choice, early: list[tuple[Proposal, int]]
) -> None:
    """Keep of the group what is good beside what is kept. `early` notes beside how many it was not."""
    waiting = [group]
    while waiting:
        part = waiting.pop(0)
        trial = attempt([*choice.kept, *part])
        if trial.verdict.is_good:
            choice.best, choice.kept = trial, [*choice.kept, *part]
            continue
        stuck = [each for each in part if each.finding in trial.verdict.still_there]
        if len(part) == 1:
            early.append((part[0], len(choice.kept)))
            choice.rejected.append((part[0], reason_of(trial.verdict, part[0])))
        elif stuck and len(stuck) < len(part):
            early += [(each, len(choice.kept)) for each in stuck]
            choice.rejected += [(each, reason_of(trial.verdict, each)) for each in stuck]
            waiting.insert(0, [each for each in part if each not in stuck])
        else:
            middle = len(part) // 2
            waiting[:0] = [part[:middle], part[middle:]]


def _second_chance(early: Sequence[tuple[Proposal, int]], attempt: Try, choice: Choice) -> None:
    """One fix may need another, that was kept only after it had been rejected."""
    for proposal, beside in early:
        if beside == len(choice.kept):
            continue
        trial = attempt([*choice.kept, proposal])
        if trial.verdict.is_good:
            choice.best, choice.kept = trial, [*choice.kept, proposal]
            choice.rejected = [each for each in choice.rejected if each[0] is not proposal]


def _is_blamed(group: Sequence[Proposal], verdict: Verdict) -> bool:
    files = {_file_of(each.finding.target) for each in group}
    return any(each.finding in verdict.still_there for each in group) or any(
        _file_of(problem.target) in files for problem in verdict.problems
    )


def reason_of(verdict: Verdict, proposal: Proposal) -> str:
    """Why the fix does not stay."""
    if proposal.finding in verdict.still_there:
        return "the finding is still there"
    back = [f"{finding.code} {finding.name} is there again" for finding in verdict.still_there]
    return "; ".join([*(problem.text for problem in verdict.problems), *back])


def _file_of(target: str) -> str:
    return os.path.realpath(target.partition("::")[0])


def connected(
    proposals: Sequence[Proposal], names_of: Callable[[Proposal], set[str]]
) -> list[list[Proposal]]:
    """In groups: those that share a name, directly or by way of others, in one."""
    joined: list[tuple[set[str], list[Proposal]]] = []
    for proposal in proposals:
        names, members = names_of(proposal), [proposal]
        for other in [each for each in joined if each[0] & names]:
            joined.remove(other)
            names, members = names | other[0], [*other[1], *members]
        joined.append((names, members))
    return [members for _, members in joined]
