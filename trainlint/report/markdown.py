"""Markdown, for a comment on a pull request: a table, and each finding to be unfolded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from trainlint.fingerprints import in_repository
from trainlint.records import Report, ReportedFinding
from trainlint.report.fixes import diff_of, label_of, outcome_of, reasons, title_of
from trainlint.report.text import evidence_of

# GitHub takes comments of 65 536 characters, and refuses longer ones.
_MOST: Final = 60_000
_SIGNS: Final = {"error": "🔴", "warning": "🟡", "info": "🔵"}


def render(report: Report, *, show_info: bool = False) -> str:
    """The findings, most severe first, and the targets that could not be checked.

    No longer than a comment may be: what does not fit is left out from the end, and counted.
    """
    shown = [f for f in report.findings if show_info or f.severity != "info"]
    head = "\n".join([*_head(report), *_problems(report)])[:_MOST]
    table = _fitting(_table(shown), _MOST - len(head), "findings")
    details = _fitting(
        ("\n".join(_detail(finding)) for finding in shown),
        _MOST - len(head) - len(table),
        "details",
    )
    return head + table + details


def _fitting(parts: Iterable[str], room: int, what: str) -> str:
    """So many of the parts as have room, each behind a newline, and how many more there are."""
    text = ""
    left_out = 0
    for part in parts:
        if left_out or len(text) + len(part) + 1 > room:
            left_out += bool(part)
        elif part:
            text += f"\n{part}"
    return f"{text}\n\n… and {left_out} more {what}: a comment holds no more" if left_out else text


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
    yield "\n| | rule | where | what |\n|---|---|---|---|"
    for finding in findings:
        message = _cell(finding.message)
        yield (
            f"| {_SIGNS[finding.severity]} {finding.severity} | `{finding.code}` {finding.name} "
            f"| `{_place(finding).replace('|', chr(92) + '|')}` | {message} |"
        )


def _detail(finding: ReportedFinding) -> Iterator[str]:
    evidence = evidence_of(finding)
    if not (finding.fixes or finding.symptoms or evidence):
        return
    yield ""
    yield f"<details><summary>{finding.code} {finding.name}, {_html(_place(finding))}</summary>"
    yield ""
    if evidence:
        yield f"{_text(evidence)}"
        yield ""
    for place, fix in enumerate(finding.fixes):
        yield f"- **{label_of(fix, is_first=not place)}**: {_text(title_of(fix))}"
        told = (outcome_of(fix), *reasons(fix, finding.fixes[:place]))
        yield from (f"  <br>{_text(each)}" for each in told if each)
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
