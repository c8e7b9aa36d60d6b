"""`trainlint.verification.repair`: apply what is proved to help, and measure all of it together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from trainlint.config import Config
from trainlint.fixes.edit import Fix
from trainlint.records import CombinedFixes, Report, ReportedFinding

if TYPE_CHECKING:
    from torch import nn

    from trainlint.verification.changes import Version


@dataclass(frozen=True)
class Repaired:
    """What `repair` made of a target.

    `report` is that of the unchanged one, each fix that was tried with its `verified` or `attempt`. `fixes`
    are those applied, in their order, `findings` what each of them remedies; none where nothing helped.
    `repair` has the losses without and with all of them, at equal steps, and which findings are left.
    `texts` are the edited files, by file name: nothing is written. `model` is the repaired copy of a live
    model, not trained.
    """

    report: Report
    fixes: Sequence[Fix] = ()
    findings: Sequence[ReportedFinding] = ()
    repair: CombinedFixes | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    version: Version | None = None
    model: nn.Module | None = None

    @property
    def before(self) -> float | None:
        """The loss after as many steps without the fixes; None where it does not train."""
        return None if self.repair is None else self.repair.before

    @property
    def after(self) -> float | None:
        """The loss with them; None where there is no training."""
        return None if self.repair is None else self.repair.after


def repair(
    target: Any,
    inputs: Any = None,
    *,
    config: Config | None = None,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> Repaired:
    """Check a target, try its fixes, and apply the combination of them that helps.

    `target`, `inputs` and `settings` are as for `trainlint.check`: one file, or a live model with its
    `loss`, `optimizer` and `train_loader`. The first fix is the best of those that are verified or, where
    none is, that clear their finding at no cost in the loss; others follow as long as one more clears a
    finding of what is left. `config` says for how many steps each training goes (`probe_steps`), and how
    long all of it may take (`verify_seconds`).

    Of a file with several models all are checked, and the first with a combination is repaired. Raises
    `UsageError` as `check` does.
    """
    from trainlint.api import Asked, verified_check

    config = msgspec.structs.replace(config or Config(), verify=True)
    asked = Asked(config=config, progress=progress, **settings)
    verified = verified_check(target, inputs, asked)
    found = next(iter(verified.combinations.values()), None)
    if found is None:
        return Repaired(verified.report)
    return Repaired(
        verified.report,
        found.fixes,
        found.findings,
        found.repair,
        found.version.texts,
        found.version,
        verified.model,
    )
