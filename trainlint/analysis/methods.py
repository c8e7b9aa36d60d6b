"""The methods that a class really has, as syntax trees: what its code names and calls.

A function is found by its code object's file and first row, so that decorated, inherited and
re-defined ones come out right. Imports no torch.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from trainlint.fixes.source import SourceText

Function = ast.FunctionDef | ast.AsyncFunctionDef
# Of the classes that models are built on, these name no user's attribute.
_END_OF_INHERITANCE: Final = ("torch.nn.modules.module", "builtins", "typing", "abc")


@dataclass(frozen=True)
class Method:
    """A function of a class: the class that defines it, its file and its syntax tree."""

    name: str
    owner: type
    filename: str
    tree: Function


@lru_cache(maxsize=256)
def source_of(filename: str) -> SourceText | None:
    """The text of a file, read once."""
    return SourceText.read(filename)


@lru_cache(maxsize=256)
def _functions_by_row(filename: str) -> dict[tuple[int, str], Function]:
    source = source_of(filename)
    if source is None or source.tree is None:
        return {}
    found: dict[tuple[int, str], Function] = {}
    for node in _statements(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(line.lineno for line in node.decorator_list)])
            found[first, node.name] = node
    return found


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements below, and no expressions: they are nine tenths of a tree."""
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for statement in getattr(tree, block, ()):
            yield statement
            yield from _statements(statement)


def own_methods(
    owner: type, *, within: Callable[[str], bool] | None = None
) -> Iterator[Method | None]:
    """The methods that the class itself defines; None for each whose source cannot be had.

    With `within`, only those of files whose names it accepts: no other file is parsed.
    """
    for value in list(vars(owner).values()):
        function: Any = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if not callable(function) or isinstance(function, type):
            continue
        function = inspect.unwrap(function)
        code = getattr(function, "__code__", None)
        if code is None or not (within is None or within(code.co_filename)):
            continue
        tree = _functions_by_row(code.co_filename).get((code.co_firstlineno, code.co_name))
        yield None if tree is None else Method(code.co_name, owner, code.co_filename, tree)


@lru_cache(maxsize=1024)
def resolved_methods(owner: type) -> tuple[tuple[Method, ...], bool]:
    """The methods that a call on an instance can reach, and whether the source of all was found.

    An inherited method that is overridden counts only if the one that hides it calls `super()`'s.
    """
    found: list[Method] = []
    hidden: set[str] = set()
    complete = True
    for base in owner.__mro__:
        if base.__module__.startswith(_END_OF_INHERITANCE):
            continue
        above: set[str] = set()
        for method in own_methods(base):
            if method is None:
                complete = False
                continue
            above.add(method.name)
            if method.name not in hidden:
                found.append(method)
        hidden |= above - {name for method in found for name in _called_on_super(method.tree)}
    return tuple(found), complete


def _called_on_super(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
            callee = node.value.func
            if isinstance(callee, ast.Name) and callee.id == "super":
                yield node.attr


def is_initializer(name: str) -> bool:
    """Whether a function of this name fills weights rather than uses them."""
    words = name.strip("_").split("_")
    return name == "__init__" or any(
        word in ("init", "initialize", "initialise", "reset", "inits") for word in words
    )
