"""Where the rules on softmax and dropout draw their lines: severities, fixes and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import trainlint
from trainlint import Report
from trainlint.records import ReportedFinding

NET = """import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, {width})
        self.drop = {layer}

    def forward(self, x):
        h = torch.relu(self.fc1(x))
        {line}
        return {result}


example_inputs = {inputs}
"""
FILES: dict[str, str] = {}


def net(line: str = "pass", **parts: str) -> str:
    """The name of a file with a small network that has this line in its forward."""
    usual = {"layer": "nn.Identity()", "result": "self.fc2(h)", "width": "3"}
    usual["inputs"] = "torch.randn(5, 8)"
    name = f"net_{len(FILES)}.py"
    FILES[name] = NET.format(line=line, **{**usual, **parts})
    return name


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("nets")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    select = ["ACT003", "ACT005", "REG001", "REG002", "REG003"]
    return trainlint.check([folder / name for name in FILES], select=select, stages=["static"])


def found_in(report: Report, name: str, code: str) -> list[ReportedFinding]:
    (target,) = (t for t in report.targets if Path(t.target.split("::")[0]).name == name)
    assert target.status == "ok", target.reason
    return [
        finding
        for finding in report.findings
        if finding.code == code and Path(finding.filename or "").name == name
    ]


def contents(finding: ReportedFinding) -> list[str]:
    """What the first fix writes; empty where it is only shown."""
    return [edit.content for edit in finding.fixes[0].edits]


ASKS = "training=self.training)"


def cases(*values: tuple[str, list[str]]) -> pytest.MarkDecorator:
    """Tests of a file and of what the first fix of its one finding writes."""
    return pytest.mark.parametrize(("name", "written"), values)


@cases(
    (net("h = F.dropout(h)"), [f"F.dropout(h, {ASKS}"]),
    (net("h = F.dropout(h, .3,)"), [f"F.dropout(h, .3, {ASKS}"]),
    (
        net("h = F.scaled_dot_product_attention(h, h, h, dropout_p=0.1)"),
        ["F.scaled_dot_product_attention(h, h, h, dropout_p=0.1 if self.training else 0.0)"],
    ),
    (net("h = (lambda z: F.dropout(z))(h)"), []),
)
def test_dropout_that_was_left_on(report: Report, name: str, written: list[str]) -> None:
    (finding,) = found_in(report, name, "REG002")
    assert finding.severity == "error"
    assert finding.fixes[0].safety == ("safe" if written else "display-only")
    assert contents(finding) == written


@cases(
    (net("h = nn.Dropout(0.4)(h)"), [f"nn.functional.dropout(h, 0.4, {ASKS[9:]}"]),
    (net("h = nn.Dropout()(h) + h"), [f"nn.functional.dropout(h, 0.5, {ASKS[9:]}"]),
    (net("h = nn.AlphaDropout(p=.1)(h)"), [f"nn.functional.alpha_dropout(h, 0.1, {ASKS[9:]}"]),
    (net("h = nn.Dropout(0.4, inplace=True)(h)"), []),
    (net("h = nn.Sequential(nn.Tanh(), nn.Dropout(0.4))(h)"), []),
    (net("h = self.kept[0](h)", layer="None; self.kept = [nn.Dropout(0.4)]"), []),
)
def test_a_layer_that_eval_never_meets(report: Report, name: str, written: list[str]) -> None:
    (finding,) = found_in(report, name, "REG002")
    assert finding.severity == "error"
    assert "model.eval() does not reach it" in finding.message
    assert contents(finding) == written


@cases(
    (net("h = F.dropout(h, training=True)"), [f"F.dropout(h, {ASKS}"]),
    (net("h = F.dropout(h, 0.5, True)"), ["F.dropout(h, 0.5, self.training)"]),
    (net("h = torch.dropout(h, 0.5, True)"), ["torch.dropout(h, 0.5, self.training)"]),
    (net("h = F.alpha_dropout(h, training=True)"), [f"F.alpha_dropout(h, {ASKS}"]),
)
def test_dropout_that_says_it_is_on(report: Report, name: str, written: list[str]) -> None:
    (finding,) = found_in(report, name, "REG002")
    assert finding.severity == "warning"
    assert finding.fixes[0].safety == "unsafe"
    assert contents(finding) == written


@pytest.mark.parametrize(
    "name",
    [
        net(line, layer="nn.Dropout(0.5)")
        for line in (
            "h = F.dropout(h, 0.5, self.training)",
            "h = F.dropout(h, p=0.0)",
            "h = F.dropout(h) if self.training else h",
            "h = F.dropout(h, p=0.5 if self.training else 0.0)",
            "h = F.dropout(h, 0.1)  # Monte Carlo dropout",
            "h = F.dropout(h, 0.1, training=True)  # stays on at inference",
            "h = self.drop(h)",
            "h = nn.Dropout(0.1)(h)  # on purpose",
            "h = nn.Dropout(0.1).train(self.training)(h)",
            "h = nn.Dropout(0.1)(h) if self.training else h",
        )
    ],
)
def test_dropout_that_is_sound(report: Report, name: str) -> None:
    assert found_in(report, name, "REG002") == []


def dropping(layer: str) -> str:
    return net("h = torch.tanh(self.fc2(self.drop(h)))", layer=layer, result="h")


@cases(
    (dropping("nn.Dropout(0.8)"), ["0.2"]),
    (dropping("nn.Dropout(p=.75)"), ["0.25"]),
    (dropping("nn.AlphaDropout(0.9)"), ["0.1"]),
    (dropping("nn.Dropout(1.0)"), ["0"]),
    (dropping("nn.Dropout(1 - 0.2)"), ["0.2"]),
    (dropping("nn.Dropout(float('0.8'))"), []),
)
def test_the_probability_to_keep(report: Report, name: str, written: list[str]) -> None:
    (finding,) = found_in(report, name, "REG001")
    assert contents(finding) == written


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (net("h = self.drop(h)", layer=f"nn.Dropout({p})"), count)
        for p, count in ((0.69, 0), (0.7, 0), (0.71, 1))
    ],
)
def test_googlenet_may_drop_seven_tenths_before_its_last_layer(
    report: Report, name: str, count: int
) -> None:
    assert len(found_in(report, name, "REG001")) == count


THREE_AXES = "torch.randn(5, 7, 8)"


@cases(
    (net(result="F.softmax(self.fc2(h), dim=0)"), ["-1"]),
    (net(result="F.softmax(self.fc2(h), 0)"), ["-1"]),
    (net(result="self.fc2(h).softmax(0)"), ["-1"]),
    (net(result="self.fc2(h).log_softmax(dim=-2)"), ["-1"]),
    (net(result="self.drop(self.fc2(h))", layer="nn.Softmax(dim=0)"), ["-1"]),
    (net(result="torch.softmax(self.fc2(h).t(), dim=-1).t()"), ["0"]),
    (
        net(result="F.softmax(self.fc2(h))", inputs=THREE_AXES),
        ["F.softmax(self.fc2(h), dim=-1)"],
    ),
    (
        net(result="self.drop(self.fc2(h))", layer="nn.LogSoftmax()", inputs=THREE_AXES),
        ["nn.LogSoftmax(dim=-1)"],
    ),
    (net(result="self.fc2(h).softmax(dim=1)", width="1"), ["self.fc2(h).sigmoid()"]),
    (net(result="self.fc2(h).softmax(dim=2)", width="1", inputs=THREE_AXES), ["1"]),
)
def test_softmax_over_the_wrong_axis(report: Report, name: str, written: list[str]) -> None:
    (finding,) = found_in(report, name, "ACT003")
    assert finding.severity == "error"
    assert contents(finding) == written


@pytest.mark.parametrize(
    "name",
    [
        net(result="F.softmax(self.fc2(h), dim=1)"),
        net(result="F.softmax(self.fc2(h), dim=0)", inputs="torch.randn(8)"),
        net(result="(F.softmax(self.fc2(h), dim=0) * h[:, :3]).sum(0)"),
        net(result="F.softmax(self.fc2(h) @ self.fc2(h).t(), dim=0)"),
        net(result="F.softmax(self.fc2(h), dim=2)", inputs="torch.randn(5, 5, 8)"),
    ],
)
def test_softmax_over_a_right_axis(report: Report, name: str) -> None:
    assert found_in(report, name, "ACT003") == []


FOUR_AXES = "torch.randn(5, 6, 7, 8)"


@cases(
    (net(result="F.softmax(self.fc2(h))"), ["F.softmax(self.fc2(h), dim=1)"]),
    (net(result="F.log_softmax(self.fc2(h))"), ["F.log_softmax(self.fc2(h), dim=1)"]),
    (net(result="self.drop(self.fc2(h))", layer="nn.Softmax()"), ["nn.Softmax(dim=1)"]),
    (net(result="F.softmax(h)", inputs=FOUR_AXES), ["F.softmax(h, dim=1)"]),
)
def test_an_axis_that_is_right_by_luck(report: Report, name: str, written: list[str]) -> None:
    (finding,) = found_in(report, name, "ACT003")
    assert finding.severity == "info"
    assert finding.fixes[0].safety == "safe"
    assert contents(finding) == written


@cases(
    (
        net("a = F.softmax(h @ h.transpose(2, 3))", result="self.fc2(a @ h)", inputs=FOUR_AXES),
        ["F.softmax(h @ h.transpose(2, 3), dim=-1)"],
    ),
    (
        net("a = self.drop(h @ h.mT)", layer="nn.Softmax()", result="a @ h", inputs=FOUR_AXES),
        ["nn.Softmax(dim=-1)"],
    ),
)
def test_attention_over_its_heads(report: Report, name: str, written: list[str]) -> None:
    (finding,) = found_in(report, name, "ACT003")
    assert finding.severity == "warning"
    assert contents(finding) == written


@pytest.mark.parametrize("name", [net(result="F.softmax(self.fc2(h), dim=0)", inputs="None")])
def test_made_up_inputs_may_have_a_batch_that_the_model_never_sees(
    report: Report, name: str
) -> None:
    (finding,) = found_in(report, name, "ACT003")
    assert finding.severity == "info"


@cases(
    (net(result="F.dropout(self.fc2(h), 0.5, self.training)"), ["self.fc2(h)"]),
    (net(result="self.drop(self.fc2(h))", layer="nn.Dropout()"), ["nn.Identity()"]),
    (net(result="self.drop(self.fc2(h)).sigmoid()", layer="nn.Dropout()"), ["nn.Identity()"]),
    # As wide as the input: a softmax shows that it is no residual branch.
    (
        net(result="self.drop(self.fc2(h)).softmax(1)", layer="nn.Dropout()", width="8"),
        ["nn.Identity()"],
    ),
    (
        net("z = self.fc2(h) + self.fc2(2 * h)", result="self.drop(z)", layer="nn.Dropout()"),
        ["nn.Identity()"],
    ),
)
def test_dropout_of_the_answers(report: Report, name: str, written: list[str]) -> None:
    (finding,) = found_in(report, name, "REG003")
    assert contents(finding) == written


@pytest.mark.parametrize(
    "name",
    [
        net(result="self.drop(self.fc2(h))", layer="nn.Dropout(0.0)"),
        net(result="self.drop(self.fc2(h))", layer="nn.Dropout()", width="8"),
        net(
            "z = self.fc2(h)", result="self.drop(z + self.fc2(z))", layer="nn.Dropout()", width="16"
        ),
        net(result="self.drop(h)", layer="nn.Dropout()"),
        net(result="self.fc2(self.drop(h))", layer="nn.Dropout()"),
    ],
)
def test_dropout_of_features(report: Report, name: str) -> None:
    assert found_in(report, name, "REG003") == []


@cases(
    (net("h = F.softmax(self.fc1(x), dim=1)"), ["F.relu(self.fc1(x))"]),
    (net("h = F.softmax(self.fc1(x) + self.fc1.bias, 1)"), ["F.relu(self.fc1(x) + self.fc1.bias)"]),
    (net("h = F.softmax(h + self.fc1(x), 1)"), ["F.relu(h + self.fc1(x))"]),
    (net("h = F.max_pool1d(self.fc1(x).softmax(1), 3, 1, 1)"), ["self.fc1(x).relu()"]),
)
def test_a_softmax_between_layers(report: Report, name: str, written: list[str]) -> None:
    (finding,) = found_in(report, name, "ACT005")
    assert (finding.severity, contents(finding)) == ("info", written)


@pytest.mark.parametrize(
    "name",
    [
        net("h = F.softmax(self.fc1(x) / 0.5, dim=1)"),
        net("h = F.softmax(self.fc1(x) + torch.rand(16), dim=1)"),
        net("h = F.softmax(self.fc1(x) - torch.log(-torch.log(torch.rand_like(h))), dim=1)"),
        net("h = F.softmax(self.fc1(x).masked_fill(h > 0, -1e9), dim=1)"),
        net("h = h * F.softmax(self.fc1(x), dim=1)"),
        net("h = F.softmax(self.fc1(x), dim=1).clamp(min=0.01) * h"),
        net("h = h * (F.softmax(self.fc1(x), dim=1) * torch.arange(16.0)).sum(1, keepdim=True)"),
        net("h = F.softmax(self.fc1(x), dim=1)", result="(h, self.fc2(h))"),
    ],
)
def test_a_softmax_that_weighs_or_chooses(report: Report, name: str) -> None:
    assert found_in(report, name, "ACT005") == []
