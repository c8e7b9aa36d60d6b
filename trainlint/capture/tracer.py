"""Record one forward pass as a `torch.fx.Graph`, on meta tensors, straight through all its faults.

A `TorchFunctionMode` sees every PyTorch call of the model, whatever its spelling. Parameters, float
buffers, float inputs and everything computed from them are *meta* tensors: they have shapes but no
values, so a 7B model costs milliseconds a layer and no memory. Everything else (token ids, masks,
`arange`, sizes) stays real, so Python branches on it just work. Where the model asks for a value that
only exists as a shape, the last few operations are computed on random values (`concrete.py`). A shape
error counts only if eager PyTorch on the CPU confirms it; then it is noted on the node, the output is
repaired to the shape that the layer promises (`repair.py`), and the capture goes on, so that one run
finds all the faults.

Comes in: a model and its inputs. Goes out: a `Recording`. The model is as before afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol

import torch
import torch.fx
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainlint.capture import repair
from trainlint.capture.concrete import Eager
from trainlint.graph import Operation, TensorShape
from trainlint.ops import CONVOLUTIONS, canonical_name, writes_in_place
from trainlint.preserve import is_lazy, preserved
from trainlint.processes.startup import compiler_is_loaded
from trainlint.sites import Site, calling_site, is_caught, owner_of, replaced
from trainlint.tree import map_tensors, tensors

# Ask about a tensor without computing one; they pass through unrecorded.
_QUESTIONS: Final = frozenset(
    "size dim numel nelement ndimension is_floating_point is_complex stride storage_offset "
    "is_contiguous get_device element_size data_ptr untyped_storage __len__ __hash__ _is_view "
    "is_same_size has_names is_inference type is_tensor is_storage requires_grad_ is_signed "
    "retain_grad register_hook result_type _version __deepcopy__ _has_symbolic_sizes_strides "
    "sym_size get_default_dtype can_cast promote_types is_grad_enabled is_conj is_neg is_pinned "
    "is_shared".split()
)
# Turn a tensor into a Python value; on a meta tensor they need the concretiser.
_VALUES: Final = frozenset(
    "item tolist numpy __bool__ __int__ __float__ __index__ __array__ __complex__ equal allclose "
    "is_nonzero __contains__ __format__ __repr__ __reduce_ex__".split()
)
# Of these, the ones that hand over what the tensor holds, not only a decision made by it.
_READINGS: Final = frozenset("item tolist numpy __float__ __array__".split())
_LOOK_UPS: Final = (torch.nn.functional.embedding, torch.nn.functional.embedding_bag)
_RECORDED_PROPERTIES: Final = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
_FACTORIES: Final = frozenset("zeros ones empty rand randn full empty_strided".split())
# A factory call above this many elements is made on meta at once: nobody branches on its values.
_LARGE_FACTORY: Final = 1 << 20
# Batch sizes of packed sequences must be real CPU integers.
_REAL_SECOND_ARGUMENT: Final = frozenset(
    "_pack_padded_sequence _pad_packed_sequence lstm gru rnn_tanh rnn_relu".split()
)
# Their meta kernels do not look at the number of channels.
_TRANSPOSED: Final = frozenset(name for name in CONVOLUTIONS if "transpose" in name)
# Identity wrappers of the autograd engine around code that we want to see.
_TRANSPARENT_FUNCTIONS: Final = frozenset({"BackwardHookFunction"})
_CHECKPOINT_FUNCTIONS: Final = frozenset({"CheckpointFunction"})


@dataclass
class Recording:
    """What one forward pass showed.

    `graph` holds the operations up to the end or up to `exception`; the metadata of each node is an
    `Operation` under `node.meta["operation"]`. `model` is what ran: a copy, if the given model has lazy
    parameters, which the forward creates. `faults` are the nodes whose operation failed and was
    repaired. `exception` is what stopped the forward for good, raised at `exception_site`.
    """

    graph: torch.fx.Graph
    model: nn.Module
    faults: list[torch.fx.Node] = field(default_factory=list)
    output: Any = None
    exception: BaseException | None = None
    exception_site: Site | None = None


def capture(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Recording:
    """Run `model(*args, **kwargs)` once on meta tensors and record it.

    The model keeps its modes; autograd is on. Nothing of the model, its inputs or the random states
    differs afterwards. An exception of the model's own is returned in the recording, not raised;
    `KeyboardInterrupt` and other non-`Exception`s are raised.
    """
    ran = model
    if any(is_lazy(parameter) for parameter in (*model.parameters(), *model.buffers())):
        ran = _copied(model)  # which stays as the forward makes it
    with preserved(model), single_node_functions():
        return _Capture(ran).run(args, kwargs or {})


def _copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model, copies_of_lazy(model))


def copies_of_lazy(model: nn.Module) -> dict[int, Any]:
    """A memo for `deepcopy`: uninitialised buffers do not support it themselves."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if is_lazy(tensor):
            raw = tensor.data
            empty: Any = type(tensor)
            memo[id(tensor)] = empty(tensor.requires_grad, device=raw.device, dtype=raw.dtype)
    return memo


