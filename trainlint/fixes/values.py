"""Where an argument's value comes from: the literal to change, in the call or where its name is defined.

A name is followed only while it is bound once and used once: a value that others share is not theirs to
change. What is computed, looked up or handed in from another file is refused, by name.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainlint.fixes.changes import Change, Refused, replaced, with_keyword
from trainlint.fixes.text import Function, SourceText

_LONGEST_CHAIN: Final = 5
_SHOWN: Final = 40
_COMPREHENSION: Final = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
_SCOPE: Final = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.Module, *_COMPREHENSION
)  # fmt: skip
_PURE: Final = (
    ast.Name, ast.Attribute, ast.Constant, ast.BinOp, ast.operator, ast.expr_context, ast.UnaryOp,
    ast.unaryop, ast.Subscript, ast.Tuple,
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """An argument, by keyword or position, and what it is to be. `current` is what it is now.

    `factors` are what the value is the product of, such as channels, height and width.
    """

    position: int
    name: str
    value: Any
    current: Any
    factors: tuple[int, ...] = ()


def set_argument(text: SourceText, call: ast.Call, wanted: Wanted) -> Change:
    """The argument set, where its literal stands, or given where it is not. Raises `Refused`."""
    written = argument_of(text, call, wanted)
    if written is not None:
        literal, unsafe = literal_behind(text, written, wanted.current)
        return _valued(text, literal, wanted) + Change(text, unsafe=unsafe)
    parameters = _parameters(text, call)
    if parameters is None or wanted.name not in parameters:
        parent = _call_of_the_base(text, call)
        if parent is not None and argument_of(text, parent, wanted) is not None:
            return set_argument(text, parent, wanted)
        raise Refused(f"the call of `{short(text, call.func)}` does not give `{wanted.name}`")
    return with_keyword(text, call, wanted.name, repr(wanted.value))


def _valued(text: SourceText, literal: ast.expr, wanted: Wanted) -> Change:
    """The value at a literal: of `32 * 6 * 6` the factors that differ, where they are known."""
    parts, factors = _factors(literal), wanted.factors
    if len(parts) == 2 and len(factors) > 2:
        factors = (factors[0], math.prod(factors[1:]))  # `32 * 36`
    if len(parts) < 2 or len(parts) != len(factors) or math.prod(factors) != wanted.value:
        return replaced(text, literal, repr(wanted.value))
    order = max(
        itertools.permutations(factors),
        key=lambda order: sum(
            part.value == factor for part, factor in zip(parts, order, strict=True)
        ),
    )
    change = Change(text)
    for part, factor in zip(parts, order, strict=True):
        if part.value != factor:
            change += replaced(text, part, repr(factor))
    return change


def _factors(node: ast.expr) -> list[ast.Constant]:
    """The numbers of a plain product, in their order; nothing for any other literal."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return [node]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _factors(node.left), _factors(node.right)
        return [*left, *right] if left and right else []
    return []


def argument_of(text: SourceText, call: ast.Call, wanted: Wanted) -> ast.expr | None:
    """What a call gives for the argument, None where it leaves it out. Raises `Refused`."""
    for keyword in call.keywords:
        if keyword.arg == wanted.name:
            return keyword.value
    parameters = _parameters(text, call)
    position = wanted.position
    if parameters is not None:
        known = parameters.index(wanted.name) if wanted.name in parameters else -1
        is_torch = (text.names.meaning(call.func) or "").startswith("torch.")
        if is_torch or known >= 0:
            position = known
    if position < 0:
        return None
    passed = call.args[: position + 1]
    if any(isinstance(arg, ast.Starred) for arg in passed):
        raise Refused(f"`{wanted.name}` is given by a `*`")
    if len(passed) > position:
        return passed[position]
    if any(keyword.arg is None for keyword in call.keywords):
        raise Refused(f"`{wanted.name}` may be given by a `**`")
    return None


def _parameters(text: SourceText, call: ast.Call) -> list[str] | None:
    """Names of the positional parameters of what is called, then of the others; None if not known."""
    meaning = text.names.meaning(call.func)
    if meaning is not None and meaning.startswith("torch."):
        return _torch_parameters(meaning)
    defined = _definition(text, call.func)
    if isinstance(defined, ast.ClassDef):
        defined = next((f for f in _methods(defined) if f.name == "__init__"), None)
        skipped = 1
    else:
        skipped = 0
    if not isinstance(defined, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    own = defined.args
    positional = [arg.arg for arg in (*own.posonlyargs, *own.args)][skipped:]
    return [*positional, *(arg.arg for arg in own.kwonlyargs)]


def _torch_parameters(full: str) -> list[str] | None:
    import torch

    value: Any = torch
    for part in full.split(".")[1:]:
        value = getattr(value, part, None)
    # A class whose own `__init__` takes `*args`, such as `nn.GRU`, names its parameters in its base.
    for part in getattr(value, "__mro__", [value])[:2]:
        try:
            found = inspect.signature(part).parameters.values()
        except (TypeError, ValueError):
            return None
        if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in found):
            names = [parameter.name for parameter in found]
            return (
                names if part is value else names[1:]
            )  # the base is also told which of its kinds it is
    return None


def _definition(text: SourceText, callee: ast.expr) -> ast.AST | None:
    """The only class or function of the file that a plain name stands for."""
    if not isinstance(callee, ast.Name):
        return None
    found = text.names.bindings.get(callee.id, [])
    return found[0].node if len(found) == 1 else None


def _methods(defined: ast.ClassDef) -> list[Function]:
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    return [node for node in defined.body if isinstance(node, kinds)]


