"""Which functions of a script train, by syntax alone: to say which of them a check did not look at.

Comes in: a file's syntax tree. Goes out: a `Loop` that a run of the script as a program reaches, and which
statements at module level are that program: a check runs neither, and `trainlint run` does.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from trainlint.targets.discovery import Discovery, is_main_guard
from trainlint.targets.provenance import MODULE, Function, Provenance, Scope
from trainlint.targets.trainers import is_backward_of_library, is_optimizer, trains_by_library

_OPTIMIZER: Final = re.compile(r"opt|scaler", re.IGNORECASE)
_LOOPS: Final = (ast.For, ast.AsyncFor, ast.While)
# They call the functions that they are given: fire, typer, torch.multiprocessing, accelerate.
_RUNNERS: Final = frozenset("Fire run cli launch spawn notebook_launcher debug_launcher".split())
# Classes whose methods nobody but the file itself calls by their names.
_PLAIN_BASES: Final = frozenset({"object", "ABC", "abc.ABC", "Protocol", "Generic"})


@dataclass(frozen=True)
class Loop:
    """Where a script trains: a function and its row, and the row of what trains there, if that is known.

    `name` is empty for code that stands in no function. `by` is the call that trains where the loop is a
    library's, `trainer.fit()`.
    """

    name: str
    row: int
    loop_row: int | None
    by: str = ""

    def described(self) -> str:
        """`the training loop in main(), line 29`."""
        what = "training loop" if self.loop_row is not None else "training"
        what = f"training by {self.by}" if self.by else what
        where = f" in {self.name}()" if self.name else ""
        return f"the {what}{where}, line {self.loop_row or self.row}"

    def trains_one(self) -> str:
        """`main() (line 12) trains one`."""
        if self.name:
            return f"{self.name}() (line {self.row}) trains one"
        return f"one is trained at line {self.loop_row or self.row}"


@dataclass(frozen=True, eq=False)
class _Place:
    """Code that is run: a statement at module level, or a function by the name that it is called by."""

    name: str
    node: ast.AST
    scope: Scope = MODULE


class Script:
    """What a file does as a program, by its syntax."""

    def __init__(self, tree: ast.Module, found: Discovery) -> None:
        self._tree = tree
        self._found = found
        self._origins = Provenance(tree)

    def loop(self, run: Collection[str] = (), *, libraries: bool = True) -> Loop | None:
        """The first training that a run of the program reaches, and that no function of `run` does.

        None where nothing calls `backward` or no optimizer steps, nor a library does both. Without
        `libraries` their loops do not count.
        """
        starts = [node for node in self._tree.body if is_main_guard(node) or self.says(node)]
        return self._first(self._reached(starts), run, libraries=libraries)

    def is_looked_at(self, node: ast.stmt, run: Collection[str]) -> bool:
        """Whether all the training of a statement at module level is in functions of `run`."""
        reached = self._reached([node])
        return self._first(reached) is not None and self._first(reached, run) is None

    def says(self, node: ast.stmt) -> str:
        """Why a statement at module level is the program and no definition, `main() trains`; else empty.

        What builds the model that it trains is none: a run of it up to the training has the model.
        """
        if isinstance(node, ast.Try):
            return next(filter(None, map(self.says, node.body)), "")
        if isinstance(node, (*_LOOPS, ast.With, ast.AsyncWith)):
            if _builds_a_model(node) or self._first(self._reached([node])) is None:
                return ""
            return "the loop there trains" if isinstance(node, _LOOPS) else "it trains there"
        value = node.exc if isinstance(node, ast.Raise) else getattr(node, "value", None)
        if not isinstance(node, (ast.Expr, ast.Raise)) or not isinstance(value, ast.Call):
            return ""
        own = [name for name in _run_by(node) if name in self._origins.functions]
        loop = self._first(self._reached([node]))
        if loop is None:
            return "main() is the program" if "main" in own else ""
        if not loop.name:
            return f"{loop.by} trains"
        who = next((name for name in own if self._first([*self._with(name)])), None)
        return f"{who}() trains" if who else f"{_shown(value)} trains"

    # ------------------------------------------------------------------ what is reached

    def _reached(self, starts: Sequence[ast.AST]) -> list[_Place]:
        """The code that runs with these, and all functions and methods of the file that it may call."""
        places = [_Place("", node) for node in starts]
        return [*places, *self._called(places)]

    def _called(self, starts: Sequence[_Place]) -> list[_Place]:
        names, attributes = set[str](), set[str]()
        seen: dict[ast.AST, _Place] = {}
        waiting = list(starts)
        while waiting:
            for place in waiting:
                is_program = place.name or is_main_guard(place.node)
                used = set(_names(place.node)) if is_program else set(_run_by(place.node))
                names |= used | {made for name in used for made in self._origins.callees(name)}
                attributes |= {
                    part.attr for part in ast.walk(place.node) if isinstance(part, ast.Attribute)
                }
            candidates = [
                *(self._function(name) for name in names if name in self._origins.functions),
                *(
                    place
                    for owner in self._classes(names)
                    for place in self._methods(owner, attributes)
                ),
            ]
            waiting = [place for place in candidates if place.node not in seen]
            seen.update((place.node, place) for place in waiting)
        return list(seen.values())

    def _with(self, name: str) -> list[_Place]:
        """The function of that name and what it calls; nothing where the file has none."""
        starts = [self._function(name)] if name in self._origins.functions else []
        return [*starts, *self._called(starts)]

    def _function(self, name: str) -> _Place:
        node = self._origins.functions[name]
        return _Place(name, node, Scope(node))

    def _methods(self, owner: ast.ClassDef, attributes: Collection[str]) -> Iterator[_Place]:
        """Those that are called by name. Of a class that a library calls, all, but for models.

        A model's `training_step` is run by its trainer, whose call stands somewhere.
        """
        is_model = owner.name in self._found.classes
        bases = {ast.unparse(base) for base in owner.bases}
        is_called_back = not is_model and bool(bases - _PLAIN_BASES - set(self._origins.classes))
        for node in owner.body:
            if isinstance(node, Function) and (
                is_called_back
                or node.name in attributes
                or (not is_model and node.name.startswith("__"))
            ):
                yield _Place(f"{owner.name}.{node.name}", node, Scope(node, owner))

    def _classes(self, names: Collection[str]) -> list[ast.ClassDef]:
        """The classes of these names, and those of the file that they derive from."""
        found: dict[str, ast.ClassDef] = {}
        waiting = [name for name in names if name in self._origins.classes]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = self._origins.classes[name]
                bases = [part for base in found[name].bases for part in _names(base)]
                waiting += [base for base in bases if base in self._origins.classes]
        return list(found.values())

    # ------------------------------------------------------------------ what trains

    def _first(
        self, reached: list[_Place], run: Collection[str] = (), *, libraries: bool = True
    ) -> Loop | None:
        looked_at = {place.node for name in run for place in self._with(name)}
        places = [place for place in reached if place.node not in looked_at]
        calls = [(call, place) for place in places for call in _calls(place.node)]
        loops = [
            Loop(place.name, place.node.lineno, call.lineno, by)  # type: ignore[attr-defined]
            for call, place in calls
            if libraries and (by := self._by_library(call, place.scope))
        ]
        backward = any(_is_backward(call) for call, _ in calls)
        steps = any(self._is_step(call, place.scope) for call, place in calls)
        if (backward and steps) or any(
            is_backward_of_library(call, self._origins, place.scope) for call, place in calls
        ):
            loops += [loop for place in places for loop in self._loops(place)]
        return min(loops, key=lambda loop: (loop.loop_row is None, loop.row), default=None)

    def _by_library(self, call: ast.Call, scope: Scope) -> str:
        return _shown(call) if trains_by_library(call, self._origins, scope) else ""

    def _loops(self, place: _Place) -> Iterator[Loop]:
        """The outermost loop around what trains there, or none."""

        def trains(call: ast.Call) -> bool:
            return _is_backward(call) or self._is_step(call, place.scope)

        if not any(map(trains, _calls(place.node))):
            return
        around = [
            part.lineno
            for part in ast.walk(place.node)
            if isinstance(part, _LOOPS) and any(map(trains, _calls(part)))
        ]
        row: int = getattr(place.node, "lineno", 0)
        yield Loop(place.name, row, min(around, default=None))

    def _is_step(self, call: ast.Call, scope: Scope) -> bool:
        """`optimizer.step()`, `self.opt_d.step()`, `scaler.step(optimizer)`."""
        if not (isinstance(call.func, ast.Attribute) and call.func.attr == "step"):
            return False
        owner = call.func.value
        return bool(_OPTIMIZER.search(ast.unparse(owner))) or is_optimizer(
            self._origins.makers(owner, scope)
        )


def command(label: str, module: str | None = None) -> str:
    """What watches the script: `trainlint run train.py`."""
    return f"trainlint run {shlex.quote(label)}" if module is None else f"trainlint run -m {module}"


def _names(node: ast.AST) -> list[str]:
    return [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]


def _run_by(node: ast.AST) -> Iterator[str]:
    """The names that a statement calls, or gives to what calls them; not `commands.add(train)`."""
    for call in _calls(node):
        callee = call.func
        while isinstance(callee, ast.Attribute):
            callee = callee.value
        if isinstance(callee, ast.Name):
            yield callee.id
        if (_last(call.func) or "") in _RUNNERS:
            yield from (name for part in call.args for name in _names(part))


def _last(callee: ast.expr) -> str | None:
    return getattr(callee, "attr", None) or getattr(callee, "id", None)


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (part for part in ast.walk(node) if isinstance(part, ast.Call))


def _is_backward(call: ast.Call) -> bool:
    """`loss.backward()`, `accelerator.backward(loss)`, `scaler.scale(loss).backward()`."""
    return isinstance(call.func, ast.Attribute) and call.func.attr in (
        "backward",
        "manual_backward",
    )


def _shown(call: ast.Call) -> str:
    """`trainer.fit()`, and `Trainer().fit()` for one with many arguments."""
    parts: list[str] = []
    node: ast.expr = call
    while True:
        if isinstance(node, ast.Call):
            parts.append("()")
            node = node.func
        elif isinstance(node, ast.Attribute):
            parts.append(f".{node.attr}")
            node = node.value
        else:
            parts.append(node.id if isinstance(node, ast.Name) else "…")
            return "".join(reversed(parts))


def _builds_a_model(node: ast.stmt) -> bool:
    """`for fold in folds: model = Net(); optimizer = SGD(model.parameters()) ...`, or a class in it."""
    stored = {
        part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    }
    return any(
        isinstance(part, ast.ClassDef)
        or (
            isinstance(part, ast.Attribute)
            and part.attr in ("parameters", "named_parameters")
            and isinstance(part.value, ast.Name)
            and part.value.id in stored
        )
        for part in ast.walk(node)
    )
