"""`trainlint.verification.repair`: apply what is proved to help, and measure all of it together.

Comes in: a target, as for `trainlint.check`. Goes out: the report, and the repaired texts or model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from trainlint.config import Config
from trainlint.fixes.edit import Fix
from trainlint.records import Report, ReportedFinding

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Repaired:
    """What `repair` made of one target.

    `report` is that of the unchanged target, each tried fix with its `verified` or `attempt`. `fixes` are
    those applied, in their order, `findings` what each of them remedies. `texts` are the edited files, by
    file name; nothing is written. `before` and `after` are the losses without and with all of them, in the
    mean over seeds, at equal `steps`; None where there is none.
    """

    report: Report
    fixes: Sequence[Fix] = ()
    findings: Sequence[ReportedFinding] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    model: nn.Module | None = None
    before: float | None = None
    after: float | None = None
    steps: int = 0


def repair(
    target: str | os.PathLike[str],
    inputs: Any = None,
    *,
    config: Config | None = None,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> Repaired:
    """Check a file, try its fixes, and apply the best combination of those that are verified.

    `config` says for how many steps (`probe_steps`) and seconds (`verify_seconds`), `settings` are those of
    `trainlint.check`. Raises `UsageError` as that does.
    """
    from trainlint.api import check
    from trainlint.verification.files import texts_with

    config = msgspec.structs.replace(config or Config(), verify=True)
    report = check(target, inputs, config=config, progress=progress, **settings)
    for finding in report.findings:
        for fix in finding.fixes[:1]:
            if fix.verified is not None and fix.edits:
                proof = fix.verified
                return Repaired(
                    report, [fix], [finding], texts_with(fix.edits),
                    before=proof.before, after=proof.after, steps=proof.steps,
                )  # fmt: skip
    return Repaired(report)
