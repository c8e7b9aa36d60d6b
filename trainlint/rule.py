"""Everything that a rule file imports: the `rule` decorator, what a rule yields, and the facts.

A rule is one function in one file. Its annotated positional parameters are the facts that it needs
(`graph: Graph`), its keyword-only parameters with defaults are its options, its docstring is its
documentation, and it yields `Finding`s. Nothing here imports torch.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trainlint import ops
from trainlint.analysis.depth_in_training import (
    DepthTrace,
    depth_in_training,
    growth_through_time,
)
from trainlint.analysis.heads import heads
from trainlint.analysis.layers import (
    Expectation,
    Mismatch,
    blamed_source,
    blames_the_model,
    describe_source,
    disagreement,
    expectation,
    images_of,
    is_follow_up,
    mismatches,
    refuses_channels_last,
    suits_no_size,
    trace_axis,
    width_source,
)
from trainlint.analysis.methods import (
    Method,
    is_initializer,
    own_methods,
    resolved_methods,
    source_of,
)
from trainlint.analysis.norms import (
    axis_after,
    batch_norms,
    chain_back,
    dropped_share,
    keeps_statistics,
    unit_axis,
)
from trainlint.analysis.reachability import (
    GradientCut,
    HiddenWeights,
    Reachability,
    dead_ends,
    heavy,
    hidden_weights,
    unused_modules,
)
from trainlint.analysis.rows import Fold, flat_width, flatten_fixes, folds, is_map
from trainlint.analysis.variants import Variants
from trainlint.analysis.zero_flow import ZeroFlow, never_learning, stuck_weights, zero_parameters
from trainlint.data.facts import ColumnData, Data, FieldData, Overlap, Shift, SplitData
from trainlint.fixes import Attempt, Edit, Fix, Location, Occurrence, Patch, Safety, SourceEdits
from trainlint.fixes import depth as depth_fixes
from trainlint.fixes import loading as loading_fixes
from trainlint.fixes import loops as loops
from trainlint.fixes import losses as loss_fixes
from trainlint.fixes import numerics as numerics
from trainlint.fixes import optimizers as optimizers
from trainlint.fixes.activations import other_activation, other_loss, without_activation
from trainlint.fixes.initialisation import Start, as_code, initial_patches, initialised
from trainlint.fixes.layers import normalised, other_activations, residual
from trainlint.fixes.occurrences import activation_patches, places, removal_patches
from trainlint.fixes.reading import explained
from trainlint.fixes.widths import width_fixes
from trainlint.generalization.curves import Checkpoint, Difference, Generalization, Scores, as_share
from trainlint.generalization.remedies import MoreData, Remedies, Remedy
from trainlint.generalization.swept import Sweep
from trainlint.graph import GradientPath, Graph, Parameter
from trainlint.loss.ranges import Range, value_range
from trainlint.loss.uses import Link, LossCall, Losses, past_clamps
from trainlint.measure.influence import (
    Alike,
    Constant,
    Draw,
    Influence,
    Leak,
    Mixing,
    Randomness,
    Spot,
    Unused,
)
from trainlint.measure.signal import NonFinite, Signal, SiteSignal, decades
from trainlint.observe.trace import (
    ClipTrace,
    EvaluationTrace,
    Incident,
    InputTrace,
    LoaderTrace,
    LossTrace,
    ModelTrace,
    OptimizerTrace,
    ParameterTrace,
    ScheduleTrace,
    SiteTrace,
    Trace,
)
from trainlint.probe.memorisation import Memorisation
from trainlint.sites import Site, construction_site
from trainlint.suppression import Suppression, Suppressions
from trainlint.theory.depth import (
    Trend,
    agreed_trend,
    is_plain_chain,
    measured_trend,
    predicted_trend,
    series,
    steepest,
)
from trainlint.theory.prescriptions import (
    Prescription,
    far_off,
    heaviest,
    prescriptions,
    reinitialise,
    start_of,
    started,
    suits,
    unsuitable,
    within,
)
from trainlint.theory.propagation import Propagation

__all__ = [
    "Alike",
    "Attempt",
    "Checkpoint",
    "ClipTrace",
    "ColumnData",
    "Confidence",
    "Constant",
    "Data",
    "DepthTrace",
    "Difference",
    "Draw",
    "Edit",
    "EvaluationTrace",
    "Expectation",
    "FieldData",
    "Finding",
    "Fix",
    "Fold",
    "Generalization",
    "GradientCut",
    "GradientPath",
    "Graph",
    "HiddenWeights",
    "Incident",
    "Influence",
    "InputTrace",
    "Leak",
    "Link",
    "LoaderTrace",
    "Location",
    "LossCall",
    "LossTrace",
    "Losses",
    "Memorisation",
    "Method",
    "Mismatch",
    "Mixing",
    "ModelTrace",
    "MoreData",
    "NonFinite",
    "NotMeasurable",
    "Occurrence",
    "OptimizerTrace",
    "Overlap",
    "Parameter",
    "ParameterTrace",
    "Patch",
    "Prescription",
    "Propagation",
    "Randomness",
    "Range",
    "Reachability",
    "Remedies",
    "Remedy",
    "Rule",
    "Safety",
    "ScheduleTrace",
    "Scores",
    "Severity",
    "Shift",
    "Signal",
    "Site",
    "SiteSignal",
    "SiteTrace",
    "SourceEdits",
    "SplitData",
    "Spot",
    "Start",
    "Suppression",
    "Suppressions",
    "Sweep",
    "Trace",
    "Trend",
    "Unused",
    "Variants",
    "ZeroFlow",
    "activation_patches",
    "agreed_trend",
    "as_code",
    "as_share",
    "axis_after",
    "batch_norms",
    "blamed_source",
    "blames_the_model",
    "chain_back",
    "construction_site",
    "dead_ends",
    "decades",
    "depth_fixes",
    "depth_in_training",
    "describe_source",
    "disagreement",
    "dropped_share",
    "expectation",
    "explained",
    "far_off",
    "flat_width",
    "flatten_fixes",
    "folds",
    "growth_through_time",
    "heads",
    "heaviest",
    "heavy",
    "hidden_weights",
    "images_of",
    "initial_patches",
    "initialised",
    "is_follow_up",
    "is_initializer",
    "is_map",
    "is_plain_chain",
    "keeps_statistics",
    "loading_fixes",
    "loops",
    "loss_fixes",
    "measured_trend",
    "mismatches",
    "never_learning",
    "normalised",
    "numerics",
    "ops",
    "optimizers",
    "other_activation",
    "other_activations",
    "other_loss",
    "own_methods",
    "past_clamps",
    "places",
    "predicted_trend",
    "prescriptions",
    "refuses_channels_last",
    "reinitialise",
    "removal_patches",
    "residual",
    "resolved_methods",
    "rule",
    "series",
    "source_of",
    "start_of",
    "started",
    "steepest",
    "stuck_weights",
    "suits",
    "suits_no_size",
    "trace_axis",
    "unit_axis",
    "unsuitable",
    "unused_modules",
    "value_range",
    "width_fixes",
    "width_source",
    "within",
    "without_activation",
    "zero_parameters",
]


class Severity(enum.StrEnum):
    """What happens if it ships: crashes or cannot learn; learns worse; advice."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the most severe."""
        return list(Severity).index(self)


