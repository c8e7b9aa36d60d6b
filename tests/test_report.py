"""The report: the contract of the JSON, the terminal at 80 columns, and one line a finding.

`UPDATE_SNAPSHOTS=1 pytest tests/test_report.py` writes the files of `tests/snapshots` anew.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import check_snapshot
from rich.cells import cell_len
from rich.console import Console

import trainlint
from trainlint import report as forms
from trainlint.fixes.edit import Edit, Fix, Location, Safety
from trainlint.records import Report, ReportedFinding, TargetResult
from trainlint.report import concise
from trainlint.report.text import print_report

FIXTURES = Path(__file__).parent.parent / "fixtures"

NET = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3)
        self.norm = nn.BatchNorm2d(32)
        self.a_rather_long_name_for_the_last_layer = nn.Linear(in_features=128, out_features=10)

    def forward(self, x):
        return self.a_rather_long_name_for_the_last_layer(self.norm(self.conv(x)).mean((2, 3)))
"""
MESSAGE = "BatchNorm2d(32) receives 64 channels from conv"


def finding(**changes: Any) -> ReportedFinding:
    values: dict[str, Any] = {
        "code": "NRM001", "name": "norm-features-mismatch", "severity": "error",
        "confidence": "certain", "message": MESSAGE, "stage": "static", "target": "net.py::Net",
        "module": "norm", "filename": "net.py", "location": Location(9, 21),
        "end_location": Location(9, 39), "evidence": {"num_features": 32, "received": 64},
        "fixes": [
            Fix(
                "BatchNorm2d(32) → BatchNorm2d(64)",
                Safety.SAFE,
                [Edit("net.py", Location(9, 36), Location(9, 38), "64")],
            ),
            Fix("32 channels in the convolution before it"),
        ],
    }  # fmt: skip
    return ReportedFinding(**{**values, **changes})


TARGET = TargetResult(
    "net.py::Net", "ok", stages=["static"], seconds=0.31, operations=4,
    inputs="(2, 3, 32, 32) float32, inferred from conv", notes=["stopped at line 40: train(model)"],
)  # fmt: skip


def full_report() -> Report:
    width = finding(
        code="ARC002", name="layer-input-mismatch", module="a_rather_long_name_for_the_last_layer",
        message="Linear(in_features=128) receives 64 features from norm, whose own width follows "
        "that of conv: the product of the two cannot be computed",
        location=Location(10, 54), end_location=Location(10, 97),
        evidence={
            "expected": 128, "received": 64, "share": 0.123456,
            "modules": [f"block{n}" for n in range(7)],
        },
        fixes=[Fix("64 in place of 128", Safety.UNSAFE)],
        symptoms=[finding(code="ARC013", name="incompatible-shapes", message="behind it", fixes=[])],
    )  # fmt: skip
    nowhere = finding(
        code="INI001", name="zero-weights", severity="warning", filename=None, location=None,
        end_location=None, message="all zero", fixes=[], evidence={},
    )  # fmt: skip
    advice = finding(code="SUP001", name="unused-suppression", severity="info", message="advice")
    failed = TargetResult("other.py", "error", "SyntaxError: '(' was never closed at line 3")
    skipped = TargetResult("data.py", "skipped", "no model found in this file")
    return Report([finding(), width, nowhere, advice], [TARGET, failed, skipped])


def rendered(report: Report, width: int = 80, **options: Any) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width, color_system=None), **options)
    return stream.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------- snapshots


@pytest.mark.parametrize(
    ("name", "report", "options"),
    [
        ("full.txt", full_report(), {}),
        ("full_with_info.txt", full_report(), {"show_info": True, "fail_on": "warning"}),
        ("one.txt", Report([finding()], [TARGET]), {}),
        ("clean.txt", Report([], [TARGET]), {}),
        ("nothing.txt", Report([], []), {}),
    ],
)
def test_the_terminal_at_80_columns(here: Path, name: str, report: Report, options: Any) -> None:
    check_snapshot(name, rendered(report, **options))


def test_concise_is_one_line_a_finding(here: Path) -> None:
    text = concise.render(full_report()) + "\n"
    check_snapshot("concise.txt", text)
    assert len(text.splitlines()) == 3
    with_advice = forms.rendered(full_report(), "concise", show_info=True).splitlines()
    assert with_advice[:3] == text.splitlines()
    assert [line.split()[1] for line in with_advice[3:]] == ["info"]


def test_concise_has_its_remarks_apart() -> None:
    notes = ["not measured:\ntoo large"]
    report = Report([], [TARGET, TargetResult("data.py", "skipped", "no model", notes=notes)])
    assert list(concise.remarks(report)) == [
        "net.py::Net: stopped at line 40: train(model)",
        "skipped data.py: no model",
        "data.py: not measured: too large",
    ]


