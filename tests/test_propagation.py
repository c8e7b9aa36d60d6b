"""Mean-field theory against samples, against the pulse, and what rules ask of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import trainlint
from benchmarks.propagation import (
    Case,
    Convolutions,
    Recurrent,
    ResNet,
    Stack,
    Transformer,
    images,
    measure,
    sequences,
    vectors,
)
from trainlint.capture.inputs import Inputs
from trainlint.capture.tracer import capture
from trainlint.fixes.source import apply
from trainlint.graph import Graph
from trainlint.measure.pulse import pulse
from trainlint.sites import INITIALIZATIONS, recording
from trainlint.theory.depth import measured_trend, predicted_trend
from trainlint.theory.moments import Activation, Moments, measured
from trainlint.theory.prescriptions import prescriptions
from trainlint.theory.propagation import propagate


def graph_of(model: nn.Module, *args: Tensor) -> Graph:
    recorded = capture(model, args, {})
    assert recorded.exception is None, recorded.exception
    return Graph(recorded.graph, recorded.model)


# ---------------------------------------------------------------------- activations and weights

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": nn.functional.gelu,
    "sin": torch.sin,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("varying", "common", "mean"),
    [(1.0, 0.0, 0.0), (0.3, 0.7, 0.0), (90.0, 10.0, 0.0), (0.01, 2.0, 0.5), (0.5, 1.0, -1.0)],
)
def test_activations_agree_with_samples(
    name: str, varying: float, common: float, mean: float
) -> None:
    function = FUNCTIONS[name]
    result, slopes = Activation((name,), function)(Moments(varying, common, mean))
    draw = torch.Generator().manual_seed(0)
    shape = (2_000_000,)
    shared = mean + math.sqrt(common - mean**2) * torch.randn(
        shape, generator=draw, dtype=torch.float64
    )
    x, y = (
        shared + math.sqrt(varying) * torch.randn(shape, generator=draw, dtype=torch.float64)
        for _ in range(2)
    )
    x.requires_grad_(True)
    value = function(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    value = value.detach()
    assert result.second == pytest.approx(float(value.square().mean()), rel=0.01)
    assert result.mean == pytest.approx(float(value.mean()), abs=0.01 * math.sqrt(result.second))
    apart = float((value - function(y.detach())).square().mean() / 2)
    assert result.varying == pytest.approx(apart, rel=0.02)
    assert slopes.square == pytest.approx(float(slope.square().mean()), rel=0.01)


def test_a_slope_that_a_coarse_grid_misses_is_found() -> None:
    """tanh' on N(0, 1000²): E[f'²] = √(2/π)·(2/3)/1000, between two nodes of any fixed rule."""
    _, slopes = Activation(("tanh",), torch.tanh)(Moments(1e6, 0.0))
    assert slopes.square == pytest.approx(2 / 3 * math.sqrt(2 / math.pi) / 1000, rel=0.02)


def test_what_varies_keeps_its_precision_when_it_is_tiny() -> None:
    result, slopes = Activation(("sigmoid",), torch.sigmoid)(Moments(1e-20, 1.0))
    assert result.varying == pytest.approx(1e-20 * slopes.square, rel=1e-6)


def test_a_constant_weight_has_coherent_rows() -> None:
    moments = measured(torch.full((4, 5), 0.5))
    assert moments.square == moments.within_row == moments.within_column == 0.25
    assert moments.row_sums == pytest.approx(2.5**2)
    assert moments.column_sums == pytest.approx(2.0**2)


def test_random_weights_have_none() -> None:
    torch.manual_seed(0)
    moments = measured(torch.randn(400, 400))
    assert moments.square == pytest.approx(1, rel=0.02)
    assert abs(moments.within_row) < 1e-3
    assert abs(moments.row_sums) < 400 * 0.1


# ---------------------------------------------------------------------- against one real pass

CASES = [
    (Case("default", lambda: Stack(10, "relu", "default"), vectors), 0.15),
    (Case("he", lambda: Stack(10, "relu", "he"), vectors), 0.25),
    (Case("tanh n1", lambda: Stack(10, "tanh", "n1"), vectors), 0.3),
    (Case("tiny", lambda: Stack(6, "relu", "n0.001"), vectors), 0.2),
    (Case("constant", lambda: Stack(6, "relu", "constant"), vectors), 0.3),
    (Case("sigmoid", lambda: Stack(8, "sigmoid", "default"), vectors), 0.15),
    (Case("residual", lambda: Stack(12, "relu", "he", residual=True), vectors), 0.5),
    (Case("batch norm", lambda: Stack(8, "relu", "default", norm=nn.BatchNorm1d), vectors), 0.3),
    (Case("convolutions", lambda: Convolutions(6, kind="he"), images), 0.3),
    (Case("resnet", ResNet, images), 0.3),
    (Case("transformer", Transformer, sequences), 0.4),
    (Case("lstm", lambda: Recurrent(nn.LSTM), sequences), 0.2),
    (Case("gru", lambda: Recurrent(nn.GRU, bidirectional=True, last=False), sequences), 0.2),
]


@pytest.mark.parametrize(("case", "decades"), CASES, ids=[case.name for case, _ in CASES])
def test_predictions_agree_with_the_pulse(case: Case, decades: float) -> None:
    row = measure(case, seed=3)
    assert row.real == pytest.approx(row.measured, abs=decades)
    assert row.meta == pytest.approx(row.measured, abs=decades + 0.5)


def test_it_leaves_the_model_alone_and_draws_no_random_number() -> None:
    model = Stack(4, "relu", "default")
    graph = graph_of(model, torch.randn(2, 64))
    weights = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    propagate(graph)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------- the answers


def test_the_story_multiplies_to_the_ratio() -> None:
    graph = graph_of(Stack(9, "sigmoid", "xavier"), torch.randn(2, 64))
    found = propagate(graph)
    first, last = found.weights[0], found.weights[-1]
    losses = found.losses(first, last)
    assert math.prod(loss.factor for loss in losses) == pytest.approx(found.ratio(first, last))
    assert {loss.kind: loss.count for loss in losses} == {"sigmoid": 9, "weights": 9}
    sigmoid = next(loss for loss in losses if loss.kind == "sigmoid")
    assert 0.2 < sigmoid.each < 0.25
    assert found.story(first, last).startswith("sigmoid ×0.2")


def test_other_initial_values_change_the_prediction() -> None:
    graph = graph_of(Stack(10, "relu", "n0.01"), torch.randn(2, 64))
    found = propagate(graph)
    wanted = prescriptions(graph, found)
    assert [p.function for p in wanted] == ["kaiming_normal_"] * 10 + ["xavier_uniform_"]
    assert wanted[1].formula == "σ = √(2/n) = √(2/96) = 0.144"
    assert wanted[-1].formula.startswith("a = √(6/(n + m)) = √(6/(96 + 10)) = 0.238")
    changed = found.reinitialised({p.name: p.deviation**2 for p in wanted})
    before, after = predicted_trend(graph, found), predicted_trend(graph, changed)
    assert before is not None
    assert after is not None
    assert before.gradient < -5
    assert abs(after.gradient) < 0.3


def test_the_measured_and_the_predicted_trend_agree() -> None:
    model, x = Stack(10, "relu", "default"), torch.randn(16, 64)
    graph = graph_of(model, x)
    seen = measured_trend(graph, pulse(model, Inputs((x,), {}, "", given=True), graph))
    foreseen = predicted_trend(graph, propagate(graph))
    assert seen is not None
    assert foreseen is not None
    assert foreseen.gradient == pytest.approx(seen.gradient, abs=0.2)
    assert foreseen.spread == pytest.approx(seen.spread, abs=0.3)


def test_a_weight_used_twice_is_one_layer() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) - self.layers(-x)

    graph = graph_of(Siamese(), torch.randn(2, 8))
    assert predicted_trend(graph, propagate(graph)) is None  # four layers, not eight


# ---------------------------------------------------------------------- without values


def test_initialisers_of_meta_tensors_are_noted() -> None:
    with recording(), torch.device("meta"):
        layer = nn.Linear(30, 20)
        nn.init.normal_(layer.weight, 0.0, 0.5)
    noted = INITIALIZATIONS.declared(layer.weight)
    assert noted is not None
    assert (noted[0], noted[1]) == ("normal_", (0.0, 0.5))
    seen = INITIALIZATIONS.of(layer.weight)
    assert seen is not None
    assert seen[0] == "normal_"
    found = propagate(graph_of(layer, torch.randn(2, 30)))
    assert found.deviation_of(found.weights[0]) == pytest.approx(0.5)


def test_meta_tensors_that_nobody_filled_have_torchs_default() -> None:
    with torch.device("meta"):
        layer = nn.Linear(30, 20)
    found = propagate(graph_of(layer, torch.randn(2, 30)))
    assert found.deviation_of(found.weights[0]) == pytest.approx(1 / math.sqrt(3 * 30))


# ---------------------------------------------------------------------- the rules

SHRINKING = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(9))
        self.head = nn.Linear(32, 4)
        {extra}

    def forward(self, x):
        for layer in self.layers:
            x = {activation}(layer(x))
        return self.head(x)
"""


