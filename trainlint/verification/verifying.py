"""`--verify`: from a report to the same report with what came of trying its fixes. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from trainlint.errors import TrainlintError
from trainlint.fixes.edit import Attempt
from trainlint.measure.memory import usable_processors
from trainlint.records import Report, ReportedFinding, TargetResult
from trainlint.verification.candidates import Candidate, candidates, with_attempts
from trainlint.verification.changes import Budget, Maker, Outcome, Progress, Trial, Version
from trainlint.verification.combining import Combination, Try, combined
from trainlint.verification.judging import Checked, judged
from trainlint.verification.measured_rates import with_rates

if TYPE_CHECKING:
    from torch import nn

    from trainlint.config import Config

_STEPS: Final = 50


def budget_of(config: Config) -> Budget:
    """What may be spent on trying fixes, from now on."""
    return Budget(
        config.probe_steps or _STEPS,
        config.probe_seconds,
        time.monotonic() + config.verify_seconds,
        config.jobs or usable_processors(),
        config.verify_seconds,
    )


@dataclass(frozen=True)
class Verified:
    """A report whose fixes were tried, and by target which of them help together.

    `model` is a copy of a live model, changed by these.
    """

    report: Report
    combinations: Mapping[str, Combination] = field(default_factory=dict)
    model: nn.Module | None = None


@dataclass(frozen=True)
class Verification:
    """How fixes are tried: `make` makes trials, within a budget.

    `reported` gives of an outcome the findings that would be reported of that version, `start` is the one
    that the report is of. `live` tells that there is no source to edit.
    """

    make: Maker
    budget: Budget
    reported: Callable[[Outcome, Version], Sequence[ReportedFinding]]
    start: Version = field(default_factory=Version)
    live: bool = False

    def of(
        self,
        report: Report,
        known: Sequence[ReportedFinding],
        progress: Progress | None = None,
    ) -> Verified:
        """Try the fixes of a report, and combinations of those that help.

        `known` are all findings of its check, also those that comments silence.
        """
        findings = with_rates(report.findings, self.start, self.make, self.budget)
        report = msgspec.structs.replace(report, findings=findings)
        found = candidates(report.findings, live=self.live)
        if not found:
            return Verified(report)
        versions: dict[int, Version] = {}
        attempts: list[tuple[Candidate, Attempt]] = []
        for number, candidate in enumerate(found):
            try:
                versions[number] = self.start.changed(candidate.change)
            except TrainlintError as problem:
                attempts.append((candidate, Attempt(reason=f"not tried: {problem}")))
        targets = dict.fromkeys(report.findings[each.finding].target for each in found)
        # Fixes of several findings may be the same change of the same model.
        trials = {(name, b""): Trial(name, self.start, check=False) for name in targets}
        for number, version in versions.items():
            name = report.findings[found[number].finding].target
            trials.setdefault((name, found[number].change.key), Trial(name, version))
        outcomes = dict(
            zip(trials, self.make(list(trials.values()), self.budget, progress), strict=True)
        )
        results = {result.target: result for result in report.targets}
        tries: dict[str, list[Try]] = {name: [] for name in targets}
        for number, version in versions.items():
            candidate = found[number]
            finding = candidate.owner(report.findings)
            name = report.findings[candidate.finding].target
            control, outcome = outcomes[name, b""], outcomes[name, candidate.change.key]
            before = Checked([each for each in known if each.target == name], results.get(name))
            verdict = judged(finding, before, control, outcome, candidate.change.edits)
            if self.budget.out_of_time in (outcome.reason, control.reason):
                attempts.append((candidate, Attempt(reason=self.budget.out_of_time)))
                continue
            attempts.append((candidate, verdict.attempt))
            fix = finding.fixes[candidate.fix]
            tries[name].append(Try(finding, fix, version, verdict, outcome, number))
        together = {
            name: combination
            for name in targets
            if (combination := self._together(name, outcomes[name, b""], tries[name])) is not None
        }
        return Verified(
            msgspec.structs.replace(
                report,
                findings=with_attempts(report.findings, attempts),
                targets=[_with_repair(result, together) for result in report.targets],
            ),
            together,
        )

    def _together(self, name: str, control: Outcome, tries: Sequence[Try]) -> Combination | None:
        return combined(name, control, tries, self.make, self.budget, self.reported, live=self.live)


def _with_repair(result: TargetResult, together: Mapping[str, Combination]) -> TargetResult:
    found = together.get(result.target)
    return result if found is None else msgspec.structs.replace(result, repair=found.repair)
