"""The same inputs with another number of samples, or with the first alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from trainlint.capture.inputs import Inputs
from trainlint.tree import map_tensors, tensors


def batch_size(inputs: Inputs) -> int | None:
    """The number of samples: the length of the first tensor's first axis, None without one.

    Scalars are passed over; a packed sequence holds as many samples as there are at its first step.
    """
    for value in (*inputs.args, *inputs.kwargs.values()):
        if isinstance(value, PackedSequence):
            return int(value.batch_sizes[0])
        for _, tensor in tensors(value):
            if tensor.dim():
                return tensor.shape[0]
    return None


def with_batch(inputs: Inputs, size: int) -> Inputs:
    """The same inputs with another number of samples.

    Fewer are the first of them. More are drawn alike where trainlint made the inputs up: floats from a
    normal distribution of the same mean and scale, ids from the same range. Of given inputs, and of
    masks and lengths, the samples are repeated instead, each next to itself, so that what is sorted
    stays sorted. A tensor without the batch on its first axis, or on its second as hidden states have
    it, is left alone.
    """
    return next(batch_variants(inputs, size))


def batch_variants(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """The ways to read `with_batch`, the likeliest first.

    Two layers' hidden states for two samples have that length on both of their first axes.
    """
    before = batch_size(inputs)
    if not before or before == size:
        yield inputs
        return
    doubtful = False
    for as_states in (False, True):
        resize = _Resize(inputs, before, size, as_states)
        args, kwargs = resize.applied()
        if as_states and not doubtful:
            return
        doubtful = resize.doubtful
        yield replace(inputs, args=args, kwargs=kwargs)


def without_batch(inputs: Inputs) -> Inputs | None:
    """The first sample alone, without the batch's axis; None where the inputs do not show it."""
    before = batch_size(inputs)
    values = (*inputs.args, *inputs.kwargs.values())
    if not before or any(isinstance(value, PackedSequence) for value in values):
        return None

    def first(_: str, tensor: Tensor) -> Tensor:
        return tensor[0] if tensor.dim() and tensor.shape[0] == before else tensor

    args, kwargs = map_tensors((inputs.args, inputs.kwargs), first)
    return replace(inputs, args=args, kwargs=kwargs)


class _Resize:
    """One change of the number of samples in all inputs.

    `as_states` takes a tensor whose first two axes are both that long for hidden states; `doubtful`
    tells whether there was one.
    """

    def __init__(self, inputs: Inputs, before: int, size: int, as_states: bool) -> None:
        self._inputs = inputs
        self._before = before
        self._as_states = as_states
        self._rows = torch.arange(size)
        if size > before:
            self._rows = (
                self._rows * before // size
            )  # 0 0 1 for two samples of which three are made
        self._generator = torch.Generator().manual_seed(0)
        self._is_first = True
        self.doubtful = False

    def applied(self) -> tuple[Any, Any]:
        """The arguments and keyword arguments with the new number of samples."""
        args = tuple(self._value(value) for value in self._inputs.args)
        return args, {name: self._value(value) for name, value in self._inputs.kwargs.items()}

    def _value(self, value: Any) -> Any:
        if not isinstance(value, PackedSequence):
            return map_tensors(value, self._tensor)
        self._is_first = False
        padded, lengths = pad_packed_sequence(value, batch_first=True)
        return pack_padded_sequence(
            padded.index_select(0, self._rows), lengths[self._rows],
            batch_first=True, enforce_sorted=value.sorted_indices is None,
        )  # fmt: skip

    def _tensor(self, _: str, tensor: Tensor) -> Tensor:
        axis = self._axis(tensor)
        self._is_first = self._is_first and not tensor.dim()
        if axis is None:
            return tensor
        count, before = len(self._rows), self._before
        if count < before:
            return tensor.narrow(axis, 0, count)
        if not self._inputs.given and axis == 0 and _can_be_drawn(tensor):
            return torch.cat((tensor, _drawn_like(tensor, count - before, self._generator)))
        return tensor.index_select(axis, self._rows.to(tensor.device))

    def _axis(self, tensor: Tensor) -> int | None:
        first = tensor.dim() > 0 and tensor.shape[0] == self._before
        second = tensor.dim() > 2 and tensor.shape[1] == self._before
        if first and second and not self._is_first:
            self.doubtful = True
            return 1 if self._as_states else 0
        if first:
            return 0
        return 1 if second else None


def _can_be_drawn(tensor: Tensor) -> bool:
    """Whether other values would do as well: neither a mask, nor lengths, nor on the meta device."""
    if tensor.dim() < 2 or tensor.dtype == torch.bool or tensor.is_complex() or tensor.is_meta:
        return False
    if not tensor.numel() or not tensor.is_floating_point():
        return bool(tensor.numel())
    is_mask = bool(((tensor == 0) | (tensor == 1)).all())
    return not is_mask and bool(tensor.isfinite().all())


def _drawn_like(tensor: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` more samples. What is never negative stays so."""
    shape = (count, *tensor.shape[1:])
    if not tensor.is_floating_point():
        low, high = int(tensor.min()), int(tensor.max())
        return torch.randint(low, high + 1, shape, generator=generator).to(tensor)
    known = tensor.detach().float()
    drawn = torch.randn(shape, generator=generator) * known.std(correction=0).cpu()
    drawn = drawn + known.mean().cpu()
    if bool((known >= 0).all()):
        drawn = drawn.clamp(float(known.min()), float(known.max()))
    return drawn.to(tensor)