def findings(tmp_path: Path, text: str) -> list[trainlint.Finding]:
    path = tmp_path / "net.py"
    path.write_text(text, encoding="utf-8")
    report = trainlint.check(path)
    assert [target.status for target in report.targets] == ["ok"], report.targets
    return [f for f in report.findings if f.severity != "info"]


def test_the_fix_of_a_shrinking_init_mends_it(tmp_path: Path) -> None:
    text = SHRINKING.format(
        activation="torch.relu",
        extra="for layer in self.layers:\n            nn.init.normal_(layer.weight, std=0.02)",
    )
    (found,) = findings(tmp_path, text)
    assert found.code == "INI003"
    assert [symptom.code for symptom in found.symptoms][:1] == ["GRD001"]
    assert found.fixes[0].title.startswith("nn.init.kaiming_normal_(self.layers[0].weight")
    mended = apply(text, found.fixes[0].edits)
    assert 'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")' in mended
    assert findings(tmp_path, mended) == []


def test_sigmoids_are_the_cause_where_no_initial_values_help(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, SHRINKING.format(activation="torch.sigmoid", extra=""))
    assert found.code == "ARC008"
    assert "GRD001" in [symptom.code for symptom in found.symptoms]
    assert "INI003" not in [symptom.code for symptom in found.symptoms]


