"""How signal and gradient change from the first layers to the last: one verdict for several rules.

Layers are the operations with weights, in order of execution. Their first and last third are compared
by medians, which a few special layers (embeddings, heads, squeezes) do not move. Where the model as a
whole is sound, its longest plain parts are looked at as well: layers in series, with nothing between
them that normalises or merges. A part at the end of a model, or behind normalised layers, is else hidden
by the other thirds. Imports no torch.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trainlint import ops
from trainlint.graph import Graph
from trainlint.measure.signal import Signal
from trainlint.theory.propagation import Propagation

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.sites import Site

FEWEST_LAYERS = 6
_ENDS_A_RUN = ops.NORMALIZATIONS | ops.RECURRENT | ops.ATTENTION
_ABOUT_AS_MUCH = 0.7
_MEANS = frozenset(
    ("mean", *(f"{kind}avg_pool{rank}d" for kind in ("", "adaptive_") for rank in (1, 2, 3)))
)
# A float's smallest normal number: what underflowed is called this.
_SMALLEST = 1e-38


@dataclass(frozen=True)
class Trend:
    """Decades (log10) from one end of the depth to the other.

    `gradient`: norms of the gradient by the results, first third over last. `forward`: root mean
    squares, last over first. `spread`: of what differs between samples, last over first, and
    `spread_share`: the same over the root mean square, at the end; both None where it is not known.
    `by_norms`: what normalisations are predicted to add to `gradient`. `profile`: labels of all layers
    and the gradients there. `by_means`: what means over positions are predicted to take from it, which
    costs no learning, since a weight's gradient sums over the positions again. `part`: the layers that
    were asked for, None where it is the whole model. `absorbed`: a normalisation behind the part sets the
    size right again, and that of the gradient with it; what samples differ by is then judged as a share.
    """

    gradient: float
    forward: float
    spread: float | None
    spread_share: float | None
    first: Node
    last: Node
    layers: tuple[Node, ...] = field(repr=False)
    profile: tuple[tuple[str, float], ...] = field(repr=False)
    by_norms: float = 0.0
    by_means: float = 0.0
    part: tuple[Node, ...] | None = field(default=None, repr=False)
    absorbed: bool = False

    @property
    def collapsed(self) -> float:
        """The worse of the two losses of what tells samples apart, in decades; 0 if unknown."""
        return min(self.spread or 0.0, self.spread_share or 0.0)

    def vanishes(self, decades: float, spread: float) -> bool:
        """Whether gradients, and what tells samples apart, are lost by decades."""
        return self.gradient - self.by_means < -decades and self.collapsed < -spread

    def explodes(self, forward: float, backward: float) -> bool:
        """Whether results and gradients grow by decades, or gradients alone by more.

        What normalisations multiply a gradient by does not count: they divide by what they are given.
        """
        own = self.gradient - self.by_norms
        return self.ends > 10 and ((self.forward > forward and own > 1) or own > backward)

    @property
    def ends(self) -> float:
        """The gradient at the very first layer over that at the very last."""
        return self.profile[0][1] / self.profile[-1][1]


@dataclass(frozen=True)
class _Layer:
    node: Node
    gradient: float
    size: float
    spread: float | None


def measured_trend(
    graph: Graph, signal: Signal, among: Sequence[Node] | None = None
) -> Trend | None:
    """The trend that a pulse showed, of all layers or `among` these.

    None with fewer than six layers that a gradient reached, where it is of all of them.
    """
    samples = _samples(graph)

    def layer(node: Node) -> _Layer | None:
        site = signal.of(node)
        if site is None or not site.gradient:  # a block dropped in this draw, or a part not asked
            return None
        shape = graph.shape(node)
        apart = bool(shape) and shape is not None and shape[0] == samples
        return _Layer(node, site.gradient, site.rms, site.spread if apart else None)

    return _trend(graph, layer, among)


def predicted_trend(
    graph: Graph, propagation: Propagation, among: Sequence[Node] | None = None
) -> Trend | None:
    """The trend that mean-field theory predicts, of all layers or `among` these."""

    def layer(node: Node) -> _Layer | None:
        gradient, moments = propagation.gradient(node), propagation.of(node)
        if not gradient or moments is None:
            return None
        return _Layer(node, gradient, math.sqrt(moments.second), math.sqrt(moments.varying))

    return _trend(graph, layer, among)


def agreed_trend(
    graph: Graph,
    signal: Signal,
    propagation: Propagation,
    holds: Callable[[Trend], bool],
    parts: Sequence[Sequence[Node]] | None = None,
) -> Trend | None:
    """The measured trend if `holds` says so of it, and of a second draw as well.

    Of the whole model, else of the longest part that is so: `parts`, or all plain runs of at least six
    layers.
    """
    if parts is None:
        plain = [run for run in series(graph) if _weights_of(graph, run) >= FEWEST_LAYERS]
        among: list[Sequence[Node] | None] = [None, *plain]
    else:
        among = list(parts)
    for part in among:
        draws = _draws(graph, signal, propagation, part)
        first = next(draws, None)
        if first is None or not holds(first):
            continue
        second = next(draws, None)
        if signal.again is None or (second is not None and holds(second)):
            return first
    return None


def _draws(
    graph: Graph, signal: Signal, propagation: Propagation, part: Sequence[Node] | None
) -> Iterator[Trend]:
    """The trend as it was measured, and in a second draw."""
    trend = measured_trend(graph, signal, part)
    # Nearly all models end here; the path through the graph is looked for in the others only.
    if trend is None or max(abs(trend.gradient), abs(trend.forward)) < 1:
        return
    shares = propagation.decades_by_kind(trend.first, trend.last)
    if not shares:
        return  # the last layer is not behind the first: ends of two branches
    by_norms = sum(share for kind, share in shares.items() if kind in ops.NORMALIZATIONS)
    by_means = sum(share for kind, share in shares.items() if kind in _MEANS)

    def known(draw: Trend) -> Trend:
        return replace(draw, by_norms=max(by_norms, 0.0), by_means=min(by_means, 0.0))

    yield known(trend)
    again = None if signal.again is None else signal.again()
    second = None if again is None else measured_trend(graph, again, part)
    if second is not None:
        yield known(second)


def series(graph: Graph) -> list[list[Node]]:
    """Runs of layers in series, the longest first.

    Between two of them lies nothing that normalises, attends or recurs, and no stream joins.
    """
    runs: dict[Node, list[Node]] = {}
    for node in graph.calls_in_order:
        if graph.is_live(node) and graph.is_weighted(node):
            before, _ = _layer_before(graph, node)
            runs[node] = [*(runs.pop(before, []) if before is not None else []), node]
    return sorted(runs.values(), key=len, reverse=True)


def _layer_before(graph: Graph, node: Node) -> tuple[Node | None, list[Node]]:
    """The layer that feeds this one alone, and the operations between."""
    between: list[Node] = []
    source = graph.data(node)
    while source is not None and source.op == "call_function":
        if graph.is_weighted(source):
            return source, between
        if graph.name(source) in _ENDS_A_RUN or len(graph.varying_inputs(source)) > 1:
            break
        between.append(source)
        source = graph.data(source)
    return None, between


def _weights_of(graph: Graph, run: Sequence[Node]) -> int:
    """How many weights a run has: a layer that is called again is the same."""
    return len({graph.argument(node, "weight") for node in run})


def steepest(graph: Graph, propagation: Propagation, trend: Trend) -> Node:
    """Where the line of source stands that does most of it: a layer, or a scaling by a constant.

    What one line makes counts together, as the layers of a loop do. Of lines that do about as much, the
    first.
    """
    sign = -1 if trend.gradient < 0 else 1
    shares: dict[Any, float] = {}
    nodes: dict[Any, Node] = {}

    def count(node: Node, site: Site | None, decades: float) -> None:
        key = node if site is None else site.key
        shares[key] = shares.get(key, 0.0) + decades
        nodes.setdefault(key, node)

    steps = zip(itertools.pairwise(_without_dips(trend)), trend.layers[1:], strict=True)
    for (here, behind), node in steps:
        decades = sign * math.log10(here / behind)
        for scaling, factor in scalings(graph, propagation, node):
            part = sign * math.log10(factor)
            decades -= part
            count(scaling, graph.operation(scaling).site, part)
        count(node, graph.place(node), decades)
    most = max(shares.values())
    return next(nodes[key] for key, share in shares.items() if share >= _ABOUT_AS_MUCH * most)


def _without_dips(trend: Trend) -> list[float]:
    """The gradients along the depth; what is small in a branch, and large again behind it, is no step."""
    gradients = [gradient for _, gradient in trend.profile]
    if trend.gradient < 0:
        return list(itertools.accumulate(gradients, max))
    return list(itertools.accumulate(reversed(gradients), max))[::-1]


def scalings(graph: Graph, propagation: Propagation, node: Node) -> Iterator[tuple[Node, float]]:
    """The products with constants between a layer and the one before, and their factors."""
    before, operations = _layer_before(graph, node)
    for between in operations if before is not None else []:
        name = graph.name(between)
        if name not in ("mul", "div"):
            continue
        constants = [value for value in between.args if value is not graph.data(between)]
        if len(constants) != 1:
            continue
        value: Any = constants[0]
        if not isinstance(value, (int, float)):
            moments = propagation.of(value)
            value = 0.0 if moments is None else math.sqrt(moments.second)
        if value:
            yield between, abs(value) if name == "mul" else 1 / abs(value)


def is_plain_chain(graph: Graph) -> bool:
    """Whether nothing merges, gates, attends or recurs: there mean-field theory alone is reliable."""
    for node in graph.calls_in_order:
        if graph.is_live(node) and graph.is_floating(node):
            name = graph.name(node)
            if (
                name in ops.RECURRENT
                or name in ops.ATTENTION
                or len(graph.varying_inputs(node)) > 1
            ):
                return False
    return True


def _samples(graph: Graph) -> int | None:
    for node in graph.nodes:
        shape = graph.shape(node)
        if node.op == "placeholder" and shape:
            return shape[0]
    return None


def _trend(
    graph: Graph, layer: Callable[[Node], _Layer | None], among: Sequence[Node] | None
) -> Trend | None:
    uses: dict[Any, list[_Layer]] = {}
    for node in graph.calls_in_order if among is None else among:
        if not graph.is_live(node):
            continue
        if graph.is_weighted(node) or graph.name(node) in ops.RECURRENT:
            found = layer(node)
            if found is not None:
                weight = graph.argument(node, "weight")
                uses.setdefault(node if weight is None else weight, []).append(found)
    layers = [_together(same) for same in uses.values()]
    if len(layers) < (FEWEST_LAYERS if among is None else 2):
        return None
    third = max(1, len(layers) // 3)
    first, last = layers[:third], layers[-third:]
    absorbed = among is not None and _is_normalised_behind(graph, among[-1])
    return Trend(
        gradient=_decades([f.gradient for f in first], [f.gradient for f in last]) or 0.0,
        forward=_decades([f.size for f in last], [f.size for f in first]) or 0.0,
        spread=None if absorbed else _decades(_spreads(last), _spreads(first)),
        spread_share=_decades(_spreads(last), [found.size for found in last]),
        absorbed=absorbed,
        first=layers[0].node,
        last=layers[-1].node,
        layers=tuple(found.node for found in layers),
        profile=tuple((_label(graph, found.node), found.gradient) for found in layers),
        part=None if among is None else tuple(among),
    )


def _is_normalised_behind(graph: Graph, node: Node) -> bool:
    reached = {node}
    for other in graph.calls_in_order:
        if not reached.isdisjoint(other.all_input_nodes):
            if graph.is_live(other) and graph.name(other) in ops.NORMALIZATIONS:
                return True
            reached.add(other)
    return False


def _label(graph: Graph, node: Node) -> str:
    """The layer's path, also where the user's own layer calls a function."""
    return graph.operation(node).module or graph.label(node)


def _together(uses: Sequence[_Layer]) -> _Layer:
    """One layer that is used several times, as in a siamese or a recurrent net."""
    if len(uses) == 1:
        return uses[0]
    spreads = [use.spread for use in uses if use.spread is not None]
    return _Layer(
        uses[0].node,
        math.hypot(*(use.gradient for use in uses)),
        math.hypot(*(use.size for use in uses)) / math.sqrt(len(uses)),
        math.hypot(*spreads) / math.sqrt(len(spreads)) if spreads else None,
    )


def _spreads(layers: Sequence[_Layer]) -> list[float] | None:
    """None unless most of the layers have the samples apart."""
    known = [layer.spread for layer in layers if layer.spread is not None]
    return known if len(known) * 2 > len(layers) else None


def _decades(top: Sequence[float] | None, bottom: Sequence[float] | None) -> float | None:
    if not top or not bottom:
        return None
    above, below = (max(statistics.median(side), _SMALLEST) for side in (top, bottom))
    if below <= _SMALLEST < above:
        return None
    return math.log10(above / below)
