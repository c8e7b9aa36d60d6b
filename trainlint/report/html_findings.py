"""The findings of the HTML report: what is wrong, its picture, why, what to change, what is seen then."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from markdown_it import MarkdownIt

from trainlint.fixes.edit import Fix
from trainlint.fixes.source import SourceText
from trainlint.records import Figure, ReportedFinding, TargetResult
from trainlint.report.explanation import Lesson
from trainlint.report.fixes import hunks_of, label_of, outcome_of, reasons, title_of
from trainlint.report.html_parts import figure
from trainlint.report.svg import bars
from trainlint.report.text import evidence_items, place_of, profile_of

_CONTEXT_ROWS: Final = 2
# A gradient so many times below that of the last layer starves what it reaches.
STARVED: Final = 100.0
_MOST_BARS: Final = 60
# From so many findings on a list of them stands first.
_MANY: Final = 3


class Findings:
    """The list of findings; `lessons` are the rules' documentation by code, `targets` what they are of."""

    def __init__(
        self,
        shown: Sequence[ReportedFinding],
        lessons: Mapping[str, Lesson],
        targets: Sequence[TargetResult] = (),
    ) -> None:
        self._shown = shown
        self._lessons = lessons
        self._targets = {target.target: target for target in targets}
        self._first_fix = next((f for f in shown if f.fixes and f.fixes[0].edits), None)
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table")

    def contents(self) -> str:
        """Links to the findings where there are several."""
        if len(self._shown) < _MANY:
            return ""
        rows = "".join(
            f'<li class="{finding.severity}"><a href="#finding-{number}">'
            f'<span class="badge">{finding.severity}</span> {finding.name}</a> '
            f'<span class="soft">{escape(place_of(finding))}</span></li>'
            for number, finding in enumerate(self._shown, start=1)
        )
        return f'<nav class="contents" aria-label="findings"><ol>{rows}</ol></nav>'

    def items(self) -> Iterator[str]:
        """The list."""
        yield '<ol class="findings">'
        for number, finding in enumerate(self._shown, start=1):
            yield self._item(number, finding)
        yield "</ol>"

    def _item(self, number: int, finding: ReportedFinding) -> str:
        head = [
            f'<h2>{number}. <span class="badge">{finding.severity}</span> {finding.name}',
            f'<span class="soft">{finding.code}</span></h2>',
        ]
        body = [
            f'<div class="place">{escape(place_of(finding))}</div>',
            f'<p class="message">{escape(finding.message)}</p>',
            _excerpt(finding),
            _profile(finding, self._targets.get(finding.target)),
            *_symptoms(finding),
            self._why(finding, is_open=number == 1 and finding.severity != "info"),
            *_remedy(finding, has_words=finding is self._first_fix),
            _evidence(finding),
        ]
        # The terminal hides advice; here it is a line until it is opened.
        is_folded = finding.severity == "info"
        parts = [
            f'<li class="finding {finding.severity}" data-severity="{finding.severity}"',
            f'id="finding-{number}">',
            *(["<details><summary>", *head, "</summary>"] if is_folded else head),
            *body,
            "</details>" if is_folded else "",
            "</li>",
        ]
        return "\n".join(part for part in parts if part)

    def _why(self, finding: ReportedFinding, *, is_open: bool) -> str:
        """The rule's own words, with its formula; the finding's message has it in numbers."""
        lesson = self._lessons.get(finding.code)
        if lesson is None:
            return ""
        text = self._markdown.render(f"{lesson.rule.summary}\n\n{lesson.effect}")
        return (
            f"<details{' open' if is_open else ''}><summary>why this hurts a training</summary>"
            f'<div class="lesson">{text}</div></details>'
        )


def _excerpt(finding: ReportedFinding) -> str:
    text = None if finding.filename is None else SourceText.read(finding.filename)
    place = finding.location
    if text is None or place is None or not 0 < place.row <= len(text.lines):
        return ""
    end = finding.end_location
    first, last = max(1, place.row - _CONTEXT_ROWS), min(len(text.lines), place.row + _CONTEXT_ROWS)
    margin = _margin(text.lines[first - 1 : last])
    rows = []
    for row in range(first, last + 1):
        line = text.lines[row - 1][margin:]
        shown, kind = escape(line), ""
        if row == place.row:
            stop = end.column - 1 - margin if end is not None and end.row == row else len(line)
            start = place.column - 1 - margin
            before, marked, behind = line[:start], line[start:stop], line[stop:]
            shown = f"{escape(before)}<mark>{escape(marked)}</mark>{escape(behind)}"
            kind = "here"
        rows.append(_row(str(row), shown, kind))
    return _code(rows, "the code")


