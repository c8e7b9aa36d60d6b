"""Fixes at layers: another activation, a normalisation behind them, a connection around them.

Each is made twice where it can be: as edits of the source, and as patches of a live model. No torch.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops
from trainlint.fixes.activations import ACTIVATION_CLASSES
from trainlint.fixes.edit import Fix
from trainlint.fixes.occurrences import activation_patches, places
from trainlint.fixes.patch import Patch

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.fixes.source import SourceEdits
    from trainlint.graph import Graph
    from trainlint.sites import Site

_CLASSES: Final = {**ACTIVATION_CLASSES, "leaky_relu": "LeakyReLU", "softmin": "Softmin"}
# Their constructors and calls take something that a ReLU does not.
_WITH_OPTIONS: Final = frozenset({"softmax", "log_softmax", "softmin"})


# ---------------------------------------------------------------------- another activation


def other_activations(
    graph: Graph,
    edits: SourceEdits,
    nodes: Sequence[Node],
    to: str,
    *,
    title: str,
    reason: str = "",
) -> Fix:
    """Exactly these activations replaced by `to`, at the constructor of a layer or at the call."""
    patches = activation_patches(graph, nodes, to)
    keys = {_key(graph, node) for node in nodes}
    names = {graph.name(node) for node in nodes}
    others = [n for n in graph.calls(*names) if n not in nodes and _key(graph, n) in keys]
    if others:
        where = graph.place(others[0])
        why = f"line {where.row if where is not None else 0} makes others as well"
        return Fix(title, obstacle=why, reason=reason, patches=patches)
    parts: list[Fix] = []
    for name in sorted(names):
        for is_layer in (True, False):
            own = {
                _key(graph, node): graph.place(node)
                for node in nodes
                if graph.name(node) == name and (graph.layer(node) is not None) == is_layer
            }
            if not own:
                continue
            sites = list(own.values())
            old, new = (_CLASSES.get(name, ""), _CLASSES[to]) if is_layer else (name, to)
            if name in _WITH_OPTIONS:
                changes = [(site, _without_options(old, new)) for site in sites]
                parts.append(edits.replaced_calls(changes, title=title))
            else:
                parts.append(edits.callee(sites, old, new, title=title))
    return edits.together(*parts, title=title, reason=reason, patches=patches)


def _key(graph: Graph, node: Node) -> Any:
    site = graph.place(node)
    return node if site is None else site.key


def _without_options(old: str, new: str) -> Callable[[ast.Call, str], str | None]:
    """`nn.Softmax(dim=1)` to `nn.ReLU()`, `F.softmax(x, dim=1)` to `F.relu(x)`, `x.softmax(1)` too."""

    def rewrite(call: ast.Call, _: str) -> str | None:
        if not isinstance(call.func, ast.Attribute) or call.func.attr != old:
            return None
        owner = ast.unparse(call.func.value)
        if old[:1].isupper():
            return f"{owner}.{new}()"
        if owner.rpartition(".")[2] not in ("F", "functional", "torch", "nn"):
            return f"{owner}.{new}()"
        return f"{owner}.{new}({ast.unparse(call.args[0])})" if call.args else None

    return rewrite


# ---------------------------------------------------------------------- normalisation and residual


def normalised(
    graph: Graph, edits: SourceEdits, layers: Sequence[Node], *, title: str = "", reason: str = ""
) -> Fix:
    """BatchNorm behind each of these layers, LayerNorm behind those whose features stand last."""
    kind, layer_class, size = _normalisation(graph, layers)
    names = [graph.operation(node).module for node in layers if graph.layer(node) is not None]
    names = list(dict.fromkeys(name for name in names if name))
    title = title or f"nn.{layer_class} behind {_listed(names)}"
    patches = [Patch.norm(kind, after=names)] if names else []
    if not names or not size:
        why = "these layers are no modules of torch.nn"
        return Fix(title, obstacle=why, reason=reason, patches=patches)
    parts: dict[Any, Fix] = {}
    for node in layers:
        site = graph.constructed(node)
        if len(graph.built_together(node)) != 1:
            why = f"line {0 if site is None else site.row} makes several layers"
            return Fix(title, obstacle=why, reason=reason, patches=patches)
        owner = graph.operation(node).owner
        uses: list[Site | None] = [
            graph.operation(n).site for n in graph.nodes_of_module.get(id(owner), [node])
        ]
        parts[graph.operation(node).module] = edits.normalised(
            site, f"torch.nn.{layer_class}", size, uses, title=title
        )
    return edits.together(*parts.values(), title=title, reason=reason, patches=patches)


def _normalisation(graph: Graph, layers: Sequence[Node]) -> tuple[str, str, tuple[int, str] | None]:
    """(kind of patch, class, argument of the layer that is its size)."""
    name, rank = graph.name(layers[0]), len(graph.shape(layers[0]) or ())
    if name in ops.CONVOLUTIONS:
        return "batch", f"BatchNorm{name[-2]}d", (1, "out_channels")
    if name == "linear":
        kind, made = ("batch", "BatchNorm1d") if rank == 2 else ("layer", "LayerNorm")
        return kind, made, (1, "out_features")
    return "layer", "LayerNorm", None


def residual(
    graph: Graph, edits: SourceEdits, pairs: Sequence[tuple[Node, Node]], *, title: str, reason: str
) -> Fix:
    """A connection x + f(x) around each pair (layer, activation) that keeps the shape of its input."""
    suited = [
        (layer, activation)
        for layer, activation in pairs
        for source in [graph.data(layer)]
        if source is not None and graph.shape(source) == graph.shape(activation)
    ]
    if not suited:
        why = "none of them has as many outputs as inputs: it would need a projection"
        return Fix(title, obstacle=why, reason=reason)
    names = [graph.operation(layer).module for layer, _ in suited if graph.layer(layer) is not None]
    ends = places(graph, [activation for _, activation in suited])
    patches = []
    if all(names) and len(names) == len(suited) and ends is not None:
        patches = [Patch.residual(dict.fromkeys(names), until=ends[0], calls=ends[1])]
    changes: dict[Any, tuple[Site | None, Any]] = {}
    for layer, activation in suited:
        site = graph.operation(activation).site
        inner = graph.operation(layer).site
        if site is None or inner is None or site.key == inner.key:
            why = "both stand in one Sequential: its call is the only place"
            return Fix(title, obstacle=why, reason=reason, patches=patches)
        changes.setdefault(site.key, (site, _added_to_its_input))
    own = {activation for _, activation in suited}
    for node in graph.calls_in_order:
        site = graph.operation(node).site
        if node not in own and site is not None and site.key in changes:
            why = f"line {site.row} makes others as well"
            return Fix(title, obstacle=why, reason=reason, patches=patches)
    return edits.replaced_calls(list(changes.values()), title=title, reason=reason, patches=patches)


def _added_to_its_input(call: ast.Call, source: str) -> str | None:
    """`x + torch.relu(layer(x))` for `torch.relu(layer(x))`."""
    inner = _operand(call)
    outer = inner if isinstance(inner, ast.Call) else None
    given = None if outer is None else _operand(outer)
    return f"{given.id} + {source}" if isinstance(given, ast.Name) else None


def _operand(call: ast.Call) -> ast.expr | None:
    if call.args:
        return call.args[0]
    return call.func.value if isinstance(call.func, ast.Attribute) else None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
