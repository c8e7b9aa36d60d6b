"""One HTML file, to be looked at offline: findings with code and fixes, the model as a graph, curves.

Comes in: a report whose targets may hold graphs. Goes out: a page without any request. All but the graph is
there without JavaScript.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Any, Final

import msgspec
from markdown_it import MarkdownIt

from trainlint.fixes.edit import Fix
from trainlint.fixes.source import SourceText
from trainlint.records import (
    Figure,
    GraphNode,
    LayerSeries,
    ModelGraph,
    Report,
    ReportedFinding,
    Series,
    TargetResult,
)
from trainlint.registry import all_rules
from trainlint.report.explanation import Lesson
from trainlint.report.fixes import combination_of, diff_of, label_of, outcome_of, reasons, title_of
from trainlint.report.svg import Curve, bars, curves
from trainlint.report.text import evidence_items, place_of, profile_of

_CONTEXT_ROWS: Final = 2
# A gradient so many times below that of the last layer starves what it reaches.
_STARVED: Final = 100.0
_MOST_CURVES: Final = 6
_MOSTLY: Final = 0.5


def render(report: Report, *, show_info: bool = True) -> str:
    """The page. Advice is there too, and can be filtered out."""
    shown = [f for f in report.findings if show_info or f.severity != "info"]
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    lessons = {rule.code: Lesson(rule) for rule in all_rules()} if shown else {}
    page = files("trainlint.report") / "page"
    body = [
        _header(report, shown),
        '<main id="main">',
        '<p class="soft" id="count" role="status"></p>',
        '<ol class="findings">',
        *(_finding(number, each, lessons, markdown) for number, each in enumerate(shown, start=1)),
        "</ol>",
        "" if shown else "<p>Nothing was found.</p>",
        *(_target(target, shown) for target in report.targets),
        "</main>",
    ]
    return _PAGE.format(
        title=escape(_title(report)),
        policy=_POLICY,
        style=(page / "page.css").read_text(encoding="utf-8"),
        body="\n".join(part for part in body if part),
        script=(page / "page.js").read_text(encoding="utf-8"),
    )


# Nothing is ever asked of a network.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">to the findings</a>
{body}
<script>
{script}</script>
</body>
</html>"""


def _title(report: Report) -> str:
    names = ", ".join(target.target for target in report.targets[:2])
    return f"trainlint: {names}" if names else "trainlint"


def _header(report: Report, shown: Sequence[ReportedFinding]) -> str:
    buttons = []
    for severity in ("error", "warning", "info"):
        count = sum(finding.severity == severity for finding in shown)
        if count:
            name = severity if count == 1 or severity == "info" else f"{severity}s"
            buttons.append(
                f'<button class="filter {severity}" data-severity="{severity}" aria-pressed="true">'
                f"{count} {name}</button>"
            )
    search = (
        '<input type="search" id="search" placeholder="Search (/)" aria-label="Search the findings">'
        if shown
        else ""
    )
    heading = escape(_title(report))
    theme = '<button id="theme" aria-label="Light or dark">◐</button>'
    return f"<header><div><h1>{heading}</h1>{''.join(buttons)}{search}{theme}</div></header>"


# ---------------------------------------------------------------------- findings


def _finding(
    number: int, finding: ReportedFinding, lessons: dict[str, Lesson], markdown: MarkdownIt
) -> str:
    parts = [
        f'<li class="finding {finding.severity}" data-severity="{finding.severity}" id="finding-{number}">',
        f'<h3>{number}. <span class="badge">{finding.severity}</span> {finding.name}',
        f'<span class="soft">{finding.code}</span></h3>',
        f'<div class="place">{escape(place_of(finding))}</div>',
        f'<p class="message">{escape(finding.message)}</p>',
        _excerpt(finding),
        *(_fix(fix, place == 0) for place, fix in enumerate(finding.fixes)),
        _evidence(finding),
        _profile(finding),
        *(
            f'<p class="soft">so also: {symptom.name} {symptom.code} at {escape(place_of(symptom))}: '
            f"{escape(symptom.message)}</p>"
            for symptom in finding.symptoms
        ),
        _lesson(lessons.get(finding.code), markdown),
        "</li>",
    ]
    return "\n".join(part for part in parts if part)


