"""From the trace of a run to findings: the rules that read a `Trace`, and diagnosis."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from trainlint.diagnosis import diagnose
from trainlint.engine import Facts, failures_as_text, run_rules, unmeasured_as_text
from trainlint.fixes.source import SourceEdits
from trainlint.observe.series import series_of
from trainlint.records import ModelGraph, ModelSeries, Series, TargetResult
from trainlint.rule import Confidence
from trainlint.sites import owner_of
from trainlint.subject import Analysis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainlint.data.facts import Data
    from trainlint.engine import RawFinding
    from trainlint.observe.structure import StaticFindings
    from trainlint.observe.trace import Trace
    from trainlint.rule import Settings


def judged(
    trace: Trace,
    *,
    target: str,
    settings: Settings,
    seconds: float = 0.0,
    notes: Sequence[str] = (),
    static: StaticFindings | None = None,
    data: Data | None = None,
) -> Analysis:
    """The findings on a run as far as it was seen, joined to those on the graphs of its models.

    `data` are those that it read, once it is over.
    """
    known = {"Trace": trace, "SourceEdits": SourceEdits(lambda name: owner_of(name) == "project")}
    facts = Facts(known if data is None else {**known, "Data": data})
    rules = [rule for rule in settings.rules if {"Trace", "Data"} & set(rule.facts.values())]
    outcome = run_rules(rules, facts, target=target, options=settings.options)
    problems = list(failures_as_text(outcome.failures))
    series = series_of(trace)
    graphs = _graphs(static, trace, series)
    result = TargetResult(
        target,
        "error" if problems else "ok",
        "; ".join(problems) or None,
        stages=["watched"] if data is None else ["watched", "data"],
        seconds=round(seconds, 3),
        watched=what_was_watched(trace),
        not_measurable=list(unmeasured_as_text(outcome.unmeasured)),
        notes=[*notes, *trace.notes, *(static.notes if static else ())],
        series=series,
        graph=graphs[0] if graphs else None,
        more_graphs=graphs[1:],
    )
    found = [_tried(f, trace) for f in static.findings if _holds(f, trace)] if static else []
    return Analysis(diagnose([*found, *outcome.findings]), result)


def _graphs(static: StaticFindings | None, trace: Trace, series: Series | None) -> list[ModelGraph]:
    """The graphs in the order of the models' series, with what was recorded of each one's layers."""
    waiting = list(static.graphs) if static else []
    found = []
    for model, recorded in zip(trace.trained, series.models if series else (), strict=False):
        sizes = tuple((parameter.name, parameter.elements) for parameter in model.parameters)
        for pair in waiting:
            if pair[0] == sizes and pair[1].model == model.name:
                waiting.remove(pair)
                found.append(_measured(pair[1], recorded))
                break
    return [*found, *(graph for _, graph in waiting)]


def _measured(graph: ModelGraph, recorded: ModelSeries) -> ModelGraph:
    """With the gradients that were recorded at layers: the last, where a module applies several weights."""
    own = {layer.name: layer.gradient for layer in recorded.layers}
    parts = {layer.name.rpartition(".")[0]: layer.gradient for layer in recorded.layers}
    nodes = []
    for node in graph.nodes:
        gradient = own.get(node.module, parts.get(node.module)) if node.parameters else None
        if gradient is not None and math.isfinite(float(gradient)):
            node = msgspec.structs.replace(node, gradient=float(gradient))
        nodes.append(node)
    return ModelGraph(nodes, graph.edges, graph.model)


def _holds(finding: RawFinding, trace: Trace) -> bool:
    """Not where a gradient came to all that, as one forward had it, none can come to: others differ."""
    said = [p for model in trace.models for p in model.parameters if p.name in finding.unreached]
    return not said or any(p.trainable and not (p.reached and p.arrived) for p in said)


def _tried(finding: RawFinding, trace: Trace) -> RawFinding:
    """With the word of the training, where that left without a gradient all that can have none."""
    said = [p for model in trace.models for p in model.parameters if p.name in finding.unreached]
    names = {p.name for p in said}
    if not said or names != finding.unreached or any(p.reached and p.arrived for p in said):
        return finding
    reported = msgspec.structs.replace(
        finding.reported,
        evidence={
            **finding.reported.evidence,
            "gradient": f"none in {trace.steps} steps of training",
        },
        confidence=str(Confidence.CERTAIN),
    )
    return replace(finding, reported=reported)


def what_was_watched(trace: Trace) -> str:
    """`200 steps of Adam, 31 of them recorded; Net (4 layers, 1.2e+04 parameters)`."""
    kinds = Counter(optimizer.kind for optimizer in trace.optimizers if optimizer.steps)
    if not kinds:
        forwards = sum(sum(model.forwards.values()) for model in trace.models)
        return f"no optimizer step, {forwards} forwards" if forwards else "no model was run"
    names = " and ".join(kind if n == 1 else f"{n} {kind}" for kind, n in kinds.items())
    models = [
        f"{model.name} ({sum(p.elements for p in model.parameters):.2g} parameters)"
        for model in trace.models
        if model.optimized
    ]
    recorded = f"{len(trace.recorded)} of them recorded"
    what = f"{trace.steps} steps of {names}, {recorded}"
    return "; ".join([what, ", ".join(models)]) if models else what
