"""The best answer that is the same for all samples, to a loss of which nothing is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from trainlint.tree import map_tensors

_STEPS: Final = 200
_RATE: Final = 0.1


def best_mixture(
    outputs: Any, size: int, target: Any, loss: Callable[[Any, Any], Any]
) -> float | None:
    """The least loss of one answer for all `size` samples, among mixtures of the outputs for each.

    Mixtures, with weights that are positive and sum to 1, since a free number may lie where the loss is not
    defined, or not bounded: a log of probabilities. So this is never below the best constant answer's loss.
    None where the loss cannot be computed on them.
    """
    logits = torch.zeros(size, requires_grad=True)
    optimizer = torch.optim.Adam([logits], _RATE)
    least = math.inf
    for _ in range(_STEPS):
        try:
            value = loss(_mixed(outputs, logits.softmax(0)), target)
        except Exception:  # the user's loss: of structures that we do not rebuild
            return None
        if not isinstance(value, Tensor):
            return None
        value = value.mean()
        if not torch.isfinite(value):
            break
        least = min(least, float(value.detach()))
        if not value.requires_grad:
            break
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return least if least < math.inf else None


def _mixed(outputs: Any, weights: Tensor) -> Any:
    def change(_: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not tensor.dim() or len(tensor) != len(weights):
            return tensor
        fixed = tensor.detach()
        mixture: Tensor = torch.tensordot(weights.to(fixed), fixed, dims=1)
        return mixture.expand_as(fixed)

    return map_tensors(outputs, change)
