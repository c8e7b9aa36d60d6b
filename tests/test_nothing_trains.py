"""What is said where nothing, or some tensors, can never be trained, and where that is meant."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainlint
from trainlint import Report
from trainlint.fixes.source import SourceEdits, SourceText, apply
from trainlint.loss.source import training_of
from trainlint.loss.training import Training

X, Y = torch.randn(8, 6), torch.randint(0, 3, (8,))


class Scores(nn.Module):
    """The sound one: two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 12)
        self.head = nn.Linear(12, 3)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Any:
        return self.scores(x)


class Frozen(Scores):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Classes(Scores):
    def forward(self, x: Tensor) -> Any:
        return self.scores(x).argmax(1)


class Index(Scores):
    def forward(self, x: Tensor) -> Any:
        return torch.max(self.scores(x), 1)[1]


class Applied(Scores):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.scores(x)


class Likelihood(Classes):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.head(torch.relu(self.body(x))), y)


class Forgets(Scores):
    def forward(self, x: Tensor) -> Any:
        x = self.scores(x)


def found(model: nn.Module, *, trained: bool, x: Tensor = X) -> list[tuple[str, str]]:
    options: dict[str, Any] = {"targets": Y, "loss": nn.CrossEntropyLoss()} if trained else {}
    report = trainlint.check(model, x, select=["ARC005", "ARC010"], **options)
    return [(finding.code, finding.severity) for finding in report.findings]


@pytest.mark.parametrize("model", [Frozen, Classes, Index, Applied])
def test_a_loss_for_a_model_that_cannot_learn_is_an_error(model: type[nn.Module]) -> None:
    assert found(model(), trained=True) == [("ARC005", "error")]


@pytest.mark.parametrize("model", [Frozen, Classes, Index, Applied])
def test_a_model_that_is_only_applied_is_at_most_advised(model: type[nn.Module]) -> None:
    assert {severity for _, severity in found(model(), trained=False)} <= {"info"}


def test_another_method_of_the_class_may_be_what_is_trained() -> None:
    assert found(Likelihood(), trained=True) == [("ARC005", "info")]


def test_an_input_that_is_optimized_is_trained() -> None:
    assert found(Frozen(), trained=True, x=X.clone().requires_grad_(True)) == []


@pytest.mark.parametrize("trained", [True, False])
def test_a_forgotten_return_is_always_an_error(trained: bool) -> None:
    assert found(Forgets(), trained=trained) == [("ARC010", "error")]


def test_a_hook_may_collect_what_the_forward_computes() -> None:
    model, kept = Forgets(), []
    model.head.register_forward_hook(lambda *results: kept.append(results[-1]))
    assert found(model, trained=False) == []


# ---------------------------------------------------------------------- what a file shows of training


@pytest.mark.parametrize(
    ("source", "optimized"),
    [
        ("net = Net()\nAdam(net.parameters())", [{"net", "Net"}]),
        ("net = Net()\nps = [p for p in net.parameters()]\ntorch.optim.SGD(ps)", [{"net", "Net"}]),
        ("net = Net()\nSGD(params=filter(f, net.parameters()))", [{"net", "Net"}]),
        ("class L(M):\n    def o(self):\n        return Adam(self.parameters())", [{"L"}]),
        ("LBFGS([picture])", [set()]),
        ("net = Net()\nx = net(y)", []),
    ],
)
def test_the_models_that_optimizers_are_given(source: str, optimized: list[set[str]]) -> None:
    assert training_of(SourceText("x.py", source)).optimized == tuple(map(frozenset, optimized))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("loss.backward()", Training(has_backward=True)),
        ("p.requires_grad = False\nnet.requires_grad_(False)", Training()),
        ("p.requires_grad = True", Training(unfreezes=True)),
        ("picture.requires_grad_()", Training(unfreezes=True)),
        ("torch.zeros(3, requires_grad=flag)", Training(unfreezes=True)),
    ],
)
def test_backward_and_gradients_that_are_asked_for(source: str, expected: Training) -> None:
    assert training_of(SourceText("x.py", source)) == expected


# ---------------------------------------------------------------------- files


def report_on(tmp_path: Path, source: str, codes: list[str]) -> Report:
    path = tmp_path / "net.py"
    path.write_text(
        f"import torch\nfrom torch import nn\nimport torch.nn.functional as F\n{source}"
    )
    return trainlint.check(path, select=codes)


def edited(tmp_path: Path, report: Report) -> str:
    text = (tmp_path / "net.py").read_text()
    return apply(text, [edit for f in report.findings for fix in f.fixes for edit in fix.edits])


LAYERS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1 = nn.Linear(6, 12)
        self.l2 = nn.Linear(12, 12)
        self.relu = nn.ReLU()
        self.w = torch.randn(12, 3, requires_grad=True) * 0.1
    def forward(self, x):
        {}
