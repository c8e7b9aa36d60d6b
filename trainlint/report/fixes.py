"""Fixes for people: what to do and why, what came of trying it, the changed lines.

Comes in: a `Fix`. Goes out: plain text, to be coloured or marked up by the form that shows it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence

from trainlint.fixes import source
from trainlint.fixes.edit import Attempt, Edit, Fix
from trainlint.fixes.source import SourceText
from trainlint.records import CombinedFixes


def label_of(fix: Fix, *, is_first: bool = True) -> str:
    """`fix, safe`, `or, unsafe`, or `what to do` where there is no edit."""
    if fix.safety == "display-only":
        return "what to do" if is_first else "or"
    return f"{'fix' if is_first else 'or'}, {fix.safety}"


def title_of(fix: Fix) -> str:
    """The title, without the "or" that the label has."""
    return re.sub(r"^or(,| ) *", "", fix.title)


def reasons(fix: Fix, before: Sequence[Fix] = ()) -> Iterator[str]:
    """Why it helps, and why it cannot be applied: once, where it is so of those `before` it, too."""
    if fix.reason:
        yield f"because {fix.reason}"
    if fix.obstacle and fix.obstacle not in [other.obstacle for other in before]:
        yield f"not applied by --fix: {fix.obstacle}"


def outcome_of(fix: Fix) -> str:
    """What came of trying it; empty where nobody did.

    `verified: training loss after 50 steps 2.3 → 0.41 ± 0.03, the finding is gone`.
    """
    if fix.verified is not None:
        return f"verified: {_figures(fix.verified)}"
    attempt = fix.attempt
    if attempt is None:
        return ""
    if attempt.after is None:
        return attempt.reason if attempt.reason.startswith("not tried") else _failed(attempt)
    reason = f": {attempt.reason}" if attempt.reason else ""
    if attempt.cleared and not attempt.reason.startswith("it brings"):
        return f"tried: {_figures(attempt)}; no proof that it helps{reason}"
    return f"tried, not proved to help{reason} ({_figures(attempt)})"


def _failed(attempt: Attempt) -> str:
    if attempt.cleared:
        return f"tried: the finding is gone; no proof that it helps: {attempt.reason}"
    return f"tried, and failed: {attempt.reason}"


def _figures(attempt: Attempt) -> str:
    parts = [] if attempt.after is None else [_change(attempt)]
    if attempt.cleared is not None:
        parts.append("the finding is gone" if attempt.cleared else "the finding stays")
    if attempt.parameters:
        parts.append(f"{attempt.parameters:+,} parameters")
    if attempt.slowdown is not None and attempt.slowdown > _WORTH_SAYING:
        parts.append(f"{attempt.slowdown:.1f} times the time of a step")
    return ", ".join(parts)


_WORTH_SAYING = 1.5


def combination_of(repair: CombinedFixes) -> str:
    """Which fixes help together, in their order, what they do, and what is left."""
    fixes = "; then ".join(f"{fix.title} ({fix.code})" for fix in repair.fixes)
    change = "" if repair.after is None else f": {_change(repair)}"
    left = f"; left: {', '.join(repair.left)}" if repair.left else ""
    return f"together: {fixes}{change}{left}"


def _change(attempt: Attempt | CombinedFixes) -> str:
    """`training loss after 50 steps 2.3 → 0.41 ± 0.03`."""
    assert attempt.after is not None
    steps = f" after {attempt.steps} steps" if attempt.steps else ""
    if attempt.before is None:
        return f"it did not run, now {attempt.measure}{steps} {attempt.after:.3g}"
    return f"{attempt.measure}{steps} {attempt.before:.3g} → {attempt.after:.3g}{_spread(attempt)}"


def _spread(attempt: Attempt | CombinedFixes) -> str:
    """The error in the loss's own unit: that of the gain is in units of a constant answer's loss."""
    if attempt.before is None or attempt.after is None or not attempt.gain or attempt.error is None:
        return ""
    unit = abs((attempt.before - attempt.after) / attempt.gain)
    error = attempt.error * unit
    return f" ± {error:.1g}" if math.isfinite(error) else ""


def diff_of(edits: Sequence[Edit], most: int | None = None) -> list[str]:
    """The changed lines, `- 14 │ old` and `+ 14 │ new`, file by file, without their common indentation.

    Of more than `most` the first stand there, and how many more there are.
    """
    rows: list[str] = []
    for filename in dict.fromkeys(edit.filename for edit in edits):
        text = SourceText.read(filename)
        if text is not None:
            rows += _changed(text, [edit for edit in edits if edit.filename == filename])
    if most is None or len(rows) <= most + 1:
        return rows
    return [*rows[:most], f"  … {len(rows) - most} more changed lines"]


def hunks_of(edits: Sequence[Edit], context: int = 2) -> Iterator[tuple[str, str, str]]:
    """The changed lines among those around them: (sign, number, line), file by file.

    The sign is `+`, `-` or a space; `…` stands where lines are left out, with the file's name where there
    are several.
    """
    filenames = list(dict.fromkeys(edit.filename for edit in edits))
    for filename in filenames:
        text = SourceText.read(filename)
        if text is None:
            continue
        after = SourceText(
            filename, source.apply(text.text, [each for each in edits if each.filename == filename])
        ).lines
        matcher = difflib.SequenceMatcher(a=text.lines, b=after, autojunk=False)
        for number, group in enumerate(matcher.get_grouped_opcodes(context)):
            if number or len(filenames) > 1:
                yield "…", "", filename if not number else ""
            for tag, old, old_end, new, new_end in group:
                if tag == "equal":
                    yield from _numbered(" ", after, new, new_end)
                else:
                    yield from _numbered("-", text.lines, old, old_end)
                    yield from _numbered("+", after, new, new_end)


def _numbered(
    sign: str, lines: Sequence[str], first: int, end: int
) -> Iterator[tuple[str, str, str]]:
    return ((sign, str(row + 1), lines[row].expandtabs(4).rstrip()) for row in range(first, end))


def _changed(text: SourceText, edits: Sequence[Edit]) -> Iterator[str]:
    after = SourceText(text.filename, source.apply(text.text, edits)).lines
    matcher = difflib.SequenceMatcher(a=text.lines, b=after, autojunk=False)
    changed = [
        (sign, row + 1, lines[row].expandtabs(4).rstrip())
        for tag, old, old_end, new, new_end in matcher.get_opcodes()
        if tag != "equal"
        for sign, lines, rows in (
            ("-", text.lines, range(old, old_end)),
            ("+", after, range(new, new_end)),
        )
        for row in rows
    ]
    common = min((len(line) - len(line.lstrip()) for _, _, line in changed if line), default=0)
    digits = max((len(str(row)) for _, row, _ in changed), default=0)
    for sign, row, line in changed:
        yield f"{sign} {row:>{digits}} │ {line[common:]}".rstrip()
