"""Put fixes together: which of them can be made at once, and what the files then hold.

In come fixes in the order of their rank, and the texts of the files; out go the new texts, and the fixes
that have to wait since another one changes the same place. Imports no torch.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from trainlint.fixes.edit import Edit, Fix, Location
from trainlint.fixes.source import SourceText
from trainlint.records import ReportedFinding

_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Proposal:
    """A fix that is to be made, and the finding that it is for."""

    finding: ReportedFinding
    fix: Fix

    @property
    def filenames(self) -> list[str]:
        """The files that it changes, each once."""
        return list(dict.fromkeys(edit.filename for edit in self.fix.edits))


@dataclass(frozen=True, order=True)
class Change:
    """`content` in place of what is from `start` to `end`, in characters from the beginning of a text."""

    start: int
    end: int
    content: str

    def clashes_with(self, other: Change) -> bool:
        """Whether it matters which of the two is made first. Equal ones are one."""
        if self == other:
            return False
        if self.start == self.end or other.start == other.end:
            return self.start <= other.end and other.start <= self.end
        return self.start < other.end and other.start < self.end


Changes = Mapping[str, Sequence[Change]]


class Rows:
    """From rows and columns to characters from the beginning of a text."""

    def __init__(self, text: str) -> None:
        lengths = [len(part) for part in re.split(r"(\r\n|\r|\n)", text)]
        pairs = zip(lengths[::2], [*lengths[1::2], 0], strict=True)
        self._starts = [0, *accumulate(line + end for line, end in pairs)]
        self._end = len(text)

    def offset(self, place: Location) -> int:
        """Where the place is. Raises `ValueError` where the text has no such place."""
        if not 1 <= place.row < len(self._starts):
            raise ValueError(f"there is no line {place.row}")
        return self._starts[place.row - 1] + place.column - 1

    def change(self, edit: Edit, newline: str) -> Change:
        """The edit as a change. Raises `ValueError` where it lies outside of the text."""
        change = Change(
            self.offset(edit.location),
            self.offset(edit.end_location),
            _LINE_END.sub(newline, edit.content),
        )
        if not 0 <= change.start <= change.end <= self._end:
            raise ValueError(f"line {edit.location.row} is shorter than that")
        return change


def spliced(text: str, changes: Sequence[Change]) -> str:
    """The text with these changes, none of which clash."""
    parts, at = [], 0
    for change in sorted(set(changes)):
        parts += [text[at : change.start], change.content]
        at = change.end
    return "".join([*parts, text[at:]])


@dataclass(frozen=True)
class Composition:
    """`made` at once, with their `changes` of each file and what it then holds; `waiting` for a next round.

    `impossible` are the fixes that cannot be made of these texts at all, with the reason.
    """

    made: list[Proposal]
    changes: dict[str, list[Change]]
    texts: dict[str, str]
    waiting: list[Proposal] = field(default_factory=list)
    impossible: list[tuple[Proposal, str]] = field(default_factory=list)


def compose(proposals: Sequence[Proposal], read: Callable[[str], SourceText]) -> Composition:
    """Make as many as can be made at once; the first in order has its way where two would clash."""
    result = Composition([], {}, {})
    for proposal in proposals:
        try:
            own = _changes(proposal, read)
        except ValueError as error:
            result.impossible.append((proposal, str(error)))
            continue
        if any(_clash(result.changes.get(name, ()), changes) for name, changes in own.items()):
            result.waiting.append(proposal)
            continue
        merged = {
            name: sorted({*result.changes.get(name, ()), *changes}) for name, changes in own.items()
        }
        texts = {name: spliced(read(name).text, changes) for name, changes in merged.items()}
        if all(map(_parses, texts.values())):
            result.made.append(proposal)
            result.changes.update(merged)
            result.texts.update(texts)
        elif result.made:
            result.waiting.append(proposal)
        else:
            result.impossible.append((proposal, "the edited file would not parse"))
    return result


def _changes(proposal: Proposal, read: Callable[[str], SourceText]) -> dict[str, list[Change]]:
    found: dict[str, list[Change]] = {}
    for name in proposal.filenames:
        source = read(name)
        rows = Rows(source.text)
        edits = (edit for edit in proposal.fix.edits if edit.filename == name)
        found[name] = sorted({rows.change(edit, source.newline) for edit in edits})
        if _clash(found[name], found[name]):
            raise ValueError("its own edits overlap")
    return found


def _clash(some: Sequence[Change], others: Sequence[Change]) -> bool:
    return any(one.clashes_with(other) for one in some for other in others)


def _parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a SyntaxWarning of the user's is not our business
        try:
            ast.parse(text)
        except (SyntaxError, ValueError):
            return False
    return True
