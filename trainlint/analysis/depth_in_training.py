"""How gradients and signals change with depth in a model that is being trained: from a `Trace`.

Comes in: the recorded sites of a model. Goes out: a `DepthTrace`, in decades (powers of ten).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from trainlint import ops
from trainlint.observe.trace import ModelTrace, SiteTrace

LEAST_LAYERS: Final = 4
_MANY_CALLS: Final = 8
_AT_FIRST: Final = 5
# What is smaller is no float32 any more.
_SMALLEST: Final = 1e-45


@dataclass(frozen=True)
class DepthTrace:
    """Of the layers with weights, in order of execution; layers that share a weight are one.

    `gradient` is the decimal logarithm of the largest norm of the loss's gradient by a result in the first
    third of the layers over that in the last third, in the median of the recorded `steps`: below 0 where it
    vanishes on its way back. `arriving` is the same with all recorded results up to the first third, also
    of additions and tables: what a residual path carries past a branch has arrived. `begun` is `arriving`
    where it was nearest to 0 in the first recorded steps, before training could make it so. `steepest` is
    the share of this fall that lies between two successive layers: 1 where one layer does all of it.
    `forward` is that of the results' RMS in the last third over the first.
    `spread` is that of the variance between the samples over the mean square, at the last layer, in the
    last recorded steps: below 0 where all samples look alike. `layers` are (layer, median gradient norm).
    """

    steps: int
    gradient: float
    arriving: float
    begun: float
    steepest: float
    forward: float
    spread: float | None
    layers: Sequence[tuple[str, float]]

    @property
    def arrives(self) -> tuple[str, float]:
        """The first layer, and how much it gets of what the last third gets.

        One that gets less, further on, is in a branch: the gradient passes by it.
        """
        third = max(1, len(self.layers) // 3)
        name, first = self.layers[0]
        most = max(norm for _, norm in self.layers[-third:])
        return name, first / most if most else 0.0


def depth_in_training(model: ModelTrace) -> DepthTrace | None:
    """What the recorded steps show of it. None with fewer than four layers, or no figures of them.

    Nor for models with `nn.LSTM` and its kin: what happens within is not seen, and layers beside it, such
    as an attention's, are in no order of depth.
    """
    layers: dict[str, list[SiteTrace]] = {}
    for site in model.sites:
        if site.place.operation in ops.RECURRENT:
            return None
        if site.weight is not None and site.place.operation in ops.WEIGHTED:
            layers.setdefault(site.weight, []).append(site)
    layers = {name: sites for name, sites in layers.items() if any(_values(sites, "gradient"))}
    if len(layers) < LEAST_LAYERS:
        return None
    gradients = [_by_step(sites, "gradient") for sites in layers.values()]
    results = [_by_step(sites, "rms") for sites in layers.values()]
    arrived = _arrived(model, list(layers), gradients)
    backward = list(_ratios(gradients, gradients))
    if not backward:
        return None
    arriving = list(_ratios(arrived, gradients))
    last = next(reversed(layers.values()))[-1]
    variances = [
        2 * math.log10(max(spread, _SMALLEST) / rms)
        for spread, rms in zip(last.spread[-5:], last.rms[-5:], strict=True)
        if spread is not None and rms
    ]
    return DepthTrace(
        steps=len(backward),
        gradient=statistics.median(backward),
        arriving=statistics.median(arriving),
        begun=max(arriving[:_AT_FIRST]),
        steepest=_steepest(arrived),
        forward=-statistics.median(_ratios(results, results)),
        spread=statistics.median(variances) if variances else None,
        layers=[
            (name.removesuffix(".weight"), statistics.median(norms.values()))
            for name, norms in zip(layers, gradients, strict=True)
        ],
    )


def _values(sites: Sequence[SiteTrace], figure: str) -> Iterator[float]:
    for site in sites:
        yield from (v for v in getattr(site, figure) if v is not None and math.isfinite(v))


def _by_step(sites: Sequence[SiteTrace], figure: str) -> dict[int, float]:
    """The root of the summed squares over the calls of one layer."""
    squares: dict[int, float] = {}
    for site in sites:
        for step, value in zip(site.steps, getattr(site, figure), strict=True):
            if value is not None and math.isfinite(value):
                squares[step] = squares.get(step, 0.0) + value * value
    return {step: math.sqrt(total) for step, total in squares.items()}


def _arrived(
    model: ModelTrace, weights: Sequence[str], gradients: Sequence[dict[int, float]]
) -> list[dict[int, float]]:
    """By layer and step, the largest gradient at a result up to where the layer is first applied."""
    place = {weight: n for n, weight in enumerate(weights)}
    own = dict(zip(weights, gradients, strict=True))
    largest: dict[int, float] = {}
    found: list[dict[int, float]] = []
    for site in model.sites:
        is_next = site.weight is not None and place.get(site.weight) == len(found)
        is_next &= site.place.operation in ops.WEIGHTED
        # A later call of a layer is no part of the way there.
        norms = own[site.weight] if is_next and site.weight else _by_step([site], "gradient")
        for step, norm in norms.items():
            largest[step] = max(norm, largest.get(step, 0.0))
        if is_next:
            found.append(dict(largest))
    return found


def _ratios(
    firsts: Sequence[dict[int, float]], lasts: Sequence[dict[int, float]]
) -> Iterator[float]:
    """The first third over the last, in decades, for each step at which both are known."""
    third = max(1, len(lasts) // 3)
    for step in sorted(set().union(*lasts)):
        first = [norms[step] for norms in firsts[:third] if step in norms]
        last = [norms[step] for norms in lasts[-third:] if step in norms]
        if first and last and max(last) > 0:
            yield math.log10(max(*first, _SMALLEST) / max(last))


def _steepest(arrived: Sequence[dict[int, float]]) -> float:
    """The share of the steepest of the falls between layers that follow each other."""
    third = max(1, len(arrived) // 3)
    levels = [statistics.median(norms.values()) for norms in arrived[third - 1 :] if norms]
    falls = [
        math.log10(max(after, _SMALLEST) / max(before, _SMALLEST))
        for before, after in itertools.pairwise(levels)
    ]
    whole = sum(falls)
    return max(falls) / whole if whole > 0 else 1.0


def growth_through_time(model: ModelTrace) -> tuple[str, float] | None:
    """Of the layers that run once a time step, the one whose gradient grows most on its way back.

    (layer, decades from the last third of the calls to the first), in the median of the recorded steps.
    None where no layer is called eight times.
    """
    calls: dict[str, list[dict[int, float]]] = {}
    for site in model.sites:
        if site.weight is not None and site.place.operation in ops.WEIGHTED | ops.RECURRENT:
            calls.setdefault(site.weight, []).append(_by_step([site], "gradient"))
    grown = []
    for name, steps in calls.items():
        ratios = list(_ratios(steps, steps)) if len(steps) >= _MANY_CALLS else []
        if ratios:
            grown.append((statistics.median(ratios), name.removesuffix(".weight")))
    if not grown:
        return None
    decades, layer = max(grown)
    return layer, decades
