"""Which inputs, and which parts of them, change no output.

Comes in: the runs, the first one's outputs, and the gradient of the own sample's by each input. What has
no gradient is asked again by replacing it, in eval mode and in train mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from trainlint import ops
from trainlint.engine import FactUnavailable
from trainlint.measure.influence import Unused
from trainlint.measure.runs import OWN, Outputs, Runs, differ
from trainlint.measure.samples import Slot, flipped, replaced

if TYPE_CHECKING:
    from torch.fx import Node

_MOST_ASKED: Final = 4
_FEWEST_POSITIONS: Final = 3


def unused_inputs(runs: Runs, base: Outputs, gradients: dict[str, Tensor]) -> Iterator[Unused]:
    """Inputs whose gradient is zero, asked again in other ways.

    If none has an effect, the outputs are constant, and only an input that leads nowhere while
    another one goes on is to blame.
    """
    silent: list[Slot] = []
    for slot in runs.varying:
        gradient = gradients.get(slot.name)
        if gradient is not None and bool(gradient.any()):
            yield from _unused_parts(runs, slot, gradient, base)
        else:
            silent.append(slot)
    found = [slot for slot in silent[:_MOST_ASKED] if _is_unused(runs, slot, base)]
    if len(found) == len(runs.varying):
        cut = [slot for slot in found if not _leads_on(runs, slot)]
        found = cut if len(cut) < len(found) else []
    for slot in (*found, *(s for s in _tables(runs) if _is_unused(runs, s, base))):
        yield Unused(slot.name, runs.placeholder(slot), tuple(slot.value.shape))
    for slot in silent:
        if slot not in found and slot.is_ids and slot.name not in gradients:
            yield from _unused_ends(runs, slot, base)


def _tables(runs: Runs) -> Iterator[Slot]:
    """Floats of zeros and ones that no name calls a mask: the edges of a graph, a few-hot code."""
    for slot in runs.slots:
        is_table = slot.is_mask and not slot.is_ids and slot.value.dim() > 1
        if is_table and slot.axis == 0 and "mask" not in runs.parameter(slot):
            yield slot


def _leads_on(runs: Runs, slot: Slot) -> bool:
    """Whether more than the input's shape reaches an output of the captured graph."""
    graph = runs.graph
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


def _is_unused(runs: Runs, slot: Slot, base: Outputs) -> bool:
    others = (
        flipped(slot, runs.generator)
        if slot.is_mask
        else [replaced(slot, range(runs.samples), runs.generator)]
    )
    return all(_has_no_effect(runs, {slot.name: other}, base) for other in others)


def _unused_parts(runs: Runs, slot: Slot, gradient: Tensor, base: Outputs) -> Iterator[Unused]:
    """Columns of a table, channels of an image, features or positions of a sequence.

    Of positions only more than half of them: a stride leaves out the border.
    """
    dims = slot.value.shape
    if slot.axis != 0 or len(dims) < 2 or gradient.shape[: len(dims)] != dims:
        return
    for axis in (1, 2) if len(dims) == 3 else (1,):
        others = [other for other in range(gradient.dim() - 1) if other != axis - 1]
        own = gradient[OWN].sum(others) if others else gradient[OWN]
        silent = (own == 0).nonzero().flatten().tolist()
        along = _holds_positions(runs, slot, axis)
        if not silent or (along and 2 * len(silent) <= dims[axis]):
            continue
        if _has_no_part(runs, slot, axis, silent, base):
            yield _part(runs, slot, axis, silent, along=along)


def _unused_ends(runs: Runs, slot: Slot, base: Outputs) -> Iterator[Unused]:
    """All tokens but the first or the last one, where no gradient tells."""
    if slot.axis != 0 or slot.value.dim() != 2 or slot.value.shape[1] < _FEWEST_POSITIONS:
        return
    length = slot.value.shape[1]
    for places in (range(1, length), range(length - 1)):
        if _has_no_part(runs, slot, 1, places, base):
            yield _part(runs, slot, 1, places, along=True)
            return


def _part(runs: Runs, slot: Slot, axis: int, places: Sequence[int], *, along: bool) -> Unused:
    node, dims = runs.placeholder(slot), tuple(slot.value.shape)
    features, positions = ((), tuple(places)) if along else (tuple(places), ())
    return Unused(slot.name, node, dims, axis, features, positions)


def _has_no_part(runs: Runs, slot: Slot, axis: int, places: Sequence[int], base: Outputs) -> bool:
    """Whether these indices of the axis change nothing, neither a little nor a lot."""
    fresh = replaced(slot, range(runs.samples), runs.generator)
    index = torch.tensor(list(places), device=fresh.device)
    new = fresh.index_select(axis, index)
    # Behind a maximum only what stands out has an effect.
    variants = [new] if slot.is_ids else [new + 0.1, -4 * new]
    return all(
        _has_no_effect(runs, {slot.name: slot.value.index_copy(axis, index, variant)}, base)
        for variant in variants
    )


def _holds_positions(runs: Runs, slot: Slot, axis: int) -> bool:
    """Whether the axis is one of time: it is not that long that a layer takes as its features."""
    if slot.is_ids:
        return True
    if slot.value.dim() == 2:  # a waveform
        return any(True for _ in runs.graph.calls("conv1d"))
    if slot.value.dim() != 3:
        return False
    widths = {parameter.shape[1] for parameter in runs.model.parameters() if parameter.dim() > 1}
    here, there = slot.value.shape[axis], slot.value.shape[3 - axis]
    return not (here in widths and (there not in widths or axis == 2))


def _has_no_effect(runs: Runs, changed: Mapping[str, Tensor], base: Outputs) -> bool:
    """In eval mode; and in train mode, on another seed and with no weight exactly zero."""
    try:
        if differ(base, runs.run(changed)):
            return False
        return not differ(runs.run_awake(), runs.run_awake(changed))
    except FactUnavailable:
        raise
    except Exception:  # lengths that no longer fit, labels out of range
        return False