def _excerpt(finding: ReportedFinding) -> str:
    text = None if finding.filename is None else SourceText.read(finding.filename)
    place = finding.location
    if text is None or place is None or not 0 < place.row <= len(text.lines):
        return ""
    end = finding.end_location
    rows = range(
        max(1, place.row - _CONTEXT_ROWS), min(len(text.lines), place.row + _CONTEXT_ROWS) + 1
    )
    lines = []
    for row in rows:
        line = text.lines[row - 1]
        if row != place.row:
            lines.append(f"{row:>4}  {escape(line)}")
            continue
        stop = end.column - 1 if end is not None and end.row == row else len(line)
        start = place.column - 1
        marked = (
            f"{escape(line[:start])}<mark>{escape(line[start:stop])}</mark>{escape(line[stop:])}"
        )
        lines.append(f'<span class="here">{row:>4}  {marked}</span>')
    return f'<pre tabindex="0"><code>{chr(10).join(lines)}</code></pre>'


def _fix(fix: Fix, is_first: bool) -> str:
    parts = [f"<strong>{label_of(fix, is_first=is_first)}:</strong> {escape(title_of(fix))}"]
    outcome = outcome_of(fix)
    if outcome:
        kind = "proof" if fix.verified is not None else "soft"
        parts.append(f'<div class="{kind}">{escape(outcome)}</div>')
    parts += [f'<div class="soft">{escape(reason)}</div>' for reason in reasons(fix)]
    rows = diff_of(fix.edits)
    if rows:
        marks = ["del" if row.startswith("-") else "ins" for row in rows]
        pairs = zip(rows, marks, strict=True)
        shown = "\n".join(f"<{mark}>{escape(row)}</{mark}>" for row, mark in pairs)
        parts.append(f'<pre tabindex="0"><code>{shown}</code></pre>')
    return f'<div class="fix">{"".join(parts)}</div>'


def _evidence(finding: ReportedFinding) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in evidence_items(finding)
    )
    return (
        f'<details><summary>the figures</summary><dl class="figures">{rows}</dl></details>'
        if rows
        else ""
    )


def _profile(finding: ReportedFinding) -> str:
    """The figures by layer that a finding or its symptom carries."""
    found = profile_of(finding)
    if found is None:
        return ""
    name, rows = found
    known = [value for _, value in rows if value]
    last = known[-1] if known else 0.0
    title = f"{name.replace('_', ' ')}, output to input"
    marked = [
        (label, value, bool(value is not None and last and value * _STARVED < last))
        for label, value in reversed(rows)
    ]
    return f"<figure><figcaption>{escape(title)}</figcaption>{bars(title, marked)}</figure>"


def _lesson(lesson: Lesson | None, markdown: MarkdownIt) -> str:
    if lesson is None:
        return ""
    text = markdown.render(f"{lesson.rule.summary}\n\n{lesson.effect}")
    return (
        "<details><summary>what this does to a training</summary>"
        f'<div class="lesson">{text}</div></details>'
    )


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
        parts.append(f"<p>{escape(target.status)}: {escape(target.reason or '')}</p>")
    parts += [f'<p class="soft">{escape(note)}</p>' for note in target.notes]
    if target.repair is not None and len(target.repair.fixes) > 1:
        parts.append(f'<p class="proof">{escape(combination_of(target.repair))}</p>')
    own = [finding for finding in findings if finding.target == target.target]
    if target.series is not None:
        parts += _series(target.series, own)
    if target.graph is not None and target.graph.nodes:
        parts.append(_graph(target.graph, own))
    parts.append("</section>")
    return "\n".join(part for part in parts if part)


def _series(series: Series, findings: Sequence[ReportedFinding]) -> Iterator[str]:
    yield _losses(series)
    accused = {name for finding in findings for name in _modules(finding)}
    for model in series.models:
        of = f" of {model.model}" if len(series.models) > 1 else ""
        yield _layers(
            f"gradient norm by layer{of}", model.layers, lambda layer: layer.gradient, accused
        )
        yield _updates(f"update of a step over the weight{of}", model.layers)
        yield _layers(
            f"share of dead units{of}",
            [layer for layer in model.layers if layer.dead],
            lambda layer: layer.dead,
            {layer.name for layer in model.layers if (layer.dead or 0) > _MOSTLY},
        )


def _losses(series: Series) -> str:
    lines = [
        Curve(name, _finite(points), name, [])
        for name, points in (("train", series.train), ("validation", series.validation))
        if len(points) > 1
    ]
    if not lines:
        return ""
    bands = [
        (float(step), float(low), float(high))
        for step, low, high in series.bands
        if math.isfinite(float(low) + float(high))
    ]
    lines = [
        Curve(line.name, line.points, line.kind, bands if line.name == "validation" else [])
        for line in lines
    ]
    guess = None if series.guess is None else ("best constant answer", float(series.guess))
    keys = "".join(f'<span class="key {line.kind}"><i></i>{line.name}</span>' for line in lines)
    title = f"loss ({series.loss.replace('_', ' ')}) over {series.steps} optimizer steps"
    picture = curves(title, "optimizer steps", lines, guess)
    return f"<figure><figcaption>{escape(title)}<br>{keys}</figcaption>{picture}</figure>"


