"""Which functions of a script train, by syntax alone: to say which of them a check did not look at.

Comes in: a file's syntax tree. Goes out: a `Loop`, reached from `if __name__ == "__main__"`, since a
check does not run what stands there and `trainlint run` does.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from trainlint.targets.discovery import Discovery, is_main_guard

_OPTIMIZER: Final = re.compile(r"opt", re.IGNORECASE)
_SCALER: Final = re.compile(r"scaler", re.IGNORECASE)
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Loop = ast.For | ast.AsyncFor | ast.While


@dataclass(frozen=True)
class Loop:
    """Where a script trains: a function and its row, and the row of its loop, if it has one.

    `name` is empty for code that stands below the main guard itself.
    """

    name: str
    row: int
    loop_row: int | None

    def described(self) -> str:
        """`the training loop in main(), line 29`."""
        where = f"in {self.name}()" if self.name else 'below `if __name__ == "__main__"`'
        if self.loop_row is None:
            return f"the training {where}, line {self.row}"
        return f"the training loop {where}, line {self.loop_row}"

    def trains_one(self) -> str:
        """`main() (line 12) trains one`."""
        if self.name:
            return f"{self.name}() (line {self.row}) trains one"
        return f"one is trained below the main guard (line {self.loop_row or self.row})"


def training_loop(tree: ast.Module, found: Discovery, run: Collection[str] = ()) -> Loop | None:
    """The first loop that a run of the script as a program reaches, and no function of `run` does.

    None where nothing calls `backward` or no optimizer steps. What methods of models do is theirs.
    """
    guards = [node for node in tree.body if is_main_guard(node)]
    functions = _functions(tree, found)
    looked_at = _reached(functions, run)
    reached = _reached(functions, _names(*guards)) - looked_at
    places: list[tuple[str, ast.AST]] = [("", guard) for guard in guards]
    places += [(name, node) for name in reached for node in functions[name]]
    calls = [call for _, node in places for call in _calls(node)]
    if not (any(map(_is_backward, calls)) and any(map(_is_step, calls))):
        return None
    loops = [loop for name, node in places for loop in _loops(name, node)]
    return min(loops, key=lambda loop: (loop.loop_row is None, loop.row))


def command(label: str, module: str | None = None) -> str:
    """What watches the script: `trainlint run train.py`."""
    return f"trainlint run {shlex.quote(label)}" if module is None else f"trainlint run -m {module}"


def _functions(tree: ast.Module, found: Discovery) -> dict[str, list[_Function]]:
    """Functions by their names, and the methods of classes other than models by those of the classes."""
    functions: dict[str, list[_Function]] = {}
    for node in tree.body:
        if isinstance(node, _Function):
            functions[node.name] = [node]
        elif isinstance(node, ast.ClassDef) and node.name not in found.classes:
            functions[node.name] = [part for part in node.body if isinstance(part, _Function)]
    return functions


def _reached(functions: Mapping[str, list[_Function]], names: Collection[str]) -> set[str]:
    reached: set[str] = set()
    waiting = [name for name in names if name in functions]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [other for other in _names(*functions[name]) if other in functions]
    return reached


def _names(*nodes: ast.AST) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


def _loops(name: str, node: ast.AST) -> Iterator[Loop]:
    """The outermost loop around what trains there, or none."""
    if not any(_trains(call) for call in _calls(node)):
        return
    own = getattr(node, "name", "")
    title = f"{name}.{own}" if own and own != name else name
    around = [
        part
        for part in ast.walk(node)
        if isinstance(part, _Loop) and any(_trains(call) for call in _calls(part))
    ]
    row: int = getattr(node, "lineno", 0)
    yield Loop(title, row, min((part.lineno for part in around), default=None))


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (part for part in ast.walk(node) if isinstance(part, ast.Call))


def _trains(call: ast.Call) -> bool:
    return _is_backward(call) or _is_step(call)


def _is_backward(call: ast.Call) -> bool:
    """`loss.backward()`, `accelerator.backward(loss)`, `scaler.scale(loss).backward()`."""
    return isinstance(call.func, ast.Attribute) and call.func.attr == "backward"


def _is_step(call: ast.Call) -> bool:
    """`optimizer.step()`, `self.opt_d.step()`, `scaler.step(optimizer)`."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "step"):
        return False
    owner = ast.unparse(call.func.value)
    return bool(_OPTIMIZER.search(owner) or _SCALER.search(owner))
