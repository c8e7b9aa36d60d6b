"""Taking away what stands around statements: a `with` of one purpose, or a decorator."""

from __future__ import annotations

import ast
from typing import Final

from trainlint.fixes.changes import Change, Insertion, Refused, Rewrite
from trainlint.fixes.edit import Location
from trainlint.fixes.statements import indentation
from trainlint.fixes.text import Function, SourceText

# What a block may hold so that it does the same with gradients recorded.
_PLAIN: Final = (ast.Assign, ast.AnnAssign, ast.Return, ast.Pass)


def without_context(text: SourceText, start: Location) -> Change:
    """Without the context manager or decorator whose expression begins there. Raises `Refused`."""
    for node in text.walk(ast.With, ast.FunctionDef):
        if isinstance(node, ast.With):
            for item in node.items:
                if _begins(text, item.context_expr, start):
                    return _dedented(text, node)
        elif isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if _begins(text, decorator, start):
                    return _undecorated(text, node, decorator)
    raise Refused("it is switched off in another way than by a `with` or a decorator")


def _begins(text: SourceText, node: ast.expr, start: Location) -> bool:
    return text.location(node.lineno, node.col_offset) == start


def _dedented(text: SourceText, block: ast.With) -> Change:
    """The statements of a block in its place."""
    if len(block.items) > 1 or block.items[0].optional_vars is not None:
        raise Refused("the `with` has another purpose as well")
    _check_plain(block.body)
    start, first = text.span(block)[0], text.span(block.body[0])[0]
    if text.comments(start, first):
        raise Refused("a comment stands in the text to be removed")
    outer, inner = indentation(text, block), indentation(text, block.body[0])
    if outer is None:
        raise Refused("the block shares its line with others")
    splices = []
    if inner is None:  # `with torch.no_grad(): x = f(x)`
        splices.append((start, first, ""))
    else:
        if not inner.startswith(outer) or text.place(start).row == text.place(first).row:
            raise Refused("the text there does not allow it")
        splices.append((text.starts[block.lineno - 1], text.starts[text.place(first).row - 1], ""))
        for row in range(text.place(first).row, (block.end_lineno or block.lineno) + 1):
            if text.lines[row - 1].startswith(inner):
                offset = text.starts[row - 1]
                splices.append((offset + len(outer), offset + len(inner), ""))
    moved = Insertion(block, True, "what the block holds", tuple(block.body))
    change = Change(text, tuple(splices), (), (moved,), (block,))
    if not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def _check_plain(body: list[ast.stmt]) -> None:
    """Raise `Refused` where something is written in place, which gradients would not allow."""
    for statement in body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        names = [part for target in targets for part in ast.walk(target)]
        writes = any(isinstance(part, (ast.Subscript, ast.Attribute)) for part in names)
        in_place = any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr.endswith("_")
            and not node.func.attr.endswith("__")
            for node in ast.walk(statement)
        )
        if not isinstance(statement, _PLAIN) or writes or in_place:
            raise Refused("the block does more than to compute values")


def _undecorated(text: SourceText, function: Function, decorator: ast.expr) -> Change:
    _check_decorated(function)
    row = decorator.lineno
    line = text.lines[row - 1]
    if (decorator.end_lineno or row) != row or line.strip() != f"@{text.source(decorator)}":
        raise Refused("the decorator shares its line with others")
    index = function.decorator_list.index(decorator)

    def make(copy: Function) -> ast.AST:
        copy.decorator_list = [d for n, d in enumerate(copy.decorator_list) if n != index]
        return copy

    splice = (text.starts[row - 1], text.starts[row], "")
    change = Change(text, (splice,), (Rewrite(function, f"without decorator {index}", make),))
    if not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def _check_decorated(function: Function) -> None:
    writes = any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr.endswith("_")
        and not node.func.attr.endswith("__")
        for node in ast.walk(function)
    )
    if writes:
        raise Refused(f"`{function.name}` writes in place")