def _margin(lines: Sequence[str]) -> int:
    """The indentation that lines have in common, for which a phone has no room."""
    return min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)


def _row(number: str, text: str, kind: str = "") -> str:
    tag = kind if kind in ("ins", "del") else "span"
    name = f"row {kind}".strip()
    return (
        f'<{tag} class="{name}"><span class="no">{number}</span><code>{text or " "}</code></{tag}>'
    )


def _code(rows: Sequence[str], label: str) -> str:
    return f'<div class="code" role="group" aria-label="{label}">{"".join(rows)}</div>'


# ---------------------------------------------------------------------- fixes


def _remedy(finding: ReportedFinding, *, has_words: bool) -> Iterator[str]:
    """What to change, the first proposal in full, and what should be seen then."""
    if not finding.fixes:
        return
    yield "<h3>what to change</h3>"
    if has_words:
        told = "; ".join(f"<em>{kind}</em>: {words}" for kind, words in _SAFETIES.items())
        yield f'<p class="hint">{told}</p>'
    for place, fix in enumerate(finding.fixes):
        yield _fix(fix, finding.fixes[:place])
    told = " ".join(_afterwards(finding))
    if told:
        yield f'<p class="then"><strong>afterwards</strong> {told}</p>'


_SAFETIES: Final = {
    "safe": "the model computes the same as before, or what it was meant to",
    "unsafe": "another function is learnt, or another training made: yours to decide",
}


def _fix(fix: Fix, before: Sequence[Fix]) -> str:
    label = label_of(fix, is_first=not before)
    title = _SAFETIES.get(fix.safety, "")
    hint = f' title="{title}"' if title else ""
    head = f"<strong{hint}>{label}:</strong> {escape(title_of(fix))}"
    parts = []
    outcome = outcome_of(fix)
    if outcome:
        kind = "proof" if fix.verified is not None else "soft"
        parts.append(f'<div class="{kind}">{escape(outcome)}</div>')
    parts += [f'<div class="soft">{escape(reason)}</div>' for reason in reasons(fix, before)]
    hunks = list(hunks_of(fix.edits))
    margin = _margin([line for sign, _, line in hunks if sign != "…"])
    rows = [
        _row(f"{sign} {row}".strip(), escape(line if sign == "…" else line[margin:]), _KINDS[sign])
        for sign, row, line in hunks
    ]
    if rows:
        parts.append(_code(rows, "the changed lines"))
    if not before or not parts:
        return f'<div class="fix">{head}{"".join(parts)}</div>'
    return f'<details class="fix"><summary>{head}</summary>{"".join(parts)}</details>'


_KINDS: Final = {"+": "ins", "-": "del", " ": "", "…": "cut"}


def _afterwards(finding: ReportedFinding) -> Iterator[str]:
    """What shows that a fix has worked; a command, or advice without an edit, mends nothing by itself."""
    if not any(fix.edits for fix in finding.fixes):
        return
    names = list(dict.fromkeys(symptom.name for symptom in finding.symptoms))
    symptoms = " and ".join([", ".join(names[:-1]), *names[-1:]] if len(names) > 1 else names)
    unless = f"unless another fault causes {'them' if len(names) > 1 else 'it'} too"
    is_file = finding.filename is not None and ".py::" in finding.target
    command = f"<code>trainlint check {escape(finding.target)}</code>"
    verified = finding.fixes[0].verified
    if verified is not None and verified.cleared:
        yield f"{command} no longer reports it." if is_file else "It is no longer reported."
        if names:
            yield f"With it should go {escape(symptoms)}, {unless}."
    else:
        asked = f" from what {command} reports" if is_file else ""
        with_it = f", and with it {escape(symptoms)}, {unless}" if names else ""
        yield f"The finding should go{asked}{with_it}."
    if any(is_starved for _, _, is_starved in _marked(finding)):
        yield "In the picture above no layer should be marked ◂ then: bars of about one length."
    is_tried = any(fix.verified is not None or fix.attempt is not None for fix in finding.fixes)
    if is_file and not is_tried and finding.severity != "info":
        yield "With <code>--verify</code> each proposal is tried on a copy, and the loss compared."


