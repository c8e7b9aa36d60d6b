"""Statements put beside others, taken out and moved, in the layout of their neighbours."""

from __future__ import annotations

import ast
import textwrap
from dataclasses import replace
from typing import Any, Final

from trainlint.fixes.changes import Change, Insertion, Refused, Rewrite, checked
from trainlint.fixes.scopes import scope_of
from trainlint.fixes.text import SourceText, significant

_BLANKS: Final = " \t\f"
# What a loop or a branch evaluates is no statement of its own.
_COMPOUND: Final = (
    ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar,
    ast.Match, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef,
)  # fmt: skip


def statement_at(text: SourceText, node: ast.AST) -> ast.stmt:
    """The statement that holds a node, if it is a simple one. Raises `Refused`."""
    statement = text.statement_of(node)
    if statement is None:
        raise Refused("it stands in no statement")
    if isinstance(statement, _COMPOUND):
        head = text.source(statement).partition(" ")[0].rstrip(":(")
        raise Refused(f"it stands in the head of the `{head}`")
    for outer in text.around(node):
        if outer is statement:
            break
        if isinstance(outer, ast.Lambda):
            raise Refused("it stands in a lambda")
    return statement


def block_of(text: SourceText, statement: ast.stmt) -> list[ast.stmt]:
    """The statements that run one after the other, of which this is one."""
    parent: Any = text.parents[statement]
    for name in ("body", "orelse", "finalbody"):
        block = getattr(parent, name, None)
        if isinstance(block, list) and statement in block:
            return block
    raise Refused("it stands in no statement")


def indentation(text: SourceText, statement: ast.stmt) -> str | None:
    """The blanks before a statement that begins its line, else None."""
    start = text.span(statement)[0]
    before = text.text[text.starts[statement.lineno - 1] : start]
    return before if not before.strip(_BLANKS) else None


def has_own_lines(text: SourceText, statement: ast.stmt) -> bool:
    """Whether nothing but a comment shares the lines of a statement."""
    return indentation(text, statement) is not None and _ends_its_line(text, statement)


def _end_of_line(text: SourceText, offset: int) -> int:
    return _end_of_row(text, text.place(offset).row)


def _end_of_row(text: SourceText, row: int) -> int:
    return text.starts[row - 1] + len(text.lines[row - 1])


def _ends_its_line(text: SourceText, statement: ast.stmt) -> bool:
    """Whether only blanks and a comment come behind a statement."""
    end = text.span(statement)[1]
    rest = text.text[end : _end_of_line(text, end)].strip(_BLANKS)
    return not rest or rest.startswith("#")


def inserted(
    text: SourceText, statement: ast.stmt, code: str, *, after: bool, check: bool = True
) -> Change:
    """One or more statements beside another, once. Raises `Refused`."""
    try:
        made = tuple(ast.parse(code).body)
    except SyntaxError as error:
        raise Refused("the line to be put there does not parse") from error
    block = block_of(text, statement)
    index = block.index(statement)
    place = index + 1 if after else index - len(made)
    if place >= 0 and _same(block[place : place + len(made)], made):
        raise Refused("it stands there already")
    change = _beside(text, statement, code, made, after=after)
    if check and not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def enclosed(text: SourceText, statement: ast.stmt, before: str, after: str) -> Change:
    """One statement before another and one behind it, whatever stands there. Raises `Refused`."""
    if not has_own_lines(text, statement):
        raise Refused("the statement shares its line with others")
    change = Change(text)
    for code, is_after in ((before, False), (after, True)):
        change += _beside(text, statement, code, tuple(ast.parse(code).body), after=is_after)
    if not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def _beside(
    text: SourceText, statement: ast.stmt, code: str, made: tuple[ast.stmt, ...], *, after: bool
) -> Change:
    splice = _splice(text, statement, code, made, after=after)
    return Change(text, (splice,), (), (Insertion(statement, after, code, made),))


def _same(one: list[ast.stmt], other: tuple[ast.stmt, ...]) -> bool:
    return [ast.dump(node) for node in one] == [ast.dump(node) for node in other]


