"""Leave a model, its optimizers and the process as they were found.

`preserved` is for runs that do not train: it restores parameters' flags, non-float buffers, every module's
attributes, with what is in plain lists, dicts, sets and objects, hooks, train/eval modes, also of modules
that are held in plain lists, and the random states of torch, numpy and python. Parameters and float
buffers are not copied: a capture on meta tensors never writes to them. `unchanged_weights` restores those
and their gradients, `preserved_evaluation` all buffers, and `preserved_training` all of this, optimizers
and torch's global settings.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

if TYPE_CHECKING:
    from torch.optim import Optimizer

_Restore = Callable[[], None]

_REGISTERS: Final = ("_parameters", "_buffers", "_modules")
_PLAIN: Final = ("builtins", "torch")
_LIBRARIES: Final = frozenset(
    "torch torchvision numpy transformers diffusers accelerate lightning pytorch_lightning "
    "wandb tensorboard datasets".split()
).union(sys.stdlib_module_names)
_CONTAINERS: Final = (list, dict, set, deque, defaultdict, OrderedDict, Counter)
# Lists and tensors of that many elements are data, and no books that a forward keeps.
_LONG: Final = 4096
_LARGEST: Final = 1 << 22
_DEEPEST: Final = 5
# Among more values than these nobody keeps generators.
_FEW: Final = 64
_MISSING: Final = object()
# Bits are compared as whole numbers: -0.0 is 0.0, and NaN is not itself.
_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore `model` and all random states at the end, also after an exception."""
    snapshot = _Snapshot()
    snapshot.keep_random_states()
    roots = list(every_root(model))
    for root in roots:
        snapshot.keep_modules(root)
    for parameter in (parameter for root in roots for parameter in root.parameters()):
        snapshot.keep_flag(parameter)
    for buffer in (buffer for root in roots for buffer in root.buffers()):
        if not is_lazy(buffer) and not buffer.is_floating_point():
            snapshot.keep_tensor(buffer)
    with snapshot.restored():
        yield


@contextlib.contextmanager
def random_states(*holders: Any) -> Iterator[None]:
    """Restore the random states of torch, on all devices in use, of numpy and of python.

    And of generators that these objects hold: attributes, and those of their attributes.
    """
    snapshot = _Snapshot()
    snapshot.keep_random_states()
    known: set[int] = set()
    for holder in holders:
        snapshot.keep_generators(holder, known)
    with snapshot.restored():
        yield


@contextlib.contextmanager
def preserved_evaluation(*models: nn.Module) -> Iterator[None]:
    """Restore what a pass in eval mode may change: modes, attributes, all buffers, and random states.

    Parameters, their gradients and lazy layers are left as they are.
    """
    snapshot = _Snapshot()
    snapshot.keep_random_states()
    for model in models:
        for root in every_root(model):
            snapshot.keep_modules(root)
            for buffer in root.buffers():
                snapshot.keep_tensor(buffer)
    with snapshot.restored():
        yield


@contextlib.contextmanager
def unchanged_weights(model: nn.Module) -> Iterator[None]:
    """Restore values and gradients of parameters and buffers, for a run on the real ones. Costs a copy.

    Compared by value: a write through `.data` counts no version.
    """
    snapshot = _Snapshot()
    for root in every_root(model):
        snapshot.keep_weights(root)
    with snapshot.restored():
        yield


@contextlib.contextmanager
def preserved_training(
    model: nn.Module,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    *,
    beside: Iterable[nn.Module] = (),
) -> Iterator[None]:
    """Restore everything that training steps change, bit for bit, also after an exception.

    Of `model` and the modules `beside` it (a loss with parameters, a teacher): all that `preserved` and
    `unchanged_weights` restore, with hooks on parameters, version counters, and lazy layers that became
    real ones. Of each optimizer: its state and options, also in nested lists, with the same tensors in
    them as before, its attributes and hooks, and the parameters and gradients that it holds. Of the
    process: random states, deterministic and cuDNN flags, matmul precision, default dtype and device,
    grad and anomaly mode. Learning rate schedulers are left as they are.

    Costs a copy of every parameter, buffer, gradient and state, on its own device.
    """
    snapshot = _Snapshot()
    snapshot.keep_settings()
    snapshot.keep_random_states()
    for module in (model, *beside):
        for root in every_root(module):
            snapshot.keep_modules(root)
            snapshot.keep_weights(root)
    if optimizer is not None:
        for each in optimizer if isinstance(optimizer, Iterable) else [optimizer]:
            snapshot.keep(each)
    with snapshot.restored():
        yield


