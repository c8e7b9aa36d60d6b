"""Read the user's source around a site: statements and blocks, and small edits of them.

What cannot be edited raises `Refusal`, whose text is the obstacle that a fix then shows. No torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from trainlint.fixes.edit import Edit, Fix, Location, Safety
from trainlint.fixes.source import apply

if TYPE_CHECKING:
    from trainlint.fixes.patch import Patch
    from trainlint.fixes.source import SourceEdits, SourceText
    from trainlint.sites import Site

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES: Final = (*_FUNCTIONS, ast.ClassDef, ast.Module)


def explained(
    fix: Fix,
    *,
    reason: str = "",
    obstacle: str = "",
    patches: Iterable[Patch] = (),
    safety: Safety | None = None,
) -> Fix:
    """The fix with why it helps, how to try it, and, where there is no edit, what stands in its way."""
    return msgspec.structs.replace(
        fix,
        reason=reason or fix.reason,
        obstacle="" if fix.edits else (fix.obstacle or obstacle),
        patches=[*patches] or fix.patches,
        safety=safety if safety is not None and fix.edits else fix.safety,
    )


class Refusal(Exception):  # noqa: N818
    """Why no edit is made, in a clause."""


# ---------------------------------------------------------------------- reading the source


@lru_cache(maxsize=64)
def _parents(tree: ast.Module) -> dict[ast.AST, ast.AST]:
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def parent(text: SourceText, node: ast.AST) -> ast.AST | None:
    """The node that this one is a part of."""
    return None if text.tree is None else _parents(text.tree).get(node)


def scope(text: SourceText, node: ast.AST) -> ast.AST | None:
    """The function or class around a node, or the module."""
    found = parent(text, node)
    while found is not None and not isinstance(found, _SCOPES):
        found = parent(text, found)
    return found


def statement(text: SourceText, node: ast.AST) -> ast.stmt:
    """The innermost statement around a node."""
    found: ast.AST | None = node
    while found is not None and not isinstance(found, ast.stmt):
        found = parent(text, found)
    if found is None:
        raise Refusal("the call stands in no statement")
    return found


def block(text: SourceText, inner: ast.stmt) -> list[ast.stmt]:
    """The statements among which this one stands."""
    around = parent(text, inner)
    for name in ("body", "orelse", "finalbody"):
        statements = getattr(around, name, None)
        if isinstance(statements, list) and inner in statements:
            return statements
    raise Refusal("the statement stands in no block")


def around(text: SourceText, node: ast.AST) -> list[ast.stmt]:
    """The statement of a node and those around it, innermost first, up to its function."""
    found = [statement(text, node)]
    while (outer := parent(text, found[-1])) is not None and not isinstance(outer, _SCOPES):
        found.append(statement(text, outer))
    return found


def call(edits: SourceEdits, site: Site | None, what: str) -> tuple[SourceText, ast.Call]:
    """The call at a site in a file that may be edited; `what` names it where there is none."""
    text = None if site is None else edits.text(site.filename)
    if text is None or site is None or text.tree is None:
        raise Refusal(f"{what} stands in no file of yours")
    found = text.call_at(site)
    if found is None:
        raise Refusal(f"the call of {what} is not found in the source")
    return text, found


def is_path(node: ast.AST) -> bool:
    """`optimizer`, or `self.optimizer`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def has_own_lines(text: SourceText, inner: ast.stmt) -> bool:
    """Whether nothing else stands on the lines of a statement."""
    before = text.lines[inner.lineno - 1].encode()[: inner.col_offset]
    end = text.lines[(inner.end_lineno or inner.lineno) - 1].encode()[inner.end_col_offset or 0 :]
    rest = end.decode(errors="replace").strip()
    return not before.strip() and (not rest or rest.startswith("#"))


def indentation(text: SourceText, inner: ast.stmt) -> str:
    """The blanks before a statement."""
    return text.lines[inner.lineno - 1].encode()[: inner.col_offset].decode()


def line_before(
    edits: SourceEdits, text: SourceText, inner: ast.stmt, line: str, *, title: str
) -> Fix:
    """A line before a statement."""
    if not has_own_lines(text, inner) and isinstance(inner, (ast.Expr, ast.Assign, ast.AugAssign)):
        raise Refusal("the line holds several statements")
    return edits.beside(
        text, inner, before=f"{line}{text.newline}{indentation(text, inner)}", title=title
    )


