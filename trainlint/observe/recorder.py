"""Record one step of a training loop in full, and keep the figures on the device until they are asked for.

A `TorchFunctionMode` is on while a recorded step runs: it takes a sample of each result, hangs a hook for
the gradient on it, and looks at the losses. `close` turns the samples of a step into one small tensor;
`drain` moves them all to the host at once, which is the only time that the device is waited for.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)

from trainlint import ops
from trainlint.capture.tracer import is_wrapped
from trainlint.observe.inputs import SeenInput
from trainlint.observe.trace import Place
from trainlint.sites import Site, calling_site
from trainlint.tree import tensors

LARGEST_SAMPLE: Final = 8192
MOST_SITES: Final = 2048
# Calls of one operation in one module beyond this are steps of a loop through time: one more tells no more.
MOST_CALLS: Final = 32
RECORDED: Final = (
    ops.WEIGHTED
    | ops.RECURRENT
    | ops.ATTENTION
    | ops.NORMALIZATIONS
    | ops.ACTIVATIONS
    | {"matmul", "einsum", "embedding", "add"}
)
# Units of these end in exact zeros.
RECTIFIERS: Final = frozenset({"relu", "relu6", "threshold", "clamp", "clamp_min", "hardtanh"})
# |z| beyond which the slope is below 7% of its largest: σ'(4) = 0.018 of 0.25, tanh'(2) = 0.071 of 1.
FLAT_BEYOND: Final = {"sigmoid": 4.0, "tanh": 2.0}
# Behind these the channels are the second axis; behind all others the last.
_CHANNELS_SECOND: Final = ops.CONVOLUTIONS | {"batch_norm", "group_norm", "instance_norm"}
_LAYERS: Final = ops.WEIGHTED | ops.NORMALIZATIONS
_USES: Final = ops.WEIGHTED | {"mul", "matmul", "bmm", "einsum", "lerp", "addcmul"}
_VIEWS: Final = (
    "View", "Reshape", "Unsafe", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Permute", "T", "Split",
    "Slice", "Select", "Unbind", "ToCopy", "Clone", "Repeat",
)  # fmt: skip
_BETWEEN: Final = (*_VIEWS, "Add", "MaxPool", "AvgPool", "NativeDropout")
_PROPORTIONAL: Final = (*_BETWEEN, "Relu", "LeakyRelu", "Prelu", "Constant", "Mul")
_NODES_BACK: Final = 5
_COLUMNS: Final = ("mean", "rms", "spread", "zero", "saturated", "gradient")


@dataclass
class _Sample:
    """One result in a recorded step."""

    values: Tensor
    flat: Tensor | None
    gradient: Tensor | None = None


@dataclass
class SiteRecord:
    """What is known of an operation besides its figures."""

    root: int
    place: Place
    site: Site | None
    weight: str | None
    alive: Tensor | None = None
    samples: int = 0
    windows: list[Tensor] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    feeds: str = ""
    values: dict[int, int] = field(default_factory=dict)
    data: SeenInput | None = None

    def dead(self) -> tuple[list[float], list[int]]:
        """The share of dead units in each window, with the one that is still open, and their samples."""
        shares, seen = [float(share) for share in self.windows], list(self.seen)
        if self.alive is not None:
            shares.append(1 - float(self.alive.float().mean()))
            seen.append(self.samples)
        return shares, seen


Key = tuple[int, Place]
LossSeen = Callable[[str, tuple[Any, ...], dict[str, Any], Any, int | None], None]


class Recorder(TorchFunctionMode):
    """Records results and their gradients in the forwards of root models, which are known by number."""

    def __init__(self, seen: LossSeen) -> None:
        super().__init__()
        self._seen = seen
        self._is_on = False
        self.refused = 0
        self.transformed = False
        self.problem: BaseException | None = None
        # Told of every operation that is called while no root's forward is.
        self.outside: Callable[[Any, Any, Any, Any], None] = lambda *_: None
        self.sites: dict[Key, SiteRecord] = {}
        self._samples: dict[Key, _Sample] = {}
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._closed: list[tuple[int, list[Key], Tensor]] = []
        self._figures: dict[Key, dict[int, tuple[float | None, ...]]] = defaultdict(dict)
        self._root: int | None = None
        self._paths: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._made: Mapping[str, Site | None] = {}
        self._stack: list[str] = []
        self._handles: list[Any] = []
        # Sites of this forward by the numbers of their autograd nodes; sigmoids and tanhs once more.
        self._nodes: dict[int, SiteRecord] = {}
        self._flat: dict[int, SiteRecord] = {}
        # Whether this forward has passed layers without a gradient: what follows is no longer the data.
        self._is_past_data = False

    # ------------------------------------------------------------------ the mode

    @property
    def is_on(self) -> bool:
        """Whether the mode is on."""
        return self._is_on

    def enter(self) -> bool:
        """Turn the mode on. Not above another mode: one that ends within ours would pop ours."""
        if self._is_on:
            return True
        if _stack():
            self.refused += 1
            return False
        self.__enter__()  # type: ignore[no-untyped-call]
        self._is_on = True
        return True

    def leave(self) -> None:
        """Turn the mode off. Modes that the user entered above it keep their place."""
        if not self._is_on:
            return
        self._is_on = False
        above = []
        while (stack := _stack()) and stack[-1] is not self:
            above.append(_pop_mode())  # type: ignore[no-untyped-call]
        if stack:
            _pop_mode()  # type: ignore[no-untyped-call]
        for mode in reversed(above):
            _push_mode(mode)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = _NAMES.get(func)
        if name is None:
            name = _name(func)
        if (name or self._root is None) and self.problem is None:
            try:
                with torch._C.DisableTorchFunction():
                    if self._root is None:
                        self.outside(func, args, kwargs, result)
                    if name:
                        self._note(name, args, kwargs, result)
            except Exception as error:  # the user's loop must not hear of it
                self.problem = error
        return result

    # ------------------------------------------------------------------ one step

    def begin_forward(
        self,
        root: int,
        paths: dict[int, str],
        names: dict[int, str],
        made: Mapping[str, Site | None],
    ) -> None:
        """A root's forward begins. `paths` of its modules and `names` of its parameters go by `id`.

        `made` says where those of its layers were constructed that are torch's own, by path.
        """
        self._root, self._paths, self._names, self._made = root, paths, names, made
        self._counts.clear()
        self._stack.clear()
        self._nodes.clear()
        self._flat.clear()
        self._is_past_data = False

    def end_forward(self) -> None:
        """What follows is the loop's own code."""
        self._root = None

    @property
    def is_inside(self) -> bool:
        """Whether a root's forward is being recorded."""
        return self._root is not None

    def enter_module(self, module: nn.Module) -> None:
        """An inner module is called."""
        above = self._stack[-1] if self._stack else ""
        self._stack.append(self._paths.get(id(module), above))

    def leave_module(self) -> None:
        """It returned."""
        if self._stack:
            self._stack.pop()

    def _note(self, name: str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        if torch._C._functorch.maybe_current_level() is not None:
            self.transformed = True  # what is computed here is a stand-in, which may not outlive it
            return
        if name in _LOSSES:
            self._seen(name, args, kwargs, result, self._root)
        if self._root is None:
            return
        if not torch.is_grad_enabled():
            self._is_past_data = self._is_past_data or name in _LAYERS
            return
        if self._flat and name in _USES:
            self._use(name, args)
        if name not in RECORDED:
            return
        path = self._stack[-1] if self._stack else ""
        index = self._counts[path, name]
        self._counts[path, name] += 1
        tensor = (
            result if isinstance(result, Tensor) else next((t for _, t in tensors(result)), None)
        )
        if tensor is None or index >= MOST_CALLS or not tensor.is_floating_point():
            return
        if tensor.is_meta or is_wrapped(tensor) or not tensor.numel():
            return
        key = (self._root, Place(path, name, index))
        record = self.sites.get(key)
        if record is None:
            if len(self.sites) >= MOST_SITES:
                return
            weight = next((self._names[id(a)] for a in args[1:] if id(a) in self._names), None)
            # What a layer of torch's calls, in a Sequential at that, is wrong where the layer is made.
            record = SiteRecord(*key, self._made.get(path) or calling_site(3), weight)
            self.sites[key] = record
        self._look_at_data(name, record, args, tensor)
        sample = _Sample(_sampled(tensor), self._particulars(name, record, args, kwargs, tensor))
        self._samples[key] = sample
        if tensor.requires_grad:
            self._handles.append(tensor.register_hook(_norm_into(sample)))  # type: ignore[no-untyped-call]

    def _particulars(
        self, name: str, record: SiteRecord, args: Any, kwargs: dict[str, Any], result: Tensor
    ) -> Tensor | None:
        """What is noted of some operations only. Gives the share of elements where the slope is gone."""
        flat = None
        if result.grad_fn is not None:
            self._nodes[_number(result.grad_fn)] = record
        if name in FLAT_BEYOND and args and isinstance(args[0], Tensor):
            flat = (_sampled(args[0]).abs() > FLAT_BEYOND[name]).float().mean()
            if result.grad_fn is not None:
                self._flat[_number(result.grad_fn)] = record
        elif name == "batch_norm" and _is_training(args, kwargs):
            values = result.numel() // result.shape[1]
            if values in record.values or len(record.values) < MOST_CALLS:
                record.values[values] = record.values.get(values, 0) + 1
        elif name in RECTIFIERS:
            self._units(record, result)
        return flat

    def _look_at_data(self, name: str, record: SiteRecord, args: Any, result: Tensor) -> None:
        """Note what a layer gets that no layer made, and which of those layers are normalised behind."""
        operand = next((a for a in args[:1] if isinstance(a, Tensor)), None)
        if operand is None:
            return
        if name in ops.NORMALIZATIONS:
            source = self._data_layer_behind(operand)
            if source is not None:
                source.is_normalized = True
        elif name in ops.WEIGHTED | ops.RECURRENT or record.weight is not None:
            if not result.requires_grad:
                self._is_past_data = True
            elif (
                not self._is_past_data
                and not operand.requires_grad
                and operand.is_floating_point()
                and operand.numel()
                and operand.dim() > 1
            ):
                record.data = record.data or SeenInput()
                record.data.look_at(operand)

    def _data_layer_behind(self, tensor: Tensor) -> SeenInput | None:
        """What the layer got that made the tensor, with what keeps proportions in between."""
        node: Any = tensor.grad_fn
        for _ in range(_NODES_BACK):
            record = None if node is None else self._nodes.get(_number(node))
            if node is None or (record is not None and record.data is not None):
                return None if record is None else record.data
            if not node.name().startswith(_PROPORTIONAL) or not node.next_functions:
                return None
            node = node.next_functions[0][0]
        return None

    def maker_of(self, tensor: Tensor) -> SiteRecord | None:
        """The recorded operation that made the values, behind rearrangements of them."""
        node: Any = tensor.grad_fn
        for _ in range(_NODES_BACK):
            if node is None or _number(node) in self._nodes:
                return None if node is None else self._nodes[_number(node)]
            if not node.name().startswith(_VIEWS) or not node.next_functions:
                return None
            node = node.next_functions[0][0]
        return None

    def _units(self, record: SiteRecord, result: Tensor) -> None:
        """Which units of a layer were above zero for some sample.

        Behind other things, such as the distances of a hinge, all zeros may be what is aimed at.
        """
        layer = None if result.dim() < 2 else self._layer_behind(result)
        if layer is None:
            return
        axis = 1 if layer.place.operation in _CHANNELS_SECOND else result.dim() - 1
        others = [i for i in range(result.dim()) if i != axis]
        alive = result.detach().amax(others) > 0
        before = record.alive
        if before is None or before.shape != alive.shape:
            record.alive, record.samples = alive, 0
        else:
            record.alive = before | alive
        record.samples += result.numel() // result.shape[axis]

    def _layer_behind(self, result: Tensor) -> SiteRecord | None:
        """The layer or normalization whose result this one's operand is, with sums and pools in between."""
        node: Any = result.grad_fn
        waiting = [] if node is None else [below for below, _ in node.next_functions[:1]]
        for _ in range(2 * _NODES_BACK):
            if not waiting:
                return None
            node = waiting.pop(0)
            if node is None:
                continue
            record = self._nodes.get(_number(node))
            operation = "" if record is None else record.place.operation
            if record is not None and (operation in _LAYERS or record.weight is not None):
                return record
            if node.name().startswith(_BETWEEN):
                waiting += [below for below, _ in node.next_functions]
        return None

    def _use(self, name: str, args: Any) -> None:
        """Note what a sigmoid or tanh of this forward goes into: a layer's weights, or a product."""
        operands = [a for a in args[:2] if isinstance(a, Tensor)]
        is_layer = name in ops.WEIGHTED and len(operands) == 2
        for operand in operands[: 1 if is_layer else 2]:
            node: Any = operand.grad_fn
            for _ in range(_NODES_BACK):
                record = None if node is None else self._flat.get(_number(node))
                if node is None or record is not None:
                    break
                # Other operations in between make something else of a gate, but not of a layer's input.
                is_view = node.name().startswith(_VIEWS)
                node = (
                    node.next_functions[0][0]
                    if node.next_functions and (is_layer or is_view)
                    else None
                )
            else:
                continue
            if record is not None and record.feeds != "gate":
                record.feeds = "weights" if is_layer else "gate"

    def close(self, step: int) -> None:
        """The backward pass is over: make the step's figures, still on the device."""
        for handle in self._handles:
            handle.remove()  # what was written in place is the model's own tensor
        self._handles.clear()
        groups: dict[tuple[Any, ...], list[Key]] = defaultdict(list)
        for key, sample in self._samples.items():
            groups[(*sample.values.shape, sample.values.device)].append(key)
        for keys in groups.values():
            self._closed.append((step, keys, _figures([self._samples[key] for key in keys])))
        self._samples.clear()

    def close_window(self) -> None:
        """Note the share of dead units since the last window, and begin another."""
        for record in self.sites.values():
            if record.alive is not None:
                record.windows.append(1 - record.alive.float().mean())
                record.seen.append(record.samples)
                record.alive = None

    def discard(self) -> None:
        """Forget a step that had no backward pass."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._samples.clear()

    def drain(self) -> None:
        """Move what was made so far to the host: one transfer a device."""
        for device in {figures.device for _, _, figures in self._closed}:
            there = [entry for entry in self._closed if entry[2].device == device]
            rows = iter(torch.cat([figures for _, _, figures in there]).tolist())
            for step, keys, _ in there:
                for key in keys:
                    row = enumerate(next(rows))
                    self._figures[key][step] = tuple(None if v < 0 and i > 3 else v for i, v in row)
        self._closed.clear()

    def series(self, key: Key) -> tuple[list[int], dict[str, list[float | None]]]:
        """The recorded steps of a site, and its figures by name."""
        by_step = self._figures.get(key, {})
        steps = sorted(by_step)
        columns = {name: [by_step[s][i] for s in steps] for i, name in enumerate(_COLUMNS)}
        return steps, columns

    def keep_every_other(self) -> None:
        """Halve what is kept, so that a long run takes no more memory than a short one."""
        for key, by_step in self._figures.items():
            kept = sorted(by_step)[::2]
            self._figures[key] = {step: by_step[step] for step in kept}


def _number(node: Any) -> int:
    return int(node._sequence_nr())


def _stack() -> list[Any]:
    return list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _sampled(tensor: Tensor) -> Tensor:
    """At most 8192 elements, in rows, one a sample of the batch where that is the first axis."""
    flat = tensor.detach()
    rows = flat.shape[0] if flat.dim() > 1 else 1
    most = max(1, LARGEST_SAMPLE // rows)
    flat = flat.reshape(rows, -1)
    if flat.shape[1] > most:
        # An odd stride does not keep hitting the same channel or position.
        flat = flat[:, :: -(-flat.shape[1] // most) | 1]
    return flat.to(torch.float32, copy=True)


def _norm_into(sample: _Sample) -> Callable[[Tensor | None], None]:
    def hook(gradient: Tensor | None) -> None:
        if gradient is not None:
            norm = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
            sample.gradient = (
                norm if sample.gradient is None else torch.hypot(sample.gradient, norm)
            )

    return hook


def _figures(samples: Sequence[_Sample]) -> Tensor:
    """(sites, columns) of samples of one shape. -1 stands for what there is not."""
    stacked = torch.stack([sample.values for sample in samples])
    every = (1, 2)
    missing = stacked.new_full((), -1.0)
    return torch.stack(
        [
            stacked.mean(every),
            stacked.square().mean(every).sqrt(),
            (stacked - stacked.mean(1, keepdim=True)).square().mean(every).sqrt(),
            (stacked == 0).float().mean(every),
            torch.stack([missing if s.flat is None else s.flat for s in samples]),
            torch.stack([missing if s.gradient is None else s.gradient for s in samples]),
        ],
        dim=1,
    )


LOSS_FUNCTIONS: Final = frozenset(
    "cross_entropy nll_loss binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss "
    "smooth_l1_loss huber_loss kl_div soft_margin_loss poisson_nll_loss gaussian_nll_loss".split()
)
# Written out, a loss is made of these.
_LOSSES: Final = LOSS_FUNCTIONS | {"sub", "mul", "add", "div"}
_NAMES: dict[Any, str] = {}


def _is_training(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this `batch_norm` takes the statistics of the batch."""
    return bool(args[5] if len(args) > 5 else kwargs.get("training", False))


def _name(func: Any) -> str:
    name = ops.canonical_name(func)
    name = name if name in RECORDED or name in _LOSSES or name in _USES else ""
    with contextlib.suppress(TypeError):
        _NAMES[func] = name
    return name
