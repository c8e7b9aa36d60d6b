"""How the values of results are spread: counts in equal bins, on the device that made them.

Comes in: samples of results, many of one shape at once. Goes out: rows of figures that are fetched with the
others, and become a `Histogram` on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from trainlint import ops
from trainlint.records import Histogram

BINS: Final = 24
# What there is in a row of `counted`: the range, the shares of zeros and of what is saturated, the spread
# between samples, the share of what is not finite, the counts.
COLUMNS: Final = 6 + BINS
# Results of these are looked at: layers, and what bends what they give.
COUNTED: Final = ops.WEIGHTED | ops.RECURRENT | ops.ACTIVATIONS
# Where all results lie, so that layers can be compared; the values decide where this does not.
_RANGES: Final = {
    "relu": (0.0, math.nan),
    "relu6": (0.0, 6.0),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
}
# Results beyond come from where the slope is below 7% of its largest: σ(±4), tanh(±2).
_FLAT: Final = {"sigmoid": (0.018, 0.982), "tanh": (-0.964, 0.964)}
# Single large values would leave all others in one bin.
_DEVIATIONS: Final = 4.0
_DIGITS: Final = 4


def counted(samples: Tensor, operations: Sequence[str]) -> Tensor:
    """(sites, COLUMNS) of samples (sites, rows, columns), one for each operation; nothing waits for it.

    Zeros and what is not finite are in no bin. The outer edges are at most four standard deviations from
    the mean; what lies beyond is in the outer bins. The share that is saturated is -1 where nothing can be,
    as is the spread between samples where there is one row.
    """
    values = samples.flatten(1)
    is_counted = values.isfinite() & (values != 0)
    number = is_counted.sum(1, keepdim=True).clamp_min(1)
    known = values.where(is_counted, 0.0)
    mean = known.sum(1, keepdim=True) / number
    square = (known - mean).where(is_counted, 0.0).square().sum(1, keepdim=True) / number
    apart = _DEVIATIONS * square.sqrt()
    low = torch.maximum(known.where(is_counted, math.inf).amin(1, keepdim=True), mean - apart)
    high = torch.minimum(known.where(is_counted, -math.inf).amax(1, keepdim=True), mean + apart)
    saturated = torch.full_like(low, -1.0)
    if any(name in _RANGES for name in operations):
        ends = torch.tensor([_RANGES.get(name, _NO_RANGE) for name in operations]).to(values.device)
        low, high = (
            end.where(fixed.isnan(), fixed)
            for end, fixed in zip((low, high), _columns(ends), strict=True)
        )
        ends = torch.tensor([_FLAT.get(name, _NO_RANGE) for name in operations]).to(values.device)
        below, above = _columns(ends)
        shares = ((values < below) | (values > above)).float().mean(1, keepdim=True)
        saturated = saturated.where(below.isnan(), shares)
    width = (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    places = ((known - low) / width * BINS).nan_to_num(0.0).clamp(0, BINS - 1).long()
    counts = torch.zeros(len(values), BINS, device=values.device)
    counts.scatter_add_(1, places, is_counted.float())
    zeros = (values == 0).float().mean(1, keepdim=True)
    spread = torch.full_like(low, -1.0)
    if samples.shape[1] > 1:
        spread = (samples - samples.mean(1, keepdim=True)).square().mean((1, 2)).sqrt()[:, None]
    lost = (~values.isfinite()).float().mean(1, keepdim=True)
    return torch.cat([low, high, zeros, saturated, spread, lost, counts], dim=1)


_NO_RANGE: Final = (math.nan, math.nan)


def _columns(ends: Tensor) -> tuple[Tensor, Tensor]:
    return ends[:, :1], ends[:, 1:]


def histogram_of(row: Sequence[float], step: int = 0) -> Histogram | None:
    """From a row of `counted`; None where there were no values."""
    low, high, zero, saturated, spread, lost, *counts = row
    if not any(counts):
        if not zero and not lost > 0:
            return None
        low, high, counts = 0.0, 0.0, []
    return Histogram(
        _rounded(low), _rounded(high), [int(count) for count in counts], _rounded(zero),
        None if saturated < 0 else _rounded(saturated), _rounded(spread) if spread >= 0 else None, step,
        _rounded(lost),
    )  # fmt: skip


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
