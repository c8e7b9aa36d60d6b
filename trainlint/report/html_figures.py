"""The pictures of the HTML report: losses, spread of results, gradients and updates of each layer.

Comes in: what was measured of a target. Goes out: figures with a caption that says how to read them. Up to
some tens of layers are drawn each, more as a map, a line a layer.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import Final

from trainlint.records import (
    ActivationSeries,
    Figure,
    Histogram,
    LayerSeries,
    ModelGraph,
    ReportedFinding,
    Series,
    TargetResult,
)
from trainlint.report.html_findings import STARVED
from trainlint.report.html_graph import values_of
from trainlint.report.html_parts import GUESS, cells_of, figure, keys_of, table
from trainlint.report.svg import STEPS, Curve, bars, curves, named, pairs
from trainlint.report.svg_grids import FLAT, grid, histogram, legend

_MOST_CURVES: Final = 6
_MOST_ROWS: Final = 40
_MOST_CARDS: Final = 24
# Cards beside a map: those of which most is gone.
_WORST_CARDS: Final = 8
_COLUMNS: Final = 40
# Shares of a result from which on it is said to be gone.
_SATURATED: Final = 0.5
_ZEROS: Final = 0.9
_MOSTLY: Final = 0.5
_ALIKE: Final = 1e-3
_LEVELS: Final = 8
# So that what differs by little looks alike.
_LEAST_DECADES: Final = 4
# A step changes a weight by about a thousandth of it where training goes well.
_USUAL: Final = (3e-4, 3e-3)
# Optimizers that divide by the size of the gradient, by the names of their classes.
_DIVIDES: Final = re.compile(r"Adam|Adagrad|Adadelta|Adafactor|RMSprop|Lamb|LAMB|Lion|Rprop")
_UPDATE_EDGES: Final = (1e-5, 1e-4, 3e-4, 3e-3, 1e-2, 1e-1)
_UPDATE_WORDS: Final = (
    "below 1e-5", "to 1e-4", "to 3e-4", "usual, to 3e-3", "to 1e-2", "to 0.1", "above",
)  # fmt: skip


def figures_of(target: TargetResult, findings: Sequence[ReportedFinding]) -> Iterator[str]:
    """All pictures of a target but its graph."""
    series, shown = target.series, target.graph
    if series is not None:
        yield _losses(series)
        for model in series.models:
            of = f" of {model.model}" if len(series.models) > 1 else ""
            yield _spread(f"what the layers{of} give", model.activations)
            yield _gradients(f"gradient norm by layer{of}", model.layers, series.recorded)
            yield _updates(f"update of a step over the weight{of}", model.layers, series.optimizers)
            yield _dead(f"share of dead units{of}", model.layers)
            yield _table(f"these figures{of} as a table", model.layers)
    elif shown is not None:
        yield _spread("what the layers give", values_of(shown))
        if all(profile is None for profile in map(_profile_in, findings)):
            yield _first_gradients(shown, target.inputs or "real numbers")


def finite(points: Sequence[tuple[int, Figure]]) -> list[tuple[float, float]]:
    """Points as numbers; what is not finite is left out where it is drawn."""
    return [(float(step), float(value)) for step, value in points]


def bands_of(rows: Sequence[tuple[int, Figure, Figure]]) -> list[tuple[float, float, float]]:
    """(x, lowest, highest) of those that are finite."""
    numbers = [(float(step), float(low), float(high)) for step, low, high in rows]
    return [row for row in numbers if math.isfinite(row[1] + row[2])]


# ---------------------------------------------------------------------- losses


def _losses(series: Series) -> str:
    bands = bands_of(series.bands)
    lines = [
        Curve(name, finite(points), name, bands if name == "validation" else [])
        for name, points in (("train", series.train), ("validation", series.validation))
        if len(points) > 1
    ]
    lines += [
        Curve(f"{name}, seed {repeat.seed}", finite(points), f"{name} again")
        for repeat in series.repeats
        for name, points in (("train", repeat.train), ("validation", repeat.validation))
        if len(points) > 1
    ]
    if not lines:
        return ""
    guess = _number(series.guess)
    level = None if guess is None else ("", guess)
    title = f"loss ({series.loss.replace('_', ' ')}) over {series.steps} optimizer steps"
    title += " on made-up data" * series.made_up
    words = keys_of(lines, GUESS if level else "")
    if bands and any(line.band for line in lines):
        words += '<span class="hint">band: mean ± 2 standard errors</span>'
    if series.repeats:
        most = max(repeat.steps for repeat in series.repeats)
        longer = f", up to {most} steps" if most > series.steps else ""
        words += f'<span class="hint">thin: the same with another seed{longer}</span>'
    return figure(title, words, curves(title, STEPS, lines, level))


# ---------------------------------------------------------------------- how results are spread


def _spread(title: str, layers: Sequence[ActivationSeries]) -> str:
    layers = [layer for layer in layers if layer.histograms]
    if not layers:
        return ""
    words = (
        "How often each value occurs, layer by layer from the input on. “Samples ±” is how far the samples "
        "of a batch lie apart; red where that is less than a thousandth of the values: the layer then says "
        "the same of each of them."
    )
    if any(layer.operation in FLAT for layer in layers):
        words += (
            " <b>Sigmoid, tanh</b>: what piles up at the ends (red) is saturated, and lets no gradient "
            "through."
        )
    if any(each.zero for layer in layers for each in layer.histograms):
        words += (
            " The bar apart at the left is the share of exact zeros: about half of them is usual behind a "
            "<b>ReLU</b>; nearly all of them (red) means that it dies."
        )
    if any(each.not_finite for layer in layers for each in layer.histograms):
        words += " What is <b>NaN or infinite</b> is in no bar."
    if len(layers) <= _MOST_CARDS:
        return figure(title, words, _cards(layers))
    worst = sorted(layers, key=_lost, reverse=True)[:_WORST_CARDS]
    worst = [layer for layer in layers if layer in worst and _is_lost(layer.histograms[-1])]
    words += " A line is a layer, from its least to its greatest value; the darker, the more often."
    apart = f"<p class='soft'>Those of which least is left:</p>{_cards(worst)}" if worst else ""
    return figure(title, words, _spread_map(title, layers) + apart)


def _cards(layers: Sequence[ActivationSeries]) -> str:
    cards = []
    has_several = any(len(layer.histograms) > 1 for layer in layers)
    for layer in layers:
        parts = []
        for shown in layer.histograms:
            is_marked = _is_lost(shown)
            told = _words_on(shown)
            when = f"step {shown.step}" if has_several else ""
            label = f"{_label(layer)} {when}: {told}"
            note = f'<span class="{"lost" if is_marked else "soft"}">{told}</span>'
            parts.append(
                f"<div>{histogram(label, shown, layer.operation, is_marked=is_marked)}"
                f'<span class="when">{when}</span>{note}</div>'
            )
        marked = " marked" if any(map(_is_lost, layer.histograms)) else ""
        heading = f"<h4>{escape(_label(layer))}</h4>"
        cards.append(
            f'<div class="card{marked}">{heading}<div class="row">{"".join(parts)}</div></div>'
        )
    several = " several" if has_several else ""
    return f'<div class="cards{several}">{"".join(cards)}</div>'


def _label(layer: ActivationSeries) -> str:
    is_named = layer.layer and layer.operation not in layer.layer
    return f"{layer.layer} → {layer.operation}" if is_named else layer.name


def _words_on(shown: Histogram) -> str:
    """What of it is gone, and how far samples lie apart in it; shares are those of what is finite."""
    if shown.not_finite >= 1:
        return "all NaN or infinite"
    saturated, zero = _shares(shown)
    parts = []
    if saturated >= 0.01:
        parts.append(f"{saturated:.0%} saturated")
    if zero >= 0.005:
        parts.append(f"{zero:.0%} zeros")
    if shown.spread is not None:
        parts.append(f"samples ±{shown.spread:.2g}")
    told = ", ".join(parts)
    if not shown.not_finite:
        return told
    lost = f"{shown.not_finite:.2g}" if shown.not_finite < 0.01 else f"{shown.not_finite:.0%}"
    return f"{lost} NaN or infinite" + (f"; of the rest {told}" if told else "")


def _shares(shown: Histogram) -> tuple[float, float]:
    """How much of what is finite is saturated, and zero."""
    finite_part = max(1e-9, 1 - shown.not_finite)
    return min(1.0, (shown.saturated or 0.0) / finite_part), min(1.0, shown.zero / finite_part)


def _is_lost(shown: Histogram) -> bool:
    saturated, zero = _shares(shown)
    return shown.not_finite > 0 or saturated > _SATURATED or zero > _ZEROS or _is_alike(shown)


def _is_alike(shown: Histogram) -> bool:
    """Whether the samples differ by next to nothing, compared with the size of the values."""
    number = sum(shown.counts)
    if shown.spread is None or not number:
        return False
    wide = (shown.high - shown.low) / len(shown.counts)
    squares = sum(
        count * (shown.low + wide * (place + 0.5)) ** 2 for place, count in enumerate(shown.counts)
    )
    return shown.spread < _ALIKE * math.sqrt(squares / number)


def _lost(layer: ActivationSeries) -> float:
    last = layer.histograms[-1]
    return max(*_shares(last), last.not_finite, float(_is_alike(last)))


def _spread_map(title: str, layers: Sequence[ActivationSeries]) -> str:
    """The last histogram of each."""
    rows, notes = [], []
    for layer in layers:
        last = layer.histograms[-1]
        most = max(last.counts, default=0)
        cells = [
            None if not count else min(_LEVELS - 1, int(_LEVELS * (count / most) ** 0.5))
            for count in last.counts
        ]
        told = _words_on(last)
        rows.append((_label(layer), cells, f"{told}, {last.low:.2g} to {last.high:.2g}"))
        notes.append(told if _is_lost(last) and len(layers) <= _MOST_ROWS else "")
    return grid(title, rows, ("least value", "greatest value"), "heat", notes)


# ---------------------------------------------------------------------- layers over time


def _number(value: Figure | None) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def _first_and_later(layer: LayerSeries) -> tuple[float | None, float | None]:
    """A layer's gradient at the first recorded step, and the median of the last third; NaN if most are."""
    points = [value for _, value in finite(layer.gradients)]
    if len(points) <= 2:
        return None, None if layer.gradient is None else float(layer.gradient)
    third = points[-max(1, len(points) // 3) :]
    sound = [value for value in third if math.isfinite(value)]
    return points[0], statistics.median(sound) if 2 * len(sound) > len(third) else third[-1]


def starved_in(layers: Sequence[LayerSeries]) -> list[tuple[str, float]]:
    """The layers that get less than 1/100 of the last layer's gradient, with theirs."""
    later = [(layer.name, _first_and_later(layer)[1]) for layer in layers]
    known = [(name, value) for name, value in later if value is not None and math.isfinite(value)]
    last = known[-1][1] if known else 0.0
    return [(name, value) for name, value in known if value * STARVED < last]


def _gradients(title: str, layers: Sequence[LayerSeries], recorded: int) -> str:
    """Of the first recorded steps, and of the later ones."""
    ends = [(layer.name, *_first_and_later(layer)) for layer in reversed(layers)]
    known = [row for row in ends if row[1] or row[2]]
    if not known:
        return ""
    starved = {name for name, _ in starved_in(layers)}
    lost = {name for name, _, later in ends if not math.isfinite(later or 0.0)}
    rows = [
        (name, first, later, name in starved | lost)
        for name, first, later in ends
        if later is not None
    ]
    words = (
        f"Of the training's own batches, at {recorded} recorded steps. From the output (top) to the input. "
        "Ring: the first recorded step; disc: the median of the last third. Healthy layers stay within one "
        "or two powers of ten of each other; ◂ marks what gets less than 1/100 of the last layer's"
        f"{' and what is NaN or infinite' if lost else ''}."
    )
    if len(rows) <= _MOST_ROWS:
        return figure(f"{title}, output to input", words, pairs(title, rows))
    return figure(f"{title}, over the training", *_gradient_map(title, layers))


def _gradient_map(title: str, layers: Sequence[LayerSeries]) -> tuple[str, str]:
    values = [
        v for layer in layers for _, v in finite(layer.gradients) if math.isfinite(v) and v > 0
    ]
    if not values:
        return "", ""
    high = math.log10(max(values))
    low = min(math.log10(min(values)), high - _LEAST_DECADES)
    room = high - low

    def level(value: float) -> int | None:
        if not math.isfinite(value):
            return _LEVELS
        share = 0.0 if value <= 0 else (math.log10(value) - low) / room
        return min(_LEVELS - 1, int(_LEVELS * share))

    edges = [f"from {10 ** (low + room * part / _LEVELS):.1g}" for part in range(_LEVELS)]
    edges += _lost_words(layer.gradients for layer in layers)
    words = (
        "A line is a layer, from the output (top) to the input; time goes to the right. "
        f"The darker, the larger: {legend('heat', edges)}"
    )
    return words, _over_time(title, layers, lambda layer: layer.gradients, level, "heat")


def _updates(title: str, layers: Sequence[LayerSeries], optimizers: Sequence[str]) -> str:
    drawn = [layer for layer in layers if len(layer.updates) > 1]
    words = "About 1e-3 is usual (shaded): far less hardly trains, far more throws away what was learnt. "
    words += _by_noise(layers, optimizers)
    if len(drawn) > _MOST_CURVES:
        words += "A line is a layer, from the output (top) to the input. "
        words += legend(
            "two-sided", [*_UPDATE_WORDS, *_lost_words(layer.updates for layer in drawn)]
        )

        def level(value: float) -> int | None:
            if not math.isfinite(value):
                return len(_UPDATE_WORDS)
            return sum(value >= edge for edge in _UPDATE_EDGES)

        picture = _over_time(title, drawn, lambda layer: layer.updates, level, "two-sided")
        return figure(f"{title}, over the training", words, picture)
    lines = []
    for number, layer in enumerate(drawn):
        points = [(x, y) for x, y in finite(layer.updates) if not y <= 0]
        if len(points) > 1:
            lines.append(Curve(layer.name, points, f"l{number}"))
    if not lines:
        return ""
    picture = curves(title, STEPS, lines, ("1e-3", 1e-3), usual=_USUAL)
    return figure(f"{title}, over the training", words + keys_of(lines), picture)


def _lost_words(of: Iterable[Sequence[tuple[int, Figure]]]) -> list[str]:
    """What stands behind the usual levels where a layer has a figure that is not finite."""
    is_lost = any(not math.isfinite(value) for points in of for _, value in finite(points))
    return ["NaN or infinite"] if is_lost else []


def _by_noise(layers: Sequence[LayerSeries], optimizers: Sequence[str]) -> str:
    """Why layers that are starved move all the same, where they do."""
    kind = next((kind for kind in optimizers if _DIVIDES.search(kind)), "")
    moving = {layer.name for layer in layers if (_number(layer.update) or 0.0) >= _USUAL[0]}
    starved = [(name, value) for name, value in starved_in(layers) if name in moving]
    if not kind or not starved:
        return ""
    name, value = starved[0]
    return (
        f"{escape(kind)} divides by the size of the gradient, so that a layer with hardly any gradient "
        f"({escape(name)}: {named(value)}) still moves, by noise: a usual update does not show that it "
        "learns. "
    )


def _over_time(
    title: str,
    layers: Sequence[LayerSeries],
    points_of: Callable[[LayerSeries], Sequence[tuple[int, Figure]]],
    level: Callable[[float], int | None],
    kind: str,
) -> str:
    """A map with a line a layer and a column for some recorded steps."""
    steps = sorted({step for layer in layers for step, _ in points_of(layer)})
    apart = max(1, -(-len(steps) // _COLUMNS))
    columns = steps[::apart]
    rows = []
    for layer in reversed(layers):
        values = dict(finite(points_of(layer)))
        given = list(values.values())
        if not given:
            continue
        cells = [level(values[step]) if step in values else None for step in columns]
        rows.append(
            (layer.name, cells, f"{named(given[0])} at first, {named(given[-1])} at the end")
        )
    if not rows:
        return ""
    return grid(title, rows, (f"step {columns[0]}", f"step {columns[-1]}"), kind)


def _dead(title: str, layers: Sequence[LayerSeries]) -> str:
    rows = [
        (layer.name, layer.dead, layer.dead > _MOSTLY) for layer in reversed(layers) if layer.dead
    ]
    rows = (
        sorted(rows, key=lambda row: -(row[1] or 0.0))[:_MOST_ROWS]
        if len(rows) > _MOST_ROWS
        else rows
    )
    words = "Units that are 0 for every sample of the latest recorded steps: without a gradient."
    return figure(f"{title}, output to input", words, bars(title, rows)) if rows else ""


def _table(title: str, layers: Sequence[LayerSeries]) -> str:
    """What the pictures of layers show, in numbers, from the output to the input."""
    heads = (
        "layer",
        "operation",
        "gradient",
        "weight's gradient",
        "update over weight",
        "dead units",
    )
    rows = []
    for layer in reversed(layers):
        figures = (layer.gradient, layer.weight_gradient, layer.update)
        cells = ["" if each is None else named(float(each)) for each in figures]
        dead = "" if layer.dead is None else f"{layer.dead:.0%}"
        rows.append(f"<tr>{cells_of([layer.name, layer.operation, *cells, dead])}</tr>")
    if not rows:
        return ""
    note = "<p class='soft'>Medians of the recorded steps.</p>"
    return f"<details><summary>{escape(title)}</summary>{note}{table(heads, rows)}</details>"


def _profile_in(finding: ReportedFinding) -> object:
    from trainlint.report.text import profile_of

    return profile_of(finding)


def _first_gradients(shown: ModelGraph, inputs: str) -> str:
    """Of one pass at the start, where no training was watched."""
    title = "gradient norm by layer at the start"
    layers = [node for node in shown.nodes if node.parameters and node.gradient is not None]
    if len(layers) < 2:
        return ""
    words = f"Of one pass on {escape(inputs)}. "
    if len(layers) <= _MOST_ROWS:
        last = layers[-1].gradient or 0.0
        rows = [
            (node.label, node.gradient, (node.gradient or 0) * STARVED < last)
            for node in reversed(layers)
        ]
        return figure(f"{title}, output to input", words, bars(title, rows))
    points = [(float(place), float(node.gradient or 0)) for place, node in enumerate(layers)]
    line = Curve("gradient", [point for point in points if point[1] > 0], "train")
    words += f"From the input (left, {escape(layers[0].label)}) to the output ({escape(layers[-1].label)})."
    return figure(title, words, curves(title, "layers with weights, input to output", [line]))
