"""Change a model's inputs one at a time on real weights and see which outputs move.

Comes in: a model, its inputs and the captured graph. Goes out: an `Influence`. Two forwards and one
backward with three samples in eval mode answer all the questions of a sound model: whether one sample's
output depends on another's input, later positions reach earlier ones, an input has no effect, all
samples get the same output, two passes differ. What looks wrong is asked again in another way, and only
then run step by step to find the line. The model and the random states are as before afterwards.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from trainlint import ops
from trainlint.capture import module_calls
from trainlint.engine import FactUnavailable
from trainlint.graph import Graph
from trainlint.influence import (
    Constant,
    Draw,
    Influence,
    Leak,
    Mixing,
    Randomness,
    Spot,
    Unused,
)
from trainlint.inputs import Inputs, batch_size, with_batch
from trainlint.preserve import preserved, unchanged_weights
from trainlint.pulse import affordable_batch, on_device_of, seed_generators
from trainlint.steps import (
    Step,
    Steps,
    along,
    ancestors,
    changes,
    nodes_by_key,
    random_state,
    spot_of,
)
from trainlint.tree import map_tensors, tensors

_SAMPLES: Final = 3
_MOST_SECONDS: Final = 30.0
# The largest shift that regrouped sums made in a sound model is 9e-8 of the scale.
_MOVED: Final = 1e-5
_LEAST_GRADIENT: Final = 1e-6
_SAME: Final = 1e-7
# Values of every step of three runs, in bytes: above that the line is not looked for.
_MOST_TO_KEEP: Final = 1 << 30
_MOST_ASKED: Final = 4
_DRAWS: Final = 6
# The first numbers of small seeds are much alike.
_ANOTHER_SEED: Final = 123_456_789
# They turn many inputs into one answer by design.
_CHOICES: Final = ("argmin", "argmax", "round", "sign", "searchsorted", "bucketize", "multinomial")
_ATTENTION: Final = frozenset(
    {"softmax", "scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention"}
)
# A mask of large negative numbers hides as well as one of -inf.
_HIDDEN: Final = -1e4

# The sample whose outputs are looked at: the middle one, since a recurrence over the samples reaches only
# later ones.
_OWN: Final = 1

Outputs = dict[str, Tensor]


def influence(model: nn.Module, inputs: Inputs, graph: Graph, *, seed: int = 0) -> Influence:
    """Measure what influences what, in eval mode with three distinct samples.

    Raises `FactUnavailable` where the model has no values, takes too long, or does not run.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise FactUnavailable("its weights have no values, they are on the meta device")
    if any(isinstance(v, PackedSequence) for v in (*inputs.args, *inputs.kwargs.values())):
        raise FactUnavailable("samples of packed sequences cannot be changed one by one")
    if not batch_size(inputs):
        raise FactUnavailable("its inputs hold no samples")
    affordable_batch(model, inputs, graph)  # refuses what is too large
    with (
        preserved(model),
        unchanged_weights(model),
        warnings.catch_warnings(),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        try:
            return _Questions(model, inputs, graph, seed).answers()
        except FactUnavailable:
            raise
        except Exception as error:
            message = str(error).strip().partition("\n")[0]
            raise FactUnavailable(
                f"a real pass in eval mode raised {type(error).__name__}: {message}"
            ) from None


# ---------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class _Slot:
    """One tensor of the inputs: its name in the graph, its values, and the axis of its samples."""

    name: str
    value: Tensor
    axis: int | None

    @cached_property
    def is_mask(self) -> bool:
        """Zeros and ones: other values would mean something else."""
        value = self.value
        return value.dtype == torch.bool or bool(((value == 0) | (value == 1)).all())

    @property
    def is_ids(self) -> bool:
        return not (self.value.is_floating_point() or self.value.is_complex())

    @property
    def can_vary(self) -> bool:
        return self.axis is not None and self.value.numel() > 0 and not self.is_mask


def _named(inputs: Inputs, change: Callable[[str, Tensor], Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments rebuilt, with the names that the capture gives to inputs."""
    args = tuple(
        map_tensors(value, change, f"input_{place}") for place, value in enumerate(inputs.args)
    )
    return args, {name: map_tensors(value, change, name) for name, value in inputs.kwargs.items()}


def _slots(inputs: Inputs, resized: Inputs) -> list[_Slot]:
    """The tensors of the resized inputs; the axis that grew holds the samples."""
    before: dict[str, tuple[int, ...]] = {}

    def note(name: str, tensor: Tensor) -> Tensor:
        before[name] = tuple(tensor.shape)
        return tensor

    slots: list[_Slot] = []

    def collect(name: str, tensor: Tensor) -> Tensor:
        old = before.get(name, ())
        axes = [axis for axis, size in enumerate(old) if tensor.shape[axis] != size]
        slots.append(_Slot(name, tensor, axes[0] if len(axes) == 1 else None))
        return tensor

    _named(inputs, note)
    _named(resized, collect)
    return slots


def _replaced(
    slot: _Slot,
    rows: Sequence[int],
    generator: torch.Generator,
    *,
    axis: int | None = None,
    gently: bool = False,
) -> Tensor:
    """The slot's values with these samples replaced by others like them."""
    value = slot.value.clone()
    axis = slot.axis if axis is None else axis
    assert axis is not None
    for row in rows:
        old = value.select(axis, row)
        value.select(axis, row).copy_(_other(old.clone(), slot.value, generator, gently))
    return value


def _other(row: Tensor, everything: Tensor, generator: torch.Generator, gently: bool) -> Tensor:
    """Another sample of the same kind, of another mean and spread."""
    order = torch.randperm(row.numel(), generator=generator).to(row.device)
    if row.is_floating_point() or row.is_complex():
        # Shrunk, so that neither its range grows nor statistics over all samples stay as they are.
        new = row.reshape(-1)[order].reshape(row.shape) * 0.6
        return torch.where(new == row, new + 0.1, new)
    if gently or row.numel() == 0:
        return row[order.argsort()] if row.dim() == 1 else row
    low, high = int(everything.min()), int(everything.max())
    drawn = torch.randint(low, high + 1, row.shape, generator=generator).to(row.device)
    # Drawn one by one: a mere renaming of groups may change nothing.
    other = low + (drawn - low + 1) % (high - low + 1)
    return torch.where(drawn == row, other, drawn).to(row.dtype)


# ---------------------------------------------------------------------- a run that is watched


@dataclass
class _Attention:
    """An attention operation of the run: its place in the capture, and whether its mask is triangular."""

    path: str
    name: str
    number: int
    causal: bool


class _Watch(TorchFunctionMode):
    """Keeps the results of embeddings, and looks at the masks of attention."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._stack: list[tuple[str, nn.Module]] = []
        self._counts: dict[tuple[str, str], int] = {}
        self.embedded: list[tuple[Tensor, Tensor]] = []
        self.attentions: list[_Attention] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with module_calls(self._model, self._stack), self:
            yield

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = _watched.get(func)
        if name is None:
            name = _name_if_watched(func)
        if name == "embedding" and isinstance(result, Tensor) and result.requires_grad:
            ids = kwargs.get("input", args[0] if args else None)
            if isinstance(ids, Tensor) and not ids.is_floating_point():
                self.embedded.append((ids, result))
        elif name in _ATTENTION:
            path = self._stack[-1][0] if self._stack else ""
            number = self._counts.get((path, name), 0)
            self._counts[path, name] = number + 1
            with torch._C.DisableTorchFunction():
                causal = _is_causal(name, args, kwargs, result)
            self.attentions.append(_Attention(path, name, number, causal))
        return result


_watched: dict[Any, str] = {}


def _name_if_watched(func: Any) -> str:
    name = ops.canonical_name(func)
    name = name if name in _ATTENTION or name == "embedding" else ""
    with contextlib.suppress(TypeError):
        _watched[func] = name
    return name


def _is_causal(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> bool:
    """Whether no position attends to a later one."""
    if name == "softmax":
        if not isinstance(result, Tensor) or not _is_square(result):
            return False
        return not bool(result.detach().triu(1).any())
    if name == "flex_attention":
        return False
    if kwargs.get("is_causal") or (name == "scaled_dot_product_attention" and args[5:6] == (True,)):
        return True
    mask = kwargs.get("attn_mask", args[3] if name.startswith("scaled") and len(args) > 3 else None)
    if not isinstance(mask, Tensor) or not _is_square(mask):
        return False
    upper = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1)
    if mask.dtype == torch.bool:  # True is "may look" to one and "must not" to the other
        hidden = ~mask if name == "scaled_dot_product_attention" else mask
    else:
        hidden = mask <= _HIDDEN
    return bool((hidden | ~upper).all())


def _is_square(tensor: Tensor) -> bool:
    return tensor.dim() >= 2 and tensor.shape[-1] == tensor.shape[-2] > 1


# ---------------------------------------------------------------------- the questions


class _Questions:
    """One model in eval mode, and what is asked of it."""

    def __init__(self, model: nn.Module, inputs: Inputs, graph: Graph, seed: int) -> None:
        self._model = model
        self._graph = graph
        self._seed = seed
        self._deadline = time.monotonic() + _MOST_SECONDS
        self._before = batch_size(inputs) or 0
        self._samples = _SAMPLES if self._before != _SAMPLES else _SAMPLES + 1
        self._generator = torch.Generator().manual_seed(seed + 1)
        resized = with_batch(inputs, self._samples)
        placed = on_device_of(model, resized)
        self._inputs = placed
        self._slots = [self._distinct(slot) for slot in _slots(inputs, placed)]
        self._varying = [slot for slot in self._slots if slot.can_vary]
        if any(slot.value.dim() > 1 for slot in self._varying):
            # Of lone numbers some are lengths, which fit only the sample that they came with.
            self._samplewise = [s for s in self._varying if not (s.is_ids and s.value.dim() == 1)]
        else:
            self._samplewise = self._varying

    def _distinct(self, slot: _Slot) -> _Slot:
        """Given samples are repeated where there are too few; all but the first are made others."""
        if not slot.can_vary or (slot.is_ids and slot.value.dim() == 1):
            return slot
        axis = slot.axis or 0
        value = slot.value
        same = [
            row
            for row in range(1, self._samples)
            if torch.equal(value.select(axis, row), value.select(axis, row - 1))
        ]
        if not same:
            return slot
        return _Slot(slot.name, _replaced(slot, same, self._generator, gently=True), slot.axis)

    def answers(self) -> Influence:
        """All of them."""
        self._model.eval()
        leaves, watch, (base, drawn) = self._first_pass()
        axes = self._batch_axes(base)
        gradients, leak = self._gradients(leaves, watch, base, axes)
        return Influence(
            batch=self._samples,
            given=self._inputs.given,
            mixing=self._mixing(base, axes, gradients),
            leak=leak,
            unused=tuple(self._unused(base, gradients)),
            constant=self._constant(base, axes),
            randomness=self._randomness(base) if drawn else None,
        )

    # ------------------------------------------------------------------ running

    def _run(
        self,
        changed: Mapping[str, Tensor] | None = None,
        *,
        seed: int | None = None,
        within: Any = None,
    ) -> Outputs:
        """The floating-point outputs, by name."""
        if time.monotonic() > self._deadline:
            raise FactUnavailable(f"it takes more than {_MOST_SECONDS:g} s")
        values = {slot.name: slot.value for slot in self._slots} | dict(changed or {})
        args, kwargs = _named(self._inputs, lambda name, _: values[name].clone())
        self._seed_all(self._seed if seed is None else seed)
        # Always the same kind of run: without a mode PyTorch takes other kernels in eval mode.
        with _Watch(self._model).watching() if within is None else within:
            output = self._model(*args, **kwargs)
        return {
            name or "output": tensor
            for name, tensor in tensors(output)
            if (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel()
        }

    def _seed_all(self, seed: int) -> None:
        seed_generators(seed)
        random.seed(seed)
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed(seed)

    def _first_pass(self) -> tuple[dict[str, Tensor], _Watch, tuple[Outputs, bool]]:
        """The run that all others are compared with, its inputs as leaves; whether it drew numbers."""
        leaves = {
            slot.name: slot.value.clone().requires_grad_(True)
            for slot in self._varying
            if not slot.is_ids
        }
        try:
            return self._watched_pass(leaves)
        except RuntimeError:  # a forward that writes `out=...` refuses what has a gradient
            return self._watched_pass({})

    def _watched_pass(
        self, leaves: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], _Watch, tuple[Outputs, bool]]:
        watch = _Watch(self._model)
        self._seed_all(self._seed)
        before = random_state()
        outputs = self._run(leaves, within=watch.watching())
        return leaves, watch, (outputs, before != random_state())

    def _batch_axes(self, base: Outputs) -> dict[str, int]:
        """The axis of each output that holds the samples: it differs from the captured output's."""
        captured = self._captured_outputs()
        axes: dict[str, int] = {}
        for name, tensor in base.items():
            node = captured.get(name)
            dims = self._graph.shape(node) if node is not None else None
            if dims is None or len(dims) != tensor.dim():
                continue
            pairs = list(zip(dims, tensor.shape, strict=True))
            differing = [axis for axis, (here, there) in enumerate(pairs) if here != there]
            if len(differing) == 1 and pairs[differing[0]] == (self._before, self._samples):
                axes[name] = differing[0]
        return axes

    def _captured_outputs(self) -> dict[str, Node]:
        last = self._graph.nodes[-1]
        known = last.args[0] if last.op == "output" and last.args else {}
        return {
            name: node
            for name, node in (known.items() if isinstance(known, dict) else ())
            if isinstance(node, Node)
        }

    # ------------------------------------------------------------------ gradients

    def _gradients(
        self, leaves: dict[str, Tensor], watch: _Watch, base: Outputs, axes: dict[str, int]
    ) -> tuple[dict[str, Tensor], Leak | None]:
        """Of a random projection of the own sample's outputs, by each input; and the leak that they show.

        Where outputs go along a sequence of inputs, only those of its first half are projected: then
        one backward answers for the later positions as well.
        """
        targets: dict[str, list[Tensor]] = {name: [leaf] for name, leaf in leaves.items()}
        for ids, result in watch.embedded:
            for slot in self._varying:
                if slot.is_ids and ids.shape == slot.value.shape and torch.equal(ids, slot.value):
                    targets.setdefault(slot.name, []).append(result)
        sequence = self._sequence(base, axes)
        terms = []
        for name, axis in axes.items():
            tensor = base[name]
            if not tensor.requires_grad or (sequence and name != sequence.output):
                continue
            own = tensor.select(axis, _OWN)
            own = own[: sequence.positions] if sequence else own
            own = torch.view_as_real(own) if own.is_complex() else own
            cotangent = torch.randn(own.shape, generator=self._generator).to(own.device, own.dtype)
            terms.append((own * cotangent).sum().float())
        flat = [tensor for group in targets.values() for tensor in group]
        if not terms or not flat:
            return {}, None
        try:
            found = torch.autograd.grad(torch.stack(terms).sum(), flat, allow_unused=True)
        except RuntimeError:  # reentrant checkpoints, custom functions without a backward
            return {}, None
        gradients: dict[str, Tensor] = {}
        remaining = iter(found)
        for name, group in targets.items():
            parts = [g for g in (next(remaining) for _ in group) if g is not None]
            if parts and all(part.shape == parts[0].shape for part in parts):
                gradients[name] = torch.stack([part.detach().abs() for part in parts]).sum(0)
            elif not parts and not self._slot(name).is_ids:
                gradients[name] = torch.zeros_like(self._slot(name).value)
        leak = self._leak(sequence, gradients, watch, base) if sequence else None
        return gradients, leak

    def _slot(self, name: str) -> _Slot:
        return next(slot for slot in self._slots if slot.name == name)

    # ------------------------------------------------------------------ samples that mix

    def _mixing(
        self, base: Outputs, axes: dict[str, int], gradients: dict[str, Tensor]
    ) -> Mixing | None:
        if not axes or not self._samplewise or self._indexes_samples():
            return None
        if any(name not in axes and tensor.dim() for name, tensor in base.items()):
            return None  # an output for all of them: a set, or a bag of instances
        others = [row for row in range(self._samples) if row != _OWN]
        changed, moved = self._run_with(self._samplewise, others)
        shift = max(_shift(base[n], moved.get(n), axis) for n, axis in axes.items())
        if shift <= _MOVED:
            return None
        again = self._run()
        if max(_shift(base[name], again.get(name), axis) for name, axis in axes.items()) > _SAME:
            return None  # it differs by itself: state, or kernels that sum in any order
        spot, mixer = self._where_mixed(changed)
        return Mixing(
            shift=shift,
            gradient=self._share_of_others(gradients),
            spot=spot,
            is_lost=spot is not mixer,
            mixer=mixer,
            reaches_axis_1=not self._counts_along_axis_1(base, axes),
        )

    def _indexes_samples(self) -> bool:
        """Whether integers without a sample axis come in, as the edges of a graph: samples are nodes."""
        return any(
            s.axis is None and s.is_ids and s.value.dim() and not s.is_mask for s in self._slots
        )

    def _run_with(
        self, slots: Sequence[_Slot], rows: Sequence[int], axis: int | None = None
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Replace these samples; ids only change places where other ids are refused."""
        problem: Exception | None = None
        for gently in (False, True):
            changed = {
                slot.name: _replaced(slot, rows, self._generator, axis=axis, gently=gently)
                for slot in slots
            }
            try:
                return changed, self._run(changed)
            except FactUnavailable:
                raise
            except Exception as error:
                problem = error
        assert problem is not None
        raise problem

    def _share_of_others(self, gradients: dict[str, Tensor]) -> float | None:
        own = others = 0.0
        for name, gradient in gradients.items():
            slot = self._slot(name)
            axis = slot.axis or 0
            if gradient.dim() <= axis or gradient.shape[axis] != self._samples:
                continue
            by_sample = gradient.transpose(0, axis).flatten(1).sum(1)
            own += float(by_sample[_OWN])
            others += float(by_sample.sum() - by_sample[_OWN])
        return others / (own + others) if own + others > 0 else None

    def _counts_along_axis_1(self, base: Outputs, axes: dict[str, int]) -> bool:
        """Whether the second axis, in inputs and outputs, holds independent samples too."""
        deep = [slot for slot in self._samplewise if slot.value.dim() > 1]
        lengths = {slot.value.shape[1] for slot in deep}
        if len(lengths) != 1 or any(slot.axis != 0 for slot in deep):
            return False
        length = lengths.pop()
        kept = {
            name: 1
            for name, axis in axes.items()
            if axis == 0 and base[name].dim() > 1 and base[name].shape[1] == length
        }
        if length <= _OWN or kept.keys() != axes.keys():
            return False
        try:
            _, moved = self._run_with(deep, [row for row in range(length) if row != _OWN], axis=1)
        except FactUnavailable:
            raise
        except Exception:
            return False
        return all(_shift(base[name], moved.get(name), 1) <= _MOVED for name in kept)

    def _where_mixed(self, changed: Mapping[str, Tensor]) -> tuple[Spot | None, Spot | None]:
        """The operation that loses track of the samples, and the one that mixes them.

        Two more runs tell for each element whether the own sample or another one changes it.
        """
        traced = self._trace([changed, self._run_with(self._samplewise, [_OWN])[0]])
        if traced is None:
            return None, None
        steps, last, (by_others, by_own) = traced
        relevant = ancestors(steps, last)
        count = min(len(by_others), len(by_own))
        mixed = [place for place in range(count) if _both(by_others[place], by_own[place])]
        place = next((p for p in mixed if p in relevant), mixed[0] if mixed else None)
        if place is None:
            return None, None
        nodes = nodes_by_key(self._graph)
        mixer = spot_of(steps[place], self._graph, nodes)
        first = place
        while True:
            lost = [
                operand
                for operand in steps[first].operands
                if operand < first and _is_lost(by_others[operand], by_own[operand])
            ]
            if not lost:
                break
            first = lost[0]
        return (mixer if first == place else spot_of(steps[first], self._graph, nodes)), mixer

    def _trace(
        self, variants: Sequence[Mapping[str, Tensor]]
    ) -> tuple[list[Step], list[int], list[list[Any]]] | None:
        """The steps of the first run, those that made its outputs, and what each variant changes."""
        if self._bytes_of_steps() > _MOST_TO_KEEP:
            return None
        steps = self._steps(keep=True)
        outputs = self._run(within=steps.recording())
        last = [place for t in outputs.values() if (place := steps.made(t)) is not None]
        found = []
        for changed in variants:
            other = self._steps(keep=True)
            self._run(changed, within=other.recording())
            found.append(changes(steps.steps, other.steps))
        return steps.steps, last, found

    def _steps(self, **options: bool) -> Steps:
        return Steps(self._model, self._deadline, _Questions._run.__code__, **options)

    def _bytes_of_steps(self) -> int:
        total = 0
        for node in self._graph.calls_in_order:
            shape = self._graph.operation(node).shape
            if shape is not None and shape.dtype.is_floating_point:
                total += torch.Size(shape.dims).numel() * shape.dtype.itemsize
        return 4 * total * self._samples // self._before

    # ------------------------------------------------------------------ later positions

    def _sequence(self, base: Outputs, axes: dict[str, int]) -> _Sequence | None:
        """The input that goes along with outputs position by position, if there is one."""
        for slot in self._varying:
            rank = 2 if slot.is_ids else 3
            if slot.axis != 0 or slot.value.dim() != rank or slot.value.shape[1] < 4:
                continue
            length = slot.value.shape[1]
            outputs = [
                name
                for name, axis in axes.items()
                if axis == 0 and base[name].dim() == 3 and base[name].shape[1] == length
            ]
            if outputs:  # what follows the first are inner states, such as an encoder's
                return _Sequence(slot, outputs[0], length // 2)
        return None

    def _leak(
        self, sequence: _Sequence, gradients: dict[str, Tensor], watch: _Watch, base: Outputs
    ) -> Leak | None:
        slot, positions = sequence.slot, sequence.positions
        gradient = gradients.get(slot.name)
        if gradient is None or gradient.dim() < 2 or gradient.shape[:2] != slot.value.shape[:2]:
            return None
        early = float(gradient[_OWN, :positions].sum())
        late = float(gradient[_OWN, positions:].sum())
        if late <= _LEAST_GRADIENT * (early + late) or early + late == 0:
            return None
        causal, free = self._first_attentions(sequence, watch)
        shift, spot = None, None
        # Whoever computes a cross entropy over the sequence may ask for the next token.
        if causal or any(True for _ in self._graph.calls("cross_entropy", "nll_loss")):
            shift, spot = self._confirmed_leak(sequence, base)
        return Leak(slot.name, positions, late / (early + late), shift, causal, free, spot)

    def _confirmed_leak(self, sequence: _Sequence, base: Outputs) -> tuple[float, Spot | None]:
        """Change the later positions of all samples, and find where earlier ones move first."""
        slot, first = sequence.slot, sequence.positions
        length = slot.value.shape[1]
        changed, moved = self._run_with([slot], range(first, length), axis=1)
        output, other = base[sequence.output], moved.get(sequence.output)
        if other is None or other.shape != output.shape:
            return 0.0, None
        shift = _distance(output[:, :first], other[:, :first])
        if shift <= _MOVED:
            return shift, None
        traced = self._trace([changed])
        if traced is None:
            return shift, None
        steps, last, (late,) = traced
        relevant = ancestors(steps, last)
        for place, masks in enumerate(late):
            if place in relevant and masks and any(_leaks(m, first, length) for m in masks):
                return shift, spot_of(steps[place], self._graph, nodes_by_key(self._graph))
        return shift, None

    def _first_attentions(
        self, sequence: _Sequence, watch: _Watch
    ) -> tuple[tuple[Spot, ...], tuple[Spot, ...]]:
        """The attention that the input reaches first, with a triangular mask and without.

        None where it does not stand in one stream with the output: behind a cross-attention an
        encoder's input meets the decoder's masks, which say nothing of it.
        """
        nodes = nodes_by_key(self._graph)
        known = {
            nodes.get((attention.path, attention.name, attention.number)): attention
            for attention in watch.attentions
        }
        stack = [
            n for n in self._graph.nodes if n.op == "placeholder" and n.target == sequence.slot.name
        ]
        seen = set(stack)
        reached: list[Node] = []
        while stack:
            for user in stack.pop().users:
                if user in seen:
                    continue
                seen.add(user)
                if self._is_attention(user):
                    reached.append(user)
                else:
                    stack.append(user)
        last = self._attentions_before(self._captured_outputs().get(sequence.output))
        if not set(reached) <= last:
            return (), ()  # an encoder: what it makes reaches the outputs through another attention
        spots: dict[bool, list[Spot]] = {True: [], False: []}
        for node in reached:
            attention = known.get(node)
            if attention is not None:
                spots[attention.causal].append(_spot_of_node(self._graph, node))
        return tuple(spots[True]), tuple(spots[False])

    def _attentions_before(self, output: Node | None) -> set[Node]:
        """The attention from which the output can be reached without passing another."""
        stack = [] if output is None else [output]
        seen = set(stack)
        found: set[Node] = set()
        while stack:
            node = stack.pop()
            if self._is_attention(node):
                found.add(node)
                continue
            fresh = [source for source in node.all_input_nodes if source not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        return found

    def _is_attention(self, node: Node) -> bool:
        dims = self._graph.shape(node)
        name = self._graph.name(node)
        return name in _ATTENTION and (name != "softmax" or (dims is not None and len(dims) > 2))

    # ------------------------------------------------------------------ inputs without effect

    def _unused(self, base: Outputs, gradients: dict[str, Tensor]) -> Iterator[Unused]:
        """Inputs whose gradient is zero, asked again in other ways."""
        asked = 0
        for slot in self._varying:
            gradient = gradients.get(slot.name)
            if gradient is not None and bool(gradient.any()):
                yield from self._unused_features(slot, gradient, base)
                continue
            asked += 1
            if asked > _MOST_ASKED:
                return
            changed = {slot.name: _replaced(slot, range(self._samples), self._generator)}
            if self._has_no_effect(changed, base):
                yield Unused(slot.name, self._placeholder(slot), tuple(slot.value.shape))

    def _unused_features(self, slot: _Slot, gradient: Tensor, base: Outputs) -> Iterator[Unused]:
        """Columns of a table, or channels of an image, without any gradient."""
        if (
            slot.is_ids
            or slot.axis != 0
            or slot.value.dim() not in (2, 4)
            or slot.value.shape[1] < 2
        ):
            return
        own = gradient[_OWN].reshape(slot.value.shape[1], -1).sum(1)
        silent = (own == 0).nonzero().flatten().tolist()
        if not silent:
            return
        value = slot.value.clone()
        value[:, silent] = _replaced(slot, range(self._samples), self._generator)[:, silent] + 0.1
        if self._has_no_effect({slot.name: value}, base):
            yield Unused(
                slot.name, self._placeholder(slot), tuple(slot.value.shape), 1, tuple(silent)
            )

    def _placeholder(self, slot: _Slot) -> Node | None:
        return next(
            (n for n in self._graph.nodes if n.op == "placeholder" and n.target == slot.name), None
        )

    def _has_no_effect(self, changed: Mapping[str, Tensor], base: Outputs) -> bool:
        """In eval mode; and in train mode, on another seed and with no weight exactly zero."""
        try:
            if _differ(base, self._run(changed)):
                return False
            with self._awake():
                self._model.train()
                seed = self._seed + _ANOTHER_SEED
                return not _differ(self._run(seed=seed), self._run(changed, seed=seed))
        except FactUnavailable:
            raise
        except Exception:  # lengths that no longer fit, labels out of range
            return False
        finally:
            self._model.eval()

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        """Parameters that are all zero get small values, as after a step of training."""
        asleep = [
            (parameter, parameter.detach().clone())
            for parameter in self._model.parameters()
            if parameter.is_floating_point() and parameter.numel() and not bool(parameter.any())
        ]
        with torch.no_grad():
            for parameter, _ in asleep:
                noise = torch.randn(parameter.shape, generator=self._generator)
                parameter.copy_(0.05 * noise)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in asleep:
                    parameter.copy_(before)

    # ------------------------------------------------------------------ constant outputs

    def _constant(self, base: Outputs, axes: dict[str, int]) -> Constant | None:
        captured = self._captured_outputs()
        names = [
            name
            for name in axes
            if name in captured and not self._graph.is_constant(captured[name])
        ]
        if not names or not self._varying or any(True for _ in self._graph.calls(*_CHOICES)):
            return None
        spreads = [_spread(base[name], axes[name]) for name in names]
        if any(spread is None or spread > _MOVED for spread in spreads):
            return None
        try:
            with self._awake():
                if any((_spread(t, axes[n]) or 0) > _MOVED for n, t in self._run().items()
                       if n in names):  # fmt: skip
                    return None  # zero weights: what they do is another story
            for module in self._model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            others = self._run(seed=self._seed + _ANOTHER_SEED)
        finally:
            self._model.eval()
        again = [_spread(others[name], axes[name]) for name in names if name in others]
        if not again or any(spread is None or spread > _SAME for spread in again):
            return None
        scale = max(float(base[name].detach().abs().max()) for name in names)
        return Constant(max(spread or 0.0 for spread in spreads), scale)

    # ------------------------------------------------------------------ randomness

    def _randomness(self, base: Outputs) -> Randomness | None:
        shift = 0.0
        for draw in range(1, 1 + _DRAWS):  # a rare event needs some tries
            other = self._run(seed=self._seed + draw * _ANOTHER_SEED)
            shift = max((_distance(t, other.get(name)) for name, t in base.items()), default=0.0)
            if shift > _MOVED:
                break
        else:
            return None
        again = self._run()
        if any(_distance(tensor, again.get(name)) > _SAME for name, tensor in base.items()):
            return None  # it is not the generators that make the difference
        steps = self._steps(watch_random=True)
        outputs = self._run(within=steps.recording())
        last = [place for t in outputs.values() if (place := steps.made(t)) is not None]
        relevant = ancestors(steps.steps, last)
        nodes = nodes_by_key(self._graph)
        draws = [
            Draw(spot_of(step, self._graph, nodes), _kind(place, steps.steps))
            for place, step in enumerate(steps.steps)
            if step.draws and place in relevant
        ]
        return Randomness(shift, tuple(draws))


@dataclass(frozen=True)
class _Sequence:
    """An input whose second axis an output keeps, and how many of its positions count as early."""

    slot: _Slot
    output: str
    positions: int


# ---------------------------------------------------------------------- small questions


def _shift(base: Tensor, other: Tensor | None, axis: int) -> float:
    """How far the own index of the axis moved; 0 where it cannot be told."""
    if other is None or other.shape != base.shape:
        return 0.0
    return _distance(base.select(axis, _OWN), other.select(axis, _OWN))


def _distance(base: Tensor, other: Tensor | None) -> float:
    """The largest difference relative to the scale; infinite where the shapes differ."""
    if other is None or other.shape != base.shape:
        return float("inf")
    here, there = _plain(base), _plain(other)
    if not bool(here.isfinite().all() and there.isfinite().all()):
        return 0.0
    scale = float(here.abs().max())
    difference = float((here - there).abs().max())
    return difference / scale if scale else float(difference > 0)


def _differ(base: Outputs, other: Outputs) -> bool:
    if base.keys() != other.keys():
        return True
    return any(
        tensor.shape != other[name].shape
        or not torch.equal(_plain(tensor).nan_to_num(), _plain(other[name]).nan_to_num())
        for name, tensor in base.items()
    )


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _spread(tensor: Tensor, axis: int) -> float | None:
    """The largest difference between samples relative to the scale; None for NaN and infinity."""
    flat = _plain(tensor).double()
    if not bool(flat.isfinite().all()):
        return None
    scale = float(flat.abs().max())
    spread = float((flat - flat.mean(axis, keepdim=True)).abs().max())
    return spread / scale if scale else 0.0


def _both(by_others: list[Tensor] | None, by_own: list[Tensor] | None) -> bool:
    """Whether some element depends on the own sample and on another one."""
    pairs = zip(by_others or (), by_own or (), strict=False)
    return any(bool((there & here).any()) for there, here in pairs)


def _is_lost(by_others: list[Tensor] | None, by_own: list[Tensor] | None) -> bool:
    """Whether no axis keeps what depends on the own sample apart from what depends on the others."""
    for there, here in zip(by_others or (), by_own or (), strict=False):
        if not bool(there.any()) or not bool(here.any()):
            continue
        if all(bool((along(there, axis) & along(here, axis)).any()) for axis in range(there.dim())):
            return True
    return False


def _leaks(changed: Tensor, first: int, length: int) -> bool:
    """Whether an element changed that belongs to early positions alone, queries as well as keys."""
    axes = [axis for axis, size in enumerate(changed.shape) if size == length]
    for axis in axes:
        changed = changed.narrow(axis, 0, first)
    return bool(axes) and bool(changed.any())


def _spot_of_node(graph: Graph, node: Node) -> Spot:
    operation = graph.operation(node)
    return Spot(operation.name, operation.module, graph.label(node), graph.place(node), node)


_THRESHOLDS: Final = frozenset("lt le gt ge floor floor_divide ceil round bernoulli".split())
_MASK_ONLY: Final = (
    ops.REARRANGEMENTS | _THRESHOLDS | {"div", "add", "sub", "logical_not", "invert"}
)


def _kind(place: int, steps: Sequence[Step]) -> str:
    """What a draw is for: dropout, a mask of constant probability on the data, or noise."""
    step = steps[place]
    if step.name in ops.DROPOUTS or step.name in ops.RECURRENT or step.name in ops.ATTENTION:
        return "dropout"
    masks = {place} if step.name == "bernoulli" and not _has_data(step, steps) else set()
    drawn = {place}
    for number in range(place + 1, len(steps)):
        user = steps[number]
        own = [operand for operand in user.operands if operand in drawn or operand in masks]
        if not own:
            continue
        others = [operand for operand in user.operands if operand not in own]
        if user.name == "mul" and others and any(operand in masks for operand in own):
            return "mask"
        if others or user.name not in _MASK_ONLY:
            if user.name == "mul" and not others:
                drawn.add(number)
            continue
        is_mask = user.name in _THRESHOLDS or any(operand in masks for operand in own)
        (masks if is_mask else drawn).add(number)
    return "noise"


def _has_data(step: Step, steps: Sequence[Step]) -> bool:
    """Whether the probability itself was computed from other values."""
    return any(steps[operand].operands for operand in step.operands)
