"""What of the data reaches a layer, added up on its device without waiting for it.

What the model does to the data before (division by 255, normalization) is done by then, so that only
the scale that the weights meet is judged.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from trainlint.observe.trace import InputTrace

_MOST: Final = 8192
# The scale of data does not change as training goes on.
_CALLS: Final = 16
_MOST_COLUMNS: Final = 1024


class SeenInput:
    """What one layer got straight from the data so far. Figures stay on the device until `trace`."""

    def __init__(self) -> None:
        self._calls = 0
        self._shape: tuple[int, ...] = ()
        self._dtype = ""
        self._bounds: Tensor | None = None
        # Sums over the calls of: mean, mean square, share of whole numbers, share of zeros.
        self._sums: Tensor | None = None
        # Sums over all rows of a table: of 1, of each column, of its squares.
        self._rows = 0
        self._columns: Tensor | None = None
        self.is_normalized = False

    def look_at(self, data: Tensor) -> None:
        """Add a call's data."""
        if self._calls >= _CALLS:
            return
        self._calls += 1
        self._shape, self._dtype = tuple(data.shape), str(data.dtype).removeprefix("torch.")
        flat = data.detach().reshape(-1)
        flat = flat[:: -(-flat.numel() // _MOST) | 1].float()
        bounds = torch.stack([flat.amin(), -flat.amax()])
        self._bounds = bounds if self._bounds is None else torch.minimum(self._bounds, bounds)
        sums = torch.stack(
            [
                flat.mean(),
                flat.square().mean(),
                (flat == flat.round()).float().mean(),
                (flat == 0).float().mean(),
            ]
        )
        self._sums = sums if self._sums is None else self._sums + sums
        if data.dim() == 2 and 1 < data.shape[1] <= _MOST_COLUMNS:
            table = data.detach()[: max(1, _MOST // data.shape[1])].double()
            columns = torch.stack([table.sum(0), table.square().sum(0)])
            if self._columns is None or self._columns.shape == columns.shape:
                self._rows += len(table)
                self._columns = columns if self._columns is None else self._columns + columns

    def trace(self, layer: str, operation: str) -> InputTrace | None:
        """What it adds up to. None where no data came."""
        if self._bounds is None or self._sums is None:
            return None
        mean, square, whole, zero = (self._sums / self._calls).tolist()
        columns: list[tuple[float, float]] = []
        if self._columns is not None and self._rows > 1:
            means, squares = (self._columns / self._rows).tolist()
            columns = [(m, max(0.0, s - m * m) ** 0.5) for m, s in zip(means, squares, strict=True)]
        return InputTrace(
            layer=layer,
            operation=operation,
            shape=self._shape,
            dtype=self._dtype,
            mean=mean,
            std=max(0.0, square - mean * mean) ** 0.5,
            least=float(self._bounds[0]),
            largest=-float(self._bounds[1]),
            whole=whole,
            zero=zero,
            columns=columns,
            normalized=self.is_normalized,
        )
