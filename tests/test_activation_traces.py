"""Rules on the units of a watched loop: what they find, at which line, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from watching import found_by, is_at, sgd, step

CODES = (
    "ACT001",
    "ACT002",
)


found = partial(found_by, CODES)


# ---------------------------------------------------------------------- ACT001


def shut_from_the_start() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 16, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(96, 4)
    )
    nn.init.constant_(model[0].bias[:12], -9.0)
    optimizer = sgd(model)
    for _ in range(30):
        x = torch.randn(32, 1, 8)
        loss = F.cross_entropy(model(x), x[:, 0, :4].argmax(1))  # here
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_dead_relu() -> None:
    finding = found(shut_from_the_start)["ACT001"]
    assert finding.evidence["dead"] == 0.75
    assert finding.evidence["dead_at_first"] == 0.75
    assert finding.module == "1"
    assert is_at(finding, shut_from_the_start)


class Hinge(nn.Module):
    """Loses a margin between distances, in its forward: zero everywhere once it is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)

    def forward(self, x: Tensor, near: Tensor, far: Tensor) -> Tensor:
        a, b, c = self.embed(x), self.embed(near), self.embed(far)
        return F.relu(torch.cdist(a, b) - torch.cdist(a, c) + 0.1).mean()


def a_hinge_that_is_met() -> None:
    model = Hinge()
    optimizer = sgd(model)
    for _ in range(30):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        model(x, x + 0.01, x + 30).backward()
        optimizer.step()


class Latent(nn.Module):
    """Bounds a logarithm that is negative throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance, self.out = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.log_variance(x) - 5).clamp(-20, 2).exp())


def a_bounded_logarithm() -> None:
    model = Latent()
    optimizer = sgd(model)
    for _ in range(30):
        step(model, optimizer)


# ---------------------------------------------------------------------- ACT002


class Units(nn.Module):
    """A sigmoid with a large input: before a layer, as a gate, or last."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role
        self.inner, self.gate, self.out = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)
        nn.init.normal_(self.gate.weight, std=9.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.role == "last":
            return torch.sigmoid(self.out(self.gate(x)) * 9)
        units = torch.sigmoid(self.gate(x))  # here
        return self.out(self.inner(x) * units if self.role == "gate" else F.dropout(units, 0.1))


def saturated(role: str) -> Callable[[], None]:
    def loop() -> None:
        model = Units(role)
        optimizer = sgd(model, lr=0.01)
        for _ in range(30):
            step(model, optimizer)

    return loop


def test_saturated_units() -> None:
    finding = found(saturated("hidden"))["ACT002"]
    assert finding.evidence["saturated"] > 0.7
    assert is_at(finding, Units)


# ---------------------------------------------------------------------- sound loops


@pytest.mark.parametrize(
    "loop",
    [
        a_hinge_that_is_met,
        a_bounded_logarithm,
        pytest.param(saturated("gate"), id="a_gate"),
        pytest.param(saturated("last"), id="a_last_sigmoid"),
    ],
)
def test_sound_loops_are_left_alone(loop: Callable[[], None]) -> None:
    assert found(loop) == {}
