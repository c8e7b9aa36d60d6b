"""Analyse one live model: inputs, capture, graph, rules, diagnosis. Used in the child and by `check()`."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from trainlint.analysis.layers import doubtful_faults
from trainlint.analysis.variants import Variants
from trainlint.capture.inputs import Inputs, synthesize
from trainlint.capture.tracer import Recording, capture
from trainlint.diagnosis import diagnose
from trainlint.engine import Facts, FactUnavailable, RawFinding, failures_as_text, run_rules
from trainlint.errors import InputError
from trainlint.fixes.source import SourceEdits
from trainlint.graph import Graph
from trainlint.loss.uses import Losses, Recipe, losses_of
from trainlint.records import TargetResult
from trainlint.rule import Settings
from trainlint.sites import owner_of

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Analysis:
    """The findings on one model and the record of what was done."""

    findings: list[RawFinding]
    result: TargetResult


def analyze(
    model: nn.Module,
    inputs: Inputs | None,
    *,
    target: str,
    settings: Settings,
    recipe: Recipe | None = None,
    notes: Sequence[str] = (),
    provisionally: Callable[[Analysis], None] | None = None,
) -> Analysis:
    """Check one model. Without `inputs` they are synthesised. The model is as before afterwards.

    `recipe` is what is known of its loss and targets.

    `provisionally` gets what the graph alone shows before the model is really run, which may end the
    process.
    """
    started = time.monotonic()

    def failed(reason: str) -> Analysis:
        seconds = time.monotonic() - started
        result = TargetResult(target, "error", reason, seconds=round(seconds, 3), notes=list(notes))
        return Analysis([], result)

    try:
        if inputs is None:
            found = synthesize(model)
            inputs, recording = found.inputs, found.recording
        else:
            recording = capture(model, inputs.args, inputs.kwargs)
    except InputError as error:
        return failed(_no_inputs(error))
    if recording.exception is not None:
        return failed(_raised(recording, inputs))
    graph = Graph(
        recording.graph, recording.model, faults=recording.faults, inputs_given=inputs.given
    )
    doubtful = unexplained_faults(graph)
    if doubtful:
        return failed(doubtful)
    facts = _facts(inputs, graph, settings, recipe or Recipe())
    graphic = [rule for rule in settings.rules if "signal" not in rule.stages]
    measuring = [rule for rule in settings.rules if "signal" in rule.stages]
    stages = ["static"]
    outcome = run_rules(graphic, facts, target=target, options=settings.options)

    def analysis() -> Analysis:
        problems = list(failures_as_text(outcome.failures))
        result = TargetResult(
            target,
            "error" if problems else "ok",
            "; ".join(problems) or None,
            stages=stages,
            seconds=round(time.monotonic() - started, 3),
            inputs=f"{inputs.describe()}, {inputs.origin}",
            operations=len(graph.calls_in_order),
            notes=[*notes, *_not_measured(facts)],
        )
        return Analysis(diagnose(outcome.findings), result)

    if measuring and "signal" in settings.stages and provisionally is not None:
        provisionally(analysis())
    # Rules that can do without the signal run in any case.
    measured = run_rules(measuring, facts, target=target, options=settings.options)
    outcome.findings.extend(measured.findings)
    outcome.failures.extend(measured.failures)
    if facts.has("Signal") or facts.has("Influence"):
        stages.append("signal")
    return analysis()


_MISSING: Final = re.compile(r"has no attribute '(\w+)'")
_MEASUREMENTS: Final = {
    "Signal": "not measured on real numbers",
    "Influence": "not measured what influences what",
}


def _not_measured(facts: Facts) -> list[str]:
    """Which facts could not be had, and why; each reason once."""
    reasons: dict[str, str] = {}
    for name in sorted(facts.missing, key=lambda name: name != "Signal"):
        what = _MEASUREMENTS.get(name, f"not known: {name.lower()}")
        reasons.setdefault(facts.missing[name], what)
    return [f"{what}: {reason}" for reason, what in reasons.items()]


def _facts(inputs: Inputs, graph: Graph, settings: Settings, recipe: Recipe) -> Facts:
    facts = Facts(
        {
            "Graph": graph,
            "Variants": Variants(inputs, graph),
            "SourceEdits": SourceEdits(lambda name: owner_of(name) == "project"),
        }
    )
    facts.offer("Propagation", lambda: _propagation(graph, facts.get("Losses")))
    facts.offer("Losses", lambda: _losses(graph, recipe))
    if "signal" in settings.stages and not graph.faults:
        facts.offer("Signal", lambda: _signal(inputs, graph, facts.get("Losses")))
        facts.offer("Influence", lambda: _influence(inputs, graph, facts.get("Losses")))
    return facts


# Each is imported only where a rule asks for it.


def _propagation(graph: Graph, losses: Losses | None) -> Any:
    from trainlint.theory.propagation import propagate

    judged = [] if losses is None else [call.scores for call in losses.calls]
    return propagate(graph, judged=tuple(dict.fromkeys(judged)))


def _losses(graph: Graph, recipe: Recipe) -> Losses:
    from trainlint.loss.objective import given_loss

    given = None if recipe.loss is None else given_loss(recipe.loss, graph)
    return losses_of(graph, recipe, given)


def _signal(inputs: Inputs, graph: Graph, losses: Losses | None) -> Any:
    from trainlint.loss.objective import objective_of
    from trainlint.measure.pulse import pulse

    objective = None if losses is None else objective_of(losses)

    def another() -> Any:
        try:
            return pulse(graph.model, inputs, graph, objective=objective, seed=1)
        except FactUnavailable:
            return None

    return replace(pulse(graph.model, inputs, graph, objective=objective), again=another)


def _influence(inputs: Inputs, graph: Graph, losses: Losses | None) -> Any:
    from trainlint.measure.perturbation import influence

    calls = () if losses is None else losses.calls
    asked = frozenset(call.next_of for call in calls if call.next_of)
    return influence(graph.model, inputs, graph, asked=asked)


def unexplained_faults(graph: Graph) -> str | None:
    """Why made-up inputs cannot settle the analysis, or None where they can.

    A fault that other inputs might not have shown is no finding, and what lies behind it is in doubt.
    """
    for node in doubtful_faults(graph):
        operation = graph.operation(node)
        site = operation.site
        place = f" at {site.filename}:{site.row}" if site is not None else ""
        reason = str(operation.error).strip().partition("\n")[0]
        shapes = ", ".join(
            str(graph.shape(inner)) for inner in graph.nodes if inner.op == "placeholder"
        )
        return (
            f"no inputs found on which it runs; with {shapes} {graph.label(node)}{place} "
            f"refuses: {reason.rstrip('.')}. Give example_inputs in the file, or --inputs"
        )
    return None


def _no_inputs(error: InputError) -> str:
    if error.refusal is None:
        return str(error)
    from trainlint.capture.tracer import site_of

    site = site_of(error.refusal)
    place = f" at {site.filename}:{site.row}" if site is not None else ""
    reason = describe_error(error.refusal)
    if error.is_bug:
        return f"forward raised {reason}{place}, whatever the inputs"
    return (
        f"{error}; first it raised {reason.rstrip('.')}{place}. "
        "Give example_inputs in the file, or --inputs"
    )


def _raised(recording: Recording, inputs: Inputs) -> str:
    assert recording.exception is not None
    site = recording.exception_site
    place = f" at {site.filename}:{site.row}" if site is not None else ""
    return (
        f"forward raised {describe_error(recording.exception)}{place}, "
        f"on inputs {inputs.describe()} {inputs.origin}"
    )


def describe_error(error: BaseException) -> str:
    """`ValueError: first line of the message`, and the attribute that may be meant."""
    message = str(error).strip().partition("\n")[0]
    near = _meant(error)
    message += f" (did you mean {near}?)" if near else ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _meant(error: BaseException) -> str | None:
    """The name of a model's layer or attribute next to the one that it does not have."""
    model = getattr(error, "obj", None)
    missing = _MISSING.search(str(error)) if isinstance(error, AttributeError) else None
    if missing is None or model is None or not hasattr(model, "named_children"):
        return None
    known = {*vars(model), *(name for name, _ in model.named_children())}
    known |= {name for name, _ in model.named_parameters(recurse=False)}
    names = [name for name in sorted(known) if not name.startswith("_")]
    return next(iter(difflib.get_close_matches(missing[1], names, n=1)), None)
