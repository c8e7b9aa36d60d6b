"""Edits at an activation before a loss, and at the loss: take it out, or put another in its place."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any, Final

from trainlint.fixes.edit import Fix
from trainlint.fixes.occurrences import removal_patches
from trainlint.ops import ALIASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainlint.fixes.patch import Patch
    from trainlint.fixes.source import CallBuilder, SourceEdits
    from trainlint.graph import Graph
    from trainlint.loss.uses import Link, LossCall

ACTIVATION_CLASSES: Final = {
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "ReLU",
    "relu6": "ReLU6",
    "softplus": "Softplus",
    "gelu": "GELU",
    "silu": "SiLU",
    "mish": "Mish",
    "elu": "ELU",
    "celu": "CELU",
    "selu": "SELU",
    "hardswish": "Hardswish",
    "hardtanh": "Hardtanh",
    "hardsigmoid": "Hardsigmoid",
    "softsign": "Softsign",
}
LOSS_CLASSES: Final = {
    "cross_entropy": "CrossEntropyLoss",
    "nll_loss": "NLLLoss",
    "binary_cross_entropy": "BCELoss",
    "binary_cross_entropy_with_logits": "BCEWithLogitsLoss",
    "mse_loss": "MSELoss",
    "l1_loss": "L1Loss",
    "smooth_l1_loss": "SmoothL1Loss",
    "huber_loss": "HuberLoss",
    "kl_div": "KLDivLoss",
    "ctc_loss": "CTCLoss",
}
_SHARED: Final = "the same line makes another of them"
_NAMESPACES: Final = frozenset({"F", "torch", "nn", "functional"})


def without_activation(
    graph: Graph,
    edits: SourceEdits,
    link: Link,
    *,
    title: str,
    reason: str = "",
) -> Fix:
    """Take the activation out: `nn.Identity()` for a layer, its argument for a call."""
    patches = [] if link.node is None else removal_patches(graph, [link.node])
    site = _only_site(graph, link)
    if site is None:
        return Fix(title, obstacle=_SHARED, reason=reason, patches=patches)
    is_layer = link.node is not None and graph.layer(link.node) is not None
    build = _identity(ACTIVATION_CLASSES.get(link.name, "")) if is_layer else _operand(link.name)
    return edits.replaced_calls([(site, build)], title=title, reason=reason, patches=patches)


def other_activation(
    graph: Graph,
    edits: SourceEdits,
    link: Link,
    new: str,
    *,
    title: str,
    reason: str = "",
    patches: Sequence[Patch] = (),
) -> Fix:
    """Put the activation `new` in its place, which takes the same arguments."""
    site = _only_site(graph, link)
    is_layer = link.node is not None and graph.layer(link.node) is not None
    names = link.name, new
    if is_layer:
        names = ACTIVATION_CLASSES.get(link.name, ""), ACTIVATION_CLASSES[new]
    return edits.callee([site], *names, title=title, reason=reason, patches=patches)


def other_loss(
    graph: Graph,
    edits: SourceEdits,
    call: LossCall,
    new: str,
    *,
    title: str,
    reason: str = "",
    patches: Sequence[Patch] = (),
) -> Fix:
    """Put the loss `new` in its place, whose first arguments are the same."""
    where = call.where
    site = graph.place(where) if hasattr(where, "all_input_nodes") else where
    names = (LOSS_CLASSES[call.kind], LOSS_CLASSES[new]), (call.kind, new)
    for old, other in names:
        fix = edits.callee([site], old, other, title=title, reason=reason, patches=patches)
        if fix.edits:
            break
    return fix


def _only_site(graph: Graph, link: Link) -> Any:
    """The place of the activation, or None where the same call also makes another."""
    if link.node is None:
        return link.where
    site = graph.place(link.node)
    if site is None:
        return None
    for other in graph.calls(link.name):
        place = graph.place(other)
        if other is not link.node and place is not None and place.key == site.key:
            return None
    return site


def _identity(layer: str) -> CallBuilder:
    def build(_: ast.Call, source: str) -> str | None:
        match = re.match(rf"([\w.]+\.){layer}\s*\(", source) if layer else None
        return None if match is None else f"{match[1]}Identity()"

    return build


def _operand(name: str) -> CallBuilder:
    def build(call: ast.Call, _: str) -> str | None:
        callee = call.func
        bare = callee.attr.strip("_") if isinstance(callee, ast.Attribute) else ""
        is_method = ALIASES.get(bare, bare) == name
        if is_method and not _is_namespace(callee.value):  # type: ignore[attr-defined]
            operand = callee.value  # type: ignore[attr-defined]
        elif call.args:
            operand = call.args[0]
        else:
            return None
        text = ast.unparse(operand)
        simple = isinstance(operand, (ast.Name, ast.Call, ast.Attribute, ast.Subscript))
        return text if simple else f"({text})"

    return build


def _is_namespace(expression: ast.expr) -> bool:
    """Whether this is `F` or `torch.nn.functional`, or `self`, whose layer is called."""
    if isinstance(expression, ast.Name) and expression.id == "self":
        return True
    while isinstance(expression, ast.Attribute):
        expression = expression.value
    return isinstance(expression, ast.Name) and expression.id in _NAMESPACES
