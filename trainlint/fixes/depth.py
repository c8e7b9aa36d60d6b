"""Fixes of gradients that vanish or explode through depth, in the textbook's order.

For a graph: edits and patches at its layers. For a training that was watched: patches at the layers and
operations that it recorded. No torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from trainlint.fixes.edit import Fix
from trainlint.fixes.initialisation import Start, initial_patches, initialised
from trainlint.fixes.layers import normalised, other_activations, residual
from trainlint.fixes.patch import Occurrence, Patch

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.fixes.source import SourceEdits
    from trainlint.graph import Graph
    from trainlint.observe.trace import ModelTrace

# Of what is proposed for a training that was watched.
UNSEEN: Final = "edits need the model's graph, and what was recorded of a run is none"

_SATURATING: Final = ("sigmoid", "tanh", "softsign", "hardsigmoid")
_HE: Final = ', nonlinearity="relu"'


def rectified(graph: Graph, edits: SourceEdits, layers: Sequence[Node]) -> Fix | None:
    """ReLU for the saturating activations behind these layers, with He's initial values; None without."""
    nodes = [
        node
        for node in graph.calls(*_SATURATING)
        if graph.feeds_weights(node) and graph.producer(node)[0] in set(layers)
    ]
    if not nodes:
        return None
    names = sorted({graph.name(node) for node in nodes})
    bound = math.prod(0.25 if graph.name(node) == "sigmoid" else 1.0 for node in nodes)
    title = f"use ReLU in place of the {len(nodes)} {' and '.join(names)}s, with He initialisation"
    reason = "He et al. 2015: slope 1 where it is on, and Var w = 2/n keep the gradient's size"
    if bound < 1:
        reason += (
            f"; the sigmoids leave at most 0.25^{round(-math.log(bound, 4))} = {bound:.1g} of it"
        )
    swapped = other_activations(graph, edits, nodes, "relu", title=title)
    starts = _starts(graph, layers)
    patches = [*swapped.patches, *initial_patches(starts)] if swapped.patches else []
    begun = initialised(graph, edits, starts, title=title) if starts else swapped
    both = edits.together(swapped, begun, title=title, reason=reason, patches=patches)
    if both.edits or not swapped.edits:
        return both
    return edits.together(swapped, title=title, reason=reason, patches=patches)


def _starts(graph: Graph, layers: Sequence[Node]) -> list[Start]:
    names = {id(tensor): name for name, tensor in graph.model.named_parameters()}
    found: dict[str, Start] = {}
    for node in layers:
        weight = graph.argument(node, "weight")
        tensor = graph.operation(weight).tensor if hasattr(weight, "all_input_nodes") else None
        name = names.get(id(tensor))
        if name is not None and tensor is not None and tensor.dim() > 1:
            found.setdefault(name, Start(name, tensor, node, "kaiming_normal_", _HE))
    return list(found.values())


def normalised_layers(graph: Graph, edits: SourceEdits, layers: Sequence[Node], reason: str) -> Fix:
    """BatchNorm or LayerNorm behind each of these layers."""
    title = f"put a normalisation between each of the {len(layers)} layers and its activation"
    return normalised(graph, edits, list(layers), title=title, reason=reason)


def bypassed(graph: Graph, edits: SourceEdits, layers: Sequence[Node], reason: str) -> Fix:
    """A residual connection around each of these layers and its activation."""
    pairs = []
    for layer in layers:
        users = [user for user in layer.users if graph.is_live(user)]
        if len(users) == 1 and not graph.is_weighted(users[0]):
            pairs.append((layer, users[0]))
    title = "add a residual connection around each layer, x + f(x)"
    return residual(graph, edits, pairs, title=title, reason=reason)


# ---------------------------------------------------------------------- in a training


def of_model(model: ModelTrace) -> dict[str, list[Patch]]:
    """Patches of a watched model: `rectified`, `normalised`, `residual`, `initialised`."""
    modules, calls = _saturating(model)
    weights = [p.name for p in model.weights()]
    layers = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    hidden = layers[:-1]
    he = Patch.initialise(weights, "kaiming_normal", nonlinearity="relu")
    swapped = [Patch.activation("relu", modules=modules, calls=calls)] if modules or calls else []
    return {
        "rectified": [*swapped, he] if swapped else [],
        "normalised": [Patch.norm("batch", after=hidden)] if hidden else [],
        "residual": [Patch.residual(hidden)] if hidden else [],
        "initialised": [he] if weights else [],
    }


def _saturating(model: ModelTrace) -> tuple[list[str], list[Occurrence]]:
    inner = {path.rpartition(".")[0] for path in model.layers}
    weighted = {p.name.rpartition(".")[0] for p in model.parameters}
    modules: list[str] = []
    calls: list[Occurrence] = []
    for site in model.sites:
        place: Any = site.place
        if place.operation not in _SATURATING or site.feeds == "gate":
            continue
        if place.path and place.path not in inner and place.path not in weighted:
            modules.append(place.path)
        else:
            calls.append(Occurrence(place.path, place.operation, place.index))
    # A sigmoid behind all weights is the output's.
    order = [site.weight for site in model.sites]
    last = max((n for n, weight in enumerate(order) if weight is not None), default=-1)
    behind = {str(site.place) for site in itertools.islice(model.sites, last + 1, None)}
    kept = [c for c in calls if _shown(c) not in behind]
    return [m for m in modules if not any(b.startswith(f"{m}.") for b in behind)], kept


def _shown(call: Occurrence) -> str:
    """As a `Place` is shown."""
    which = f"[{call.ordinal}]" if call.ordinal else ""
    return f"{call.module}.{call.operation}{which}" if call.module else f"{call.operation}{which}"
