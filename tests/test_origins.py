"""The operation that made the first NaN or infinity is named, forwards or backwards, in model or loss."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import trainlint
from trainlint.records import ReportedFinding

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)

    def between(self, hidden: Tensor, x: Tensor) -> Tensor:
        return self.norm(hidden).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x), x))


class LogOfNegative(Net):
    def between(self, hidden: Tensor, x: Tensor) -> Tensor:
        return hidden.log()  # log


class RootBehindWhere(Net):
    def between(self, hidden: Tensor, x: Tensor) -> Tensor:
        return torch.where(hidden > 0, hidden.sqrt(), torch.zeros_like(hidden))  # backward sqrt


class RootInCheckpoint(Net):
    def body(self, hidden: Tensor) -> Tensor:
        hidden = self.norm(hidden)
        return torch.where(hidden > 0, hidden.sqrt(), torch.zeros_like(hidden))  # backward sqrt

    def between(self, hidden: Tensor, x: Tensor) -> Tensor:
        return checkpoint(self.body, hidden, use_reentrant=False)


class Slopeless(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.abs()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / torch.zeros_like(gradient)


class OwnBackward(Net):
    def between(self, hidden: Tensor, x: Tensor) -> Tensor:
        return Slopeless.apply(hidden)  # backward Slopeless


class Undefined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * float("inf"))  # no torch function is called

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class OwnForward(Net):
    def between(self, hidden: Tensor, x: Tensor) -> Tensor:
        return Undefined.apply(hidden)  # Undefined


class RootOfSums(Net):
    """Its slope is infinite in the one batch that is all zeros."""

    def between(self, hidden: Tensor, x: Tensor) -> Tensor:
        scaled = hidden * x.sum(1, keepdim=True)
        return scaled.abs().pow(0.5)  # backward pow


class InverseOfNorms(Net):
    def between(self, hidden: Tensor, x: Tensor) -> Tensor:
        scaled = self.norm(hidden) * x.sum(1, keepdim=True)
        return scaled / scaled.norm(dim=1, keepdim=True)  # div


def entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y)


def shares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    positive = model(x).relu()
    total = positive.sum(1, keepdim=True)
    likelihood = (positive / total.clamp_min(1e-3))[torch.arange(len(y)), y]
    return -likelihood.log().mean()  # log


def distance(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    scores = model(x)
    apart = (scores - scores.detach()).square().sum(1)
    return apart.sqrt().mean() + functional.cross_entropy(scores, y)  # backward sqrt


def direction(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    scores = model(x)
    away = functional.normalize(scores - scores.detach(), eps=0.0)  # normalize
    return away.sum() + functional.cross_entropy(scores, y)


def certainty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The logarithm of 0 in the one batch that is all zeros."""
    weight = x.abs().sum(1)
    scale = weight.sqrt() + 1
    likelihood = model(x).softmax(1)[torch.arange(len(y)), y] * weight.clamp(max=1)
    return -(likelihood.log() / scale).mean()  # log


def train(model: nn.Module, loss_of: Loss, steps: int = 8, zeros_at: int = -1) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for number in range(steps):
        x = torch.zeros(16, 8) if number == zeros_at else torch.randn(16, 8)
        optimizer.zero_grad()
        loss_of(model, x, (x[:, 0] > 0).long()).backward()
        optimizer.step()


def non_finite(loop: Callable[[], object], **options: Any) -> ReportedFinding:
    with trainlint.watch(**options) as w:
        loop()
    report = w.report()
    assert [(t.status, t.notes) for t in report.targets] == [("ok", [])]
    (finding,) = (finding for finding in report.findings if finding.code == "GRD003")
    return finding


def named(finding: ReportedFinding) -> str:
    """What stands in the comment of the line that a finding names."""
    assert Path(str(finding.filename)).name == Path(__file__).name
    assert finding.location is not None
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return lines[finding.location.row - 1].partition("  # ")[2]


@pytest.mark.parametrize("kind", [
    LogOfNegative, RootBehindWhere, RootInCheckpoint, OwnBackward, OwnForward,
])  # fmt: skip
def test_an_operation_of_the_model(kind: type[Net]) -> None:
    finding = non_finite(lambda: train(kind(), entropy))
    name = finding.evidence["operation"]
    backward = "the backward of " in finding.message
    assert named(finding) == (f"backward {name}" if backward else name)
    assert finding.severity == "error"


@pytest.mark.parametrize("loss_of", [shares, distance, direction])
def test_an_operation_of_the_loss(loss_of: Loss) -> None:
    finding = non_finite(lambda: train(Net(), loss_of))
    name = finding.evidence["operation"]
    backward = "the backward of " in finding.message
    assert named(finding) == (f"backward {name}" if backward else name)


@pytest.mark.parametrize("kind", [RootOfSums, InverseOfNorms])
def test_one_bad_batch_in_a_step_that_is_not_recorded(kind: type[Net]) -> None:
    finding = non_finite(lambda: train(kind(), entropy, 60, zeros_at=43), every=10)
    name = finding.evidence["operation"]
    backward = "the backward of " in finding.message
    assert named(finding) == (f"backward {name}" if backward else name)
    assert finding.evidence["first_step"] == 43


def test_one_bad_batch_in_a_loss_that_is_not_recorded() -> None:
    finding = non_finite(lambda: train(Net(), certainty, 60, zeros_at=43), every=10)
    assert (finding.evidence["operation"], named(finding)) == ("log", "log")
    assert finding.evidence["first_step"] == 43


def test_what_is_made_once_more_is_neither_heard_nor_felt() -> None:
    class Counting(RootBehindWhere):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            print("called")
            self.norm(self.first(x))
            self.calls += 1
            return super().forward(x)

    def loop() -> list[Any]:
        torch.manual_seed(0)
        model = Counting()
        train(model, entropy, 3)
        return [model.calls, model.norm.num_batches_tracked.item(), torch.get_rng_state().tolist()]

    outputs = []
    for watched in (False, True):
        heard = io.StringIO()
        with redirect_stdout(heard):
            if watched:
                with trainlint.watch() as w:
                    results = loop()
                assert "GRD003" in [finding.code for finding in w.findings]
            else:
                results = loop()
        outputs.append((heard.getvalue(), results))
    assert outputs[0] == outputs[1]


def scaled(loss_of: Loss, *, init_scale: float = 2.0**16, fused: bool = False) -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    for _ in range(40):
        x = torch.randn(16, 8)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, x, (x[:, 0] > 0).long())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_leaves_out_to_find_its_scale_are_no_fault(fused: bool) -> None:
    with trainlint.watch() as w:
        scaled(entropy, init_scale=2.0**126, fused=fused)
    assert [f for f in w.findings if f.severity != "info"] == []


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_that_leaves_out_every_step_is_one(fused: bool) -> None:
    finding = non_finite(lambda: scaled(distance, fused=fused))
    assert (finding.evidence["left_out"], finding.evidence["steps"]) == (40, 40)
    if not fused:
        assert named(finding) == "backward sqrt"