class Confidence(enum.StrEnum):
    """How the finding is known: proved on the graph, strongly indicated, or worth a look."""

    CERTAIN = "certain"
    LIKELY = "likely"
    POSSIBLE = "possible"

    @property
    def rank(self) -> int:
        """0 for the most certain."""
        return list(Confidence).index(self)


@dataclass(frozen=True)
class Finding:
    """One fault, as a rule sees it.

    `where` is the place to name (a `Site`, or a graph node, whose layer's constructor is then named;
    None where the model has no source). `module` is the path of the module at fault, taken from the
    node if left out. `evidence` holds the figures that prove it, in plain JSON types. Findings with
    equal `fault` are one fault seen from several places: the first is reported and the others become
    its symptoms. `starved` is the share of the trainable parameters that the fault cuts off, 0 to 1.
    `affects` are the graph nodes, or the modules and parameters by name, that the finding is about or that
    the fault harms: a finding whose rule another's `explains` becomes that one's symptom if they share a
    module or one of these. What was measured in a training run is joined to a cause that was found on the
    graph by names, and `evidence["measured"]`, a short text, is then added to the cause's message.
    `unreached` names the parameters that no gradient comes to in one forward: a training in which one came
    to all of them refutes the finding; of one in which none came, `evidence["gradient"]` tells.
    """

    message: str
    where: Any = None
    module: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fixes: tuple[Fix, ...] | list[Fix] = ()
    severity: Severity | None = None
    confidence: Confidence = Confidence.CERTAIN
    fault: Hashable = None
    starved: float = 0.0
    affects: Iterable[Any] = ()
    unreached: Iterable[str] = ()


@dataclass(frozen=True)
class NotMeasurable:
    """What a rule yields where it applies but what was seen does not settle it; the report lists it.

    `reason` says what is missing: `12 of 50 steps were seen`.
    """

    reason: str


RuleFunction = Callable[..., Iterable[Finding | NotMeasurable]]

# What of a training run a rule may judge only where it is the user's.
OWN: Final = ("loop", "loss", "optimizer", "data")

# Pictures of a watched training that a finding may need, see `trainlint.report.plots`.
PICTURES: Final = ("gradients", "dead", "losses")

