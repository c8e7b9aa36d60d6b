"""Comments that silence findings: `# trainlint: ignore[CODE]` and `# trainlint: file-ignore[CODE]`.

`ignore` holds for its own line when it follows code there, else for the next line of code; `file-ignore`
for the whole file. Several codes or names are separated by commas; there is no blanket form. A comment
that silences nothing is reported, and so is one without codes, with those that it would need.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_COMMENT: Final = re.compile(
    r"""(?<![`'"])\#\s*trainlint:\s*(?P<kind>ignore|file-ignore)
    (\s*\[(?P<selectors>[^\]]*)\] | (?![\w`'"-])(\s*\[[^\]]*)?)""",
    re.VERBOSE,
)


@dataclass
class Suppression:
    """One comment and what it names. `row` is where it stands, `line` the line that it covers."""

    filename: str
    row: int
    column: int
    end_column: int
    line: int | None
    selectors: tuple[str, ...]
    used: set[str] = field(default_factory=set)
    met: set[str] = field(default_factory=set)
    advised: set[str] = field(default_factory=set)

    @property
    def wanted(self) -> list[str]:
        """The codes that a comment without codes needs; those of advice where there is nothing else."""
        return sorted(self.met or self.advised)

    @property
    def covers_file(self) -> bool:
        """Whether it is a `file-ignore`."""
        return self.line is None

    def covers(self, rows: range) -> bool:
        """Whether one of the rows is its own."""
        return self.line is None or self.line in rows


@dataclass(frozen=True)
class Unused:
    """A part of a suppression comment that silenced nothing; `known` if it names a rule.

    A comment that names nothing has the selector "".
    """

    suppression: Suppression
    selector: str
    known: bool


class Suppressions:
    """All suppression comments of the files that were checked; the fact that SUP001 needs."""

    def __init__(self) -> None:
        self._by_file: dict[str, list[Suppression]] = {}
        self._judged: list[Unused] = []

    def read(self, filename: str, text: str) -> None:
        """Collect the comments of a file, once."""
        if filename not in self._by_file:
            self._by_file[filename] = list(_parse(filename, text))

    def silences(self, filename: str, rows: range, names: frozenset[str]) -> bool:
        """Whether a comment covers one of the rows for a rule of these names (code, name, ...)."""
        for suppression in self._by_file.get(filename, ()):
            if suppression.covers(rows):
                for selector in suppression.selectors:
                    if selector in names:
                        suppression.used.add(selector)
                        return True
        return False

    def meet(self, filename: str, rows: range, code: str, *, is_advice: bool) -> None:
        """Remember a finding for the comments without codes that stand at it."""
        for suppression in self._by_file.get(filename, ()):
            if not suppression.selectors and suppression.covers(rows):
                (suppression.advised if is_advice else suppression.met).add(code)

    def judge(self, could_fire: frozenset[str], known: frozenset[str]) -> None:
        """Settle what is unused: selectors of rules that ran and fired nowhere, and unknown ones."""
        self._judged = [
            Unused(suppression, selector, selector in known)
            for suppressions in self._by_file.values()
            for suppression in suppressions
            for selector in suppression.selectors or ("",)
            if selector not in suppression.used
            and (selector in could_fire or selector not in known)
        ]

    def unused(self) -> Iterator[Unused]:
        """What `judge` found, file by file."""
        yield from self._judged


def _parse(filename: str, text: str) -> Iterator[Suppression]:
    if "trainlint:" not in text:
        return
    waiting: list[Suppression] = []
    code_rows: set[int] = set()
    try:
        for token in tokenize.generate_tokens(io.StringIO(text, newline=None).readline):
            if token.type == tokenize.COMMENT:
                for found in _in_comment(filename, token):
                    if found.line is not None and found.row not in code_rows:
                        waiting.append(found)
                    yield found
            elif token.type not in _LAYOUT:
                for row in range(token.start[0], token.end[0] + 1):
                    code_rows.add(row)
                for suppression in waiting:
                    suppression.line = token.start[0]
                waiting.clear()
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return


def _in_comment(filename: str, token: tokenize.TokenInfo) -> Iterator[Suppression]:
    """The suppressions of one comment; each ends where the next part, such as `# noqa`, begins."""
    row, column = token.start
    for match in _COMMENT.finditer(token.string):
        named = match["selectors"] or ""
        selectors = tuple(part.strip() for part in named.split(",") if part.strip())
        text = token.string[match.start() : token.string.find("#", match.end())]
        if not selectors:
            text = match[0]  # what follows may be the reason, and stays
        elif "#" not in token.string[match.end() :]:
            text = token.string[match.start() :]
        start = column + match.start() + 1
        line = None if match["kind"] == "file-ignore" else row
        yield Suppression(filename, row, start, start + len(text.rstrip()), line, selectors)


_LAYOUT: Final = frozenset(
    {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
     tokenize.ENCODING}
)  # fmt: skip
