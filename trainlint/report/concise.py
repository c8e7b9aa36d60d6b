"""One line a finding: `file:row:column: severity CODE name: message`, for editors and grep."""

from __future__ import annotations

from trainlint.records import Report, ReportedFinding


def render(report: Report) -> str:
    """The findings in rank order."""
    return "\n".join(line(finding) for finding in report.findings)


def line(finding: ReportedFinding) -> str:
    """The line of one finding; a model without source is named by its target and module."""
    if finding.filename is None or finding.location is None:
        place = f"{finding.target}:{finding.module}" if finding.module else finding.target
    else:
        place = f"{finding.filename}:{finding.location.row}:{finding.location.column}"
    return f"{place}: {finding.severity} {finding.code} {finding.name}: {finding.message}"