class _Snapshot:
    """What things were like, each once, to be put back in the order in which they were kept."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Any] = {}  # holds them: ids are unique among the living
        self._restorers: list[_Restore] = []

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Put everything back at the end. What fails does not keep the rest from it."""
        try:
            yield
        finally:
            failures: list[Exception] = []
            for restore in self._restorers:
                try:
                    restore()
                except Exception as error:
                    failures.append(error)
            if failures:
                raise failures[0]

    def _is_new(self, kind: str, value: Any) -> bool:
        key = (kind, id(value))
        if key in self._known:
            return False
        self._known[key] = value
        return True

    def keep(self, value: Any, depth: int = _DEEPEST, largest: float = math.inf) -> None:
        """A value with what is in it. Modules within are not looked into: they are roots of their own.

        Tensors within of more than `largest` elements are data, and not state.
        """
        if isinstance(value, Tensor):
            self.keep_tensor(value)
            if value.is_leaf and value.requires_grad:
                self._keep_gradient(value)
        elif isinstance(value, (nn.Module, type)) or depth < 0 or not self._is_new("value", value):
            return
        elif isinstance(value, (list, dict, set, deque)):
            self._restorers.append(_container_contents(value))
            self._keep_parts(value.values() if isinstance(value, dict) else value, depth, largest)
            if isinstance(value, dict):  # an optimizer's state has parameters as keys
                for key in value:
                    if isinstance(key, Tensor):
                        self.keep(key)
        elif isinstance(value, (tuple, frozenset)):
            self._keep_parts(value, depth, largest)
        elif isinstance(value, torch.optim.Optimizer):
            # Its parameters are what it is about, however deep it lies itself.
            self.keep(vars(value))
        else:
            self._restorers.extend(_random_state_of(value))
            is_state = _is_users(type(value)) and not callable(value)
            if is_state and hasattr(value, "__dict__"):
                self.keep(vars(value), depth - 1, min(largest, _LARGEST))

    def _keep_parts(self, parts: Iterable[Any], depth: int, largest: float) -> None:
        for part in list(parts):
            if not isinstance(part, Tensor) or is_lazy(part) or part.numel() <= largest:
                self.keep(part, depth - 1, largest)

    def keep_modules(self, root: nn.Module) -> None:
        """Attributes, hooks, modes and classes of all modules; of parameters and buffers which they are."""
        for module in root.modules():
            if not isinstance(module, torch.jit.ScriptModule) and self._is_new("module", module):
                self._restorers.append(_attributes(module))
                for kind in type(module).__mro__:
                    if _is_users(kind):
                        for value in vars(kind).values():
                            self._keep_reached(value)
                for name, value in vars(module).items():
                    if name.endswith("_hooks") and isinstance(value, dict):
                        for hook in value.values():
                            self._keep_reached(hook)
                    if name in _REGISTERS:
                        self._restorers.append(_container_contents(value))
                    else:
                        self.keep(value, largest=_LARGEST)

    def _keep_reached(self, function: Any) -> None:
        """What a method or hook can write to besides: names around it, and lists that it fills."""
        function = getattr(function, "func", function)  # of a partial
        bound = getattr(function, "__self__", None)
        if (
            _is_users(type(bound))
            and not isinstance(bound, nn.Module)
            and hasattr(bound, "__dict__")
        ):
            self._keep_names(vars(bound), list(vars(bound)))
        function = getattr(function, "__func__", function)
        if not isinstance(function, FunctionType) or not self._is_new("function", function):
            return
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # it is empty
                value = cell.cell_contents
                self._restorers.append(_cell(cell, value))
                self._keep_contents(value)
        if _is_users(function):
            self._keep_names(function.__globals__, function.__code__.co_names)

    def _keep_names(self, names: dict[str, Any], known: Iterable[str]) -> None:
        for name in known:
            value = names.get(name, _MISSING)
            if type(value) in (int, float, bool, str) or type(value) in _CONTAINERS:
                self._restorers.append(_entry(names, name))
                self._keep_contents(value)

    def _keep_contents(self, value: Any) -> None:
        if type(value) in _CONTAINERS and len(value) < _LONG and self._is_new("contents", value):
            self._restorers.append(_container_contents(value))

    def keep_weights(self, root: nn.Module) -> None:
        """Values and gradients of all parameters and buffers."""
        for tensor in (*root.parameters(), *root.buffers()):
            if is_lazy(tensor):
                if self._is_new("tensor", tensor):
                    self._restorers.append(_laziness(tensor))
            else:
                self.keep_tensor(tensor)
                self._keep_gradient(tensor)

    def keep_tensor(self, tensor: Tensor) -> None:
        """Its values, storage, flags, version and hooks."""
        if not tensor.is_meta and not is_lazy(tensor) and self._is_new("tensor", tensor):
            self._restorers.append(_tensor_state(tensor))

    def keep_flag(self, tensor: Tensor) -> None:
        """Whether it asks for a gradient."""
        before = tensor.requires_grad

        def restore() -> None:
            if tensor.requires_grad != before:
                tensor.requires_grad_(before)

        self._restorers.append(restore)

    def _keep_gradient(self, tensor: Tensor) -> None:
        if not tensor.is_leaf or not self._is_new("gradient", tensor):
            return
        gradient = tensor.grad

        def restore() -> None:
            if tensor.grad is not gradient:
                tensor.grad = gradient

        # First which one it is: its values are compared then.
        self._restorers.append(restore)
        if gradient is not None:
            self.keep_tensor(gradient)

    def keep_random_states(self) -> None:
        """Those of torch, on all devices in use, of numpy and of python."""
        self._restorers.extend(_random_states())

    def keep_generators(self, value: Any, known: set[int], depth: int = _DEEPEST) -> None:
        """The states of all random generators that are found in it; `known` is what was looked into."""
        if depth < 0 or id(value) in known or isinstance(value, (Tensor, nn.Module, type)):
            return
        known.add(id(value))
        found = list(_random_state_of(value))
        self._restorers.extend(found)
        parts: Iterable[Any] = ()
        if isinstance(value, (list, tuple)):
            parts = value if len(value) < _FEW else ()
        elif isinstance(value, dict):
            parts = value.values() if len(value) < _FEW else ()
        elif (not found and not callable(value)) or hasattr(value, "transforms"):
            parts = getattr(value, "__dict__", {}).values()
        for part in list(parts):
            self.keep_generators(part, known, depth - 1)

    def keep_settings(self) -> None:
        """Torch's global switches."""
        self._restorers.extend(_settings())