def test_a_reports_text_is_what_the_terminal_shows(here: Path) -> None:
    report = Report([finding()], [TARGET])
    assert f"{report}\n" == rendered(report, width=100)
    reason = "error: other.py: SyntaxError: '(' was never closed at line 3\n"
    assert f"{full_report()}\n" == reason + rendered(full_report(), width=100)
    assert repr(full_report()).startswith("Report(findings=[")


# ---------------------------------------------------------------------- columns and width


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_line_is_longer_than_the_terminal(here: Path, width: int) -> None:
    for line in rendered(full_report(), width=width, show_info=True).splitlines():
        assert cell_len(line.rstrip()) <= width, line


@pytest.mark.parametrize(
    "before",
    [
        "self.norm = ",
        "\tself.norm = ",
        "\t\tself.norm\t=\t",
        "self.层, self.norm = None, ",
        "\tself['中文'] =\tself.norm = ",
        "self['é̀'] = self.norm = ",
        "self['😀'] = ",
    ],
)
def test_the_place_is_underlined_where_it_is_seen(here: Path, before: str) -> None:
    call = "nn.BatchNorm2d(32)"
    (here / "net.py").write_text(f"first\n{before}{call}\n", encoding="utf-8")
    column = len(before) + 1
    place = finding(
        location=Location(2, column), end_location=Location(2, column + len(call)), fixes=[]
    )
    lines = rendered(Report([place], [TARGET])).splitlines()
    (source,) = (line for line in lines if "▸" in line)
    marks = lines[lines.index(source) + 1]
    assert marks.count("^") == len(call)
    assert cell_len(source[: source.index(call)]) == marks.index("^")


def test_a_place_over_several_lines_is_underlined_to_the_end_of_its_first(here: Path) -> None:
    (here / "net.py").write_text("norm = nn.BatchNorm2d(\n    32,\n)\n", encoding="utf-8")
    place = finding(location=Location(1, 8), end_location=Location(3, 2), fixes=[])
    lines = rendered(Report([place], [TARGET])).splitlines()
    assert next(line for line in lines if "^" in line).count("^") == len("nn.BatchNorm2d(")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("before", ["", "first, second, third = 1, 2, 3; " * 3, "层 = 1; " * 20])
def test_a_long_line_is_cut_outside_of_its_place_and_the_diff_is_whole(
    here: Path, before: str, width: int
) -> None:
    call = "nn.BatchNorm2d(32)"
    after = "; print('this goes on, and on,   and on')" * 3
    (here / "net.py").write_text(f"first\n{before}{call}{after}\n", encoding="utf-8")
    column = len(before) + 1
    edit = Edit("net.py", Location(2, column + 15), Location(2, column + 17), "64")
    place = finding(
        location=Location(2, column), end_location=Location(2, column + len(call)),
        fixes=[Fix("64", Safety.SAFE, [edit])],
    )  # fmt: skip
    lines = rendered(Report([place], [TARGET]), width=width).splitlines()
    assert all(cell_len(line) <= width for line in lines)
    (source,) = (line for line in lines if "▸" in line)
    marks = lines[lines.index(source) + 1]
    assert cell_len(source[: source.index(call)]) == marks.index("^")
    assert marks.count("^") == len(call)
    for sign, line in (("-", before + call + after), ("+", before + call + after)):
        rows = [row.partition("│ ")[2] for row in lines if row.startswith(f"    {sign} ")]
        wanted = line if sign == "-" else line.replace("(32)", "(64)")
        assert "".join("".join(rows).split()) == "".join(wanted.split())


def test_figures_that_say_nothing_are_left_to_the_json(here: Path) -> None:
    evidence = {"low": None, "between": [], "name": "", "count": 0, "backward": False, "of": 2}
    text = rendered(Report([finding(evidence=evidence)], [TARGET]))
    assert "  count 0 · backward no · of 2\n" in text


def test_what_a_line_says_of_its_other_modules_stands_below_the_message(here: Path) -> None:
    messages = [MESSAGE, *(f"BatchNorm2d({n}) receives {2 * n}" for n in (64, 64, 128, 256))]
    place = finding(evidence={"modules": list("abcde"), "messages": messages})
    lines = rendered(Report([place], [TARGET])).splitlines()
    row = lines.index(f"  {MESSAGE}")
    assert lines[row + 1 : row + 4] == [
        "  likewise: BatchNorm2d(64) receives 128",
        "  likewise: BatchNorm2d(128) receives 256",
        "  and 1 more",
    ]
    assert "  modules a, b, c, d and 1 more" in lines
    assert not any("messages" in line for line in lines)


