"""Record one step of a training loop in full, and keep the figures on the device until they are asked for.

A `TorchFunctionMode` is on while a recorded step runs: it takes a sample of each result, hangs a hook for
the gradient on it, and looks at the losses. Samples of one shape, also those of several steps, are turned
into figures at once, since the operations cost more than the numbers; `drain` moves what was made so far to
the host, which is the only time that the device is waited for.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)
from torch.utils._device import DeviceContext

from trainlint import ops
from trainlint.capture.tracer import is_wrapped
from trainlint.measure.histograms import COLUMNS, COUNTED, counted, histogram_of
from trainlint.observe.inputs import SeenInput
from trainlint.observe.trace import Place, layer_of
from trainlint.observe.weights import Weights, opened
from trainlint.records import Histogram
from trainlint.sites import Site, calling_site
from trainlint.tree import tensors

LARGEST_SAMPLE: Final = 2048
MOST_ROWS: Final = 32
# Samples, and figures, that wait to be looked at together.
_MOST_WAITING: Final = 2**17
_MOST_SCALARS: Final = 512
# Gradients that are smaller wait for the end of the step, and have their norms taken all at once.
_LARGEST_HELD: Final = 2**16
_MOST_HELD: Final = 2**22
# Samples of this many elements may wait to be counted, and figures of so many steps are kept.
_MOST_UNCOUNTED: Final = 2**20
_MOST_COUNTED: Final = 16
MOST_WINDOWS: Final = 256
# After so many windows, dead units are looked for in every fourth: they stay dead.
_FIRST_WINDOWS: Final = 8
_SOME_WINDOWS: Final = 4
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
_PARTICULAR: Final = RECTIFIERS | FLAT_BEYOND.keys() | {"batch_norm"}
# Behind these the channels are the second axis; behind all others the last.
_CHANNELS_SECOND: Final = ops.CONVOLUTIONS | {"batch_norm", "group_norm", "instance_norm"}
_LAYERS: Final = ops.WEIGHTED | ops.NORMALIZATIONS
_FED: Final = ops.WEIGHTED | ops.RECURRENT
# Python functions of torch's that apply several weights.
_COMPOSED: Final = frozenset({"multi_head_attention_forward"})
_USES: Final = ops.WEIGHTED | {"mul", "matmul", "bmm", "einsum", "lerp", "addcmul"}
_VIEWS: Final = (
    "View", "Reshape", "Unsafe", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Permute", "T", "Split",
    "Slice", "Select", "Unbind", "ToCopy", "Clone", "Repeat",
)  # fmt: skip
_BETWEEN: Final = (*_VIEWS, "Add", "MaxPool", "AvgPool", "NativeDropout")
_PROPORTIONAL: Final = (*_BETWEEN, "Relu", "LeakyRelu", "Prelu", "Constant", "Mul")
_NODES_BACK: Final = 5
_COLUMNS: Final = ("mean", "rms", "spread", "zero", "saturated", "gradient")
_OF_THE_SAMPLE: Final = 4
_SATURATED: Final = 4
_GRADIENT: Final = 5
# Not a column: the figures are those of a histogram, in turn.
_SPREAD: Final = -1


@dataclass(slots=True, eq=False)
class SiteRecord:
    """What is known of an operation besides its figures.

    `units` is the axis of the units of the layer behind a rectifier, None where it has none. `is_new` as
    long as what lies behind it is to be looked for; `layer` is that of an activation. `spreads` are rows of
    `counted` by step.
    """

    root: int
    place: Place
    site: Site | None
    weight: str | None
    units: int | None = None
    width: int = 0
    is_new: bool = True
    largest: Tensor | None = None
    samples: int = 0
    windows: list[Any] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    feeds: str = ""
    values: dict[int, int] = field(default_factory=dict)
    data: SeenInput | None = None
    layer: str = ""
    spreads: dict[int, list[float]] = field(default_factory=dict)

    def histograms(self) -> list[Histogram]:
        """Of the first, a middle and the last step that was counted."""
        steps = sorted(self.spreads)
        if not steps:
            return []
        middle = min(steps, key=lambda step: abs(step - (steps[0] + steps[-1]) / 2))
        chosen = sorted({steps[0], middle, steps[-1]})
        found = [histogram_of(self.spreads[step], step) for step in chosen]
        return [histogram for histogram in found if histogram is not None]

    def dead(self) -> tuple[list[float], list[int]]:
        """The share of dead units in each window, with the one that is still open, and their samples."""
        shares, seen = [float(share) for share in self.windows], list(self.seen)
        if self.largest is not None:
            shares.append(float(_share_of_dead(self.largest)))
            seen.append(self.samples)
        return shares, seen


@dataclass(slots=True)
class _Sample:
    """One result in a recorded step: gradients as the hook was given them, or their norms."""

    values: Tensor
    flat: Tensor | None
    gradients: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    handle: Any = None


Key = tuple[int, str, str, int]
_Of = tuple[SiteRecord, int]
LossSeen = Callable[[str, tuple[Any, ...], dict[str, Any], Any, int | None], None]


class Recorder(TorchFunctionMode):
    """Records results and their gradients in the forwards of root models, which are known by number.

    `seen` is told of losses, `outside` of every operation that is called while no root's forward is.
    """

    def __init__(self, seen: LossSeen, outside: Callable[[Any, Any, Any, Any], None]) -> None:
        super().__init__()
        self._seen = seen
        self._outside = outside
        self._is_on = False
        self.refused = 0
        self.transformed = False
        self.problem: BaseException | None = None
        self.sites: dict[Key, SiteRecord] = {}
        self._samples: dict[SiteRecord, _Sample] = {}
        self._held = 0
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        # By device and shape, then with what they are of.
        self._waiting: dict[tuple[torch.device, torch.Size], list[tuple[_Of, Tensor]]] = {}
        self._elements = 0
        self._scalars: list[tuple[_Of, int, Tensor]] = []
        # Figures with what, and in which columns, they are of.
        self._ready: list[tuple[list[tuple[_Of, int]], Tensor]] = []
        # What waits to be counted: some early steps, and the latest.
        self._closed = 0
        self._uncounted: list[tuple[_Of, Tensor]] = []
        self._latest: list[tuple[_Of, Tensor]] = []
        self._windows = 0
        self._figures: dict[SiteRecord, dict[int, list[float | None]]] = defaultdict(dict)
        self._root: int | None = None
        self._paths: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._made: Mapping[str, Site | None] = {}
        self._stack: list[str] = []
        self._handles: list[Any] = []
        # A step's results to which no gradient had come when it ended: a GAN's generator is trained behind
        # the step of its discriminator.
        self._late: tuple[int, dict[SiteRecord, _Sample]] = (0, {})
        # Sites of this forward by the numbers of their autograd nodes; sigmoids and tanhs once more.
        self._nodes: dict[int, SiteRecord] = {}
        self._flat: dict[int, SiteRecord] = {}
        self._weights = Weights()
        # Within how many functions that are made of others the operations are.
        self._composed = 0
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
        # That of a default device is at home below all others, and looks after that itself.
        if any(not isinstance(mode, DeviceContext) for mode in _stack()):
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
        name = _NAMES.get(func)
        if name is None:
            name = _name(func)
        if name in _COMPOSED and self._root is not None and self.problem is None:
            result = self._called_openly(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        if self.problem is None and (
            name or self._root is None or self._weights.are_among(args, kwargs)
        ):
            try:
                with torch._C.DisableTorchFunction():
                    if self._root is None:
                        self._outside(func, args, kwargs, result)
                    if name or self._root is not None:
                        self._note(func, name, args, kwargs, result)
            except Exception as error:  # the user's loop must not hear of it
                self.problem = error
        return result

    def _called_openly(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result, with the operations in it seen that apply weights: their layers have no own calls."""
        self._composed += 1
        try:
            with self:
                return opened(func)(*args, **kwargs)
        finally:
            self._composed -= 1

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
        self._weights.begin(names)
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

    def _note(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        if torch._C._functorch.maybe_current_level() is not None:
            self.transformed = True  # what is computed here is a stand-in, which may not outlive it
            return
        root = self._root
        # Inside a model, losses that are written out cannot be told from what else it computes.
        if name in LOSS_FUNCTIONS or (root is None and name in _LOSSES):
            self._seen(name, args, kwargs, result, root)
        if root is None:
            return
        if not torch.is_grad_enabled():
            self._is_past_data = self._is_past_data or name in _LAYERS
            return
        if self._flat and name in _USES:
            self._use(name, args)
        # Fused recurrent layers apply a list of them, whose results are not seen.
        is_fused = name in ops.RECURRENT
        weight = None
        if not is_fused and self._weights.are_among(args, kwargs):
            weight = self._weights.applied(func, args, kwargs, result)
        if weight is None and (self._composed or name not in RECORDED):
            return
        self._note_result(root, name or ops.canonical_name(func), args, kwargs, result, weight)

    def _note_result(
        self,
        root: int,
        name: str,
        args: Any,
        kwargs: dict[str, Any],
        result: Any,
        weight: str | None,
    ) -> None:
        path = self._stack[-1] if self._stack else ""
        index = self._counts[path, name]
        self._counts[path, name] = index + 1
        tensor = (
            result if isinstance(result, Tensor) else next((t for _, t in tensors(result)), None)
        )
        if tensor is None or index >= MOST_CALLS or not tensor.is_floating_point():
            return
        if tensor.is_meta or not tensor.numel():
            return
        if type(tensor) is not Tensor and is_wrapped(tensor):
            return
        record = self.sites.get((root, path, name, index))
        if record is None:
            if len(self.sites) >= MOST_SITES:
                return
            record = self._new_site(root, Place(path, name, index), args, weight)
        self._look_at_data(name, record, args, tensor)
        node = tensor.grad_fn
        if node is not None:
            self._nodes[_number(node)] = record
        values = tensor.detach()
        flat = None
        if record.is_new and name in ops.ACTIVATIONS:
            behind = self._layer_behind(tensor)
            record.layer = "" if behind is None else _layer_name(behind)
        if name in _PARTICULAR:
            flat = self._particulars(name, record, args, kwargs, tensor, values)
        sample = self._samples[record] = _Sample(_sampled(values), flat)
        # Behind layers that are frozen, so far, there is no graph to be looked through.
        record.is_new = record.is_new and node is None
        if tensor.requires_grad:
            self._listen(tensor, sample)

    def _new_site(self, root: int, place: Place, args: Any, weight: str | None) -> SiteRecord:
        if place.operation in _COMPOSED:
            weight = None  # it has been seen where it is applied
        elif weight is None:
            weight = next((self._names[id(a)] for a in args[1:] if id(a) in self._names), None)
        # What a layer of torch's calls, in a Sequential at that, is wrong where the layer is made.
        record = SiteRecord(root, place, self._made.get(place.path) or calling_site(4), weight)
        self.sites[root, place.path, place.operation, place.index] = record
        return record

    def _listen(self, tensor: Tensor, sample: _Sample) -> None:
        """Hang the hook for the gradient on it; it must be quick, since the backward pass waits for it."""
        elements = tensor.numel()
        hook: Any = sample.gradients.append
        if elements > _LARGEST_HELD or self._held + elements > _MOST_HELD:
            hook = _norm_into(sample.norms)
        else:
            self._held += elements
        sample.handle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]
        self._handles.append(sample.handle)

    def _particulars(
        self,
        name: str,
        record: SiteRecord,
        args: Any,
        kwargs: dict[str, Any],
        result: Tensor,
        values: Tensor,
    ) -> Tensor | None:
        """What is noted of some operations only. Gives the share of elements where the slope is gone."""
        if name in FLAT_BEYOND and args and isinstance(args[0], Tensor):
            if result.grad_fn is not None and record.feeds != "gate":
                self._flat[_number(result.grad_fn)] = record
            return _sampled(args[0].detach()).abs_().gt_(FLAT_BEYOND[name]).mean()
        if name == "batch_norm" and _is_training(args, kwargs):
            count = result.numel() // result.shape[1]
            if count in record.values or len(record.values) < MOST_CALLS:
                record.values[count] = record.values.get(count, 0) + 1
        elif name in RECTIFIERS:
            if record.is_new:
                record.units = self._axis_of_units(result)
            is_asked = self._windows < _FIRST_WINDOWS or not self._windows % _SOME_WINDOWS
            if is_asked and record.units is not None and values.dim() > 1:
                _note_units(record, values)
        return None

    def _look_at_data(self, name: str, record: SiteRecord, args: Any, result: Tensor) -> None:
        """Note what a layer gets that no layer made, and which of those layers are normalised behind."""
        operand = args[0] if args and isinstance(args[0], Tensor) else None
        if operand is None:
            return
        if name in ops.NORMALIZATIONS:
            source = self._data_layer_behind(operand) if record.is_new else None
            if source is not None:
                source.is_normalized = True
        elif record.weight is not None or name in _FED:
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

    def _axis_of_units(self, result: Tensor) -> int | None:
        """Along which axis a rectifier has the units of a layer.

        Behind other things, such as the distances of a hinge, all zeros may be what is aimed at.
        """
        layer = None if result.dim() < 2 else self._layer_behind(result)
        if layer is None:
            return None
        return 1 if layer.place.operation in _CHANNELS_SECOND else -1

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
        """The step is over: make its figures, still on the device. Gradients may yet come in the next."""
        self._end_late()
        late = {
            record: sample
            for record, sample in self._samples.items()
            if sample.handle is not None and not sample.gradients and not sample.norms
        }
        awaited = {id(sample.handle) for sample in late.values()}
        for handle in self._handles:
            if id(handle) not in awaited:
                handle.remove()  # what was written in place is the model's own tensor
        self._handles.clear()
        self._late = step, late
        with torch.no_grad():
            self._note_gradients(step, self._samples)
            for record, sample in self._samples.items():
                if sample.flat is not None:
                    self._scalars.append(((record, step), _SATURATED, sample.flat))
                values = sample.values
                kind = (values.device, values.shape)
                self._waiting.setdefault(kind, []).append(((record, step), values))
                self._elements += values.numel()
            self._keep_for_counting(step)
            if self._elements > _MOST_WAITING or len(self._scalars) > _MOST_SCALARS:
                self._make()
        self._samples.clear()
        self._held = 0

    def _note_gradients(self, step: int, samples: Mapping[SiteRecord, _Sample]) -> None:
        norms = _norms(samples)
        self._scalars += [((record, step), _GRADIENT, norm) for record, norm in norms.items()]

    def _end_late(self) -> None:
        """Wait no longer for gradients of the step before."""
        step, samples = self._late
        for sample in samples.values():
            sample.handle.remove()
        with torch.no_grad():
            self._note_gradients(step, samples)
        self._late = 0, {}

    def _keep_for_counting(self, step: int) -> None:
        """Histograms are made of the 1st, 2nd, 4th, ... recorded step, and of that before each transfer."""
        self._closed += 1
        self._latest = [
            ((record, step), sample.values)
            for record, sample in self._samples.items()
            if record.weight is not None or record.place.operation in COUNTED
        ]
        if self._closed & (self._closed - 1) == 0:
            self._uncounted += self._latest
            self._latest = []
            if sum(values.numel() for _, values in self._uncounted) > _MOST_UNCOUNTED:
                self._count()

    def _count(self) -> None:
        """Make histograms of what waits."""
        groups: dict[tuple[torch.device, torch.Size], list[tuple[_Of, Tensor]]] = defaultdict(list)
        for of, values in self._uncounted:
            groups[values.device, values.shape].append((of, values))
        self._uncounted.clear()
        for group in groups.values():
            operations = [record.place.operation for (record, _), _ in group]
            rows = counted(torch.stack([values for _, values in group]), operations)
            places = [(of, _SPREAD) for of, _ in group for _ in range(COLUMNS)]
            self._ready.append((places, rows.flatten()))

    def _make(self) -> None:
        """Make figures of what waits."""
        for waiting in self._waiting.values():
            places = [(of, column) for of, _ in waiting for column in range(_OF_THE_SAMPLE)]
            self._ready.append((places, _figures([values for _, values in waiting])))
        self._waiting.clear()
        self._elements = 0
        by_device: dict[torch.device, list[tuple[_Of, int, Tensor]]] = defaultdict(list)
        for scalar in self._scalars:
            by_device[scalar[2].device].append(scalar)
        for scalars in by_device.values():
            places = [(of, column) for of, column, _ in scalars]
            self._ready.append((places, torch.stack([figure for _, _, figure in scalars])))
        self._scalars.clear()

    def close_window(self) -> None:
        """Note the share of dead units since the last window, and begin another."""
        self._windows += 1
        for record in self.sites.values():
            if record.largest is not None:
                record.windows.append(_share_of_dead(record.largest))
                record.seen.append(record.samples)
                record.largest = None

    def discard(self) -> None:
        """Forget a step that is not recorded; what came late for the one before is kept."""
        if self._late[1]:
            self._end_late()
        if not self._samples:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._samples.clear()
        self._held = 0

    def drain(self) -> None:
        """Move what was made so far to the host: one transfer a device."""
        with torch.no_grad():
            step, samples = self._late
            arrived = {r: each for r, each in samples.items() if each.gradients or each.norms}
            self._note_gradients(step, arrived)
            self._late = step, {r: each for r, each in samples.items() if r not in arrived}
            self._uncounted += self._latest
            self._latest = []
            self._count()
        self._make()
        for device in {figures.device for _, figures in self._ready}:
            there = [made for made in self._ready if made[1].device == device]
            numbers = iter(torch.cat([figures for _, figures in there]).tolist())
            for places, _ in there:
                for (record, step), column in places:
                    if column == _SPREAD:
                        record.spreads.setdefault(step, []).append(next(numbers))
                        continue
                    figures = self._figures[record].setdefault(step, [None] * len(_COLUMNS))
                    figures[column] = next(numbers)
        self._ready.clear()
        for record in self.sites.values():
            if len(record.spreads) > _MOST_COUNTED:
                kept = sorted(record.spreads)[::2]
                record.spreads = {step: record.spreads[step] for step in kept}
            record.windows = [float(share) for share in record.windows]
            if len(record.windows) > MOST_WINDOWS:
                record.windows, record.seen = record.windows[::2], record.seen[::2]

    def series(self, record: SiteRecord) -> tuple[list[int], dict[str, list[float | None]]]:
        """The recorded steps of a site, and its figures by name."""
        by_step = self._figures.get(record, {})
        steps = sorted(by_step)
        columns = {name: [by_step[s][i] for s in steps] for i, name in enumerate(_COLUMNS)}
        return steps, columns

    def keep_every_other(self) -> None:
        """Halve what is kept, so that a long run takes no more memory than a short one."""
        for record, by_step in self._figures.items():
            kept = sorted(by_step)[::2]
            self._figures[record] = {step: by_step[step] for step in kept}


