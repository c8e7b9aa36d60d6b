"""How signal and gradient change from the first layers to the last: one verdict for several rules.

Layers are the operations with weights, in order of execution. Their first and last third are compared
by medians, which a few special layers (embeddings, heads, squeezes) do not move. Imports no torch.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trainlint import ops
from trainlint.graph import Graph
from trainlint.measure.signal import Signal
from trainlint.theory.propagation import Propagation

if TYPE_CHECKING:
    from torch.fx import Node

FEWEST_LAYERS = 6
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
    costs no learning, since a weight's gradient sums over the positions again.
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

    @property
    def steepest(self) -> Node:
        """The one layer that does more than half of it all, else the first.

        A stack that is alike everywhere is named where it begins; one bad part of it at that part.
        """
        sign = -1 if self.gradient < 0 else 1
        steps = [
            sign * math.log10(here / behind) if here > 0 and behind > 0 else 0.0
            for (_, here), (_, behind) in itertools.pairwise(self.profile)
        ]
        worst = max(steps)
        if worst < 0.5 * sum(step for step in steps if step > 0):
            return self.first
        return self.layers[steps.index(worst) + 1]

    @property
    def ratio(self) -> float:
        """The gradient at the first layers as a ratio to that at the last."""
        return 10.0**self.gradient if self.gradient > -300 else 0.0


@dataclass(frozen=True)
class _Layer:
    node: Node
    gradient: float
    size: float
    spread: float | None


def measured_trend(graph: Graph, signal: Signal) -> Trend | None:
    """The trend that a pulse showed; None with fewer than six layers that a gradient reached."""
    samples = _samples(graph)

    def layer(node: Node) -> _Layer | None:
        site = signal.of(node)
        if site is None or not site.gradient:  # a block dropped in this draw, or a part not asked
            return None
        shape = graph.shape(node)
        apart = bool(shape) and shape is not None and shape[0] == samples
        return _Layer(node, site.gradient, site.rms, site.spread if apart else None)

    return _trend(graph, layer)


def predicted_trend(graph: Graph, propagation: Propagation) -> Trend | None:
    """The trend that mean-field theory predicts."""

    def layer(node: Node) -> _Layer | None:
        gradient, moments = propagation.gradient(node), propagation.of(node)
        if not gradient or moments is None:
            return None
        return _Layer(node, gradient, math.sqrt(moments.second), math.sqrt(moments.varying))

    return _trend(graph, layer)


def agreed_trend(
    graph: Graph, signal: Signal, propagation: Propagation, holds: Callable[[Trend], bool]
) -> Trend | None:
    """The measured trend if `holds` says so of it, and of a second draw as well."""
    trend = measured_trend(graph, signal)
    # Nearly all models end here; the path through the graph is looked for in the others only.
    if trend is None or abs(trend.gradient) < 1:
        return None
    shares = propagation.decades_by_kind(trend.first, trend.last)
    if not shares:
        return None  # the last layer is not behind the first: ends of two branches
    by_norms = sum(share for kind, share in shares.items() if kind in ops.NORMALIZATIONS)
    by_means = sum(share for kind, share in shares.items() if kind in _MEANS)
    draws = [trend]
    if holds(trend) and signal.again is not None:
        again = signal.again()
        second = None if again is None else measured_trend(graph, again)
        if second is None:
            return None
        draws.append(second)
    draws = [
        replace(draw, by_norms=max(by_norms, 0.0), by_means=min(by_means, 0.0)) for draw in draws
    ]
    return draws[0] if all(holds(draw) for draw in draws) else None


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


def _trend(graph: Graph, layer: Callable[[Node], _Layer | None]) -> Trend | None:
    uses: dict[Any, list[_Layer]] = {}
    for node in graph.calls_in_order:
        if not graph.is_live(node):
            continue
        if graph.is_weighted(node) or graph.name(node) in ops.RECURRENT:
            found = layer(node)
            if found is not None:
                weight = graph.argument(node, "weight")
                uses.setdefault(node if weight is None else weight, []).append(found)
    layers = [_together(same) for same in uses.values()]
    if len(layers) < FEWEST_LAYERS:
        return None
    third = len(layers) // 3
    first, last = layers[:third], layers[-third:]
    spread = _decades(_spreads(last), _spreads(first))
    share = _decades(_spreads(last), [found.size for found in last])
    return Trend(
        gradient=_decades([f.gradient for f in first], [f.gradient for f in last]) or 0.0,
        forward=_decades([f.size for f in last], [f.size for f in first]) or 0.0,
        spread=spread,
        spread_share=share,
        first=layers[0].node,
        last=layers[-1].node,
        layers=tuple(found.node for found in layers),
        profile=tuple((_label(graph, found.node), found.gradient) for found in layers),
    )


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
