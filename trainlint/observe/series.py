"""From a trace to the few figures that pictures are drawn of. Imports no torch."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from trainlint import ops
from trainlint.generalization.curves import Generalization
from trainlint.observe.trace import (
    LossTrace,
    ModelTrace,
    ParameterTrace,
    SiteTrace,
    Trace,
    layer_of,
)
from trainlint.records import ActivationSeries, Figure, LayerSeries, ModelSeries, Repeat, Series

MOST_POINTS: Final = 200
_MOST_FIGURES: Final = 50
_MOST_ACTIVATIONS: Final = 300
_DIGITS: Final = 4

Points = Sequence[tuple[int, float]]


def series_of(
    trace: Trace, again: Mapping[int, Trace] | None = None, *, made_up: bool = False
) -> Series | None:
    """The figures of a training; None where nothing was trained.

    `again` are others of it, by seed; `made_up` tells that the data are.
    """
    if not trace.steps and not trace.losses:
        return None
    loss, guess, train, validation, bands = _curves(trace)
    repeats = []
    for seed, other in (again or {}).items():
        same, _, points, passes, _ = _curves(other)
        if same == loss and points:
            repeats.append(Repeat(seed, other.steps, _thinned(points), _thinned(passes)))
    return Series(
        trace.steps,
        len(trace.recorded),
        loss,
        _figure(guess),
        [
            ModelSeries(model.name, list(_layers(model)), list(_activations(model)))
            for model in trace.trained
        ],
        _thinned(train),
        _thinned(validation),
        bands,
        list(dict.fromkeys(optimizer.kind for optimizer in trace.optimizers if optimizer.steps)),
        repeats,
        made_up,
    )


def _curves(
    trace: Trace,
) -> tuple[str, float | None, Points, Points, list[tuple[int, Figure, Figure]]]:
    """The loss's name, a guess's, the training's points, the validation's, and those of its bands."""
    kind, validation = _validation(trace)
    loss, train, guess = _train(trace, kind)
    bands: list[tuple[int, Figure, Figure]] = []
    measured = trace.generalization
    if measured is not None and loss in ("backward", measured.loss) and measured.unit == "sample":
        if "loop" not in trace.own or not validation:  # passes of ours, of a few batches
            validation = [(point.step, point.validation.mean) for point in measured.checkpoints]
            guess = measured.guess if guess is None else guess
        shown = {step for step, _ in validation}
        bands = [band for band in _bands(measured) if band[0] in shown]
    return loss, guess, train, validation, bands


def _bands(measured: Generalization) -> Iterator[tuple[int, Figure, Figure]]:
    for point in measured.checkpoints:
        mean, error = point.validation.mean, point.validation.error
        if math.isfinite(mean + error):
            yield point.step, plain(mean - 2 * error), plain(mean + 2 * error)


# ---------------------------------------------------------------------- layers


def _layers(model: ModelTrace) -> Iterator[LayerSeries]:
    """The layers that were recorded, and the weights that are used by what is not, in order."""
    parameters = {parameter.name: parameter for parameter in model.parameters}
    layers: dict[str, list[SiteTrace]] = defaultdict(list)
    for site in model.sites:
        # A weight that comes from elsewhere, or several in a list, as of an LSTM, have no name.
        is_layer = site.weight is not None or site.place.operation in ops.WEIGHTED | ops.RECURRENT
        if is_layer or site.dead:
            layers[site.weight or str(site.place)].append(site)
    # Compiled models, and layers of other kinds: their weights stand where the model has them.
    order = {parameter.name: place for place, parameter in enumerate(model.parameters)}
    left = [weight.name for weight in model.weights() if weight.name not in layers]
    for name, sites in layers.items():
        place = order.get(name)
        while place is not None and left and order[left[0]] < place:
            yield _layer(left.pop(0), (), parameters)
        yield _layer(name, sites, parameters)
    for name in left:
        yield _layer(name, (), parameters)


def _layer(
    name: str, sites: Sequence[SiteTrace], parameters: Mapping[str, ParameterTrace]
) -> LayerSeries:
    """A layer with all of its uses: the squares of their gradients add up."""
    gradients = [figure for site in sites if (figure := _median(site.gradient)) is not None]
    windows = [pair for site in sites for pair in zip(site.dead, site.seen, strict=True)]
    # The last window may have only begun: of few samples more units are all 0.
    whole = max((seen for _, seen in windows), default=0) / 2
    dead, samples = min([w for w in windows if w[1] >= whole][-2:], default=(None, None))
    weight = parameters.get(name)
    return LayerSeries(
        layer_of(name),
        sites[0].place.operation if sites else "",
        gradient=plain(math.hypot(*gradients)) if gradients else None,
        weight_gradient=None if weight is None else _figure(_median(weight.gradient)),
        update=None if weight is None else _figure(_median(weight.update)),
        dead=None if dead is None else round(dead, _DIGITS),
        samples=samples,
        updates=[] if weight is None else _few(weight.steps, weight.update),
        gradients=_few(*_together(sites)),
    )


def _together(sites: Sequence[SiteTrace]) -> tuple[list[int], list[float | None]]:
    """The norm of a layer's gradients at each recorded step, over all of its uses."""
    by_step: dict[int, list[float]] = defaultdict(list)
    for site in sites:
        for step, value in zip(site.steps, site.gradient, strict=True):
            if value is not None:
                by_step[step].append(value)
    steps = sorted(by_step)
    return steps, [math.hypot(*by_step[step]) for step in steps]


