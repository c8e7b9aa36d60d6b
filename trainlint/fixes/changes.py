"""Changes of a text, each made twice: as splices of the text and as a change of its tree.

A change is offered only if the spliced text parses to the changed tree. Whatever stands in the way is
`Refused`, in words that a user can read behind "no edit: ".
"""

from __future__ import annotations

import ast
import bisect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainlint.fixes.edit import Edit
from trainlint.fixes.text import SourceText, significant, spliced


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """No edit can be made; the message says what stands in the way."""


@dataclass(frozen=True)
class Rewrite:
    """What becomes of one node: `make(the node, itself rewritten inside)`. Equal tags are one change."""

    node: ast.AST
    tag: str
    make: Callable[[Any], ast.AST]


@dataclass(frozen=True)
class Insertion:
    """Statements that come before or behind another."""

    beside: ast.stmt
    after: bool
    tag: str
    statements: tuple[ast.stmt, ...]


@dataclass(frozen=True)
class Change:
    """Splices (start, end, content) of a text, in characters, and what they do to its tree.

    `unsafe` tells that it changes more than was asked for: a default, or what a caller passes.
    """

    text: SourceText
    splices: tuple[tuple[int, int, str], ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    insertions: tuple[Insertion, ...] = ()
    deleted: tuple[ast.stmt, ...] = ()
    unsafe: bool = False

    def __add__(self, other: Change) -> Change:
        """Both changes of one text; what they have in common is made once."""
        rewrites = {(id(part.node), part.tag): part for part in self.rewrites + other.rewrites}
        insertions = {
            (id(part.beside), part.after, part.tag): part
            for part in self.insertions + other.insertions
        }
        return Change(
            self.text,
            tuple(dict.fromkeys(self.splices + other.splices)),
            tuple(rewrites.values()),
            tuple(insertions.values()),
            tuple(dict.fromkeys(self.deleted + other.deleted)),
            self.unsafe or other.unsafe,
        )

    @property
    def edits(self) -> list[Edit]:
        """The splices as edits."""
        place, name = self.text.place, self.text.filename
        return [Edit(name, place(start), place(end), new) for start, end, new in self.splices]

    def agrees(self) -> bool:
        """Whether the spliced text parses to the tree with the same changes made.

        Only the statements at the top level that are touched are parsed again, where they have lines of
        their own: what stands before and behind them is what it was.
        """
        assert self.text.tree is not None
        part, (start, end) = self._touched(self.text.tree.body)
        splices = [(first - start, last - start, new) for first, last, new in self.splices]
        try:
            self.text.encoded("".join(new for _, _, new in splices))
            tree = ast.parse(spliced(self.text.text[start:end], splices))
        except (SyntaxError, ValueError, RecursionError):
            return False
        return ast.dump(tree) == ast.dump(ast.Module(self.rebuilt(part), []))

    def _touched(self, body: list[ast.stmt]) -> tuple[list[ast.stmt], tuple[int, int]]:
        """The statements of the top level that the change touches, and the lines that are theirs."""
        text, everything = self.text, (body, (0, len(self.text.text)))
        places = [place for start, end, _ in self.splices for place in (start, end)]
        rows = [text.place(place).row for place in places]
        if not rows or min(rows) < _first_row(body[0]):
            return everything
        starts = [_first_row(node) for node in body]
        first = bisect.bisect_right(starts, min(rows)) - 1
        last = bisect.bisect_right(starts, max(rows)) - 1
        while first and (body[first - 1].end_lineno or 0) >= starts[first]:
            first -= 1
        while last + 1 < len(body) and (body[last].end_lineno or 0) >= starts[last + 1]:
            last += 1
        end = text.starts[starts[last + 1] - 1] if last + 1 < len(body) else len(text.text)
        start = text.starts[starts[first] - 1]
        if max(places) > end or any(_continued(text.text, place) for place in (start, end)):
            return everything
        return body[first : last + 1], (start, end)

    def rebuilt(self, part: Sequence[ast.stmt]) -> list[ast.stmt]:
        """What becomes of some statements of the text."""
        touched: set[ast.AST] = set()
        marked = [part.node for part in self.rewrites] + [part.beside for part in self.insertions]
        for node in [*marked, *self.deleted]:
            touched.add(node)
            touched.update(self.text.around(node))

        def rebuild(node: ast.AST) -> ast.AST:
            if node not in touched:
                return node
            fields: dict[str, Any] = {}
            for name, value in ast.iter_fields(node):
                if isinstance(value, ast.AST):
                    fields[name] = rebuild(value)
                elif isinstance(value, list):
                    fields[name] = [made for part in value for made in listed(part)]
                else:
                    fields[name] = value
            copy = type(node)(**fields)
            for rewrite in self.rewrites:
                if rewrite.node is node:
                    copy = rewrite.make(copy)
            return copy

        def listed(part: Any) -> list[Any]:
            if not isinstance(part, ast.AST):
                return [part]
            own = [insertion for insertion in self.insertions if insertion.beside is part]
            before = [s for insertion in own if not insertion.after for s in insertion.statements]
            after = [s for insertion in own if insertion.after for s in insertion.statements]
            kept = [] if part in self.deleted else [rebuild(part)]
            return [*before, *kept, *after]

        return [made for statement in part for made in listed(statement)]


def _first_row(statement: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(node.lineno for node in decorators)])


def _continued(text: str, offset: int) -> bool:
    """Whether the line before an offset ends in a backslash."""
    return text[:offset].rstrip("\r\n").endswith("\\")


def first_that_agrees(candidates: Iterable[Change]) -> Change:
    """The first of several ways to write a change that gives the wanted tree. Raises `Refused`."""
    for candidate in candidates:
        if candidate.agrees():
            return candidate
    raise Refused("the text there does not allow it")


