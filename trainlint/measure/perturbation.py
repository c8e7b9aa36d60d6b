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
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from trainlint import ops
from trainlint.capture.inputs import Inputs, batch_size
from trainlint.engine import FactUnavailable
from trainlint.graph import Graph
from trainlint.measure.attention import ATTENTION, CROSS_ENTROPIES, Judged, Watch
from trainlint.measure.influence import (
    Alike,
    Constant,
    Draw,
    Influence,
    Leak,
    Mixing,
    Randomness,
    Spot,
    Unused,
)
from trainlint.measure.locating import ROUNDING, MixingRun, where_leaks, where_lost
from trainlint.measure.pulse import affordable_batch
from trainlint.measure.runs import (
    ANOTHER_SEED,
    OWN,
    Outputs,
    Runs,
    differ,
    distance,
    own_shift,
    plain,
    sample_spread,
)
from trainlint.measure.samples import Slot, flipped, replaced
from trainlint.measure.steps import INPUT, Step, ancestors, nodes_by_key, spot_of
from trainlint.preserve import preserved, unchanged_weights

if TYPE_CHECKING:
    from torch.fx import Node

# The largest shift that regrouped sums made in a sound model is 9e-8 of the scale.
_MOVED: Final = 1e-5
_LEAST_GRADIENT: Final = 1e-6
_SAME: Final = 1e-7
_MOST_ASKED: Final = 4
_DRAWS: Final = 6
_FEWEST_POSITIONS: Final = 4
# They turn many inputs into one answer by design.
_CHOICES: Final = ("argmin", "argmax", "round", "sign", "searchsorted", "bucketize", "multinomial")