def _layer_name(record: SiteRecord) -> str:
    return layer_of(record.weight) if record.weight else record.place.path


def _number(node: Any) -> int:
    return int(node._sequence_nr())


def _stack() -> list[Any]:
    return list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _sampled(values: Tensor) -> Tensor:
    """(rows, columns) of at most 4096 elements, copied; a row is a sample where the batch comes first."""
    view = _view_of_sample(values.shape, values.stride())
    if view is None:
        rows = values[:: -(-values.shape[0] // MOST_ROWS)].flatten(1)
        return rows[:, :: _odd_stride(rows.shape[1], len(rows))].to(torch.float32, copy=True)
    return values.as_strided(*view).to(torch.float32, copy=True)


@lru_cache(maxsize=1024)
def _view_of_sample(
    shape: torch.Size, strides: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Sizes and strides of the sample; None where a row does not lie together in memory."""
    if len(shape) < 2:
        step = _odd_stride(shape.numel(), 1)
        return (1, -(-shape.numel() // step)), (0, step * strides[0] if strides else 0)
    together = 1
    for stride, size in sorted(zip(strides[1:], shape[1:], strict=True)):
        if size > 1 and stride != together:
            return None
        together *= size
    skip = -(-shape[0] // MOST_ROWS)
    rows = -(-shape[0] // skip)
    step = _odd_stride(together, rows)
    return (rows, -(-together // step)), (strides[0] * skip, step)


def _odd_stride(elements: int, rows: int) -> int:
    """An odd stride does not keep hitting the same channel or position."""
    return -(-elements * rows // LARGEST_SAMPLE) | 1


def _note_units(record: SiteRecord, values: Tensor) -> None:
    """The largest value of each unit: at zero, it is dead."""
    assert record.units is not None
    axis = record.units % values.dim()
    largest = values.amax([i for i in range(values.dim()) if i != axis])
    before = record.largest
    if before is None or before.shape != largest.shape or before.device != largest.device:
        record.largest, record.samples, record.width = largest, 0, largest.numel()
    else:
        record.largest = torch.fmax(before, largest)  # a NaN takes nothing back
    record.samples += values.numel() // values.shape[axis]


def _share_of_dead(largest: Tensor) -> Tensor:
    return 1 - (largest > 0).float().mean()


def _norm_into(norms: list[Tensor]) -> Callable[[Tensor | None], None]:
    def hook(gradient: Tensor | None) -> None:
        if gradient is not None:
            norms.append(torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32))

    return hook


def _norms(samples: Mapping[SiteRecord, _Sample]) -> dict[SiteRecord, Tensor]:
    """The norm of the gradient of each site that has one; of several passes, the root of summed squares."""
    held = [g for sample in samples.values() for g in sample.gradients if g is not None]
    found = iter(torch._foreach_norm(held, dtype=torch.float32) if held else ())
    norms = {}
    for record, sample in samples.items():
        own = [*sample.norms, *(next(found) for g in sample.gradients if g is not None)]
        if own:
            norms[record] = own[0] if len(own) == 1 else torch.stack(own).norm()
    return norms


def _figures(samples: Sequence[Tensor]) -> Tensor:
    """Mean, RMS, spread and share of zeros of each of some samples of one shape, in one row."""
    stacked = torch.stack(list(samples))
    columns = stacked.mean(1, keepdim=True)
    root = (stacked.shape[1] * stacked.shape[2]) ** -0.5
    figures = [
        columns.mean((1, 2)),
        torch.linalg.vector_norm(stacked, dim=(1, 2)) * root,
        torch.linalg.vector_norm(stacked - columns, dim=(1, 2)) * root,
        stacked.eq_(0).mean((1, 2)),
    ]
    return torch.stack(figures, dim=1).flatten()


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
