"""One HTML file, to be looked at offline: findings with code and fixes, pictures, the model as a graph.

Comes in: a report whose targets may hold graphs. Goes out: a page without any request. All but the drawing
of the graph, of which there is a table as well, is there without JavaScript.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Final

from trainlint.records import Report, ReportedFinding, TargetResult
from trainlint.registry import all_rules
from trainlint.report.explanation import Lesson
from trainlint.report.fixes import combination_of
from trainlint.report.html_figures import figures_of
from trainlint.report.html_findings import Findings
from trainlint.report.html_folds import folds
from trainlint.report.html_graph import graphs_of


def render(report: Report, *, show_info: bool = True) -> str:
    """The page. Advice is there too, and can be filtered out."""
    shown = [f for f in report.findings if show_info or f.severity != "info"]
    lessons = {rule.code: Lesson(rule) for rule in all_rules()} if shown else {}
    found = Findings(shown, lessons, report.targets)
    names = ", ".join(target.target for target in report.targets[:2])
    more = f" and {len(report.targets) - 2} more" if len(report.targets) > 2 else ""
    return page(
        f"{names}{more}",
        [
            found.contents(),
            '<p class="soft" id="count" role="status"></p>',
            *found.items(),
            "" if shown else f"<p>{_nothing(report)}</p>",
            *(_target(target, shown) for target in report.targets),
            _WORDS if shown or report.targets else "",
        ],
        shown,
    )


def page(name: str, body: Iterable[str], findings: Sequence[ReportedFinding]) -> str:
    """The whole file around a body: style and script, and the bar with filters of these findings."""
    folder = files("trainlint.report") / "page"
    return _PAGE.format(
        title=escape(f"trainlint: {name}" if name else "trainlint"),
        policy=_POLICY,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        header=_header(name, findings),
        body="\n".join(part for part in body if part),
        script="".join(
            (folder / each).read_text(encoding="utf-8") for each in ("page.js", "graph.js")
        ),
    )


# Nothing is ever asked of a network.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">to the findings</a>
{header}
<main id="main">
{body}
</main>
<script>
{script}</script>
</body>
</html>"""

_WORDS: Final = """<details class="words"><summary>words on this page</summary><dl>
<dt>error, warning, info</dt><dd>keeps the model from learning; costs quality or time; advice</dd>
<dt>fix, safe</dt><dd>the model computes the same as before, or what it was meant to; <code>--fix</code>
applies it</dd>
<dt>fix, unsafe</dt><dd>another function is learnt, or another training made: yours to decide;
<code>--fix --unsafe-fixes</code> applies it</dd>
<dt>verified</dt><dd>tried on a copy, beside the unchanged model, with two seeds: the finding is gone, and
the loss lower</dd>
<dt>gradient of a layer</dt><dd>how strongly the loss reacts to the layer's result, as a norm over all its
elements: what the layer's weights learn from</dd>
<dt>starved</dt><dd>less than 1/100 of the gradient that the last layer gets</dd>
<dt>saturated</dt><dd>where a sigmoid or tanh is flat: its slope is below 7% of its largest, and hardly any
gradient passes</dd>
<dt>dead unit</dt><dd>0 for every sample that was seen: no gradient passes, so that it stays so</dd>
</dl></details>"""


def _nothing(report: Report) -> str:
    failed = sum(target.status != "ok" for target in report.targets)
    if failed == len(report.targets):
        return "Nothing was checked."
    left = f" {failed} of {len(report.targets)} targets could not be checked." if failed else ""
    return f"Nothing was found.{left}"


def _header(name: str, findings: Sequence[ReportedFinding]) -> str:
    buttons = []
    for severity in ("error", "warning", "info"):
        count = sum(finding.severity == severity for finding in findings)
        if count:
            shown = severity if count == 1 or severity == "info" else f"{severity}s"
            buttons.append(
                f'<button class="filter {severity}" data-severity="{severity}" aria-pressed="true">'
                f"{count} {shown}</button>"
            )
    if findings:
        buttons.append(
            '<input type="search" id="search" placeholder="Search (/)" aria-label="Search the findings">'
        )
    theme = '<button id="theme" aria-label="Light or dark">◐</button>'
    heading = f"<h1><span>trainlint</span> {escape(name)}</h1>"
    return f"<header><div>{heading}{''.join(buttons)}{theme}</div></header>"


# ---------------------------------------------------------------------- targets


def _target(target: TargetResult, findings: Sequence[ReportedFinding]) -> str:
    facts = [escape(text) for text in (target.inputs, target.watched) if text]
    if target.operations:
        facts.insert(1 if target.inputs else 0, f"{target.operations} operations")
    if target.stages:
        facts.append(", ".join(target.stages))
    parts = [
        f"<section><h2>{escape(target.target)}</h2>",
        f'<p class="soft">{" · ".join(facts)}</p>' if facts else "",
    ]
    if target.status != "ok":
        parts.append(
            f'<p class="message">{escape(target.status)}: {escape(target.reason or "")}</p>'
        )
        if target.output.strip():
            printed = escape(target.output.strip())
            parts.append(
                f"<details><summary>what it printed</summary><pre>{printed}</pre></details>"
            )
    if target.repair is not None and len(target.repair.fixes) > 1:
        parts.append(f'<p class="proof">{escape(combination_of(target.repair))}</p>')
    own = [finding for finding in findings if finding.target == target.target]
    parts += figures_of(target, own)
    if target.cross_validation is not None:
        parts += folds(target.cross_validation)
    parts += graphs_of(target.graphs, own)
    if target.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in target.notes)
        parts.append(f"<h3>notes</h3><ul class='soft'>{notes}</ul>")
    parts.append("</section>")
    return "\n".join(part for part in parts if part)