def influence(
    model: nn.Module, inputs: Inputs, graph: Graph, *, seed: int = 0, is_judged: bool = False
) -> Influence:
    """Measure what influences what, in eval mode with three distinct samples.

    `is_judged` tells that a cross entropy outside of the model judges its outputs. Raises
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
            is_judged = is_judged or any(True for _ in graph.calls(*CROSS_ENTROPIES))
            return _Questions(Runs(model, inputs, graph, seed), is_judged=is_judged).answers()
        except FactUnavailable:
            raise
        except Exception as error:
            message = str(error).strip().partition("\n")[0]
            raise FactUnavailable(
                f"a real pass in eval mode raised {type(error).__name__}: {message}"
            ) from None


# ---------------------------------------------------------------------- the questions


class _Questions:
    """What is asked of one model. `is_judged` tells whether a cross entropy may judge its outputs."""

    def __init__(self, runs: Runs, *, is_judged: bool) -> None:
        self._runs = runs
        self._is_judged = is_judged

    def answers(self) -> Influence:
        """All of them."""
        self._runs.model.eval()
        leaves, watch, (base, drawn) = self._runs.first_pass()
        self._drawn_to = self._runs.drawn_to
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
        sequence = self._judged_sequence(watch) or self._sequence(base, axes)
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
        self, sequence: _Sequence | None, watch: Watch, base: Outputs, axes: dict[str, int]
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
                return _Sequence(slot, length // 2, outputs[0])
        return None

    def _judged_sequence(self, watch: Watch) -> _Sequence | None:
        """Tokens whose next ones a cross entropy of the model's own asks for."""
        for slot in self._runs.varying:
            if not slot.is_ids or slot.axis != 0 or slot.value.dim() != 2:
                continue
            for number, judged in enumerate(watch.judged):
                for time_first in (False, True):
                    sequence = _Sequence(
                        slot, slot.value.shape[1] // 2, None, number, time_first=time_first
                    )
                    if _asks_for_next(slot.value, sequence.targets(judged.target)):
                        results = sequence.results({}, watch.judged)
                        return None if results is None else sequence
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
        is_target = sequence.output is None
        causal, free = ((), ()) if is_target else self._first_attentions(sequence, watch)
        shift, spot = None, None
        # Who judges by a cross entropy may ask for the next token.
        if causal or is_target or self._is_judged:
            shift, spot = self._confirmed_leak(sequence, watch, base)
        share = late / (early + late)
        return Leak(slot.name, positions, share, shift, causal, free, spot, is_target)

    def _confirmed_leak(
        self, sequence: _Sequence, watch: Watch, base: Outputs
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
        last = self._attentions_before(self._runs.captured_outputs().get(sequence.output or ""))
        if not set(reached) <= last:
            return (), ()  # an encoder: what it makes reaches the outputs through another attention
        spots: dict[bool, list[Spot]] = {True: [], False: []}
        for node in reached:
            attention = known.get(node)
            if attention is not None and (
                attention.causal or self._looks_along(sequence.slot, node)
            ):
                spots[attention.causal].append(_spot_of_node(self._runs.graph, node))
        return tuple(spots[True]), tuple(spots[False])

    def _looks_along(self, slot: Slot, node: Node) -> bool:
        """Whether the attention's keys come from this input too: no cross-attention, no mere weights."""
        graph = self._runs.graph
        if graph.name(node) == "softmax":
            dims = graph.shape(node) or ()
            return dims[-2:] == (slot.value.shape[1],) * 2
        key = node.kwargs.get("key", node.args[1] if len(node.args) > 1 else None)
        stack, seen = [key], {key}
        while stack:
            source: Any = stack.pop()
            if getattr(source, "op", "") == "placeholder" and source.target == slot.name:
                return True
            fresh = [n for n in getattr(source, "all_input_nodes", ()) if n not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        return False

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

        If none has an effect, the outputs are constant, and only an input that leads nowhere while
        another one goes on is to blame.
        """
        silent: list[Slot] = []
        for slot in self._runs.varying:
            gradient = gradients.get(slot.name)
            if gradient is not None and bool(gradient.any()):
                yield from self._unused_parts(slot, gradient, base)
            else:
                silent.append(slot)
        found = [slot for slot in silent[:_MOST_ASKED] if self._is_unused(slot, base)]
        if len(found) == len(self._runs.varying):
            cut = [slot for slot in found if not self._leads_on(slot)]
            found = cut if len(cut) < len(found) else []
        for slot in (*found, *(s for s in self._tables() if self._is_unused(s, base))):
            yield Unused(slot.name, self._runs.placeholder(slot), tuple(slot.value.shape))
        for slot in silent:
            if slot not in found and slot.is_ids and slot.name not in gradients:
                yield from self._unused_ends(slot, base)

    def _tables(self) -> Iterator[Slot]:
        """Floats of zeros and ones that no name calls a mask: the edges of a graph, a few-hot code."""
        for slot in self._runs.slots:
            is_table = slot.is_mask and not slot.is_ids and slot.value.dim() > 1
            if is_table and slot.axis == 0 and "mask" not in self._runs.parameter(slot):
                yield slot

    def _leads_on(self, slot: Slot) -> bool:
        """Whether more than the input's shape reaches an output of the captured graph."""
        graph = self._runs.graph
        stack: list[Node] = list(graph.outputs)
        seen = set(stack)
        while stack:
            node = stack.pop()
            if node.op == "placeholder" and node.target == slot.name:
                return True
            if graph.name(node) not in ops.SHAPE_ONLY:
                fresh = [source for source in node.all_input_nodes if source not in seen]
                seen.update(fresh)
                stack.extend(fresh)
        return False

    def _is_unused(self, slot: Slot, base: Outputs) -> bool:
        everybody = range(self._runs.samples)
        if slot.is_mask:
            value = flipped(slot, self._runs.generator)
        else:
            value = replaced(slot, everybody, self._runs.generator)
        return self._has_no_effect({slot.name: value}, base)

    def _unused_parts(self, slot: Slot, gradient: Tensor, base: Outputs) -> Iterator[Unused]:
        """Columns of a table, channels of an image, features or positions of a sequence.

        Of positions only half of them or more: a stride leaves out the border.
        """
        dims = slot.value.shape
        if slot.axis != 0 or len(dims) < 2 or gradient.shape[: len(dims)] != dims:
            return
        for axis in (1, 2) if len(dims) == 3 else (1,):
            others = [other for other in range(gradient.dim() - 1) if other != axis - 1]
            own = gradient[OWN].sum(others) if others else gradient[OWN]
            silent = (own == 0).nonzero().flatten().tolist()
            along = self._holds_positions(slot, axis)
            if not silent or (along and 2 * len(silent) < dims[axis]):
                continue
            if self._has_no_part(slot, axis, silent, base):
                yield self._part(slot, axis, silent, along=along)

    def _unused_ends(self, slot: Slot, base: Outputs) -> Iterator[Unused]:
        """All tokens but the first or the last ones, where no gradient tells."""
        if slot.axis != 0 or slot.value.dim() != 2 or slot.value.shape[1] < _FEWEST_POSITIONS:
            return
        length = slot.value.shape[1]
        for half, most in (
            (range(length // 2, length), range(1, length)),
            (range(length - length // 2), range(length - 1)),
        ):
            if self._has_no_part(slot, 1, half, base):
                part = most if self._has_no_part(slot, 1, most, base) else half
                yield self._part(slot, 1, part, along=True)
                return

    def _part(self, slot: Slot, axis: int, places: Sequence[int], *, along: bool) -> Unused:
        node, dims = self._runs.placeholder(slot), tuple(slot.value.shape)
        features, positions = ((), tuple(places)) if along else (tuple(places), ())
        return Unused(slot.name, node, dims, axis, features, positions)

    def _has_no_part(self, slot: Slot, axis: int, places: Sequence[int], base: Outputs) -> bool:
        """Whether these indices of the axis change nothing, neither a little nor a lot."""
        fresh = replaced(slot, range(self._runs.samples), self._runs.generator)
        index = torch.tensor(list(places), device=fresh.device)
        new = fresh.index_select(axis, index)
        # Behind a maximum only what stands out has an effect.
        variants = [new] if slot.is_ids else [new + 0.1, -4 * new]
        return all(
            self._has_no_effect({slot.name: slot.value.index_copy(axis, index, variant)}, base)
            for variant in variants
        )

    def _holds_positions(self, slot: Slot, axis: int) -> bool:
        """Whether the axis is one of time: it is not that long that a layer takes as its features."""
        if slot.is_ids:
            return True
        if slot.value.dim() != 3:
            return False
        widths = {
            parameter.shape[1] for parameter in self._runs.model.parameters() if parameter.dim() > 1
        }
        here, there = slot.value.shape[axis], slot.value.shape[3 - axis]
        return not (here in widths and (there not in widths or axis == 2))

    def _has_no_effect(self, changed: Mapping[str, Tensor], base: Outputs) -> bool:
        """In eval mode; and in train mode, on another seed and with no weight exactly zero."""
        try:
            if differ(base, self._runs.run(changed)):
                return False
            return not differ(self._runs.run_awake(), self._runs.run_awake(changed))
        except FactUnavailable:
            raise
        except Exception:  # lengths that no longer fit, labels out of range
            return False

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


@dataclass(frozen=True)
class _Sequence:
    """An input whose second axis results keep, and how many of its positions count as early.

    The results are an output, or the scores that the model's own cross entropy number `judged` judges.
    """

    slot: Slot
    positions: int
    output: str | None
    judged: int = 0
    time_first: bool = False

    def results(self, outputs: Outputs, judged: Sequence[Judged]) -> Tensor | None:
        """The results with samples on the first axis and positions on the second."""
        if self.output is not None:
            return outputs.get(self.output)
        if self.judged >= len(judged):
            return None
        scores, target = judged[self.judged].scores, judged[self.judged].target
        if scores.dim() > 2:  # the classes stand on axis 1
            scores = scores.movedim(1, -1)
        if scores.shape[:-1] != target.shape:
            return None
        return self._by_sample(scores.flatten(0, -2))

    def targets(self, target: Tensor) -> Tensor | None:
        """The targets, one row for each sample."""
        return None if target.is_floating_point() else self._by_sample(target.flatten())

    def _by_sample(self, rows: Tensor) -> Tensor | None:
        samples = self.slot.value.shape[0]
        if not rows.shape[0] or rows.shape[0] % samples:
            return None
        if self.time_first:
            return rows.reshape(-1, samples, *rows.shape[1:]).transpose(0, 1)
        return rows.reshape(samples, -1, *rows.shape[1:])


# ---------------------------------------------------------------------- small questions


def _asks_for_next(ids: Tensor, targets: Tensor | None) -> bool:
    """Whether the targets are the same tokens one step later, where they are not left out.

    One sample is compared, since others may have been made up.
    """
    if targets is None or targets.shape[1] not in (ids.shape[1] - 1, ids.shape[1]):
        return False
    here, later = targets[0, : ids.shape[1] - 1], ids[0, 1:]
    asked = here >= 0
    if int(asked.sum()) < 3 or len(set(ids[0].tolist())) < 3:
        return False
    same = (here == ids[0, :-1]) & asked
    return bool((here == later)[asked].all()) and not bool(same[asked].all())


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
