"""SARIF 2.1.0, for code scanning: https://docs.oasis-open.org/sarif/sarif/v2.1.0/.

Files are named from the root of the repository. Columns count characters, as ours do.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from trainlint import __version__
from trainlint.fingerprints import in_repository
from trainlint.fixes.edit import Edit, Fix, Location
from trainlint.records import Report, ReportedFinding, TargetResult
from trainlint.registry import all_rules
from trainlint.rule import Rule

_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS: Final = {"error": "error", "warning": "warning", "info": "note"}
_ROOT: Final = "%SRCROOT%"
_LONGEST: Final = 1000  # of a full description: GitHub takes 1024 characters
FINGERPRINT: Final = "trainlint/v1"


def render(report: Report) -> str:
    """The whole report as one run, advice as notes."""
    codes = dict.fromkeys(
        part.code for finding in report.findings for part in (finding, *finding.symptoms)
    )
    rules = [rule for rule in all_rules() if rule.code in codes]
    places = {rule.code: number for number, rule in enumerate(rules)}
    failures = [_failure(target) for target in report.targets if target.status == "error"]
    run = {
        "tool": {
            "driver": {
                "name": "trainlint",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [_rule(rule) for rule in rules],
            }
        },
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {_ROOT: {"description": {"text": "the root of the repository"}}},
        "invocations": [
            {
                "executionSuccessful": not report.has_errors,
                "toolExecutionNotifications": failures,
            }
        ],
        "results": [_result(finding, places) for finding in report.findings],
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return msgspec.json.format(msgspec.json.encode(log), indent=2).decode()


def _failure(target: TargetResult) -> dict[str, Any]:
    said: dict[str, Any] = {
        "level": "error",
        "message": {"text": f"{target.target}: {target.reason}"},
    }
    if target.row is not None:
        place = {
            "artifactLocation": _artifact(target.target.partition("::")[0]),
            "region": {"startLine": target.row},
        }
        said["locations"] = [{"physicalLocation": place}]
    return said


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": _description(rule)},
        "help": {"text": rule.documentation, "markdown": rule.documentation},
        "defaultConfiguration": {"level": _LEVELS[str(rule.severity)]},
        "properties": {"tags": [rule.family], "trainlint/name": rule.name},
    }


def _description(rule: Rule) -> str:
    """What the rule's page says before its first heading, so many of the paragraphs as fit."""
    paragraphs = rule.documentation.partition("\n## ")[0].split("\n\n")[1:]
    text = rule.summary
    for paragraph in paragraphs:
        longer = f"{text} {' '.join(paragraph.split())}"
        if len(longer) > _LONGEST:
            break
        text = longer
    return text


def _result(finding: ReportedFinding, places: dict[str, int]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "level": _LEVELS[finding.severity],
        "message": {"text": finding.message},
        "locations": [_location(finding)],
        "partialFingerprints": {FINGERPRINT: finding.fingerprint},
        "properties": {
            "confidence": finding.confidence,
            "stage": finding.stage,
            "target": finding.target,
            "evidence": finding.evidence,
        },
    }
    if finding.code in places:
        result["ruleIndex"] = places[finding.code]
    related = [
        {**_location(symptom), "id": number, "message": {"text": f"so also: {symptom.message}"}}
        for number, symptom in enumerate(finding.symptoms, start=1)
    ]
    if related:
        result["relatedLocations"] = related
    fixes = [_fix(fix) for fix in finding.fixes if fix.edits]
    if fixes:
        result["fixes"] = fixes
    return result


def _location(finding: ReportedFinding) -> dict[str, Any]:
    logical = [{"fullyQualifiedName": name} for name in (finding.module or finding.target,)]
    if finding.filename is None:
        return {"logicalLocations": logical}
    physical: dict[str, Any] = {"artifactLocation": _artifact(finding.filename)}
    if finding.location is not None:
        physical["region"] = _region(finding.location, finding.end_location)
    return {"physicalLocation": physical, "logicalLocations": logical}


def _artifact(filename: str) -> dict[str, str]:
    from urllib.parse import quote

    path = in_repository(filename)
    if Path(path).is_absolute():  # in no repository: what is relative to its root is elsewhere
        return {"uri": Path(path).as_uri()}
    return {"uri": quote(path), "uriBaseId": _ROOT}


def _region(start: Location, end: Location | None) -> dict[str, int]:
    region = {"startLine": start.row, "startColumn": start.column}
    if end is not None and (end.row, end.column) >= (start.row, start.column):
        region |= {"endLine": end.row, "endColumn": end.column}
    return region


def _fix(fix: Fix) -> dict[str, Any]:
    return {
        "description": {"text": f"{fix.title} ({fix.safety})"},
        "artifactChanges": [
            {
                "artifactLocation": _artifact(filename),
                "replacements": [_replacement(e) for e in fix.edits if e.filename == filename],
            }
            for filename in _unique(edit.filename for edit in fix.edits)
        ],
    }


def _replacement(edit: Edit) -> dict[str, Any]:
    return {
        "deletedRegion": _region(edit.location, edit.end_location),
        "insertedContent": {"text": edit.content},
    }


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
