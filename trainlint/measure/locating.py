"""Where in a real run samples mix, where they become alike, and where later positions reach earlier ones.

Comes in: steps with their values (`steps.py`), of runs that differ in one thing. Which axis of a result
holds the samples is seen by its growth in a run with one more of them. Goes out: places among the steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from trainlint import ops
from trainlint.measure.steps import INPUT, Step, along, ancestors

# Several roundings of 2⁻²³ each make as much of a difference between equal samples.
ROUNDING: Final = 6e-7
_FLOOR: Final = 1e-8
_PRODUCTS: Final = frozenset({"mul", "matmul", "einsum"})
Changes = Sequence[Sequence[Tensor] | None]


@dataclass(frozen=True)
class Axis:
    """The axis of a result that holds the samples, `each` indices for one of them."""

    number: int
    each: int


UNKNOWN: Final = Axis(-1, 0)


@dataclass(frozen=True)
class Grown:
    """The steps of a run with more samples than the run that it is compared with."""

    steps: Sequence[Step]
    samples: int


def sample_axis(here: Sequence[int], there: Sequence[int], samples: int, more: int) -> Axis | None:
    """The axis of a result that has these sizes, and those with more samples; None without one."""
    if len(here) != len(there):
        return UNKNOWN
    axes = [axis for axis, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1]]
    if not axes:
        return None
    each, rest = divmod(here[axes[0]], samples)
    if len(axes) > 1 or rest or there[axes[0]] != each * more:
        return UNKNOWN
    return Axis(axes[0], each)


def _axes(place: int, steps: Sequence[Step], grown: Grown, samples: int) -> list[Axis | None]:
    """For each value of the step."""
    step = steps[place]
    other = grown.steps[place] if place < len(grown.steps) else None
    if other is None or other.key != step.key or len(other.values) != len(step.values):
        return [UNKNOWN] * len(step.values)
    return [
        sample_axis(here.shape, there.shape, samples, grown.samples)
        for here, there in zip(step.values, other.values, strict=True)
    ]


def _by_sample(value: Tensor, axis: Axis, samples: int) -> list[Tensor]:
    """The samples first: an axis that each of them shares has its indices together, or in turns."""
    before, after = value.shape[: axis.number], value.shape[axis.number + 1 :]
    together = value.reshape(*before, samples, axis.each, *after).movedim(axis.number, 0)
    in_turns = value.reshape(*before, axis.each, samples, *after).movedim(axis.number + 1, 0)
    return [together, in_turns] if axis.each > 1 else [together]


# ---------------------------------------------------------------------- samples that mix


@dataclass(frozen=True)
class Mixed:
    """The step that mixes the samples, and the one before it that lost track of them, if any did."""

    place: int
    mixer: int | None


class MixingRun:
    """A run, and which elements of its floats other samples change, and which the own one."""

    def __init__(
        self,
        steps: Sequence[Step],
        by_others: Changes,
        by_own: Changes,
        grown: Grown,
        samples: int,
        own: int,
    ) -> None:
        self._steps = steps
        self._by_others, self._by_own = by_others, by_own
        self._grown, self._samples, self._own = grown, samples, own

    def located(self, last: Sequence[int]) -> Mixed | None:
        """From the first element that two samples reach, back to where their places were lost."""
        relevant = ancestors(self._steps, last)
        places = range(min(len(self._by_others), len(self._by_own)))
        mixed = [place for place in places if self._is_mixed(place)]
        mixer = next((p for p in mixed if p in relevant), mixed[0] if mixed else None)
        if mixer is None:  # whole elements went to other samples: a roll, a reshape at the very end
            torn = next((p for p in places if p in relevant and self._is_torn(p)), None)
            return None if torn is None else Mixed(torn, None)
        first = mixer
        while lost := [o for o in self._steps[first].operands if o < first and self._is_lost(o)]:
            first = lost[0]
        return Mixed(first, mixer)

    def _pairs(self, place: int) -> list[tuple[Tensor, Tensor, Axis | None]]:
        """For each float of the step: what others change, what the own sample changes, and its axis."""
        others, own = self._by_others[place], self._by_own[place]
        axes = [
            axis
            for axis, value in zip(
                _axes(place, self._steps, self._grown, self._samples),
                self._steps[place].values,
                strict=True,
            )
            if value.is_floating_point() or value.is_complex()
        ]
        return list(zip(others or (), own or (), axes, strict=False))

    def _is_mixed(self, place: int) -> bool:
        """Whether some element depends on the own sample and on another one."""
        return any(bool((others & own).any()) for others, own, _ in self._pairs(place))

    def _is_torn(self, place: int) -> bool:
        """Whether a sample's part of the result depends on another sample."""
        return any(
            not self._is_apart(others, own, axis)
            for others, own, axis in self._pairs(place)
            if axis is not None and axis is not UNKNOWN
        )

    def _is_lost(self, place: int) -> bool:
        """Whether the samples can no longer be told apart: torn, and not merely in another order."""
        for others, own, axis in self._pairs(place):
            if not bool(others.any()) or not bool(own.any()):
                continue
            if axis is not None and axis is not UNKNOWN:
                in_order = not bool((along(others, axis.number) & along(own, axis.number)).any())
                if not in_order and not self._is_apart(others, own, axis):
                    return True
            elif all(
                bool((along(others, number) & along(own, number)).any())
                for number in range(others.dim())
            ):
                return True
        return False

    def _is_apart(self, others: Tensor, own: Tensor, axis: Axis) -> bool:
        """Whether what belongs to the own sample depends on it alone, and nothing else does."""
        rest = [sample for sample in range(self._samples) if sample != self._own]
        pairs = zip(
            _by_sample(others, axis, self._samples),
            _by_sample(own, axis, self._samples),
            strict=True,
        )
        return any(not bool(a[self._own].any()) and not bool(b[rest].any()) for a, b in pairs)