def _splice(
    text: SourceText, statement: ast.stmt, code: str, made: tuple[ast.stmt, ...], *, after: bool
) -> tuple[int, int, str]:
    start, end = text.span(statement)
    own = indentation(text, statement)
    lines = code.split("\n")
    if own is not None and after and _ends_its_line(text, statement):
        place = _end_of_line(text, end)
        return place, place, "".join(f"{text.newline}{own}{line}" for line in lines)
    if own is not None and not after and not _continues(text, statement):
        if getattr(statement, "decorator_list", None):
            raise Refused("it stands in a decorated definition")
        return start, start, "".join(f"{line}{text.newline}{own}" for line in lines)
    # Several statements share the line.
    if any(isinstance(node, _COMPOUND) for node in made) or len(lines) != len(made):
        raise Refused("the statement shares its line with others")
    if after:
        return end, end, "".join(f"; {line}" for line in lines)
    if isinstance(statement, _COMPOUND):
        raise Refused("the statement shares its line with others")
    return start, start, "".join(f"{line}; " for line in lines)


def _continues(text: SourceText, statement: ast.stmt) -> bool:
    """Whether the line before ends in a backslash, so that the statement's is no line of its own."""
    row = statement.lineno - 1
    return row > 0 and text.lines[row - 1].endswith("\\")


def prefixed(text: SourceText, statement: ast.stmt, before: str) -> Change:
    """`x = ` or `return ` in front of a statement. Raises `Refused`."""
    if isinstance(statement, _COMPOUND):
        raise Refused("it is a block of its own")
    start = text.span(statement)[0]
    try:
        made = ast.parse(before + text.source(statement)).body
    except SyntaxError as error:
        raise Refused("the text there does not allow it") from error
    if len(made) != 1:
        raise Refused("the text there does not allow it")
    rewrite = Rewrite(statement, before, lambda _: made[0])
    change = Change(text, ((start, start, before),), (rewrite,))
    if not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def deleted(text: SourceText, statement: ast.stmt) -> Change:
    """Without a statement and its line. Raises `Refused`."""
    if len(block_of(text, statement)) == 1:
        raise Refused("nothing would be left in the block")
    change = Change(text, (_cut(text, statement),), deleted=(statement,))
    if not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def _cut(text: SourceText, statement: ast.stmt) -> tuple[int, int, str]:
    start, end = text.span(statement)
    if text.comments(start, end):
        raise Refused("a comment stands in the text to be removed")
    own = indentation(text, statement)
    line_end = _end_of_line(text, end)
    if own is not None and _ends_its_line(text, statement) and not _continues(text, statement):
        rest = text.text[end:line_end]
        if rest.strip(_BLANKS):  # a comment behind it stays
            return start, end + len(rest) - len(rest.lstrip(_BLANKS)), ""
        first = text.starts[statement.lineno - 1]
        row = text.place(end).row
        if row < len(text.starts):
            return first, text.starts[row], ""
        # The last line, without a newline: that of the line before goes.
        return _end_of_row(text, statement.lineno - 1), line_end, ""
    between = list(significant(text.text, end, line_end))
    if between and between[0][1] == ";":
        place = between[0][0] + 1
        place += len(text.text[place:line_end]) - len(text.text[place:line_end].lstrip(_BLANKS))
        if len(between) > 1:
            return start, place, ""
    block = block_of(text, statement)
    index = block.index(statement)
    if index:
        before = text.span(block[index - 1])[1]
        if [c for _, c in significant(text.text, before, start)] == [";"]:
            return before, end, ""
    raise Refused("the statement shares its line with others")


def tidied(change: Change) -> Change:
    """The change, where it leaves a name assigned to itself, `x = x`, without that statement."""
    text = change.text
    touched = (text.statement_of(rewrite.node) for rewrite in change.rewrites)
    for statement in dict.fromkeys(touched):
        made = [] if statement is None else change.rebuilt([statement])
        if statement is None or len(made) != 1 or not _is_idle(made[0]):
            continue
        if isinstance(scope_of(text, statement), ast.ClassDef):
            continue  # it gives the class a name of the module's
        try:
            without = _rest_of(change, statement) + _vanished(text, statement)
        except Refused:
            continue
        change = without if without.agrees() else change
    return change


def _is_idle(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Assign):
        return False
    names = [_names_in(node) for node in (statement.value, *statement.targets)]
    return names[0] is not None and all(other == names[0] for other in names[1:])


