"""The report as data: what crosses from the child process and what `--format json` prints.

The JSON form is a contract: `{"version": 1, "findings": [...], "targets": [...]}`, findings in rank
order, rows and columns from 1.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from trainlint.choices import known_word
from trainlint.fixes.edit import Edit, Fix, Location
from trainlint.generalization.swept import Sweep
from trainlint.rule import Severity

__all__ = [
    "ActivationSeries",
    "AppliedFix",
    "CombinedFixes",
    "CrossValidation",
    "Edit",
    "Figure",
    "Fix",
    "FoldResult",
    "GraphNode",
    "Histogram",
    "LayerSeries",
    "Location",
    "ModelGraph",
    "ModelSeries",
    "Repair",
    "Report",
    "ReportedFinding",
    "Series",
    "Spread",
    "SweepReport",
    "TargetResult",
]

# How the note begins that says where the run of a file ended before its last line.
RUN_STOPPED: Final = "the run of the file stopped"

# JSON has no other numbers than finite ones; `float` reads these words as well.
Figure = float | Literal["nan", "inf", "-inf"]


class ReportedFinding(msgspec.Struct, frozen=True):
    """A finding with its code and place, as the report shows it.

    `symptoms` are findings that this one explains, in the same form. `location` and `filename` are None
    where the model has no source (a live module built elsewhere). `modules` beside `module` lie in
    `evidence["modules"]` where one line built several. `fingerprint` names the finding whatever is edited
    around it (`trainlint.fingerprints`); symptoms have none.
    """

    code: str
    name: str
    severity: str
    confidence: str
    message: str
    stage: str
    target: str
    module: str
    filename: str | None
    location: Location | None
    end_location: Location | None
    evidence: dict[str, Any] = {}
    symptoms: list[ReportedFinding] = []
    fixes: list[Fix] = []
    fingerprint: str = ""


class Histogram(msgspec.Struct, frozen=True):
    """How the values of a result are spread, from a sample of at most 8192 of them.

    `counts` are those of equal bins between `low` and `high`; what lies beyond is in the outer ones. Exact
    zeros are in none of them: `zero` is their share. `saturated` is the share of a
    sigmoid's or tanh's inputs where it is flat (slope below 7% of its largest), None for others. `step`
    counts the optimizer steps before. `spread` is the RMS of what differs between the samples of the batch,
    None where the result has no axis of samples. `not_finite` is the share that is NaN or infinite, and in
    no bin either.
    """

    low: float
    high: float
    counts: list[int]
    zero: float = 0.0
    saturated: float | None = None
    spread: float | None = None
    step: int = 0
    not_finite: float = 0.0


class GraphNode(msgspec.Struct, frozen=True):
    """An operation of a captured graph, or an input of the model.

    `operation` is the class of its layer, else the canonical name of the call. `shape` is that of its
    result with its dtype, `parameters` counts the elements of its weights, `fault` says why it fails.
    `gradient` is the norm of the loss's gradient by its result, `zero` and `saturated` shares of it, in one
    pass on real weights; None is what was not measured. `values` tells how the result is spread, for layers
    with weights and activations.
    """

    label: str
    operation: str
    module: str
    shape: str = ""
    parameters: int = 0
    filename: str | None = None
    row: int | None = None
    fault: str = ""
    gradient: float | None = None
    zero: float | None = None
    saturated: float | None = None
    values: Histogram | None = None


class ModelGraph(msgspec.Struct, frozen=True):
    """A captured graph, in order of execution; `edges` are pairs (from, to) of places in `nodes`.

    `model` is the class of the model, of a training that was watched.
    """

    nodes: list[GraphNode] = []
    edges: list[tuple[int, int]] = []
    model: str = ""


class LayerSeries(msgspec.Struct, frozen=True):
    """A layer with weights, or an activation that ends in exact zeros, over the recorded steps.

    `gradient` is the norm of the loss's gradient by its result, `weight_gradient` that by its weight,
    `update` the change of the weight in a step over the weight: medians. `gradients` and `updates` are at
    most 50 points each (optimizer steps before, the figure). `dead` is the share of its units
    that are 0 for every sample of a window of recorded steps, of `samples` samples (positions): the
    lesser of the last two windows. None is what was not measured.
    """

    name: str
    operation: str
    gradient: Figure | None = None
    weight_gradient: Figure | None = None
    update: Figure | None = None
    dead: float | None = None
    samples: int | None = None
    updates: list[tuple[int, Figure]] = []
    gradients: list[tuple[int, Figure]] = []


class ActivationSeries(msgspec.Struct, frozen=True):
    """The results of a layer in a training, behind its activation where it has one.

    `name` is the place in the model, `operation` the activation or the layer's own, `layer` what it stands
    behind where that is known. `histograms` are of the first, a middle and the last recorded step.
    """

    name: str
    operation: str
    layer: str = ""
    histograms: list[Histogram] = []


class ModelSeries(msgspec.Struct, frozen=True):
    """A model that is trained, its layers in order of execution, and what their results are like."""

    model: str
    layers: list[LayerSeries] = []
    activations: list[ActivationSeries] = []


class Repeat(msgspec.Struct, frozen=True):
    """The same training with another seed, of as many steps or more; points as in a `Series`."""

    seed: int
    steps: int
    train: list[tuple[int, Figure]]
    validation: list[tuple[int, Figure]] = []


class Series(msgspec.Struct, frozen=True):
    """What pictures are drawn of: a training as far as it was seen.

    `train` and `validation` are at most 200 points (optimizer steps before, loss) each. `loss` names the
    loss function that both are of; it is `backward` where `train` is what `backward()` was called on,
    which other factors and terms may be part of. `guess` is the loss of the best constant answer to the
    training's targets, where it is known. A point of `train` is a mean over several steps where
    there were more; one of `validation` is a mean over a pass. `bands` are (step, lowest, highest) of those
    points whose error is known: mean ± 2 standard errors. `optimizers` are the classes of what made the
    steps. `repeats` are further trainings, with which findings were confirmed. `made_up` tells that the
    data, and so the losses, are nobody's.
    """

    steps: int
    recorded: int
    loss: str
    guess: Figure | None = None
    models: list[ModelSeries] = []
    train: list[tuple[int, Figure]] = []
    validation: list[tuple[int, Figure]] = []
    bands: list[tuple[int, Figure, Figure]] = []
    optimizers: list[str] = []
    repeats: list[Repeat] = []
    made_up: bool = False


class Spread(msgspec.Struct, frozen=True):
    """A mean over folds with its standard error, as if the folds were independent, and as they are.

    `error` is s / √k for the deviation s of k folds. `corrected` is s · √(1/k + q), with q the samples
    validated on over those trained on in a fold: trainings on mostly the same samples err alike (Nadeau &
    Bengio 2003, Machine Learning 52, eq. 9). It is an approximation: no estimate from one cross-validation
    is unbiased (Bengio & Grandvalet 2004, JMLR 5).
    """

    mean: Figure
    error: Figure
    corrected: Figure


class FoldResult(msgspec.Struct, frozen=True):
    """One fold, counted from 1. `reason` says why its training has no result, or None.

    Losses are means over samples, in eval mode after the last step; `train_error` and `validation_error`
    their standard errors over the samples. `sticks_out` tells that its validation loss differs from the
    other folds' by more than chance makes of its samples and of theirs; `worst` are then the numbers of
    its samples with the greatest losses, as the dataset counts them.
    """

    fold: int
    reason: str | None = None
    train_samples: int = 0
    validation_samples: int = 0
    steps: int = 0
    train_loss: Figure | None = None
    train_error: Figure | None = None
    validation_loss: Figure | None = None
    validation_error: Figure | None = None
    train_metric: Figure | None = None
    validation_metric: Figure | None = None
    sticks_out: bool = False
    worst: list[int] = []


class CrossValidation(msgspec.Struct, frozen=True):
    """A cross-validation: each fold, and the means over those that have a result.

    `splitter` is the class of scikit-learn that made the folds, `why` the reason for it. `metric` is
    `accuracy`, `R²` or empty. `steps` and `epochs` are the most of a fold. `gap` is the validation loss
    over the training loss; `guess` the loss of the best constant answer, None where it is not known.
    `train` and `validation` are points (steps before, mean loss over folds), `train_bands` and
    `validation_bands` (steps before, lowest, highest) of them: mean ± the corrected error. `best_step` is
    that of the least validation loss of them, and `rise` how much higher it is at the end, fold by fold.
    """

    target: str
    splitter: str
    why: str
    samples: int
    loader: str
    optimizer: str
    loss: str
    folds: list[FoldResult]
    train_loss: Spread
    validation_loss: Spread
    gap: Spread
    metric: str = ""
    train_metric: Spread | None = None
    validation_metric: Spread | None = None
    guess: Figure | None = None
    steps: int = 0
    epochs: float | None = None
    best_step: int = 0
    rise: Spread | None = None
    train: list[tuple[int, Figure]] = []
    validation: list[tuple[int, Figure]] = []
    train_bands: list[tuple[int, Figure, Figure]] = []
    validation_bands: list[tuple[int, Figure, Figure]] = []
    notes: list[str] = []
    seconds: float = 0.0

    def to_json(self, indent: int = 2) -> str:
        """As it stands in the JSON of a report."""
        return msgspec.json.format(msgspec.json.encode(self), indent=indent).decode()

    def __str__(self) -> str:
        """What the command line prints, without colours."""
        from trainlint.report.folds import as_text

        return as_text(self)


class AppliedFix(msgspec.Struct, frozen=True):
    """A fix of a combination: the finding that it remedies, and its title.

    `edited` tells that the source is changed by it; else it was made on a copy of the model.
    """

    code: str
    name: str
    module: str
    title: str
    edited: bool = False


class CombinedFixes(msgspec.Struct, frozen=True, kw_only=True):
    """Fixes that help together, in the order in which they were added, and what they do as one.

    `measure` to `seeds` are as in an `Attempt`, of all of them beside the unchanged model; None where it
    could not be had. `left` are the errors and warnings that are found when all are applied.
    """

    fixes: list[AppliedFix]
    measure: str = "training loss"
    before: float | None = None
    after: float | None = None
    gain: float | None = None
    error: float | None = None
    steps: int = 0
    seeds: int = 0
    left: list[str] = []


class TargetResult(msgspec.Struct, frozen=True):
    """What became of one target. `status` is ok, skipped or error; `reason` says why not ok.

    `row` is the line of its file at which a text that does not parse is wrong, None where there is none.
    `inputs` describes the inputs and their origin, `operations` counts the graph's calls, `watched` says
    what was seen of a training run, `not_measurable` which rules applied but could not tell, and why.
    `notes` are remarks, such as the line at which the run of a file stopped. `series` are the figures of a
    training that was watched, `cross_validation` what `--kfold` measured, `repair` what `--verify` found to
    help together, None where there was none.
    `output` is what the target printed, kept for failures only. `graph` is there if it was asked for;
    `more_graphs` are those of other models that the same training trains.
    """

    target: str
    status: str
    reason: str | None = None
    stages: list[str] = []
    seconds: float = 0.0
    inputs: str | None = None
    watched: str | None = None
    operations: int = 0
    not_measurable: list[str] = []
    notes: list[str] = []
    series: Series | None = None
    cross_validation: CrossValidation | None = None
    repair: CombinedFixes | None = None
    output: str = ""
    graph: ModelGraph | None = None
    more_graphs: list[ModelGraph] = []
    row: int | None = None

    @property
    def graphs(self) -> list[ModelGraph]:
        """All of them."""
        return [] if self.graph is None else [self.graph, *self.more_graphs]


class Repair(msgspec.Struct, frozen=True):
    """What `--fix` did with one fix, and the finding that it was for, as it was then.

    `status` is `applied`; `rolled-back`, where the edited file was worse or no better; `refused`, where the
    file is not ours to edit or could not be written; or `declined`, by who was asked. `reason` says why not
    applied. The places of `edits` are those in the file before them, of `applied` ones together with all
    of the same `round`.
    """

    code: str
    name: str
    severity: str
    target: str
    module: str
    filename: str | None
    location: Location | None
    title: str
    safety: str
    status: str
    reason: str = ""
    round: int = 1
    edits: list[Edit] = []


class Report(msgspec.Struct, frozen=True):
    """All findings of a run, in rank order, and what became of each target.

    `repairs` are the fixes that were tried on the files, None where that was not asked for; the findings
    are then those that are left.
    """

    findings: list[ReportedFinding] = []
    targets: list[TargetResult] = []
    version: int = 1
    repairs: list[Repair] | None = None

    def to_json(self, indent: int = 2) -> str:
        """The report as the JSON contract has it."""
        data = {
            "version": self.version,
            "findings": [msgspec.to_builtins(finding) for finding in self.findings],
            "targets": [_without_output(target) for target in self.targets],
        }
        if self.repairs is not None:
            data["repairs"] = [msgspec.to_builtins(repair) for repair in self.repairs]
        return msgspec.json.format(msgspec.json.encode(data), indent=indent).decode()

    def __str__(self) -> str:
        """What the command line prints, without colours."""
        from trainlint.report.text import as_text

        return as_text(self)

    def count(self, severity: str) -> int:
        """How many findings are of this severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def fails(self, fail_on: str) -> bool:
        """Whether a finding is at or above this severity; `never` fails nothing.

        Raises `UsageError`, a `ValueError`, for another word.
        """
        if known_word(fail_on, (*Severity, "never"), "fail_on") == "never":
            return False
        limit = Severity(fail_on).rank
        return any(Severity(finding.severity).rank <= limit for finding in self.findings)

    @property
    def has_errors(self) -> bool:
        """Whether a target could not be loaded or analysed."""
        return any(target.status == "error" for target in self.targets)

    def exit_status(self, fail_on: str = "error") -> int:
        """2 if a target could not be analysed, else 1 if a finding fails the run, else 0."""
        if self.has_errors:
            return 2
        return 1 if self.fails(fail_on) else 0


class SweepReport(msgspec.Struct, frozen=True):
    """What `trainlint sweep` found: the curve, and the findings on it."""

    sweep: Sweep
    findings: list[ReportedFinding] = []
    version: int = 1

    def to_json(self, indent: int = 2) -> str:
        """One object: `version`, `sweep` with the fields of `Sweep`, and `findings`.

        A point's `standing` has its means and errors, None where there are none; `best` and `chosen` are
        places among the points.
        """
        from trainlint.generalization.sweep import as_data

        data = {
            "version": self.version,
            "sweep": as_data(self.sweep),
            "findings": [msgspec.to_builtins(finding) for finding in self.findings],
        }
        return msgspec.json.format(msgspec.json.encode(data), indent=indent).decode()

    def __str__(self) -> str:
        """What the command line prints, without colours."""
        from trainlint.report.sweeping import as_text

        return as_text(self)


def _without_output(target: TargetResult) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.to_builtins(target)
    if target.status == "ok":
        del data["output"]
    if target.graph is None:
        del data["graph"]
    if not target.more_graphs:
        del data["more_graphs"]
    return data