def _is_users(owner: Any) -> bool:
    """Whether a class or function is no library's, as far as its name tells."""
    return (getattr(owner, "__module__", None) or "builtins").partition(".")[0] not in _LIBRARIES


def _entry(names: dict[str, Any], name: str) -> _Restore:
    value = names[name]

    def restore() -> None:
        if names.get(name, _MISSING) is not value:
            names[name] = value

    return restore


def _cell(cell: Any, value: Any) -> _Restore:
    def restore() -> None:
        if cell.cell_contents is not value:
            cell.cell_contents = value

    return restore


def _tensor_state(tensor: Tensor) -> _Restore:
    data, before = tensor.data, tensor.detach().clone()
    was_leaf, asked = tensor.is_leaf, tensor.requires_grad
    hooks: list[tuple[str, Any, Any]] = [
        (name, held, None if held is None else dict(held))
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
        for held in [getattr(tensor, name)]
    ]
    version = None
    if not tensor.is_inference():
        version = _unsafe_preserve_version_counter(tensor)

    def restore() -> None:
        with torch.no_grad():
            if was_leaf and not tensor.is_leaf and not tensor._is_view():
                # A buffer that was averaged in place with what has a gradient keeps that graph.
                tensor.detach_()
            if _is_elsewhere(tensor, data):
                tensor.data = data
            if not _has_bits_of(tensor, before):
                _write(tensor, before)
        if was_leaf and tensor.requires_grad != asked:
            tensor.requires_grad_(asked)
        for name, held, contents in hooks:
            now = getattr(tensor, name)
            if now is not held and now:
                now.clear()  # autograd holds it as well
            if held is not None and dict(held) != contents:
                held.clear()
                held.update(contents)
            if now is not held:
                setattr(tensor, name, held)
        if version is not None:
            version.__exit__(None, None, None)

    return restore


