"""Fixes in words: what came of trying one, what several do together, and where the report has it."""

from __future__ import annotations

import pytest

from trainlint.fixes.edit import Attempt, Fix, Safety
from trainlint.records import AppliedFix, CombinedFixes, Report, TargetResult
from trainlint.report.fixes import combination_of, label_of, outcome_of, reasons
from trainlint.report.text import as_text

PROVED = Attempt(
    before=2.3, after=0.41, gain=0.82, error=0.013, steps=50, seeds=2, cleared=True, slowdown=1.05
)
CASES = {
    "nobody tried it": (Fix("x"), ""),
    "proved": (
        Fix("x", verified=PROVED),
        "verified: training loss after 50 steps 2.3 → 0.41 ± 0.03, the finding is gone",
    ),
    "it did not run": (
        Fix("x", verified=Attempt(after=0.5, gain=0.2, steps=50, seeds=2, cleared=True, parameters=64)),
        (
            "verified: it did not run, now training loss after 50 steps 0.5, the finding is gone, "
            "+64 parameters"
        ),
    ),
    "it costs time": (
        Fix("x", verified=Attempt(before=2.0, after=1.0, steps=9, cleared=True, slowdown=2.71)),
        "verified: training loss after 9 steps 2 → 1, the finding is gone, 2.7 times the time of a step",
    ),
    "no proof": (
        Fix("x", attempt=Attempt(before=2.3, after=2.3, cleared=False, reason="the finding stays")),
        "tried, not proved to help: the finding stays (training loss 2.3 → 2.3, the finding stays)",
    ),
    "not tried": (
        Fix("x", attempt=Attempt(reason="not tried: no time left")),
        "not tried: no time left",
    ),
    "one of several": (
        Fix("x", attempt=Attempt(cleared=True, reason="the model does not run yet for another fault")),
        "tried: the finding is gone; no proof that it helps: the model does not run yet for another fault",
    ),
    "failed": (
        Fix("x", attempt=Attempt(reason="the training raised ValueError: no")),
        "tried, and failed: the training raised ValueError: no",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_came_of_trying_a_fix(case: str) -> None:
    fix, expected = CASES[case]
    assert outcome_of(fix) == expected


def test_labels_and_reasons() -> None:
    fix = Fix("x", Safety.UNSAFE, reason="He et al. 2015: σ = 0.1", obstacle="`width` has 3 uses")
    assert label_of(fix) == "fix, unsafe"
    assert label_of(fix, is_first=False) == "or, unsafe"
    assert label_of(Fix("x")) == "what to do"
    assert list(reasons(fix)) == [
        "because He et al. 2015: σ = 0.1",
        "not applied by --fix: `width` has 3 uses",
    ]


def test_what_stands_in_the_way_of_several_fixes_is_said_once() -> None:
    fixes = [
        Fix(title, reason=title, obstacle=why) for title, why in zip("abc", "xxy", strict=True)
    ]
    said = [list(reasons(fix, fixes[:place])) for place, fix in enumerate(fixes)]
    assert said == [
        ["because a", "not applied by --fix: x"],
        ["because b"],
        ["because c", "not applied by --fix: y"],
    ]


def repair(count: int) -> CombinedFixes:
    fixes = [AppliedFix(f"INI00{n}", "zero-weights", "fc", f"fix {n}") for n in range(1, count + 1)]
    return CombinedFixes(fixes=fixes, before=2.3, after=0.41, gain=0.82, error=0.013, steps=50,
                         seeds=2, left=["DAT001 unnormalized-input"])  # fmt: skip


def test_a_combination_stands_in_the_report_and_a_single_fix_with_its_finding() -> None:
    text = combination_of(repair(2))
    assert text == (
        "together: fix 1 (INI001); then fix 2 (INI002): training loss after 50 steps 2.3 → 0.41 ± 0.03; "
        "left: DAT001 unnormalized-input"
    )
    for count in (1, 2):
        target = TargetResult("net.py::Net", "ok", repair=repair(count))
        shown = " ".join(as_text(Report([], [target]), width=300).split())
        assert (text in shown) == (count == 2)