example_inputs = torch.randn(8, 6)
"""


def test_an_activation_that_is_not_assigned_comes_before_what_it_causes(tmp_path: Path) -> None:
    source = LAYERS.format("x = self.l1(x)\n        self.relu(x)\n        return self.l2(x)")
    report = report_on(tmp_path, source, ["ARC001", "ARC010"])
    [finding] = report.findings
    assert finding.code == "ARC010"
    assert [symptom.code for symptom in finding.symptoms] == ["ARC001"]
    assert "\n        x = self.relu(x)\n" in edited(tmp_path, report)


def test_the_name_that_is_to_be_returned(tmp_path: Path) -> None:
    source = LAYERS.format("x = torch.relu(self.l1(x))\n        x = self.l2(x)")
    assert "\n        return x\n" in edited(tmp_path, report_on(tmp_path, source, ["ARC010"]))


def test_the_call_that_is_to_be_returned(tmp_path: Path) -> None:
    source = LAYERS.format("x = torch.relu(self.l1(x))\n        self.l2(x)")
    assert "\n        return self.l2(x)\n" in edited(
        tmp_path, report_on(tmp_path, source, ["ARC010"])
    )


def test_a_plain_tensor_becomes_a_parameter(tmp_path: Path) -> None:
    source = LAYERS.format("return torch.relu(self.l2(self.l1(x))) @ self.w")
    report = report_on(tmp_path, source, ["ARC003"])
    assert [finding.severity for finding in report.findings] == ["error"]
    assert "self.w = nn.Parameter(torch.randn(12, 3) * 0.1)" in edited(tmp_path, report)


SECOND = """
opt = torch.optim.SGD({}.parameters(), lr=0.1)
for _ in range(2):
    loss = (net(torch.randn(8, 6)) - {}(torch.randn(8, 6))).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
"""


@pytest.mark.parametrize(
    "second",
    [
        "target = copy.deepcopy(net).requires_grad_(False).eval()",
        "target = copy.deepcopy(net).eval()\nfor p in target.parameters(): p.requires_grad = False",
        "target = Net()\ntarget.load_state_dict(net.state_dict())\ntarget.requires_grad_(False)",
        "target = nn.DataParallel(Net().requires_grad_(False))",
    ],
)
@pytest.mark.parametrize("trained", ["net", "target"])
def test_a_frozen_second_model_of_a_class_is_sound_where_the_first_is_trained(
    tmp_path: Path, second: str, trained: str
) -> None:
    source = LAYERS.format("return self.l2(torch.relu(self.l1(x)))").replace(
        "requires_grad=True", ""
    )
    source += f"import copy\nnet = Net()\n{second}\n" + SECOND.format(trained, "target")
    findings = report_on(tmp_path, source, ["ARC005"]).findings
    is_seen = trained == "target" and "deepcopy" not in second  # copies are not checked
    assert [finding.severity for finding in findings] == ["error"] * is_seen


@pytest.mark.parametrize(
    "use",
    [
        "net = Net()\nopt = torch.optim.SGD([net.w], lr=0.1)",
        "def step(net):\n    net.w.data -= 0.1 * net.w.grad",
        "def make(net):\n    return torch.optim.Adam(net.w)",
    ],
)
def test_a_plain_tensor_that_the_file_updates_is_sound(tmp_path: Path, use: str) -> None:
    source = LAYERS.format("return torch.relu(self.l2(self.l1(x))) @ self.w") + use + "\n"
    assert report_on(tmp_path, source, ["ARC003"]).findings == []


@pytest.mark.parametrize(
    ("forward", "severities"),
    [
        ("fc = nn.Linear(12, 3)\n        return fc(self.l1(x))", ["error"]),
        ("return nn.Linear(12, 3)(self.l1(x))", ["error"]),
        ("self.fc = nn.Linear(12, 3)\n        return self.fc(self.l1(x))", ["info"]),
        ("return nn.LayerNorm(12)(nn.GELU()(self.l1(x)))", []),
        (
            "fc = nn.Linear(12, 3)\n        fc.weight.data.fill_(1.0)\n        return fc(self.l1(x))",
            [],
        ),
        (
            "with torch.no_grad():\n            y = nn.Linear(6, 6)(x)\n        return self.l1(x + y)",
            [],
        ),
    ],
)
def test_layers_that_the_forward_makes(tmp_path: Path, forward: str, severities: list[str]) -> None:
    report = report_on(tmp_path, LAYERS.format(forward), ["ARC003"])
    assert [finding.severity for finding in report.findings] == severities


def test_a_builder_is_mended_by_its_own_name(tmp_path: Path) -> None:
    source = """
def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(i), nn.ReLU())
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(block(3, 8), block(8, 16))
    def forward(self, x):
        return self.body(x).mean((2, 3))
example_inputs = torch.randn(2, 3, 8, 8)
"""
    report = report_on(tmp_path, source, ["NRM001"])
    assert "nn.BatchNorm2d(o)" in edited(tmp_path, report)
    path = tmp_path / "net.py"
    path.write_text(edited(tmp_path, report))
    assert trainlint.check(path, select=["NRM001"]).findings == []


def test_a_relu_and_a_softmax_before_cross_entropy_are_two_faults(tmp_path: Path) -> None:
    source = LAYERS.format("return F.softmax(F.relu(self.l2(F.relu(self.l1(x)))), dim=1)")
    source += "def train(net: Net, x, y):\n    F.cross_entropy(net(x), y).backward()\n"
    report = report_on(tmp_path, source, ["LOS001", "ACT004"])
    assert [finding.code for finding in report.findings] == ["LOS001", "ACT004"]


@pytest.mark.parametrize(
    ("source", "after"),
    [("if x: f(x)\n", "if x: f(x); g()\n"), ("f(x); h(x)\n", "f(x); g(); h(x)\n")],
)
def test_a_line_beside_a_statement_that_shares_its_row_stays_on_it(source: str, after: str) -> None:
    text = SourceText("x.py", source)
    assert text.tree is not None
    call = next(node for node in ast.walk(text.tree) if isinstance(node, ast.Expr))
    fix = SourceEdits().beside(text, call, after="g()", title="t")
    assert apply(source, fix.edits) == after
    again = SourceText("x.py", after)
    assert again.tree is not None
    call = next(node for node in ast.walk(again.tree) if isinstance(node, ast.Expr))
    assert SourceEdits().beside(again, call, after="g()", title="t").edits == []
