"""What code hosts show beside a change: GitHub's workflow commands, and GitLab's code quality report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from trainlint.fingerprints import fingerprint_of, in_repository
from trainlint.records import Report, ReportedFinding, TargetResult

_COMMANDS: Final = {"error": "error", "warning": "warning", "info": "notice"}
# GitLab's scale is info, minor, major, critical, blocker.
_SEVERITIES: Final = {"error": "critical", "warning": "major", "info": "info"}
_UNCHECKED: Final = "blocker"


def github(report: Report, *, show_info: bool = False) -> str:
    """One `::error file=...::message` a finding, the most severe first: GitHub shows ten of a kind."""
    lines = [_failure(target) for target in report.targets if target.status == "error"]
    lines += [
        _command(finding) for finding in report.findings if show_info or finding.severity != "info"
    ]
    return "\n".join(lines)


def _failure(target: TargetResult) -> str:
    """What could not be checked, at the file's first line where no other is known."""
    properties = {"title": "trainlint"}
    if _is_file(target.target):
        properties |= {"file": _file_of(target.target), "line": str(target.row or 1)}
    return f"::error {_shown(properties)}::{_data(f'{target.target}: {target.reason}')}"


def _command(finding: ReportedFinding) -> str:
    properties = {"title": f"{finding.code} {finding.name}"}
    if finding.filename is not None:
        properties["file"] = in_repository(finding.filename)
    if finding.location is not None:
        end = finding.end_location or finding.location
        properties["line"] = str(finding.location.row)
        properties["endLine"] = str(end.row)
        if end.row == finding.location.row:  # columns are of one line
            properties["col"] = str(finding.location.column)
            properties["endColumn"] = str(end.column)
    remedy = f"\n{finding.fixes[0].title}" if finding.fixes else ""
    said = _data(finding.message + remedy)
    return f"::{_COMMANDS[finding.severity]} {_shown(properties)}::{said}"


def _shown(properties: Mapping[str, str]) -> str:
    return ",".join(f"{name}={_property(value)}" for name, value in properties.items())


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def gitlab(report: Report, *, show_info: bool = False) -> str:
    """The JSON list that `artifacts:reports:codequality` takes.

    What has no file of its own is named by that of its target, line 1. What could not be checked is one
    more entry.
    """
    findings = [f for f in report.findings if show_info or f.severity != "info"]
    entries: list[dict[str, Any]] = [
        {
            "description": f"{target.target} could not be checked: {target.reason}",
            "check_name": "trainlint",
            "fingerprint": fingerprint_of(target.target),
            "severity": _UNCHECKED,
            "location": {"path": _file_of(target.target), "lines": {"begin": target.row or 1}},
        }
        for target in report.targets
        if target.status == "error"
    ]
    entries += [
        {
            "description": f"{finding.name}: {finding.message}",
            "check_name": finding.code,
            "fingerprint": finding.fingerprint,
            "severity": _SEVERITIES[finding.severity],
            "location": {"path": _path(finding), "lines": _lines(finding)},
        }
        for finding in findings
    ]
    return msgspec.json.format(msgspec.json.encode(entries), indent=2).decode()


def _path(finding: ReportedFinding) -> str:
    return _file_of(finding.target) if finding.filename is None else in_repository(finding.filename)


def _file_of(target: str) -> str:
    return in_repository(target.partition("::")[0])


def _is_file(target: str) -> bool:
    """Whether it names one, and not `package.module:name`."""
    return Path(target.partition("::")[0]).is_file()


def _lines(finding: ReportedFinding) -> dict[str, int]:
    if finding.location is None:
        return {"begin": 1}
    end = finding.end_location or finding.location
    return {"begin": finding.location.row, "end": end.row}
