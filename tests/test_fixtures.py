"""The fixtures: broken models name exactly the lines they say, healthy models stay silent.

All of them are checked by two calls of `trainlint.check`, so that torch is imported twice and not
ninety times. What a file expects stands on its lines: `# expect: CODE` or `# expect: CODE, CODE`.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

import trainlint
from trainlint import Report

FIXTURES = Path(__file__).parent.parent / "fixtures"
BROKEN = sorted((FIXTURES / "broken").glob("*.py"))
HEALTHY = sorted((FIXTURES / "healthy").glob("*.py"))
CODES = r"([A-Z]{3}\d{3}(?:\s*,\s*[A-Z]{3}\d{3})*)"
EXPECT = re.compile(rf"#\s*expect:\s*{CODES}\s*(?:#|$)")
# Advice is compared only where a fixture is about it.
EXPECT_INFO = re.compile(rf"#\s*expect-info:\s*{CODES}\s*$")


@lru_cache(maxsize=2)
def report_on(folder: str) -> Report:
    return trainlint.check(FIXTURES / folder)


def expected(path: Path, pattern: re.Pattern[str] = EXPECT) -> Counter[tuple[int, str]]:
    found: Counter[tuple[int, str]] = Counter()
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = pattern.search(line)
        if match:
            found.update((row, code.strip()) for code in match[1].split(","))
        elif "expect:" in line or "expect-info:" in line:
            known = EXPECT.search(line) or EXPECT_INFO.search(line)
            assert known, f"{path.name}:{row}: not of the form `# expect: CODE`"
    return found


def reported(
    folder: str, path: Path, severities: tuple[str, ...] = ("error", "warning")
) -> Counter[tuple[int, str]]:
    return Counter(
        (finding.location.row, finding.code)
        for finding in report_on(folder).findings
        if finding.severity in severities
        and finding.filename is not None
        and finding.location is not None
        and (Path.cwd() / finding.filename).resolve() == path.resolve()
    )


def problems(folder: str, path: Path) -> list[str]:
    """The targets of this file that could not be checked; and the file itself if it has none."""
    own = [t for t in report_on(folder).targets if Path(t.target.split("::")[0]).name == path.name]
    failed = [f"{target.target}: {target.reason}" for target in own if target.status == "error"]
    checked = any(target.status == "ok" for target in own)
    return failed if checked or failed else [f"{path.name}: no model was checked"]


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_broken_models_are_named_at_their_lines_and_nowhere_else(path: Path) -> None:
    wanted, advice = expected(path), expected(path, EXPECT_INFO)
    assert wanted or advice, "a broken fixture must expect something"
    assert problems("broken", path) == []
    assert reported("broken", path) == wanted
    if advice:
        codes = {code for _, code in advice}
        given = reported("broken", path, ("info",))
        assert Counter({key: n for key, n in given.items() if key[1] in codes}) == advice


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: path.stem)
def test_healthy_models_are_silent(path: Path) -> None:
    assert not expected(path), "a healthy fixture expects nothing"
    assert problems("healthy", path) == []
    assert reported("healthy", path) == Counter()


def test_every_finding_lies_in_a_fixture_with_a_location() -> None:
    for folder, paths in (("broken", BROKEN), ("healthy", HEALTHY)):
        names = {path.resolve() for path in paths}
        for finding in report_on(folder).findings:
            assert finding.filename is not None, finding
            assert (Path.cwd() / finding.filename).resolve() in names, finding


def test_every_rule_has_a_broken_fixture() -> None:
    from trainlint.registry import all_rules
    from trainlint.rule import FACT_STAGES

    shown = {
        code
        for path in BROKEN
        for pattern in (EXPECT, EXPECT_INFO)
        for _, code in expected(path, pattern)
    }
    # Rules that read a trace alone are about training loops, see `fixtures/loops`; those on sweeps compare
    # many trainings, see `fixtures/generalization`.
    about_models = {
        rule.code
        for rule in all_rules()
        if {
            FACT_STAGES[fact]
            for name, fact in rule.facts.items()
            if name not in rule.optional and fact != "SourceEdits"
        }
        not in ({"probe"}, {"sweep"})
    }
    assert about_models <= shown


def test_there_are_enough_of_them() -> None:
    assert len(BROKEN) >= 25
    assert len(HEALTHY) >= 30
