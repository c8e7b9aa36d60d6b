"""From many findings to few: merged by line, nested by fault and by explanation, ranked."""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import trainlint
from trainlint.diagnosis import diagnose
from trainlint.engine import RawFinding
from trainlint.records import Location, ReportedFinding
from trainlint.rule import Rule, Severity
from trainlint.sites import recording


def raw(
    code: str = "AAA001",
    *,
    row: int | None = 1,
    module: str = "",
    message: str = "wrong",
    severity: str = "error",
    confidence: str = "certain",
    fault: Hashable = None,
    starved: float = 0.0,
    order: int = 0,
    explains: tuple[str, ...] = (),
    filename: str = "net.py",
    affects: frozenset[str] = frozenset(),
    paths: tuple[str, ...] = (),
    stage: str = "static",
    evidence: dict[str, Any] | None = None,
) -> RawFinding:
    rule = Rule(code, code.lower(), Severity.ERROR, explains, "0.1", lambda: ())
    place = None if row is None else Location(row, 1)
    reported = ReportedFinding(
        code=code, name=code.lower(), severity=severity, confidence=confidence, message=message,
        stage=stage, target="net.py::Net", module=module,
        filename=None if row is None else filename, location=place,
        end_location=None if row is None else Location(row, 9), evidence=evidence or {"n": 1},
    )  # fmt: skip
    names = frozenset(paths) | ({module} if module else set())
    return RawFinding(reported, rule, fault, starved, order, affects, names)


def shown(findings: list[RawFinding]) -> list[Any]:
    """Messages, with those of the symptoms in a list behind."""
    return [
        (f.reported.message, [symptom.message for symptom in f.reported.symptoms])
        if f.reported.symptoms
        else f.reported.message
        for f in findings
    ]


# ---------------------------------------------------------------------- one line, many modules


def test_what_one_line_did_to_several_modules_is_one_finding() -> None:
    findings = [
        raw(module=f"layers.{n}", message=f"layer {n}", order=n, starved=n / 10) for n in range(3)
    ]
    (merged,) = diagnose(findings)
    assert merged.reported.message == "layer 0 (and 2 more built by this line)"
    assert merged.reported.evidence == {
        "n": 1,
        "modules": ["layers.0", "layers.1", "layers.2"],
        "messages": ["layer 0", "layer 1", "layer 2"],
    }
    assert merged.starved == 0.2


def test_a_module_that_is_called_twice_counts_once() -> None:
    (merged,) = diagnose([raw(module="a", order=1), raw(module="a", order=2)])
    assert merged.reported.message == "wrong"
    assert merged.reported.evidence["modules"] == ["a"]
    assert "messages" not in merged.reported.evidence


@pytest.mark.parametrize(
    "other",
    [
        raw("AAA002", message="other"),
        raw(row=2, message="other"),
        raw(filename="b.py", message="other"),
    ],
)
def test_other_rules_lines_and_files_stay_apart(other: RawFinding) -> None:
    assert sorted(shown(diagnose([raw(), other]))) == ["other", "wrong"]


def test_models_without_source_are_not_merged() -> None:
    findings = [raw(row=None, module="a", order=1), raw(row=None, module="b", order=2)]
    assert len(diagnose(findings)) == 2


# ---------------------------------------------------------------------- nesting


def test_one_fault_is_reported_where_it_is_first_executed() -> None:
    findings = [
        raw("CCC001", row=3, message="third", fault="x", order=9),
        raw("AAA001", row=9, message="first", fault="x", order=1, starved=0.1),
        raw("BBB001", row=1, message="second", fault="x", order=5, starved=0.7),
        raw("DDD001", row=5, message="apart", fault="y", order=2),
    ]
    for order in itertools.permutations(findings):
        found = diagnose(order)
        assert shown(found) == [("first", ["second", "third"]), "apart"]
        assert found[0].starved == 0.7


def test_faults_that_one_line_made_are_one_fault() -> None:
    findings = [
        raw(row=1, module="0", message="first", fault="a", order=1),
        raw(row=1, module="1", fault="b", order=2),
        raw("AAA002", row=2, message="behind the second", fault="b", order=3),
        raw("AAA002", row=3, message="another", fault="c", order=4),
        raw("AAA003", row=4, module="0", message="chained", fault="c", order=5),
        raw("AAA003", row=4, module="1", fault="d", order=6),
        raw("AAA004", row=5, message="far behind", fault="d", order=7),
    ]
    assert shown(diagnose(findings)) == [
        ("first (and 1 more built by this line)", ["behind the second"]),
        ("another", ["chained (and 1 more built by this line)", "far behind"]),
    ]


def test_findings_without_a_fault_are_never_nested_by_it() -> None:
    assert len(diagnose([raw(row=1, order=1), raw(row=2, order=2)])) == 2


