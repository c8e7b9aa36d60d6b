"""Name calls in a forward by their places, so that patches change them where they run again. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from trainlint.fixes.patch import Occurrence, Patch
from trainlint.sites import place_key

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.graph import Graph

# Nodes that the capture adds, which are no calls.
_DERIVED: Final = ("output", "seen_through")


def occurrence(graph: Graph, node: Node) -> Occurrence | None:
    """The call that this node is, for `Patch.activation(calls=[...])` and its kin.

    None for what is no call of the user's own code: a layer's, an input, a parameter.
    """
    operation = graph.operation(node)
    if node.op != "call_function" or graph.layer(node) is not None or operation.owner is None:
        return None
    if operation.name in _DERIVED:
        return None
    places: list[Any] = []
    for other in graph.nodes:
        known = graph.operation(other)
        if (
            other.op != "call_function"
            or known.name != operation.name
            or known.module != operation.module
        ):
            continue
        key = place_key(known.site)
        if key is None or key not in places:
            places.append(key)
        if other is node:
            ordinal = len(places) - 1 if key is None else places.index(key)
            return Occurrence(operation.module, operation.name, ordinal)
    return None


def activation_patches(graph: Graph, nodes: Sequence[Node], to: str) -> list[Patch]:
    """Patches that put `to` in the place of these activations; empty where one cannot be named."""
    named = places(graph, nodes)
    return [] if named is None else [Patch.activation(to, modules=named[0], calls=named[1])]


def removal_patches(graph: Graph, nodes: Sequence[Node]) -> list[Patch]:
    """Patches that take these operations out; empty where one of them cannot be named."""
    named = places(graph, nodes)
    return [] if named is None else [Patch.without(modules=named[0], calls=named[1])]


def places(graph: Graph, nodes: Sequence[Node]) -> tuple[list[str], list[Occurrence]] | None:
    """The layers, and the calls that are no layers, among these operations; None if one has no name."""
    modules: list[str] = []
    calls: list[Occurrence] = []
    for node in nodes:
        if graph.layer(node) is not None and graph.operation(node).module:
            modules.append(graph.operation(node).module)
            continue
        call = occurrence(graph, node)
        if call is None:
            return None
        calls.append(call)
    return list(dict.fromkeys(modules)), list(dict.fromkeys(calls))
