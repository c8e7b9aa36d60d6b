"""Which operation made the first NaN or infinity: run a forward again and look at every result.

The run is on clones of the buffers, since the graph of the step under way needs the model's own, and
leaves model and random states as they were. For a gradient, a backward pass is made behind it, from
gradients by the result that are made up: what has no slope at a value makes NaN of any.
"""

from __future__ import annotations

import contextlib
import io
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from trainlint import ops
from trainlint.observe.autograd import sequence
from trainlint.preserve import preserved
from trainlint.sites import Site, calling_site, replaced
from trainlint.tree import tensors

# They put -inf where the softmax behind them shall see nothing.
_MASKS: Final = frozenset("masked_fill where full full_like new_full triu tril fill add".split())
_MOST_NODES: Final = 50000


@dataclass(frozen=True)
class Origin:
    """An operation that made a value which is not finite from values that are.

    `least` and `largest` bound what it was given.
    """

    operation: str
    site: Site | None
    value: str
    least: float
    largest: float
    backward: bool = False


@dataclass(frozen=True)
class Call:
    """A forward: the model's arguments, and what was around it, as far as that is known."""

    args: Any
    kwargs: Any
    autocast: tuple[str, torch.dtype] | None = None
    random_state: Tensor | None = None


def value_of(tensor: Tensor) -> str:
    """`nan` or `inf`."""
    return "nan" if bool(tensor.detach().isnan().any()) else "inf"


def origin_in(module: nn.Module, call: Call) -> tuple[Origin | None, bool]:
    """The first such operation of the forward, or None; and whether its result was finite."""
    finder = _Finder()
    finite = True

    def forward() -> None:
        nonlocal finite
        with finder:
            output = module(*call.args, **call.kwargs)
        finite = all(bool(t.isfinite().all()) for _, t in tensors(output) if _is_float(t))

    with contextlib.suppress(_Found):
        _again(module, call, forward)
    return finder.found, finite and finder.found is None


def backward_origin_in(module: nn.Module, call: Call) -> Origin | None:
    """The first operation whose backward makes NaN or infinity of finite gradients, or None."""
    lister = _Lister()
    found: list[tuple[Any, str]] = []

    def both() -> None:
        with lister:
            output = module(*call.args, **call.kwargs)
        results = [t for _, t in tensors(output) if _is_float(t) and t.requires_grad]
        scalars = [t for t in results if t.dim() == 0]  # a model that returns its loss
        results = scalars or results
        for node in _nodes(results):
            node.register_hook(_watcher(node, found))
        leaves = [p for p in module.parameters() if p.requires_grad]
        torch.autograd.grad(results, leaves, [_made_up(t) for t in results], allow_unused=True)

    _again(module, call, both)
    return lister.maker(*found[0]) if found else None


def _again(module: nn.Module, call: Call, run: Callable[[], None]) -> None:
    """Run it on cloned buffers, unheard; a model may be made for one call a step, and raise."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if any(not isinstance(mode, DeviceContext) for mode in modes):
        return
    buffers = {f"module.{name}": buffer.clone() for name, buffer in module.named_buffers()}
    with contextlib.ExitStack() as stack:
        # An observer is called with function modes shut out.
        stack.enter_context(torch._C._EnableTorchFunction())
        stack.enter_context(preserved(module))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        if call.autocast is not None:
            stack.enter_context(torch.autocast(call.autocast[0], dtype=call.autocast[1]))
        if call.random_state is not None:
            torch.set_rng_state(call.random_state)
        try:
            torch.func.functional_call(_Within(module, run), buffers, ())
        except _Found:
            raise
        except Exception:
            return


class _Within(nn.Module):
    """Runs something while the buffers of `module` are replaced: a backward pass may run parts again."""

    def __init__(self, module: nn.Module, run: Callable[[], None]) -> None:
        super().__init__()
        self.module, self._run = module, run

    def forward(self) -> None:
        self._run()


class _Found(Exception):  # noqa: N818 (a decision, not an error)
    """The search is over."""


class _Looker(TorchFunctionMode):
    """Sees every operation, and those of the user's own, which are no torch functions."""

    def __enter__(self) -> Any:
        original = torch.autograd.Function.apply.__func__  # type: ignore[attr-defined]

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(cls, *args, **kwargs)
            with torch._C.DisableTorchFunction():
                self.look(cls.__name__, tensors((args, kwargs)), result)
            return result

        self._seam = replaced(torch.autograd.Function, "apply", classmethod(apply))
        self._seam.__enter__()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._seam.__exit__(None, None, None)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            self.look(ops.canonical_name(func), tensors((args, kwargs or {})), result)
        return result

    def look(self, name: str, given: Iterator[tuple[str, Tensor]], result: Any) -> None:
        """An operation was called."""
        raise NotImplementedError


