"""Where a value comes from: the literal to change, followed through names, attributes and parameters.

A name is followed only while it is bound once and used once: a value that others share is not theirs to
change. What is computed, looked up or handed in from another file is refused, by name.
"""

from __future__ import annotations

import ast
from typing import Any, Final

from trainlint.fixes.changes import Refused
from trainlint.fixes.scopes import defaults_of, mentions_of, scope_of, scope_with, uses_of
from trainlint.fixes.text import SourceText

_LONGEST_CHAIN: Final = 5
_SHOWN: Final = 40


def literal_behind(
    text: SourceText, node: ast.expr, current: Any, depth: int = _LONGEST_CHAIN
) -> tuple[ast.expr, bool]:
    """The literal that gives a value, and whether a caller or a default would change. Raises `Refused`."""
    if is_literal(node):
        value = evaluated(node)
        if value != current or isinstance(value, bool) != isinstance(current, bool):
            raise Refused(f"`{short(text, node)}` is not the {current!r} that was seen")
        return node, False
    if depth == 0:
        raise Refused(f"`{short(text, node)}` comes through too many names")
    if isinstance(node, ast.Name):
        return _behind_name(text, node, current, depth - 1)
    if isinstance(node, ast.Attribute):
        return _behind_attribute(text, node, current, depth - 1)
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    ):
        return _behind_entry(text, node, node.value, current, depth - 1)
    raise Refused(f"`{short(text, node)}` is computed")


def is_literal(node: ast.expr) -> bool:
    """`64`, `16 * 5 * 5`, or `(3, 3)`."""
    kinds = (
        ast.BinOp, ast.operator, ast.Constant, ast.UnaryOp, ast.unaryop, ast.Tuple, ast.expr_context
    )  # fmt: skip
    return all(isinstance(part, kinds) for part in ast.walk(node))


def evaluated(node: ast.expr) -> Any:
    """The value of a literal. Raises `Refused` where it has none."""
    try:
        return eval(compile(ast.Expression(node), "<argument>", "eval"), {"__builtins__": {}})
    except (ArithmeticError, TypeError, ValueError, MemoryError) as error:
        raise Refused(f"`{ast.unparse(node)}` has no value") from error


def short(text: SourceText, node: ast.AST) -> str:
    """The text of a node in one short line."""
    shown = " ".join(text.source(node).split())
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"


def _behind_name(
    text: SourceText, node: ast.Name, current: Any, depth: int
) -> tuple[ast.expr, bool]:
    name = node.id
    if any(name in outer.names for outer in text.walk(ast.Global, ast.Nonlocal)):  # type: ignore[attr-defined]
        raise Refused(f"`{name}` is set from another function")
    scope = scope_with(text, name, node)
    if scope is None:
        raise Refused(f"`{name}` comes from elsewhere")
    bound = [b.node for b in text.names.bindings[name] if scope_of(text, b.node) is scope]
    if len(bound) > 1:
        raise Refused(f"`{name}` is set in {len(bound)} places")
    uses = uses_of(text, name, scope)
    if len(uses) != 1:
        raise Refused(f"`{name}` is used in {len(uses)} places")
    if isinstance(bound[0], ast.arg):
        return _behind_parameter(text, bound[0], scope, current, depth)
    if isinstance(bound[0], (ast.Import, ast.ImportFrom)):
        raise Refused(f"`{name}` is imported from another file")
    value = _assigned(text, bound[0])
    if value is None:
        raise Refused(f"`{name}` takes several values")
    return literal_behind(text, value, current, depth)


def _behind_entry(
    text: SourceText, node: ast.Subscript, table: ast.Name, current: Any, depth: int
) -> tuple[ast.expr, bool]:
    """The value in a dictionary that is written out, and of which only entries are read: `cfg["lr"]`."""
    shown, name = short(text, node), table.id
    scope = scope_with(text, name, table)
    if scope is None:
        raise Refused(f"`{shown}` comes from elsewhere")
    assert isinstance(node.slice, ast.Constant)
    bound = [b.node for b in text.names.bindings[name] if scope_of(text, b.node) is scope]
    value = _assigned(text, bound[0]) if len(bound) == 1 else None
    if not isinstance(value, ast.Dict) or None in value.keys:
        raise Refused(f"`{name}` is not written out in one place")
    entries = [text.parents[use] for use in uses_of(text, name, scope)]
    for entry in entries:
        is_read = isinstance(entry, ast.Subscript) and isinstance(entry.ctx, ast.Load)
        if not is_read or not isinstance(entry.slice, ast.Constant):  # type: ignore[attr-defined]
            raise Refused(f"`{name}` is also handed on, or changed")
    key = node.slice.value
    times = sum(entry.slice.value == key for entry in entries)  # type: ignore[attr-defined]
    if times != 1:
        raise Refused(f"`{shown}` is used in {times} places")
    pairs = zip(value.keys, value.values, strict=True)
    written = [v for k, v in pairs if isinstance(k, ast.Constant) and k.value == key]
    if len(written) != 1:
        raise Refused(f"`{shown}` is not written out in one place")
    return literal_behind(text, written[0], current, depth)


