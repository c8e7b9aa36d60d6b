"""Name a call in a forward by its place, so that it can be changed where it runs again. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trainlint.fixes.patch import Occurrence

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.graph import Graph
    from trainlint.sites import Site

__all__ = ["occurrence"]

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


def place_key(site: Site | None) -> Any:
    """Equal for calls from the same place of the source; None where that is not known."""
    return None if site is None else site.key