def _names_in(node: ast.expr) -> Any:
    """The name, or a tuple of such, None where it is more than names."""
    if isinstance(node, ast.Name):
        return node.id
    if not isinstance(node, ast.Tuple):
        return None
    parts = tuple(map(_names_in, node.elts))
    return None if None in parts else parts


def _rest_of(change: Change, statement: ast.stmt) -> Change:
    """What a change does besides that to one statement."""
    first, last = change.text.span(statement)
    inside = set(ast.walk(statement))
    return replace(
        change,
        splices=tuple(s for s in change.splices if not first <= s[0] <= s[1] <= last),
        rewrites=tuple(part for part in change.rewrites if part.node not in inside),
    )


def _vanished(text: SourceText, statement: ast.stmt) -> Change:
    """A statement taken out, or `pass` where nothing would be left. Raises `Refused`."""
    if len(block_of(text, statement)) > 1:
        return deleted(text, statement)
    start, end = text.span(statement)
    if text.comments(start, end):
        raise Refused("a comment stands in the text to be removed")
    return Change(
        text, ((start, end, "pass"),), (Rewrite(statement, "pass", lambda _: ast.Pass()),)
    )


def moved_before(text: SourceText, statement: ast.stmt, other: ast.stmt) -> Change:
    """A statement to before another of the same block. Raises `Refused`."""
    block = block_of(text, statement)
    if other not in block or statement is other:
        raise Refused("the two do not stand in one block")
    here, there = block.index(statement), block.index(other)
    if here + 1 == there:
        raise Refused("it stands there already")
    passed = block[here + 1 : there] if here < there else block[there:here]
    for name in _conflicts(statement, passed):
        raise Refused(f"`{name}` is set in between")
    return moved(text, statement, other)


def moved(text: SourceText, statement: ast.stmt, other: ast.stmt, *, after: bool = False) -> Change:
    """A statement to before another of the file, or to behind it, in its block. Raises `Refused`.

    What they do to each other and to what stands in between is not looked at.
    """
    if isinstance(statement, _COMPOUND):
        raise Refused("it is a block of its own")
    if len(block_of(text, statement)) == 1:
        raise Refused("nothing would be left in the block")
    beside = indentation(text, other)
    is_alone = has_own_lines(text, statement) and (not after or _ends_its_line(text, other))
    if beside is None or not is_alone:
        raise Refused("the statement shares its line with others")
    if indentation(text, statement) != beside and statement.lineno != statement.end_lineno:
        raise Refused("it takes several lines")
    checked(text, statement)
    start, end = text.span(statement)
    line_end = _end_of_line(text, end)
    line = text.text[start:line_end]  # a comment behind it goes with it
    first, last = text.span(other)
    row = statement.lineno
    # The newline before goes, since the statement may be put right behind its own.
    cut = (_end_of_row(text, row - 1), line_end, "") if row > 1 else (0, text.starts[1], "")
    if after:
        place = _end_of_line(text, last)
        put = (place, place, f"{text.newline}{beside}{line}")
    else:
        put = (first, first, f"{line}{text.newline}{beside}")
    change = Change(
        text,
        (cut, put),
        (),
        (Insertion(other, after, line, (statement,)),),
        (statement,),
    )
    if not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def _conflicts(statement: ast.stmt, passed: list[ast.stmt]) -> list[str]:
    """Names that the statement sets and the passed ones mention, or the other way round."""
    sets, mentions = _names(statement)
    found: set[str] = set()
    for other in passed:
        their_sets, their_mentions = _names(other)
        found |= (sets & their_mentions) | (mentions & their_sets)
    return sorted(found)


def _names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
    sets = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    return sets, {node.id for node in names}


def dedented(text: SourceText, statement: ast.stmt, code: str) -> str:
    """Lines to be put beside a statement, which may be indented as that is, but for the first."""
    lines = textwrap.dedent(code).strip("\n").splitlines()
    own = indentation(text, statement) or ""
    stripped = "\n".join(line.removeprefix(own) if n else line for n, line in enumerate(lines))
    try:
        ast.parse(stripped)
    except SyntaxError:
        return "\n".join(lines)
    return stripped
