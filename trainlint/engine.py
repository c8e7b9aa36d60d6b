"""Run the selected rules on the facts of one subject and locate what they find.

The engine knows no rule: it reads from each rule's signature which facts it wants, and hands them over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainlint.fixes.edit import Location
from trainlint.records import ReportedFinding
from trainlint.rule import FACT_STAGES, Finding, NotMeasurable, Rule

if TYPE_CHECKING:
    from trainlint.graph import Graph
    from trainlint.sites import Site


@dataclass(frozen=True)
class RawFinding:
    """A located finding with what diagnosis needs besides.

    `order` is the place of its node in the order of execution, or that among its rule's findings.
    `paths` are the modules and parameters that it is about or that the fault harms, by name.
    """

    reported: ReportedFinding
    rule: Rule
    fault: Any
    starved: float
    order: int
    affects: frozenset[Any] = frozenset()
    paths: frozenset[str] = frozenset()
    unreached: frozenset[str] = frozenset()


class FactUnavailable(Exception):  # noqa: N818 (it is an answer, not an error)
    """A fact cannot be had for this subject; the text says why, for the report."""


class Facts:
    """What is known of one subject. A fact is made when a rule first asks for it, and once.

    `missing` maps the names of facts that could not be made to the reasons.
    """

    def __init__(self, known: Mapping[str, Any] | None = None) -> None:
        self._known: dict[str, Any] = dict(known or {})
        self._makers: dict[str, Callable[[], Any]] = {}
        self.missing: dict[str, str] = {}

    def offer(self, name: str, make: Callable[[], Any]) -> None:
        """Let `make` provide the fact; it may raise `FactUnavailable`."""
        self._makers[name] = make

    def get(self, name: str) -> Any:
        """The fact, or None where there is none."""
        if name not in self._known:
            make = self._makers.get(name)
            if make is None:
                return None
            try:
                self._known[name] = make()
            except FactUnavailable as reason:
                self._known[name] = None
                self.missing[name] = str(reason)
            except Exception as error:  # a fault of ours must not lose what other rules found
                self._known[name] = None
                self.missing[name] = f"internal error: {type(error).__name__}: {error}"
        return self._known[name]

    def has(self, name: str) -> bool:
        """Whether the fact was made."""
        return self._known.get(name) is not None


@dataclass
class Outcome:
    """The findings of the rules, what they could not measure, and the rules that failed themselves."""

    findings: list[RawFinding] = field(default_factory=list)
    unmeasured: list[tuple[Rule, str]] = field(default_factory=list)
    failures: list[tuple[Rule, Exception]] = field(default_factory=list)


def run_rules(
    rules: Sequence[Rule],
    facts: Facts,
    *,
    target: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Outcome:
    """Run every rule whose facts are all there, except those that it can do without.

    `options` maps rule names or codes to settings.
    """
    outcome = Outcome()
    for rule in rules:
        if not rule.facts:
            continue
        arguments = {parameter: _fact(fact, rule, facts) for parameter, fact in rule.facts.items()}
        if any(
            value is None and parameter not in rule.optional
            for parameter, value in arguments.items()
        ) or all(value is None for value in arguments.values()):
            continue
        settings = _settings(rule, options or {})
        try:
            for finding in rule.function(**arguments, **settings):
                if isinstance(finding, NotMeasurable):
                    outcome.unmeasured.append((rule, finding.reason))
                    continue
                order = len(outcome.findings)
                stage = _stage(rule, facts)
                outcome.findings.append(
                    _located(finding, rule, facts.get("Graph"), target, order, stage)
                )
        except Exception as error:  # a fault of the rule, not of the user's model
            outcome.failures.append((rule, error))
    return outcome


def _fact(name: str, rule: Rule, facts: Facts) -> Any:
    """The fact, but a training run only where the parts that the rule judges are the user's."""
    fact = facts.get(name)
    if name == "Trace" and fact is not None and not rule.own <= fact.own:
        return None
    return fact


def _stage(rule: Rule, facts: Facts) -> str:
    """The last stage that had a say."""
    for stage in ("probe", "signal", "data"):
        names = [name for name, given in FACT_STAGES.items() if given == stage]
        if any(name in rule.facts.values() and facts.has(name) for name in names):
            return stage
    return rule.stages[0]


def _settings(rule: Rule, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in (rule.name, rule.code):
        for option, value in options.get(name, {}).items():
            merged[option.replace("-", "_")] = value
    return merged


def _located(
    finding: Finding, rule: Rule, graph: Graph | None, target: str, order: int, stage: str
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
        stage=stage,
        target=target,
        module=module or "",
        filename=filename,
        location=start,
        end_location=end,
        evidence=dict(finding.evidence),
        fixes=list(finding.fixes),
    )
    affects = frozenset(finding.affects)
    paths = frozenset(_paths(affects, graph)) | ({module} if module else set())
    return RawFinding(
        reported,
        rule,
        finding.fault,
        finding.starved,
        order,
        affects,
        paths,
        frozenset(finding.unreached),
    )


def _paths(affects: Iterable[Any], graph: Graph | None) -> Iterator[str]:
    for affected in affects:
        if isinstance(affected, str):
            yield affected
        elif graph is not None and getattr(affected, "op", "") == "get_attr":
            yield str(affected.target)
        elif graph is not None and hasattr(affected, "all_input_nodes"):
            yield graph.operation(affected).module


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


def unmeasured_as_text(unmeasured: Sequence[tuple[Rule, str]]) -> Iterator[str]:
    """`CODE name: reason` for each rule that could not say, each reason once."""
    yield from dict.fromkeys(f"{rule.code} {rule.name}: {reason}" for rule, reason in unmeasured)


def failures_as_text(failures: Sequence[tuple[Rule, Exception]]) -> Iterator[str]:
    """One line for each rule that failed."""
    for rule, error in failures:
        yield f"rule {rule.code} failed: {type(error).__name__}: {error}"
