"""What the targets of a loss function are like, added up on their device without waiting for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

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
        self._batches: list[tuple[int, Tensor]] = []
        self._are_labels = True
        self._loaders: Counter[int | None] = Counter()

    def look_at(
        self,
        step: int,
        targets: Tensor,
        kwargs: Mapping[str, Any],
        *,
        inputs: bool,
        samples: bool,
        loader: int | None,
    ) -> None:
        """Add a call's targets.

        `inputs` tells that the model was given the very same tensor, `samples` that there are as many
        targets as samples were given to it; `loader` numbers the one that was last begun to be read.
        """
        if not targets.numel() or targets.is_complex() or targets.is_meta:
            return
        self._inputs = self._inputs or inputs
        self._integral = self._integral and not targets.is_floating_point()
        flat = targets.reshape(-1)
        self._columns = max(self._columns, targets[:1].numel() if targets.dim() else 1)
        flat = flat[:: -(-flat.numel() // _MOST) | 1].to(torch.float32)
        least, largest = flat.amin(), flat.amax()
        bounds = torch.stack([least, -largest])
        self._bounds = bounds if self._bounds is None else torch.minimum(self._bounds, bounds)
        self._mixed = _both(self._mixed, least < largest)
        self._one_hot = _both(self._one_hot, _is_one_hot(targets))
        # The last bin is for everything else.
        other = (flat != flat.round()) | (flat < 0) | (flat > _LARGEST_WHOLE)
        index = torch.where(other, _LARGEST_WHOLE + 1, flat.nan_to_num(0)).long()
        counts = flat.new_zeros(_LARGEST_WHOLE + 2).scatter_add_(0, index, torch.ones_like(flat))
        self._counts = counts if self._counts is None else self._counts + counts
        self._are_labels = self._are_labels and samples and self._columns == 1
        self._loaders[loader] += 1
        if self._are_labels:
            self._add_batch(step, counts)
        if not targets.is_floating_point():
            none = (targets == kwargs.get("ignore_index", -100)).all().int()
            self._ignored = none if self._ignored is None else self._ignored + none

    def _add_batch(self, step: int, counts: Tensor) -> None:
        if self._batches and self._batches[-1][0] == step:  # accumulated, or in several parts
            self._batches[-1] = (step, self._batches[-1][1] + counts)
            return
        self._batches.append((step, counts))
        if len(self._batches) > _MOST_BATCHES:
            del self._batches[1::2]

    def _by_batch(self) -> list[tuple[int, dict[int, int]]]:
        """The counts of each step, without zeros. None where there were other values than labels."""
        if not self._are_labels or not self._batches:
            return []
        rows = torch.stack([counts for _, counts in self._batches]).int().tolist()
        if any(row[-1] for row in rows):
            return []
        return [
            (step, {label: n for label, n in enumerate(row) if n})
            for (step, _), row in zip(self._batches, rows, strict=True)
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


def _is_one_hot(targets: Tensor) -> Tensor:
    if targets.dim() != 2 or targets.shape[1] < 2:
        return torch.zeros((), dtype=torch.bool, device=targets.device)
    some = targets[:_MOST]
    are_bits = ((some == 0) | (some == 1)).all()
    return are_bits & (some.sum(1) == 1).all()
