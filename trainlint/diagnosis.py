"""From many findings to few: one fault is one finding, causes come first, the worst is on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from trainlint.engine import RawFinding
from trainlint.records import ReportedFinding
from trainlint.rule import Confidence, Severity


def diagnose(findings: Sequence[RawFinding]) -> list[RawFinding]:
    """Merge what one line of source did to several modules, nest symptoms under their cause, and rank."""
    merged = _merge_same_line(findings)
    merged = _nest_same_fault(merged)
    merged = _nest_explained(merged)
    return sorted(merged, key=_rank)


def _rank(finding: RawFinding) -> tuple[Any, ...]:
    reported = finding.reported
    place = (reported.location.row, reported.location.column) if reported.location else (0, 0)
    return (
        Severity(reported.severity).rank,
        Confidence(reported.confidence).rank,
        -round(finding.starved, 3),
        reported.filename or "",
        place,
        finding.order,
    )


def _merge_same_line(findings: Sequence[RawFinding]) -> list[RawFinding]:
    """A constructor call in a loop or a block class builds many modules: that is one finding."""
    groups: dict[Any, list[RawFinding]] = {}
    for finding in findings:
        reported = finding.reported
        key = (
            (reported.code, reported.filename, reported.location, reported.end_location)
            if reported.location is not None
            else (reported.code, reported.module, finding.order)
        )
        groups.setdefault(key, []).append(finding)
    return [_merged(group) for group in groups.values()]


def _merged(group: list[RawFinding]) -> RawFinding:
    first = group[0]
    if len(group) == 1:
        return first
    modules = list(dict.fromkeys(finding.reported.module for finding in group))
    messages = list(dict.fromkeys(finding.reported.message for finding in group))
    others = len(modules) - 1
    note = f" (and {others} more built by this line)" if others > 0 else ""
    evidence = {**first.reported.evidence, "modules": modules}
    if len(messages) > 1:
        evidence["messages"] = messages
    reported = msgspec.structs.replace(
        first.reported, message=first.reported.message + note, evidence=evidence
    )
    starved = max(finding.starved for finding in group)
    return RawFinding(reported, first.rule, first.fault, starved, first.order)


def _nest_same_fault(findings: list[RawFinding]) -> list[RawFinding]:
    """Findings of one fault: the first in order of execution stays, the others become its symptoms."""
    heads: dict[Any, RawFinding] = {}
    kept: list[RawFinding] = []
    findings = sorted(findings, key=lambda finding: finding.order)
    for finding in findings:
        if finding.fault is None or finding.fault not in heads:
            kept.append(finding)
            if finding.fault is not None:
                heads[finding.fault] = finding
    for fault, head in heads.items():
        symptoms = [f for f in findings if f.fault == fault and f is not head]
        if symptoms:
            kept[kept.index(head)] = _with_symptoms(head, symptoms)
    return kept


def _nest_explained(findings: list[RawFinding]) -> list[RawFinding]:
    """A finding whose rule another finding's rule explains, for the same module, goes under it.

    Causes of causes take it all; of two that explain each other the first stays.
    """
    cause_of: dict[int, RawFinding] = {}

    def root(finding: RawFinding) -> RawFinding:
        while id(finding) in cause_of:
            finding = cause_of[id(finding)]
        return finding

    for finding in findings:
        for symptom in findings:
            if (
                symptom.reported.name in finding.rule.explains
                and symptom.reported.module == finding.reported.module
                and id(symptom) not in cause_of
                and root(finding) is not symptom
            ):
                cause_of[id(symptom)] = finding
    return [
        _with_symptoms(finding, [f for f in findings if f is not finding and root(f) is finding])
        for finding in findings
        if id(finding) not in cause_of
    ]


def _with_symptoms(finding: RawFinding, symptoms: Sequence[RawFinding]) -> RawFinding:
    if not symptoms:
        return finding
    known: list[ReportedFinding] = list(finding.reported.symptoms)
    for symptom in symptoms:  # one level: a symptom's own symptoms stand beside it
        known += [
            msgspec.structs.replace(symptom.reported, symptoms=[]),
            *symptom.reported.symptoms,
        ]
    reported = msgspec.structs.replace(finding.reported, symptoms=known)
    starved = max(finding.starved, *(symptom.starved for symptom in symptoms))
    return RawFinding(reported, finding.rule, finding.fault, starved, finding.order)