# What an assertion of `trainlint.testing` asks of a model, by the rules that say it is not so.
TOPICS: Final = ("gradient-flow", "independent-samples", "same-in-eval")

# Fact type, by the name that a rule annotates, and the stage that provides it.
FACT_STAGES: Final = {
    "Graph": "static",
    "Variants": "static",
    "Propagation": "static",
    "Losses": "static",
    "SourceEdits": "static",
    "Data": "data",
    "Signal": "signal",
    "Influence": "signal",
    "Trace": "probe",
    "Memorisation": "probe",
    "Remedies": "probe",
    "Suppressions": "report",
    "Sweep": "sweep",
}
STAGES: Final = ("static", "data", "signal", "probe")


@dataclass(frozen=True)
class Rule:
    """A rule with what its decorator and signature say about it.

    `facts` maps parameters to the types of facts; those in `optional` may be None. `own` says what of
    a watched training must be the user's for the rule to judge it, `shows` the picture of that training
    that is drawn below its findings; `topics` the assertions that its findings fail.
    """

    code: str
    name: str
    severity: Severity
    explains: tuple[str, ...]
    since: str
    function: RuleFunction = field(repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    own: frozenset[str] = frozenset(OWN)
    shows: str = ""
    topics: frozenset[str] = frozenset()

    @property
    def family(self) -> str:
        """`architecture`, `initialization`, ...: the folder that the rule file lies in."""
        return self.function.__module__.rpartition(".")[0].rpartition(".")[2]

    @property
    def summary(self) -> str:
        """The first line of the documentation."""
        return self.documentation.partition("\n")[0]

    @property
    def documentation(self) -> str:
        """The docstring, without its indentation."""
        return inspect.cleandoc(self.function.__doc__ or "")

    @property
    def filename(self) -> str:
        """The rule's source file."""
        return str(Path(self.function.__code__.co_filename))

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages whose facts the rule needs. The source alone tells nothing of a model."""
        told = [fact for fact in self.facts.values() if fact != "SourceEdits"]
        return tuple(dict.fromkeys(FACT_STAGES[fact] for fact in told or self.facts.values()))


def rule(
    code: str,
    *,
    severity: Severity,
    since: str,
    explains: Iterable[str] = (),
    own: Iterable[str] = OWN,
    shows: str = "",
    topics: Iterable[str] = (),
) -> Callable[[RuleFunction], RuleFunction]:
    """Declare a function as a rule.

    `code` is the family's letters and three digits, never used again; `severity` that of a finding
    which does not name its own; `explains` the names of the rules whose findings this one's cause;
    `since` the version in which it appeared. For a rule on a `Trace`, `own` says which parts of the
    training have to be the user's: where the data were made up, nothing is said of data; `shows` is the
    picture that its findings need: `gradients` by layer, `dead` units by layer, or `losses`; `topics` the
    assertions of `trainlint.testing` that its findings fail. Raises `TypeError` for a signature that no
    fact fits, and for another picture or topic.
    """
    if not frozenset(topics) <= frozenset(TOPICS):
        raise TypeError(f"{code}: no such topic; there are: {', '.join(TOPICS)}")
    if shows and shows not in PICTURES:
        raise TypeError(f"{code}: no picture {shows!r}; there are: {', '.join(PICTURES)}")

    def declare(function: RuleFunction) -> RuleFunction:
        facts: dict[str, str] = {}
        options: dict[str, Any] = {}
        optional: set[str] = set()
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                options[parameter.name] = parameter.default
                continue
            annotation = str(getattr(parameter.annotation, "__name__", parameter.annotation))
            if annotation.endswith(" | None"):
                annotation = annotation.removesuffix(" | None")
                optional.add(parameter.name)
            if annotation not in FACT_STAGES:
                known = ", ".join(FACT_STAGES)
                raise TypeError(
                    f"{code}: parameter {parameter.name!r} is annotated {annotation!r}; "
                    f"the facts are: {known}"
                )
            facts[parameter.name] = annotation
        declared = Rule(
            code=code,
            name=function.__name__.replace("_", "-"),
            severity=severity,
            explains=tuple(explains),
            since=since,
            function=function,
            facts=facts,
            optional=frozenset(optional),
            options=options,
            own=frozenset(own),
            shows=shows,
            topics=frozenset(topics),
        )
        function.trainlint_rule = declared  # type: ignore[attr-defined]
        return function

    return declare


@dataclass(frozen=True)
class Settings:
    """What a check needs to know besides the model: rules, their options by name or code, and stages.

    `probe_steps` and `probe_seconds` limit the probe; `graphs` asks for the models' graphs in the results.
    Without `remedies` the probe does not go on to try what helps against what it found.
    """

    rules: Sequence[Rule]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stages: Sequence[str] = STAGES
    probe_steps: int = 50
    probe_seconds: float = 30.0
    graphs: bool = False
    remedies: bool = True
