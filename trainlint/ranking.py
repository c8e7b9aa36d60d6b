"""From what was found in all targets to one report: suppressed, without doubles, the worst first."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from trainlint.engine import Facts, run_rules
from trainlint.fingerprints import fingerprinted
from trainlint.fixes.source import SourceText
from trainlint.records import Report, ReportedFinding, TargetResult
from trainlint.registry import all_rules, names_of
from trainlint.rule import Confidence, Rule, Severity
from trainlint.suppression import Suppressions

Found = tuple[ReportedFinding, float]  # with how much of the model learns nothing for it


def report_on(
    findings: Sequence[Found],
    results: Sequence[TargetResult],
    rules: Sequence[Rule],
    files: Sequence[str] = (),
    ignored: Callable[[str, str], bool] = lambda *_: False,
) -> Report:
    """A report of what was found, ranked across targets, without what comments silence and doubles.

    Nor has it what is `ignored`, which says of a file and a code whether the rule is not used there.
    The comments of `files` are judged as well, where they are not files of findings.
    """
    suppressions = Suppressions()
    by_code = {rule.code: rule for rule in all_rules()}
    paths = [*files, *(finding.filename for finding, _ in findings if finding.filename)]
    for path in dict.fromkeys(paths):
        text = SourceText.read(path)
        if text is not None:
            suppressions.read(path, text.text)
    kept: list[Found] = []
    seen: dict[tuple[Any, ...], str] = {}

    def is_silenced(finding: ReportedFinding) -> bool:
        if _is_suppressed(finding, by_code, suppressions):
            return True
        return ignored(finding.filename or finding.target.partition("::")[0], finding.code)

    for finding, starved in findings:
        if is_silenced(finding):
            continue
        place = (finding.code, finding.filename, finding.location, finding.end_location)
        if (
            finding.location is not None
            and seen.setdefault(place, finding.target) != finding.target
        ):
            continue  # the same place, seen through another model
        symptoms = [symptom for symptom in finding.symptoms if not is_silenced(symptom)]
        kept.append((msgspec.structs.replace(finding, symptoms=symptoms), starved))
    on_comments = _on_suppressions(results, rules, suppressions)
    kept += (found for found in on_comments if not is_silenced(found[0]))
    kept.sort(key=lambda item: _rank(*item))
    return Report(
        fingerprinted([_relative(finding) for finding, _ in kept]),
        [_readable(result) for result in results],
    )


def _is_suppressed(
    finding: ReportedFinding, by_code: Mapping[str, Rule], suppressions: Suppressions
) -> bool:
    if finding.filename is None or finding.location is None:
        return False
    last = finding.end_location.row if finding.end_location else finding.location.row
    rows = range(finding.location.row, last + 1)
    if suppressions.silences(finding.filename, rows, names_of(by_code[finding.code])):
        return True
    is_advice = finding.severity == "info"
    suppressions.meet(finding.filename, rows, finding.code, is_advice=is_advice)
    return False


def _on_suppressions(
    results: Sequence[TargetResult], rules: Sequence[Rule], suppressions: Suppressions
) -> list[Found]:
    """The rules about the suppression comments themselves, once all other findings are known."""
    ran = all(result.status == "ok" for result in results)
    could_fire = (
        frozenset(name for rule in rules for name in names_of(rule)) if ran else frozenset()
    )
    known = frozenset(name for rule in all_rules() for name in names_of(rule))
    suppressions.judge(could_fire, known)
    outcome = run_rules(rules, Facts({"Suppressions": suppressions}), target="")
    found = []
    for raw in outcome.findings:
        label = _display(raw.reported.filename or "")
        found.append((msgspec.structs.replace(raw.reported, target=label), 0.0))
    return found


def _rank(finding: ReportedFinding, starved: float) -> tuple[Any, ...]:
    return (
        Severity(finding.severity).rank,
        Confidence(finding.confidence).rank,
        -round(starved, 3),
        finding.filename or "",
        (finding.location.row, finding.location.column) if finding.location else (0, 0),
    )


def _readable(result: TargetResult) -> TargetResult:
    """Its file names as the user would type them here."""
    here = f"{Path.cwd()}{os.sep}"
    return msgspec.structs.replace(
        result,
        reason=None if result.reason is None else result.reason.replace(here, ""),
        notes=[note.replace(here, "") for note in result.notes],
    )


def _relative(finding: ReportedFinding) -> ReportedFinding:
    """File names as the user would type them here, also inside fixes and symptoms."""
    return msgspec.structs.replace(
        finding,
        message=finding.message.replace(f"{Path.cwd()}{os.sep}", ""),
        filename=None if finding.filename is None else _display(finding.filename),
        symptoms=[_relative(symptom) for symptom in finding.symptoms],
        fixes=[
            msgspec.structs.replace(
                fix,
                edits=[
                    msgspec.structs.replace(edit, filename=_display(edit.filename))
                    for edit in fix.edits
                ],
            )
            for fix in finding.fixes
        ],
    )


def _display(filename: str) -> str:
    try:
        return Path(filename).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return filename
