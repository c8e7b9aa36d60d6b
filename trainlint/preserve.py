"""Leave a model and the random generators as they were found.

What is restored: parameters' flags, non-float buffers, every module's attributes (with the contents of
plain lists, dicts and sets, and tensors that are attributes), hooks, train/eval modes, also of modules
that are held in plain lists, and the random states of torch, numpy and python. Parameters and float
buffers are not copied: a capture on meta tensors never writes to them.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter


def is_lazy(tensor: Tensor) -> bool:
    """Whether this parameter or buffer of a lazy layer has no shape yet."""
    return isinstance(tensor, (UninitializedParameter, UninitializedBuffer))


def every_root(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and each module beside it that its modules hold in a plain list, dict or object.

    `model.modules()` does not know of those, but its forward runs them: they change as well.
    """
    known: set[int] = set()
    roots = [model]
    while roots:
        root = roots.pop(0)
        if id(root) in known:
            continue
        yield root
        inside = list(root.modules())
        known.update(map(id, inside))
        for module in inside:
            if not isinstance(module, torch.jit.ScriptModule):
                for name, value in vars(module).items():
                    if name not in _REGISTERS:
                        roots.extend(_modules_in(value, known, _DEEPEST))


def _modules_in(value: Any, known: set[int], depth: int) -> Iterator[nn.Module]:
    """Modules in containers and plain objects; `known` are the `id`s of what was looked into."""
    if isinstance(value, nn.Module):
        yield value
        return
    items: Iterable[Any] = ()
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        items = value
    elif isinstance(value, dict):
        items = value.values()
    elif type(value).__module__ not in _PLAIN and not isinstance(value, (type, Tensor)):
        items = () if callable(value) else getattr(value, "__dict__", {}).values()
    if depth and items and id(value) not in known:
        known.add(id(value))
        for part in list(items):
            yield from _modules_in(part, known, depth - 1)


_REGISTERS: Final = ("_parameters", "_buffers", "_modules")
_PLAIN: Final = ("builtins", "torch")
_DEEPEST: Final = 5


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore `model` and all random states at the end, also after an exception."""
    restorers: list[Callable[[], None]] = [*_random_states()]
    roots = list(every_root(model))
    for module in (module for root in roots for module in root.modules()):
        if not isinstance(module, torch.jit.ScriptModule):
            restorers.extend(_module_state(module))
    restorers.extend(_requires_grad(p) for root in roots for p in root.parameters())
    for buffer in (buffer for root in roots for buffer in root.buffers()):
        if is_lazy(buffer):
            continue
        if not buffer.is_floating_point() and not buffer.is_meta:
            restorers.append(_tensor_contents(buffer))
    try:
        yield
    finally:
        for restore in restorers:
            restore()


@contextlib.contextmanager
def unchanged_weights(model: nn.Module) -> Iterator[None]:
    """Restore values and gradients of parameters and buffers, for a run on the real ones. Costs a copy.

    Compared by value: a write through `.data` counts no version.
    """
    owned = {id(t): t for r in every_root(model) for t in (*r.parameters(), *r.buffers())}
    tensors = [t for t in owned.values() if not is_lazy(t) and not t.is_meta]
    saved = [(tensor, tensor.data, tensor.detach().clone(), tensor.is_leaf) for tensor in tensors]
    gradients = [
        (tensor, tensor.grad, None if tensor.grad is None else tensor.grad.detach().clone())
        for tensor in tensors
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, data, before, was_leaf in saved:
                if was_leaf and not tensor.is_leaf and not tensor._is_view():
                    # A buffer that was averaged in place with what has a gradient keeps that graph.
                    tensor.detach_()
                if _is_elsewhere(tensor, data):
                    tensor.data = data
                if not _is_equal(tensor, before):
                    tensor.data.copy_(before)
            for tensor, gradient, before_gradient in gradients:
                tensor.grad = gradient
                if gradient is not None and before_gradient is not None:
                    gradient.data.copy_(before_gradient)


def _is_elsewhere(tensor: Tensor, data: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return False
    return tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape


def _is_equal(tensor: Tensor, before: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return bool((tensor.detach() - before).to_dense().eq(0).all())
    return torch.equal(tensor, before)


def _module_state(module: nn.Module) -> Iterator[Callable[[], None]]:
    attributes = dict(vars(module))
    vars_of = vars(module)

    def restore_attributes() -> None:
        # In place: code elsewhere may hold this very dictionary.
        if list(vars_of) != list(attributes):
            vars_of.clear()
        for name, value in attributes.items():
            if vars_of.get(name, _MISSING) is not value:
                vars_of[name] = value

    yield restore_attributes
    for value in attributes.values():
        if isinstance(value, (dict, list, set, deque)):
            yield _container_contents(value)
        elif isinstance(value, Tensor) and not value.is_meta:
            yield _tensor_contents(value)


_MISSING = object()


def _container_contents(container: Any) -> Callable[[], None]:
    if not container:  # most of a module's dictionaries of hooks
        return lambda: container.clear() if container else None
    before = container.copy()

    def restore() -> None:
        if isinstance(container, (list, deque)):
            if len(container) != len(before) or any(
                now is not then for now, then in zip(container, before, strict=True)
            ):
                container.clear()
                container.extend(before)
        elif isinstance(container, dict):
            # The order too: that of `_parameters` is the order in which an optimizer numbers them.
            if list(container) != list(before) or any(
                container[key] is not value for key, value in before.items()
            ):
                container.clear()
                container.update(before)
        elif container != before:
            container.clear()
            container.update(before)

    return restore


def _requires_grad(parameter: Tensor) -> Callable[[], None]:
    before = parameter.requires_grad

    def restore() -> None:
        if parameter.requires_grad != before:
            parameter.requires_grad_(before)

    return restore


def _tensor_contents(tensor: Tensor) -> Callable[[], None]:
    before = tensor.detach().clone()
    version = tensor._version

    def restore() -> None:
        if tensor._version != version:
            with torch.no_grad():
                tensor.copy_(before)

    return restore


def _random_states() -> Iterator[Callable[[], None]]:
    python_state = random.getstate()
    torch_state = torch.get_rng_state()
    yield lambda: random.setstate(python_state)
    yield lambda: torch.set_rng_state(torch_state)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_state = numpy_random.get_state()
        yield lambda: numpy_random.set_state(numpy_state)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        cuda_states = torch.cuda.get_rng_state_all()
        yield lambda: torch.cuda.set_rng_state_all(cuda_states)
