"""Gradient, size and change of each parameter in the recorded steps, kept on the device until asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

Owner = tuple[int, str]
LARGEST_SAMPLE: Final = 4096


@dataclass(slots=True)
class _Before:
    """Parameters of one device before a step, with copies of their parts; norms of gradients and parts."""

    parameters: list[Tensor]
    owners: list[Owner]
    copies: tuple[Tensor, ...]
    norms: list[Tensor]


@dataclass(slots=True)
class _Step:
    """(3, parameters): the norms of gradient, weight and change; -1 for a gradient that is not there."""

    step: int
    owners: list[Owner]
    scales: list[float]
    figures: Tensor


class ParameterRecorder:
    """Brackets optimizer steps: `begin` before one, `end` behind it."""

    def __init__(self) -> None:
        self._before: list[_Before] = []
        self._closed: list[_Step] = []
        self._figures: dict[Owner, dict[int, tuple[float | None, ...]]] = defaultdict(dict)

    def begin(
        self,
        parameters: Sequence[Tensor],
        owners: Mapping[int, Owner],
        scale: Tensor | None = None,
    ) -> None:
        """Note the gradients, and copy a part of each parameter, of those whose `id` has an owner.

        All at once, and the gradients before the optimizer reads them: so they come into the cache once.
        `scale` is what the optimizer's own code is yet to divide them by.
        """
        self._before = []
        by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            if id(parameter) in owners:
                by_device[parameter.device].append(parameter)
        with torch.no_grad():
            for group in by_device.values():
                copies = tuple(torch._foreach_mul([_part(parameter) for parameter in group], 1.0))
                gradients = [_gradient(parameter) for parameter in group]
                given = [gradient for gradient in gradients if gradient is not None]
                norms = torch._foreach_norm([*given, *copies], dtype=torch.float32)
                there = iter(norms)
                if scale is not None and given:
                    unscaled = torch._foreach_div(norms[: len(given)], scale.to(copies[0].device))
                    there = iter(unscaled)
                missing = copies[0].new_full((), -1.0, dtype=torch.float32)
                of_gradients = [missing if g is None else next(there) for g in gradients]
                names = [owners[id(parameter)] for parameter in group]
                self._before.append(
                    _Before(group, names, copies, [*of_gradients, *norms[len(given) :]])
                )

    def end(self, step: int) -> None:
        """Note the changes, and with them the figures of the step."""
        with torch.no_grad():
            for group in self._before:
                now = [_part(parameter) for parameter in group.parameters]
                changes = torch._foreach_sub(now, group.copies)
                norms = torch._foreach_norm(changes, dtype=torch.float32)
                scales = [
                    (parameter.numel() * (1 + parameter.is_complex()) / max(1, copy.numel())) ** 0.5
                    for parameter, copy in zip(group.parameters, group.copies, strict=True)
                ]
                figures = torch.stack([*group.norms, *norms])
                self._closed.append(_Step(step, group.owners, scales, figures.view(3, -1)))
        self._before = []

    def drain(self) -> None:
        """Move what was noted to the host."""
        for noted in self._closed:
            for owner, scale, gradient, weight, change in zip(
                noted.owners, noted.scales, *noted.figures.tolist(), strict=True
            ):
                self._figures[owner][noted.step] = (
                    gradient if gradient >= 0 or gradient != gradient else None,
                    weight * scale,
                    change / weight if weight else None,
                )
        self._closed.clear()

    def series(self, owner: Owner) -> tuple[list[int], list[list[float | None]]]:
        """The recorded steps of a parameter; its gradient, size and relative change in each."""
        by_step = self._figures.get(owner, {})
        steps = sorted(by_step)
        return steps, [[by_step[step][column] for step in steps] for column in range(3)]

    def keep_every_other(self) -> None:
        """Halve what is kept."""
        for owner, by_step in self._figures.items():
            self._figures[owner] = {step: by_step[step] for step in sorted(by_step)[::2]}


def _part(parameter: Tensor) -> Tensor:
    """A view of at most 4096 elements."""
    view = _view_of_part(parameter.shape, parameter.stride())
    if view is None:
        return _as_real(parameter.reshape(-1)[:: -(-parameter.numel() // LARGEST_SAMPLE) | 1])
    return _as_real(parameter.as_strided(*view))


def _as_real(values: Tensor) -> Tensor:
    """A complex number as its two parts: the norm is the same."""
    return torch.view_as_real(values) if values.is_complex() else values


@lru_cache(maxsize=4096)
def _view_of_part(
    shape: torch.Size, strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Its sizes and strides; None for a parameter that does not lie together in memory.

    Whole rows, the weights of every so many units: they lie together, too.
    """
    elements = shape.numel()
    if elements <= LARGEST_SAMPLE:
        return tuple(shape), strides
    together = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != together:
            return None
        together *= size
    step = -(-elements // LARGEST_SAMPLE) | 1
    if len(shape) > 1 and shape[0] >= 8 * step and strides[0] == elements // shape[0]:
        return (-(-shape[0] // step), strides[0]), (step * strides[0], 1)
    return (-(-elements // step),), (step,)


def _gradient(parameter: Tensor) -> Tensor | None:
    """The gradient as a dense tensor beside the parameter."""
    gradient = parameter.grad
    if gradient is None:
        return None
    return _as_real(gradient.coalesce().values() if gradient.is_sparse else gradient)
