"""Whether a loss asks for the next token: its target is the model's own input, one step later.

Comes in: the call of a loss in a file's syntax tree, and who looks names up there. Both the target and
the argument of the model's call are followed back to the tensor that they are slices of: `ids[:, 1:]` and
`ids[:, :-1]`, `data[i + 1 : i + 1 + n]` and `data[i : i + n]`, also where a function or a dataset of the
file makes the pair. What cannot be followed claims nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

_DEEPEST: Final = 14
_MOST_BINDINGS: Final = 3
Function = ast.FunctionDef | ast.AsyncFunctionDef
# These arrange, move or convert a tensor and leave the order of its positions.
_SAME_ORDER: Final = frozenset(
    "view reshape flatten contiguous transpose permute t long int to cuda cpu pin_memory type clone detach "
    "unsqueeze squeeze from_numpy as_tensor tensor LongTensor stack asarray array astype float mT T "
    "numpy pin_memory log_softmax softmax".split()
)


class Names(Protocol):
    """What looks up names in a file."""

    def definitions(self, expression: ast.expr) -> Sequence[Any]:
        """The bindings that may hold there, each with `value`, `element` and `statement`."""

    def made_by(self, callee: ast.expr) -> ast.expr | None:
        """What the file's own function of that name returns."""


@dataclass(frozen=True)
class _Slice:
    """From `start` on, of the tensor called `base`; `start` counts from what `base` says."""

    base: str
    start: int


def asks_for_next(call: ast.Call, tree: ast.AST, names: Names) -> int | str | None:
    """The model's argument, by place or name, whose next tokens the loss has for its target."""
    given = {word.arg: word.value for word in call.keywords}
    scores = call.args[0] if call.args else given.get("input")
    target = call.args[1] if len(call.args) > 1 else given.get("target")
    found = None if scores is None else _model_call(scores, names, _DEEPEST)
    later = None if target is None else _slice(target, (), names, _DEEPEST)
    if found is None or later is None:
        return None
    model, skipped = found
    arguments: list[tuple[int | str, ast.expr]] = [
        *enumerate(model.args),
        *((word.arg, word.value) for word in model.keywords if word.arg),
    ]
    for place, argument in arguments:
        here = _slice(argument, (), names, _DEEPEST)
        if here is None:
            continue
        if here.base == later.base and later.start - here.start - skipped == 1:
            return place
        if not skipped and _are_a_pair(here, later) and _has_dataset_of_pairs(tree, names):
            return place
    return None


def asks_for_next_inside(
    loss: ast.Call, forward: Function, calls: Iterable[ast.Call], tree: ast.AST, names: Names
) -> str | None:
    """The same for a loss in the `forward`, whose target is an argument of it: `model(x, y)`.

    `calls` are those of the model in the file.
    """
    given = {word.arg: word.value for word in loss.keywords}
    scores = loss.args[0] if loss.args else given.get("input")
    target = loss.args[1] if len(loss.args) > 1 else given.get("target")
    parameters = [each.arg for each in (*forward.args.posonlyargs, *forward.args.args)][1:]
    if scores is None or target is None or not _keeps_positions(scores, names, _DEEPEST):
        return None
    targets = _argument_of(target, forward)
    for call in calls if targets in parameters else ():
        if any(isinstance(value, ast.Starred) for value in call.args):
            continue
        passed = dict(zip(parameters, call.args, strict=False))
        passed |= {word.arg: word.value for word in call.keywords if word.arg}
        later = _slice(passed[targets], (), names, _DEEPEST) if targets in passed else None
        for name, value in passed.items() if later is not None else ():
            here = _slice(value, (), names, _DEEPEST)
            if here is None or later is None:
                continue
            if here.base == later.base and later.start - here.start == 1:
                return name
            if _are_a_pair(here, later) and _has_dataset_of_pairs(tree, names):
                return name
    return None


def _argument_of(expression: ast.expr | None, function: Function) -> str | None:
    """The name that an expression only arranges anew, where the function does no more to it either."""
    while isinstance(expression, ast.Call):
        expression = _rearranged(expression)
    if not isinstance(expression, ast.Name):
        return None
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == expression.id:
            is_bound = not isinstance(node.ctx, ast.Load)
            if is_bound and not any(node in each.targets for each in _rearranging(function, node)):
                return None
    return expression.id


def _rearranging(function: Function, name: ast.Name) -> list[ast.Assign]:
    """The statements `x = x.view(-1)` of a function."""
    return [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and _arranges(node.value, name)
    ]


def _keeps_positions(expression: ast.expr, names: Names, depth: int) -> bool:
    """Whether scores come from a call without any part of them left out on the way."""
    if isinstance(expression, ast.Call) and depth:
        inner = _rearranged(expression)
        return inner is None or _keeps_positions(inner, names, depth - 1)
    found = _only_definition(expression, names) if isinstance(expression, ast.Name) else None
    return found is not None and depth > 0 and _keeps_positions(found.value, names, depth - 1)


def _model_call(expression: ast.expr, names: Names, depth: int) -> tuple[ast.Call, int] | None:
    """The call that made the scores, and how many of its first positions were left out since."""
    if depth == 0:
        return None
    if isinstance(expression, ast.Subscript):
        start = _start(expression)
        found = _model_call(expression.value, names, depth - 1)
        if start is None or start[0] or found is None:
            # A part of what the model returned, `output[0]`, is followed as well.
            return found if _is_part(expression) else None
        return found[0], found[1] + start[1]
    if isinstance(expression, ast.Attribute):
        return _model_call(expression.value, names, depth - 1)
    if isinstance(expression, ast.Call):
        inner = _rearranged(expression)
        return (expression, 0) if inner is None else _model_call(inner, names, depth - 1)
    definition = _only_definition(expression, names)
    if definition is None or definition.element[1:]:
        return None
    return _model_call(definition.value, names, depth - 1)


