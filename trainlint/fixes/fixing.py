"""`--fix`: choose fixes, try them on texts, keep what helps, and write only that.

Comes in: a check of files that can be made again, and its report. Goes out: the edited files, their report,
and what became of each fix. In every round as many fixes as do not clash are put together and the edited
texts are checked in fresh processes, before any file is touched. Where the result is not good, halves of
them are tried, so that the good ones stay.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from trainlint.fixes.choosing import Trial, choose, connected
from trainlint.fixes.composing import Proposal, compose
from trainlint.fixes.edit import Fix, Safety
from trainlint.fixes.matching import Edited, judge
from trainlint.fixes.source import SourceText
from trainlint.fixes.writing import (
    NotWritable,
    Original,
    reason_to_spare,
    root_of,
    write_together,
)
from trainlint.records import Repair, Report, ReportedFinding

if TYPE_CHECKING:
    from trainlint.files import FileCheck, Progress

ROUNDS: Final = 6
# What is seen in a training may follow from what was known before.
_LATE: Final = "probe"
Ask = Callable[[Proposal, Sequence["Changed"]], bool]


@dataclass(frozen=True)
class Changed:
    """A file, as the user would name it, before and after."""

    filename: str
    before: str
    after: str


@dataclass(frozen=True)
class Snapshot:
    """What the files held when a check began, so that what is edited is what was checked."""

    contents: Mapping[str, bytes]
    taken: float

    @classmethod
    def of(cls, check: FileCheck) -> Snapshot:
        """The files that are checked, by their real paths. Of what they import, the time will tell."""
        taken = time.time()
        contents = {}
        for job in check.jobs:
            path = Path(os.path.realpath(job.path)) if job.path else None
            if path is not None and path.is_file():
                contents[str(path)] = path.read_bytes()
        return cls(contents, taken)

    def original(self, name: str) -> Original:
        """The file as it was then. Raises `NotWritable` where it is another one now."""
        original = Original.read(name)
        known = self.contents.get(original.path)
        is_later = original.status.st_ctime >= self.taken
        if original.content != known if known is not None else is_later:
            raise NotWritable(f"{os.path.relpath(name)} changed while it was checked")
        return original


@dataclass(frozen=True)
class Wish:
    """What may be done: `unsafe` fixes too, those of `advice` too, or nothing be written but shown.

    `ask` is asked before each fix; `wanted` leaves out of a report what is not to be fixed.
    """

    unsafe: bool = False
    advice: bool = False
    write: bool = True
    ask: Ask | None = None
    wanted: Callable[[Report], Report] = field(default=lambda report: report)

    def allows(self, fix: Fix) -> bool:
        """Whether the fix may be applied."""
        return bool(fix.edits) and (fix.safety == Safety.SAFE or (
            self.unsafe and fix.safety == Safety.UNSAFE
        ))  # fmt: skip

    def findings(self, report: Report) -> Iterator[ReportedFinding]:
        """The findings that are to be fixed. To mend a symptom would hide its cause."""
        for finding in self.wanted(report).findings:
            if finding.severity == "info" and not self.advice:
                continue
            if any(map(self.allows, finding.fixes)):
                yield finding


@dataclass(frozen=True)
class Fixed:
    """What came of it: the report of the edited files, and what `changed` in them.

    `unsafe` is how many of the findings that are left have an unsafe fix that was not asked for.
    """

    report: Report
    changed: list[Changed]
    unsafe: int = 0


def fix_files(
    check: FileCheck,
    wish: Wish,
    progress: Progress | None = None,
    look: Callable[[], Report] | None = None,
) -> Fixed:
    """Apply the first allowed fix of each finding, as far as the edited files are better for it.

    `look` makes the first report, in which fixes may have been verified and put in another order.
    """
    snapshot = Snapshot.of(check)
    report = check.report(progress) if look is None else look()
    work = _Work(check, snapshot, wish, progress)
    for number in range(1, ROUNDS + 1):
        after = work.round(number, report)
        if after is None:
            break
        report = after
    changed = work.changed()
    if wish.write and not work.write():
        report, changed = check.report(progress), work.changed()
    more = 0 if wish.unsafe else _more(report, wish)
    return Fixed(msgspec.structs.replace(report, repairs=work.repairs), changed, more)


def _more(report: Report, wish: Wish) -> int:
    """How many of the findings that are left have an unsafe fix, and no safe one."""
    unsafe = Wish(unsafe=True, advice=wish.advice, wanted=wish.wanted)
    return sum(
        not any(map(wish.allows, finding.fixes)) and any(map(unsafe.allows, finding.fixes))
        for finding in unsafe.findings(report)
    )


class _Work:
    """The files as they are to become, and what was done so far."""

    def __init__(
        self, check: FileCheck, snapshot: Snapshot, wish: Wish, progress: Progress | None
    ) -> None:
        self._check = check
        self._snapshot = snapshot
        self._wish = wish
        self._progress = progress
        here = Path(os.path.realpath(Path.cwd()))
        files = (Path(job.path) for job in check.jobs if job.path)
        self._roots = list(dict.fromkeys([here, *map(root_of, files)]))
        self._originals: dict[str, Original] = {}
        self._texts: dict[str, str] = {}
        self._settled: set[tuple[str, ...]] = set()
        self._titles: dict[tuple[str, ...], str] = {}
        self.repairs: list[Repair] = []
        self._applied: list[Proposal] = []

    # ------------------------------------------------------------------ one round

    def round(self, number: int, report: Report) -> Report | None:
        """Try what the report offers; the report of what then stands, or None where nothing came of it."""
        proposals, late = _first(list(self._proposals(number, report)))
        composition = compose(proposals, self._source)
        for proposal, reason in composition.impossible:
            self._settle(number, proposal, "refused", reason)
        made = [proposal for proposal in composition.made if self._is_agreed(number, proposal)]
        if not made:
            return report if late else None
        choice = choose(made, lambda some: self._tried(some, report))
        for proposal, reason in choice.rejected:
            self._settle(number, proposal, "rolled-back", reason)
        if choice.best is None:
            # What had to wait for these, or was put off, may still be good.
            is_open = late or composition.waiting or len(choice.rejected) < len(made)
            return report if is_open else None
        for proposal in choice.kept:
            self._settle(number, proposal, "applied")
        self._applied += choice.kept
        self._texts.update(choice.best.composition.texts)
        return choice.best.report

    def _proposals(self, number: int, report: Report) -> Iterator[Proposal]:
        for finding in self._wish.findings(report):
            refusal = ""
            for fix in self._in_order(finding):
                if _key(finding, fix) in self._settled:
                    break
                edits = [
                    msgspec.structs.replace(edit, filename=os.path.realpath(edit.filename))
                    for edit in fix.edits
                ]
                proposal = Proposal(finding, msgspec.structs.replace(fix, edits=edits))
                reason = self._reason_to_refuse(proposal)
                if not reason:
                    self._titles[_key(finding)] = fix.title
                    yield proposal
                    break
                refusal = refusal or reason
            else:
                self._settle(number, Proposal(finding, fix), "refused", refusal)

    def _in_order(self, finding: ReportedFinding) -> list[Fix]:
        """Its allowed fixes: first the one that was chosen in an earlier round, and had to wait."""
        chosen = self._titles.get(_key(finding))
        allowed = filter(self._wish.allows, finding.fixes)
        return sorted(allowed, key=lambda fix: fix.title != chosen)

    def _reason_to_refuse(self, proposal: Proposal) -> str:
        for name in proposal.filenames:
            reason = reason_to_spare(name, self._roots)
            if reason:
                return f"{_display(name)} {reason}"
            try:
                self._original(name)
            except NotWritable as error:
                return str(error)
        return ""

    def _is_agreed(self, number: int, proposal: Proposal) -> bool:
        if self._wish.ask is None:
            return True
        alone = compose([proposal], self._source)
        changes = [
            Changed(_display(name), self._source(name).text, text)
            for name, text in alone.texts.items()
        ]
        if self._wish.ask(proposal, changes):
            return True
        self._settle(number, proposal, "declined")
        return False

    def _tried(self, proposals: Sequence[Proposal], report: Report) -> Trial:
        composition = compose(proposals, self._source)
        after = self._check.report(self._progress, {**self._texts, **composition.texts})
        edited = {
            name: Edited(self._source(name).text, text, composition.changes[name])
            for name, text in composition.texts.items()
        }
        targets = [proposal.finding for proposal in proposals]
        return Trial(composition, after, judge(report, after, edited, targets))

    def _settle(self, number: int, proposal: Proposal, status: str, reason: str = "") -> None:
        finding, fix = proposal.finding, proposal.fix
        if status != "applied":
            self._settled.add(_key(finding, fix))
        edits = [
            msgspec.structs.replace(edit, filename=_display(edit.filename)) for edit in fix.edits
        ]
        self.repairs.append(
            Repair(
                code=finding.code, name=finding.name, severity=finding.severity,
                target=finding.target, module=finding.module, filename=finding.filename,
                location=finding.location, title=fix.title, safety=str(fix.safety), status=status,
                reason=reason, round=number, edits=edits,
            )
        )  # fmt: skip

    # ------------------------------------------------------------------ the files

    def _original(self, name: str) -> Original:
        if name not in self._originals:
            self._originals[name] = self._snapshot.original(name)
        return self._originals[name]

    def _source(self, name: str) -> SourceText:
        """The file as it is to be, as far as that is settled."""
        original = self._original(name).source
        return SourceText(name, self._texts.get(name, original.text), encoding=original.encoding)

    def changed(self) -> list[Changed]:
        """The files that are to be written."""
        return [
            Changed(_display(name), self._originals[name].source.text, text)
            for name, text in sorted(self._texts.items())
            if text != self._originals[name].source.text
        ]

    def write(self) -> bool:
        """Write all files, those that share a fix together. Whether that went well for all of them."""
        failed: dict[str, str] = {}
        for group in connected(self._applied, lambda each: set(each.filenames)):
            names = sorted({name for each in group for name in each.filenames})
            pairs = [(self._originals[name], self._texts[name]) for name in names]
            try:
                write_together(pairs)
            except NotWritable as error:
                failed |= dict.fromkeys(names, str(error))
        for name in failed:
            del self._texts[name]
        self.repairs = [_not_written(repair, failed) for repair in self.repairs]
        return not failed


def _first(proposals: Sequence[Proposal]) -> tuple[list[Proposal], bool]:
    """Those to be made now, and whether others wait until it is known if they are still needed.

    What a training showed waits for what was found in the same file without one.
    """
    early = {
        proposal.finding.target.partition("::")[0]
        for proposal in proposals
        if proposal.finding.stage != _LATE
    }
    now = [
        proposal
        for proposal in proposals
        if proposal.finding.stage != _LATE
        or proposal.finding.target.partition("::")[0] not in early
    ]
    return now, len(now) < len(proposals)


def _not_written(repair: Repair, failed: Mapping[str, str]) -> Repair:
    reasons = [failed.get(os.path.realpath(edit.filename), "") for edit in repair.edits]
    if repair.status != "applied" or not any(reasons):
        return repair
    return msgspec.structs.replace(repair, status="refused", reason=next(filter(None, reasons)))


def _key(finding: ReportedFinding, fix: Fix | None = None) -> tuple[str, ...]:
    """What is tried once."""
    key = (finding.code, finding.target, finding.module)
    return key if fix is None else (*key, fix.title)


def _display(name: str) -> str:
    path = Path(name)
    here = Path(os.path.realpath(Path.cwd()))
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else name