def test_a_cause_takes_what_it_explains_in_the_same_module() -> None:
    cause = raw("AAA001", row=1, module="fc", message="cause", explains=("bbb001",), order=5)
    symptom = raw("BBB001", row=2, module="fc", message="symptom", order=1)
    elsewhere = raw("BBB001", row=3, module="other", message="elsewhere", order=2)
    for order in itertools.permutations([cause, symptom]):
        assert shown(diagnose(order)) == [("cause", ["symptom"])]
    assert sorted(map(str, shown(diagnose([cause, elsewhere])))) == ["cause", "elsewhere"]


def test_a_cause_takes_its_own_modules_symptom_among_several() -> None:
    cause = raw("AAA001", row=1, module="fc", message="cause", explains=("bbb001",), order=5)
    symptom = raw("BBB001", row=2, module="fc", message="symptom", order=3)
    elsewhere = raw("BBB001", row=3, module="other", message="elsewhere", order=2)
    assert shown(diagnose([cause, elsewhere, symptom])) == [("cause", ["symptom"]), "elsewhere"]


def test_two_rules_that_explain_each_other_do_not_both_vanish() -> None:
    one = raw("AAA001", row=1, module="fc", message="one", explains=("bbb001",), order=1)
    two = raw("BBB001", row=2, module="fc", message="two", explains=("aaa001",), order=2)
    found = diagnose([one, two])
    everything = [f.reported.message for f in found] + [
        symptom.message for f in found for symptom in f.reported.symptoms
    ]
    assert sorted(everything) == ["one", "two"]


# ---------------------------------------------------------------------- rank


def test_layers_in_common_connect_a_cause_with_what_it_explains() -> None:
    story = [
        raw("VAN001", row=3, module="conv1", message="gradient vanishes", order=3,
            affects=frozenset({"conv1", "conv2"})),
        raw("SHR001", row=2, module="conv2", message="weights shrink it", order=2,
            explains=("van001",), affects=frozenset({"conv2", "conv3"})),
        raw("SIG001", row=1, module="act", message="sigmoids", order=1,
            explains=("van001", "shr001"), affects=frozenset({"conv3"})),
    ]  # fmt: skip
    for order in itertools.permutations(story):
        assert shown(diagnose(list(order))) == [
            ("sigmoids", ["weights shrink it", "gradient vanishes"])
        ]
    elsewhere = raw("VAN001", row=9, module="other", message="another", affects=frozenset({"x"}))
    assert len(diagnose([*story, elsewhere])) == 2


def test_a_cause_is_as_severe_as_what_it_does() -> None:
    cause = raw("BAD001", severity="warning", message="cause", explains=("eff001",))
    effect = raw("EFF001", severity="error", message="effect", row=2)
    (story,) = diagnose([cause, effect])
    assert story.reported.message == "cause"
    assert story.reported.severity == "error"
    (same,) = diagnose([
        raw(severity="warning", fault="f", message="first", order=1),
        raw(severity="error", fault="f", message="second", order=2, row=2),
    ])  # fmt: skip
    assert (same.reported.message, same.reported.severity) == ("first", "error")


def test_of_two_causes_the_first_in_rank_takes_the_symptom() -> None:
    findings = [
        raw("BAD001", severity="warning", message="lesser", row=1, explains=("eff001",)),
        raw("BAD002", message="greater", row=2, explains=("eff001",)),
        raw("EFF001", severity="warning", message="effect", row=3),
    ]
    assert shown(diagnose(findings)) == [("greater", ["effect"]), "lesser"]


def test_rank_severity_confidence_share_then_place() -> None:
    wanted = [
        raw("AAA001", row=9, message="1", starved=0.5),
        raw("AAA002", row=1, message="2", starved=0.1),
        raw("AAA003", row=2, message="3", starved=0.1),
        raw("AAA004", row=1, message="4", confidence="likely", starved=1.0),
        raw("AAA005", row=1, message="5", severity="warning", starved=1.0),
        raw("AAA006", row=1, message="6", severity="info"),
    ]
    shuffled = list(wanted)
    for seed in range(10):
        random.Random(seed).shuffle(shuffled)
        assert shown(diagnose(shuffled)) == ["1", "2", "3", "4", "5", "6"]


@given(
    st.lists(
        st.builds(
            raw,
            st.sampled_from(["AAA001", "AAA002", "AAA003"]),
            row=st.sampled_from([None, 1, 2]),
            module=st.sampled_from(["", "a", "b"]),
            message=st.sampled_from(["x", "y", "z"]),
            severity=st.sampled_from(["error", "warning", "info"]),
            fault=st.sampled_from([None, "f", "g"]),
            starved=st.floats(0, 1),
            order=st.integers(0, 3),
            explains=st.sampled_from([(), ("aaa001",), ("aaa002", "aaa003"), ("aaa003",)]),
        ),
        max_size=8,
    )
)
def test_nothing_is_lost_or_doubled(findings: list[RawFinding]) -> None:
    """Every (rule, place) of before is found afterwards, as a finding or as a symptom, once."""

    def key(reported: ReportedFinding, order: int = 0) -> tuple[Any, ...]:
        return (reported.code, reported.filename, reported.location)

    before = {key(finding.reported) for finding in findings}
    found = diagnose(findings)
    after = [key(f.reported) for f in found]
    after += [key(symptom) for f in found for symptom in f.reported.symptoms]
    assert set(after) == before
    placed = [place for place in after if place[1] is not None]
    assert len(placed) == len(set(placed))
    ranks = [Severity(f.reported.severity).rank for f in found]
    assert ranks == sorted(ranks)


