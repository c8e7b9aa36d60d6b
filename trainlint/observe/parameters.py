"""Gradient, size and change of each parameter in the recorded steps, kept on the device until asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

Owner = tuple[int, str]
_LARGEST_SAMPLE: Final = 8192


@dataclass
class _Step:
    """(parameters, 3): the norms of gradient, weight and change; -1 for a gradient that is not there."""

    step: int
    owners: list[Owner]
    figures: Tensor


class ParameterRecorder:
    """Brackets optimizer steps: `begin` before one, `end` behind it."""

    def __init__(self) -> None:
        self._before: list[tuple[Tensor, Tensor]] = []
        self._closed: list[_Step] = []
        self._figures: dict[Owner, dict[int, tuple[float | None, ...]]] = defaultdict(dict)

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Copy a part of each, all of one device and type at once."""
        by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            by_kind[parameter.device, parameter.dtype].append(parameter)
        self._before = [
            (parameter, copy)
            for group in by_kind.values()
            for parameter, copy in zip(group, _parts(group), strict=True)
        ]

    def end(self, step: int, owners: Mapping[int, Owner]) -> None:
        """Note the step's figures of those parameters whose `id` has an owner."""
        by_device: dict[torch.device, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, before in self._before:
            if id(parameter) in owners:
                by_device[before.device].append((parameter, before))
        for pairs in by_device.values():
            parameters = [parameter for parameter, _ in pairs]
            copies = [copy for _, copy in pairs]
            changes = list(torch._foreach_sub(_parts(parameters), copies))
            columns = [
                torch.stack(_gradient_norms(parameters, copies[0])),
                torch.stack(list(torch._foreach_norm(copies))),
                torch.stack(list(torch._foreach_norm(changes))),
            ]
            names = [owners[id(parameter)] for parameter in parameters]
            self._closed.append(_Step(step, names, torch.stack(columns, dim=1)))
        self._before = []

    def drain(self) -> None:
        """Move what was noted to the host."""
        for noted in self._closed:
            for owner, (gradient, weight, change) in zip(
                noted.owners, noted.figures.tolist(), strict=True
            ):
                self._figures[owner][noted.step] = (
                    gradient if gradient >= 0 or gradient != gradient else None,
                    weight,
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


def _parts(parameters: Sequence[Tensor]) -> list[Tensor]:
    """At most about 8192 elements of each, copied as single-precision numbers by a single operation.

    Whole rows, the weights of every so many units: they lie together in memory.
    """
    some = []
    for parameter in parameters:
        stride = -(-parameter.numel() // _LARGEST_SAMPLE) | 1
        is_tall = parameter.dim() > 1 and parameter.shape[0] >= 8 * stride
        rows = parameter.detach().flatten(1) if is_tall else parameter.detach().reshape(-1)
        some.append(_as_real(rows[::stride].reshape(-1)))
    return list(torch.split(torch.cat(some).float(), [len(part) for part in some]))


def _as_real(values: Tensor) -> Tensor:
    """A complex number as its two parts: the norm is the same."""
    return torch.view_as_real(values).flatten(-2) if values.is_complex() else values


def _gradient_norms(parameters: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """The norm of each gradient, -1 where there is none."""
    norms = [like.new_full((), -1.0)] * len(parameters)
    dense: list[tuple[int, Tensor]] = []
    for place, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is None:
            continue
        gradient = gradient.detach()
        if gradient.is_sparse:
            gradient = gradient.coalesce().values()
        dense.append((place, _as_real(gradient)))
    if dense:
        found = torch._foreach_norm([gradient for _, gradient in dense], dtype=torch.float32)
        for (place, _), norm in zip(dense, found, strict=True):
            norms[place] = norm.to(like.device)
    return norms
