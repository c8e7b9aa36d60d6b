"""A sweep as one HTML page: the U-curve, its table, and what follows.

Comes in: a `SweepReport`. Goes out: a page like that of a check, without any request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from trainlint.generalization.swept import Sweep
from trainlint.records import SweepReport
from trainlint.registry import all_rules
from trainlint.report import sweeping
from trainlint.report.explanation import Lesson
from trainlint.report.html import page
from trainlint.report.html_findings import Findings
from trainlint.report.html_parts import cells_of, figure, keys_of, table
from trainlint.report.svg import Curve, Mark, curves


def render(report: SweepReport) -> str:
    """The page."""
    found = report.sweep
    lessons = {rule.code: Lesson(rule) for rule in all_rules()} if report.findings else {}
    head, length = sweeping.head_of(found)
    verdict = "".join(f"<li>{escape(line)}</li>" for line in sweeping.verdict(found))
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    return page(
        found.target,
        [
            f"<p class='message'>{escape(head)}<br><span class='soft'>{escape(length)}</span></p>",
            f"<ul class='verdict'>{verdict}</ul>",
            _curve(found) if found.measured else "",
            *(Findings(report.findings, lessons).items() if report.findings else ()),
            _table(found) if found.measured else "",
            f"<h3>notes</h3><ul class='soft'>{notes}</ul>" if notes else "",
        ],
        report.findings,
    )


def _curve(found: Sweep) -> str:
    """Evenly spaced, since the values rise by factors."""
    best = found.best
    assert best is not None
    places = found.measured
    standings = [found.standing(place) for place in places]
    lines = [
        _line("train", [(s.train, s.train_error) for s in standings]),
        _line("validation", [(s.validation, s.validation_error) for s in standings]),
    ]
    reference = found.standing(best)
    limit = reference.validation + reference.validation_error
    marks: dict[int, list[str]] = {}
    words = ("this model", "best", f"{sweeping.simplest(found)} within one error")
    for word, place in zip(words, (found.here, best, found.chosen), strict=True):
        if place in places:
            marks.setdefault(place, []).append(word)
    ticks = [
        (float(number), sweeping.short(found, found.points[place]))
        for number, place in enumerate(places)
    ]
    title = f"loss over {sweeping.NAMES[found.over]}"
    hint = (
        "band: ± one standard error over the folds; dashed: the best and one error, Breiman's limit"
    )
    text = f'{keys_of(lines)}<span class="hint">{hint}</span>'
    picture = curves(
        title, sweeping.NAMES[found.over], lines,
        ("best + one standard error", limit) if math.isfinite(limit) else None,
        ticks=ticks,
        marks=[
            Mark(float(x), standings[x].validation, ", ".join(marks[place]), place == best)
            for x, place in enumerate(places)
            if place in marks
        ],
    )  # fmt: skip
    return figure(title, text, picture)


def _line(name: str, points: Sequence[tuple[float, float]]) -> Curve:
    band = [
        (float(x), mean - error, mean + error)
        for x, (mean, error) in enumerate(points)
        if math.isfinite(mean + error)
    ]
    return Curve(
        name, [(float(x), mean) for x, (mean, _) in enumerate(points)], name, band, dots=True
    )


def _table(found: Sweep) -> str:
    heads, *rows = sweeping.cells(found)
    lines = []
    for place, cells in enumerate(rows):
        reason = found.points[place].reason
        kind = ' class="best"' if place == found.best else ""
        last = f'<td colspan="{len(heads) - len(cells)}">{escape(reason)}</td>' if reason else ""
        lines.append(f"<tr{kind}>{cells_of(cells)}{last}</tr>")
    return table(heads, lines)