@pytest.mark.parametrize(
    ("inputs", "edits", "is_said"),
    [(None, [Edit("net.py", Location(9, 21), Location(9, 39), "x")], True), (None, [], False),
     ("(2, 3, 8, 8) float32", [Edit("net.py", Location(9, 21), Location(9, 39), "x")], False)],
    ids=["a run", "without an edit", "a check"],
)  # fmt: skip
def test_a_run_says_that_its_fixes_are_applied_by_hand(
    here: Path, inputs: str | None, edits: list[Edit], is_said: bool
) -> None:
    target = TargetResult("net.py", "ok", inputs=inputs, watched="9 steps of SGD")
    report = Report([finding(fixes=[Fix("another", edits=edits)])], [target])
    assert ("apply fixes by hand" in str(report)) is is_said


def test_an_alternative_has_one_or(here: Path) -> None:
    fixes = [Fix("this"), Fix("or that"), Fix("or else", Safety.UNSAFE)]
    lines = rendered(Report([finding(fixes=fixes)], [TARGET])).splitlines()
    assert "  or: that" in lines
    assert "  or, unsafe: else" in lines


def test_a_missing_or_shortened_file_is_no_trouble(here: Path) -> None:
    (here / "net.py").write_text("short\n", encoding="utf-8")
    assert MESSAGE in rendered(Report([finding(fixes=[])], [TARGET]))
    (here / "net.py").unlink()
    assert MESSAGE in rendered(Report([finding()], [TARGET]))


def test_markup_in_the_users_text_is_printed_as_it_stands(here: Path) -> None:
    (here / "net.py").write_text("[bold]x[/red]\n", encoding="utf-8")
    place = finding(
        message="[red]oops[/bold] x[0]",
        location=Location(1, 1),
        end_location=Location(1, 3),
        fixes=[],
    )
    text = rendered(Report([place], [TARGET]))
    assert "[red]oops[/bold] x[0]" in text
    assert "[bold]x[/red]" in text


# ---------------------------------------------------------------------- JSON

FINDING_KEYS = [
    "code", "name", "severity", "confidence", "message", "stage", "target", "module", "filename",
    "location", "end_location", "evidence", "symptoms", "fixes", "fingerprint",
]  # fmt: skip
TARGET_KEYS = ["target", "status", "reason", "stages", "seconds"]


def check_finding(data: dict[str, Any]) -> None:
    assert list(data) == FINDING_KEYS
    for key in ("location", "end_location"):
        if data[key] is not None:
            assert list(data[key]) == ["row", "column"]
            assert min(data[key].values()) >= 1
    for fix in data["fixes"]:
        assert list(fix) == [
            "title", "safety", "edits", "verified", "reason", "obstacle", "patches", "attempt",
        ]  # fmt: skip
        assert fix["safety"] in ("safe", "unsafe", "display-only")
        assert bool(fix["edits"]) or fix["safety"] != "safe"
        for edit in fix["edits"]:
            assert list(edit) == ["filename", "location", "end_location", "content"]
    for symptom in data["symptoms"]:
        check_finding(symptom)


def check_contract(data: dict[str, Any]) -> None:
    assert list(data) == ["version", "findings", "targets"]
    assert data["version"] == 1
    for found in data["findings"]:
        check_finding(found)
    for target in data["targets"]:
        assert list(target)[: len(TARGET_KEYS)] == TARGET_KEYS
        assert target["status"] in ("ok", "skipped", "error")
        assert (target["reason"] is None) == (target["status"] == "ok")


def test_json_has_the_keys_of_the_contract_in_order() -> None:
    data = json.loads(full_report().to_json())
    check_contract(data)
    assert [found["code"] for found in data["findings"]] == ["NRM001", "ARC002", "INI001", "SUP001"]
    assert data["findings"][0]["location"] == {"row": 9, "column": 21}
    assert data["findings"][2]["location"] is None
    assert data["findings"][0]["fixes"][0]["verified"] is None
    assert forms.rendered(full_report(), "json") == full_report().to_json()


def test_json_of_a_real_check() -> None:
    report = trainlint.check(
        [FIXTURES / "broken" / "first_cnn.py", FIXTURES / "healthy" / "gpt.py"]
    )
    data = json.loads(report.to_json())
    check_contract(data)
    assert data["findings"]
    assert len(data["targets"]) >= 2
    assert isinstance(data["findings"][0]["evidence"], dict)


# ---------------------------------------------------------------------- exit status


@pytest.mark.parametrize(
    ("severities", "fail_on", "status"),
    [
        ([], "error", 0),
        (["error"], "error", 1),
        (["warning"], "error", 0),
        (["warning"], "warning", 1),
        (["info"], "warning", 0),
        (["info"], "info", 1),
        (["error"], "never", 0),
    ],
)
def test_exit_status(severities: list[str], fail_on: str, status: int) -> None:
    report = Report([finding(severity=severity) for severity in severities], [TARGET])
    assert report.exit_status(fail_on) == status
    failed = Report(report.findings, [TARGET, TargetResult("x", "error", "why")])
    assert failed.exit_status(fail_on) == 2
    assert [report.count(severity) for severity in severities] == [1] * len(severities)
