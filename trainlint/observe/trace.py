"""What was seen of a training run: the TRACE, whichever way it was recorded. Imports no torch.

Steps are counted from 0, one for each step of the optimizer that steps most often; a series has one
figure for each *recorded* step, whose numbers stand beside it. Figures that could not be had are None.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from trainlint.generalization.curves import Generalization

if TYPE_CHECKING:
    from trainlint.records import Histogram
    from trainlint.sites import Site

Series = Sequence[float | None]


@dataclass(frozen=True)
class Place:
    """An operation of a model: the `index`-th call of that name in the module at `path`."""

    path: str
    operation: str
    index: int

    def __str__(self) -> str:
        which = f"[{self.index}]" if self.index else ""
        return f"{self.path}.{self.operation}{which}" if self.path else f"{self.operation}{which}"


# What `weight_norm` and its kin leave of a weight's name, and a plain layer.
_PARTS_OF_NAMES: Final = re.compile(r"(\.parametrizations)?\.weight(\.original1?|_orig|_v)?$")


def layer_of(weight: str) -> str:
    """A layer by the name of its weight: `fc` of `fc.weight`, `mha.in_proj` of `mha.in_proj_weight`."""
    return _PARTS_OF_NAMES.sub("", weight).removesuffix("_weight")


@dataclass(frozen=True)
class SiteTrace:
    """One operation's result over the recorded steps, from at most 2048 of its elements.

    `mean`, `std`, `rms`, `spread` (RMS of what differs between the samples), `zero` and `saturated` are
    as in a `SiteSignal`; `gradient` is the norm of the loss's gradient by the whole result. `dead` is the
    share of units (channels, features) that were 0 for every sample of a window of recorded steps, for
    operations that end in exact zeros; one figure a window, of `seen` samples (positions) each; `units` is
    how many there are. `weight` is the name of the parameter that the operation applies: several sites with
    one weight are one layer used again. `feeds` says what a sigmoid's or tanh's result goes into: `weights`
    of another layer, or a product in which it is a `gate`. `values` counts, for a BatchNorm in train mode,
    the recorded steps by how many values a channel had. `layer` is what an activation stands behind, where
    that is known; `histograms` say how values were spread at the first, a middle and the last of them.
    """

    place: Place
    site: Site | None = field(repr=False)
    weight: str | None
    steps: Sequence[int]
    mean: Series
    std: Series
    rms: Series
    spread: Series
    zero: Series
    saturated: Series
    gradient: Series
    dead: Sequence[float] = ()
    seen: Sequence[int] = ()
    units: int = 0
    feeds: str = ""
    values: Mapping[int, int] = field(default_factory=dict)
    layer: str = ""
    histograms: Sequence[Histogram] = field(default=(), repr=False)

    def median(self, figure: str, last: int | None = None) -> float | None:
        """The median of a series, over its `last` recorded steps if given."""
        values = [v for v in getattr(self, figure)[-last if last else None :] if v is not None]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class ParameterTrace:
    """A parameter over the recorded steps.

    `gradient` is the norm of its gradient as the optimizer's step finds it, after unscaling and clipping;
    `weight` its own norm, and `update` the norm of the step's change over that, both as they are to be
    expected from at most 4096 of its elements. `arrived` counts the recorded steps in which a gradient was
    there, `reached` tells whether one was there in any step. `group` is the place of its optimizer in the
    trace and that of its group there.
    """

    name: str
    elements: int
    dimensions: int
    trainable: bool
    optimized: bool
    steps: Sequence[int]
    gradient: Series
    weight: Series
    update: Series
    arrived: int
    group: tuple[int, int] | None = None
    reached: bool = True

    def median(self, figure: str, steps: Container[int] | None = None) -> float | None:
        """The median of a series, over these steps if given."""
        values = [
            value
            for step, value in zip(self.steps, getattr(self, figure), strict=True)
            if value is not None and (steps is None or step in steps)
        ]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class OptimizerTrace:
    """An optimizer. `backwards` maps numbers of backward passes before a step to how often that was.

    `groups` are the options of its parameter groups as they were made; `rates` are (step, learning rate
    of each group) whenever one had changed. `stepped_at` is where its steps are called, `backward_at` where
    the backward passes behind them are; `driver` what calls the step in the loop's stead: a `GradScaler`,
    or a `closure`, which is given to it.
    """

    kind: str
    site: Site | None = field(repr=False)
    steps: int
    backwards: Mapping[int, int]
    groups: Sequence[Mapping[str, Any]]
    rates: Sequence[tuple[int, tuple[float, ...]]]
    stepped_at: Sequence[Site | None] = field(default=(), repr=False)
    backward_at: Sequence[Site | None] = field(default=(), repr=False)
    driver: str = ""

    @property
    def rate(self) -> float:
        """The largest learning rate that its groups were given, before any schedule; 0 if none is known."""
        given = [group.get("initial_lr", group.get("lr")) for group in self.groups]
        return max((float(rate) for rate in given if rate is not None), default=0.0)


@dataclass(frozen=True)
class ClipTrace:
    """A call of `clip_grad_norm_`: `factor` is what it multiplied the gradients by, 1 where it did not.

    `optimizers` are the kinds of those that hold what was clipped. Clipping by value has no factors.
    """

    site: Site | None = field(repr=False)
    limit: float
    calls: int
    factor: Sequence[float]
    optimizers: Sequence[str] = ()


@dataclass(frozen=True)
class ScheduleTrace:
    """A learning rate scheduler: how often it stepped, and how often its optimizer had by its last step.

    `optimizer` is that one's place in the trace. `length` is in how many of its own steps it ends or turns
    (`total_steps` of OneCycleLR, `T_max` of CosineAnnealingLR), where it knows.
    """

    kind: str
    site: Site | None = field(repr=False)
    optimizer: int | None
    calls: int
    steps: int
    length: int | None = None


@dataclass(frozen=True)
class InputTrace:
    """What of the data reaches a layer: the operand of an operation with weights that no layer made.

    `layer` is the path of its module, `shape` that of a batch; `whole` the share of whole numbers, `zero`
    that of zeros, from at most 8192 elements in each of the first 16 recorded steps. `columns` are mean and
    standard deviation of each column of a table (N, F). `normalized` tells that a normalization takes the
    result, which makes the scale of the data no matter.
    """

    layer: str
    operation: str
    shape: Sequence[int]
    dtype: str
    mean: float
    std: float
    least: float
    largest: float
    whole: float
    zero: float
    columns: Sequence[tuple[float, float]] = field(default=(), repr=False)
    normalized: bool = False

    @property
    def rms(self) -> float:
        """Root of the mean square."""
        return float((self.mean**2 + self.std**2) ** 0.5)


@dataclass(frozen=True)
class LoaderTrace:
    """A `DataLoader`. `passes` are the numbers of steps that had been made when each pass over it began.

    `sampler` is the kind that gives the order: `SequentialSampler` without `shuffle=True`.
    """

    site: Site | None = field(repr=False)
    sampler: str
    passes: Sequence[int]


@dataclass(frozen=True)
class TargetTrace:
    """The targets of a loss function as they were seen, from at most 8192 elements a step.

    `counts` says how often each whole number from 0 to 255 was one, empty where other values were, too.
    `integral` tells of their dtype, `one_hot` whether each row was, `mixed` whether more than one value
    was there in each step, `inputs` whether they are an input of the model. `columns` is how many there are
    a sample. `ignored` counts the recorded steps in which all targets were to be ignored. `batches` says,
    for classes of one label a sample, how often each was there: (step, counts by class). `loader` is the
    place in the trace of the loader of which a pass had begun last.
    """

    least: float
    largest: float
    counts: Sequence[int] = ()
    integral: bool = False
    one_hot: bool = False
    mixed: bool = False
    inputs: bool = False
    columns: int = 1
    ignored: int = 0
    batches: Sequence[tuple[int, Mapping[int, int]]] = field(default=(), repr=False)
    loader: int | None = None


@dataclass(frozen=True)
class LossTrace:
    """A loss function at one place in the code, over the recorded steps.

    `guess` is the loss of the best constant answer to the targets that were seen: their entropy for class
    indices, that of their means for binary cross entropy, their variance for a squared error; None where
    that is not known (other losses, weights). `classes` is the number of scores a sample, for cross
    entropy. `made_by` is the operation that made the scores, as autograd names it: `Softmax`, `Sigmoid`,
    `Addmm`; `largest` the largest score that nll_loss or kl_div got. `is_plain` tells that there were
    neither weights nor another reduction than the mean.
    """

    kind: str
    site: Site | None = field(repr=False)
    steps: Sequence[int]
    values: Sequence[float]
    guess: float | None = None
    classes: int | None = None
    made_by: str = ""
    largest: float | None = None
    is_plain: bool = False
    targets: TargetTrace | None = None

    def learnt(self, after: int) -> float | None:
        """Share of the guess's loss that was gone after so many steps: 0 as good as a guess, 1 perfect.

        By the median of the last fifth of the recorded steps, at least three. None where it cannot be said.
        """
        if not self.guess or not self.steps or self.steps[-1] < after - 1:
            return None
        last = self.values[-max(3, len(self.values) // 5) :]
        return 1 - statistics.median(last) / self.guess


@dataclass(frozen=True)
class EvaluationTrace:
    """The losses of passes without a gradient: `values`, each a mean over the batches of the pass.

    `steps` are how many optimizer steps lay before each pass. `kind` is the loss function, empty where
    the model returns its loss. `on_training_data` tells whether the `DataLoader` has the dataset that
    the training has, too. Of a long pass not all batches were looked at.
    """

    kind: str
    site: Site | None = field(repr=False)
    steps: Sequence[int]
    values: Sequence[float]
    on_training_data: bool = False


@dataclass(frozen=True)
class Incident:
    """Something that a loop did which the recorder could only see while it happened.

    `kind` names it, `count` says how often, `step` when first; `facts` are its figures at that time.
    """

    kind: str
    site: Site | None = field(repr=False)
    count: int
    step: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelTrace:
    """A root module: one that is called from outside of any other module.

    `forwards` counts its calls by (phase, whether it was in train mode), where the phase is `train` if a
    backward pass reached it, else `evaluation`. `optimized` tells whether an optimizer holds parameters
    of it. `layers` maps the paths of its modules to where they were constructed. `neglected` names
    trainable parameters that had a gradient when an optimizer stepped, and are in none. `inputs` are what
    reaches its layers straight from the data. `dropout` is the largest probability of its dropout layers.
    `trained_at` is where those of its forwards are called that a backward pass reaches. `called` are its
    names at the top level of its file, where they are known.
    """

    name: str
    site: Site | None = field(repr=False)
    optimized: bool
    forwards: Mapping[tuple[str, bool], int]
    sites: Sequence[SiteTrace] = field(repr=False)
    parameters: Sequence[ParameterTrace] = field(repr=False)
    layers: Mapping[str, Site | None] = field(repr=False)
    neglected: Sequence[str] = ()
    inputs: Sequence[InputTrace] = ()
    dropout: float = 0.0
    trained_at: Sequence[Site | None] = field(default=(), repr=False)
    called: frozenset[str] = frozenset()

    def place_of(self, name: str) -> Site | None:
        """Where the layer of a parameter was constructed, else where the model is called."""
        path = name.rpartition(".")[0]
        while path and self.layers.get(path) is None:
            path = path.rpartition(".")[0]
        return self.layers.get(path) or self.site

    @staticmethod
    def spelled(path: str) -> str:
        """How a script writes a path within a model: `model.body[0].weight`."""
        parts = path.split(".") if path else []
        return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)

    def layers_of(self, parameters: Sequence[ParameterTrace]) -> list[str]:
        """The layers that have these parameters, each once, as a script writes them."""
        paths = (parameter.name.rpartition(".")[0] or parameter.name for parameter in parameters)
        return list(dict.fromkeys(map(self.spelled, paths)))

    @property
    def is_recurrent(self) -> bool:
        """Whether one of its operations steps through time: an RNN, LSTM or GRU, or a cell of one."""
        kinds = ("rnn", "lstm", "gru")
        return any(s.place.operation.startswith(kinds) for s in self.sites)

    def weights(self) -> list[ParameterTrace]:
        """What the optimizers train, of two dimensions or more; no tables, of which few rows are met."""
        tables = {site.weight for site in self.sites if site.place.operation == "embedding"}
        return [
            parameter
            for parameter in self.parameters
            if parameter.optimized
            and parameter.trainable
            and parameter.dimensions > 1
            and parameter.name not in tables
        ]

    def paces(self) -> dict[int, float]:
        """The median layer's update over weight, by recorded step; without layers that start from 0."""
        by_step: dict[int, list[float]] = {}
        for parameter in self.weights():
            if parameter.weight and not parameter.weight[0]:
                continue
            for step, update in zip(parameter.steps, parameter.update, strict=True):
                if update is not None:
                    by_step.setdefault(step, []).append(update)
        return {step: statistics.median(updates) for step, updates in sorted(by_step.items())}