# ---------------------------------------------------------------------- on models


class Block(nn.Module):
    def __init__(self, width: int, norm: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(norm)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.fc(x)))


def test_a_block_that_is_built_in_a_loop_gives_one_finding() -> None:
    with recording():
        model = nn.Sequential(*(Block(8, 9) for _ in range(4)))
    (found,) = trainlint.check(model, torch.randn(4, 8), select=["NRM001"]).findings
    assert "and 3 more" in found.message
    assert found.evidence["modules"] == [f"{n}.norm" for n in range(4)]


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3)) for _ in "ab"]
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_dropout_in_a_list_that_no_mode_reaches_stands_under_the_list() -> None:
    with recording():
        model = Listed()
    report = trainlint.check(model, torch.randn(4, 8), select=["ARC003", "REG002"])
    assert [(f.code, {s.code for s in f.symptoms}) for f in report.findings] == [
        ("ARC003", {"REG002"})
    ]


def test_errors_come_before_warnings_across_rules() -> None:
    with recording():
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))
        nn.init.constant_(model[0].weight, 0.5)
    severities = [f.severity for f in trainlint.check(model, torch.randn(2, 8)).findings]
    assert "error" in severities
    assert severities == sorted(severities, key=["error", "warning", "info"].index)


# ---------------------------------------------------------------------- what was measured in training


def measured(code: str = "BBB001", **options: Any) -> RawFinding:
    options = {"row": 50, "severity": "error", "confidence": "likely", **options}
    return raw(code, stage="probe", message="measured", **options)


def cause(**options: Any) -> RawFinding:
    return raw("AAA001", row=9, message="cause", explains=("bbb001",), **options)


@pytest.mark.parametrize(
    ("head", "symptom"),
    [
        (cause(module="body"), measured(module="body")),
        (cause(module="body"), measured(module="body.0.fc")),
        (cause(paths=("body.0.fc.weight",)), measured(module="body.0")),
        (cause(paths=("a", "body.0")), measured(paths=("body.0.weight",))),
        (cause(module="body"), measured()),  # of the run as a whole
        (cause(), measured()),
        (cause(stage="probe"), measured(module="body")),
    ],
)
def test_what_was_measured_stands_under_its_cause(head: RawFinding, symptom: RawFinding) -> None:
    for order in ([head, symptom], [symptom, head]):
        assert shown(diagnose(order)) == [("cause", ["measured"])]


@pytest.mark.parametrize(
    ("head", "symptom"),
    [
        (cause(module="body"), measured(module="head")),
        (cause(module="body"), measured(module="body2")),
        (cause(paths=("body.1",)), measured(module="body.10")),
        (cause(paths=("",)), measured(module="body")),
        (cause(module="body"), raw("BBB001", row=50, message="measured", module="body.0")),
    ],
)
def test_it_does_not_stand_under_what_lies_elsewhere(head: RawFinding, symptom: RawFinding) -> None:
    assert sorted(shown(diagnose([head, symptom]))) == ["cause", "measured"]


def test_a_cause_says_what_was_measured_of_it_once() -> None:
    figure = {"measured": "gradient 4e-08 at conv1"}
    findings = [
        cause(severity="warning", paths=("conv1",)),
        measured(evidence=figure),
        measured(row=51, evidence=figure, module="conv1"),
    ]
    (found,) = diagnose(findings)
    assert found.reported.message == "cause; measured in training: gradient 4e-08 at conv1"
    assert found.reported.severity == "error"


def test_a_figure_of_that_name_that_is_no_text_is_none_of_a_causes_message() -> None:
    findings = [
        cause(paths=("conv1",), evidence={"measured": True}),
        measured(evidence={"measured": 3}),
    ]
    (found,) = diagnose(findings)
    assert found.reported.message == "cause"


def test_what_the_graph_shows_comes_before_what_training_shows() -> None:
    findings = [
        raw("AAA001", row=9, message="graph", severity="warning", explains=("ccc001",)),
        raw("BBB001", row=2, message="run", severity="error", stage="probe", explains=("ccc001",)),
        measured("CCC001", severity="warning"),
    ]
    assert sorted(map(str, shown(diagnose(findings)))) == ["('graph', ['measured'])", "run"]