_unseen: Final = torch._C.DisableTorchFunction


class _Twins:
    """The meta twin of each real tensor, one and the same for as long as the capture lives."""

    def __init__(self) -> None:
        self._twin_of: dict[int, Tensor] = {}
        self._kept: list[Tensor] = []  # ids are unique only among living objects

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._twin_of

    def of(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta or is_wrapped(tensor):
            return tensor
        twin = self._twin_of.get(id(tensor))
        if twin is None:
            twin = self._make(tensor)
            self._twin_of[id(tensor)] = twin
            self._kept.append(tensor)
        return twin

    def replace(self, tensor: Tensor, twin: Tensor) -> None:
        self._twin_of[id(tensor)] = twin
        self._kept.append(tensor)

    def _make(self, tensor: Tensor) -> Tensor:
        base = tensor._base if tensor._is_view() else None
        if base is not None and not base.is_sparse:
            # A view's twin is a view of the base's twin, so that a write through it is seen there.
            with contextlib.suppress(RuntimeError), torch.no_grad():
                return torch.as_strided(
                    self.of(base), tensor.size(), tensor.stride(), tensor.storage_offset()
                )
        try:
            twin = torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta"
            )
        except (RuntimeError, NotImplementedError):  # sparse, quantised: no strides
            twin = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        trains = tensor.requires_grad and tensor.is_leaf
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(twin, requires_grad=trains)
        return twin.requires_grad_(True) if trains else twin


