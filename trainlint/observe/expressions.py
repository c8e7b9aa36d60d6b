"""The loop's own operations in a recorded step, from the model's result to the loss: which made a NaN.

Nobody but the loop can run them again, so they are looked at while they run. What each was given and made,
forwards and backwards, is held to the end of the step and read only once something is known to be wrong. On
other devices than the CPU that is known later, so that sums are left there: a sum is not finite where one
of its terms is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from trainlint import ops
from trainlint.observe.autograd import is_rearranged, sequence
from trainlint.observe.origin import Origin, value_of
from trainlint.sites import Site, calling_site
from trainlint.tree import tensors

_MOST_OPERATIONS: Final = 128
# Nodes that one operation may make: `normalize` makes five.
_MOST_NODES: Final = 16
# Scores over a vocabulary are not added up.
_LARGEST: Final = 1 << 18
_MOST_HELD: Final = 1 << 22


@dataclass
class _Operation:
    """Operands and result, and gradients by the operands and the result; or the sums of each."""

    name: str
    site: Site | None
    given: list[Tensor]
    made: Tensor
    bounds: list[Tensor]
    versions: list[int]
    is_whole: bool
    gradients: list[tuple[Any, Any]] = field(default_factory=list)

    def note(self, by_operands: Any, by_result: Any) -> None:
        """A node of the operation ran backwards."""
        if not self.is_whole:
            by_operands, by_result = [_sum(by_operands)], [_sum(by_result)]
        self.gradients.append((by_operands, by_result))

    def broke(self, *, backward: bool) -> Origin | None:
        """What it made of finite values, if that was not finite."""
        if self.versions != [t._version for t in (*self.given, self.made)]:
            return None  # written over since
        pairs = self.gradients if backward else [([self.made], self.given)]
        for made, given in pairs:
            total = _sum(made)
            if total is None or _is_finite(total):
                continue
            sums = [_sum([t]) for t in given]
            if all(part is None or _is_finite(part) for part in sums):
                bounds = self.bounds or (
                    list(torch.aminmax(g)) if (g := self.given[0]).numel() else []
                )
                least, largest = map(float, bounds or (math.nan, math.nan))
                return Origin(self.name, self.site, value_of(total), least, largest, backward)
        return None


class Expressions:
    """The operations outside of models in the step that is being recorded."""

    def __init__(self) -> None:
        self._operations: list[_Operation] = []
        self._number = -1
        self._elements = 0
        self._waiting: list[tuple[int, list[_Operation]]] = []
        # The operations of the last recorded step, in order.
        self._places: list[tuple[str, Site | None]] = []

    def begin(self, ends: frozenset[int]) -> None:
        """A model's forward ended in nodes of these numbers: what follows is the loop's."""
        self._number = max(self._number, *ends)

    def look_at(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operation outside of all models was called."""
        made = next((t for _, t in tensors(result)), None)
        if made is None or made.grad_fn is None or not _is_small(made):
            return
        before, number = self._number, sequence(made.grad_fn)
        if number <= before or len(self._operations) >= _MOST_OPERATIONS:
            return
        self._number = number
        if is_rearranged(made):
            return  # what is not finite in it was so before
        operands = [t.detach() for _, t in tensors((args, kwargs)) if t.is_floating_point()]
        if not operands or not all(map(_is_small, operands)):
            return
        name, site, whole = ops.canonical_name(func), calling_site(3), made.detach()
        self._elements += sum(t.numel() for t in (*operands, whole))
        if whole.is_cpu and self._elements <= _MOST_HELD:
            versions = [t._version for t in (*operands, whole)]
            operation = _Operation(name, site, operands, whole, [], versions, True)
        else:
            total = _sum([whole])
            if total is None:
                return
            sums = [s for s in (_sum([operand]) for operand in operands) if s is not None]
            bounds = list(torch.aminmax(operands[0])) if operands[0].numel() else []
            versions = [t._version for t in (*sums, total)]
            operation = _Operation(name, site, sums, total, bounds, versions, False)
        self._operations.append(operation)
        stack: list[Any] = [made.grad_fn]
        for _ in range(_MOST_NODES):
            if not stack:
                break
            node = stack.pop()
            node.register_hook(operation.note)
            stack += [
                below
                for below, _ in node.next_functions
                if below is not None and not hasattr(below, "variable") and sequence(below) > before
            ]

    def origin(self, *, backward: bool) -> Origin | None:
        """The first of this step's operations that made what is not finite. Waits for the device."""
        return _first(self._operations, backward=backward)

    def close(self, step: int) -> None:
        """The step is over. What lies on another device than the CPU is looked at later."""
        if any(operation.made.device.type != "cpu" for operation in self._operations):
            self._waiting.append((step, self._operations))
        if self._operations:
            self._places = [(operation.name, operation.site) for operation in self._operations]
        self._operations, self._number, self._elements = [], -1, 0

    def origin_in_graph(self, loss: Tensor, after: int) -> Origin | None:
        """The same in a step that was not recorded, as far as the graph has kept what went into operations.

        `after` is the number of the last node of the model. Before the backward pass, which frees it.
        """
        nodes = sorted(_nodes_after(loss, after), key=sequence)
        names = [_name_of(node) for node in nodes]
        for place, (node, name) in enumerate(zip(nodes, names, strict=True)):
            made, given = _kept(node, name)
            if made is None or bool(made.isfinite().all()):
                continue
            if not all(bool(t.isfinite().all()) for t in given):
                return None
            sites = [site for known, site in self._places if known == name]
            number = names[:place].count(name)
            site = sites[number] if len(sites) == names.count(name) else None
            bounds = torch.aminmax(given[0]) if given else (math.nan, math.nan)
            return Origin(name, site, value_of(made), float(bounds[0]), float(bounds[1]))
        return None

    def drain(self) -> tuple[int, Origin] | None:
        """The first of the closed steps with such an operation."""
        waiting, self._waiting = self._waiting, []
        for step, operations in waiting:
            for backward in (False, True):
                origin = _first(operations, backward=backward)
                if origin is not None:
                    return step, origin
        return None


