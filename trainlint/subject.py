"""Analyse one live model: inputs, capture, graph, rules, diagnosis. Used in the child and by `check()`."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from trainlint import unbound
from trainlint.analysis.layers import doubtful_faults
from trainlint.analysis.variants import Variants
from trainlint.capture.inputs import Inputs
from trainlint.capture.search import synthesize
from trainlint.capture.tracer import Recording, capture
from trainlint.diagnosis import diagnose
from trainlint.engine import (
    Facts,
    FactUnavailable,
    Outcome,
    RawFinding,
    failures_as_text,
    run_rules,
    unmeasured_as_text,
)
from trainlint.errors import InputError
from trainlint.fixes.source import SourceEdits
from trainlint.graph import Graph
from trainlint.loss.uses import Losses, Recipe, losses_of
from trainlint.observe.series import series_of
from trainlint.records import ModelGraph, TargetResult
from trainlint.rule import STAGES, Rule, Settings
from trainlint.sites import owner_of

if TYPE_CHECKING:
    from torch import nn

    from trainlint.probe.probing import Guard, OfWidth, Probe


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
    provisionally: Callable[[Analysis], None] | None = None,
    progress: Callable[[str], None] | None = None,
    guard: Guard | None = None,
    of_width: OfWidth | None = None,
) -> Analysis:
    """Check one model. Without `inputs` they are synthesised. The model is as before afterwards.

    `recipe` is what is known of its loss and targets, and with what it can be trained.

    `provisionally` gets what is known so far before the model is really run, and before it is trained,
    either of which may end the process. `progress` is told of the steps of the probe; `guard` is
    entered while it trains; `of_width` builds the model with its hidden sizes times a factor.
    """
    started = time.monotonic()
    recipe = recipe or Recipe()
    notes: list[str] = []

    def failed(reason: str) -> Analysis:
        seconds = time.monotonic() - started
        result = TargetResult(target, "error", reason, seconds=round(seconds, 3), notes=list(notes))
        return Analysis([], result)

    try:
        if inputs is None and "probe" in settings.stages:
            inputs = _inputs_of_loader(model, recipe)
        recording = None if inputs is None else capture(model, inputs.args, inputs.kwargs)
        if inputs is None and "probe" in settings.stages:
            inputs, recording = _inputs_of_loop(model, recipe)
        if inputs is None or recording is None:
            found = synthesize(model)
            inputs, recording = found.inputs, found.recording
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
    facts = _facts(inputs, graph, settings, recipe, guard)
    check = _Check(target, inputs, graph, facts, settings, notes, started)
    check.look_at_graph()
    check.look_at_data()
    if check.measures and provisionally is not None:
        provisionally(check.analysis())
    check.measure()
    if check.may_probe and recipe.setup.suffices:
        if provisionally is not None:
            provisionally(check.analysis())
        check.train(model, recipe, progress, guard, of_width)
    elif check.may_probe and recipe.setup.why:
        notes.append(f"not probed: {recipe.setup.why}")
    return check.analysis()


@dataclass
class _Check:
    """One check under way, stage by stage. `outcomes` is what the rules of each stage found."""

    target: str
    inputs: Inputs
    graph: Graph
    facts: Facts
    settings: Settings
    notes: Sequence[str]
    started: float
    stages: list[str] = field(default_factory=lambda: ["static"])
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    probe: Probe | None = None

    def look_at_graph(self) -> None:
        """What needs the graph alone."""
        self.outcomes["static"] = self._run(self._rules("static"))

    def look_at_data(self) -> None:
        """What needs the data, and no training."""
        self.outcomes["data"] = self._run(self._rules("data"))
        if self.facts.has("Data"):
            self.stages.append("data")

    def measure(self) -> None:
        """What needs a real pass. Rules that can do without what a stage measures run in any case."""
        for stage in ("signal", "probe"):
            self.outcomes[stage] = self._run(self._rules(stage))
        if self.facts.has("Signal") or self.facts.has("Influence"):
            self.stages.append("signal")

    def train(
        self,
        model: nn.Module,
        recipe: Recipe,
        progress: Callable[[str], None] | None,
        guard: Guard | None,
        of_width: OfWidth | None,
    ) -> None:
        """What needs a training."""
        from trainlint.probe.stage import probe_of, probed

        self.probe = probe_of(
            model,
            self.inputs,
            recipe,
            self.target,
            self.facts,
            self.settings,
            progress,
            guard,
            of_width,
        )
        self.outcomes["probe"] = probed(
            self.probe,
            self.facts,
            self._rules("probe"),
            self._run,
            remedies=self.settings.remedies,
        )
        if self.facts.has("Trace"):
            self.stages.append("probe")

    @property
    def measures(self) -> bool:
        """Whether the model will be run on real numbers."""
        return "signal" in self.settings.stages and bool(self._rules("signal"))

    @property
    def may_probe(self) -> bool:
        """Whether a probe is asked for, and rules for it, of a model that runs."""
        asked = "probe" in self.settings.stages and self.settings.probe_steps > 0
        return asked and bool(self._rules("probe")) and not self.graph.faults

    def _rules(self, stage: str) -> list[Rule]:
        """The rules whose last fact comes with this stage."""
        return [
            rule
            for rule in self.settings.rules
            if stage == max((s for s in rule.stages if s in STAGES), key=STAGES.index, default="")
        ]

    def _run(self, rules: Sequence[Rule]) -> Outcome:
        return run_rules(rules, self.facts, target=self.target, options=self.settings.options)

    def _outline(self) -> ModelGraph:
        from trainlint.analysis.outline import outline

        return outline(self.graph, self.facts.get("Signal") if self.facts.has("Signal") else None)

    def analysis(self) -> Analysis:
        """What is known so far."""
        outcomes = self.outcomes.values()
        problems = [text for outcome in outcomes for text in failures_as_text(outcome.failures)]
        unmeasured = [pair for outcome in outcomes for pair in outcome.unmeasured]
        probe = self.probe if self.probe is not None and self.probe.ran is not None else None
        result = TargetResult(
            self.target,
            "error" if problems else "ok",
            "; ".join(problems) or None,
            stages=list(self.stages),
            seconds=round(time.monotonic() - self.started, 3),
            inputs=f"{self.inputs.describe()}, {self.inputs.origin}",
            watched=None if probe is None else probe.described(),
            operations=len(self.graph.calls_in_order),
            not_measurable=list(unmeasured_as_text(unmeasured)),
            notes=[
                *self.notes,
                *_each_reason_once(
                    [*_not_measured(self.facts), *_not_read(self.facts)],
                    [] if probe is None else probe.notes(),
                ),
            ],
            series=None
            if "probe" not in self.stages
            else series_of(
                self.facts.get("Trace"),
                None if probe is None else probe.again,
                made_up=probe is not None and probe.is_made_up,
            ),
            graph=self._outline() if self.settings.graphs else None,
        )
        return Analysis(diagnose([f for outcome in outcomes for f in outcome.findings]), result)


def _inputs_of_loader(model: nn.Module, recipe: Recipe) -> Inputs | None:
    """The first samples that the user's own loader gives, if there is one and the model takes them."""
    if recipe.setup.train_loader is None or recipe.setup.step is not None:
        return None
    from trainlint.probe.batches import ProbeProblem
    from trainlint.probe.stage import first_inputs

    try:
        return first_inputs(model, recipe.setup)
    except ProbeProblem:  # the probe will say so
        return None