def expression(content: str) -> ast.expr:
    """An expression of source. Raises `Refused`."""
    try:
        return ast.parse(content, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise Refused("the text there does not allow it") from error


def checked(text: SourceText, node: ast.AST) -> None:
    """Raise `Refused` where a node's own text is not that node, as within f-strings of old Pythons."""
    if sys.version_info < (3, 12) and any(
        isinstance(outer, ast.JoinedStr) for outer in text.around(node)
    ):
        raise Refused("it stands inside an f-string")
    if isinstance(node, ast.expr):
        try:
            alone = ast.parse(f"({text.source(node)}\n)", mode="eval").body
        except (SyntaxError, ValueError):
            raise Refused("the text there does not allow it") from None
        if ast.dump(alone) != ast.dump(node) and isinstance(getattr(node, "ctx", None), ast.Load):
            raise Refused("the text there does not allow it")


def replaced(
    text: SourceText, node: ast.expr, content: str, *, extra: Change | None = None
) -> Change:
    """Another expression in place of one, in parentheses where it needs them. Raises `Refused`."""
    checked(text, node)
    start, end = text.span(node)
    if any(comment not in content for comment in text.comments(start, end)):
        raise Refused("a comment stands in the text to be replaced")
    new = expression(content)
    rewrite = Rewrite(node, content, lambda _: new)
    return first_that_agrees(
        Change(text, ((start, end, written),), (rewrite,)) + (extra or Change(text))
        for written in (content, f"({content})")
    )


def unwrapped(text: SourceText, node: ast.expr, operand: ast.expr) -> Change:
    """A part of an expression in its place, in its own spelling. Raises `Refused`."""
    checked(text, node)
    if isinstance(operand, ast.Starred):
        raise Refused("its argument is given with a `*`")
    start, end = text.span(node)
    first, last = text.span(operand)
    if text.comments(start, first) or text.comments(last, end):
        raise Refused("a comment stands in the text to be removed")
    path = _path(text, node, operand)

    def make(outer: Any) -> Any:
        for name, index in path:
            outer = getattr(outer, name) if index is None else getattr(outer, name)[index]
        return outer

    rewrite = Rewrite(node, f"unwrapped {first}", make)
    return first_that_agrees(
        Change(text, ((start, first, before), (last, end, after)), (rewrite,))
        for before, after in (("", ""), ("(", ")"))
    )


def _path(text: SourceText, node: ast.AST, inner: ast.AST) -> list[tuple[str, int | None]]:
    path: list[tuple[str, int | None]] = []
    while inner is not node:
        outer = text.parents[inner]
        path.insert(0, _field_of(outer, inner))
        inner = outer
    return path


def _field_of(outer: ast.AST, inner: ast.AST) -> tuple[str, int | None]:
    for name, value in ast.iter_fields(outer):
        if value is inner:
            return name, None
        if isinstance(value, list):
            for index, part in enumerate(value):
                if part is inner:
                    return name, index
    raise LookupError(inner)


def wrapped(text: SourceText, node: ast.expr, before: str, after: str) -> Change:
    """Text before and behind an expression, which stays as it is: `f(`, `)`. Raises `Refused`."""
    checked(text, node)
    start, end = text.span(node)
    hole = "_trainlint_operand"
    shape = expression(f"{before}{hole}{after}")

    def make(inner: ast.AST) -> ast.AST:
        return _Filled(hole, inner).visit(ast.parse(ast.unparse(shape), mode="eval").body)  # type: ignore[no-any-return]

    rewrite = Rewrite(node, f"{before}{after}", make)
    return first_that_agrees(
        Change(text, ((start, start, left), (end, end, right)), (rewrite,))
        for left, right in (
            (before, after),
            (f"{before}(", f"){after}"),
            (f"({before}", f"{after})"),
            (f"({before}(", f"){after})"),
        )
    )


class _Filled(ast.NodeTransformer):
    def __init__(self, hole: str, inner: ast.AST) -> None:
        self.hole = hole
        self.inner = inner

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.inner if node.id == self.hole else node


def with_keyword(text: SourceText, call: ast.Call, name: str, content: str) -> Change:
    """One more keyword argument, behind the others. Raises `Refused`."""
    checked(text, call)
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    end = text.span(call)[1] - 1
    keyword = ast.keyword(arg=name, value=expression(content))
    if len(values) == 1 and isinstance(values[0], ast.GeneratorExp):
        raise Refused("its argument is a generator without parentheses of its own")
    if values:
        last = max(values, key=lambda node: text.span(node)[1])
        place = text.span(last)[1]
        for offset, character in significant(text.text, place, end):
            if character == ")":
                place = offset + 1
        written = f", {name}={content}"
    else:
        opening = text.span(call.func)[1]
        place = 1 + max(o for o, c in significant(text.text, opening, end) if c == "(")
        written = f"{name}={content}"

    def make(outer: ast.Call) -> ast.Call:
        return ast.Call(func=outer.func, args=outer.args, keywords=[*outer.keywords, keyword])

    rewrite = Rewrite(call, f"{name}={content}", make)
    return first_that_agrees([Change(text, ((place, place, written),), (rewrite,))])


def merged(changes: Sequence[Change]) -> list[Change]:
    """The changes as one for each text, checked once more where several met. Raises `Refused`."""
    by_text: dict[int, list[Change]] = {}
    for change in changes:
        by_text.setdefault(id(change.text), []).append(change)
    together = []
    for own in by_text.values():
        total = own[0]
        for change in own[1:]:
            total += change
        if len(own) > 1 and not total.agrees():
            raise Refused("the edits meet in one place")
        together.append(total)
    return together