def _nodes_after(loss: Tensor, after: int) -> list[Any]:
    stack: list[Any] = [] if loss.grad_fn is None else [loss.grad_fn]
    seen: set[Any] = set()
    while stack and len(seen) < _MOST_OPERATIONS:
        node = stack.pop()
        if node not in seen and not hasattr(node, "variable") and sequence(node) > after:
            seen.add(node)
            stack += [below for below, _ in node.next_functions if below is not None]
    return list(seen)


def _name_of(node: Any) -> str:
    """`log` for LogBackward0."""
    name: str = node.name()
    return name.rstrip("0123456789").removesuffix("Backward").lower()


def _kept(node: Any, name: str) -> tuple[Tensor | None, list[Tensor]]:
    """What an operation that can make a NaN made, and of what, where its node has kept that."""
    one, two = (getattr(node, f"_saved_{which}", None) for which in ("self", "other"))
    given = [t.detach() for t in (one, two) if isinstance(t, Tensor)]
    if name in ("log", "log2", "log10", "log1p") and len(given) == 1:
        return getattr(torch, name)(given[0]), given
    if name == "div" and len(given) == 2:
        return given[0] / given[1], given
    if name == "pow" and len(given) == 1:
        exponent = getattr(node, "_saved_exponent", None)
        return (None if exponent is None else given[0].pow(exponent)), given
    if name in ("sqrt", "rsqrt", "exp", "reciprocal"):
        result = getattr(node, "_saved_result", None)
        return (result.detach() if isinstance(result, Tensor) else None), given
    return None, []


def _first(operations: list[_Operation], *, backward: bool) -> Origin | None:
    ordered = reversed(operations) if backward else operations
    return next((o for o in (each.broke(backward=backward) for each in ordered) if o), None)


def _sum(values: Any) -> Tensor | None:
    """Of all that are floating-point numbers; 0-dimensional."""
    given = [v.detach() for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    if not given or not all(map(_is_small, given)):
        return None
    total = given[0].sum(dtype=torch.float32)
    for other in given[1:]:
        total = total + other.sum(dtype=torch.float32)
    return total


def _is_small(tensor: Tensor) -> bool:
    return tensor.numel() <= _LARGEST and tensor.layout == torch.strided and not tensor.is_meta


def _is_finite(total: Tensor) -> bool:
    return math.isfinite(float(total))
