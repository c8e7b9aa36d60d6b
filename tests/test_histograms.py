"""Histograms of results: what is counted in one pass and in a training, against plain sums."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import trainlint
from trainlint.measure.histograms import BINS, COLUMNS, counted, histogram_of


def test_counts_are_those_of_equal_bins() -> None:
    torch.manual_seed(0)
    samples = torch.rand(3, 4, 50) - 0.25
    rows = counted(samples, ["linear", "conv2d", "linear"])
    assert rows.shape == (3, COLUMNS)
    for sample, row in zip(samples, rows.tolist(), strict=True):
        shown = histogram_of(row, step=7)
        assert shown is not None
        assert shown.step == 7
        low, high = float(sample.min()), float(sample.max())
        assert (shown.low, shown.high) == pytest.approx((low, high), rel=1e-3)
        expected = torch.histc(sample, BINS, low, high)
        assert (torch.tensor(shown.counts) - expected).abs().sum() <= 2  # at the edges of bins
        between = float((sample - sample.mean(0)).square().mean().sqrt())
        assert shown.spread == pytest.approx(between, rel=1e-3)
        assert shown.saturated is None


def test_zeros_stand_apart_and_what_is_not_finite_counts_nowhere() -> None:
    sample = torch.tensor([[[0.0, 0.0, 1.0, 2.0], [float("nan"), float("inf"), 4.0, 0.0]]])
    shown = histogram_of(counted(sample, ["relu"])[0].tolist())
    assert shown is not None
    assert shown.zero == pytest.approx(3 / 8)
    assert sum(shown.counts) == 3
    assert shown.low == 0  # where all ReLUs begin
    dead = histogram_of(counted(torch.zeros(1, 2, 3), ["relu"])[0].tolist())
    assert dead is not None
    assert (dead.counts, dead.zero, dead.spread) == ([], 1, 0)
    assert (shown.not_finite, dead.not_finite) == (0.25, 0)
    lost = histogram_of(counted(torch.full((1, 2, 3), torch.nan), ["sigmoid"])[0].tolist())
    assert lost is not None
    assert (lost.counts, lost.zero, lost.spread, lost.not_finite) == ([], 0, None, 1)


def test_one_large_value_leaves_the_others_in_more_than_one_bin() -> None:
    torch.manual_seed(0)
    sample = torch.randn(1, 1, 2000)
    sample[0, 0, 0] = 1e6
    shown = histogram_of(counted(sample, ["linear"])[0].tolist())
    assert shown is not None
    assert shown.high < 1e6
    assert shown.counts[-1] == 1
    assert shown.spread is None  # one row: no samples to be compared


@pytest.mark.parametrize(
    ("name", "function", "beyond"), [("sigmoid", torch.sigmoid, 4.0), ("tanh", torch.tanh, 2.0)]
)
def test_the_share_that_is_saturated_is_that_of_the_inputs(
    name: str, function: type, beyond: float
) -> None:
    torch.manual_seed(0)
    inputs = 4 * torch.randn(1, 8, 200)
    shown = histogram_of(counted(function(inputs), [name])[0].tolist())
    assert shown is not None
    assert shown.saturated == pytest.approx(float((inputs.abs() > beyond).float().mean()), abs=0.01)
    assert (shown.low, shown.high) == ({"sigmoid": 0.0, "tanh": -1.0}[name], 1.0)


class Net(nn.Module):
    """A ReLU whose bias is pushed down, and layers without an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(self.norm(self.fc(x))))
        return out


@pytest.mark.parametrize("steps", [3, 70])
def test_a_training_has_them_at_its_first_a_middle_and_its_last_step(steps: int) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with trainlint.watch(every=1) as watched:
        for step in range(steps):
            if step == steps - 1:
                with torch.no_grad():
                    model.norm.bias.fill_(-100.0)
            loss = nn.functional.mse_loss(model(torch.randn(8, 6)), torch.zeros(8, 2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    data = json.loads(watched.report().to_json())
    (shown,) = data["targets"][0]["series"]["models"]
    relu, out = shown["activations"]
    assert (relu["operation"], relu["layer"]) == ("relu", "norm")
    assert (out["name"], out["operation"]) == ("out", "linear")
    for each in (relu, out):
        taken = [histogram["step"] for histogram in each["histograms"]]
        assert taken[0] == 0
        assert taken[-1] == steps - 1
        assert len(taken) == 3
        assert abs(taken[1] - steps / 2) <= steps / 4
    first, _, last = relu["histograms"]
    assert first["zero"] < 0.9
    assert sum(first["counts"]) == round(8 * 16 * (1 - first["zero"]))
    assert last["zero"] == 1
    gradients = next(layer["gradients"] for layer in shown["layers"] if layer["name"] == "out")
    assert len(gradients) == {3: 3, 70: 35}[steps]  # at most 50 of them
