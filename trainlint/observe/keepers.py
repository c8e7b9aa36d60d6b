"""Graphs of earlier losses that are kept alive: by which variable, and the line that gives them to it.

The variable is looked for once, when they are found to be alive: among those of the functions that are
running, in what containers and plain objects of theirs hold, and in the graph behind a sum.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import linecache
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from torch import Tensor, nn

from trainlint.observe.incidents import Incidents
from trainlint.sites import Site, owner_of

# So many graphs of earlier steps are no accident; they are counted each so many steps.
_ALIVE: Final = 8
_MOST_GRAPHS: Final = 256
# Under this name a loss's node holds a `_Sentinel`.
_MARK: Final = "trainlint"
_FEW: Final = 3
_DEEPEST: Final = 4
_MOST: Final = 64
_MOST_NODES: Final = 20000


class _Sentinel:
    """Lives as long as the autograd node whose metadata hold it."""

    __slots__ = ("__weakref__",)


class Graphs:
    """The graphs of a loop's losses, as long as they live."""

    def __init__(self, incidents: Incidents) -> None:
        self._incidents = incidents
        self._alive: deque[tuple[int, weakref.ref[_Sentinel], Site | None]] = deque(
            maxlen=_MOST_GRAPHS
        )
        # The variable that keeps them, and where it gets them, once that was looked for.
        self._keeper: tuple[str, Site | None] | None = None

    def add(self, node: Any, step: int, site: Site | None) -> None:
        """A backward pass begins at the node of a loss."""
        sentinel = _Sentinel()
        node.metadata[_MARK] = sentinel
        self._alive.append((step, weakref.ref(sentinel), site))

    def count(self, step: int) -> None:
        """The step is over: graphs of eight earlier ones that are still alive are being collected."""
        if step % _ALIVE != _ALIVE - 1:
            return
        alive = [graph for graph in self._alive if graph[1]() is not None]
        self._alive = deque(alive, maxlen=_MOST_GRAPHS)
        old = [(earlier, site) for earlier, _, site in alive if earlier < step - 2]
        if len({earlier for earlier, _ in old}) >= _ALIVE:
            site = old[-1][1]
            if self._keeper is None:
                self._keeper = ("", None)
                with contextlib.suppress(Exception):  # any object of the loop's is looked into
                    self._keeper = _keeper(sys._getframe(1), site) or self._keeper
            name, place = self._keeper
            self._incidents.note("graphs-alive", place or site, graphs=len(old), keeper=name)


def _keeper(frame: FrameType | None, backward: Site | None) -> tuple[str, Site | None] | None:
    """The name of a variable that holds three or more, and where it gets them; None if none is found."""
    while frame is not None:
        if owner_of(frame.f_code.co_filename) == "project":
            name = next((n for n, v in _variables(frame) if _held(v, _DEEPEST) >= _FEW), None)
            if name is not None:
                return name, _site_of(name, frame, backward)
        frame = frame.f_back
    return None


def _variables(frame: FrameType) -> list[tuple[str, Any]]:
    local = frame.f_locals
    found = [*local.items(), *frame.f_globals.items()]
    if type(local) is dict and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        local.clear()  # a copy, which would live as long as the function runs
    return found


def _held(value: Any, depth: int) -> int:
    """How many graphs of losses it keeps alive, as far as that is looked at."""
    if isinstance(value, Tensor):
        return _marked(value) if depth == _DEEPEST else int(_is_marked(value.grad_fn))
    if not depth or isinstance(value, (nn.Module, type, str, bytes)):
        return 0
    parts: Any = ()
    if isinstance(value, (list, tuple, deque, set)):
        parts = list(value)[-_MOST:]
    elif isinstance(value, dict):
        parts = list(value.values())[-_MOST:]
    elif not callable(value) and isinstance(getattr(value, "__dict__", None), dict):
        parts = list(vars(value).values())[:_MOST]
    return sum(_held(part, depth - 1) for part in parts)


def _marked(tensor: Tensor) -> int:
    """The losses that it is made of."""
    stack = [tensor.grad_fn] if tensor.grad_fn is not None else []
    seen: set[Any] = set(stack)
    count = 0
    while stack and len(seen) < _MOST_NODES:
        node: Any = stack.pop()
        count += _is_marked(node)
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
    return count


def _is_marked(node: Any) -> bool:
    return node is not None and _MARK in node.metadata


def _site_of(name: str, frame: FrameType, backward: Site | None) -> Site | None:
    """The statement that gives something to the variable: the first behind the backward pass, else any."""
    rows = {row for _, _, row in frame.f_code.co_lines() if row is not None}
    statements = [s for s in _gifts(name, frame.f_code.co_filename) if s.lineno in rows]
    if not statements:
        return None
    after = backward.row if backward is not None else 0
    chosen = min(statements, key=lambda s: (s.lineno <= after, s.lineno))
    site = Site(frame)
    best = -1
    for number, (row, end, column, end_column) in enumerate(frame.f_code.co_positions()):
        if row is None or end is None or column is None or end_column is None:
            continue
        width = (end - row) * 10_000 + end_column - column
        if chosen.lineno <= row and end <= (chosen.end_lineno or row) and width > best:
            best, site.row, site.instruction = width, row, 2 * number
    return site if best >= 0 else None


def _gifts(name: str, filename: str) -> Iterator[ast.stmt]:
    """`name += x`, `name = name + x`, `name[k] = x`, `name.append(x)` and other calls of its methods."""
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign):
            taker: ast.expr = node.target
        elif isinstance(node, ast.Assign):
            taker = node.targets[0]
            if isinstance(taker, ast.Name) and not any(
                isinstance(part, ast.Name) and part.id == name for part in ast.walk(node.value)
            ):
                continue
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            taker = node.value.func
            if isinstance(taker, ast.Name) or not (node.value.args or node.value.keywords):
                continue
        else:
            continue
        while isinstance(taker, (ast.Attribute, ast.Subscript, ast.Call)):
            taker = taker.func if isinstance(taker, ast.Call) else taker.value
        if isinstance(taker, ast.Name) and taker.id == name:
            yield node
