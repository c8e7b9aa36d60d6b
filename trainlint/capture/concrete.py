"""Answer from real numbers what meta tensors cannot: values, data-dependent shapes, doubtful errors.

An operation that failed on meta tensors is run again by plain eager PyTorch on the CPU. Its arguments
are recomputed from the last few recorded operations on random leaves, so that `isnan(x).any()` is
False and a mask made by a comparison is neither all true nor all false.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.fx
from torch import Tensor, nn

from trainlint.tree import map_tensors, tensors

# More elements than this are not worth the seconds: the meta error is believed.
_LARGEST_CALL: Final = 1 << 26
_LARGEST_SLICE: Final = 1 << 24
_SLICE_DEPTH: Final = 6


class Eager:
    """Runs single operations on random values of the recorded shapes.

    `node_of` gives the node that stands for a tensor, or None. The random values come from a
    generator of our own.
    """

    def __init__(self, node_of: Callable[[Tensor], torch.fx.Node | None]) -> None:
        self._node_of = node_of
        self._generator = torch.Generator().manual_seed(0)

    def confirm(
        self, func: Any, args: Any, kwargs: Any, meta_error: Exception
    ) -> tuple[Any, Exception | None]:
        """Return (result, None) if eager runs it, else (None, the error to believe)."""
        if sum(tensor.numel() for _, tensor in tensors((args, kwargs))) > _LARGEST_CALL:
            return None, meta_error
        known: dict[torch.fx.Node, Any] = {}
        real_args, real_kwargs = map_tensors(
            (args, kwargs), lambda _, tensor: self._value(tensor, known)
        )
        try:
            with torch.no_grad():
                return func(*real_args, **real_kwargs), None
        except Exception as error:
            return None, error.with_traceback(None)

    def random_like(self, _: str, tensor: Tensor) -> Tensor:
        """Random values in place of a meta tensor; a real tensor as it is."""
        return self._random(tuple(tensor.shape), tensor.dtype) if tensor.is_meta else tensor

    def _random(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if dtype == torch.bool:
            return self._uniform(shape) < 0.5
        if dtype.is_floating_point:
            return self._uniform(shape).to(dtype)
        if dtype.is_complex or math.prod(shape) != 1:
            return torch.zeros(shape, dtype=dtype)
        return torch.ones(shape, dtype=dtype)

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Values in [0, 1)."""
        try:
            return torch.rand(shape, generator=self._generator)
        except RuntimeError:  # vmap allows no generator: multiples of the golden ratio do as well
            return torch.arange(math.prod(shape)).mul(0.6180339887498949).frac().reshape(shape)

    def _value(self, tensor: Tensor, known: dict[torch.fx.Node, Any]) -> Tensor:
        if not tensor.is_meta:
            return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor
        node = self._node_of(tensor)
        if node is not None and tensor.numel() <= _LARGEST_SLICE:
            value = self._recompute(node, known, _SLICE_DEPTH)
            if (
                isinstance(value, Tensor)
                and value.shape == tensor.shape
                and value.dtype == tensor.dtype
            ):
                return value.detach()
        return self._random(tuple(tensor.shape), tensor.dtype)

    def _recompute(self, node: torch.fx.Node, known: dict[torch.fx.Node, Any], depth: int) -> Any:
        """The value of a node, from the last `depth` operations before it on random leaves."""
        if node in known:
            return known[node]
        operation = node.meta["operation"]
        value: Any = None
        replayable = (
            depth > 0
            and node.op == "call_function"
            and operation.error is None
            and not operation.in_place
        )
        if replayable:
            try:
                args, kwargs = torch.fx.node.map_arg(
                    (node.args, node.kwargs), lambda part: self._recompute(part, known, depth - 1)
                )
                target: Any = node.target
                with torch.no_grad():
                    value = target(*args, **kwargs)
            except Exception:  # a slice that cannot be replayed is replaced by random values
                value = None
        if value is None:
            if operation.shape is None:
                raise _NoValueError(node)
            value = self._random(operation.shape.dims, operation.shape.dtype)
        known[node] = value
        return value


class _NoValueError(Exception):
    """A node with several outputs cannot be replaced by one random tensor."""