def moved(
    text: SourceText, inner: ast.stmt, target: ast.stmt, *, after: bool = False, title: str
) -> Fix:
    """A statement to before, or to behind, another one, at that one's indentation."""
    if not has_own_lines(text, inner) or not has_own_lines(text, target):
        raise Refusal("the line holds several statements")
    if len(block(text, inner)) == 1:
        raise Refusal("it stands alone in its block")
    first, last = inner.lineno, inner.end_lineno or inner.lineno
    own, new = indentation(text, inner), indentation(text, target)
    if first == 1 or (own != new and first != last):
        raise Refusal("it takes several lines")
    content = text.newline.join(text.lines[first - 1 : last])[len(own) :]
    rows = (first - 1, last)
    out = Edit(
        text.filename,
        Location(rows[0], len(text.lines[rows[0] - 1]) + 1),
        Location(rows[1], len(text.lines[rows[1] - 1]) + 1),
        "",
    )
    if after:
        end = target.end_lineno or target.lineno
        place = Location(end, len(text.lines[end - 1]) + 1)
        into = Edit(text.filename, place, place, f"{text.newline}{new}{content}")
    else:
        place = Location(target.lineno, len(new) + 1)
        into = Edit(text.filename, place, place, f"{content}{text.newline}{new}")
    return checked(text, [out, into], title=title)


def checked(
    text: SourceText, changes: list[Edit], *, title: str, safety: Safety = Safety.UNSAFE
) -> Fix:
    """A fix of these edits, if the edited text can be parsed."""
    try:
        ast.parse(apply(text.text, changes))
    except (SyntaxError, ValueError):
        raise Refusal("the edited file would not parse") from None
    return Fix(title, safety, changes)


def with_keyword(source: str, name: str, value: str) -> str:
    """The source of a call with a further keyword argument, laid out as the others are."""
    inner = source[:-1]
    body = inner.rstrip()
    behind = inner[len(body) :]
    last = re.search(r"(\r\n|\n|\r)([ \t]*)[^\r\n]*$", body)
    if body.endswith("("):
        return f"{body}{name}={value}{behind})"
    if not body.endswith(","):
        return f"{body}, {name}={value}{behind})"
    apart = last[1] + last[2] if last is not None and behind else " "
    return f"{body}{apart}{name}={value},{behind})"


def statement_at(edits: SourceEdits, site: Site | None) -> tuple[SourceText, ast.stmt]:
    """The innermost statement around what the site's instruction executes."""
    text = None if site is None else edits.text(site.filename)
    span = None if site is None else site.span()
    if text is None or text.tree is None or span is None:
        raise Refusal("the line stands in no file of yours")
    row, end_row, _, _ = span
    found = [
        node
        for node in ast.walk(text.tree)
        if isinstance(node, ast.stmt)
        and node.lineno <= row
        and end_row <= (node.end_lineno or node.lineno)
        and not hasattr(node, "body")
    ]
    if len(found) != 1:
        raise Refusal("the line holds several statements")
    return text, found[0]


def spelled(text: SourceText, name: str) -> str:
    """How this file may write a dotted name of torch, by its imports."""
    assert text.tree is not None
    best = ""
    for node in text.tree.body:
        if isinstance(node, ast.Import):
            # `import torch.nn` binds `torch`; `import torch.nn as nn` binds `nn`.
            bound = [
                (
                    alias.asname or alias.name.partition(".")[0],
                    alias.name if alias.asname else alias.name.partition(".")[0],
                )
                for alias in node.names
            ]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bound = [
                (alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names
            ]
        else:
            continue
        for own, full in bound:
            if (name == full or name.startswith(f"{full}.")) and _is_bound_once(text.tree, own):
                spelled = own + name[len(full) :]
                if not best or len(spelled) < len(best):
                    best = spelled
    if not best:
        raise Refusal(f"{name.partition('.')[0]} is not imported in that file")
    return best


def _is_bound_once(tree: ast.Module, name: str) -> bool:
    """Whether nothing but an import gives this name a meaning."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load):
            return False
        if isinstance(node, ast.arg) and node.arg == name:
            return False
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return False
    return True


def bound_to(text: SourceText, node: ast.expr) -> ast.expr | None:
    """What a name or `self.name` is assigned, where the file assigns it once and by that alone."""
    if not is_path(node) or text.tree is None:
        return None
    wanted = ast.unparse(node)
    values: list[ast.expr | None] = []
    for found in ast.walk(text.tree):
        targets: list[ast.expr] = []
        if isinstance(found, ast.Assign):
            targets, value = found.targets, found.value
        elif isinstance(found, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)):
            targets, value = [found.target], found.value  # type: ignore[assignment]
        elif isinstance(found, (ast.For, ast.AsyncFor, ast.comprehension)):
            targets, value = [found.target], found.iter
        elif isinstance(found, ast.withitem) and found.optional_vars is not None:
            targets, value = [found.optional_vars], found.context_expr
        for target in targets:
            names = [
                part for part in ast.walk(target) if isinstance(part, (ast.Name, ast.Attribute))
            ]
            if any(ast.unparse(name) == wanted for name in names):
                plain = isinstance(found, (ast.Assign, ast.AnnAssign)) and target is names[0]
                values.append(value if plain else None)
    return values[0] if len(values) == 1 else None


def last_name(node: ast.AST) -> str:
    """`BCELoss` of `nn.BCELoss`; empty where there is none."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
