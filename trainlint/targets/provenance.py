"""Where the objects of a script come from, by syntax alone: which imported classes and functions made them.

Names are followed through assignments, parameters (to annotations and calls), attributes of `self`, what
functions of the file return, and bases of its classes. What cannot be followed has no origin.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from functools import cached_property
from typing import Final

Function = ast.FunctionDef | ast.AsyncFunctionDef
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# What is fitted by these is what they were given: `GridSearchCV(net, ...).fit(x, y)`.
_WRAPPERS: Final = "sklearn"
# A value, the outermost function that it stands in (None at module level), and that one's class.
_Place = tuple[ast.expr, "Scope"]


class Scope:
    """A function of the file, or a method of a class of it; with neither, what stands at module level."""

    def __init__(self, function: Function | None = None, owner: ast.ClassDef | None = None) -> None:
        self.function = function
        self.owner = owner


MODULE: Final = Scope()


class Provenance:
    """The origins of one file's objects, as dotted names: `lightning.pytorch.Trainer`."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self.functions = {node.name: node for node in tree.body if isinstance(node, Function)}
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self._imports: dict[str, set[str]] = {}
        self._stars: list[str] = []
        self._named: dict[tuple[int, str], set[str]] = {}
        self._assigned: dict[int, dict[str, list[ast.expr]]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    self._imports.setdefault(name, set()).add(alias.name if alias.asname else name)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    if alias.name == "*":
                        self._stars.append(node.module)
                    else:
                        known = self._imports.setdefault(alias.asname or alias.name, set())
                        known.add(f"{node.module}.{alias.name}")

    def makers(self, value: ast.expr, scope: Scope) -> set[str]:
        """The imported classes and functions that made this value, or that its class derives from."""
        return self._united([(value, scope)], set())

    def given(self, call: ast.Call, scope: Scope) -> set[str]:
        """The makers of all that a call is given, also within lists and tuples."""
        return self._united(_given(call, scope), set())

    def callees(self, name: str) -> list[str]:
        """What is called by its plain name to make the value of a name at module level."""
        values = self._assignments(self._tree).get(name, ())
        calls = (value.func for value in values if isinstance(value, ast.Call))
        return [callee.id for callee in calls if isinstance(callee, ast.Name)]

    def named(self, node: ast.expr, scope: Scope) -> set[str]:
        """What a callee is by the file's imports: `{"torch.optim.SGD"}` for `optim.SGD`."""
        if isinstance(node, ast.Subscript):  # `Trainer[Config]`
            return self.named(node.value, scope)
        if isinstance(node, ast.Attribute):
            return {f"{name}.{node.attr}" for name in self.named(node.value, scope)}
        if not isinstance(node, ast.Name):
            return set()
        key = (id(scope.function), node.id)
        if key not in self._named:
            self._named[key] = set()  # for `x = x.data`
            self._named[key] = self._name(node.id, scope)
        return self._named[key]

    def bases(self, node: ast.ClassDef, below: tuple[ast.ClassDef, ...] = ()) -> set[str]:
        """The imported classes that a class of the file derives from, also through others of it."""
        found: set[str] = set()
        for base in node.bases:
            own = self.classes.get(base.id) if isinstance(base, ast.Name) else None
            if own is None:
                found |= self.named(base, MODULE)
            elif own not in (node, *below):
                found |= self.bases(own, (*below, node))
        return found

    def _united(self, places: list[_Place], seen: set[int]) -> set[str]:
        """The makers of all these values; `seen` are expressions that count already."""
        found: set[str] = set()
        for value, scope in places:
            if id(value) not in seen:
                seen.add(id(value))
                found |= self._makers(value, scope, seen)
        return found

    def _makers(self, value: ast.expr, scope: Scope, seen: set[int]) -> set[str]:
        if isinstance(value, ast.Name):
            found = self._united(self._values(value.id, scope), seen)
            return found | self._annotated(value, scope)
        if isinstance(value, ast.Attribute):
            is_own = isinstance(value.value, ast.Name) and value.value.id == "self"
            if is_own and scope.owner is not None:
                return self._united(self._attributes(value.attr, scope.owner), seen)
        elif isinstance(value, ast.Call):
            return self._made(value, scope, seen)
        elif isinstance(value, ast.IfExp):
            return self._united([(value.body, scope), (value.orelse, scope)], seen)
        elif isinstance(value, ast.BoolOp):
            return self._united([(part, scope) for part in value.values], seen)
        elif isinstance(value, (ast.NamedExpr, ast.Await)):
            return self._united([(value.value, scope)], seen)
        return set()

    def _made(self, call: ast.Call, scope: Scope, seen: set[int]) -> set[str]:
        callee = call.func
        if isinstance(callee, ast.Name) and callee.id in self.functions:
            function = self.functions[callee.id]
            returned = [
                (part.value, Scope(function))
                for part in ast.walk(function)
                if isinstance(part, ast.Return) and part.value is not None
            ]
            return self._united(returned, seen)
        if isinstance(callee, ast.Name) and callee.id in self.classes:
            return self.bases(self.classes[callee.id])
        found = self.named(callee, scope)
        if not found and isinstance(callee, ast.Attribute):
            return self._united([(callee.value, scope)], seen)  # `Net(...).initialize()`
        if any(name.partition(".")[0] == _WRAPPERS for name in found):
            return found | self._united(_given(call, scope), seen)
        return found

    def _name(self, name: str, scope: Scope) -> set[str]:
        found: set[str] = set()
        for value, where in self._values(name, scope):  # `Trainer = lightning.Trainer`
            if isinstance(value, (ast.Name, ast.Attribute)):
                found |= self.named(value, where)
        if found or name in self._imports:
            return found | self._imports.get(name, set())
        if name in self.functions or name in self.classes:
            return set()
        return {f"{module}.{name}" for module in self._stars}

    # ------------------------------------------------------------------ names

    def _values(self, name: str, scope: Scope) -> list[_Place]:
        """What is assigned to the name where it is used, or at module level, or given as an argument."""
        if scope.function is not None:
            own = self._assignments(scope.function).get(name)
            if own:
                return [(value, scope) for value in own]
            place = _parameter(scope.function, name)
            if place is not None:
                return self._arguments(scope, name, place)
        return [(value, MODULE) for value in self._assignments(self._tree).get(name, ())]

    def _annotated(self, node: ast.Name, scope: Scope) -> set[str]:
        """`trainer: "L.Trainer | None"`."""
        arguments = scope.function.args if scope.function is not None else None
        if arguments is None:
            return set()
        found: set[str] = set()
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.arg == node.id and argument.annotation is not None:
                for part in ast.walk(_parsed(argument.annotation)):
                    if isinstance(part, (ast.Name, ast.Attribute)):
                        found |= self.named(part, MODULE)
        return found

    def _attributes(self, name: str, owner: ast.ClassDef) -> list[_Place]:
        """What methods of the class assign to the attribute."""
        found: list[_Place] = []
        for method in (part for part in owner.body if isinstance(part, Function)):
            values = self._assignments(method).get(f"self.{name}", ())
            found += [(value, Scope(method, owner)) for value in values]
        return found

    def _assignments(self, node: Function | ast.Module) -> dict[str, list[ast.expr]]:
        """The values of names and of attributes of `self`; at module level without those of functions."""
        if id(node) not in self._assigned:
            found = self._assigned.setdefault(id(node), {})
            parts = ast.walk(node) if isinstance(node, Function) else _at_module_level(node)
            for part in parts:
                for target, value in _assigned(part):
                    found.setdefault(target, []).append(value)
        return self._assigned[id(node)]

    def _arguments(self, scope: Scope, name: str, place: int) -> list[_Place]:
        """What calls in the file give for a parameter."""
        assert scope.function is not None
        called = scope.function.name
        if scope.owner is not None:
            place -= 1  # `self`
            called = scope.owner.name if called == "__init__" else called
        found: list[_Place] = []
        for call, where in self._calls.get(called, ()):
            values = [keyword.value for keyword in call.keywords if keyword.arg == name]
            if 0 <= place < len(call.args):
                values.append(call.args[place])
            found += [(value, where) for value in values if not isinstance(value, ast.Starred)]
        return found

    @cached_property
    def _calls(self) -> dict[str, list[tuple[ast.Call, Scope]]]:
        """The calls by the last part of the callee's name, and where they stand."""
        found: dict[str, list[tuple[ast.Call, Scope]]] = {}
        waiting: list[tuple[ast.AST, Scope]] = [(self._tree, MODULE)]
        while waiting:
            node, scope = waiting.pop()
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                found.setdefault(name, []).append((node, scope))
            if isinstance(node, ast.ClassDef) and scope is MODULE:
                scope = Scope(None, node)
            elif isinstance(node, Function) and scope.function is None:
                scope = Scope(node, scope.owner)
            waiting += [(child, scope) for child in ast.iter_child_nodes(node)]
        return found


def _given(call: ast.Call, scope: Scope) -> list[_Place]:
    waiting: list[ast.expr] = [*call.args, *(keyword.value for keyword in call.keywords)]
    found: list[_Place] = []
    while waiting:
        part = waiting.pop()
        if isinstance(part, (ast.List, ast.Tuple)):
            waiting += part.elts
        else:
            found.append((part, scope))
    return found


def _at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if not isinstance(node, _DEFINITIONS):
            yield node
            waiting += ast.iter_child_nodes(node)


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """(`name` or `self.name`, value); each name of `a, b = call()` comes from the call."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
        pairs = [(node.target, node.value)]
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        pairs = [(node.optional_vars, node.context_expr)]
    for target, value in pairs:
        if isinstance(target, ast.Name):
            yield target.id, value
        elif isinstance(target, ast.Attribute):
            if isinstance(target.value, ast.Name) and target.value.id == "self":
                yield f"self.{target.attr}", value
        elif isinstance(target, (ast.Tuple, ast.List)):
            are_pairs = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(
                target.elts
            )
            for place, part in enumerate(target.elts):
                if isinstance(part, ast.Name):
                    yield part.id, value.elts[place] if are_pairs else value  # type: ignore[attr-defined]


def _parameter(function: Function, name: str) -> int | None:
    """Its place among the arguments; -1 for one that is given by name alone, None if there is none."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if name in names:
        return names.index(name)
    return -1 if any(argument.arg == name for argument in arguments.kwonlyargs) else None


def _parsed(annotation: ast.expr) -> ast.expr:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        with contextlib.suppress(SyntaxError):
            return ast.parse(annotation.value, mode="eval").body
    return annotation