def _assigned(text: SourceText, target: ast.AST) -> ast.expr | None:
    """What is assigned to a name or an attribute, where that is one value."""
    parent = text.parents[target]
    if isinstance(parent, ast.Assign) and parent.targets == [target]:
        return parent.value
    if isinstance(parent, (ast.AnnAssign, ast.NamedExpr)) and parent.target is target:
        return parent.value
    if isinstance(parent, (ast.Tuple, ast.List)):
        outer = text.parents[parent]
        if isinstance(outer, ast.Assign) and outer.targets == [parent]:
            given = outer.value
            plain = isinstance(given, (ast.Tuple, ast.List)) and len(given.elts) == len(parent.elts)
            starred = any(isinstance(part, ast.Starred) for part in parent.elts)
            if plain and not starred:
                return given.elts[parent.elts.index(target)]  # type: ignore[attr-defined, arg-type, no-any-return]
    return None


def _behind_attribute(
    text: SourceText, node: ast.Attribute, current: Any, depth: int
) -> tuple[ast.expr, bool]:
    shown = short(text, node)
    owner = text.class_of(node)
    if (
        owner is None
        or not isinstance(node.value, ast.Name)
        or node.value.id not in ("self", owner.name)
    ):
        raise Refused(f"`{shown}` is set elsewhere")
    same = [n for n in text.walk(ast.Attribute) if isinstance(n, ast.Attribute)]
    same = [n for n in same if n.attr == node.attr]
    set_in_class = [
        target
        for statement in owner.body
        for target in ast.walk(statement)
        if isinstance(target, ast.Name)
        and target.id == node.attr
        and not isinstance(target.ctx, ast.Load)
        and scope_of(text, target) is owner
    ]
    places: list[ast.AST] = [n for n in same if not isinstance(n.ctx, ast.Load)]
    places += set_in_class
    reads = [n for n in same if isinstance(n.ctx, ast.Load)]
    if len(places) != 1:
        why = f"is set in {len(places)} places" if places else "is set elsewhere"
        raise Refused(f"`{shown}` {why}")
    if len(reads) != 1 or (set_in_class and uses_of(text, node.attr, owner) != [node]):
        raise Refused(f"`{shown}` is used in {max(len(reads), 2)} places")
    value = _assigned(text, places[0])
    if value is None:
        raise Refused(f"`{shown}` takes several values")
    return literal_behind(text, value, current, depth)


# ---------------------------------------------------------------------- parameters


def _behind_parameter(
    text: SourceText, parameter: ast.arg, scope: ast.AST, current: Any, depth: int
) -> tuple[ast.expr, bool]:
    """The default that nobody overrides, or what the only call gives."""
    name = parameter.arg
    if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise Refused(f"`{name}` is an argument of a lambda")
    own = scope.args
    if parameter in (own.vararg, own.kwarg):
        raise Refused(f"`{name}` takes what is left of the arguments")
    owner = text.parents[scope] if isinstance(text.parents[scope], ast.ClassDef) else None
    called = (
        owner.name if isinstance(owner, ast.ClassDef) and scope.name == "__init__" else scope.name
    )
    positional = [*own.posonlyargs, *own.args]
    position = (
        positional.index(parameter) - (owner is not None) if parameter in positional else None
    )
    mentions = mentions_of(text, called)
    calls = [text.parents[node] for node in mentions]
    given = []
    for node, call in zip(mentions, calls, strict=True):
        if not isinstance(call, ast.Call) or call.func is not node:
            raise Refused(f"`{called}`, whose argument `{name}` is, is also handed on")
        given += _passed(call, position, name)
    default = dict(defaults_of(own)).get(name)
    if not given and default is not None:
        return literal_behind(text, default, current, depth)[0], True
    if len(calls) == 1 and given:
        return literal_behind(text, given[0], current, depth)[0], True
    if not calls:
        raise Refused(f"`{name}` is given by callers in other files")
    raise Refused(f"`{name}` is an argument of `{called}`, which is called in {len(calls)} places")


def _passed(call: ast.Call, position: int | None, name: str) -> list[ast.expr]:
    starred = any(isinstance(arg, ast.Starred) for arg in call.args)
    if starred or any(keyword.arg is None for keyword in call.keywords):
        raise Refused(f"`{name}` may be given by a `*` or a `**`")
    found = [keyword.value for keyword in call.keywords if keyword.arg == name]
    if position is not None and len(call.args) > position:
        found.append(call.args[position])
    return found
