"""Change a model's inputs one at a time on real weights and see which outputs move.

Comes in: a model, its inputs and the captured graph. Goes out: an `Influence`. Two forwards and one
backward with three samples in eval mode answer all the questions of a sound model: whether one sample's
output depends on another's input, later positions reach earlier ones, an input has no effect, all
samples get the same output, two passes differ. What looks wrong is asked again in another way, and only
then run step by step to find the line. The model and the random states are as before afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from trainlint import ops
from trainlint.capture.batches import batch_size
from trainlint.capture.inputs import Inputs
from trainlint.engine import FactUnavailable
from trainlint.graph import Graph
from trainlint.measure.attention import CROSS_ENTROPIES, Watch
from trainlint.measure.influence import (
    Alike,
    Constant,
    Draw,
    Influence,
    Leak,
    Mixing,
    Randomness,
    Spot,
)
from trainlint.measure.locating import ROUNDING, MixingRun, where_leaks, where_lost
from trainlint.measure.pulse import affordable_batch
from trainlint.measure.runs import (
    ANOTHER_SEED,
    OWN,
    Outputs,
    Runs,
    distance,
    own_shift,
    plain,
    sample_spread,
)
from trainlint.measure.sequences import (
    SequenceInput,
    first_attentions,
    judged_sequence,
    sequence_of,
)
from trainlint.measure.steps import INPUT, Step, ancestors, nodes_by_key, spot_of
from trainlint.measure.unused import unused_inputs
from trainlint.preserve import preserved, unchanged_weights

# The largest shift that regrouped sums made in a sound model is 9e-8 of the scale.
_MOVED: Final = 1e-5
_LEAST_GRADIENT: Final = 1e-6
_SAME: Final = 1e-7
_DRAWS: Final = 6
# They turn many inputs into one answer by design.
_CHOICES: Final = ("argmin", "argmax", "round", "sign", "searchsorted", "bucketize", "multinomial")


def influence(
    model: nn.Module,
    inputs: Inputs,
    graph: Graph,
    *,
    seed: int = 0,
    asked: frozenset[str] = frozenset(),
) -> Influence:
    """Measure what influences what, in eval mode with three distinct samples.

    `asked` are arguments of forward whose next tokens a loss outside of the model asks for. Raises
    `FactUnavailable` where the model has no values, takes too long, or does not run.
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
            return _Questions(Runs(model, inputs, graph, seed), asked).answers()
        except FactUnavailable:
            raise
        except Exception as error:
            message = str(error).strip().partition("\n")[0]
            raise FactUnavailable(
                f"a real pass in eval mode raised {type(error).__name__}: {message}"
            ) from None


# ---------------------------------------------------------------------- the questions