def _activations(model: ModelTrace) -> Iterator[ActivationSeries]:
    """How results are spread: of each activation, and of the layers that have none right behind them."""
    shown: list[SiteTrace] = []
    waiting: SiteTrace | None = None
    for site in model.sites:
        operation = site.place.operation
        if operation in ops.ACTIVATIONS:
            waiting = None
        elif operation not in ops.NORMALIZATIONS:
            shown += [] if waiting is None else [waiting]
            waiting = site if site.histograms else None
            continue
        if operation in ops.ACTIVATIONS and site.histograms:
            shown.append(site)
    shown += [] if waiting is None else [waiting]
    for site in shown[:_MOST_ACTIVATIONS]:
        yield ActivationSeries(
            _name_of(site), site.place.operation, site.layer, list(site.histograms)
        )


def _name_of(site: SiteTrace) -> str:
    """The layer by its weight; where that is another module's as well, tied to it, by its own place."""
    weight, path = site.weight, site.place.path
    if weight is None or site.place.operation in ops.ACTIVATIONS:
        return str(site.place)
    is_own = not path or weight.startswith(f"{path}.")
    return layer_of(weight) if is_own else path


def _few(steps: Sequence[int], values: Sequence[float | None]) -> list[tuple[int, Figure]]:
    points = [(s, v) for s, v in zip(steps, values, strict=True) if v is not None]
    apart = -(-len(points) // _MOST_FIGURES)
    return [(step, plain(value)) for step, value in points[:: max(1, apart)]]


def _median(values: Iterable[float | None]) -> float | None:
    """NaN where half of them are; None where there are none."""
    given = [value for value in values if value is not None]
    if not given:
        return None
    numbers = [value for value in given if not math.isnan(value)]
    return statistics.median(numbers) if 2 * len(numbers) > len(given) else math.nan


def _figure(value: float | None) -> Figure | None:
    return None if value is None else plain(value)


def plain(value: float) -> Figure:
    """The number to four digits; NaN and infinities by name."""
    if math.isnan(value):
        return "nan"
    rounded = float(f"{value:.{_DIGITS}g}")  # the very largest are rounded to infinity
    if math.isinf(rounded):
        return "inf" if rounded > 0 else "-inf"
    return rounded


# ---------------------------------------------------------------------- losses


def _validation(trace: Trace) -> tuple[str | None, Points]:
    """The loss function that most passes over other data than the training's have, and their means.

    Where a place evaluates several sets of data at one step, the first counts: validation, then a test.
    """
    passes: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for evaluation in trace.evaluations:
        if not evaluation.on_training_data:
            place = passes[evaluation.kind, str(evaluation.site and evaluation.site.key)]
            for step, value in zip(evaluation.steps, evaluation.values, strict=True):
                place.setdefault(step, value)
    if not passes:
        return None, []
    kind, site = max(passes, key=lambda key: len(passes[key]))
    return kind, sorted(passes[kind, site].items())


def _train(trace: Trace, kind: str | None) -> tuple[str, Points, float | None]:
    """The training's loss, of the `kind` that the validation's is of if there is one; and a guess's.

    What `backward()` is called on may be that loss, for every step; but it may be scaled, divided by the
    passes of a step, or have other terms. Then the recorded steps do.
    """
    by_kind: dict[str, list[LossTrace]] = defaultdict(list)
    for objective in trace.objectives:
        if len(objective.steps) > 1:
            by_kind[objective.kind].append(objective)
    losses = _by_step(trace.losses)
    wanted = kind or (next(iter(by_kind)) if len(by_kind) == 1 else "")
    if len(by_kind.get(wanted, ())) != 1:
        return "backward", losses, None
    (objective,) = by_kind[wanted]
    values = _by_step(zip(objective.steps, objective.values, strict=True))
    if _agree(values, dict(losses)):
        return wanted, losses, objective.guess
    return ("backward", losses, None) if kind is None else (wanted, values, objective.guess)


def _agree(values: Points, losses: Mapping[int, float]) -> bool:
    """Whether the losses are these values, in every step in which there are both."""
    pairs = [(value, losses[step]) for step, value in values if step in losses]
    return bool(pairs) and all(
        math.isclose(one, other, rel_tol=1e-3) or not math.isfinite(one + other)
        for one, other in pairs
    )


def _by_step(points: Iterable[tuple[int, float]]) -> Points:
    """The mean of each step's."""
    sums: dict[int, float] = defaultdict(float)
    counts: Counter[int] = Counter()
    for step, value in points:
        sums[step] += value
        counts[step] += 1
    return [(step, sums[step] / counts[step]) for step in sorted(sums)]


def _thinned(points: Points) -> list[tuple[int, Figure]]:
    """Means of neighbours, with the first and the last point as they were. NaN and infinities stay."""
    if len(points) > MOST_POINTS:
        inner = points[1:-1]
        parts = MOST_POINTS - 2
        cuts = [len(inner) * part // parts for part in range(parts + 1)]
        means = [
            (inner[(start + stop) // 2][0], _mean([value for _, value in inner[start:stop]]))
            for start, stop in itertools.pairwise(cuts)
        ]
        points = [points[0], *means, points[-1]]
    return [(step, plain(value)) for step, value in points]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
