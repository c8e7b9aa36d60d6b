"""Whether two sets of samples can be of one distribution: two-sample tests on inputs and targets."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

import torch
from torch import Tensor

from trainlint.data.facts import Shift
from trainlint.data.reading import Reading

# Fewer samples on a side show nothing.
_LEAST: Final = 20
_RARE: Final = 5
_TERMS: Final = 100
_MOST: Final = 4096


def shift_of(train: Reading, validation: Reading) -> Shift:
    """The tests on what was read of both, as far as that is a fair sample of each."""
    shift = Shift()
    if not all(reading.pool.whole or reading.pool.shuffles for reading in (train, validation)):
        return shift
    inputs = distance = labels = label_distance = None
    feature = ""
    if _fit(train.features, validation.features):
        assert train.features is not None
        assert validation.features is not None
        inputs, distance, place = of_inputs(train.features, validation.features)
        feature = train.feature_names[place] if place is not None else ""
    if _fit(train.labels, validation.labels):
        assert train.labels is not None
        assert validation.labels is not None
        labels, label_distance = of_labels(train.labels, validation.labels)
    return Shift(inputs, distance, feature, labels, label_distance)


def _fit(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape[1:] != other.shape[1:]:
        return False
    return min(len(one), len(other)) >= _LEAST and one.numel() > 0


def of_inputs(one: Tensor, other: Tensor) -> tuple[float | None, float | None, int | None]:
    """(p-value, distance, feature) of two sets of (N, D) features.

    Kolmogorov and Smirnov's test on each feature, the least p-value times their number (Bonferroni): of
    equal distributions at most the share p of all pairs of sets gets p or less. The distance is
    Wasserstein's of that feature in its deviations: for a mere shift, by how many of them.
    """
    one, other = _some(_finite_rows(one)), _some(_finite_rows(other))
    if min(len(one), len(other)) < _LEAST:
        return None, None, None
    both = torch.cat([one, other])
    varies = (both != both[0]).any(0)
    if not bool(varies.any()):
        return None, None, None
    differences = torch.where(varies, _differences(one, other), 0.0)
    place = int(differences.argmax())
    p = _p_value(float(differences[place]), len(one), len(other))
    moved = _moved(one[:, place].double(), other[:, place].double())
    return min(1.0, p * int(varies.sum())), moved, place


def _some(values: Tensor) -> Tensor:
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return values if len(values) <= _MOST else values[order[:_MOST]]


def _finite_rows(values: Tensor) -> Tensor:
    fine = torch.isfinite(values)
    # A feature that is never finite is none; a row that is not finite elsewhere is left out.
    held = torch.where(fine.any(0), values, 0)
    return held[torch.isfinite(held).all(1)]


def _differences(one: Tensor, other: Tensor) -> Tensor:
    """The largest difference of the distribution functions in each column."""
    values, order = torch.cat([one, other]).sort(0)
    steps = torch.where(order < len(one), 1 / len(one), -1 / len(other)).double()
    differences = steps.cumsum(0)[:-1].abs()
    # Only where all equal values are counted.
    return torch.where(values[1:] != values[:-1], differences, 0.0).amax(0)


def of_labels(one: Tensor, other: Tensor) -> tuple[float | None, float | None]:
    """(p-value, distance) of two sets of targets: classes by their shares, real ones by their values."""
    are_classes = not one.is_floating_point() and not other.is_floating_point()
    if are_classes and one[0].numel() == other[0].numel() == 1:
        return of_classes(Counter(one.flatten().tolist()), Counter(other.flatten().tolist()))
    best: tuple[float, float] | None = None
    columns = (
        list(zip(one.flatten(1).unbind(1), other.flatten(1).unbind(1), strict=True))
        if (one.dim() > 1)
        else [(one, other)]
    )
    for left, right in columns:
        left, right = left[torch.isfinite(left)].double(), right[torch.isfinite(right)].double()
        if min(len(left), len(right)) >= _LEAST:
            found = kolmogorov_smirnov(left, right)
            best = found if best is None else min(best, found)
    return (None, None) if best is None else (min(1.0, best[0] * len(columns)), best[1])


def kolmogorov_smirnov(one: Tensor, other: Tensor) -> tuple[float, float]:
    """(p-value, largest difference of the distribution functions) of two sets of finite numbers.

    The asymptotic p-value with Stephens' correction for small sets; with ties it is too large, never small.
    """
    distance = float(_differences(one[:, None], other[:, None]))
    return _p_value(distance, len(one), len(other)), distance


def _p_value(distance: float, one: int, other: int) -> float:
    size = math.sqrt(one * other / (one + other))
    return _survival((size + 0.12 + 0.11 / size) * distance)


def _survival(x: float) -> float:
    """1 - F(x) of Kolmogorov's distribution."""
    if x < 0.3:  # the series does not converge there, and it is 1 but for 1e-5
        return 1.0
    terms = (2.0 * (-1.0) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, _TERMS))
    return min(1.0, max(0.0, math.fsum(terms)))


def _moved(one: Tensor, other: Tensor) -> float:
    """Wasserstein's distance in deviations within the sets, infinite where those are 0."""
    values = torch.cat([one, other]).sort().values
    below = torch.searchsorted(one.sort().values, values[:-1], right=True).double() / len(one)
    its_below = torch.searchsorted(other.sort().values, values[:-1], right=True).double() / len(
        other
    )
    distance = float(((below - its_below).abs() * values.diff()).sum())
    spread = math.sqrt(
        (float(one.var(correction=0)) * len(one) + float(other.var(correction=0)) * len(other))
        / (len(one) + len(other))
    )
    return distance / spread if spread > 0 else math.inf


def of_classes(one: Counter[int], other: Counter[int]) -> tuple[float | None, float | None]:
    """(p-value, total variation) of two counts of classes: χ², with rare classes put together."""
    sizes = one.total(), other.total()
    least = min(sizes) / sum(sizes)
    columns: list[tuple[int, int]] = []
    rare = [0, 0]
    for label in sorted(one.keys() | other.keys()):
        if (one[label] + other[label]) * least >= _RARE:
            columns.append((one[label], other[label]))
        else:
            rare[0] += one[label]
            rare[1] += other[label]
    if sum(rare) * least >= 1:
        columns.append((rare[0], rare[1]))
    variation = 0.5 * sum(
        abs(one[label] / sizes[0] - other[label] / sizes[1]) for label in one.keys() | other.keys()
    )
    if len(columns) < 2:
        return None, variation
    total = [sum(pair[side] for pair in columns) for side in (0, 1)]
    statistic = 0.0
    for pair in columns:
        for side in (0, 1):
            expected = sum(pair) * total[side] / sum(total)
            statistic += (pair[side] - expected) ** 2 / expected if expected else 0.0
    freedom = torch.tensor((len(columns) - 1) / 2, dtype=torch.float64)
    p = torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64))
    return float(p), variation
