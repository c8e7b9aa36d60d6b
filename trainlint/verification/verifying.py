"""`--verify`: from a report to the same report with what came of trying its fixes. Imports no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from trainlint.fixes.edit import Attempt
from trainlint.registry import all_rules
from trainlint.verification.candidates import Candidate, candidates, with_attempts
from trainlint.verification.changes import Change, Outcome
from trainlint.verification.files import Budget, Progress, Trial, tried
from trainlint.verification.judging import Checked, attempted

if TYPE_CHECKING:
    from trainlint.config import Config
    from trainlint.processes.jobs import Job
    from trainlint.records import Report, ReportedFinding

# Their findings are about samples that the training does not see.
_ABOUT_VALIDATION = ("generalization", "regularization")
_STEPS = 50


def budget_of(config: Config) -> Budget:
    """What may be spent on trying fixes, from now on."""
    return Budget(
        config.probe_steps or _STEPS,
        config.probe_seconds,
        time.monotonic() + config.verify_seconds,
        config.jobs or os.cpu_count() or 1,
        config.verify_seconds,
    )


def with_verified_fixes(
    report: Report,
    known: Sequence[ReportedFinding],
    jobs: Sequence[Job],
    config: Config,
    progress: Progress | None = None,
) -> Report:
    """Try the fixes of the report of a check of files.

    `known` are all findings of that check, also those that comments silence; `jobs` made it.
    """
    budget = budget_of(config)
    found = candidates(report.findings)
    targets = dict.fromkeys(report.findings[each.finding].target for each in found)
    places = {name: job for name in targets if (job := job_of_target(name, jobs)) is not None}
    found = [each for each in found if report.findings[each.finding].target in places]
    if not found:
        return report
    # Fixes of several findings may be the same change of the same model.
    trials = {
        (name, Change().key): Trial(job, Change(), check=False) for name, job in places.items()
    }
    for each in found:
        name = report.findings[each.finding].target
        trials.setdefault((name, each.change.key), Trial(places[name], each.change))
    outcomes = dict(zip(trials, tried(list(trials.values()), budget, progress), strict=True))
    results = {result.target: result for result in report.targets}
    before = {
        name: Checked([f for f in known if f.target == name], results.get(name)) for name in places
    }
    attempts = [(each, _attempt(each, report.findings, before, outcomes, budget)) for each in found]
    return msgspec.structs.replace(report, findings=with_attempts(report.findings, attempts))


def _attempt(
    candidate: Candidate,
    findings: Sequence[ReportedFinding],
    before: Mapping[str, Checked],
    outcomes: Mapping[tuple[str, bytes], Outcome],
    budget: Budget,
) -> Attempt:
    finding = candidate.owner(findings)
    control = outcomes[(finding.target, Change().key)]
    outcome = outcomes[(finding.target, candidate.change.key)]
    if control.reason == budget.out_of_time:
        return Attempt(reason=budget.out_of_time)
    return attempted(
        finding,
        before[finding.target],
        control,
        outcome,
        candidate.change.edits,
        about_validation=is_about_validation(finding),
    )


def is_about_validation(finding: ReportedFinding) -> bool:
    """Whether validation samples show it, and not those that are trained on."""
    family = next((rule.family for rule in all_rules() if rule.code == finding.code), "")
    return family in _ABOUT_VALIDATION


def job_of_target(target: str, jobs: Sequence[Job]) -> Job | None:
    """The job that checks this model alone, None where no job of these did."""
    for job in jobs:
        if target == job.target:
            return job if job.name is not None else None
        name = target.removeprefix(f"{job.label}::")
        if name != target:
            return msgspec.structs.replace(job, name=name, scanned=False, skip=[])
    return None
