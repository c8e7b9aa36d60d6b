"""One line a finding: `file:row:column: severity CODE name: message`, for editors and grep."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.records import RUN_STOPPED, Report, ReportedFinding


def render(report: Report, *, show_info: bool = False) -> str:
    """The findings in rank order; advice only where it is asked for, as in the text."""
    return "\n".join(
        line(finding) for finding in report.findings if show_info or finding.severity != "info"
    )


def remarks(report: Report) -> Iterator[str]:
    """What else there is to know, for another stream: models that were skipped or not measured, folds."""
    for target in report.targets:
        if target.status == "skipped":
            yield f"skipped {target.target}: {_on_one_line(target.reason or '')}"
        for note in target.notes:
            if target.status == "error" and note.startswith(RUN_STOPPED):
                continue  # it is the reason, or before it
            yield f"{target.target}: {_on_one_line(note)}"
        if target.cross_validation is not None:
            found = target.cross_validation
            loss, gap = found.validation_loss, found.gap
            yield (
                f"{target.target}: validation loss {loss.mean} ± {loss.corrected}, gap {gap.mean} ± "
                f"{gap.corrected}, over {len(found.folds)} folds"
            )


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def line(finding: ReportedFinding) -> str:
    """The line of one finding; a model without source is named by its target and module."""
    if finding.filename is None or finding.location is None:
        place = f"{finding.target}:{finding.module}" if finding.module else finding.target
    else:
        place = f"{finding.filename}:{finding.location.row}:{finding.location.column}"
    return f"{place}: {finding.severity} {finding.code} {finding.name}: {finding.message}"