# ---------------------------------------------------------------------- samples that become alike


@dataclass(frozen=True)
class Lost:
    """The step at which the samples' differences shrink the most, the one before it on their way.

    `before` and `after` are the differences relative to the values.
    """

    place: int
    source: int
    before: float
    after: float


@dataclass(frozen=True)
class Focus:
    """The one index of an axis that is read further on: the class token, the last step."""

    axis: int
    length: int
    index: int


def where_lost(
    steps: Sequence[Step], last: Sequence[int], grown: Grown, samples: int
) -> Lost | None:
    """Follow the differences between samples from the outputs, which have none left, to the inputs."""
    search = _Search(steps, grown, samples)
    start = next((p for p in last if search.varying[p]), last[0] if last else None)
    if start is None:
        return None
    found = search.deaths(start)
    # What only arranges numbers loses no differences: beside other places it is none.
    place = min(found, key=lambda p: (search.only_arranges(p), p)) if found else start
    return search.steepest(search.way(place))


class _Search:
    """The differences between samples at every step of a run."""

    def __init__(self, steps: Sequence[Step], grown: Grown, samples: int) -> None:
        self._steps, self._samples = steps, samples
        self._axes = [_axes(place, steps, grown, samples) for place in range(len(steps))]
        self._spreads = [self._spread(place, None) for place in range(len(steps))]
        self.varying: list[bool] = []
        self._zeros: list[bool] = []  # made for the shape of what varies
        for place, step in enumerate(steps):
            lent = any(self.varying[operand] or self._zeros[operand] for operand in step.operands)
            self._zeros.append(lent and not any(bool(value.any()) for value in step.values))
            reaches = any(self.varying[operand] for operand in step.operands)
            self.varying.append(
                self._spreads[place] > ROUNDING
                if step.name == INPUT
                else reaches and step.name not in ops.SHAPE_ONLY
            )

    def deaths(self, start: int) -> list[int]:
        """The steps without differences between samples all of whose operands have some."""
        if self._spreads[start] > ROUNDING:
            return []
        stack: list[tuple[int, Focus | None]] = [(start, None)]
        seen, found = set(stack), []
        while stack:
            place, focus = stack.pop()
            operands = self._operands(place)
            dead = [
                (operand, kept)
                for operand in operands
                for kept in (self._kept(operand, focus),)
                if self._spread(operand, kept) <= ROUNDING
            ] or self._beside(place, operands)
            if operands and not dead:
                found.append(place)
            fresh = [item for item in dead if item not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        return found

    def only_arranges(self, place: int) -> bool:
        """Whether the step moves numbers about, and keeps an axis for the samples."""
        moves = ops.REARRANGEMENTS | ops.PARTS | {"cat", "stack"}
        return self._steps[place].name in moves and any(self._axes[place])

    def way(self, place: int) -> list[int]:
        """From a step back to an input, along the largest differences."""
        way = [place]
        while operands := self._operands(way[-1]):
            way.append(max(operands, key=lambda operand: self._spreads[operand]))
        return way

    def steepest(self, way: Sequence[int]) -> Lost | None:
        """Where on this way they shrink the most; of equal falls, the first."""
        best, steepest = None, 0.0
        for place, source in reversed(list(itertools.pairwise(way))):
            before, after = self._spreads[source], self._spreads[place]
            fall = math.log10(max(before, _FLOOR) / max(after, _FLOOR))
            if fall > steepest + 0.05:
                best, steepest = Lost(place, source, before, after), fall
        return best

    def _operands(self, place: int) -> list[int]:
        """Those that carry the samples; where there is none, those that only lend their shape."""
        step = self._steps[place]
        factors = step.operands if step.name in _PRODUCTS else ()
        zeros = [o for o in factors if self._zeros[o] and not self.varying[o]]
        return zeros + [o for o in step.operands if self.varying[o]] or (
            list(step.operands[:1]) if step.name in ops.SHAPE_ONLY else list(step.operands)
        )

    def _beside(self, place: int, operands: Sequence[int]) -> list[tuple[int, Focus]]:
        """Where one index was taken, its operand at that index, if there were no differences there."""
        step = self._steps[place]
        if step.name not in ("getitem", "select") or len(operands) != 1 or len(step.values) != 1:
            return []
        for whole in self._steps[operands[0]].values[:1]:
            for axis, length in enumerate(whole.shape):
                if whole.shape[:axis] + whole.shape[axis + 1 :] != step.values[0].shape:
                    continue
                for index in range(length):
                    focus = Focus(axis, length, index)
                    same = torch.equal(whole.select(axis, index), step.values[0])
                    if same and self._spread(operands[0], focus) <= ROUNDING:
                        return [(operands[0], focus)]
        return []

    def _kept(self, place: int, focus: Focus | None) -> Focus | None:
        """The focus, as long as the step has that axis."""
        values = self._steps[place].values
        if focus is None or not values or values[0].dim() <= focus.axis:
            return None
        return focus if values[0].shape[focus.axis] == focus.length else None

    def _spread(self, place: int, focus: Focus | None) -> float:
        """The largest difference between samples relative to the scale, over all values of the step."""
        pairs = list(zip(self._steps[place].values, self._axes[place], strict=True))
        if focus is not None:
            value, axis = pairs[0]
            if axis is not None and axis.number == focus.axis:
                return self._spreads[place]
            pairs = [(value.narrow(focus.axis, focus.index, 1), axis)]
        return max(
            (_spread_along(value, axis, self._samples) for value, axis in pairs), default=0.0
        )


def _spread_along(value: Tensor, axis: Axis | None, samples: int) -> float:
    if axis is None:
        return 0.0
    if axis is UNKNOWN:
        return 1.0
    real = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    real = torch.where(real.isfinite(), real, 0).double()
    scale = float(real.abs().max())
    if not scale:
        return 0.0
    parts = _by_sample(real, axis, samples)
    return min(float((part.amax(0) - part.amin(0)).max()) for part in parts) / scale


# ---------------------------------------------------------------------- later positions


def where_leaks(
    steps: Sequence[Step], last: Sequence[int], late: Changes, first: int, length: int
) -> int | None:
    """The first step whose early positions moved when only those from `first` on were changed."""
    relevant = ancestors(steps, last)
    for place, masks in enumerate(late):
        if place in relevant and any(_leaks(mask, first, length) for mask in masks or ()):
            return _origin(steps, late, place, length)
    return None


def _origin(steps: Sequence[Step], late: Changes, place: int, length: int) -> int:
    """What joined early and late positions before this step handed the result out, if anything did."""
    if (
        steps[place].name in ops.CONVOLUTIONS
    ):  # what it may look at is decided by the padding before it
        return next((o for o in steps[place].operands if steps[o].name == "pad"), place)
    joined = place
    while True:
        operands = [
            operand
            for operand in steps[joined].operands
            if operand < len(late) and any(bool(mask.any()) for mask in late[operand] or ())
        ]
        if joined != place and any(length in v.shape for o in operands for v in steps[o].floats):
            return joined  # the positions are still there before it, and behind it no longer
        pooled = [o for o in operands if not any(length in v.shape for v in steps[o].floats)]
        if not pooled:
            return place
        joined = pooled[0]


def _leaks(changed: Tensor, first: int, length: int) -> bool:
    """Whether an element changed that belongs to early positions alone, queries as well as keys."""
    axes = [axis for axis, size in enumerate(changed.shape) if size == length]
    for axis in axes:
        changed = changed.narrow(axis, 0, first)
    return bool(axes) and bool(changed.any())
