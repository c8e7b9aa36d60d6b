"""One source file as it is edited: its text to the byte, its tree, and what lies where in both."""

from __future__ import annotations

import ast
import bisect
import codecs
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from trainlint.fixes.edit import Edit, Location
from trainlint.overlay import text_over

if TYPE_CHECKING:
    from trainlint.fixes.spelling import Names
    from trainlint.sites import Site

# `str.splitlines` also splits at form feeds and other separators that Python does not.
_NEWLINE: Final = re.compile(r"\r\n|\r|\n")
_FIRST_LINES: Final = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$")
_HEADER: Final = 2000
_GENERATED: Final = re.compile(
    r"^\s*#.*(@generated|do not edit|(auto|automatically)[- ]?generated)",
    re.IGNORECASE | re.MULTILINE,
)

_Node = TypeVar("_Node", bound=ast.AST)
Function = ast.FunctionDef | ast.AsyncFunctionDef


class SourceText:
    """One file: its text, its tree, and conversion between byte spans and character positions.

    `text` is the file as it is decoded, without its byte order mark, its newlines untouched: an edited
    text, `encoded`, has every other byte as it was. `exact` tells whether that gives the file's own bytes.
    """

    def __init__(
        self,
        filename: str,
        text: str,
        *,
        encoding: str = "utf-8",
        marked: bool = False,
        exact: bool = True,
    ) -> None:
        self.filename = filename
        self.text = text
        self.encoding = encoding
        self.marked = marked
        self.exact = exact
        self.lines = _NEWLINE.split(text)

    @classmethod
    def read(cls, filename: str) -> SourceText | None:
        """The file as Python would decode it, or what stands in for it, or None where that fails."""
        text = text_over(filename)
        if text is not None:
            return cls(filename, text)
        try:
            return cls.decoded(filename, Path(filename).read_bytes())
        except (OSError, ValueError):
            return None

    @classmethod
    def decoded(cls, filename: str, raw: bytes) -> SourceText | None:
        """The bytes of a file as Python would decode them, or None where that fails."""
        # `detect_encoding` itself would take a text whose lines end in a lone CR for one line.
        first = iter([*_FIRST_LINES.findall(raw[:4096])[:2], b""])
        try:
            encoding, _ = tokenize.detect_encoding(lambda: next(first))
            encoding = "utf-8" if encoding == "utf-8-sig" else encoding
            marked = raw.startswith(codecs.BOM_UTF8)
            body = raw[len(codecs.BOM_UTF8) * marked :]
            text = body.decode(encoding)
            exact = text.encode(encoding) == body
        except (SyntaxError, UnicodeError, LookupError, StopIteration):
            return None
        return cls(filename, text, encoding=encoding, marked=marked, exact=exact)

    def encoded(self, text: str) -> bytes:
        """Another text of this file as bytes, in its encoding and with its byte order mark.

        Raises `UnicodeEncodeError` for a text that the encoding cannot write.
        """
        return codecs.BOM_UTF8 * self.marked + text.encode(self.encoding)

    @cached_property
    def newline(self) -> str:
        """The newline that most lines of the file end in."""
        found = _NEWLINE.findall(self.text)
        return max(("\n", "\r\n", "\r"), key=found.count)

    @cached_property
    def tree(self) -> ast.Module | None:
        """The syntax tree, or None where the text does not parse."""
        try:
            return ast.parse(self.text)
        except (SyntaxError, ValueError, RecursionError):
            return None

    @cached_property
    def obstacle(self) -> str:
        """Why the file may not be edited, or nothing."""
        if self.tree is None:
            return "the file does not parse"
        if _GENERATED.search(self.text[:_HEADER]):
            return "the file says at its top that it is generated"
        return "" if self.exact else f"{self.encoding} cannot write the file back as it is"

    # ------------------------------------------------------------------ places

    @cached_property
    def starts(self) -> list[int]:
        """Offset in characters of the start of each line."""
        ends = [match.end() for match in _NEWLINE.finditer(self.text)]
        return [0, *ends]

    def offset(self, row: int, byte_column: int) -> int:
        """Offset in characters of a row from 1 and a byte column from 0."""
        line = self.lines[row - 1]
        inside = line.encode()[:byte_column].decode(errors="ignore")
        return self.starts[row - 1] + len(inside)

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Offsets in characters of the start and the end of a node."""
        where = node.lineno, node.col_offset, node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
        return self.offset(*where[:2]), self.offset(*where[2:])

    def source(self, node: ast.AST) -> str:
        """The text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def place(self, offset: int) -> Location:
        """Location of an offset in characters."""
        row = bisect.bisect_right(self.starts, offset)
        return Location(row, offset - self.starts[row - 1] + 1)

    def location(self, row: int, byte_column: int) -> Location:
        """Location of a row from 1 and a byte column from 0."""
        line = self.lines[row - 1] if 0 < row <= len(self.lines) else ""
        return Location(row, len(line.encode()[:byte_column].decode(errors="ignore")) + 1)

    @cached_property
    def _comments(self) -> list[tuple[int, str]]:
        """Offset and text of each comment."""
        lines = iter([*(f"{line}\n" for line in self.lines), ""])
        found: list[tuple[int, str]] = []
        try:
            found += [
                (self.starts[token.start[0] - 1] + token.start[1], token.string)
                for token in tokenize.generate_tokens(lambda: next(lines, ""))
                if token.type == tokenize.COMMENT
            ]
        except (tokenize.TokenError, SyntaxError):  # not met where the text parses
            return [(match.start(), match[0]) for match in re.finditer("#.*", self.text)]
        return found

    def comments(self, start: int, end: int) -> list[str]:
        """The comments that begin between two offsets."""
        return [comment for offset, comment in self._comments if start <= offset < end]

    # ------------------------------------------------------------------ the tree

    @cached_property
    def names(self) -> Names:
        """What the names of the file are bound to."""
        from trainlint.fixes.spelling import Names

        return Names(self)

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """The node that each node stands in."""
        assert self.tree is not None
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def own(self, node: _Node) -> _Node | None:
        """The node of this tree at the place of one from another reading of the file, or None."""
        if node in self.parents:
            return node
        place = _place(node)
        found = [other for other in self.walk(type(node)) if _place(other) == place]
        return found[0] if len(found) == 1 else None  # type: ignore[return-value]

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes that a node stands in, the nearest first."""
        current = self.parents.get(node)
        while current is not None:
            yield current
            current = self.parents.get(current)

    def statement_of(self, node: ast.AST) -> ast.stmt | None:
        """The innermost statement that contains the node."""
        if self.tree is None:
            return None
        if isinstance(node, ast.stmt):
            return node
        return next((outer for outer in self.around(node) if isinstance(outer, ast.stmt)), None)

    def function_of(self, node: ast.AST) -> Function | ast.Lambda | None:
        """The innermost function around a node, or None."""
        kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda
        return next((outer for outer in self.around(node) if isinstance(outer, kinds)), None)

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """The innermost class around a node, or None."""
        return next((outer for outer in self.around(node) if isinstance(outer, ast.ClassDef)), None)

    def walk(self, *kinds: type[ast.AST]) -> list[ast.AST]:
        """All nodes of the file of these kinds."""
        return [] if self.tree is None else [n for n in ast.walk(self.tree) if isinstance(n, kinds)]

    def call_at(self, site: Site) -> ast.Call | None:
        """The call that the site's instruction executes."""
        span = site.span()
        if self.tree is None or site.filename != self.filename:
            return None
        if span is None:  # Python was told to keep no columns
            found = [call for call in self._calls if call.lineno == site.row]
        else:
            # Every call ends in its own parenthesis. The start of a chain of methods is another's.
            end = span[1], span[3]
            found = [c for c in self._calls if (c.end_lineno, c.end_col_offset) == end]
        return found[0] if len(found) == 1 else None

    @cached_property
    def _calls(self) -> list[ast.Call]:
        return [node for node in self.walk(ast.Call) if isinstance(node, ast.Call)]

    def holds(self, code: CodeType, row: int) -> bool:
        """Whether this text, compiled, has the code of a line: else the file is not what was run."""
        assert self.tree is not None
        # A file may be run as a whole or statement by statement, which makes other code of a function:
        # Python calls `nn.Linear` in another way where it sees that `nn` is imported.
        own = [n for n in self.tree.body if n.lineno <= row <= (n.end_lineno or n.lineno)]
        parts = [*(ast.Module([node], []) for node in own), self.tree]
        return any(code in self._compiled(part) for part in parts)

    def _compiled(self, part: ast.Module) -> frozenset[CodeType]:
        """The codes of a part of the file."""
        assert self.tree is not None
        key = id(part.body[0]) if part is not self.tree and part.body else 0
        if key not in self._codes:
            flags = _future_flags(self.tree)
            try:
                code = compile(part, self.filename, "exec", flags=flags, dont_inherit=True)
            except (SyntaxError, ValueError, RecursionError):
                return frozenset()
            self._codes[key] = frozenset(_codes_in(code))
        return self._codes[key]

    @cached_property
    def _codes(self) -> dict[int, frozenset[CodeType]]:
        return {}


