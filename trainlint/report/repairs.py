"""What `--fix` did, for people: unified diffs, the question before each fix, a line that sums up.

Comes in: what `trainlint.fixes.fixing` made. Goes out: text, or lines on a terminal.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from rich.text import Text

from trainlint.fixes.fixing import Wish
from trainlint.report.fixes import reasons, title_of

if TYPE_CHECKING:
    from rich.console import Console

    from trainlint.fixes.composing import Proposal
    from trainlint.fixes.fixing import Changed, Fixed
    from trainlint.records import Repair, Report

_STYLES: Final = {"-": "red", "+": "green", "@": "cyan"}
ANSWERS: Final = "[y]es, [n]o, [a]ll, [q]uit"


def unified(changed: Sequence[Changed]) -> str:
    """A patch of these files: `trainlint check net.py --diff | patch -p0` makes it."""
    return "".join(line for file in changed for line in _unified(file))


def _unified(file: Changed) -> Iterator[str]:
    # By line feeds alone, as `patch` counts lines: a carriage return before one belongs to the line.
    before, after = (re.findall(r"[^\n]*\n|[^\n]+", text) for text in (file.before, file.after))
    for line in difflib.unified_diff(before, after, file.filename, file.filename):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def print_diff(changed: Sequence[Changed], console: Console) -> None:
    """The patch, in colours where the console has them."""
    for line in unified(changed).split("\n")[:-1]:
        is_name = line.startswith(("---", "+++"))
        style = "bold" if is_name else _STYLES.get(line[:1], "")
        console.print(Text(line, style=style), soft_wrap=True)


class Questions:
    """Shows each fix and asks whether to apply it: the `ask` of a `Wish`."""

    def __init__(self, console: Console, answer: Callable[[], str]) -> None:
        self._console = console
        self._answer = answer
        self._decided: bool | None = None

    def __call__(self, proposal: Proposal, changed: Sequence[Changed]) -> bool:
        """Whether to apply it; all and quit decide for the rest."""
        if self._decided is not None:
            return self._decided
        finding, fix = proposal.finding, proposal.fix
        show = self._console.print
        row = f":{finding.location.row}" if finding.location else ""
        where = f"{finding.filename}{row}" if finding.filename else finding.target
        show(Text(f"{finding.severity} {finding.name} {finding.code}  {where}", style="bold"))
        show(Text(finding.message))
        show(Text(f"{fix.safety} fix: {title_of(fix)}", style="green"))
        for reason in reasons(fix):
            show(Text(reason))
        print_diff(changed, self._console)
        while True:
            show(Text(f"apply it? {ANSWERS} "), end="")
            said = self._answer()
            letter = said.strip().lower()[:1]
            if letter == "q" or not said:  # also at the end of what is typed
                self._decided = False
                return False
            if letter == "a":
                self._decided = True
            if letter in ("y", "a", "n"):
                return letter != "n"


def offer(report: Report) -> str:
    """What `--fix` could do, for who asked for its unsafe fixes without it."""
    safe, unsafe = Wish(advice=True), Wish(advice=True, unsafe=True)
    first = sum(1 for _ in safe.findings(report))
    more = sum(1 for _ in unsafe.findings(report)) - first
    return (
        f"nothing was written: {first} findings have a safe fix (--fix), "
        f"{more} more an unsafe one (--fix --unsafe-fixes)"
    )


def remarks(fixed: Fixed, *, wrote: bool) -> Iterator[str]:
    """What was not applied, and why, line by line; then what was done in all."""
    repairs = fixed.report.repairs or []
    for repair in repairs:
        if repair.status == "rolled-back":
            yield f"rolled back: {repair.title}: {repair.reason}"
        elif repair.status == "refused":
            yield f"not applied: {repair.title}: {repair.reason}"
    shown = sum(
        finding.severity != "info" and not any(fix.edits for fix in finding.fixes)
        for finding in fixed.report.findings
    )
    yield _summary(repairs, fixed.unsafe, shown, "fixed" if wrote else "would fix")


def _summary(repairs: Sequence[Repair], unsafe: int, shown: int, verb: str) -> str:
    """`fixed 2 findings (norm-features-mismatch 2), 1 rolled back, 2 more with --unsafe-fixes`."""
    applied = Counter(repair.name for repair in repairs if repair.status == "applied")
    names = ", ".join(name if count == 1 else f"{name} {count}" for name, count in applied.items())
    total = applied.total()
    parts = [
        f"{verb} {total} finding{'' if total == 1 else 's'}" + (f" ({names})" if names else "")
    ]
    for status, text in (
        ("rolled-back", "rolled back"),
        ("refused", "not applied"),
        ("declined", "declined"),
    ):
        count = sum(repair.status == status for repair in repairs)
        parts += [f"{count} {text}"] if count else []
    parts += [f"{unsafe} more with --unsafe-fixes"] if unsafe else []
    parts += [f"{shown} left that cannot be edited for you"] if shown else []
    return ", ".join(parts)
