"""Figures of one field of the samples, gathered batch by batch: what becomes a `FieldData`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from trainlint.data.facts import ColumnData, FieldData

MOST_COLUMNS: Final = 1024
_MOST_CLASSES: Final = 4096
_MOST_BROKEN: Final = 16
_MOST_CHANNELS: Final = 16
_COLOURS: Final = (1, 3, 4)
_SMALLEST_IMAGE: Final = 4


def kind_of(sample: Any, *, is_target: bool) -> str:
    """The kind of a field, by one sample of it: see `FieldData`."""
    if isinstance(sample, str):
        return "text"
    if not isinstance(sample, Tensor) or sample.is_complex():
        return "other"
    is_real = sample.is_floating_point()
    if channel_axis(sample.shape) is not None and (is_real or sample.dtype == torch.uint8):
        return "image"
    if is_target:
        return "values" if is_real else "classes"
    if not is_real:
        return "ids"
    return {1: "table", 2: "sequence"}.get(sample.dim(), "table" if sample.dim() == 0 else "other")


def channel_axis(shape: Sequence[int | None]) -> int | None:
    """0 of (C, H, W) and 2 of (H, W, C), None of what is no image."""
    if len(shape) != 3:
        return None
    first, middle, last = (size or _SMALLEST_IMAGE for size in shape)
    if min(first, middle) >= _SMALLEST_IMAGE and last in _COLOURS and first not in _COLOURS:
        return 2
    is_map = min(middle, last) >= _SMALLEST_IMAGE
    return 0 if is_map and first <= max(_MOST_CHANNELS, 0) else None


def _axis(kind: str, dims: int) -> int | None:
    """Along which axis of a sample its columns run, where that is not a matter of its sizes."""
    if kind in ("table", "values") and dims == 1:
        return 0
    return 1 if kind == "sequence" else None


@dataclass
class _Moments:
    """Count, mean, sum of squares about it, least and largest of each column."""

    count: Tensor
    mean: Tensor
    squares: Tensor
    least: Tensor
    largest: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Moments:
        """Of (rows, columns), without what is not finite."""
        if bool(torch.isfinite(values).all()):
            count = torch.full((values.shape[1],), len(values), dtype=torch.float64)
            variance, mean = torch.var_mean(values, 0, correction=0)
            least, largest = torch.aminmax(values, dim=0)
            return cls(
                count, mean.double(), variance.double() * count, least.double(), largest.double()
            )
        finite = torch.isfinite(values)
        count = finite.sum(0).double()
        held = torch.where(finite, values, 0).double()
        mean = held.sum(0) / count.clamp(min=1)
        squares = torch.where(finite, held - mean, 0).square().sum(0)
        least = torch.where(finite, values, math.inf).amin(0).double()
        largest = torch.where(finite, values, -math.inf).amax(0).double()
        return cls(count, mean, squares, least, largest)

    def joined(self, other: _Moments) -> _Moments:
        """Those of both, by Chan, Golub & LeVeque 1983."""
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        away = other.mean - self.mean
        return _Moments(
            count,
            self.mean + away * share,
            self.squares + other.squares + away.square() * self.count * share,
            torch.minimum(self.least, other.least),
            torch.maximum(self.largest, other.largest),
        )

    def over_all(self) -> _Moments:
        """The columns as one."""
        total = self.count.sum()
        mean = (self.mean * self.count).sum() / total.clamp(min=1)
        squares = (self.squares + (self.mean - mean).square() * self.count).sum()
        parts = (total, mean, squares, self.least.min(), self.largest.max())
        return _Moments(*(part.reshape(1) for part in parts))

    def column(self, place: int) -> ColumnData:
        count = float(self.count[place])
        if not count:
            return ColumnData(math.nan, math.nan, math.nan, math.nan)
        return ColumnData(
            float(self.mean[place]),
            math.sqrt(float(self.squares[place]) / count),
            float(self.least[place]),
            float(self.largest[place]),
        )


@dataclass
class FieldFigures:
    """The figures so far of one field; `add` takes them in. Nothing of the samples is kept."""

    name: str
    is_target: bool = False
    kind: str = ""
    dtype: str = ""
    shape: tuple[int | None, ...] | None = None
    axis: int | None = None
    _moments: _Moments | None = None
    _counts: Counter[int] = field(default_factory=Counter)
    _is_whole: bool = True
    _is_binary: bool = True
    _broken: list[int] = field(default_factory=list)
    _only_masks: bool = True
    _broken_columns: Counter[int] = field(default_factory=Counter)

    def add(self, numbers: Sequence[Any], values: Any) -> None:
        """Samples with their numbers: a tensor with them along its first axis, or a list of texts."""
        if not isinstance(values, Tensor):
            self.kind, self.dtype, self.shape = kind_of(values[0], is_target=False), "str", ()
            return
        if self.shape is None:
            self.kind = kind_of(values[0], is_target=self.is_target)
            self.dtype = str(values.dtype).removeprefix("torch.")
            self.shape = tuple(values.shape[1:])
            is_image = self.kind == "image"
            self.axis = channel_axis(self.shape) if is_image else _axis(self.kind, len(self.shape))
        else:
            self._note_shape(tuple(values.shape[1:]))
        if not values.numel() or (self.kind == "other" and values.is_complex()):
            return
        if self.kind in ("classes", "ids") and self.is_target:
            self._count(values)
        self._note_values(numbers, values)

    def _note_shape(self, shape: tuple[int, ...]) -> None:
        assert self.shape is not None
        if len(shape) != len(self.shape):
            self.shape, self.axis, self._moments = (), None, self._overall()
            return
        before = self.shape[self.axis] if self.axis is not None else None
        pairs = zip(self.shape, shape, strict=True)
        self.shape = tuple(old if old == new else None for old, new in pairs)
        if self.axis is not None and before != shape[self.axis]:
            self.axis, self._moments = None, self._overall()

    def _overall(self) -> _Moments | None:
        return None if self._moments is None else self._moments.over_all()

    def _count(self, values: Tensor) -> None:
        if len(self._counts) <= _MOST_CLASSES:
            found, counts = torch.unique(values, return_counts=True)
            self._counts.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def _note_values(self, numbers: Sequence[Any], values: Tensor) -> None:
        real = values.detach().cpu()
        real = real.float() if real.dtype in (torch.float16, torch.bfloat16) else real
        real = real if real.is_floating_point() else real.double()
        columns = (
            real.reshape(-1, 1)
            if self.axis is None
            else real.movedim(self.axis + 1, -1).reshape(-1, real.shape[self.axis + 1])
        )
        finite = torch.isfinite(columns)
        if not bool(finite.all()):
            self._note_broken(numbers, finite.reshape(len(real), -1, columns.shape[1]))
            self._only_masks &= bool((columns[~finite] == -math.inf).all())
        if self._is_whole:
            self._is_whole = bool(((real == real.round()) | ~torch.isfinite(real)).all())
        if self.is_target and self.kind == "values" and self._is_binary:
            self._is_binary = real[0].numel() == 1 and bool(((real == 0) | (real == 1)).all())
            if self._is_binary:
                self._count(real.long())
        found = _Moments.of(columns)
        self._moments = found if self._moments is None else self._moments.joined(found)

    def _note_broken(self, numbers: Sequence[Any], finite: Tensor) -> None:
        """`finite` is (samples, places, columns)."""
        bad = ~finite
        self._broken += [
            numbers[row] for row in bad.flatten(1).any(1).nonzero().reshape(-1).tolist()
        ]
        if self.axis is not None:
            counts = bad.any(1).sum(0)
            for column in counts.nonzero().reshape(-1).tolist():
                self._broken_columns[column] += int(counts[column])

    def described(self) -> FieldData:
        """The figures as they are told."""
        kind = self.kind
        if kind == "values" and self._is_binary and self._counts:
            kind = "classes"
        overall = self._overall()
        told = ColumnData(*[math.nan] * 4) if overall is None else overall.column(0)
        columns: list[ColumnData] = []
        if self._moments is not None and self.axis is not None:
            most = min(MOST_COLUMNS, len(self._moments.mean))
            columns = [self._moments.column(place) for place in range(most)]
        # 0 and -inf: what is added to the scores of an attention.
        is_mask = self._only_masks and told.least == told.largest == 0
        broken = [] if is_mask else sorted(self._broken)
        counts = self._counts if kind == "classes" and len(self._counts) <= _MOST_CLASSES else {}
        return FieldData(
            self.name,
            kind or "other",
            self.dtype,
            self.shape or (),
            told.mean,
            told.std,
            told.least,
            told.largest,
            columns,
            len(broken),
            broken[:_MOST_BROKEN],
            dict(sorted(counts.items())),
            self.axis,
            self._is_whole and self._moments is not None,
            dict(sorted(self._broken_columns.items())),
        )
