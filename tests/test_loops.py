"""Training scripts: broken ones are named at exactly the lines that they say, sound ones stay silent.

What a script expects stands on its lines: `# expect: CODE` or `# expect: CODE, CODE`. All of them are
watched in this process, every third step recorded, whatever the machine is busy with; some are run by the
real command as well, which adapts to it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import trainlint
from trainlint.registry import all_rules
from trainlint.rule import Severity
from trainlint.sites import recording

LOOPS = Path(__file__).parent.parent / "fixtures" / "loops"
BROKEN = sorted((LOOPS / "broken").glob("*.py"))
HEALTHY = sorted((LOOPS / "healthy").glob("*.py"))
EXPECT = re.compile(r"# expect: ([A-Z]{3}\d{3}(?:, [A-Z]{3}\d{3})*)$")
# What a script of its own process might show otherwise: argv, DataLoader, exceptions, exit.
RUN = (
    "broken/digits_zero_grad_once.py",
    "broken/sorted_folders.py",
    "broken/labels_from_one.py",
    "healthy/validates_every_twenty_steps.py",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def expected(path: Path) -> Counter[tuple[int, str]]:
    found: Counter[tuple[int, str]] = Counter()
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = EXPECT.search(line)
        assert match or "expect:" not in line, (
            f"{path.name}:{row}: not of the form `# expect: CODE`"
        )
        if match:
            found.update((row, code) for code in match[1].split(", "))
    return found


def watched(path: Path) -> trainlint.Report:
    """What is said of the script. An exception that ends it is a part of some."""
    watch = trainlint.watch(every=3)
    program = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    with suppress(Exception), watch, recording():
        exec(program, {"__name__": "__main__"})
    return watch.report()


def reported(report: trainlint.Report, path: Path) -> Counter[tuple[int, str]]:
    findings = [finding for finding in report.findings if finding.severity != "info"]
    assert {Path(finding.filename or "").name for finding in findings} <= {path.name}
    return Counter((f.location.row if f.location else 0, f.code) for f in findings)


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_broken_loops_are_named_at_their_lines_and_nowhere_else(path: Path) -> None:
    assert expected(path), "a broken loop must expect something"
    report = watched(path)
    assert [target.status for target in report.targets] == ["ok"]
    assert reported(report, path) == expected(path)


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: path.stem)
def test_healthy_loops_are_silent(path: Path) -> None:
    assert not expected(path), "a healthy loop expects nothing"
    report = watched(path)
    assert [target.status for target in report.targets] == ["ok"]
    assert reported(report, path) == Counter()


@pytest.mark.parametrize("name", RUN)
def test_the_command_says_the_same(name: str, tmp_path: Path) -> None:
    path, output = LOOPS / name, tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "trainlint", "run", "--format=json", f"--output={output}", str(path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    report = json.loads(output.read_text(encoding="utf-8"))
    assert done.returncode == (1 if "Traceback" in done.stderr else 0)
    assert Counter(
        (finding["location"]["row"], finding["code"])
        for finding in report["findings"]
        if finding["severity"] != "info"
    ) == expected(path)


def test_every_rule_on_traces_alone_has_two_broken_loops() -> None:
    shown = Counter(code for path in BROKEN for _, code in expected(path))
    warning = {
        rule.code
        for rule in all_rules()
        if "Trace" in (facts := set(rule.facts.values()))
        and facts <= {"Trace", "SourceEdits"}
        and rule.severity != Severity.INFO
    }
    # Where validation loss rises there is a gap, or nothing to learn, below which it stands.
    warning.remove("GEN003")
    assert {code for code in warning if shown[code] < 2} == set()


@pytest.mark.parametrize("name", ["overfits_a_small_set", "labels_learnt_by_heart"])
def test_a_rise_of_validation_loss_stands_below_what_it_comes_of(name: str) -> None:
    (path,) = [path for path in BROKEN if path.stem == name]
    (finding,) = [f for f in watched(path).findings if f.severity != "info"]
    assert finding.code in ("GEN001", "DAT004")
    (rise,) = [symptom for symptom in finding.symptoms if symptom.code == "GEN003"]
    assert rise.evidence["rise"] > 0.02
    assert rise.evidence["best_step"] < rise.evidence["steps"]


def test_there_are_enough_of_them() -> None:
    assert len(BROKEN) >= 50
    assert len(HEALTHY) >= 45
