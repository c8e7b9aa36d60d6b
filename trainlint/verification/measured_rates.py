"""A fix that takes the learning rate from a range test: the rate is found, and said in it. No torch.

What is tried, shown and written is then that number. The edit is that of the finding's fix with a computed
rate, with this one in its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from trainlint.fixes.edit import Attempt, Edit, Fix, Safety
from trainlint.fixes.patch import Patch
from trainlint.records import ReportedFinding
from trainlint.verification.changes import Budget, Change, Maker, Outcome, Trial, Version

_SEVERE: Final = ("error", "warning")
_KIND: Final = "learning-rate"
_NUMBER: Final = re.compile(r"(?<![\w.])(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])")


def with_rates(
    findings: Sequence[ReportedFinding],
    version: Version,
    make: Maker,
    budget: Budget,
) -> list[ReportedFinding]:
    """The findings of a version, with the rates known that fixes of errors and warnings ask for.

    A fix whose range test fails has an `attempt` that says why.
    """
    severe = [finding for finding in findings if finding.severity in _SEVERE]
    wanted = {
        finding.target: Trial(
            finding.target,
            version.changed(Change(patches=list(fix.patches))),
            check=False,
            finds_rate=True,
        )
        for finding in severe
        for each in (finding, *finding.symptoms)
        for fix in each.fixes
        if _asks(fix)
    }
    if not wanted:
        return list(findings)
    made = make(list(wanted.values()), budget, None)
    outcomes = dict(zip(wanted, made, strict=True))
    return [
        _told(finding, outcomes[finding.target])
        if finding in severe and finding.target in outcomes
        else finding
        for finding in findings
    ]


def _asks(fix: Fix) -> bool:
    return (
        not fix.edits
        and fix.verified is None
        and len(fix.patches) == 1
        and fix.patches[0].kind == _KIND
        and bool(fix.patches[0].values.get("range_test"))
    )


def _told(finding: ReportedFinding, outcome: Outcome) -> ReportedFinding:
    return msgspec.structs.replace(
        finding,
        fixes=[
            _with_rate(fix, outcome, finding.fixes) if _asks(fix) else fix for fix in finding.fixes
        ],
        symptoms=[_told(symptom, outcome) for symptom in finding.symptoms],
    )


def _with_rate(fix: Fix, outcome: Outcome, others: Sequence[Fix]) -> Fix:
    found = next((t for t in outcome.trainings), None)
    if found is None or not found.rate:
        reason = (found.reason if found is not None else None) or outcome.reason
        return msgspec.structs.replace(
            fix, attempt=Attempt(reason=reason or "the range test found no learning rate")
        )
    rate = float(f"{found.rate:.1g}")
    computed = next((each for each in others if _is_computed(each)), None)
    edits = None if computed is None else edits_with(computed.edits, rate)
    obstacle = "the place of the rate was not found" if computed is None else computed.obstacle
    return msgspec.structs.replace(
        fix,
        title=f"lr={rate:g}, from a range test",
        reason=f"Smith 2017: of all rates from 1e-6 on, the loss falls fastest at {rate:g}, or is least at "
        "ten times that",
        patches=[Patch.training(_KIND, value=rate)],
        edits=edits or [],
        safety=Safety.UNSAFE if edits else Safety.DISPLAY_ONLY,
        obstacle="" if edits else obstacle or "the rate is no single number in the source",
    )


def _is_computed(fix: Fix) -> bool:
    return (
        len(fix.patches) == 1 and fix.patches[0].kind == _KIND and "factor" in fix.patches[0].values
    )


def edits_with(edits: Sequence[Edit], rate: float) -> list[Edit] | None:
    """The same edits with this number for the one that they write. None where they write not just one."""
    if sum(len(_NUMBER.findall(edit.content)) for edit in edits) != 1:
        return None
    return [
        msgspec.structs.replace(edit, content=_NUMBER.sub(f"{rate:g}", edit.content))
        for edit in edits
    ]
