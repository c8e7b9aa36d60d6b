"""What an autograd graph tells of a loss: which forwards and parameters it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

_MOST_NODES: Final = 20000
_COPIED: Final = frozenset({"ToCopy", "Clone"})
_REARRANGED: Final = _COPIED | frozenset(
    "View Squeeze Unsqueeze Reshape Transpose Permute T".split()
)


def sequence(node: Any) -> int:
    """The number of an autograd node, in order of creation."""
    return int(node._sequence_nr())


def walk(losses: Iterable[Tensor], wanted: set[int]) -> tuple[set[int], set[int]]:
    """Which of the wanted nodes lie below the losses, and the `id`s of the parameters there."""
    seen: set[Any] = set()
    found: set[int] = set()
    parameters: set[int] = set()
    stack = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    while stack and len(seen) < _MOST_NODES:
        node: Any = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if (number := sequence(node)) in wanted:
            found.add(number)
        variable = getattr(node, "variable", None)
        if variable is not None:
            parameters.add(id(variable))
        stack.extend(below for below, _ in node.next_functions if below is not None)
    return found, parameters


def is_rearranged(tensor: Tensor) -> bool:
    """Whether the operation that made it only put values into another shape."""
    return tensor.grad_fn is not None and _operation(tensor.grad_fn) in _REARRANGED


def below_rearrangements(tensor: Tensor) -> Iterator[tuple[Any, bool]]:
    """The node that made it and, while such a one only rearranged, the one below.

    With each goes whether axes were changed on the way.
    """
    node, is_moved = tensor.grad_fn, False
    for _ in range(4):
        if node is None:
            return
        yield node, is_moved
        name = _operation(node)
        if name not in _REARRANGED:
            return
        is_moved = is_moved or name not in _COPIED
        node = node.next_functions[0][0]


def maker(tensor: Tensor) -> str:
    """The operation that made the values, behind rearrangements of them: `Softmax`, or nothing."""
    node = tensor.grad_fn
    for _ in range(4):
        if node is None or _operation(node) not in _REARRANGED:
            break
        node = node.next_functions[0][0]
    return "" if node is None else _operation(node)


def _operation(node: Any) -> str:
    name: str = node.name()
    return name.rstrip("01").removesuffix("Backward")
