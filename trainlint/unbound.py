"""Names that the run of a file left without a value, and why: what a later NameError comes of.

Comes in: the statements that failed or were passed over. Goes out: the cause of an error. In the process
that runs the file; imports no torch.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

_CAUSES: Final[dict[str, dict[str, str]]] = {}  # by file, and by name


def forget(filename: str) -> None:
    """The file is run anew."""
    _CAUSES.pop(filename, None)


def note(
    filename: str, statement: ast.stmt, stopped: str, error: BaseException | None = None
) -> None:
    """A statement at module level raised the error, or was passed over since the run had `stopped`."""
    cause = stopped
    if isinstance(error, ImportError):
        cause = f"{error.msg} (line {statement.lineno})"
    elif error is not None:
        cause = cause_of(error) or stopped
    causes = _CAUSES.setdefault(filename, {})
    for name in _bound_by(statement):
        causes.setdefault(name, cause)


def cause_of(error: BaseException) -> str | None:
    """Why the name of a `NameError` has no value in the file that raised it, or None."""
    if type(error) is not NameError:
        return None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return None
    return _CAUSES.get(trace.tb_frame.f_code.co_filename, {}).get(error.name or "")


def _bound_by(statement: ast.stmt) -> Iterator[str]:
    """The names that it would have given a value at module level."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
        return
    for node in ast.iter_child_nodes(statement):
        if isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(node, ast.stmt):
            yield from _bound_by(node)
        else:
            yield from (
                part.id
                for part in ast.walk(node)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            )
