"""Which scope a name belongs to, and where in the file it is used, defined and given a default."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Final

from trainlint.fixes.text import Function, SourceText

COMPREHENSIONS: Final = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
_SCOPE: Final = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.Module, *COMPREHENSIONS
)  # fmt: skip


def scope_of(text: SourceText, node: ast.AST) -> ast.AST:
    """The function, class, comprehension or module whose name space a name at this node belongs to."""
    inner: ast.AST = node
    for outer in text.around(node):
        if isinstance(outer, _SCOPE) and not _is_outside(outer, inner, text, node):
            return outer
        inner = outer
    assert text.tree is not None
    return text.tree


def _is_outside(scope: ast.AST, inner: ast.AST, text: SourceText, node: ast.AST) -> bool:
    """Whether a part of a definition is evaluated around it: defaults, decorators, base classes."""
    if isinstance(scope, ast.ClassDef):
        return inner not in scope.body
    if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        if isinstance(inner, ast.arguments):
            return not isinstance(node, ast.arg)
        return not (inner is scope.body or (isinstance(scope.body, list) and inner in scope.body))
    if isinstance(scope, COMPREHENSIONS) and inner is scope.generators[0]:
        first = scope.generators[0].iter
        return node is first or any(outer is first for outer in text.around(node))
    return False


def scope_with(text: SourceText, name: str, node: ast.AST) -> ast.AST | None:
    """The scope that binds a name, as seen from a node."""
    owners = {id(scope_of(text, b.node)) for b in text.names.bindings.get(name, ())}
    scope: ast.AST | None = scope_of(text, node)
    is_first = True
    while scope is not None:
        if id(scope) in owners and (is_first or not isinstance(scope, ast.ClassDef)):
            return scope
        scope = scope_of(text, scope) if scope is not text.tree else None
        is_first = False
    return None


def uses_of(text: SourceText, name: str, scope: ast.AST) -> list[ast.AST]:
    """Where a name of a scope is read; at the top level and in a class also as an attribute."""
    names = [
        node
        for node in text.walk(ast.Name)
        if isinstance(node, ast.Name)
        and node.id == name
        and isinstance(node.ctx, ast.Load)
        and scope_with(text, name, node) is scope
    ]
    if not isinstance(scope, (ast.Module, ast.ClassDef)):
        return list(names)
    attributes = [
        node
        for node in text.walk(ast.Attribute)
        if isinstance(node, ast.Attribute) and node.attr == name
    ]
    named = [n for n in text.walk(ast.Constant) if isinstance(n, ast.Constant) and n.value == name]
    return [*names, *attributes, *named]


def definition_of(text: SourceText, callee: ast.expr) -> ast.AST | None:
    """The only class or function of the file that a plain name stands for."""
    if not isinstance(callee, ast.Name):
        return None
    found = text.names.bindings.get(callee.id, [])
    return found[0].node if len(found) == 1 else None


def methods_of(defined: ast.ClassDef) -> list[Function]:
    """The methods that a class defines itself."""
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    return [node for node in defined.body if isinstance(node, kinds)]


def mentions_of(text: SourceText, name: str) -> Sequence[ast.expr]:
    """Where a class or function of the file is named, by itself or as an attribute.

    `super(Net, self)` names the class that it stands in, and hands nothing on.
    """
    return [
        node
        for node in text.walk(ast.Name, ast.Attribute)
        if (isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.Attribute) and node.attr == name)
        if not _is_in_super(text, node)
    ]


def _is_in_super(text: SourceText, node: ast.AST) -> bool:
    call = text.parents[node]
    is_super = isinstance(call, ast.Call) and getattr(call.func, "id", "") == "super"
    return is_super and call.args[:1] == [node]  # type: ignore[attr-defined]


def defaults_of(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr]]:
    """Each parameter with a default, and that."""
    positional = [*arguments.posonlyargs, *arguments.args]
    for parameter, default in zip(reversed(positional), reversed(arguments.defaults), strict=False):
        yield parameter.arg, default
    for parameter, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if value is not None:
            yield parameter.arg, value


def is_last_use(text: SourceText, node: ast.expr) -> bool:
    """Whether this is the one place in which an argument is used that callers have to give."""
    if not isinstance(node, ast.Name):
        return False
    scope = scope_with(text, node.id, node)
    if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    is_argument = any(
        isinstance(bound.node, ast.arg) and scope_of(text, bound.node) is scope
        for bound in text.names.bindings.get(node.id, ())
    )
    is_given = node.id not in dict(defaults_of(scope.args))
    return is_argument and is_given and len(uses_of(text, node.id, scope)) == 1
