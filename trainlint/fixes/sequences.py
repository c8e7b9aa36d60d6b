"""Another layer behind one of a row: in a `Sequential` that is written out, or in a list."""

from __future__ import annotations

import ast
from typing import Any, Final

from trainlint.fixes.changes import Change, Refused, Rewrite, checked, expression
from trainlint.fixes.statements import inserted
from trainlint.fixes.text import SourceText, significant

_BLANKS: Final = " \t\f"


def behind(text: SourceText, call: ast.Call, code: str) -> Change:
    """One more element behind the layer that a call makes. Raises `Refused`.

    That the elements run one after the other is the caller's to know.
    """
    checked(text, call)
    written, needed = text.names.respelled(code, call)
    parent = text.parents[call]
    if isinstance(parent, ast.Call) and _appends(text, parent):
        statement = text.parents[parent]
        assert isinstance(statement, ast.Expr)
        line = f"{text.source(parent.func)}({written})"
        change = inserted(text, statement, line, after=True) + needed
    else:
        change = _element(text, call, written) + needed
    if not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def _appends(text: SourceText, call: ast.Call) -> bool:
    """Whether it is `layers.append(...)`, a statement of its own."""
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr == "append"
        and isinstance(text.parents[call], ast.Expr)
    )


def _element(text: SourceText, call: ast.Call, written: str) -> Change:
    """`, nn.ReLU()` behind an element; on a line of its own where the element has one."""
    parent = text.parents[call]
    if isinstance(parent, ast.Call) and call in parent.args:
        if text.names.meaning(parent.func) != "torch.nn.Sequential" or parent.keywords:
            raise Refused("it stands in no Sequential that is written out")
        field, index = "args", parent.args.index(call)
    elif isinstance(parent, ast.List):
        field, index = "elts", parent.elts.index(call)
    else:
        raise Refused("it stands in no Sequential that is written out")
    start, end = text.span(call)
    comma = None
    for offset, character in significant(text.text, end, text.span(parent)[1] - 1):
        if character == ")":
            end = offset + 1
            continue
        comma = offset + 1 if character == "," else None
        break
    row = text.place(start).row
    indent = text.text[text.starts[row - 1] : start]
    begins = not indent.strip(_BLANKS)
    splice = end, end, f", {written}"
    if begins and comma is None:
        splice = end, end, f",{text.newline}{indent}{written}"
    elif begins and comma is not None:
        last = text.place(comma).row
        line_end = text.starts[last - 1] + len(text.lines[last - 1])
        rest = text.text[comma:line_end].strip(_BLANKS)
        if not rest or rest.startswith("#"):
            splice = line_end, line_end, f"{text.newline}{indent}{written},"
    made = expression(written)

    def make(outer: Any) -> Any:
        elements = list(getattr(outer, field))
        setattr(outer, field, [*elements[: index + 1], made, *elements[index + 1 :]])
        return outer

    rewrite = Rewrite(parent, f"{written} behind {index}", make)
    return Change(text, (splice,), (rewrite,))
