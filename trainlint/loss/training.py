"""Whether a file trains a model: its optimizers, their parameters, and calls of `backward`.

Comes in: a file's syntax tree, and who looks names up there. Goes out: a `Training`, which rules need to
tell a model that shall learn from one that is only applied. Imports no torch and runs nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

_OPTIMIZER: Final = re.compile(
    r"Adam|SGD|RMSprop|Adagrad|Adadelta|Rprop|LBFGS|Lion|LAMB|Lamb|Adafactor|Optimizer$"
)
_DEEPEST: Final = 4


class Names(Protocol):
    """What looks up names in a file."""

    def definitions(self, expression: ast.expr) -> Sequence[Any]:
        """The bindings that may hold there, each with `value`."""

    def models_of(self, expression: ast.expr) -> frozenset[str] | None:
        """Names by which a model may be known; None if it is none."""


@dataclass(frozen=True)
class Training:
    """What a file shows of training.

    `optimized` holds for each optimizer that it makes the names of the models whose parameters that
    gets, empty where they could not be told. `unfreezes` tells whether it asks for gradients of anything,
    later on or of an input.
    """

    optimized: tuple[frozenset[str], ...] = ()
    has_backward: bool = False
    unfreezes: bool = False

    @property
    def is_any(self) -> bool:
        """Whether anything at all is trained there."""
        return self.has_backward or bool(self.optimized)


def training_in(tree: ast.AST, names: Names) -> Training:
    """What the file shows of training."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = [call for call in calls if call.args or call.keywords]
    return Training(
        optimized=tuple(
            _optimized(call, names) for call in made if _OPTIMIZER.search(_last_name(call.func))
        ),
        has_backward=any(
            _last_name(call.func) in ("backward", "manual_backward") for call in calls
        ),
        unfreezes=any(_asks_for_gradients(node) for node in ast.walk(tree)),
    )


def _last_name(callee: ast.expr) -> str:
    return callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")


def _optimized(call: ast.Call, names: Names) -> frozenset[str]:
    given = call.args[0] if call.args else None
    for word in call.keywords:
        given = word.value if word.arg in ("params", "parameters") else given
    found = [] if given is None else [names.models_of(m) for m in _owners(given, names, _DEEPEST)]
    return frozenset[str]().union(*(models for models in found if models))


def _owners(expression: ast.expr, names: Names, depth: int) -> Iterator[ast.expr]:
    """`model` of `model.parameters()`, and of a list or filter of these, also by a name for it."""
    for part in ast.walk(expression):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
            if part.func.attr in ("parameters", "named_parameters"):
                yield part.func.value
        elif isinstance(part, ast.Name) and depth:
            for definition in names.definitions(part):
                if isinstance(definition.value, ast.expr):
                    yield from _owners(definition.value, names, depth - 1)


def _asks_for_gradients(node: ast.AST) -> bool:
    """`x.requires_grad_()`, `p.requires_grad = flag`, `requires_grad=True`; not where it says False."""
    if isinstance(node, ast.Call) and _last_name(node.func) == "requires_grad_":
        given = [*node.args, *(word.value for word in node.keywords)]
        return not given or not _is_false(given[0])
    if isinstance(node, ast.Assign):
        is_set = any(getattr(target, "attr", "") == "requires_grad" for target in node.targets)
        return is_set and not _is_false(node.value)
    return (
        isinstance(node, ast.keyword) and node.arg == "requires_grad" and not _is_false(node.value)
    )


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False
