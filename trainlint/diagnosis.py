"""From many findings to few: one fault is one finding, causes come first, the worst is on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from trainlint.engine import RawFinding
from trainlint.records import ReportedFinding
from trainlint.rule import Confidence, Severity

_MEASURED: Final = "probe"


def diagnose(findings: Sequence[RawFinding]) -> list[RawFinding]:
    """Merge what one line of source did to several modules, nest symptoms under their cause, and rank."""
    merged, same = _merge_same_line(findings)
    merged = _nest_same_fault(merged, same)
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


def _merge_same_line(findings: Sequence[RawFinding]) -> tuple[list[RawFinding], dict[Any, Any]]:
    """A constructor call in a loop or a block class builds many modules: that is one finding.

    With it go the faults that thereby turned out to be one, each with the one that it became.
    """
    groups: dict[Any, list[RawFinding]] = {}
    for finding in findings:
        reported = finding.reported
        key = (
            (reported.code, reported.filename, reported.location, reported.end_location)
            if reported.location is not None
            else (reported.code, reported.module, finding.order)
        )
        groups.setdefault(key, []).append(finding)
    same: dict[Any, Any] = {}
    for first, *others in groups.values():
        for other in others:
            one, two = _root(same, first.fault), _root(same, other.fault)
            if one is not None and two is not None and one != two:
                same[two] = one
    return [_merged(group) for group in groups.values()], same


def _root(same: dict[Any, Any], fault: Any) -> Any:
    while fault in same:
        fault = same[fault]
    return fault


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
        first.reported,
        message=first.reported.message + note,
        severity=_worst(group),
        evidence=evidence,
    )
    return _with_shares(replace(first, reported=reported), group)


def _nest_same_fault(findings: list[RawFinding], same: dict[Any, Any]) -> list[RawFinding]:
    """Findings of one fault: the first in order of execution stays, the others become its symptoms."""
    groups: dict[Any, list[RawFinding]] = {}
    for finding in sorted(findings, key=lambda finding: finding.order):
        fault = _root(same, finding.fault)
        key = id(finding) if fault is None else ("fault", fault)
        groups.setdefault(key, []).append(finding)
    return [_with_symptoms(head, symptoms) for head, *symptoms in groups.values()]


def _nest_explained(findings: list[RawFinding]) -> list[RawFinding]:
    """Put each finding under the one that causes it, through a graph of who explains whom.

    A rule's `explains` names its effects; two findings are connected if they are about the same module
    or share a node that they affect. Causes of causes take it all; of those that explain each other, or
    that both explain a third, the first in rank does.
    """
    explained = {name for finding in findings for name in finding.rule.explains}
    if not any(finding.reported.name in explained for finding in findings):
        return findings
    import networkx as nx

    causes: nx.DiGraph[int] = nx.DiGraph()
    causes.add_nodes_from(range(len(findings)))
    causes.add_edges_from(
        (place, other)
        for place, finding in enumerate(findings)
        for other, symptom in enumerate(findings)
        if place != other
        and symptom.reported.name in finding.rule.explains
        and _are_connected(finding, symptom)
    )
    rounds = nx.condensation(causes)  # without circles
    taken: set[int] = set()
    heads: list[RawFinding] = []
    members = nx.get_node_attributes(rounds, "members")
    roots = [component for component in rounds if rounds.in_degree(component) == 0]
    first = {root: min(members[root], key=lambda place: _rank(findings[place])) for root in roots}

    def turn(root: int) -> Any:
        # What the graph shows was there before what training shows.
        cause = findings[first[root]]
        return (cause.reported.stage == _MEASURED, *_rank(cause))

    for root in sorted(roots, key=turn):
        below = {root} | nx.descendants(rounds, root)
        places = {place for component in below for place in members[component]}
        places -= taken | {first[root]}
        taken |= places
        symptoms = [findings[place] for place in sorted(places, key=lambda p: _rank(findings[p]))]
        heads.append(_with_symptoms(findings[first[root]], symptoms))
    return heads


def _are_connected(cause: RawFinding, symptom: RawFinding) -> bool:
    if cause.reported.module == symptom.reported.module or cause.affects & symptom.affects:
        return True
    if symptom.reported.module in cause.affects:  # a module that the cause names
        return True
    if symptom.reported.stage != _MEASURED:
        return False
    # What is seen of a run as a whole has no module: any part of the model may be why, or suffer by it.
    if not symptom.reported.module:
        return True
    if cause.reported.stage == _MEASURED and not cause.reported.module:
        return True
    return any(_is_in(one, other) or _is_in(other, one)
               for one in cause.paths for other in symptom.paths)  # fmt: skip


def _is_in(path: str, module: str) -> bool:
    """Whether the module or parameter is in this one. The model as a whole is no answer to where."""
    return bool(module) and (path == module or path.startswith(f"{module}."))


def _with_symptoms(finding: RawFinding, symptoms: Sequence[RawFinding]) -> RawFinding:
    if not symptoms:
        return finding
    known: list[ReportedFinding] = list(finding.reported.symptoms)
    for symptom in symptoms:  # one level: a symptom's own symptoms stand beside it
        known += [
            msgspec.structs.replace(symptom.reported, symptoms=[]),
            *symptom.reported.symptoms,
        ]
    family = [finding, *symptoms]
    # A cause is as bad as what it does: else a warning would hide an error from the exit status.
    reported = msgspec.structs.replace(
        finding.reported,
        message=_with_measured(finding.reported, known),
        symptoms=known,
        severity=_worst(family),
    )
    return _with_shares(replace(finding, reported=reported), family)


def _with_measured(cause: ReportedFinding, symptoms: Sequence[ReportedFinding]) -> str:
    """The cause's message, with what its symptoms measured of it in training."""
    figures = [cause.evidence.get("measured"), *(s.evidence.get("measured") for s in symptoms)]
    if cause.stage == _MEASURED:
        return cause.message
    texts = dict.fromkeys(figure for figure in figures if isinstance(figure, str))
    new = [figure for figure in texts if figure and figure not in cause.message]
    return f"{cause.message}; measured in training: {', '.join(new)}" if new else cause.message


def _worst(findings: Sequence[RawFinding]) -> str:
    return min((finding.reported.severity for finding in findings),
               key=lambda severity: Severity(severity).rank)  # fmt: skip


def _with_shares(head: RawFinding, family: Sequence[RawFinding]) -> RawFinding:
    return replace(
        head,
        starved=max(finding.starved for finding in family),
        affects=frozenset().union(*(finding.affects for finding in family)),
        paths=frozenset[str]().union(*(finding.paths for finding in family)),
    )
