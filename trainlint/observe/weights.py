"""Which weight an operation of a recorded forward applies, whatever kind of module owns it.

Comes in: an operation, its operands and its result. Goes out: the name of a parameter of two dimensions or
more, also where it is transposed, cut, masked or normalised on its way. What such a parameter makes of
something else is an activation, and both together a layer. Nothing is kept alive: what is made of weights
alone is known by the numbers of its autograd nodes.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from torch import Tensor

from trainlint import ops

# What these give of a weight and an activation is no other one: they move them, or put them together.
_JOINING: Final = (
    ops.REARRANGEMENTS
    | ops.PARTS
    | {"cat", "stack", "hstack", "vstack", "setitem", "copy", "where", "masked_fill", "pad"}
)
# With what no parameter has a part in, these make another weight of a weight: a mask, a constant factor.
_ELEMENTWISE: Final = frozenset({"mul", "div", "add", "sub", "pow", "where", "masked_fill"})

_LAYERS: Final = ops.WEIGHTED | {"matmul", "einsum", "addmm", "embedding", "embedding_bag"}


class Weights:
    """The weights of one forward."""

    def __init__(self) -> None:
        self._names: Mapping[int, str] = {}
        self._made: dict[int, str] = {}

    def begin(self, names: Mapping[int, str]) -> None:
        """A forward begins, of a model with these names of parameters by `id`."""
        self._names = names
        self._made.clear()

    def are_among(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether there may be one: quick, since each operation is asked. Lists are looked into later."""
        names = self._names
        for operand in args:
            if id(operand) in names or operand.__class__ in (list, tuple):
                return True
        return bool(self._made) or any(id(operand) in names for operand in kwargs.values())

    def applied(
        self, func: Any, args: Iterable[Any], kwargs: Mapping[str, Any], result: Any
    ) -> str | None:
        """The largest weight that the operation applies to something else, None where it applies none."""
        weight: Tensor | None = None
        name = None
        others = []
        for operand in _tensors((*args, *kwargs.values()) if kwargs else args):
            known = self._names.get(id(operand))
            if known is None and self._made and (node := operand.grad_fn) is not None:
                known = self._made.get(node._sequence_nr())
            if known is None:
                others.append(operand)
            elif operand.dim() > 1 and (weight is None or operand.numel() > weight.numel()):
                weight, name = operand, known
        if weight is None or name is None:
            return None
        operation = ops.canonical_name(func)
        others = [other for other in others if other.numel() > 1]
        if operation in _ELEMENTWISE and not any(other.requires_grad for other in others):
            others = [other for other in others if other.numel() > weight.numel()]
        if others:
            # A vector is no layer's result, but a step of a spectral norm's power iteration.
            is_vector = isinstance(result, Tensor) and result.dim() < 2 and operation not in _LAYERS
            return None if is_vector or operation in _JOINING else name
        for made in _tensors((result,)):
            if made.grad_fn is not None:
                self._made[made.grad_fn._sequence_nr()] = name
        return None


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among the values, and in lists of them, as `torch.cat([a, b])` has one."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (list, tuple):
            yield from (each for each in value if isinstance(each, Tensor))


def opened(func: Any) -> Callable[..., Any]:
    """A torch function that is written in Python, as one whose own operations a function mode is told of.

    Such a function asks whether anybody overrides it, and is called anew as one operation where somebody
    does. In its copy nobody does.
    """
    if not isinstance(func, types.FunctionType):
        return func  # type: ignore[no-any-return]
    globals_ = {**func.__globals__, "has_torch_function": lambda _: False}
    copy = types.FunctionType(
        func.__code__, globals_, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy
