"""Fixes of a width that does not fit: at the layer that refuses it, or at the one that makes it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops
from trainlint.analysis.layers import Mismatch, agreed_width, describe_source, mismatches
from trainlint.fixes.edit import Fix, Safety
from trainlint.fixes.patch import Patch
from trainlint.fixes.scopes import is_last_use

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.fixes.source import SourceEdits
    from trainlint.graph import Graph

_OUTPUTS: Final = ("out_channels", "out_features")
_WIDTHS: Final = (*_OUTPUTS, "embedding_dim", "hidden_size")


def width_fixes(graph: Graph, edits: SourceEdits, mismatch: Mismatch, title: str) -> list[Fix]:
    """The layer's number set to what arrives; or, where several layers disagree with it, the source's.

    In code that builds many by names, `block(i, o)`, the name that the neighbour takes is written instead:
    a number would mend one of the blocks and break the others.
    """
    wants, source = mismatch.wants, mismatch.source.node
    if mismatch.source_is_to_blame and source is not None:
        return _source_fixes(graph, edits, mismatch, source)
    arrives = f"{wants.received} {wants.what} arrive{describe_source(graph, mismatch.source)}"
    reason = f"{arrives}: the layer runs with no other number"
    same = [m for m in mismatches(graph) if m.made_at == mismatch.made_at]
    patches = [
        Patch.rebuilt(graph.operation(m.node).module, **{m.wants.argument: m.wants.received})
        for m in same
        if graph.layer(m.node) is not None and graph.operation(m.node).module
    ]
    named = _as_the_source(graph, edits, mismatch, same, reason, patches)
    if named is not None:
        return [named]
    if agreed_width(graph, mismatch.node) != wants.received:
        site = graph.constructed(mismatch.node)
        row = "one line" if site is None else f"line {site.row}"
        why = f"{row} makes several layers, and they need different numbers"
        return [Fix(title, reason=reason, obstacle=why, patches=patches)]
    return [
        edits.argument(
            graph.constructed(mismatch.node),
            wants.position,
            wants.argument,
            wants.received,
            current=wants.expected,
            title=title,
            safety=Safety.SAFE,
            reason=reason,
            patches=patches,
            factors=mismatch.source.dims[1:] if mismatch.source.kind == "flatten" else (),
        )
    ]


def _source_fixes(graph: Graph, edits: SourceEdits, mismatch: Mismatch, source: Node) -> list[Fix]:
    """The width of the layer that all others disagree with."""
    wants, site = mismatch.wants, graph.constructed(source)
    owner = graph.layer(source)
    out = next((name for name in _WIDTHS if hasattr(owner, name)), "out_features")
    title = f"{out}={wants.received} → {wants.expected} in {graph.label(source)}"
    reason = f"all {len(mismatch.agreeing)} layers behind it expect {wants.expected}"
    layers: list[Any] = [*graph.built_together(source)] or [graph.layer(source)]
    patches = [
        Patch.rebuilt(name, **{out: getattr(module, out) - wants.received + wants.expected})
        for name, module in graph.model.named_modules()
        if module in layers and isinstance(getattr(module, out, None), int)
    ]
    fixes = []
    text, ours, theirs = _calls_in_one_function(graph, edits, source, mismatch.node)
    if text is not None:
        old = _passed(ours, 1, out)
        new = _passed(theirs, wants.position, wants.argument)
        differ = old is not None and new is not None and ast.dump(old) != ast.dump(new)
        if (
            differ
            and old is not None
            and new is not None
            and not isinstance(new, ast.Constant)
            and not is_last_use(text, old)
        ):
            name = f"{out}={ast.unparse(old)} → {ast.unparse(new)} in {graph.label(source)}"
            fixes.append(
                edits.replaced_expression(
                    text, old, ast.unparse(new), title=name, reason=reason, patches=patches
                )
            )
    fixes = [fix for fix in fixes if fix.edits] or [
        edits.argument(
            site, 1, out, wants.expected,
            current=wants.received, title=title, safety=Safety.UNSAFE,
            reason=reason, patches=patches, built=max(len(layers), 1),
        )
    ]  # fmt: skip
    other = Fix(
        f"{wants.received} in every layer behind it",
        reason="where the new width is what was meant",
        obstacle="several layers would have to change together",
    )
    return [*fixes, other]


def _as_the_source(
    graph: Graph,
    edits: SourceEdits,
    mismatch: Mismatch,
    same: Sequence[Mismatch],
    reason: str,
    patches: Sequence[Patch],
) -> Fix | None:
    """In code that builds both the layer before and this one: the name that the former takes."""
    source, wants = mismatch.source.node, mismatch.wants
    if source is None or mismatch.source.kind != "layer":
        return None
    before = graph.constructed(source)
    for other in same:  # each behind a layer from that same line
        site = None if other.source.node is None else graph.constructed(other.source.node)
        if site is None or before is None or site.key != before.key:
            return None
    text, ours, theirs = _calls_in_one_function(graph, edits, mismatch.node, source)
    old, new = _passed(ours, wants.position, wants.argument), _passed(theirs, 1, *_OUTPUTS)
    if text is None or old is None or new is None or isinstance(new, ast.Constant):
        return None
    if ast.dump(old) == ast.dump(new) or _is_another_class(graph, source, theirs):
        return None
    literal = isinstance(old, ast.Constant)
    if literal and agreed_width(graph, mismatch.node) == wants.received:
        return None  # the number that is right everywhere
    before_and_after = ast.unparse(old), ast.unparse(new)
    if graph.name(mismatch.node) in ops.NORMALIZATIONS or not graph.layer(mismatch.node):
        title = " → ".join(f"{wants.layer}({value})" for value in before_and_after)
    else:
        title = f"{wants.argument}={' → '.join(before_and_after)} in {graph.label(mismatch.node)}"
    fix = edits.replaced_expression(
        text, old, ast.unparse(new), title=title, reason=reason, patches=patches
    )
    return fix if fix.edits else None


def _calls_in_one_function(
    graph: Graph, edits: SourceEdits, node: Node, other: Node
) -> tuple[Any, Any, Any]:
    """(text, the constructor call of `node`, that of `other`) where one function makes both, else Nones."""
    made, theirs = graph.constructed(node), graph.constructed(other)
    if made is None or theirs is None or made.code is None or made.code is not theirs.code:
        return None, None, None
    text = edits.text(made.filename)
    calls = (None, None) if text is None else (text.call_at(made), text.call_at(theirs))
    return (None, None, None) if None in calls else (text, *calls)


def _is_another_class(graph: Graph, source: Node, call: Any) -> bool:
    """Whether the call is not that of the layer's own class, whose arguments are known."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    layer = type(graph.layer(source)).__name__
    return name != layer or not layer.startswith(("Conv", "Linear"))


def _passed(call: ast.Call | None, position: int, *names: str) -> ast.expr | None:
    if call is None:
        return None
    for word in call.keywords:
        if word.arg in names:
            return word.value
    passed = call.args[: position + 1]
    if len(passed) <= position or any(isinstance(value, ast.Starred) for value in passed):
        return None
    return passed[position]
