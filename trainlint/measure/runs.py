"""Runs of one model in eval mode on three distinct samples, some of them replaced by others.

Each run is the same but for what was changed: the same seeds, and the same way through PyTorch.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.fx import Node

from trainlint.capture.batches import batch_size, with_batch
from trainlint.capture.inputs import Inputs
from trainlint.engine import FactUnavailable
from trainlint.measure.attention import Judged, Watch
from trainlint.measure.locating import Grown
from trainlint.measure.pulse import on_device_of, seed_generators
from trainlint.measure.samples import MANNERS, Manner, Slot, named, replaced, slots_of
from trainlint.measure.steps import Step, Steps, changes, random_state
from trainlint.preserve import every_root, unchanged_weights
from trainlint.tree import tensors

if TYPE_CHECKING:
    from trainlint.graph import Graph

_SAMPLES: Final = 3
_MOST_SECONDS: Final = 30.0
# Values of every step of three runs, in bytes: above that the line is not looked for.
_MOST_TO_KEEP: Final = 1 << 30
# The first numbers of small seeds are much alike.
ANOTHER_SEED: Final = 123_456_789
_LOOKUPS: Final = ("embedding", "one_hot")
# The sample whose outputs are looked at: the middle one, since a recurrence over the samples reaches only
# later ones.
OWN: Final = 1

Outputs = dict[str, Tensor]


class Runs:
    """The model, its inputs with enough samples, and runs of it.

    `slots` are the tensors of the inputs, `varying` those whose samples can be replaced, `samplewise`
    those of them that can be replaced in some samples and not in others.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, graph: Graph, seed: int, samples: int = _SAMPLES
    ) -> None:
        self.model = model
        self.graph = graph
        self.seed = seed
        self._given = inputs
        self._deadline = time.monotonic() + _MOST_SECONDS
        # Of the last run: what its own losses judged, and where it left the random generators.
        self.judged: list[Judged] = []
        self.drawn_to: Any = None
        self._before = batch_size(inputs) or 0
        self.samples = samples if self._before != samples else samples + 1
        self.generator = torch.Generator().manual_seed(seed + 1)
        resized = with_batch(inputs, self.samples)
        placed = on_device_of(model, resized)
        self.inputs = placed
        self.slots = [self._distinct(slot) for slot in slots_of(inputs, placed)]
        self.varying = [slot for slot in self.slots if slot.can_vary]
        if any(slot.value.dim() > 1 for slot in self.varying):
            # Of lone numbers some are lengths, which fit only the sample that they came with.
            self.samplewise = [
                s for s in self.varying if s.value.dim() != 1 or not s.is_ids or self._is_class(s)
            ]
        else:
            self.samplewise = self.varying

    def _is_class(self, slot: Slot) -> bool:
        """Whether its numbers only choose rows of a table: a user, an item, a label."""
        node = self.placeholder(slot)
        users = [] if node is None else list(node.users)
        return bool(users) and all(self.graph.name(user) in _LOOKUPS for user in users)

    def _distinct(self, slot: Slot) -> Slot:
        """Given samples are repeated where there are too few; all but the first are made others."""
        if not slot.can_vary or (slot.is_ids and slot.value.dim() == 1):
            return slot
        axis = slot.axis or 0
        value = slot.value
        same = [
            row
            for row in range(1, self.samples)
            if torch.equal(value.select(axis, row), value.select(axis, row - 1))
        ]
        if not same:
            return slot
        # Where two given samples differ, the third is made of both: any id may stand in its column alone.
        manner: Manner = "crossed" if len(same) < self.samples - 1 else "turned"
        return Slot(slot.name, replaced(slot, same, self.generator, manner=manner), slot.axis)

    def run(
        self,
        changed: Mapping[str, Tensor] | None = None,
        *,
        seed: int | None = None,
        watch: Watch | None = None,
        steps: Steps | None = None,
    ) -> Outputs:
        """The floating-point outputs, by name."""
        if time.monotonic() > self._deadline:
            raise FactUnavailable(f"it takes more than {_MOST_SECONDS:g} s")
        values = {slot.name: slot.value for slot in self.slots} | dict(changed or {})
        own: dict[str, Tensor] = {}

        def copied(name: str, _: Tensor) -> Tensor:
            own[name] = values[name].clone()
            return own[name]

        args, kwargs = named(self.inputs, copied)
        self._seed_all(self.seed if seed is None else seed)
        # Always the same kind of run: without a mode PyTorch takes other kernels in eval mode.
        watch = watch or Watch(self.model)
        with watch.watching() if steps is None else steps.recording(own):
            output = self.model(*args, **kwargs)
        self.judged = watch.judged
        self.drawn_to = random_state()
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

    def first_pass(self) -> tuple[dict[str, Tensor], Watch, tuple[Outputs, bool]]:
        """The run that all others are compared with, its inputs as leaves; whether it drew numbers."""
        leaves = {
            slot.name: slot.value.clone().requires_grad_(True)
            for slot in self.varying
            if not slot.is_ids
        }
        try:
            return self._watched_pass(leaves)
        except RuntimeError:  # a forward that writes `out=...` refuses what has a gradient
            return self._watched_pass({})

    def _watched_pass(
        self, leaves: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Watch, tuple[Outputs, bool]]:
        watch = Watch(self.model)
        self._seed_all(self.seed)
        before = random_state()
        outputs = self.run(leaves, watch=watch)
        return leaves, watch, (outputs, before != random_state())

    def batch_axes(self, base: Outputs) -> dict[str, int]:
        """The axis of each output that holds the samples: it differs from the captured output's."""
        captured = self.captured_outputs()
        axes: dict[str, int] = {}
        for name, tensor in base.items():
            node = captured.get(name)
            dims = self.graph.shape(node) if node is not None else None
            if dims is None or len(dims) != tensor.dim():
                continue
            pairs = list(zip(dims, tensor.shape, strict=True))
            differing = [axis for axis, (here, there) in enumerate(pairs) if here != there]
            if len(differing) == 1 and pairs[differing[0]] == (self._before, self.samples):
                axes[name] = differing[0]
        return axes

    def captured_outputs(self) -> dict[str, Node]:
        """The nodes of the outputs in the captured graph, by the same names."""
        last = self.graph.nodes[-1]
        known = last.args[0] if last.op == "output" and last.args else {}
        return {
            name: node
            for name, node in (known.items() if isinstance(known, dict) else ())
            if isinstance(node, Node)
        }

    def slot(self, name: str) -> Slot:
        """The input of that name."""
        return next(slot for slot in self.slots if slot.name == name)

    def placeholder(self, slot: Slot) -> Node | None:
        """The input's node in the captured graph."""
        return next(
            (n for n in self.graph.nodes if n.op == "placeholder" and n.target == slot.name), None
        )

    def parameter(self, slot: Slot) -> str:
        """The argument of forward that the input is, or a part of it; its name where that is not known."""
        match = re.match(r"input_(\d+)", slot.name)
        names = list(inspect.signature(self.model.forward).parameters)
        place = int(match[1]) if match else len(names)
        return names[place] if place < len(names) else slot.name

    def run_with(
        self, slots: Sequence[Slot], rows: Sequence[int], axis: int | None = None
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Replace these samples; where other ids are refused, by what is nearer to those that are there."""
        problem: Exception | None = None
        for manner in MANNERS:
            changed = {
                slot.name: replaced(slot, rows, self.generator, axis=axis, manner=manner)
                for slot in slots
            }
            try:
                return changed, self.run(changed)
            except FactUnavailable:
                raise
            except Exception as error:
                problem = error
        assert problem is not None
        raise problem

    def trace(
        self, variants: Sequence[Mapping[str, Tensor]]
    ) -> tuple[list[Step], list[int], list[list[Any]]] | None:
        """The steps of the first run, those that made its outputs, and what each variant changes."""
        if self._bytes_of_steps() > _MOST_TO_KEEP:
            return None
        steps = self.steps(keep=True)
        outputs = self.run(steps=steps)
        last = [place for t in outputs.values() if (place := steps.made(t)) is not None]
        found = []
        for changed in variants:
            other = self.steps(keep=True)
            self.run(changed, steps=other)
            found.append(changes(steps.steps, other.steps))
        return steps.steps, last, found

    def grown(self) -> Grown:
        """The steps of a run with one more sample; none where the model refuses that."""
        other = Runs(self.model, self._given, self.graph, self.seed, self.samples + 1)
        steps = other.steps(keep=True)
        with contextlib.suppress(Exception):
            other.run(steps=steps)
        return Grown(steps.steps, other.samples)

    def steps(self, **options: bool) -> Steps:
        """A recorder for one run."""
        return Steps(self.model, self._deadline, Runs.run.__code__, **options)

    def _bytes_of_steps(self) -> int:
        total = 0
        for node in self.graph.calls_in_order:
            shape = self.graph.operation(node).shape
            if shape is not None and shape.dtype.is_floating_point:
                total += torch.Size(shape.dims).numel() * shape.dtype.itemsize
        return 4 * total * self.samples // self._before

    def switch_to_eval(self) -> None:
        """Layers in plain lists as well: statistics of the batch in them are another fault than mixing."""
        for root in every_root(self.model):
            root.eval()

    def run_awake(self, changed: Mapping[str, Tensor] | None = None) -> Outputs:
        """In train mode, on another seed, with no weight exactly zero; what it writes is taken back."""
        with unchanged_weights(self.model), self.awake():
            self.model.train()
            try:
                return self.run(changed, seed=self.seed + ANOTHER_SEED)
            finally:
                self.switch_to_eval()

    def run_with_batch_statistics(self) -> Outputs:
        """On another seed with BatchNorm alone in train mode; what it writes is taken back."""
        with unchanged_weights(self.model):
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            try:
                return self.run(seed=self.seed + ANOTHER_SEED)
            finally:
                self.switch_to_eval()

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Parameters that are all zero get small values, as after a step of training."""
        asleep = [
            (parameter, parameter.detach().clone())
            for parameter in self.model.parameters()
            if parameter.is_floating_point() and parameter.numel() and not bool(parameter.any())
        ]
        generator = torch.Generator().manual_seed(self.seed + 2)
        with torch.no_grad():
            for parameter, _ in asleep:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.05 * noise)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in asleep:
                    parameter.copy_(before)