def _finite(points: Sequence[tuple[int, Figure]]) -> list[tuple[float, float]]:
    return [(float(step), float(value)) for step, value in points]


def _layers(title: str, layers: Sequence[LayerSeries], figure: Any, accused: set[str]) -> str:
    rows = []
    for layer in reversed(layers):
        value = figure(layer)
        value = None if value is None or not math.isfinite(float(value)) else float(value)
        rows.append((layer.name, value, layer.name in accused))
    if not any(value is not None for _, value, _ in rows):
        return ""
    return f"<figure><figcaption>{escape(title)}, output to input</figcaption>{bars(title, rows)}</figure>"


def _updates(title: str, layers: Sequence[LayerSeries]) -> str:
    """Over time, of the first and last layers where there are many."""
    drawn = [layer for layer in layers if len(layer.updates) > 1]
    if len(drawn) > _MOST_CURVES:
        half = _MOST_CURVES // 2
        drawn = [*drawn[:half], *drawn[-half:]]
    lines = []
    for number, layer in enumerate(drawn):
        points = [(x, y) for x, y in _finite(layer.updates) if math.isfinite(y) and y > 0]
        if len(points) > 1:
            lines.append(Curve(layer.name, points, f"l{number}"))
    if not lines:
        return ""
    keys = "".join(
        f'<span class="key {line.kind}"><i></i>{escape(line.name)}</span>' for line in lines
    )
    picture = curves(title, "optimizer steps", lines, ("1e-3 is usual", 1e-3))
    return f"<figure><figcaption>{escape(title)}<br>{keys}</figcaption>{picture}</figure>"


# ---------------------------------------------------------------------- the graph


def _modules(finding: ReportedFinding) -> Iterator[str]:
    for each in (finding, *finding.symptoms):
        if each.module:
            yield each.module
        yield from (str(name) for name in each.evidence.get("modules", ()) or ())


def _graph(graph: ModelGraph, findings: Sequence[ReportedFinding]) -> str:
    accused: dict[str, str] = {}
    rows: dict[tuple[str | None, int], str] = {}
    for finding in findings:
        if finding.severity == "info":
            continue
        named = f"{finding.severity}: {finding.name} {finding.code}"
        for module in _modules(finding):
            accused.setdefault(module, named)
        if finding.location is not None:
            rows.setdefault((finding.filename, finding.location.row), named)
    known = [node.gradient for node in graph.nodes if node.gradient]
    last = known[-1] if known else 0.0
    nodes = [_node(node, accused, rows, last) for node in graph.nodes]
    data = (
        msgspec.json.encode({"nodes": nodes, "edges": graph.edges}).decode().replace("</", "<\\/")
    )
    tools = "".join(
        f'<button data-do="{what}">{name}</button>'
        for what, name in (
            ("in", "+"), ("out", "−"), ("fit", "readable"), ("whole", "whole"),
            ("open", "open all"), ("close", "close all"),
        )
    )  # fmt: skip
    starved = sum(bool(node["starved"]) for node in nodes)
    told = f"; {starved} get less than 1/100 of the last layer's gradient" if starved else ""
    return f"""<h4>the graph: {len(nodes)} operations{told}</h4>
<div class="graph"><div class="tools">{tools}</div>
<svg tabindex="0" role="group" aria-label="the model as a graph"><defs>{_TIP}</defs></svg>
<div class="about" aria-live="polite">A group (dashed) opens with a click or Enter; Backspace closes it.
Drag or arrow keys move, + and − zoom, Ctrl and the wheel too.</div>
<script type="application/json">{data}</script></div>"""


_TIP: Final = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker>'
)


def _node(
    node: GraphNode, accused: dict[str, str], rows: dict[tuple[str | None, int], str], last: float
) -> dict[str, Any]:
    place = "" if node.filename is None else f"{node.filename}:{node.row}"
    is_layer = node.operation[:1].isupper()
    named = accused.get(node.module, "") if is_layer or node.module in accused else ""
    if not named and node.row is not None:
        named = rows.get((node.filename, node.row), "")
    return {
        "label": node.label, "operation": node.operation, "module": node.module, "shape": node.shape,
        "parameters": node.parameters, "place": place, "fault": node.fault, "gradient": node.gradient,
        "zero": node.zero, "saturated": node.saturated, "accused": named,
        "starved": bool(node.gradient is not None and last and node.gradient * _STARVED < last),
    }  # fmt: skip
