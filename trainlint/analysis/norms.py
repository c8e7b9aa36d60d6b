"""What several rules on normalisation ask of the graph.

Which BatchNorms use the statistics of the batch, how much a dropout drops, and on which axis a layer's
units arrive after it was rearranged. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from trainlint import ops
from trainlint.graph import Graph, product

if TYPE_CHECKING:
    from torch.fx import Node

_RESHAPES: Final = frozenset(
    "reshape view_as reshape_as flatten unflatten squeeze unsqueeze".split()
)
_KEEP_THE_AXES: Final = frozenset(
    "contiguous clone to float double half bfloat16 type_as get_data identity alias "
    "add sub mul div neg".split()
)


def batch_norms(graph: Graph) -> Iterator[Node]:
    """The live BatchNorm calls that normalise by the statistics of the batch, not by stored ones."""
    for node in graph.calls("batch_norm"):
        if graph.is_live(node) and graph.argument(node, "training", False):
            yield node


def keeps_statistics(graph: Graph, node: Node) -> bool:
    """Whether the BatchNorm collects running statistics, to be used in eval mode."""
    return _is_node(graph.argument(node, "running_mean"))


def dropped_share(graph: Graph, node: Node) -> float:
    """The share p that a dropout sets to zero here; 0 where it is switched off."""
    share = graph.argument(node, "p", 0.5)
    if not graph.argument(node, "training", True) or not isinstance(share, (int, float)):
        return 0.0
    return float(share)


def chain_back(graph: Graph, node: Node) -> Iterator[Node]:
    """The operations that lead to the node one after the other, nearest first, up to any that merges."""
    sources = graph.varying_inputs(node)
    while len(sources) == 1 and sources[0].op == "call_function":
        yield sources[0]
        sources = graph.varying_inputs(sources[0])


def unit_axis(graph: Graph, node: Node) -> int | None:
    """The axis of a weighted operation's result that numbers its units: one bias each."""
    shape, name = graph.shape(node), graph.name(node)
    if not shape:
        return None
    if name == "linear":
        return len(shape) - 1
    axis = len(shape) - 1 - int(name[-2]) if name in ops.CONVOLUTIONS else -1
    return axis if axis >= 0 else None


def axis_after(graph: Graph, source: Node, axis: int | None, passed: Sequence[Node]) -> int | None:
    """Where the source's axis is after the operations `passed` (nearest to the source last).

    None where it was split, merged with another, or cannot be followed.
    """
    before = graph.shape(source)
    for node in reversed(passed):
        after = graph.shape(node)
        if axis is None or before is None or after is None:
            return None
        axis = _moved(graph, node, axis, before, after)
        before = after
    return axis


def _moved(
    graph: Graph, node: Node, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    name, rank = graph.name(node), len(before)
    if name in _RESHAPES:
        return _same_place(axis, before, after)
    if name in _KEEP_THE_AXES or name in ops.DROPOUTS:
        return axis if before == after else None
    order: list[int] | None = None
    dims = [*node.args[1:], *node.kwargs.values()]
    flat = [dim for part in dims for dim in (part if isinstance(part, (tuple, list)) else [part])]
    if not all(isinstance(dim, int) for dim in flat):
        return None
    places = [int(dim) % rank for dim in flat if isinstance(dim, int)]
    if name == "permute" and len(places) == rank:
        order = places
    elif name in ("transpose", "get_mT", "get_T", "t"):
        first, second = places if len(places) == 2 else (rank - 2, rank - 1)
        if name in ("get_T", "t") and rank != 2:
            return None
        order = list(range(rank))
        order[first], order[second] = second, first
    return order.index(axis) if order is not None else None


def _same_place(axis: int, before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """The axis of the same size with as many elements before and behind it."""
    for place, size in enumerate(after):
        if (
            size == before[axis]
            and product(after[:place]) == product(before[:axis])
            and product(after[place + 1 :]) == product(before[axis + 1 :])
        ):
            return place
    return None


def _is_node(value: object) -> bool:
    return hasattr(value, "all_input_nodes")
