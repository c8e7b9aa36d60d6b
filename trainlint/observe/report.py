"""What the child of `trainlint run` hands over: the findings on the run so far."""

from __future__ import annotations

import msgspec

from trainlint.records import ReportedFinding, TargetResult


class RunReport(msgspec.Struct, frozen=True):
    """`starved` goes with `findings`, one for one. `result` is None where torch was never imported."""

    result: TargetResult | None
    findings: list[ReportedFinding]
    starved: list[float]
    is_final: bool
