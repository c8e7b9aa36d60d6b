"""Edits at an operation that is not finite for some operands: keep its own away from those."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, Final

from trainlint.fixes.changes import Refused
from trainlint.fixes.edit import Fix
from trainlint.fixes.reading import refusable
from trainlint.ops import ALIASES

if TYPE_CHECKING:
    from trainlint.fixes.source import SourceEdits, SourceText
    from trainlint.sites import Site

_OPEN: Final = ".clamp(-1 + 1e-6, 1 - 1e-6)"
# What is written behind the operand, by operation, and which operand it is. float32 tells 1 − 1e-6 from 1.
_GUARDS: Final = {
    "log": (0, ".clamp_min(1e-8)"),
    "log2": (0, ".clamp_min(1e-8)"),
    "log10": (0, ".clamp_min(1e-8)"),
    "log1p": (0, ".clamp_min(-1 + 1e-6)"),
    "sqrt": (0, ".clamp_min(1e-8)"),
    "rsqrt": (0, ".clamp_min(1e-8)"),
    "reciprocal": (0, ".clamp_min(1e-8)"),
    "pow": (0, ".clamp_min(1e-8)"),
    "div": (1, " + 1e-8"),
    "true_divide": (1, " + 1e-8"),
    "acos": (0, _OPEN),
    "asin": (0, _OPEN),
    "atanh": (0, _OPEN),
    "exp": (0, ".clamp(max=20)"),
    "expm1": (0, ".clamp(max=20)"),
}
_OPERATORS: Final = {ast.Div: "div", ast.Pow: "pow"}


@refusable
def guarded(
    edits: SourceEdits,
    site: Site | None,
    operation: str,
    *,
    title: str,
) -> Fix:
    """The operand of the operation at `site` bounded: `x.clamp_min(1e-8).log()`, `x / (y + 1e-8)`."""
    name = ALIASES.get(operation, operation)
    if name not in _GUARDS:
        raise Refused(f"what {operation} is given is not bounded by one factor or sum")
    which, suffix = _GUARDS[name]
    text = None if site is None else edits.text(site.filename)
    if text is None or site is None:
        raise Refused("the operation stands in no file of yours")
    operand = _operand(text, site, name, which)
    source = ast.get_source_segment(text.text, operand)
    if source is None or suffix.strip() in source:
        raise Refused("the operand is bounded already, or not found")
    if not isinstance(operand, (ast.Name, ast.Attribute, ast.Call, ast.Subscript)):
        source = f"({source})"
    content = f"({source}{suffix})" if suffix.startswith(" ") else source + suffix
    return edits.replaced_expression(text, operand, content, title=title)


def _operand(text: SourceText, site: Site, name: str, which: int) -> ast.expr:
    span = site.span()
    if span is None or text.tree is None:
        raise Refused("the operation is not found in the source")
    row, end_row, column, end_column = span
    found: list[ast.expr] = []
    for node in ast.walk(text.tree):
        if isinstance(node, ast.BinOp) and _OPERATORS.get(type(node.op)) == name:
            place = (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)
            if place == (row, end_row, column, end_column):
                found.append(node.right if which else node.left)
        elif isinstance(node, ast.Call) and (node.end_lineno, node.end_col_offset) == (
            end_row,
            end_column,
        ):
            operand = _argument(node, name, which)
            if operand is not None:
                found.append(operand)
    if len(found) != 1:
        raise Refused("the operation is not found in the source")
    return found[0]


def _argument(node: ast.Call, name: str, which: int) -> ast.expr | None:
    callee: Any = node.func
    if not isinstance(callee, ast.Attribute):
        return None
    bare = callee.attr.strip("_")
    if ALIASES.get(bare, bare) != name or any(isinstance(a, ast.Starred) for a in node.args):
        return None
    is_function = isinstance(callee.value, ast.Name) and callee.value.id in ("torch", "F")
    operands = node.args if is_function else [callee.value, *node.args]
    return operands[which] if which < len(operands) else None