def _slice(
    expression: ast.expr, element: tuple[str, ...], names: Names, depth: int
) -> _Slice | None:
    """Which part of which tensor an expression is."""
    if depth == 0:
        return None
    if isinstance(expression, (ast.Tuple, ast.List)) and element and element[0].isdigit():
        place = int(element[0])
        if place < len(expression.elts):
            return _slice(expression.elts[place], element[1:], names, depth - 1)
        return None
    if isinstance(expression, ast.Subscript) and not element:
        start = _start(expression)
        whole = _slice(expression.value, (), names, depth - 1)
        if whole is not None and isinstance(expression.slice, ast.Constant):
            return _Slice(f"{whole.base}[{expression.slice.value!r}]", whole.start)
        if start is None or whole is None:
            return None
        return _Slice(f"{whole.base}{start[0] and f'[{start[0]}]'}", whole.start + start[1])
    if isinstance(expression, (ast.ListComp, ast.GeneratorExp)) and not element:
        return _slice(expression.elt, (), names, depth - 1)
    if isinstance(expression, ast.Call):
        inner = _rearranged(expression)
        if inner is not None:
            return _slice(inner, element, names, depth - 1)
        returned = names.made_by(expression.func)
        return None if returned is None else _slice(returned, element, names, depth - 1)
    if isinstance(expression, (ast.Name, ast.Attribute)):
        return _named(expression, element, names, depth)
    return None


def _named(
    expression: ast.Name | ast.Attribute, element: tuple[str, ...], names: Names, depth: int
) -> _Slice | None:
    bound = names.definitions(expression)
    values = [each for each in bound if each.value is not None]
    found = {
        _slice(each.value, (*each.element, *element), names, depth - 1)
        for each in values[:_MOST_BINDINGS]
    }
    if len(found) == 1 and len(values) == len(bound) <= _MOST_BINDINGS and None not in found:
        return found.pop()
    if len(bound) > 1:
        return None
    # Where it comes from cannot be followed: told apart from others of that name by where it is bound.
    row = getattr(bound[0].statement, "lineno", 0) if bound else 0
    part = ".".join((*(bound[0].element if bound else ()), *element))
    is_loop = bool(bound) and bound[0].value is None
    return _Slice(f"{'' if is_loop else ast.unparse(expression)}@{row}#{part}", 0)


def _arranges(value: ast.expr | None, name: ast.expr) -> bool:
    """Whether a value is this name, arranged anew."""
    inner = value
    while isinstance(inner, ast.Call):
        inner = _rearranged(inner)
    return inner is not value and inner is not None and ast.unparse(inner) == ast.unparse(name)


def _only_definition(expression: ast.expr, names: Names) -> Any:
    bound = names.definitions(expression)
    return bound[0] if len(bound) == 1 and bound[0].value is not None else None


def _rearranged(call: ast.Call) -> ast.expr | None:
    """The tensor that a call only arranges anew; None for other calls."""
    callee = call.func
    name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
    if name not in _SAME_ORDER:
        return None
    if isinstance(callee, ast.Attribute) and not _is_library(callee.value):
        return callee.value
    return call.args[0] if call.args else None


def _is_library(expression: ast.expr) -> bool:
    return ast.unparse(expression) in ("torch", "np", "numpy", "F", "torch.nn.functional", "nn")


def _is_part(expression: ast.Subscript) -> bool:
    return isinstance(expression.slice, ast.Constant)


def _start(expression: ast.Subscript) -> tuple[str, int] | None:
    """Where the one slice that leaves out the beginning begins: an expression and a number."""
    index = expression.slice
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    starts = []
    for part in parts:
        if isinstance(part, ast.Slice):
            if part.step is not None:
                return None
            if part.lower is not None:
                starts.append(_sum(part.lower))
        elif not (isinstance(part, ast.Constant) and part.value is ...):
            return None
    return starts[0] if len(starts) == 1 else None if starts else ("", 0)


def _sum(expression: ast.expr) -> tuple[str, int]:
    """`i + 1` as `i` and 1."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, int):
        return "", expression.value
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.Add):
        left, right = _sum(expression.left), _sum(expression.right)
        return "+".join(filter(None, (left[0], right[0]))), left[1] + right[1]
    return ast.unparse(expression), 0


# ---------------------------------------------------------------------- pairs from a dataset


def _are_a_pair(here: _Slice, later: _Slice) -> bool:
    """Whether one loop hands out both: `for x, y in loader`."""
    first, _, one = here.base.partition("#")
    second, _, two = later.base.partition("#")
    same = first == second and here.start == later.start == 0
    return same and one != two and one.endswith("0") and two.endswith("1")


def _has_dataset_of_pairs(tree: ast.AST, names: Names) -> bool:
    """Whether a `__getitem__` of the file returns a sequence and the same one step later."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name == "__getitem__":
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                    first, *others = (_slice(v, (), names, _DEEPEST) for v in node.value.elts)
                    if any(
                        first and later and first.base == later.base
                        and later.start - first.start == 1
                        for later in others
                    ):  # fmt: skip
                        return True
    return False