# ---------------------------------------------------------------------- comparing outputs


def own_shift(base: Tensor, other: Tensor | None, axis: int) -> float:
    """How far the own index of the axis moved; 0 where it cannot be told."""
    if other is None or other.shape != base.shape:
        return 0.0
    return distance(base.select(axis, OWN), other.select(axis, OWN))


def distance(base: Tensor, other: Tensor | None) -> float:
    """The largest difference relative to the scale; infinite where the shapes differ."""
    if other is None or other.shape != base.shape:
        return float("inf")
    here, there = plain(base), plain(other)
    if not bool(here.isfinite().all() and there.isfinite().all()):
        return 0.0
    scale = float(here.abs().max())
    difference = float((here - there).abs().max())
    return difference / scale if scale else float(difference > 0)


def differ(base: Outputs, other: Outputs) -> bool:
    """Whether anything at all differs; NaN equals NaN."""
    if base.keys() != other.keys():
        return True
    return any(
        tensor.shape != other[name].shape
        or not torch.equal(plain(tensor).nan_to_num(), plain(other[name]).nan_to_num())
        for name, tensor in base.items()
    )


def plain(tensor: Tensor) -> Tensor:
    """The values without their gradient, complex ones as pairs."""
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def sample_spread(tensor: Tensor, axis: int) -> float | None:
    """The largest difference between samples relative to the scale; None for NaN and infinity."""
    flat = plain(tensor).double()
    if not bool(flat.isfinite().all()):
        return None
    scale = float(flat.abs().max())
    spread = float((flat - flat.mean(axis, keepdim=True)).abs().max())
    return spread / scale if scale else 0.0