class _Questions:
    """What is asked of one model. `asked` are the arguments whose next tokens its loss asks for."""

    def __init__(self, runs: Runs, asked: frozenset[str] = frozenset()) -> None:
        self._runs = runs
        self._asked = asked

    def answers(self) -> Influence:
        """All of them."""
        self._runs.switch_to_eval()
        leaves, watch, (base, drawn) = self._runs.first_pass()
        self._drawn_to = self._runs.drawn_to
        axes = self._runs.batch_axes(base)
        gradients, leak = self._gradients(leaves, watch, base, axes)
        return Influence(
            batch=self._runs.samples,
            given=self._runs.inputs.given,
            mixing=self._mixing(base, axes, gradients),
            leak=leak,
            unused=tuple(unused_inputs(self._runs, base, gradients)),
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
        sequence = judged_sequence(self._runs, watch) or sequence_of(
            self._runs, base, axes, self._asked
        )
        terms = []
        for own in self._own_results(sequence, watch, base, axes):
            if not own.requires_grad:
                continue
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

    def _own_results(
        self, sequence: SequenceInput | None, watch: Watch, base: Outputs, axes: dict[str, int]
    ) -> list[Tensor]:
        """The own sample's outputs; of a sequence, its early positions."""
        if sequence is None:
            return [base[name].select(axis, OWN) for name, axis in axes.items()]
        results = sequence.results(base, watch.judged)
        return [] if results is None else [results[OWN, : sequence.positions]]

    # ------------------------------------------------------------------ samples that mix

    def _mixing(
        self, base: Outputs, axes: dict[str, int], gradients: dict[str, Tensor]
    ) -> Mixing | None:
        if not axes or not self._runs.samplewise or self._indexes_samples():
            return None
        if any(name not in axes and tensor.dim() for name, tensor in base.items()):
            return None  # an output for all of them: a set, or a bag of instances
        others = [row for row in range(self._runs.samples) if row != OWN]
        base_drawn_to = self._drawn_to
        changed, moved = self._runs.run_with(self._runs.samplewise, others)
        drawn_to = self._runs.drawn_to
        shift = max(own_shift(base[n], moved.get(n), axis) for n, axis in axes.items())
        if shift <= _MOVED:
            return None
        again = self._runs.run()
        if max(own_shift(base[name], again.get(name), axis) for name, axis in axes.items()) > _SAME:
            return None  # it differs by itself: state, or kernels that sum in any order
        gradient = self._share_of_others(gradients)
        if drawn_to != base_drawn_to and (gradient or 0.0) <= _LEAST_GRADIENT:
            return None  # random numbers, as many as the values ask for, and other ones for that
        spot, mixer = self._where_mixed(changed)
        return Mixing(
            shift=shift,
            gradient=gradient,
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
        run = MixingRun(steps, by_others, by_own, self._runs.grown(), self._runs.samples, OWN)
        found = run.located(last)
        if found is None:
            return None, None
        nodes = nodes_by_key(self._runs.graph)
        spot = spot_of(steps[found.place], self._runs.graph, nodes)
        if found.mixer is None or found.mixer == found.place:
            return spot, None if found.mixer is None else spot
        return spot, spot_of(steps[found.mixer], self._runs.graph, nodes)

    # ------------------------------------------------------------------ later positions

    def _leak(
        self, sequence: SequenceInput, gradients: dict[str, Tensor], watch: Watch, base: Outputs
    ) -> Leak | None:
        slot, positions = sequence.slot, sequence.positions
        gradient = gradients.get(slot.name)
        if gradient is None or gradient.dim() < 2 or gradient.shape[:2] != slot.value.shape[:2]:
            return None
        early = float(gradient[OWN, :positions].sum())
        late = float(gradient[OWN, positions:].sum())
        if late <= _LEAST_GRADIENT * (early + late) or early + late == 0:
            return None
        is_target = sequence.output is None or self._runs.parameter(slot) in self._asked
        causal, free = first_attentions(self._runs, sequence, watch)
        shift, spot = None, None
        # The user may have given targets that ask for the next token.
        if causal or is_target or any(True for _ in self._runs.graph.calls(*CROSS_ENTROPIES)):
            shift, spot = self._confirmed_leak(sequence, watch, base)
        share = late / (early + late)
        return Leak(slot.name, positions, share, shift, causal, free, spot, is_target)

    def _confirmed_leak(
        self, sequence: SequenceInput, watch: Watch, base: Outputs
    ) -> tuple[float, Spot | None]:
        """Change the later positions of all samples, and find where earlier ones move first."""
        slot, first = sequence.slot, sequence.positions
        length = slot.value.shape[1]
        changed, moved = self._runs.run_with([slot], range(first, length), axis=1)
        output = sequence.results(base, watch.judged)
        other = sequence.results(moved, self._runs.judged)
        if output is None or other is None or other.shape != output.shape:
            return 0.0, None
        shift = distance(output[:, :first], other[:, :first])
        if shift <= _MOVED:
            return shift, None
        traced = self._runs.trace([changed])
        if traced is None:
            return shift, None
        steps, last, (late,) = traced
        place = where_leaks(steps, last, late, first, length)
        if place is None:
            return shift, None
        return shift, spot_of(steps[place], self._runs.graph, nodes_by_key(self._runs.graph))

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
        with self._runs.awake():
            if any((sample_spread(t, axes[n]) or 0) > _MOVED for n, t in self._runs.run().items()
                   if n in names):  # fmt: skip
                return None  # zero weights: what they do is another story
        others = self._runs.run_with_batch_statistics()
        again = [sample_spread(others[name], axes[name]) for name in names if name in others]
        if not again or any(spread is None or spread > ROUNDING for spread in again):
            return None
        scale = max(float(base[name].detach().abs().max()) for name in names)
        _, moved = self._runs.run_with(self._runs.varying, range(self._runs.samples))
        return Constant(
            spread=max(spread or 0.0 for spread in spreads),
            scale=scale,
            reacts=any(distance(base[name], moved.get(name)) > _MOVED for name in names),
            alike=self._where_alike(),
        )

    def _where_alike(self) -> Alike | None:
        traced = self._runs.trace([])
        if traced is None:
            return None
        steps, last, _ = traced
        lost = where_lost(steps, last, self._runs.grown(), self._runs.samples)
        if lost is None:
            return None
        nodes = nodes_by_key(self._runs.graph)
        source = steps[lost.source]
        values = [plain(value).double() for value in source.values]
        return Alike(
            spot=spot_of(steps[lost.place], self._runs.graph, nodes),
            source=None if source.name == INPUT else spot_of(source, self._runs.graph, nodes),
            before=lost.before,
            after=lost.after,
            low=min(float(value.min()) for value in values),
            high=max(float(value.max()) for value in values),
        )

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
        outputs = self._runs.run(steps=steps)
        last = [place for t in outputs.values() if (place := steps.made(t)) is not None]
        relevant = ancestors(steps.steps, last)
        nodes = nodes_by_key(self._runs.graph)
        draws = [
            Draw(spot_of(step, self._runs.graph, nodes), _kind(place, steps.steps))
            for place, step in enumerate(steps.steps)
            if step.draws and place in relevant
        ]
        return Randomness(shift, tuple(draws))


# ---------------------------------------------------------------------- random numbers


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