class _Finder(_Looker):
    """Ends the run at the first operation that makes a NaN, or an infinity that is no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Origin | None = None

    def look(self, name: str, given: Iterator[tuple[str, Tensor]], result: Any) -> None:
        made = [t for _, t in tensors(result) if _is_float(t)]
        if all(bool(t.detach().isfinite().all()) for t in made):
            return
        sources = [t.detach() for _, t in given if _is_float(t)]
        if not all(bool(t.isfinite().all()) for t in sources):
            return
        is_nan = any(value_of(t) == "nan" for t in made)
        if not is_nan and name in _MASKS:
            return
        self.found = Origin(name, calling_site(), "nan" if is_nan else "inf", *_bounds(sources))
        raise _Found


class _Lister(_Looker):
    """Notes which operation made which autograd nodes: those up to the number of its result's."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers: list[int] = []
        self._calls: list[tuple[str, Site | None, float, float]] = []

    def look(self, name: str, given: Iterator[tuple[str, Tensor]], result: Any) -> None:
        number = max((sequence(t.grad_fn) for _, t in tensors(result) if t.grad_fn), default=-1)
        if number > (self._numbers[-1] if self._numbers else -1):
            self._numbers.append(number)
            bounds = _bounds([t.detach() for _, t in given if _is_float(t)])
            self._calls.append((name, calling_site(), *bounds))

    def maker(self, node: Any, value: str) -> Origin | None:
        """The operation that a node belongs to."""
        place = bisect_left(self._numbers, sequence(node))
        if place == len(self._numbers):
            return None
        name, site, least, largest = self._calls[place]
        return Origin(name, site, value, least, largest, backward=True)


def _nodes(results: list[Tensor]) -> Iterator[Any]:
    """The nodes below, without those that only add to a parameter's gradient."""
    stack: list[Any] = [t.grad_fn for t in results if t.grad_fn is not None]
    seen = set(stack)
    while stack and len(seen) < _MOST_NODES:
        node = stack.pop()
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen and not hasattr(below, "variable"):
                seen.add(below)
                stack.append(below)


def _watcher(node: Any, found: list[tuple[Any, str]]) -> Callable[[Any, Any], None]:
    def hook(by_operands: Any, by_result: Any) -> None:
        if found:
            return
        given, made = (
            [g for g in gradients if isinstance(g, Tensor) and _is_float(g)]
            for gradients in (by_result, by_operands)
        )
        broken = [g for g in made if not bool(g.isfinite().all())]
        if broken and all(bool(g.isfinite().all()) for g in given):
            found.append((node, "nan" if any(value_of(g) == "nan" for g in broken) else "inf"))

    return hook


def _made_up(result: Tensor) -> Tensor:
    """A gradient by the result: 1 for a loss, else noise, drawn beside the loop's own."""
    if result.dim() == 0:
        return torch.ones_like(result)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(result.shape, generator=generator) / math.sqrt(result.numel())
    return noise.to(result)


def _bounds(sources: list[Tensor]) -> tuple[float, float]:
    least = min((float(t.min()) for t in sources), default=math.nan)
    largest = max((float(t.max()) for t in sources), default=math.nan)
    return least, largest


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and not tensor.is_meta
