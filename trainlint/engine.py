"""Run the selected rules on the facts of one subject and locate what they find.

The engine knows no rule: it reads from each rule's signature which facts it wants, and hands them over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainlint.fixes.edit import Location
from trainlint.records import ReportedFinding
from trainlint.rule import Finding, Rule

if TYPE_CHECKING:
    from trainlint.graph import Graph
    from trainlint.sites import Site


@dataclass(frozen=True)
class RawFinding:
    """A located finding with what diagnosis needs besides.

    `order` is the place of its node in the order of execution, or that among its rule's findings.
    """

    reported: ReportedFinding
    rule: Rule
    fault: Any
    starved: float
    order: int


@dataclass
class Outcome:
    """The findings of the rules, and the rules that failed themselves (rule, exception)."""

    findings: list[RawFinding] = field(default_factory=list)
    failures: list[tuple[Rule, Exception]] = field(default_factory=list)


def run_rules(
    rules: Sequence[Rule],
    facts: Mapping[str, Any],
    *,
    target: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Outcome:
    """Run every rule whose facts are all there.

    `facts` maps fact names (`Graph`) to their values, `options` rule names or codes to settings.
    """
    outcome = Outcome()
    for rule in rules:
        if not rule.facts or not all(fact in facts for fact in rule.facts.values()):
            continue
        arguments = {parameter: facts[fact] for parameter, fact in rule.facts.items()}
        settings = _settings(rule, options or {})
        try:
            for finding in rule.function(**arguments, **settings):
                order = len(outcome.findings)
                outcome.findings.append(_located(finding, rule, facts.get("Graph"), target, order))
        except Exception as error:  # a fault of the rule, not of the user's model
            outcome.failures.append((rule, error))
    return outcome


def _settings(rule: Rule, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in (rule.name, rule.code):
        for option, value in options.get(name, {}).items():
            merged[option.replace("-", "_")] = value
    return merged


def _located(
    finding: Finding, rule: Rule, graph: Graph | None, target: str, order: int
) -> RawFinding:
    where, module = finding.where, finding.module
    if graph is not None and hasattr(where, "all_input_nodes"):
        node = where
        order = graph.position(node)
        where = graph.place(node)
        if module is None:
            module = graph.operation(node).module
    filename, start, end = _span(where)
    reported = ReportedFinding(
        code=rule.code,
        name=rule.name,
        severity=str(finding.severity or rule.severity),
        confidence=str(finding.confidence),
        message=finding.message,
        stage=rule.stages[-1],
        target=target,
        module=module or "",
        filename=filename,
        location=start,
        end_location=end,
        evidence=dict(finding.evidence),
        fixes=list(finding.fixes),
    )
    return RawFinding(reported, rule, finding.fault, finding.starved, order)


def _span(where: Any) -> tuple[str | None, Location | None, Location | None]:
    if where is None:
        return None, None, None
    if isinstance(where, tuple):
        filename, row, column, end_column = where
        return filename, Location(row, column), Location(row, end_column)
    site: Site = where.project
    text = _text(site.filename)
    span = site.span()
    if span is None or text is None:
        return site.filename, Location(site.row, 1), Location(site.row, 1)
    row, end_row, column, end_column = span
    return site.filename, text.location(row, column), text.location(end_row, end_column)


def _text(filename: str) -> Any:
    from trainlint.fixes.source import SourceText

    return SourceText.read(filename)


def failures_as_text(failures: Sequence[tuple[Rule, Exception]]) -> Iterator[str]:
    """One line for each rule that failed."""
    for rule, error in failures:
        yield f"rule {rule.code} failed: {type(error).__name__}: {error}"
