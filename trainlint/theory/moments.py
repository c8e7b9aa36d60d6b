"""Moments of what flows through a network, and how activations and weights change them.

Mean-field theory (Poole et al. 2016; Schoenholz et al. 2017): behind a random weight the elements of a
value are Gaussian, so that a few second moments tell all that the next operation needs. `Moments` are
these; `Activation` integrates a function over the Gaussian; `WeightMoments` are what matters of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from trainlint.sites import INITIALIZATIONS

TINY: Final = 1e-300
_RELATIVE_STEP: Final = 2e-3  # arguments of the maps are rounded to this, so that they repeat
_LARGEST: Final = 1e100
_NEARLY_INDEPENDENT: Final = 0.1


class Moments(NamedTuple):
    """Second moments of the elements of a tensor, seen over samples, units (channels) and positions.

    E[x²] = `varying` + `common`, where `common` is the covariance of the same element of two samples.
    What differs between samples, and what does not, may be alike in two units of one sample
    (`varying_units`, `common_units`) and at two positions of one unit (`varying_places`,
    `common_places`). Kept apart, since the share that varies may be 1e-13 of the whole.
    """

    varying: float
    common: float
    mean: float = 0.0
    varying_units: float = 0.0
    common_units: float = 0.0
    varying_places: float = 0.0
    common_places: float = 0.0

    @property
    def second(self) -> float:
        """E[x²]."""
        return self.varying + self.common

    @property
    def units(self) -> float:
        """E[x_i x_j] of two units of a sample."""
        return self.varying_units + self.common_units

    @property
    def places(self) -> float:
        """E[x_p x_q] at two positions of a unit."""
        return self.varying_places + self.common_places

    def scaled(self, factor: float) -> Moments:
        """The moments of `factor` times the value."""
        square = factor * factor
        mean = self.mean * factor
        return Moments(*(part * square for part in self))._replace(mean=mean).bounded()

    def bounded(self) -> Moments:
        """Within what is possible and what a float can hold."""
        varying = min(max(self.varying, 0.0), _LARGEST)
        common = min(max(self.common, 0.0), _LARGEST)
        mean = min(max(self.mean, -math.sqrt(varying + common)), math.sqrt(varying + common))

        def within(part: float, most: float) -> float:
            return min(max(part, -most), most)

        return Moments(
            varying,
            common,
            mean,
            within(self.varying_units, varying),
            within(self.common_units, common),
            within(self.varying_places, varying),
            within(self.common_places, common),
        )


def constant(value: float) -> Moments:
    """One number everywhere."""
    square = value * value
    return Moments(0.0, square, value, 0.0, square, 0.0, square)


def plus(a: Moments, b: Moments, covariance: float = 0.0) -> Moments:
    """A sum whose terms share their means and, besides, `covariance` of what varies."""
    shared = 2 * a.mean * b.mean
    return Moments(
        a.varying + b.varying + 2 * covariance,
        a.common + b.common + shared,
        a.mean + b.mean,
        a.varying_units + b.varying_units,
        a.common_units + b.common_units + shared,
        a.varying_places + b.varying_places,
        a.common_places + b.common_places + shared,
    ).bounded()


def times(a: Moments, b: Moments) -> Moments:
    """A product of independent factors."""

    def varying(x: float, y: float, p: float, q: float) -> float:
        return x * p + x * q + y * p

    return Moments(
        varying(a.varying, a.common, b.varying, b.common),
        a.common * b.common,
        a.mean * b.mean,
        varying(a.varying_units, a.common_units, b.varying_units, b.common_units),
        a.common_units * b.common_units,
        varying(a.varying_places, a.common_places, b.varying_places, b.common_places),
        a.common_places * b.common_places,
    ).bounded()


def averaged_over_places(x: Moments, count: float) -> Moments:
    """The mean of `count` positions."""
    if count <= 1:
        return x

    def over(all_: float, pairs: float) -> float:
        return pairs + (all_ - pairs) / count

    varying, common = over(x.varying, x.varying_places), over(x.common, x.common_places)
    kept_varying = varying / max(x.varying, TINY)
    kept_common = common / max(x.common, TINY)
    return Moments(
        varying,
        common,
        x.mean,
        x.varying_units * kept_varying,
        x.common_units * kept_common,
        x.varying_places,
        x.common_places,
    ).bounded()


def averaged_over_units(x: Moments, count: float) -> Moments:
    """The mean of `count` units."""
    if count <= 1:
        return x
    varying = x.varying_units + (x.varying - x.varying_units) / count
    common = x.common_units + (x.common - x.common_units) / count
    places_varying = x.varying_places / max(x.varying, TINY)
    places_common = x.common_places / max(x.common, TINY)
    return Moments(
        varying, common, x.mean, varying, common, varying * places_varying, common * places_common
    ).bounded()


def of_values(value: Tensor) -> Moments:
    """A constant: the same in all samples. A vector is also the same at all positions."""
    x = value.detach()
    if not x.is_floating_point():
        x = x.to(torch.float32)
    if x.is_complex():
        x = x.abs()
    square, mean = float(x.double().square().mean()), float(x.double().mean())
    if not math.isfinite(square):
        return constant(0.0)  # a mask of -inf is added, and hides rather than scales
    wide = sum(size > 1 for size in x.shape)
    alike = mean * mean if wide > 1 else square
    return Moments(0.0, square, mean, 0.0, square if wide == 0 else mean * mean, 0.0, alike)


# ---------------------------------------------------------------------- activations


class Slopes(NamedTuple):
    """What an activation does to gradients: E[f'²], E[f']², and E[f f' x]/E[f²] for one along f(x)."""

    square: float
    coherent: float
    along: float


@dataclass(frozen=True)
class Activation:
    """An elementwise function, integrated over Gaussian arguments.

    `function` must work on float64 tensors. `homogeneous`: f(ax) = a f(x) for a > 0, so that one
    integral serves every scale. `singular`: it has a pole, as 1/√x, from which real arguments keep
    away and a Gaussian's tail does not; it is taken as linear about its mean. Equal keys are equal
    functions.
    """

    key: Any
    function: Callable[[Tensor], Tensor] = field(compare=False)
    homogeneous: bool = field(default=False, compare=False)
    singular: bool = field(default=False, compare=False)

    def __call__(self, x: Moments) -> tuple[Moments, Slopes]:
        """Moments of f(x), and its slopes."""
        centred = max(x.second - x.mean * x.mean, 0.0)
        scale = math.sqrt(centred)
        if self.singular or scale < 1e-12 * abs(x.mean) or scale < 1e-140:
            return self._of_a_constant(x)
        unit = scale if self.homogeneous else 1.0
        mean, deviation = _rounded(x.mean / scale) * scale / unit, scale / unit
        if not self.homogeneous:
            deviation = math.exp(_rounded_log(deviation))
        integral = _integral(self, mean, deviation)

        def apart(rest: float) -> float:
            """½E[(f(x) − f(y))²] of two arguments, where `rest` = E[x²] − E[xy]."""
            if rest <= 0:
                return 0.0
            share = min(rest / centred, 2.0)
            if abs(share - 1) < _NEARLY_INDEPENDENT:  # Hermite's series, up to its linear term
                linear = (1 - share) * (deviation * integral.slope_mean) ** 2
                return integral.second - integral.mean**2 - linear
            return _difference(self, mean, deviation, math.exp(_rounded_log(share)))

        of_samples = apart(x.varying)
        of_units = apart(x.varying - x.varying_units + x.common - x.common_units)
        of_others = apart(x.second - x.common_units)
        of_places = apart(x.varying - x.varying_places + x.common - x.common_places)
        of_strangers = apart(x.second - x.common_places)
        square = unit * unit
        result = Moments(
            of_samples * square,
            (integral.second - of_samples) * square,
            integral.mean * unit,
            (of_others - of_units) * square,
            (integral.second - of_others) * square,
            (of_strangers - of_places) * square,
            (integral.second - of_strangers) * square,
        ).bounded()
        return result, Slopes(integral.slope_square, integral.slope_mean**2, integral.along)

    def _of_a_constant(self, x: Moments) -> tuple[Moments, Slopes]:
        value, slope = _at(self, x.mean)
        square = slope * slope
        result = Moments(
            x.varying * square, value * value, value,
            x.varying_units * square, value * value, x.varying_places * square, value * value,
        ).bounded()  # fmt: skip
        along = slope * x.mean / value if value else 1.0
        return result, Slopes(square, square, along)


class _Integral(NamedTuple):
    mean: float
    second: float
    slope_mean: float
    slope_square: float
    along: float


def _rounded(value: float) -> float:
    return round(value / _RELATIVE_STEP) * _RELATIVE_STEP


def _rounded_log(value: float) -> float:
    return _rounded(math.log(value))


# Where the usual activations bend. A Gaussian grid alone misses it once the argument is much wider:
# tanh' on N(0, 10²) lies between two nodes of a Gauss–Hermite rule.
_BEND: Final = 12.0
_FINE: Final = 1001


@lru_cache(maxsize=4096)
def _integral(activation: Activation, mean: float, deviation: float) -> _Integral:
    wide = torch.linspace(-8, 8, _FINE, dtype=torch.float64) * deviation + mean
    bend = torch.linspace(-_BEND, _BEND, _FINE, dtype=torch.float64)
    grid = torch.cat((wide, bend[(bend > wide[0]) & (bend < wide[-1])])).sort().values
    # A grid node exactly at a kink would count one side's slope for both.
    grid = grid + deviation * 1e-9
    value, slope = _with_slope(activation, grid)
    density = torch.exp(-0.5 * ((grid - mean) / deviation) ** 2)
    total = torch.trapezoid(density, grid)

    def expected(what: Tensor) -> float:
        return float(torch.trapezoid(density * what, grid) / total)

    second = expected(value * value)
    along = expected(value * slope * grid) / second if second > 0 else 1.0
    return _Integral(
        expected(value), second, expected(slope), expected(slope * slope), along
    )  # fmt: skip


@lru_cache(maxsize=16384)
def _difference(activation: Activation, mean: float, deviation: float, share: float) -> float:
    """½E[(f(x) − f(y))²] for x, y ~ N(mean, deviation²) with correlation 1 − share."""
    half = deviation * math.sqrt(share / 2)
    rest = deviation * math.sqrt(max(1 - share / 2, 0.0))
    if half < 0.02 and half < 0.02 * rest:
        return share * deviation**2 * _integral(activation, mean, deviation).slope_square
    middle, middle_weight = _normal_grid(min(max(193, int(24 * rest)), 577))
    apart, apart_weight = _normal_grid(49)
    centre = mean + rest * middle[:, None]
    difference = _values(activation, centre + half * apart) - _values(
        activation, centre - half * apart
    )
    return float(middle_weight @ (difference**2 @ apart_weight)) / 2


@lru_cache(maxsize=64)
def _normal_grid(count: int) -> tuple[Tensor, Tensor]:
    grid = torch.linspace(-6.5, 6.5, count, dtype=torch.float64)
    weight = torch.exp(-0.5 * grid**2)
    return grid, weight / weight.sum()


@lru_cache(maxsize=4096)
def _at(activation: Activation, place: float) -> tuple[float, float]:
    value, slope = _with_slope(activation, torch.tensor([place], dtype=torch.float64))
    return float(value), float(slope)


def _values(activation: Activation, grid: Tensor) -> Tensor:
    with torch.no_grad():
        return activation.function(grid).nan_to_num(0.0, 1e150, -1e150)


def _with_slope(activation: Activation, grid: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        place = grid.clone().requires_grad_(True)
        value = activation.function(place * 1)  # a copy: some of them write into their argument
        if not value.requires_grad:
            return value.detach().nan_to_num(), torch.zeros_like(grid)
        (slope,) = torch.autograd.grad(value.sum(), place)
    return value.detach().nan_to_num(0.0, 1e150, -1e150), slope.nan_to_num(0.0, 1e150, -1e150)


@lru_cache(maxsize=256)
def largest_of(count: int) -> tuple[float, float]:
    """Mean and variance of the largest of `count` standard normal numbers."""
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    below = torch.special.ndtr(grid) ** count
    middle = (grid[1:] + grid[:-1]) / 2
    weight = below[1:] - below[:-1]
    mean = float((middle * weight).sum())
    return mean, float((middle**2 * weight).sum()) - mean**2


# ---------------------------------------------------------------------- weights


_LARGEST_SAMPLE: Final = 2**18


class WeightMoments(NamedTuple):
    """What matters of a weight of shape (groups · outputs, inputs, taps).

    `square` is the mean of w². Products of two different weights are averaged over pairs that end in
    one output (`within_row`), that start at one input (`within_column`); `rows` and `columns` are
    the mean dot products of two different rows and columns, and `row_sums` and `column_sums` the mean
    products of their sums. All but `square` are near zero for independent weights.
    """

    square: float
    mean: float
    inputs: int
    outputs: int
    taps: int
    groups: int
    within_row: float
    within_column: float
    rows: float
    columns: float
    row_sums: float
    column_sums: float


def independent(
    square: float, mean: float, outputs: int, inputs: int, taps: int, groups: int
) -> WeightMoments:
    """Weights drawn independently with E[w²] = `square`."""
    product, n, m = mean * mean, inputs * taps, outputs * taps
    return WeightMoments(
        square, mean, inputs, outputs, taps, groups,
        product, product, n * product, m * product, n * n * product, m * m * product,
    )  # fmt: skip


def measured(weight: Tensor, groups: int = 1) -> WeightMoments:
    """The moments of a weight (outputs of all groups, inputs of one group, taps ...)."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    taps = weight[0, 0].numel()
    w = weight.detach().reshape(groups, outputs, inputs, taps)
    if w.numel() > _LARGEST_SAMPLE and outputs > 64:
        w = w[:, :: -(-outputs // max(64, _LARGEST_SAMPLE * outputs // w.numel()))]
    w = w.to(torch.float64)
    rows_seen = w.shape[1]
    n, m = inputs * taps, rows_seen * taps
    energy = w.square()
    total = float(energy.sum())
    row_sums, column_sums = w.sum((2, 3)), w.sum((1, 3))
    row_energy, column_energy = float(row_sums.square().sum()), float(column_sums.square().sum())
    all_rows, unseen = groups * rows_seen, outputs / rows_seen

    def pairs(whole: float, own: float, count: float) -> float:
        return (whole - own) / count if count > 0 else 0.0

    return WeightMoments(
        total / w.numel(),
        float(w.mean()),
        inputs,
        outputs,
        taps,
        groups,
        within_row=pairs(row_energy, total, all_rows * n * (n - 1)),
        within_column=pairs(column_energy, total, groups * inputs * m * (m - 1)),
        rows=pairs(float(w.sum(1).square().sum()), total, all_rows * (all_rows - 1)),
        columns=unseen * pairs(
            float(w.sum(2).square().sum()), total, groups * inputs * (groups * inputs - 1)
        ),
        row_sums=pairs(float(row_sums.sum() ** 2), row_energy, all_rows * (all_rows - 1)),
        column_sums=unseen**2
        * pairs(
            float(column_sums.sum() ** 2), column_energy,
            groups * inputs * (groups * inputs - 1),
        ),
    )  # fmt: skip


# ---------------------------------------------------------------------- declared initialisers


def declared(tensor: Tensor) -> tuple[float, float] | None:
    """(mean square, mean) of the values that the last noted initialiser gives a tensor."""
    noted = INITIALIZATIONS.declared(tensor)
    if noted is None:
        return None
    function, args, kwargs = noted
    return _of_initialiser(function, args, kwargs, tensor)


def _of_initialiser(
    function: str, args: Sequence[Any], kwargs: Mapping[str, Any], tensor: Tensor
) -> tuple[float, float] | None:
    def option(place: int, name: str, default: Any) -> Any:
        return args[place] if len(args) > place else kwargs.get(name, default)

    if function in ("zeros_", "zero_"):
        return 0.0, 0.0
    if function == "ones_":
        return 1.0, 1.0
    if function in ("constant_", "fill_"):
        value = float(option(0, "val", option(0, "value", 0.0)))
        return value * value, value
    if function == "uniform_":
        low = float(option(0, "a", kwargs.get("from", 0.0)))
        high = float(option(1, "b", kwargs.get("to", 1.0)))
        mean = (low + high) / 2
        return (high - low) ** 2 / 12 + mean * mean, mean
    if function in ("normal_", "trunc_normal_"):
        mean, deviation = float(option(0, "mean", 0.0)), float(option(1, "std", 1.0))
        return deviation**2 + mean * mean, mean
    if tensor.dim() < 2:
        return None
    field = tensor[0, 0].numel()
    fan_in, fan_out = tensor.shape[1] * field, tensor.shape[0] * field
    if function.startswith("xavier"):
        return float(option(0, "gain", 1.0)) ** 2 * 2 / (fan_in + fan_out), 0.0
    if function.startswith("kaiming"):
        fan = fan_out if option(1, "mode", "fan_in") == "fan_out" else fan_in
        kind = option(2, "nonlinearity", "leaky_relu")
        slope = option(0, "a", 0)
        gain = torch.nn.init.calculate_gain(kind, slope if kind == "leaky_relu" else None)
        return gain**2 / fan, 0.0
    if function == "orthogonal_":
        return float(option(0, "gain", 1.0)) ** 2 / max(tensor.shape[0], fan_in), 0.0
    return None