@dataclass(frozen=True)
class Trace:
    """A run as far as it was watched.

    `steps` is how many optimizer steps were seen, `recorded` which of them were recorded in full.
    `losses` are (step, value) of each backward pass's loss, `objectives` the loss functions by place,
    `evaluations` those of passes that nothing is trained by, such as validation.
    `own` says what of it is the user's: the `loop`, the `loss`, the `optimizer`, the `data`.
    `generalization` is how training and validation error went, where both could be measured; `unmeasured`
    why they could not, where validation passes were made.
    """

    steps: int
    recorded: Sequence[int]
    models: Sequence[ModelTrace]
    optimizers: Sequence[OptimizerTrace]
    losses: Sequence[tuple[int, float]] = field(repr=False)
    clips: Sequence[ClipTrace] = ()
    schedules: Sequence[ScheduleTrace] = ()
    objectives: Sequence[LossTrace] = ()
    evaluations: Sequence[EvaluationTrace] = ()
    incidents: Sequence[Incident] = ()
    notes: Sequence[str] = ()
    own: frozenset[str] = frozenset({"loop", "loss", "optimizer", "data"})
    loaders: Sequence[LoaderTrace] = ()
    generalization: Generalization | None = None
    unmeasured: str = ""

    def of(self, *kinds: str) -> Iterator[Incident]:
        """The incidents of these kinds."""
        return (incident for incident in self.incidents if incident.kind in kinds)

    def optimizer_of(self, model: ModelTrace) -> OptimizerTrace | None:
        """The optimizer that holds most of the model's elements."""
        held: dict[int, int] = {}
        for parameter in model.parameters:
            if parameter.group is not None:
                place = parameter.group[0]
                held[place] = held.get(place, 0) + parameter.elements
        return self.optimizers[max(held, key=lambda place: held[place])] if held else None

    def values_of(self, loss: LossTrace) -> list[float]:
        """The loss at each step, recorded or not, from what backward passes start from.

        Empty where that is no fixed multiple of it (as with accumulation, or a scaler).
        """
        totals: dict[int, float] = {}
        for step, value in self.losses:
            totals[step] = totals.get(step, 0.0) + value
        own: dict[int, list[float]] = {}
        for step, value in zip(loss.steps, loss.values, strict=True):
            own.setdefault(step, []).append(value)
        means = {step: statistics.mean(values) for step, values in own.items() if step in totals}
        ratios = [totals[step] / mean for step, mean in means.items() if mean > 0]
        if len(ratios) < 3:
            return []
        usual = statistics.median(ratios)
        close = sum(abs(ratio - usual) <= 0.02 * abs(usual) for ratio in ratios)
        if usual <= 0 or close < 0.8 * len(ratios):
            return []
        return [totals[step] / usual for step in sorted(totals)]

    def learnt(self, loss: LossTrace, after: int) -> float | None:
        """As `LossTrace.learnt`, from the loss of every step where that is known."""
        values = self.values_of(loss)
        if not loss.guess or len(values) < after:
            return loss.learnt(after)
        return 1 - statistics.median(values[-max(3, len(values) // 5) :]) / loss.guess

    @property
    def trained(self) -> list[ModelTrace]:
        """The models that an optimizer trains."""
        return [model for model in self.models if model.optimized]
