"""The pictures of the HTML report: losses, spread of results, gradients and updates of each layer.

Comes in: what was measured of a target. Goes out: figures with a caption that says how to read them. Up to
some tens of layers are drawn each, more as a map, a line a layer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
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
from trainlint.report.html_graph import modules_of, values_of
from trainlint.report.html_parts import figure, keys_of
from trainlint.report.svg import Curve, bars, curves, pairs
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
_UPDATE_EDGES: Final = (1e-5, 1e-4, 3e-4, 3e-3, 1e-2, 1e-1)
_UPDATE_WORDS: Final = (
    "below 1e-5", "to 1e-4", "to 3e-4", "usual, to 3e-3", "to 1e-2", "to 0.1", "above",
)  # fmt: skip


def figures_of(target: TargetResult, findings: Sequence[ReportedFinding]) -> Iterator[str]:
    """All pictures of a target but its graph."""
    accused = {name for finding in findings for name in modules_of(finding)}
    series, shown = target.series, target.graph
    if series is not None:
        yield _losses(series)
        for model in series.models:
            of = f" of {model.model}" if len(series.models) > 1 else ""
            yield _spread(f"what the layers{of} give", model.activations)
            yield _gradients(f"gradient norm by layer{of}", model.layers, accused)
            yield _updates(f"update of a step over the weight{of}", model.layers)
            yield _dead(f"share of dead units{of}", model.layers)
    elif shown is not None:
        yield _spread("what the layers give", values_of(shown))
        if all(profile is None for profile in map(_profile_in, findings)):
            yield _first_gradients(shown, accused)


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
    if not lines:
        return ""
    guess = None if series.guess is None else ("best constant answer", float(series.guess))
    title = f"loss ({series.loss.replace('_', ' ')}) over {series.steps} optimizer steps"
    words = keys_of(lines)
    if bands and any(line.band for line in lines):
        words += '<span class="hint">band: mean ± 2 standard errors</span>'
    return figure(title, words, curves(title, "optimizer steps", lines, guess))


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
    if len(layers) <= _MOST_CARDS:
        return figure(title, words, _cards(layers))
    worst = sorted(layers, key=_lost, reverse=True)[:_WORST_CARDS]
    worst = [layer for layer in layers if layer in worst and _is_lost(layer.histograms[-1])]
    words += " A line is a layer, from its least to its greatest value; the darker, the more often."
    apart = f"<p class='soft'>Those of which least is left:</p>{_cards(worst)}" if worst else ""
    return figure(title, words, _spread_map(title, layers) + apart)


def _cards(layers: Sequence[ActivationSeries]) -> str:
    cards = []
    for layer in layers:
        parts = []
        for shown in layer.histograms:
            is_marked = _is_lost(shown)
            told = _words_on(shown)
            when = f"step {shown.step}" if len(layer.histograms) > 1 else ""
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
    several = " several" if any(len(layer.histograms) > 1 for layer in layers) else ""
    return f'<div class="cards{several}">{"".join(cards)}</div>'


def _label(layer: ActivationSeries) -> str:
    is_named = layer.layer and layer.operation not in layer.layer
    return f"{layer.layer} → {layer.operation}" if is_named else layer.name


def _words_on(shown: Histogram) -> str:
    """What of it is gone, and how far samples lie apart in it."""
    parts = []
    if shown.saturated is not None and shown.saturated >= 0.01:
        parts.append(f"{shown.saturated:.0%} saturated")
    if shown.zero >= 0.005:
        parts.append(f"{shown.zero:.0%} zeros")
    if shown.spread is not None:
        parts.append(f"samples ±{shown.spread:.2g}")
    return ", ".join(parts)


def _is_lost(shown: Histogram) -> bool:
    return (shown.saturated or 0.0) > _SATURATED or shown.zero > _ZEROS or _is_alike(shown)


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
    return max(last.saturated or 0.0, last.zero, float(_is_alike(last)))


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


def _gradients(title: str, layers: Sequence[LayerSeries], accused: set[str]) -> str:
    """Of the first recorded steps, and of the later ones."""
    rows: list[tuple[str, float | None, float | None, bool]] = []
    for layer in reversed(layers):
        points = [value for _, value in finite(layer.gradients) if math.isfinite(value)]
        if len(points) > 2:
            later = statistics.median(points[-max(1, len(points) // 3) :])
            rows.append((layer.name, points[0], later, layer.name in accused))
        elif _number(layer.gradient) is not None:
            rows.append((layer.name, None, _number(layer.gradient), layer.name in accused))
    known = [(name, first, later) for name, first, later, _ in rows if later or first]
    if not known:
        return ""
    last = known[0][2] or 0.0
    rows = [
        (name, first, later, bool(marked or (last and (later or 0) * STARVED < last)))
        for name, first, later, marked in rows
    ]
    words = (
        "From the output (top) to the input. Ring: the first recorded step; disc: the median of the last "
        "third. Healthy layers stay within one or two powers of ten of each other; ◂ marks what a finding "
        "names, and what gets less than 1/100 of the last layer's."
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
            return None
        share = 0.0 if value <= 0 else (math.log10(value) - low) / room
        return min(_LEVELS - 1, int(_LEVELS * share))

    edges = [f"{10 ** (low + room * part / _LEVELS):.1g}" for part in range(_LEVELS)]
    words = (
        "A line is a layer, from the output (top) to the input; time goes to the right. "
        f"The darker, the larger: {legend('heat', [f'from {edge}' for edge in edges])}"
    )
    return words, _over_time(title, layers, lambda layer: layer.gradients, level, "heat")


def _updates(title: str, layers: Sequence[LayerSeries]) -> str:
    drawn = [layer for layer in layers if len(layer.updates) > 1]
    words = "About 1e-3 is usual (shaded): far less hardly trains, far more throws away what was learnt. "
    if len(drawn) > _MOST_CURVES:
        words += "A line is a layer, from the output (top) to the input. "
        words += legend("two-sided", _UPDATE_WORDS)

        def level(value: float) -> int | None:
            return sum(value >= edge for edge in _UPDATE_EDGES) if math.isfinite(value) else None

        picture = _over_time(title, drawn, lambda layer: layer.updates, level, "two-sided")
        return figure(f"{title}, over the training", words, picture)
    lines = []
    for number, layer in enumerate(drawn):
        points = [(x, y) for x, y in finite(layer.updates) if math.isfinite(y) and y > 0]
        if len(points) > 1:
            lines.append(Curve(layer.name, points, f"l{number}"))
    if not lines:
        return ""
    picture = curves(title, "optimizer steps", lines, ("1e-3", 1e-3), usual=_USUAL)
    return figure(f"{title}, over the training", words + keys_of(lines), picture)


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
        given = [value for value in values.values() if math.isfinite(value)]
        if not given:
            continue
        cells = [level(values[step]) if step in values else None for step in columns]
        rows.append((layer.name, cells, f"{given[0]:.2g} at first, {given[-1]:.2g} at the end"))
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


def _profile_in(finding: ReportedFinding) -> object:
    from trainlint.report.text import profile_of

    return profile_of(finding)


def _first_gradients(shown: ModelGraph, accused: set[str]) -> str:
    """Of one pass at the start, where no training was watched."""
    title = "gradient norm by layer at the start"
    layers = [node for node in shown.nodes if node.parameters and node.gradient is not None]
    if len(layers) < 2:
        return ""
    words = "Of one pass on real numbers. "
    if len(layers) <= _MOST_ROWS:
        last = layers[-1].gradient or 0.0
        rows = [
            (
                node.label,
                node.gradient,
                node.module in accused or (node.gradient or 0) * STARVED < last,
            )
            for node in reversed(layers)
        ]
        return figure(f"{title}, output to input", words, bars(title, rows))
    points = [(float(place), float(node.gradient or 0)) for place, node in enumerate(layers)]
    line = Curve("gradient", [point for point in points if point[1] > 0], "train")
    words += f"From the input (left, {escape(layers[0].label)}) to the output ({escape(layers[-1].label)})."
    return figure(title, words, curves(title, "layers with weights, input to output", [line]))