def _place(node: ast.AST) -> tuple[Any, ...]:
    names = "lineno", "col_offset", "end_lineno", "end_col_offset"
    return tuple(getattr(node, name, None) for name in names)


def _future_flags(tree: ast.Module) -> int:
    import __future__

    names = [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for alias in node.names
    ]
    return sum(getattr(__future__, name).compiler_flag for name in set(names))


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text with the edits made, all of one file; those at one place in the order given.

    Raises `ValueError` where two of them overlap.
    """
    parts = re.split(r"(\r\n|\r|\n)", text)
    lengths = [
        len(line) + len(end) for line, end in zip(parts[::2], [*parts[1::2], ""], strict=True)
    ]
    starts = [0, *accumulate(lengths)]

    def offset(place: Location) -> int:
        return starts[place.row - 1] + place.column - 1

    return spliced(
        text, [(offset(edit.location), offset(edit.end_location), edit.content) for edit in edits]
    )


def spliced(text: str, splices: Iterable[tuple[int, int, str]]) -> str:
    """The text with each of (start, end, content) put in, offsets in characters.

    Raises `ValueError` where two of them overlap.
    """
    pieces: list[str] = []
    done = 0
    for start, end, content in sorted(splices, key=lambda splice: splice[:2]):
        if start < done:
            raise ValueError("the edits overlap")
        pieces += [text[done:start], content]
        done = end
    return "".join([*pieces, text[done:]])


def significant(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    """(offset, character) between two nodes, without blanks, comments and continuation lines.

    No strings stand between the children of a node, so that the scan is exact.
    """
    while start < end:
        character = text[start]
        if character == "#":
            newline = _NEWLINE.search(text, start, end)
            start = end if newline is None else newline.start()
        else:
            if character not in " \t\f\r\n\\":
                yield start, character
            start += 1
