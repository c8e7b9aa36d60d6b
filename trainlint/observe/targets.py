"""What the targets of a loss function are like, added up on their device without waiting for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from trainlint.observe.trace import TargetTrace

_MOST: Final = 8192
_LARGEST_WHOLE: Final = 255
_MOST_BATCHES: Final = 128


class SeenTargets:
    """The targets at one loss so far. Figures stay 0-dimensional tensors until `trace`."""

    def __init__(self) -> None:
        self._bounds: Tensor | None = None
        self._counts: Tensor | None = None
        self._ignored: Tensor | None = None
        self._one_hot: Tensor | None = None
        self._mixed: Tensor | None = None
        self._integral = True
        self._inputs = False
        self._columns = 1
        # Counts by class of each step, where all calls so far had one label a sample.
        self._batches: dict[int, Tensor] = {}
        self._are_labels = True
        self._loaders: Counter[int | None] = Counter()

    def look_at(self, targets: Tensor, *, inputs: bool, samples: bool, loader: int | None) -> None:
        """Note what is known of a call's targets without a look at their values.

        `inputs` tells that the model was given the very same tensor, `samples` that there are as many
        targets as samples were given to it; `loader` numbers the one that was last begun to be read.
        """
        self._inputs = self._inputs or inputs
        self._integral = self._integral and not targets.is_floating_point()
        self._columns = max(self._columns, targets[:1].numel() if targets.dim() else 1)
        self._are_labels = self._are_labels and samples and self._columns == 1
        self._loaders[loader] += 1

    def add(self, steps: Sequence[int], targets: Tensor, ignore: int) -> None:
        """Add the targets of so many calls, of one shape, stacked."""
        flat = targets.reshape(len(steps), -1)
        if not targets.is_floating_point():
            none = (flat == ignore).all(1).sum()
            self._ignored = none if self._ignored is None else self._ignored + none
        flat = flat[:, :: -(-flat.shape[1] // _MOST) | 1].to(torch.float32)
        least, largest = flat.amin(1), flat.amax(1)
        bounds = torch.stack([least.amin(), -largest.amax()])
        self._bounds = bounds if self._bounds is None else torch.minimum(self._bounds, bounds)
        self._mixed = _both(self._mixed, (least < largest).all())
        self._one_hot = _both(self._one_hot, _are_one_hot(targets))
        # The last bin is for everything else.
        other = (flat != flat.round()) | (flat < 0) | (flat > _LARGEST_WHOLE)
        index = torch.where(other, _LARGEST_WHOLE + 1, flat.nan_to_num(0)).long()
        counts = flat.new_zeros(len(flat), _LARGEST_WHOLE + 2)
        counts.scatter_add_(1, index, torch.ones_like(flat))
        total = counts.sum(0)
        self._counts = total if self._counts is None else self._counts + total
        if self._are_labels:
            self._add_batches(steps, counts)

    def _add_batches(self, steps: Sequence[int], counts: Tensor) -> None:
        for step, row in zip(steps, counts, strict=True):
            before = self._batches.get(step)  # accumulated, or in several parts
            self._batches[step] = row if before is None else before + row
        while len(self._batches) > _MOST_BATCHES:
            for step in list(self._batches)[1::2]:
                del self._batches[step]

    def _by_batch(self) -> list[tuple[int, dict[int, int]]]:
        """The counts of each step, without zeros. None where there were other values than labels."""
        if not self._are_labels or not self._batches:
            return []
        batches = sorted(self._batches.items())
        rows = torch.stack([counts for _, counts in batches]).int().tolist()
        if any(row[-1] for row in rows):
            return []
        return [
            (step, {label: n for label, n in enumerate(row) if n})
            for (step, _), row in zip(batches, rows, strict=True)
        ]

    def trace(self) -> TargetTrace | None:
        """What they add up to. None where there were none."""
        if self._bounds is None or self._counts is None:
            return None
        *counts, others = map(int, self._counts.tolist())
        while counts and not counts[-1]:
            counts.pop()
        return TargetTrace(
            least=float(self._bounds[0]),
            largest=-float(self._bounds[1]),
            counts=[] if others else counts,
            integral=self._integral,
            one_hot=bool(self._one_hot),
            mixed=bool(self._mixed),
            inputs=self._inputs,
            columns=self._columns,
            ignored=0 if self._ignored is None else int(self._ignored),
            batches=self._by_batch(),
            loader=self._loaders.most_common(1)[0][0],
        )


def _both(before: Tensor | None, now: Tensor) -> Tensor:
    return now if before is None else before & now


def _are_one_hot(targets: Tensor) -> Tensor:
    """Whether all rows are. Takes (calls, rows, columns)."""
    if targets.dim() != 3 or targets.shape[2] < 2:
        return torch.zeros((), dtype=torch.bool, device=targets.device)
    some = targets[:, :_MOST]
    are_bits = ((some == 0) | (some == 1)).all()
    return are_bits & (some.sum(2) == 1).all()