# ---------------------------------------------------------------------- what goes with it


def _marked(finding: ReportedFinding) -> list[tuple[str, float, bool]]:
    """The figures by layer that a finding or its symptom carries, from the output on."""
    found = profile_of(finding)
    if found is None:
        return []
    # JSON has no NaN: it is None there.
    rows = [(label, math.nan if value is None else value) for label, value in found[1]]
    known = [value for _, value in rows if value and math.isfinite(value)]
    last = known[-1] if known else 0.0
    return [
        (label, value, not math.isfinite(value) or value * STARVED < last)
        for label, value in reversed(rows)
    ]


def _profile(finding: ReportedFinding, target: TargetResult | None) -> str:
    found, marked = profile_of(finding), _marked(finding)
    if found is None:
        return ""
    source = "" if target is None else _source(marked, target)
    title = f"{found[0].replace('_', ' ')} by layer, output to input"
    starved = sum(is_starved and math.isfinite(value) for _, value, is_starved in marked)
    told = source + (
        "Read it from the top, as the gradient travels: each bar is how much arrives at that layer. The "
        "scale is logarithmic: equal steps are equal factors. "
        f"{_factor(marked)}{starved} of {len(marked)} layers get less than 1/100 of the first bar (◂, red) "
        "and hardly learn."
        if starved
        else ""
    )
    note = told
    if len(marked) > _MOST_BARS:
        half = _MOST_BARS // 2
        marked = [*marked[:half], *marked[-half:]]
        note += f" The first and the last {half} layers."
    return figure(title, note, bars(title, marked))


def _source(marked: Sequence[tuple[str, float, bool]], target: TargetResult) -> str:
    """Where the figures come from, told by those of the training, and by the graph's, of one pass."""
    series, nodes = target.series, [node for graph in target.graphs for node in graph.nodes]
    for model in [] if series is None else series.models:
        medians = {each.name: each.gradient for each in model.layers if each.gradient is not None}
        if series is not None and _is_of(marked, medians):
            return f"The median of {series.recorded} recorded steps of the training. "
    if not _is_of(marked, {node.label: node.gradient for node in nodes if node.gradient}):
        return ""
    inputs = target.inputs or next((node.shape for node in nodes if node.operation == "input"), "")
    return f"Of one pass{f' on {escape(inputs)}' if inputs else ''}, without any training. "


def _is_of(marked: Sequence[tuple[str, float, bool]], measured: Mapping[str, Figure]) -> bool:
    """Whether these are the figures, as far as the layers have the same names."""
    pairs = [(value, float(measured[label])) for label, value, _ in marked if label in measured]
    return bool(pairs) and all(math.isclose(*pair, rel_tol=1e-2) for pair in pairs)


def _factor(marked: Sequence[tuple[str, float, bool]]) -> str:
    """What is left from one bar to the next, on average."""
    first, last = marked[0][1], marked[-1][1]
    if len(marked) < _MANY or not (first and last and math.isfinite(first + last)):
        return ""
    steps = len(marked) - 1
    factor = (last / first) ** (1 / steps)
    return (
        f"From one to the next about ×{factor:.2g} is left: over {steps} layers "
        f"{factor:.2g}<sup>{steps}</sup> ≈ {last / first:.1g}. "
    )


def _symptoms(finding: ReportedFinding) -> Iterator[str]:
    if not finding.symptoms:
        return
    yield "<h3>what comes of it</h3><ul>"
    for symptom in finding.symptoms:
        yield (
            f"<li><strong>{symptom.name}</strong> {symptom.code} at "
            f'<span class="place">{escape(place_of(symptom))}</span>: {escape(symptom.message)}</li>'
        )
    yield "</ul>"


def _evidence(finding: ReportedFinding) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in evidence_items(finding)
    )
    if not rows:
        return ""
    return f'<details><summary>the figures</summary><dl class="figures">{rows}</dl></details>'
