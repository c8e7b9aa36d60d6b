"""Whether the gradients of an optimizer are there, zero or finite. On the CPU alone: elsewhere it waits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainlint.observe.roots import KnownOptimizer
from trainlint.observe.sharding import here

if TYPE_CHECKING:
    from torch import Tensor


def is_reset(optimizer: KnownOptimizer) -> bool:
    """Whether the gradients are gone, or zero, before a backward pass adds to them."""
    probes = [probe() for probe in optimizer.probes]
    return not probes or any(
        p is None or p.grad is None or (p.is_cpu and not bool(here(p.grad).any())) for p in probes
    )


def has_arrived(optimizer: KnownOptimizer) -> bool:
    """Whether a parameter has a gradient; on the CPU, where it costs no waiting, one that is not zero."""
    probes = [
        here(g)
        for probe in optimizer.probes
        if (p := probe()) is not None and (g := p.grad) is not None
    ]
    if any(not g.is_cpu or (not g.is_sparse and bool(g.any())) for g in probes):
        return True
    given = [here(p.grad) for p in optimizer.parameters() if p.grad is not None]
    if any(not g.is_cpu or g.is_sparse for g in given):
        return True
    return _is_some_not_zero(given)


def are_zero(parameters: Sequence[Tensor]) -> bool:
    """Whether all gradients are there and exactly zero."""
    given = [here(p.grad) for p in parameters if p.grad is not None and not p.grad.is_sparse]
    return bool(given) and all(g.is_cpu for g in given) and not _is_some_not_zero(given)


def has_finite_gradient(parameter: Tensor) -> bool:
    """Or none, or one on a device, which is not waited for."""
    gradient = parameter.grad
    if gradient is None or gradient.device.type != "cpu" or gradient.is_sparse:
        return True
    gradient = here(gradient)
    return math.isfinite(abs(gradient.sum().item())) or bool(gradient.isfinite().all())


def _is_some_not_zero(gradients: Sequence[Tensor]) -> bool:
    """Whether there is anything but zeros. A row of each is looked at first, which is mostly enough."""
    rows = (gradient[(0,) * (gradient.dim() - 1)] for gradient in gradients if gradient.numel())
    return any(bool(row.any()) for row in rows) or any(bool(g.any()) for g in gradients)