def test_a_model_without_values_is_judged_by_its_prediction(tmp_path: Path) -> None:
    text = SHRINKING.format(
        activation="torch.relu",
        extra="for layer in self.layers:\n            nn.init.normal_(layer.weight, std=0.02)",
    )
    text += '\n\nwith torch.device("meta"):\n    model = Net()\n'
    found = [f for f in findings(tmp_path, text) if f.code == "INI003"]
    assert [f.confidence for f in found] == ["possible"]
    assert "predicted" in found[0].message


def test_a_filling_method_is_named_and_replaced(tmp_path: Path) -> None:
    text = SHRINKING.format(
        activation="torch.relu",
        extra="for layer in self.layers:\n            layer.weight.data.normal_(0.0, 0.02)",
    )
    (found,) = findings(tmp_path, text)
    assert found.location is not None
    assert "normal_" in text.splitlines()[found.location.row - 1]
    mended = apply(text, found.fixes[0].edits)
    assert 'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")' in mended
    assert findings(tmp_path, mended) == []


def test_weights_that_were_scaled_afterwards_get_no_edit(tmp_path: Path) -> None:
    extra = "for layer in self.layers:\n            layer.weight.data.mul_(0.05)"
    (found,) = findings(tmp_path, SHRINKING.format(activation="torch.relu", extra=extra))
    assert found.code == "INI003"
    assert found.fixes[0].edits == []


def test_a_scale_in_the_forward_is_named_where_it_is_written(tmp_path: Path) -> None:
    fill = 'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")'
    extra = f"for layer in self.layers:\n            {fill}"
    text = SHRINKING.format(activation="0.2 * torch.relu", extra=extra)
    (found,) = findings(tmp_path, text)
    assert found.code == "GRD001"
    assert found.location is not None
    assert "0.2 * torch.relu" in text.splitlines()[found.location.row - 1]


def test_growth_that_a_normalisation_divides_out_is_no_error(tmp_path: Path) -> None:
    extra = "for layer in self.layers:\n            nn.init.normal_(layer.weight)"
    text = SHRINKING.format(activation="torch.relu", extra=extra)
    (plain,) = findings(tmp_path, text)
    assert (plain.code, plain.severity) == ("INI004", "error")
    head = "nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))"
    (before,) = findings(tmp_path, text.replace("nn.Linear(32, 4)", head))
    assert (before.code, before.severity) == ("INI004", "warning")
    assert "GRD002" not in [symptom.code for symptom in before.symptoms]


def test_hes_values_before_tanh_are_no_mismatch(tmp_path: Path) -> None:
    extra = "for layer in self.layers:\n            nn.init.kaiming_normal_(layer.weight)"
    path = tmp_path / "net.py"
    text = SHRINKING.format(activation="torch.tanh", extra=extra).replace("range(9)", "range(20)")
    path.write_text(text, encoding="utf-8")
    assert "INI005" not in [finding.code for finding in trainlint.check(path).findings]
