"""Which argument a call gives, and another value for it: at its literal, or as one more keyword."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
from dataclasses import dataclass
from typing import Any, Final

from trainlint.fixes.changes import Change, Refused, replaced, with_keyword
from trainlint.fixes.literals import is_literal, literal_behind, short
from trainlint.fixes.scopes import (
    COMPREHENSIONS,
    definition_of,
    is_last_use,
    mentions_of,
    methods_of,
    scope_of,
)
from trainlint.fixes.text import SourceText

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
    defined = definition_of(text, call.func)
    if isinstance(defined, ast.ClassDef):
        defined = next((f for f in methods_of(defined) if f.name == "__init__"), None)
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


def _call_of_the_base(text: SourceText, call: ast.Call) -> ast.Call | None:
    """`super().__init__(8)` in the class of the file that is called, if it is called only here."""
    defined = definition_of(text, call.func)
    if not isinstance(defined, ast.ClassDef):
        return None
    calls = [
        node
        for method in methods_of(defined)
        if method.name == "__init__"
        for node in ast.walk(method)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "__init__"
        and isinstance(node.func.value, ast.Call)
    ]
    if len(calls) != 1:
        return None
    mentions = mentions_of(text, defined.name)
    if len(mentions) != 1:
        raise Refused(f"`{defined.name}` is used in {len(mentions)} places")
    return calls[0]


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


def is_pure(node: ast.expr) -> bool:
    """Whether an expression has no calls, so that it may be evaluated once more."""
    return all(isinstance(part, _PURE) for part in ast.walk(node))


def _in_one_loop(text: SourceText, one: ast.AST, other: ast.AST) -> bool:
    kinds = ast.For, ast.AsyncFor, ast.While, *COMPREHENSIONS
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