def _call_of_the_base(text: SourceText, call: ast.Call) -> ast.Call | None:
    """`super().__init__(8)` in the class of the file that is called, if it is called only here."""
    defined = _definition(text, call.func)
    if not isinstance(defined, ast.ClassDef):
        return None
    calls = [
        node
        for method in _methods(defined)
        if method.name == "__init__"
        for node in ast.walk(method)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "__init__"
        and isinstance(node.func.value, ast.Call)
    ]
    if len(calls) != 1:
        return None
    mentions = _mentions(text, defined.name)
    if len(mentions) != 1:
        raise Refused(f"`{defined.name}` is used in {len(mentions)} places")
    return calls[0]


# ---------------------------------------------------------------------- the literal


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
    scope = _scope_with(text, name, node)
    if scope is None:
        raise Refused(f"`{name}` comes from elsewhere")
    bound = [b.node for b in text.names.bindings[name] if scope_of(text, b.node) is scope]
    if len(bound) > 1:
        raise Refused(f"`{name}` is set in {len(bound)} places")
    uses = _uses(text, name, scope)
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
    scope = _scope_with(text, name, table)
    if scope is None:
        raise Refused(f"`{shown}` comes from elsewhere")
    assert isinstance(node.slice, ast.Constant)
    bound = [b.node for b in text.names.bindings[name] if scope_of(text, b.node) is scope]
    value = _assigned(text, bound[0]) if len(bound) == 1 else None
    if not isinstance(value, ast.Dict) or None in value.keys:
        raise Refused(f"`{name}` is not written out in one place")
    entries = [text.parents[use] for use in _uses(text, name, scope)]
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
    if isinstance(scope, _COMPREHENSION) and inner is scope.generators[0]:
        first = scope.generators[0].iter
        return node is first or any(outer is first for outer in text.around(node))
    return False


def _scope_with(text: SourceText, name: str, node: ast.AST) -> ast.AST | None:
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


def _uses(text: SourceText, name: str, scope: ast.AST) -> list[ast.AST]:
    """Where a name of a scope is read; at the top level and in a class also as an attribute."""
    names = [
        node
        for node in text.walk(ast.Name)
        if isinstance(node, ast.Name)
        and node.id == name
        and isinstance(node.ctx, ast.Load)
        and _scope_with(text, name, node) is scope
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
    if len(reads) != 1 or (set_in_class and _uses(text, node.attr, owner) != [node]):
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
    mentions = _mentions(text, called)
    calls = [text.parents[node] for node in mentions]
    given = []
    for node, call in zip(mentions, calls, strict=True):
        if not isinstance(call, ast.Call) or call.func is not node:
            raise Refused(f"`{called}`, whose argument `{name}` is, is also handed on")
        given += _passed(call, position, name)
    default = dict(_defaults(own)).get(name)
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


def _defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    for parameter, default in zip(reversed(positional), reversed(arguments.defaults), strict=False):
        yield parameter.arg, default
    for parameter, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if value is not None:
            yield parameter.arg, value


def _mentions(text: SourceText, name: str) -> Sequence[ast.expr]:
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


# ---------------------------------------------------------------------- a neighbour's expression


def as_neighbour(
    text: SourceText, call: ast.Call, wanted: Wanted, other: ast.Call, there: Wanted
) -> Change | None:
    """The expression of an argument beside this call in this one's place; None if it says nothing new.

    In a function that builds several blocks only a name is right for each of them. Raises `Refused`.
    """
    theirs = argument_of(text, other, there)
    if theirs is None or is_literal(theirs) or not is_pure(theirs):
        return None
    if scope_of(text, theirs) is not scope_of(text, call) or _is_rebound(text, theirs, call):
        return None
    if text.span(call) < text.span(other) and _in_one_loop(text, call, other):
        return None  # what stands there next is not what stood there last
    content = text.source(theirs)
    written = argument_of(text, call, wanted)
    if written is None:
        parameters = _parameters(text, call)
        if parameters is None or wanted.name not in parameters:
            return None
        return with_keyword(text, call, wanted.name, content)
    if ast.dump(written) == ast.dump(theirs):
        return None
    if is_last_use(text, written):
        raise Refused(f"the argument `{short(text, written)}` would be used no more")
    return replaced(text, written, content)


def is_last_use(text: SourceText, node: ast.expr) -> bool:
    """Whether this is the one place in which an argument is used that callers have to give."""
    if not isinstance(node, ast.Name):
        return False
    scope = _scope_with(text, node.id, node)
    if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    is_argument = any(
        isinstance(bound.node, ast.arg) and scope_of(text, bound.node) is scope
        for bound in text.names.bindings.get(node.id, ())
    )
    is_given = node.id not in dict(_defaults(scope.args))
    return is_argument and is_given and len(_uses(text, node.id, scope)) == 1


def is_pure(node: ast.expr) -> bool:
    """Whether an expression has no calls, so that it may be evaluated once more."""
    return all(isinstance(part, _PURE) for part in ast.walk(node))


def _in_one_loop(text: SourceText, one: ast.AST, other: ast.AST) -> bool:
    kinds = ast.For, ast.AsyncFor, ast.While, *_COMPREHENSION
    loops = {node for node in text.around(one) if isinstance(node, kinds)}
    return any(node in loops for node in text.around(other))


def _is_rebound(text: SourceText, node: ast.expr, call: ast.Call) -> bool:
    """Whether a name in the expression is set between it and the call."""
    first, last = sorted([text.span(node)[0], text.span(call)[0]])
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    attributes = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    for other in text.walk(ast.Name, ast.Attribute):
        assert isinstance(other, (ast.Name, ast.Attribute))
        label = other.id if isinstance(other, ast.Name) else other.attr
        known = names if isinstance(other, ast.Name) else attributes
        if isinstance(other.ctx, ast.Load) or label not in known:
            continue
        if first <= text.span(other)[0] <= last:
            return True
    return False
