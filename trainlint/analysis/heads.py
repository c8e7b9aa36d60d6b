"""Which layers make a result: one, several whose scores are added, or one layer at each time step.

Comes in: the graph and a node. Goes out: the nodes of those layers, or none where anything else than
arrangement and addition lies between. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from trainlint import ops

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.graph import Graph

# A dueling network subtracts the mean of its advantages.
_SUMS: Final = frozenset({"add", "sub"})
_JOINTS: Final = frozenset({"cat", "stack"})
_CENTRES: Final = ops.REARRANGEMENTS | ops.PARTS | {"mean"}


def heads(graph: Graph, node: Node, through: Collection[str]) -> list[Node]:
    """The layers with weights whose results, only arranged and added, the node is given.

    One layer is seen through the operations in `through` and arithmetic with constants. Several are
    heads only if no other layer takes what they give: the terms of a residual stream are read by the
    next block, and so are none.
    """
    source, _ = graph.producer(node, through)
    if source is None or source.op != "call_function":
        return []
    if graph.is_weighted(source):
        return [source]
    if graph.name(source) not in _SUMS | _JOINTS:
        return []
    found = _terms(graph, source)
    if any(graph.feeds_weights(head) for head in found):
        return []
    return found


def _terms(graph: Graph, total: Node) -> list[Node]:
    """The layers under a tree of sums, in the order of execution; none if there is anything else."""
    found: set[Node] = set()
    joined = False
    stack, seen = [total], {total}
    while stack:
        node = stack.pop()
        name = graph.name(node)
        if graph.is_weighted(node):
            found.add(node)
            continue
        joined = joined or name in _JOINTS
        if name not in _SUMS | _JOINTS and not graph.is_transparent(node, _CENTRES):
            return []
        fresh = [source for source in graph.varying_inputs(node) if source not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    weights = {graph.argument(node, "weight") for node in found}
    if joined and len(weights) > 1:  # features side by side, and not one head at each time step
        return []
    return sorted(found, key=graph.position)
