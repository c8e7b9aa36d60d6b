"""Inputs that go along with results position by position, and the attention on their way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trainlint.measure.attention import ATTENTION, Judged, Watch
from trainlint.measure.influence import Spot
from trainlint.measure.steps import nodes_by_key

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from trainlint.graph import Graph
    from trainlint.measure.runs import Outputs, Runs
    from trainlint.measure.samples import Slot


@dataclass(frozen=True)
class SequenceInput:
    """An input whose second axis results keep, and how many of its positions count as early.

    The results are an output, or what the model's own loss number `judged` judges.
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
        if target.is_floating_point():
            return scores if scores.shape == target.shape else None
        if scores.dim() > 2:  # the classes stand on axis 1
            scores = scores.movedim(1, -1)
        if scores.shape[:-1] != target.shape:
            return None
        return self._by_sample(scores.flatten(0, -2))

    def targets(self, target: Tensor) -> Tensor | None:
        """The targets, one row for each sample."""
        if target.is_floating_point():
            same = target.dim() == 3 and target.shape[0] == self.slot.value.shape[0]
            return target if same and not self.slot.is_ids else None
        return self._by_sample(target.flatten()) if self.slot.is_ids else None

    def _by_sample(self, rows: Tensor) -> Tensor | None:
        samples = self.slot.value.shape[0]
        if not rows.shape[0] or rows.shape[0] % samples:
            return None
        if self.time_first:
            return rows.reshape(-1, samples, *rows.shape[1:]).transpose(0, 1)
        return rows.reshape(samples, -1, *rows.shape[1:])


def sequence_of(
    runs: Runs, base: Outputs, axes: dict[str, int], asked: frozenset[str]
) -> SequenceInput | None:
    """The input that goes along with outputs position by position, one of `asked` before others."""
    for slot in sorted(runs.varying, key=lambda slot: runs.parameter(slot) not in asked):
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
            return SequenceInput(slot, length // 2, outputs[0])
    return None


def judged_sequence(runs: Runs, watch: Watch) -> SequenceInput | None:
    """Tokens or values whose next ones a loss of the model's own asks for."""
    for slot in runs.varying:
        if slot.axis != 0 or slot.value.dim() != (2 if slot.is_ids else 3):
            continue
        for number, judged in enumerate(watch.judged):
            for time_first in (False, True):
                sequence = SequenceInput(
                    slot, slot.value.shape[1] // 2, None, number, time_first=time_first
                )
                targets = sequence.targets(judged.target)
                asks = _asks_for_next if slot.is_ids else _asks_for_next_values
                if targets is not None and asks(slot.value, targets):
                    results = sequence.results({}, watch.judged)
                    return None if results is None else sequence
    return None


def first_attentions(
    runs: Runs, sequence: SequenceInput, watch: Watch
) -> tuple[tuple[Spot, ...], tuple[Spot, ...]]:
    """The attention that the input reaches first, with a triangular mask and without.

    None where it does not stand in one stream with the output: behind a cross-attention an
    encoder's input meets the decoder's masks, which say nothing of it.
    """
    nodes = nodes_by_key(runs.graph)
    known = {
        nodes.get((attention.path, attention.name, attention.number)): attention
        for attention in watch.attentions
    }
    stack = [
        n for n in runs.graph.nodes if n.op == "placeholder" and n.target == sequence.slot.name
    ]
    seen = set(stack)
    reached: list[Node] = []
    while stack:
        for user in stack.pop().users:
            if user in seen:
                continue
            seen.add(user)
            if _is_attention(runs.graph, user):
                reached.append(user)
            else:
                stack.append(user)
    last = _attentions_before(runs.graph, runs.captured_outputs().get(sequence.output or ""))
    if not set(reached) <= last:
        return (), ()  # an encoder: what it makes reaches the outputs through another attention
    spots: dict[bool, list[Spot]] = {True: [], False: []}
    for node in reached:
        attention = known.get(node)
        if attention is not None and (
            attention.causal or _looks_along(runs.graph, sequence.slot, node)
        ):
            spots[attention.causal].append(_spot_of_node(runs.graph, node))
    return tuple(spots[True]), tuple(spots[False])


def _looks_along(graph: Graph, slot: Slot, node: Node) -> bool:
    """Whether the attention's keys come from this input too: no cross-attention, no mere weights."""
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


def _attentions_before(graph: Graph, output: Node | None) -> set[Node]:
    """The attention from which the output can be reached without passing another."""
    stack = [] if output is None else [output]
    seen = set(stack)
    found: set[Node] = set()
    while stack:
        node = stack.pop()
        if _is_attention(graph, node):
            found.add(node)
            continue
        fresh = [source for source in node.all_input_nodes if source not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return found


def _is_attention(graph: Graph, node: Node) -> bool:
    if graph.name(node) != "softmax":
        return graph.name(node) in ATTENTION
    rank, axis = len(graph.shape(node) or ()), graph.argument(node, "dim")
    # Weights of keys stand on the last axis; along another one, something is shared out over time.
    return rank > 2 and (not isinstance(axis, int) or axis in (-1, rank - 1))


def _asks_for_next_values(values: Tensor, targets: Tensor) -> bool:
    """The same of a series: all of its features, or the first of them."""
    here, later = targets[0], values[0, 1:, : targets.shape[2]]
    if here.shape != later.shape or len(here) < 3:
        return False
    return torch.equal(here, later) and not torch.equal(later[1:], later[:-1])


def _asks_for_next(ids: Tensor, targets: Tensor) -> bool:
    """Whether the targets are the same tokens one step later, where they are not left out.

    One sample is compared, since others may have been made up.
    """
    if targets.shape[1] not in (ids.shape[1] - 1, ids.shape[1]):
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
