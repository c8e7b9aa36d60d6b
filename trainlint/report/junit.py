"""JUnit XML for the test reports of CI systems: a case for each finding, and for each clean target.

CI systems know a case by its class and name from one run to the next: these hold no line numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from trainlint.fingerprints import in_repository
from trainlint.records import Report, ReportedFinding, TargetResult
from trainlint.rule import Severity


def render(report: Report, *, show_info: bool = False, fail_on: str = "error") -> str:
    """One suite. A finding at or above `fail_on` is a failure, others are passed cases with their text."""
    suite = ET.Element("testsuite", name="trainlint")
    failures = errors = cases = 0
    for target in report.targets:
        own = [
            finding
            for finding in report.findings
            if finding.target == target.target and (show_info or finding.severity != "info")
        ]
        for finding, name in zip(own, _names(own), strict=True):
            cases += 1
            failures += _add_finding(suite, finding, name, fail_on)
        if not own or target.status != "ok":
            cases += 1
            errors += _add_target(suite, target)
    for name, count in (
        ("tests", cases),
        ("failures", failures),
        ("errors", errors),
        ("skipped", sum(target.status == "skipped" for target in report.targets)),
    ):
        suite.set(name, str(count))
    suite.set("time", f"{sum(target.seconds for target in report.targets):.3f}")
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}'


def _add_target(suite: ET.Element, target: TargetResult) -> bool:
    case = ET.SubElement(
        suite, "testcase", classname=target.target, name="trainlint", time=f"{target.seconds:.3f}"
    )
    if target.status == "error":
        problem = ET.SubElement(case, "error", message=_clean(target.reason or ""))
        problem.text = _clean(target.output)
    elif target.status == "skipped":
        ET.SubElement(case, "skipped", message=_clean(target.reason or ""))
    return target.status == "error"


def _add_finding(suite: ET.Element, finding: ReportedFinding, name: str, fail_on: str) -> bool:
    case = ET.SubElement(suite, "testcase", classname=finding.target, name=name, time="0")
    if finding.filename is not None:
        case.set("file", in_repository(finding.filename))
    if finding.location is not None:
        case.set("line", str(finding.location.row))
    place = "" if finding.filename is None else f"{in_repository(finding.filename)}"
    if finding.location is not None:
        place += f":{finding.location.row}:{finding.location.column}"
    lines = [f"{place}: {finding.severity}" if place else finding.severity, finding.message]
    lines += [f"fix: {fix.title}" for fix in finding.fixes]
    fails = fail_on != "never" and Severity(finding.severity).rank <= Severity(fail_on).rank
    kind = "failure" if fails else "system-out"
    part = ET.SubElement(case, kind)
    if fails:
        part.set("type", finding.severity)
        part.set("message", _clean(finding.message))
    part.text = _clean("\n".join(lines))
    return fails


def _names(findings: Sequence[ReportedFinding]) -> list[str]:
    """`NRM001 norm-features-mismatch stem.norm` of each; others of that name are numbered as they stand."""
    names = [f"{f.code} {f.name} {f.module}".rstrip() for f in findings]
    numbered = list(names)
    counts: Counter[str] = Counter()
    for index in sorted(range(len(findings)), key=lambda index: _position(findings[index])):
        name = names[index]
        counts[name] += 1
        if counts[name] > 1:
            numbered[index] = f"{name} ({counts[name]})"
    return numbered


def _position(finding: ReportedFinding) -> tuple[str, int, int]:
    place = finding.location
    row, column = (0, 0) if place is None else (place.row, place.column)
    return finding.filename or "", row, column


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c for c in text if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff"))