def _inputs_of_loop(
    model: nn.Module, recipe: Recipe
) -> tuple[Inputs, Recording] | tuple[None, None]:
    """The first samples that the user's own loop reads, if the model runs on them as they are.

    Where it does not, the loop may well change them first.
    """
    if recipe.setup.read_by_loop is None:
        return None, None
    inputs = _inputs_of_loader(
        model, replace(recipe, setup=replace(recipe.setup, train_loader=recipe.setup.read_by_loop))
    )
    recording = None if inputs is None else capture(model, inputs.args, inputs.kwargs)
    if inputs is None or recording is None or recording.exception or recording.faults:
        return None, None
    return inputs, recording


_PATIENCE: Final = 3
_MISSING: Final = re.compile(r"has no attribute '(\w+)'")
_MEASUREMENTS: Final = {
    "Signal": "not measured on real numbers",
    "Influence": "not measured what influences what",
    "Trace": "not probed",
    "Remedies": "no remedies were tried",
    "Data": "the data were not looked at",
}


def _not_measured(facts: Facts) -> list[str]:
    """Which facts could not be had, and why; each reason once."""
    reasons: dict[str, str] = {}
    names = sorted(facts.missing.keys() - {"Memorisation"})
    # Of several that one reason prevents, the one that matters more.
    for name in sorted(names, key=lambda name: (name != "Signal", name == "Data")):
        what = _MEASUREMENTS.get(name, f"not known: {name.lower()}")
        reasons.setdefault(facts.missing[name], what)
    return [f"{what}: {reason}" for reason, what in reasons.items()]


