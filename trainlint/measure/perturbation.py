"""Change a model's inputs one at a time on real weights and see which outputs move.

Comes in: a model, its inputs and the captured graph. Goes out: an `Influence`. Two forwards and one
backward with three samples in eval mode answer all the questions of a sound model: whether one sample's
output depends on another's input, later positions reach earlier ones, an input has no effect, all
samples get the same output, two passes differ. What looks wrong is asked again in another way, and only
then run step by step to find the line. The model and the random states are as before afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from trainlint import ops
from trainlint.capture.inputs import Inputs, batch_size
from trainlint.engine import FactUnavailable
from trainlint.graph import Graph
from trainlint.measure.attention import ATTENTION, Watch
from trainlint.measure.influence import (
    Constant,
    Draw,
    Influence,
    Leak,
    Mixing,
    Randomness,
    Spot,
    Unused,
)
from trainlint.measure.pulse import affordable_batch
from trainlint.measure.runs import (
    ANOTHER_SEED,
    OWN,
    Outputs,
    Runs,
    differ,
    distance,
    own_shift,
    sample_spread,
)
from trainlint.measure.samples import Slot, replaced
from trainlint.measure.steps import Step, along, ancestors, nodes_by_key, spot_of
from trainlint.preserve import preserved, unchanged_weights

if TYPE_CHECKING:
    from torch.fx import Node

# The largest shift that regrouped sums made in a sound model is 9e-8 of the scale.
_MOVED: Final = 1e-5
_LEAST_GRADIENT: Final = 1e-6
_SAME: Final = 1e-7
_MOST_ASKED: Final = 4
_DRAWS: Final = 6
# They turn many inputs into one answer by design.
_CHOICES: Final = ("argmin", "argmax", "round", "sign", "searchsorted", "bucketize", "multinomial")


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
            return _Questions(Runs(model, inputs, graph, seed)).answers()
        except FactUnavailable:
            raise
        except Exception as error:
            message = str(error).strip().partition("\n")[0]
            raise FactUnavailable(
                f"a real pass in eval mode raised {type(error).__name__}: {message}"
            ) from None


# ---------------------------------------------------------------------- the questions


class _Questions:
    """What is asked of one model."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def answers(self) -> Influence:
        """All of them."""
        self._runs.model.eval()
        leaves, watch, (base, drawn) = self._runs.first_pass()
        axes = self._runs.batch_axes(base)
        gradients, leak = self._gradients(leaves, watch, base, axes)
        return Influence(
            batch=self._runs.samples,
            given=self._runs.inputs.given,
            mixing=self._mixing(base, axes, gradients),
            leak=leak,
            unused=tuple(self._unused(base, gradients)),
            constant=self._constant(base, axes),
            randomness=self._randomness(base) if drawn else None,
        )

    # ------------------------------------------------------------------ gradients

    def _gradients(
        self, leaves: dict[str, Tensor], watch: Watch, base: Outputs, axes: dict[str, int]
    ) -> tuple[dict[str, Tensor], Leak | None]:
        """Of a random projection of the own sample's outputs, by each input; and the leak that they show.

        Where outputs go along a sequence of inputs, only those of its first half are projected: then
        one backward answers for the later positions as well.
        """
        targets: dict[str, list[Tensor]] = {name: [leaf] for name, leaf in leaves.items()}
        for ids, result in watch.embedded:
            for slot in self._runs.varying:
                if slot.is_ids and ids.shape == slot.value.shape and torch.equal(ids, slot.value):
                    targets.setdefault(slot.name, []).append(result)
        sequence = self._sequence(base, axes)
        terms = []
        for name, axis in axes.items():
            tensor = base[name]
            if not tensor.requires_grad or (sequence and name != sequence.output):
                continue
            own = tensor.select(axis, OWN)
            own = own[: sequence.positions] if sequence else own
            own = torch.view_as_real(own) if own.is_complex() else own
            cotangent = torch.randn(own.shape, generator=self._runs.generator).to(
                own.device, own.dtype
            )
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
            elif not parts and not self._runs.slot(name).is_ids:
                gradients[name] = torch.zeros_like(self._runs.slot(name).value)
        leak = self._leak(sequence, gradients, watch, base) if sequence else None
        return gradients, leak

    # ------------------------------------------------------------------ samples that mix

    def _mixing(
        self, base: Outputs, axes: dict[str, int], gradients: dict[str, Tensor]
    ) -> Mixing | None:
        if not axes or not self._runs.samplewise or self._indexes_samples():
            return None
        if any(name not in axes and tensor.dim() for name, tensor in base.items()):
            return None  # an output for all of them: a set, or a bag of instances
        others = [row for row in range(self._runs.samples) if row != OWN]
        changed, moved = self._runs.run_with(self._runs.samplewise, others)
        shift = max(own_shift(base[n], moved.get(n), axis) for n, axis in axes.items())
        if shift <= _MOVED:
            return None
        again = self._runs.run()
        if max(own_shift(base[name], again.get(name), axis) for name, axis in axes.items()) > _SAME:
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
            s.axis is None and s.is_ids and s.value.dim() and not s.is_mask
            for s in self._runs.slots
        )

    def _share_of_others(self, gradients: dict[str, Tensor]) -> float | None:
        own = others = 0.0
        for name, gradient in gradients.items():
            slot = self._runs.slot(name)
            axis = slot.axis or 0
            if gradient.dim() <= axis or gradient.shape[axis] != self._runs.samples:
                continue
            by_sample = gradient.transpose(0, axis).flatten(1).sum(1)
            own += float(by_sample[OWN])
            others += float(by_sample.sum() - by_sample[OWN])
        return others / (own + others) if own + others > 0 else None

    def _counts_along_axis_1(self, base: Outputs, axes: dict[str, int]) -> bool:
        """Whether the second axis, in inputs and outputs, holds independent samples too."""
        deep = [slot for slot in self._runs.samplewise if slot.value.dim() > 1]
        lengths = {slot.value.shape[1] for slot in deep}
        if len(lengths) != 1 or any(slot.axis != 0 for slot in deep):
            return False
        length = lengths.pop()
        kept = {
            name: 1
            for name, axis in axes.items()
            if axis == 0 and base[name].dim() > 1 and base[name].shape[1] == length
        }
        if length <= OWN or kept.keys() != axes.keys():
            return False
        try:
            _, moved = self._runs.run_with(
                deep, [row for row in range(length) if row != OWN], axis=1
            )
        except FactUnavailable:
            raise
        except Exception:
            return False
        return all(own_shift(base[name], moved.get(name), 1) <= _MOVED for name in kept)

    def _where_mixed(self, changed: Mapping[str, Tensor]) -> tuple[Spot | None, Spot | None]:
        """The operation that loses track of the samples, and the one that mixes them.

        Two more runs tell for each element whether the own sample or another one changes it.
        """
        traced = self._runs.trace([changed, self._runs.run_with(self._runs.samplewise, [OWN])[0]])
        if traced is None:
            return None, None
        steps, last, (by_others, by_own) = traced
        relevant = ancestors(steps, last)
        count = min(len(by_others), len(by_own))
        mixed = [place for place in range(count) if _both(by_others[place], by_own[place])]
        place = next((p for p in mixed if p in relevant), mixed[0] if mixed else None)
        if place is None:
            return None, None
        nodes = nodes_by_key(self._runs.graph)
        mixer = spot_of(steps[place], self._runs.graph, nodes)
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
        return (mixer if first == place else spot_of(steps[first], self._runs.graph, nodes)), mixer

    # ------------------------------------------------------------------ later positions

    def _sequence(self, base: Outputs, axes: dict[str, int]) -> _Sequence | None:
        """The input that goes along with outputs position by position, if there is one."""
        for slot in self._runs.varying:
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
        self, sequence: _Sequence, gradients: dict[str, Tensor], watch: Watch, base: Outputs
    ) -> Leak | None:
        slot, positions = sequence.slot, sequence.positions
        gradient = gradients.get(slot.name)
        if gradient is None or gradient.dim() < 2 or gradient.shape[:2] != slot.value.shape[:2]:
            return None
        early = float(gradient[OWN, :positions].sum())
        late = float(gradient[OWN, positions:].sum())
        if late <= _LEAST_GRADIENT * (early + late) or early + late == 0:
            return None
        causal, free = self._first_attentions(sequence, watch)
        shift, spot = None, None
        # Whoever computes a cross entropy over the sequence may ask for the next token.
        if causal or any(True for _ in self._runs.graph.calls("cross_entropy", "nll_loss")):
            shift, spot = self._confirmed_leak(sequence, base)
        return Leak(slot.name, positions, late / (early + late), shift, causal, free, spot)

    def _confirmed_leak(self, sequence: _Sequence, base: Outputs) -> tuple[float, Spot | None]:
        """Change the later positions of all samples, and find where earlier ones move first."""
        slot, first = sequence.slot, sequence.positions
        length = slot.value.shape[1]
        changed, moved = self._runs.run_with([slot], range(first, length), axis=1)
        output, other = base[sequence.output], moved.get(sequence.output)
        if other is None or other.shape != output.shape:
            return 0.0, None
        shift = distance(output[:, :first], other[:, :first])
        if shift <= _MOVED:
            return shift, None
        traced = self._runs.trace([changed])
        if traced is None:
            return shift, None
        steps, last, (late,) = traced
        relevant = ancestors(steps, last)
        for place, masks in enumerate(late):
            if place in relevant and masks and any(_leaks(m, first, length) for m in masks):
                return shift, spot_of(
                    steps[place], self._runs.graph, nodes_by_key(self._runs.graph)
                )
        return shift, None

    def _first_attentions(
        self, sequence: _Sequence, watch: Watch
    ) -> tuple[tuple[Spot, ...], tuple[Spot, ...]]:
        """The attention that the input reaches first, with a triangular mask and without.

        None where it does not stand in one stream with the output: behind a cross-attention an
        encoder's input meets the decoder's masks, which say nothing of it.
        """
        nodes = nodes_by_key(self._runs.graph)
        known = {
            nodes.get((attention.path, attention.name, attention.number)): attention
            for attention in watch.attentions
        }
        stack = [
            n
            for n in self._runs.graph.nodes
            if n.op == "placeholder" and n.target == sequence.slot.name
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
        last = self._attentions_before(self._runs.captured_outputs().get(sequence.output))
        if not set(reached) <= last:
            return (), ()  # an encoder: what it makes reaches the outputs through another attention
        spots: dict[bool, list[Spot]] = {True: [], False: []}
        for node in reached:
            attention = known.get(node)
            if attention is not None:
                spots[attention.causal].append(_spot_of_node(self._runs.graph, node))
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
        dims = self._runs.graph.shape(node)
        name = self._runs.graph.name(node)
        return name in ATTENTION and (name != "softmax" or (dims is not None and len(dims) > 2))

    # ------------------------------------------------------------------ inputs without effect

    def _unused(self, base: Outputs, gradients: dict[str, Tensor]) -> Iterator[Unused]:
        """Inputs whose gradient is zero, asked again in other ways.

        If none has an effect, the outputs are constant, and no input is to blame.
        """
        silent: list[Slot] = []
        for slot in self._runs.varying:
            gradient = gradients.get(slot.name)
            if gradient is not None and bool(gradient.any()):
                yield from self._unused_features(slot, gradient, base)
            else:
                silent.append(slot)
        found = [slot for slot in silent[:_MOST_ASKED] if self._is_unused(slot, base)]
        if len(found) < len(self._runs.varying):
            for slot in found:
                yield Unused(slot.name, self._runs.placeholder(slot), tuple(slot.value.shape))

    def _is_unused(self, slot: Slot, base: Outputs) -> bool:
        changed = {slot.name: replaced(slot, range(self._runs.samples), self._runs.generator)}
        return self._has_no_effect(changed, base)

    def _unused_features(self, slot: Slot, gradient: Tensor, base: Outputs) -> Iterator[Unused]:
        """Columns of a table, or channels of an image, without any gradient."""
        if (
            slot.is_ids
            or slot.axis != 0
            or slot.value.dim() not in (2, 4)
            or slot.value.shape[1] < 2
        ):
            return
        own = gradient[OWN].reshape(slot.value.shape[1], -1).sum(1)
        silent = (own == 0).nonzero().flatten().tolist()
        if not silent:
            return
        value = slot.value.clone()
        value[:, silent] = (
            replaced(slot, range(self._runs.samples), self._runs.generator)[:, silent] + 0.1
        )
        if self._has_no_effect({slot.name: value}, base):
            yield Unused(
                slot.name, self._runs.placeholder(slot), tuple(slot.value.shape), 1, tuple(silent)
            )

    def _has_no_effect(self, changed: Mapping[str, Tensor], base: Outputs) -> bool:
        """In eval mode; and in train mode, on another seed and with no weight exactly zero."""
        try:
            if differ(base, self._runs.run(changed)):
                return False
            with self._runs.awake():
                self._runs.model.train()
                seed = self._runs.seed + ANOTHER_SEED
                return not differ(self._runs.run(seed=seed), self._runs.run(changed, seed=seed))
        except FactUnavailable:
            raise
        except Exception:  # lengths that no longer fit, labels out of range
            return False
        finally:
            self._runs.model.eval()

    # ------------------------------------------------------------------ constant outputs

    def _constant(self, base: Outputs, axes: dict[str, int]) -> Constant | None:
        captured = self._runs.captured_outputs()
        names = [
            name
            for name in axes
            if name in captured and not self._runs.graph.is_constant(captured[name])
        ]
        if (
            not names
            or not self._runs.varying
            or any(True for _ in self._runs.graph.calls(*_CHOICES))
        ):
            return None
        spreads = [sample_spread(base[name], axes[name]) for name in names]
        if any(spread is None or spread > _MOVED for spread in spreads):
            return None
        try:
            with self._runs.awake():
                if any((sample_spread(t, axes[n]) or 0) > _MOVED for n, t in self._runs.run().items()
                       if n in names):  # fmt: skip
                    return None  # zero weights: what they do is another story
            for module in self._runs.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            others = self._runs.run(seed=self._runs.seed + ANOTHER_SEED)
        finally:
            self._runs.model.eval()
        again = [sample_spread(others[name], axes[name]) for name in names if name in others]
        if not again or any(spread is None or spread > _SAME for spread in again):
            return None
        scale = max(float(base[name].detach().abs().max()) for name in names)
        return Constant(max(spread or 0.0 for spread in spreads), scale)

    # ------------------------------------------------------------------ randomness

    def _randomness(self, base: Outputs) -> Randomness | None:
        shift = 0.0
        for draw in range(1, 1 + _DRAWS):  # a rare event needs some tries
            other = self._runs.run(seed=self._runs.seed + draw * ANOTHER_SEED)
            shift = max((distance(t, other.get(name)) for name, t in base.items()), default=0.0)
            if shift > _MOVED:
                break
        else:
            return None
        again = self._runs.run()
        if any(distance(tensor, again.get(name)) > _SAME for name, tensor in base.items()):
            return None  # it is not the generators that make the difference
        steps = self._runs.steps(watch_random=True)
        outputs = self._runs.run(within=steps.recording())
        last = [place for t in outputs.values() if (place := steps.made(t)) is not None]
        relevant = ancestors(steps.steps, last)
        nodes = nodes_by_key(self._runs.graph)
        draws = [
            Draw(spot_of(step, self._runs.graph, nodes), _kind(place, steps.steps))
            for place, step in enumerate(steps.steps)
            if step.draws and place in relevant
        ]
        return Randomness(shift, tuple(draws))


@dataclass(frozen=True)
class _Sequence:
    """An input whose second axis an output keeps, and how many of its positions count as early."""

    slot: Slot
    output: str
    positions: int


# ---------------------------------------------------------------------- small questions


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
