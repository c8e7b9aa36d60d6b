"""The samples of a model's inputs, one by one: where they stand, and others in their place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor

from trainlint.tree import map_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trainlint.capture.inputs import Inputs


@dataclass(frozen=True)
class Slot:
    """One tensor of the inputs: its name in the graph, its values, and the axis of its samples."""

    name: str
    value: Tensor
    axis: int | None

    @cached_property
    def is_mask(self) -> bool:
        """Zeros and ones: other values would mean something else."""
        value = self.value
        return value.dtype == torch.bool or bool(((value == 0) | (value == 1)).all())

    @property
    def is_ids(self) -> bool:
        """Whether these are whole numbers: tokens, classes, lengths."""
        return not (self.value.is_floating_point() or self.value.is_complex())

    @property
    def can_vary(self) -> bool:
        """Whether its samples can be replaced by others."""
        return self.axis is not None and self.value.numel() > 0 and not self.is_mask


def named(inputs: Inputs, change: Callable[[str, Tensor], Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments rebuilt, with the names that the capture gives to inputs."""
    args = tuple(
        map_tensors(value, change, f"input_{place}") for place, value in enumerate(inputs.args)
    )
    return args, {name: map_tensors(value, change, name) for name, value in inputs.kwargs.items()}


def slots_of(inputs: Inputs, resized: Inputs) -> list[Slot]:
    """The tensors of the resized inputs; the axis that grew holds the samples."""
    before: dict[str, tuple[int, ...]] = {}

    def note(name: str, tensor: Tensor) -> Tensor:
        before[name] = tuple(tensor.shape)
        return tensor

    slots: list[Slot] = []

    def collect(name: str, tensor: Tensor) -> Tensor:
        old = before.get(name, ())
        axes = [axis for axis, size in enumerate(old) if tensor.shape[axis] != size]
        slots.append(Slot(name, tensor, axes[0] if len(axes) == 1 else None))
        return tensor

    named(inputs, note)
    named(resized, collect)
    return slots


Manner = Literal["drawn", "crossed", "turned"]
# From the greatest change to the one that every table of ids admits, then to the one for lone samples.
MANNERS: Final[tuple[Manner, ...]] = ("drawn", "crossed", "turned")


def replaced(
    slot: Slot,
    rows: Sequence[int],
    generator: torch.Generator,
    *,
    axis: int | None = None,
    manner: Manner = "drawn",
) -> Tensor:
    """The slot's values with these samples replaced by others like them.

    Ids are drawn from their range, or crossed: each column keeps to what other samples have there, as
    it may be a table of its own; or turned: the sample's own in another order.
    """
    value = slot.value.clone()
    axis = slot.axis if axis is None else axis
    assert axis is not None
    for row in rows:
        old = value.select(axis, row)
        if slot.is_ids and manner == "crossed":
            new = _crossed(slot.value.movedim(axis, 0), row, generator)
        else:
            new = _other(old.clone(), slot.value, generator, gently=manner == "turned")
        value.select(axis, row).copy_(new)
    return value


def _crossed(samples: Tensor, row: int, generator: torch.Generator) -> Tensor:
    """Each element from one of the other samples, at the same place."""
    count = samples.shape[0]
    steps = torch.randint(1, max(count, 2), samples.shape[1:], generator=generator)
    source = ((row + steps) % count).to(samples.device)
    return samples.gather(0, source.unsqueeze(0)).squeeze(0)


def flipped(slot: Slot, generator: torch.Generator) -> list[Tensor]:
    """A mask or a table of zeros and ones, half of it turned over, and all of it."""
    turned = torch.rand(slot.value.shape, generator=generator).to(slot.value.device) < 0.5
    return [torch.where(turned, 1 - slot.value, slot.value), 1 - slot.value]


def _other(row: Tensor, everything: Tensor, generator: torch.Generator, *, gently: bool) -> Tensor:
    """Another sample of the same kind, of another mean and spread."""
    order = torch.randperm(row.numel(), generator=generator).to(row.device)
    if row.is_floating_point() or row.is_complex():
        # Shrunk, so that neither its range grows nor statistics over all samples stay as they are.
        new = row.reshape(-1)[order].reshape(row.shape) * 0.6
        return torch.where(new == row, new + 0.1, new)
    if gently or row.numel() == 0:
        return row[order.argsort()] if row.dim() == 1 else row
    low, high = int(everything.min()), int(everything.max())
    drawn = torch.randint(low, high + 1, row.shape, generator=generator).to(row.device)
    # Drawn one by one: a mere renaming of groups may change nothing.
    other = low + (drawn - low + 1) % (high - low + 1)
    return torch.where(drawn == row, other, drawn).to(row.dtype)