def _not_read(facts: Facts) -> list[str]:
    """Which of the data could not be read, and why."""
    if not facts.has("Data"):
        return []
    data = facts.get("Data")
    parts = [data.problem] if data.problem else []
    parts += [
        f"{split.problem}, so that {split.read} samples were looked at"
        for split in (data.train, data.validation)
        if split is not None and split.problem
    ]
    return [f"not all of the data were looked at: {part}" for part in dict.fromkeys(parts)]


def _each_reason_once(notes: Sequence[str], of_probe: Sequence[str]) -> list[str]:
    """All notes, but for those whose reason the probe gives as well: it says what came of it."""
    told = [
        note
        for note in notes
        if not any(note.partition(": ")[2] in other for other in of_probe if ": " in note)
    ]
    return [*told, *of_probe]


def static_facts(inputs: Inputs, graph: Graph, recipe: Recipe) -> Facts:
    """What can be known of a model without running it on numbers."""
    facts = Facts(
        {
            "Graph": graph,
            "Variants": Variants(inputs, graph),
            "SourceEdits": SourceEdits(lambda name: owner_of(name) == "project"),
        }
    )
    facts.offer("Propagation", lambda: _propagation(graph, facts.get("Losses")))
    facts.offer("Losses", lambda: _losses(graph, recipe))
    return facts


def _facts(
    inputs: Inputs, graph: Graph, settings: Settings, recipe: Recipe, guard: Guard | None
) -> Facts:
    facts = static_facts(inputs, graph, recipe)
    if "data" in settings.stages and recipe.setup.train_loader is not None:
        facts.offer("Data", lambda: _data(graph.model, recipe, guard))
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


def _data(model: nn.Module, recipe: Recipe, guard: Guard | None) -> Any:
    from trainlint.data.describing import SECONDS, data_of
    from trainlint.probe.batches import ProbeProblem
    from trainlint.targets.loading import Stop

    # It looks at the clock itself, but for a single batch that takes its time.
    limited = nullcontext() if guard is None else guard(_PATIENCE * SECONDS, False)
    try:
        with limited:
            return data_of(model, recipe.setup)
    except (ProbeProblem, Stop) as problem:
        raise FactUnavailable(str(problem)) from None


def _influence(inputs: Inputs, graph: Graph, losses: Losses | None) -> Any:
    from trainlint.measure.perturbation import influence

    calls = () if losses is None else losses.calls
    asked = {call.next_of for call in calls if call.next_of}
    inside = frozenset() if losses is None else losses.asked_inside
    return influence(graph.model, inputs, graph, asked=inside | asked)


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
    cause = unbound.cause_of(error.refusal)
    if cause is not None:
        return cause
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
    cause = unbound.cause_of(recording.exception)
    if cause is not None:
        return cause
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
