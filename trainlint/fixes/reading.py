"""Read the user's source around a site: statements, scopes, and what a name is assigned.

What cannot be edited raises `Refused`, whose text is the obstacle that a fix then shows. No torch.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, ParamSpec

import msgspec

from trainlint.fixes.changes import Refused
from trainlint.fixes.edit import Fix, Safety

if TYPE_CHECKING:
    from trainlint.fixes.patch import Patch
    from trainlint.fixes.source import SourceEdits, SourceText
    from trainlint.sites import Site

_Given = ParamSpec("_Given")
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


def refusable(make: Callable[_Given, Fix]) -> Callable[_Given, Fix]:
    """A function that makes the fix of a `title`: where it is `Refused`, that without an edit."""

    @functools.wraps(make)
    def made(*args: _Given.args, **kwargs: _Given.kwargs) -> Fix:
        try:
            return make(*args, **kwargs)
        except Refused as refusal:
            return Fix(str(kwargs["title"]), obstacle=str(refusal))

    return made


# ---------------------------------------------------------------------- reading the source


def scope(text: SourceText, node: ast.AST) -> ast.AST | None:
    """The function or class around a node, or the module."""
    return next((outer for outer in text.around(node) if isinstance(outer, _SCOPES)), None)


def statement(text: SourceText, node: ast.AST) -> ast.stmt:
    """The innermost statement around a node."""
    found = text.statement_of(node)
    if found is None:
        raise Refused("it stands in no statement")
    return found


def around(text: SourceText, node: ast.AST) -> list[ast.stmt]:
    """The statement of a node and those around it, innermost first, up to its function."""
    found = [statement(text, node)]
    while (outer := text.parents.get(found[-1])) is not None and not isinstance(outer, _SCOPES):
        found.append(statement(text, outer))
    return found


def call(edits: SourceEdits, site: Site | None, what: str) -> tuple[SourceText, ast.Call]:
    """The call at a site in a file that may be edited; `what` names it where there is none."""
    text = None if site is None else edits.text(site.filename)
    if text is None or site is None or text.tree is None:
        raise Refused(f"{what} stands in no file of yours")
    found = text.call_at(site)
    if found is None:
        raise Refused(f"the call of {what} is not found in the source")
    return text, found


def is_path(node: ast.AST) -> bool:
    """`optimizer`, or `self.optimizer`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


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


def statement_of_site(edits: SourceEdits, site: Site | None) -> tuple[SourceText, ast.stmt]:
    """The innermost statement around what the site's instruction executes."""
    text = None if site is None else edits.text(site.filename)
    span = None if site is None else site.span()
    if text is None or text.tree is None or span is None:
        raise Refused("the line stands in no file of yours")
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
        raise Refused("the line holds several statements")
    return text, found[0]


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