def _is_elsewhere(tensor: Tensor, data: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return False
    return (
        tensor.data_ptr() != data.data_ptr()
        or tensor.shape != data.shape
        or tensor.stride() != data.stride()
        or tensor.dtype != data.dtype
        or tensor.device != data.device
    )


def _has_bits_of(tensor: Tensor, before: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return bool((tensor.detach() - before).to_dense().eq(0).all())
    now: Tensor = tensor.detach()
    if now.is_complex():
        now, before = torch.view_as_real(now.resolve_conj()), torch.view_as_real(before)
    if now.is_floating_point():
        bits = _BITS[now.element_size()]
        now, before = now.view(bits), before.view(bits)
    return torch.equal(now, before)


def _write(tensor: Tensor, before: Tensor) -> None:
    """Copy into it, also where it is expanded: many elements, one place in memory."""
    if tensor.layout != torch.strided:
        tensor.copy_(before)  # `data` would get the elements for itself
        return
    data = tensor.data
    for axis, stride in enumerate(data.stride()):
        if stride == 0 and data.shape[axis] > 1:
            data, before = data.narrow(axis, 0, 1), before.narrow(axis, 0, 1)
    data.copy_(before)


def _laziness(tensor: Any) -> _Restore:
    kind, raw = type(tensor), tensor.data
    version = _unsafe_preserve_version_counter(tensor)

    def restore() -> None:
        if type(tensor) is not kind:
            tensor.grad = None
            tensor.__class__ = kind
            tensor.data = raw
            version.__exit__(None, None, None)

    return restore


def _attributes(module: nn.Module) -> _Restore:
    kind, vars_of, attributes = type(module), vars(module), dict(vars(module))

    def restore() -> None:
        if type(module) is not kind:  # a lazy layer, or one with a parametrization
            module.__class__ = kind
        # In place: code elsewhere may hold this very dictionary.
        if list(vars_of) != list(attributes):
            vars_of.clear()
        for name, value in attributes.items():
            if vars_of.get(name, _MISSING) is not value:
                vars_of[name] = value

    return restore


def _container_contents(container: Any) -> _Restore:
    if not container:  # most of a module's dictionaries of hooks
        return lambda: container.clear() if container else None
    # A copy of a class of its own may be more than its contents.
    before: Any = dict(container) if isinstance(container, dict) else list(container)

    def restore() -> None:
        if isinstance(container, (list, deque)):
            if len(container) != len(before) or any(
                now is not then for now, then in zip(container, before, strict=True)
            ):
                container.clear()
                container.extend(before)
        elif isinstance(container, dict):
            # The order too: that of `_parameters` is the order in which an optimizer numbers them.
            if [*map(id, container)] != [*map(id, before)] or any(
                container[key] is not value for key, value in before.items()
            ):
                container.clear()
                container.update(before)
        elif container != set(before):
            container.clear()
            container.update(before)

    return restore


def _random_states() -> Iterator[_Restore]:
    yield from _random_state_of(random)
    torch_state = torch.get_rng_state()
    yield lambda: torch.set_rng_state(torch_state)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_state = numpy_random.get_state()
        yield lambda: numpy_random.set_state(numpy_state)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        cuda_states = torch.cuda.get_rng_state_all()
        yield lambda: torch.cuda.set_rng_state_all(cuda_states)


def _random_state_of(source: Any) -> Iterator[_Restore]:
    """That of a generator of one's own, and nothing of what is none."""
    if source is random or isinstance(source, random.Random):
        state = source.getstate()
        yield lambda: source.setstate(state)
    elif isinstance(source, torch.Generator):
        torch_state = source.get_state()

        def restore() -> None:
            source.set_state(torch_state)

        yield restore
    elif type(source).__module__.startswith("numpy.random"):
        if hasattr(source, "bit_generator"):
            bits = source.bit_generator
            numpy_state = bits.state
            yield lambda: setattr(bits, "state", numpy_state)
        elif hasattr(source, "get_state"):
            legacy_state = source.get_state()
            yield lambda: source.set_state(legacy_state)


def _settings() -> Iterator[_Restore]:
    """Torch's switches for the whole process, each put back only where it was turned."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    for read, write in (
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda both: torch.set_anomaly_enabled(*both),
        ),
        (
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda both: torch.use_deterministic_algorithms(both[0], warn_only=both[1]),
        ),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (_default_device, torch.set_default_device),
        (torch.get_num_threads, torch.set_num_threads),
    ):
        yield _setting(read, write)
    for owner, names in (
        (cudnn, ("enabled", "benchmark", "deterministic", "allow_tf32")),
        (matmul, ("allow_tf32", "allow_fp16_reduced_precision_reduction")),
        (torch.utils.deterministic, ("fill_uninitialized_memory",)),
    ):
        for name in names:
            yield _setting(
                lambda owner=owner, name=name: getattr(owner, name),  # type: ignore[misc]
                lambda value, owner=owner, name=name: setattr(owner, name, value),  # type: ignore[misc]
            )


def _setting(read: Callable[[], Any], write: Callable[[Any], Any]) -> _Restore:
    before = read()
    return lambda: None if read() == before else write(before)


def _default_device() -> Any:
    """What `torch.set_default_device` was given; None where it never was."""
    from torch.utils import _device  # torch itself loads it late

    return _device.CURRENT_DEVICE