def is_wrapped(tensor: Tensor) -> bool:
    """Whether this is a functorch wrapper or a user's tensor subclass, which have no meta twin."""
    if isinstance(tensor, nn.Parameter):
        return False
    return type(tensor) not in (Tensor, nn.Buffer) or bool(
        torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def _version(tensor: Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # inference tensors keep no count
        return 0


class _Tracer:
    """Which node of the graph stands for which tensor at this moment."""

    def __init__(self, model: nn.Module) -> None:
        self.graph = torch.fx.Graph()
        self._names: dict[int, tuple[str, str]] = {}
        self.learn_names(model)
        # id(tensor) -> (node, path of items inside the node's result, version when bound)
        self._bound: dict[int, tuple[torch.fx.Node, tuple[Any, ...], int]] = {}
        self._by_storage: dict[tuple[int, torch.Size], tuple[torch.fx.Node, tuple[Any, ...]]] = {}
        self._last_write: dict[int, torch.fx.Node] = {}
        self._kept: list[Any] = []

    def learn_names(self, model: nn.Module) -> None:
        """Note whose parameter or buffer each tensor is; again after lazy layers made theirs."""
        for name, parameter in model.named_parameters(remove_duplicate=True):
            self._names[id(parameter)] = ("parameter", name)
        for name, buffer in model.named_buffers(remove_duplicate=True):
            self._names[id(buffer)] = ("buffer", name)

    def kind(self, tensor: Tensor) -> str | None:
        """`parameter`, `buffer`, or None for what the model does not own."""
        name = self._names.get(id(tensor))
        return None if name is None else name[0]

    def add(
        self, kind: str, target: Any, args: Any, kwargs: Any, operation: Operation
    ) -> torch.fx.Node:
        node = self.graph.create_node(kind, target, args, kwargs)
        node.meta["operation"] = operation
        return node

    def bind(self, value: Any, node: torch.fx.Node, path: tuple[Any, ...] = ()) -> None:
        """Let `node` stand for the tensors in `value`, item by item where there are several."""
        if isinstance(value, Tensor):
            self._bound[id(value)] = (node, path, _version(value))
            self._kept.append(value)
            if not is_wrapped(value):
                self._by_storage[(_storage(value), value.shape)] = (node, path)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                self.bind(item, node, (*path, index))
        elif isinstance(value, dict):
            for key, item in value.items():
                self.bind(item, node, (*path, key))

    def bind_twin(self, tensor: Tensor, twin: Tensor) -> None:
        """Let the meta twin be known by the node of the real tensor."""
        if twin is not tensor and id(twin) not in self._bound:
            # Its memory may have been written already, through the twin of a view of it.
            self.bind(twin, self._after_write(self.node(tensor), twin))

    def note_write(self, tensor: Tensor, node: torch.fx.Node) -> None:
        """`node` wrote into the memory of `tensor`; its other views have changed with it."""
        self._last_write[_storage(tensor)] = node
        self.bind(tensor, node)

    def knows(self, tensor: Tensor) -> bool:
        return id(tensor) in self._bound

    def node(self, tensor: Tensor) -> torch.fx.Node:
        entry = self._bound.get(id(tensor))
        if entry is None and not is_wrapped(tensor):
            # An `autograd.Function` may hand back its output in a new Python object.
            by_storage = self._by_storage.get((_storage(tensor), tensor.shape))
            if by_storage is not None:
                entry = (*by_storage, _version(tensor))
        if entry is None:
            return self._leaf(tensor)
        node, path, version = entry
        if path:
            node = self._item(node, path, tensor)
        if self._last_write and _version(tensor) > version:
            node = self._after_write(node, tensor)
        self.bind(tensor, node)
        return node

    def bound(self, value: Any) -> torch.fx.Node | None:
        """The node whose whole result the value is, if that is known."""
        entry = self._bound.get(id(value))
        return entry[0] if entry is not None and not entry[1] else None

    def _item(self, node: torch.fx.Node, path: tuple[Any, ...], tensor: Tensor) -> torch.fx.Node:
        source: Operation = node.meta["operation"]
        for depth, key in enumerate(path, start=1):
            shape = shape_of(tensor) if depth == len(path) else None
            node = self.add(
                "call_function", operator.getitem, (node, key), {}, source.derived("output", shape)
            )
        return node

    def _after_write(self, node: torch.fx.Node, tensor: Tensor) -> torch.fx.Node:
        """The tensor was bound, then its memory was written through another view of it."""
        write = self._last_write.get(_storage(tensor))
        if write is None or write is node:
            return node
        source: Operation = write.meta["operation"]
        return self.add(
            "call_function",
            _seen_through,
            (node, write),
            {},
            source.derived("seen_through", shape_of(tensor)),
        )

    def _leaf(self, tensor: Tensor) -> torch.fx.Node:
        kind, name = self._names.get(id(tensor), ("constant", f"constant_{len(self._kept)}"))
        operation = Operation(kind, shape_of(tensor), tensor=tensor, origin=kind)
        if kind == "constant" and tensor.is_meta:
            # Made by something that PyTorch's overrides do not show; rules that argue from what is
            # absent must know that the graph has a gap here.
            operation.origin = "unknown"
        node = self.add("get_attr", name, (), {}, operation)
        self.bind(tensor, node)
        return node

    def arguments(self, value: Any) -> Any:
        """`value` with nodes in place of tensors, in a form that a graph can hold."""
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, tuple) and type(value) is not torch.Size:
            return tuple(self.arguments(item) for item in value)
        if isinstance(value, list):
            return [self.arguments(item) for item in value]
        if isinstance(value, dict):
            return {str(key): self.arguments(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self.arguments(part) for part in (value.start, value.stop, value.step)))
        if value is None or isinstance(value, _PLAIN_ARGUMENTS):
            return value
        return repr(value)[:80]


_PLAIN_ARGUMENTS: Final = (
    int, float, complex, bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format,
    torch.Size, type(Ellipsis),
)  # fmt: skip


def _seen_through(value: Any, write: Any) -> Any:
    """Target of the nodes that stand for a tensor after a write through another view of it."""
    raise NotImplementedError("stands for a write through another view; only recorded, never run")


def shape_of(value: Any) -> TensorShape | None:
    """Shape and dtype of a tensor; None for anything else."""
    return TensorShape(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None


class _Operands(NamedTuple):
    """The arguments of a call as the graph holds them."""

    args: Any
    kwargs: Any
    index_range: tuple[int, int] | None


class _Capture(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._tracer = _Tracer(model)
        self._twins = _Twins()
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._stack: list[tuple[str, nn.Module]] = []
        self._symbolic_inputs: set[int] = set()
        self._overwritten: set[int] = set()
        self._silent = 0  # > 0 inside a function that is one node
        self._opened = 0  # > 0 inside one whose body is shown, though it runs without autograd
        self._faults: list[torch.fx.Node] = []
        self._eager = Eager(self._known_node)

    # ------------------------------------------------------------------ one run

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        recording = Recording(self._tracer.graph, self._model, self._faults)
        args = tuple(
            map_tensors(value, self._place_input, f"input_{index}")
            for index, value in enumerate(args)
        )
        kwargs = {
            name: map_tensors(value, self._place_input, name) for name, value in kwargs.items()
        }
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._module_calls())
            stack.enter_context(_without_compilation())
            stack.enter_context(torch.enable_grad())
            stack.enter_context(active(self))
            stack.enter_context(self)
            try:
                recording.output = self._model(*args, **kwargs)
            except Exception as error:
                recording.exception = error
                recording.exception_site = site_of(error)
        if recording.exception is None:
            self._note_kept()
            outputs = {
                name or "output": self._current(name, value)
                for name, value in tensors(recording.output)
            }
            node = self._tracer.graph.output(self._tracer.arguments(outputs))
            node.meta["operation"] = Operation("outputs", None)
        return recording

    def _place_input(self, name: str, tensor: Tensor) -> Tensor:
        node = self._tracer.add(
            "placeholder", name, (), {}, Operation("input", shape_of(tensor), tensor=tensor)
        )
        self._tracer.bind(tensor, node)
        if is_wrapped(tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        twin = self._twins.of(tensor)
        self._tracer.bind(twin, node)
        return twin

    @contextlib.contextmanager
    def _module_calls(self) -> Iterator[None]:
        """Keep the stack of modules whose forward is running, and step in where one of them fails."""
        original: Callable[..., Any] = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._stack.append((self._path(module), module))
            try:
                self._materialize(module, args, kwargs)
                if isinstance(module, torch.jit.ScriptModule):
                    return self._opaque_module(module, args, kwargs, original)
                result = original(module, *args, **kwargs)
                self._note_returned(result)
                return result
            except Exception as error:
                return self._repair_module(module, args, kwargs, error)
            finally:
                self._stack.pop()

        with replaced(nn.Module, "__call__", call):
            yield

    def _path(self, module: nn.Module) -> str:
        return _path(module, self._paths, self._stack)

    def _materialize(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Let a lazy layer create its parameters for real; it asks only for its input's shape."""
        if (
            isinstance(module, nn.modules.lazy.LazyModuleMixin)
            and module.has_uninitialized_params()
        ):
            with _unseen():
                module._infer_parameters(module, args, kwargs)
            self._tracer.learn_names(self._model)

    # ------------------------------------------------------------------ one call

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            known, value = self._property(func, args)
            if known:
                return value
        elif name == "__set__":
            return self._set_property(func, args)
        elif name in _QUESTIONS:
            return func(*args, **kwargs)
        elif name == "_assert_async":
            return None
        func, args, kwargs = _as_if_on_cpu(func, name, args, kwargs)
        flat = [tensor for _, tensor in tensors((args, kwargs))]
        symbolic = any(self._is_symbolic(tensor) for tensor in flat)
        call_args, call_kwargs = self._meta((args, kwargs), name) if symbolic else (args, kwargs)
        self._note_reading(name, args)
        in_place = writes_in_place(func)
        # Taken down before the call: afterwards the written tensor is already the new one.
        operands = self._operands(func, args, kwargs) if in_place and not self._silent else None
        error: Exception | None = None
        try:
            result = self._call(func, name, call_args, call_kwargs, made_of_nothing=not flat)
        except (StopIteration, TimeoutError):
            raise
        except Exception as meta_error:
            known_args, known_kwargs = self._with_known_values(args, kwargs)
            result, error = self._eager.confirm(func, known_args, known_kwargs, meta_error)
            if name in _VALUES:
                if error is not None:
                    raise error from None
                return result
            result = map_tensors(result, self._symbolic_result(call_args, call_kwargs))
        if error is not None:
            result = self._repaired(func, call_args, call_kwargs, error)
        if name in _VALUES or self._silent:
            return result
        if operands is not None:
            self._record_write(func, operands, args, call_args, result, error)
        elif any(True for _ in tensors(result)):
            self._record(func, self._operands(func, args, kwargs), result, error)
        return result

    def _repaired(self, func: Any, args: Any, kwargs: Any, error: Exception) -> Any:
        """The promised result of a call that failed; raises where the user's code is prepared for it."""
        result = NotImplemented if is_caught(_RUN) else repair.operation(func, args, kwargs)
        if result is NotImplemented:
            raise error
        sources = [t for _, t in tensors((args, kwargs)) if t.requires_grad]
        if not sources or not torch.is_grad_enabled():
            return result
        # A forward may differentiate its own parts: let the promise depend on what it was made from.
        link = torch.stack([source.sum().abs().float() for source in sources]).sum()
        return map_tensors(
            result, lambda _, t: t + link.to(t.dtype) if t.is_floating_point() else t
        )

    def _property(self, func: Any, args: tuple[Any, ...]) -> tuple[bool, Any]:
        """(True, value) where reading the property computes nothing."""
        name = getattr(func.__self__, "__name__", "")
        if name == "device":
            device = func(*args)
            # Model code compares devices and creates tensors on them; meta must not show.
            return True, torch.device("cpu") if device.type == "meta" else device
        if name == "is_meta":
            return True, False
        if name == "grad":
            return True, None
        if name in _RECORDED_PROPERTIES:
            return False, None
        return True, func(*args)

    def _set_property(self, func: Any, args: tuple[Any, ...]) -> Any:
        name = getattr(func.__self__, "__name__", "")
        if name == "grad":
            return None
        if name == "data" and isinstance(args[1], Tensor) and args[1].is_meta:
            # `p.data = f(p.data)`: the real parameter stays; from here on its twin is the new value.
            self._twins.replace(args[0], args[1])
            self._tracer.bind(args[0], self._tracer.node(args[1]))
            return None
        return func(*args)

    def _is_symbolic(self, tensor: Tensor) -> bool:
        if tensor.is_meta or isinstance(tensor, nn.Parameter) or id(tensor) in self._overwritten:
            return True
        if self._overwritten and tensor._is_view() and id(tensor._base) in self._overwritten:
            return True
        return self._tracer.kind(tensor) == "buffer" and tensor.is_floating_point()

    def _twin(self, _: str, tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 and not self._is_symbolic(tensor) and not tensor.is_floating_point():
            return tensor  # a size or an index that came from real values
        twin = self._twins.of(tensor)
        if not self._silent:
            self._tracer.bind_twin(tensor, twin)
        return twin

    def _meta(self, call: tuple[tuple[Any, ...], dict[str, Any]], name: str) -> Any:
        args, kwargs = map_tensors(call, self._twin)
        if name in _REAL_SECOND_ARGUMENT and len(args) > 1 and isinstance(call[0][1], Tensor):
            args = (args[0], call[0][1], *args[2:])
        return args, kwargs

    def _with_known_values(self, args: Any, kwargs: Any) -> Any:
        """The operands with those real that do not depend on a weight or a float input.

        A mask that is computed from `arange` selects as many entries as it does in eager.
        """
        return map_tensors(
            (args, kwargs),
            lambda _, tensor: self._twins.of(tensor) if self._is_symbolic(tensor) else tensor,
        )

    def _call(self, func: Any, name: str, args: Any, kwargs: Any, *, made_of_nothing: bool) -> Any:
        if name == "flex_attention" and isinstance(func, torch._ops.HigherOrderOperator):
            return repair.flex_attention(*args[:3])
        if made_of_nothing and name in _FACTORIES and _elements(args, kwargs) > _LARGE_FACTORY:
            kwargs = {**kwargs, "device": "meta"}
        if name in _TRANSPOSED:
            _check_channels(
                *args[:2], **{key: kwargs[key] for key in ("input", "weight") if key in kwargs}
            )
        return func(*args, **kwargs)

    def _symbolic_result(self, args: Any, kwargs: Any) -> Callable[[str, Tensor], Tensor]:
        trains = torch.is_grad_enabled() and any(
            tensor.requires_grad for _, tensor in tensors((args, kwargs))
        )

        def to_meta(_: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point() or is_wrapped(tensor):
                return tensor
            twin = torch.empty_like(tensor, device="meta")
            return twin.requires_grad_(True) if trains else twin

        return to_meta

    # ------------------------------------------------------------------ recording

    def _operation(self, func: Any, result: Any, error: Exception | None) -> Operation:
        path, module = self._stack[-1] if self._stack else ("", self._model)
        return Operation(
            canonical_name(func),
            shape_of(result),
            module=path,
            owner=module,
            site=calling_site(3, _RUN),
            grad_enabled=torch.is_grad_enabled() or self._opened > 0,
            error=error,
        )

    def _operands(self, func: Any, args: Any, kwargs: Any) -> _Operands:
        index_range = _index_range(args, kwargs) if func in _LOOK_UPS else None
        if self._overwritten:
            args, kwargs = map_tensors((args, kwargs), self._current)
        return _Operands(
            self._tracer.arguments(tuple(args)), self._tracer.arguments(kwargs), index_range
        )

    def _record(
        self, func: Any, operands: _Operands, result: Any, error: Exception | None
    ) -> torch.fx.Node:
        operation = self._operation(func, result, error)
        operation.index_range = operands.index_range
        node = self._tracer.add(
            "call_function",
            func if callable(func) else str(func),
            operands.args,
            operands.kwargs,
            operation,
        )
        self._tracer.bind(result, node)
        if error is not None:
            self._faults.append(node)
        return node

    def _record_write(
        self,
        func: Any,
        operands: _Operands,
        args: Any,
        call_args: Any,
        result: Any,
        error: Exception | None,
    ) -> None:
        target = args[0] if args and isinstance(args[0], Tensor) else None
        if target is not None and not target.is_floating_point() and self._tracer.kind(target):
            return  # a counter of steps, which nothing learns from
        node = self._record(func, operands, target if result is None else result, error)
        node.meta["operation"].in_place = True
        if target is None:
            return
        self._tracer.note_write(target, node)
        written = call_args[0]
        if written is not target:
            # The twin was written, the real tensor was not: from now on the twin is the truth.
            self._tracer.note_write(written, node)
            self._overwritten.add(id(target._base if target._is_view() else target))

    def _note_returned(self, result: Any) -> None:
        """Note at which call the caller of a module got a value; outer modules come later and count."""
        if len(self._stack) < 2 or self._silent:
            return
        alone = isinstance(result, Tensor)
        parts = result.values() if isinstance(result, dict) else result
        for part in [result] if alone else parts if isinstance(parts, Collection) else ():
            node = self._tracer.bound(part)
            if node is not None:
                operation = node.meta["operation"]
                operation.is_part |= not alone
                operation.returned = calling_site(3, _RUN) if alone else None

    def _note_reading(self, name: str, args: tuple[Any, ...]) -> None:
        """If the call hands a value to Python or numpy, no gradient can follow it."""
        if name not in _READINGS or self._silent or not self._is_symbolic(args[0]):
            return
        node = self._known_node(args[0])
        if node is not None and not node.meta["operation"].escape:
            node.meta["operation"].escape = name.strip("_")
            node.meta["operation"].escape_site = calling_site(3, _RUN)

    def _note_kept(self) -> None:
        """What a module keeps as an attribute has been computed for someone: a loss term, a state."""
        for module in self._model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            for _, tensor in tensors(list(vars(module).values())):
                node = self._known_node(tensor)
                owned = isinstance(tensor, nn.Parameter)
                if node is not None and node.op == "call_function" and not owned:
                    node.meta["operation"].escape = "attribute"

    def _current(self, _: str, tensor: Tensor) -> Tensor:
        """The twin of a real tensor that was overwritten as meta only; any other as it is."""
        if tensor.is_meta or isinstance(tensor, nn.Parameter) or not self._is_symbolic(tensor):
            return tensor
        if tensor not in self._twins and not tensor._is_view():
            return tensor
        twin = self._twins.of(tensor)
        self._tracer.bind_twin(tensor, twin)
        return twin

    def _known_node(self, tensor: Tensor) -> torch.fx.Node | None:
        return self._tracer.node(tensor) if self._tracer.knows(tensor) else None

    # ------------------------------------------------------------------ larger pieces

    # These run outside of a call's handler, where the mode would see our own calls, and lie to us
    # about `is_meta` as it does to the model: hence `_unseen`.

    def _repair_module(self, module: nn.Module, args: Any, kwargs: Any, error: Exception) -> Any:
        """A layer of torch.nn refused its input in Python code: note it, and promise its output."""
        if module is self._model and not type(module).__module__.startswith("torch.nn."):
            raise error
        with _unseen():
            result = NotImplemented if is_caught(_RUN) else repair.module(module, args, kwargs)
            if result is NotImplemented:
                raise error
            operation = Operation(
                "module_error",
                shape_of(result),
                module=self._stack[-1][0],
                owner=module,
                site=calling_site(3, _RUN),
                error=error,
            )
            node = self._tracer.add(
                "call_function",
                repair.module,
                self._tracer.arguments(tuple(args)),
                self._tracer.arguments(kwargs),
                operation,
            )
            self._tracer.bind(result, node)
        self._faults.append(node)
        return result

    def _opaque_module(
        self, module: nn.Module, args: Any, kwargs: Any, call: Callable[..., Any]
    ) -> Any:
        """Scripted code does not pass the overrides: run it on random values, record one node."""
        own = [*module.parameters(), *module.buffers()]
        with _unseen():
            real_args, real_kwargs = map_tensors((args, kwargs), self._eager.random_like)
            result = call(module, *real_args, **real_kwargs)
            result = map_tensors(result, self._symbolic_result(args, {"own": own}))
            operands = self._operands(None, (*args, own), kwargs)
            self._record(type(module).__call__, operands, result, None)
        return result

    def custom_function(
        self, function: Any, apply: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """One node for an `autograd.Function`: its body is not differentiated, so it is not shown."""
        if function.__name__ in _TRANSPARENT_FUNCTIONS:
            return self._identity(apply, args)
        if function.__name__ in _CHECKPOINT_FUNCTIONS:
            run, _preserve, *inputs = args
            return run(*inputs)
        if any(callable(value) and not isinstance(value, Tensor) for value in args):
            return self._open_function(apply, args, kwargs)
        with _unseen():
            call_args, call_kwargs = self._meta((args, kwargs), "")
        self._silent += 1
        try:
            result = apply(*call_args, **call_kwargs)
        except Exception as meta_error:
            # A body with numpy or a kernel of its own cannot run on meta tensors.
            with _unseen():
                result, error = self._eager.confirm(apply, call_args, call_kwargs, meta_error)
                if error is not None:
                    raise error from None
                result = map_tensors(result, self._symbolic_result(call_args, call_kwargs))
        finally:
            self._silent -= 1
        if not self._silent:
            with _unseen():
                node = self._record(apply, self._operands(apply, args, kwargs), result, None)
            node.meta["operation"].name = "autograd_function"
            node.meta["operation"].function = function.__name__
        return result

    def _open_function(self, apply: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A function that is handed modules to run (reversible layers): what they do is the model."""
        with _unseen():
            call_args, call_kwargs = self._meta((args, kwargs), "")
        self._opened += 1
        try:
            return apply(*call_args, **call_kwargs)
        finally:
            self._opened -= 1

    def _identity(self, apply: Callable[..., Any], args: Any) -> Any:
        """The engine wants new tensors from its identity function; for the graph they are the old."""
        with _unseen():
            results = apply(*self._meta((args, {}), "")[0])
            for (_, before), (_, after) in zip(tensors(args), tensors(results), strict=False):
                self._tracer.bind(after, self._tracer.node(before))
        return results


# The frames of a run end here: what called it is not the model's code.
_RUN: Final = _Capture.run.__code__


# ---------------------------------------------------------------------- autograd functions


class SeesCustomFunctions(Protocol):
    """A function mode that is told of every `autograd.Function` instead of seeing its body."""

    def custom_function(
        self, function: Any, apply: Callable[..., Any], args: Any, kwargs: Any, /
    ) -> Any:
        """Run `apply(*args, **kwargs)` as one call."""


_ACTIVE: list[SeesCustomFunctions] = []


@contextlib.contextmanager
def active(current: SeesCustomFunctions) -> Iterator[None]:
    """Let `single_node_functions` report to this mode."""
    _ACTIVE.append(current)
    try:
        yield
    finally:
        _ACTIVE.pop()


@contextlib.contextmanager
def single_node_functions() -> Iterator[None]:
    """Let a running capture see `autograd.Function.apply` as one call.

    Enter it before the user's file is imported too: `swish = Swish.apply` at module level keeps the
    method that it finds then.
    """
    original = torch.autograd.Function.__dict__["apply"].__func__

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        def call(*call_args: Any, **call_kwargs: Any) -> Any:
            return original(cls, *call_args, **call_kwargs)

        if _ACTIVE and torch._C._is_torch_function_mode_enabled():
            return _ACTIVE[-1].custom_function(cls, call, args, kwargs)
        return call(*args, **kwargs)

    with replaced(torch.autograd.Function, "apply", classmethod(apply)):
        yield


# ---------------------------------------------------------------------- small questions


@contextlib.contextmanager
def _without_compilation() -> Iterator[None]:
    """Compiled parts run eagerly, and FlexAttention does not mind that it is on a CPU."""
    with contextlib.ExitStack() as stack:
        if compiler_is_loaded():
            # As a context manager: the plain call leaks into the user's later compilations.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        flex = sys.modules.get("torch.nn.attention.flex_attention")
        if flex is not None and hasattr(flex, "_validate_device"):
            stack.enter_context(replaced(flex, "_validate_device", lambda *_: None))
        yield


def _as_if_on_cpu(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Requests for another device are granted in name only."""
    if name in ("cuda", "cpu"):  # x.cuda(1, non_blocking=True); `cuda` raises where there is none
        return Tensor.to, args[:1], {"dtype": args[0].dtype}
    device = kwargs.get("device")
    symbolic = bool(args) and isinstance(args[0], Tensor) and args[0].is_meta
    if name == "to":
        if device is not None:
            kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        rest = [value for value in args[1:] if not isinstance(value, (torch.device, str))]
        rest = [value.dtype if isinstance(value, Tensor) else value for value in rest]
        if not rest and not kwargs.keys() & {"dtype", "copy", "memory_format"}:
            kwargs = {**kwargs, "dtype": args[0].dtype}
        return func, (*args[:1], *rest), kwargs
    if device is None:
        return func, args, kwargs
    if symbolic:  # x.new_zeros(..., device=...), torch.zeros_like(x, device=...)
        return func, args, {key: value for key, value in kwargs.items() if key != "device"}
    if torch.device(device).type != "cpu":
        kwargs = {**kwargs, "device": torch.device("cpu")}
    return func, args, kwargs


def _check_channels(input: Tensor, weight: Tensor) -> None:  # noqa: A002
    """Raise where eager would; its own words are fetched by the one who confirms."""
    place = weight.dim() - 1
    if input.dim() >= place and input.shape[-place] != weight.shape[0]:
        raise RuntimeError(f"expected {weight.shape[0]} channels, got {input.shape[-place]}")


def _elements(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    size = kwargs.get("size", args[0] if args and isinstance(args[0], (tuple, list)) else args)
    count = 1
    for length in size:
        if not isinstance(length, int):
            return 0
        count *= length
    return count


def _index_range(args: Any, kwargs: Any) -> tuple[int, int] | None:
    """Smallest and largest index in the first operand, where it holds known integers."""
    ids = args[0] if args else kwargs.get("input")
    if not isinstance(ids, Tensor) or ids.is_meta or not ids.numel():
        return None
    if ids.is_floating_point() or ids.is_complex():
        return None
    return int(ids.min()), int(ids.max())


def _path(module: nn.Module, paths: dict[int, str], stack: list[tuple[str, nn.Module]]) -> str:
    """The module's path; one that is not registered is named by its class below its caller."""
    path = paths.get(id(module))
    if path is not None:
        return path
    parent = stack[-1][0] if stack else ""
    return f"{parent}.<{type(module).__name__}>".lstrip(".")


@contextlib.contextmanager
def module_calls(model: nn.Module, stack: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """Keep `stack` as the (path, module) whose forwards are running, by the paths of a capture."""
    original: Callable[..., Any] = nn.Module.__call__
    paths = {id(module): name for name, module in model.named_modules()}

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stack.append((_path(module, paths, stack), module))
        try:
            return original(module, *args, **kwargs)
        finally:
            stack.pop()

    with replaced(nn.Module, "__call__", call):
        yield


def site_of(error: BaseException) -> Site | None:
    """The innermost place in the user's code that the exception passed, else in an installed package."""
    found: dict[str, Site] = {}
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        owner = owner_of(traceback.tb_frame.f_code.co_filename)
        if owner != "torch":
            site = Site(traceback.tb_frame)
            # The frame has moved on or is gone; the traceback remembers.
            site.row, site.instruction = traceback.tb_lineno, traceback.tb_lasti
            found[owner] = site
        traceback = traceback.tb_next
    return found.get("project") or found.get("installed")
