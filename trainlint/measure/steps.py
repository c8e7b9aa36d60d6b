"""Every operation of a real run, one after the other: its operands, its place, and its values.

This costs a copy of each result, so it is done only to say where something happens that is known to
happen.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainlint import ops
from trainlint.capture.tracer import active, module_calls, single_node_functions
from trainlint.engine import FactUnavailable
from trainlint.graph import Graph
from trainlint.measure.influence import Spot
from trainlint.sites import Site, calling_site, construction_site
from trainlint.tree import tensors

if TYPE_CHECKING:
    from torch.fx import Node

_ROUNDING: Final = 1e-6
INPUT: Final = "input"
_PLAIN: Final = (int, float, bool, str, type(None))
Key = tuple[str, str, int]


@dataclass(slots=True)
class Step:
    """One operation. `operands` are the numbers of the steps that made its tensors."""

    name: str
    key: Key
    owner: nn.Module | None
    site: Site | None
    operands: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    result: tuple[int, ...] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: list[Tensor] = field(default_factory=list)
    draws: bool = False

    @property
    def floats(self) -> list[Tensor]:
        """Those of its values that are no whole numbers."""
        return [v for v in self.values if v.is_floating_point() or v.is_complex()]


class Steps(TorchFunctionMode):
    """Records the steps of one run, its inputs first; `keep` copies their results.

    Calls are placed in the frames within a run of the code `until`.
    """

    def __init__(
        self,
        model: nn.Module,
        deadline: float,
        until: CodeType,
        *,
        keep: bool = False,
        watch_random: bool = False,
    ) -> None:
        super().__init__()
        self._model = model
        self._deadline = deadline
        self._until = until
        self._keep = keep
        self._watch_random = watch_random
        self._stack: list[tuple[str, nn.Module]] = []
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._silent = 0
        self._made: dict[int, int] = {}
        self._alive: list[Tensor] = []  # ids are unique only among living objects
        self.steps: list[Step] = []

    @contextlib.contextmanager
    def recording(self, inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """Enter around the model's call on these inputs."""
        for name, tensor in inputs.items():
            values = [tensor.detach().clone()] if self._keep else []
            self._add(Step(INPUT, ("", name, 0), None, None, (), (), tuple(tensor.shape), (), {},
                           values), [tensor])  # fmt: skip
        with (
            module_calls(self._model, self._stack),
            single_node_functions(),
            active(self),
            self,
        ):
            yield

    def made(self, tensor: Tensor) -> int | None:
        """The number of the step that made the tensor."""
        return self._made.get(id(tensor))

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._silent:
            return func(*args, **kwargs)
        before = random_state() if self._watch_random else None
        operands = [tensor for _, tensor in tensors((args, kwargs))]
        known = tuple(self._made[id(t)] for t in operands if id(t) in self._made)
        result = func(*args, **kwargs)
        written = args[0] if result is None and ops.writes_in_place(func) else result
        name = ops.canonical_name(func)
        self._note(name, known, operands, written, args, kwargs)
        if before is not None and self.steps and before != random_state():
            self.steps[-1].draws = True
        return result

    def custom_function(self, _: Any, apply: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One operation, as in the capture."""
        if any(callable(value) and not isinstance(value, Tensor) for value in args):
            return apply(*args, **kwargs)  # a checkpoint, or reversible layers: their body is shown
        operands = [tensor for _, tensor in tensors((args, kwargs))]
        known = tuple(self._made[id(t)] for t in operands if id(t) in self._made)
        self._silent += 1
        try:
            result = apply(*args, **kwargs)
        finally:
            self._silent -= 1
        if not self._silent:
            self._note("autograd_function", known, operands, result, (), {})
        return result

    def _note(
        self,
        name: str,
        known: tuple[int, ...],
        operands: list[Tensor],
        result: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        results = [tensor for _, tensor in tensors(result)]
        if not results:
            return
        if time.monotonic() > self._deadline:
            raise FactUnavailable("it takes too long")
        path, owner = self._stack[-1] if self._stack else ("", None)
        number = self._counts[path, name]
        self._counts[path, name] += 1
        step = Step(
            name=name,
            key=(path, name, number),
            owner=owner,
            site=calling_site(3, self._until),
            operands=known,
            shapes=tuple(tuple(tensor.shape) for tensor in operands),
            result=tuple(result.shape) if isinstance(result, Tensor) else None,
            args=tuple(value if isinstance(value, _PLAIN) else None for value in args),
            kwargs={key: value for key, value in kwargs.items() if isinstance(value, _PLAIN)},
        )
        if self._keep and not name.removeprefix("new_").startswith("empty"):  # holds anything
            with torch._C.DisableTorchFunction():
                step.values = [t.detach().clone() for t in results if t.numel()]
        self._add(step, results)

    def _add(self, step: Step, results: Sequence[Tensor]) -> None:
        for tensor in results:
            self._made[id(tensor)] = len(self.steps)
            self._alive.append(tensor)
        self.steps.append(step)


def random_state() -> Any:
    """A value that changes whenever a global generator is drawn from."""
    with torch._C.DisableTorchFunction():
        drawn = torch.get_rng_state()
        # Not by way of numpy, which need not be installed.
        state: tuple[Any, ...] = (ctypes.string_at(drawn.data_ptr(), len(drawn)), random.getstate())
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        kind, keys, position, *_ = numpy_random.get_state()
        state += (kind, keys.tobytes(), position)
    return state


def spot_of(step: Step, graph: Graph, nodes: dict[Key, Node]) -> Spot:
    """The step as rules see it."""
    path = step.key[0]
    node = nodes.get(step.key)
    # In eval mode other operations may run: the number alone does not tell that it is the same.
    if node is not None and not _same_place(graph.operation(node).site, step.site):
        node = None
    layer = step.owner if _is_layer(step.owner) else None
    return Spot(
        name=step.name,
        module=path,
        label=path if layer is not None and path else step.name,
        site=(construction_site(layer) if layer is not None else None) or step.site,
        node=node,
        shapes=step.shapes,
        result=step.result,
        arguments={
            **{str(place): value for place, value in enumerate(step.args) if value is not None},
            **step.kwargs,
        },
    )


def nodes_by_key(graph: Graph) -> dict[Key, Node]:
    """The captured graph's operations, by module, name and number."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    found: dict[Key, Node] = {}
    for node in graph.calls_in_order:
        path, name = graph.operation(node).module, graph.name(node)
        found[path, name, counts[path, name]] = node
        counts[path, name] += 1
    return found


def _same_place(here: Site | None, there: Site | None) -> bool:
    if here is None or there is None:
        return here is there
    return (here.filename, here.row) == (there.filename, there.row)


def _is_layer(module: nn.Module | None) -> bool:
    return (
        module is not None
        and type(module).__module__.startswith("torch.nn.modules.")
        and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    )


# ---------------------------------------------------------------------- what changed


def changes(base: Sequence[Step], other: Sequence[Step]) -> list[list[Tensor] | None]:
    """For each step and each of its floats, which elements differ between two runs.

    Ends where the runs part.
    """
    found: list[list[Tensor] | None] = []
    for here, there in zip(base, other, strict=False):
        one, two = here.floats, there.floats
        if here.key != there.key or [v.shape for v in one] != [v.shape for v in two]:
            break
        found.append([_differs(*pair) for pair in zip(one, two, strict=True)])
    return found


def _differs(here: Tensor, there: Tensor) -> Tensor:
    finite = here[here.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    far = (here - there).abs() > _ROUNDING * scale
    same = (here == there) | (here.isnan() & there.isnan())
    return ~same & (far | ~here.isfinite() | ~there.isfinite())


def along(changed: Tensor, axis: int) -> Tensor:
    """Which indices of the axis hold a changed element."""
    others = [other for other in range(changed.dim()) if other != axis]
    return changed.any(dim=others) if others else changed


def ancestors(steps: Sequence[Step], last: Sequence[int]) -> set[int]:
    """The steps whose results reach these."""
    found = set(last)
    stack = list(last)
    while stack:
        for operand in steps[stack.pop()].operands:
            if operand not in found:
                found.add(operand)
                stack.append(operand)
    return found
