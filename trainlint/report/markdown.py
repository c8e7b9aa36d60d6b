"""Markdown, for a comment on a pull request: a table, and each finding to be unfolded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from trainlint.fingerprints import in_repository
from trainlint.records import Report, ReportedFinding
from trainlint.report.fixes import diff_of, label_of, outcome_of, reasons, title_of
from trainlint.report.text import evidence_of

_SIGNS: Final = {"error": "🔴", "warning": "🟡", "info": "🔵"}


def render(report: Report, *, show_info: bool = False) -> str:
    """The findings, most severe first, and the targets that could not be checked."""
    shown = [f for f in report.findings if show_info or f.severity != "info"]
    return "\n".join([*_head(report), *_table(shown), *_details(shown), *_problems(report)])


def _head(report: Report) -> Iterator[str]:
    errors, warnings = report.count("error"), report.count("warning")
    models = sum(target.status == "ok" for target in report.targets)
    if errors or warnings:
        yield f"### trainlint: {_counted(errors, 'error')}, {_counted(warnings, 'warning')}"
    else:
        yield f"### trainlint: nothing found in {_counted(models, 'model')}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _table(findings: list[ReportedFinding]) -> Iterator[str]:
    if not findings:
        return
    yield ""
    yield "| | rule | where | what |"
    yield "|---|---|---|---|"
    for finding in findings:
        message = _cell(finding.message)
        yield (
            f"| {_SIGNS[finding.severity]} {finding.severity} | `{finding.code}` {finding.name} "
            f"| `{_place(finding)}` | {message} |"
        )


def _details(findings: list[ReportedFinding]) -> Iterator[str]:
    for finding in findings:
        evidence = evidence_of(finding)
        if not (finding.fixes or finding.symptoms or evidence):
            continue
        yield ""
        yield f"<details><summary>{finding.code} {finding.name}, {_html(_place(finding))}</summary>"
        yield ""
        if evidence:
            yield f"{_text(evidence)}"
            yield ""
        for place, fix in enumerate(finding.fixes):
            yield f"- **{label_of(fix, is_first=not place)}**: {_text(title_of(fix))}"
            yield from (f"  <br>{_text(each)}" for each in (outcome_of(fix), *reasons(fix)) if each)
            rows = diff_of(fix.edits)
            if rows:
                yield "  ```diff"
                yield from (f"  {row}" for row in rows)
                yield "  ```"
        for symptom in finding.symptoms:
            yield f"- so also: `{symptom.code}` {symptom.name}: {_text(symptom.message)}"
        yield ""
        yield "</details>"


def _problems(report: Report) -> Iterator[str]:
    for target in report.targets:
        if target.status == "error":
            yield ""
            yield f"⚠️ `{target.target}` could not be checked: {_text(target.reason or '')}"


def _place(finding: ReportedFinding) -> str:
    if finding.filename is None or finding.location is None:
        return finding.module or finding.target
    return f"{in_repository(finding.filename)}:{finding.location.row}"


def _text(text: str) -> str:
    """As it is, whatever Markdown would make of it."""
    return _html("".join(f"\\{sign}" if sign in "\\`*_[]#~" else sign for sign in text))


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cell(text: str) -> str:
    return " ".join(_text(text).replace("|", "\\|").split())
