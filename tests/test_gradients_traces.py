"""Rules on gradients, on training loops that are watched: faulty ones, and sound look-alikes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import watching
from torch import nn
from torch.nn import functional

import trainlint
from trainlint.analysis.depth_in_training import depth_in_training
from trainlint.fixes.loops import before_divergence
from trainlint.records import ReportedFinding
from trainlint.sites import construction_sites

CODES = {"GRD003", "GRD004", "GRD005", "GRD006", "GRD008", "GRD009"}


def found(loop: Callable[[], object], *, every: int = 1) -> dict[str, ReportedFinding]:
    """The findings of these rules on what the loop does, symptoms included."""
    with construction_sites(), trainlint.watch(every=every) as w:
        loop()
    report = w.report()
    assert [target.status for target in report.targets] == ["ok"]
    every_one = [each for finding in report.findings for each in (finding, *finding.symptoms)]
    return {finding.code: finding for finding in every_one if finding.code in CODES}


text_at = partial(watching.text_at, file=__file__)


def mlp(inputs: int = 8, width: int = 32, outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


def batch(samples: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(samples, 8)
    return x, (x[:, 0] > 0).long()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 20,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> None:
    for _ in range(steps):
        x, y = batch()
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        before()
        optimizer.step()
        after()


def sgd(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate)


class Parts(nn.Module):
    """A body and a head, put together by a function."""

    def __init__(self, join: Callable[[Parts, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.body = mlp(outputs=32)
        self.side = nn.Linear(32, 32)
        self.head = nn.Linear(32, 2)
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(self, x)


# ---------------------------------------------------------------------- vanishing-gradient


def chain(depth: int, activation: type[nn.Module], head: float = 1.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(depth):
        layer = nn.Linear(8 if place == 0 else 32, 32)
        nn.init.xavier_uniform_(layer.weight)
        layers += [layer, activation()]
    last = nn.Linear(32, 2)
    with torch.no_grad():
        last.weight *= head
    return nn.Sequential(*layers, last)


def encoder() -> nn.Module:
    """Queries and keys get next to nothing until the attention has something to tell apart."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(
        nn.Embedding(9, 32), nn.LayerNorm(32), body, nn.Flatten(),
        nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 2),
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    return model


STARVED: dict[str, tuple[Callable[[], nn.Module], float, bool]] = {
    "sigmoids": (lambda: chain(5, nn.Sigmoid), 0.1, True),
    "an attention on its plateau": (encoder, 1e-4, False),
    "a last layer near 0": (lambda: chain(6, nn.ReLU, head=1e-3), 1e-4, False),
    "a rate that saturates": (lambda: chain(4, nn.Tanh), 1000.0, False),
}


@pytest.mark.parametrize("case", STARVED)
def test_a_gradient_vanishes_where_successive_layers_take_of_it(case: str) -> None:
    build, rate, vanishes = STARVED[case]
    model = build()
    optimizer = sgd(model, rate)
    with trainlint.watch(every=1, stages=("probe",), select=["GRD001"]) as w:
        for _ in range(30):
            x = torch.randn(32, 8)
            y = (x[:, 0] > 0).long()
            if isinstance(model[0], nn.Embedding):  # type: ignore[index]
                x = (2 * x + 4).clamp(0, 8).long()
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    depth = depth_in_training(w.trace.trained[0])
    assert depth is not None
    assert depth.gradient < -1.5
    assert [finding.code for finding in w.findings] == ["GRD001"] * vanishes


# ---------------------------------------------------------------------- no-gradient


def parts(join: Callable[[Parts, torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    def loop() -> None:
        model = Parts(join)
        train(model, sgd(model))

    return loop


def test_layers_behind_a_detach_are_an_error() -> None:
    finding = found(parts(lambda m, x: m.head(m.side(m.body(x)).detach())))["GRD004"]
    assert finding.severity == "error"
    assert finding.evidence["ran"] is True
    assert finding.evidence["share"] > 0.9
    assert "mlp" in text_at(finding) or "nn.Linear" in text_at(finding)


def test_a_layer_that_is_not_called_is_a_warning() -> None:
    finding = found(parts(lambda m, x: m.head(m.body(x))))["GRD004"]
    assert finding.severity == "warning"
    assert finding.evidence["parameters"] == ["side.weight", "side.bias"]
    assert "model.side" in finding.message
    assert "self.side = nn.Linear(32, 32)" in text_at(finding)


def test_a_factor_of_zero_stops_the_gradient() -> None:
    finding = found(parts(lambda m, x: m.head(m.body(x) + 0.0 * m.side(m.body(x)))))["GRD004"]
    assert finding.severity == "warning"
    assert "exactly 0" in finding.message


def test_an_expert_that_waits_for_its_turn_is_advice() -> None:
    experts = nn.ModuleList(mlp() for _ in range(4))
    experts.forward = lambda x: experts[0](x) + experts[1](x)  # type: ignore[method-assign]
    finding = found(lambda: train(experts, sgd(experts)))["GRD004"]
    assert finding.severity == "info"


def test_heads_that_take_turns_are_sound() -> None:
    heads = nn.ModuleList(nn.Linear(8, 2 + number) for number in range(5))
    turn = iter(range(100))
    heads.forward = lambda x: heads[next(turn) % 5](x).float()  # type: ignore[method-assign]
    assert "GRD004" not in found(lambda: train(heads, sgd(heads), 30), every=7)


def test_a_teacher_that_follows_its_student_is_sound() -> None:
    model = nn.ModuleDict({"student": nn.Linear(8, 2), "teacher": nn.Linear(8, 2)})
    student, teacher = model["student"], model["teacher"]

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            aim = teacher(x)
        return student(x) + aim

    def follow() -> None:
        with torch.no_grad():
            for late, early in zip(teacher.parameters(), student.parameters(), strict=True):
                late.lerp_(early, 0.1)

    model.forward = forward  # type: ignore[method-assign]
    assert "GRD004" not in found(lambda: train(model, sgd(model), after=follow))


# ---------------------------------------------------------------------- clipping


def test_clipping_after_the_step() -> None:
    model = mlp()
    finding = found(
        lambda: train(
            model, sgd(model), after=lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        )
    )["GRD009"]
    assert finding.severity == "error"
    assert finding.evidence == {"times": 20, "first_step": 1}
    assert "after=lambda: nn.utils.clip_grad_norm_" in text_at(finding)


@pytest.mark.parametrize("limit", [float("inf"), 1e9])
def test_asking_for_the_norm_after_the_step_is_sound(limit: float) -> None:
    model = mlp()
    ask = lambda: nn.utils.clip_grad_norm_(model.parameters(), limit)  # noqa: E731
    assert not found(lambda: train(model, sgd(model), after=ask))


def test_clipping_gradients_that_were_set_by_hand_is_sound() -> None:
    model = mlp()
    optimizer = sgd(model)

    def loop() -> None:
        for _ in range(20):
            x, y = batch()
            made = torch.autograd.grad(
                functional.cross_entropy(model(x), y), list(model.parameters())
            )
            for parameter, gradient in zip(model.parameters(), made, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    assert not found(loop)


@pytest.mark.parametrize(("kind", "severity"), [("SGD", "warning"), ("Adam", "info")])
def test_clipping_to_a_thousandth_matters_where_the_step_scales(kind: str, severity: str) -> None:
    model = mlp()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=1e-2)
    clip = lambda: nn.utils.clip_grad_norm_(model.parameters(), 1e-3)  # noqa: E731
    finding = found(lambda: train(model, optimizer, before=clip))["GRD006"]
    assert finding.severity == severity
    assert finding.evidence["factor"] < 0.01
    assert finding.evidence["limit"] == 1e-3
    assert "max_norm=" in finding.fixes[0].title


@pytest.mark.parametrize("eps", [1e-8, 1e-30])
def test_clipping_below_epsilon_stops_adam_and_its_kin(eps: float) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=eps)
    clip = lambda: nn.utils.clip_grad_norm_(model.parameters(), 1e-9)  # noqa: E731
    finding = found(lambda: train(model, optimizer, before=clip))["GRD006"]
    is_below = eps == 1e-8
    assert finding.severity == ("warning" if is_below else "info")
    assert ("eps=1e-08" in finding.message) == is_below
    assert ("divides the scale out" in finding.message) != is_below


def test_a_large_rate_chosen_for_tight_clipping_is_advice() -> None:
    model = mlp()
    clip = lambda: nn.utils.clip_grad_norm_(model.parameters(), 1e-2)  # noqa: E731
    finding = found(lambda: train(model, sgd(model, 5.0), before=clip))["GRD006"]
    assert finding.severity == "info"


def test_clipping_what_a_scaler_has_multiplied() -> None:
    model = mlp()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu")

    def loop(unscale: bool) -> None:
        for _ in range(20):
            x, y = batch()
            optimizer.zero_grad()
            scaler.scale(functional.cross_entropy(model(x), y)).backward()
            if unscale:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()

    finding = found(lambda: loop(unscale=False))["GRD006"]
    assert finding.severity == "warning"
    assert "unscale_" in finding.fixes[0].title
    assert "GRD006" not in found(lambda: loop(unscale=True))


# ---------------------------------------------------------------------- recurrent-without-clipping


def recurrent(burst: bool = False, clip: bool = False) -> Callable[[], None]:
    def loop() -> None:
        body, head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 1)
        model = nn.ModuleList([body, head])
        model.forward = lambda x: head(body(x)[0][:, -1])  # type: ignore[method-assign]
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(30):
            x = torch.randn(8, 6, 4)
            size = 1000.0 if burst and step in (12, 20) else 1.0
            loss = size * functional.mse_loss(model(x), x[:, -1, :1])
            optimizer.zero_grad()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return loop


def test_an_lstm_without_clipping_is_advice_and_a_warning_with_spikes() -> None:
    calm = found(recurrent())["GRD005"]
    assert calm.severity == "info"
    assert "nn.LSTM" in text_at(calm)
    wild = found(recurrent(burst=True))["GRD005"]
    assert wild.severity == "warning"
    assert wild.evidence["spikes"] == 2
    assert "GRD005" not in found(recurrent(burst=True, clip=True))


def test_the_limit_is_that_of_the_steps_before_a_run_diverged() -> None:
    def loop() -> None:
        body = nn.RNN(4, 8, batch_first=True)
        optimizer = torch.optim.SGD(body.parameters(), lr=1e-3)
        for step in range(30):
            loss = body(torch.randn(8, 6, 4))[0].square().mean() * (1e9 if step >= 5 else 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    [fix] = found(loop)["GRD005"].fixes
    limit = fix.patches[0].values["max_norm"]
    assert limit < 10.0
    assert f"to {limit:g} " in fix.title


def test_norms_before_a_divergence() -> None:
    calm = [1.0, 1.3, 0.8, 1.1, 0.9, 1.2]
    assert before_divergence(calm) == calm
    assert before_divergence([*calm[:3], 500.0, *calm[3:]]) == [*calm[:3], 500.0, *calm[3:]]
    assert before_divergence([*calm, 500.0, 3e9, math.inf]) == calm
    assert before_divergence([*calm, math.nan, 1.0]) == calm
    assert before_divergence([1.0, 3e9, 3e9]) == [1.0]


# ---------------------------------------------------------------------- graph-kept-alive


def test_losses_that_keep_their_graphs() -> None:
    model = mlp()
    optimizer = sgd(model)

    def loop(keep: Callable[[torch.Tensor], object]) -> None:
        kept = []
        for _ in range(40):
            x, y = batch()
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            kept.append(keep(loss))

    finding = found(lambda: loop(lambda loss: loss))["GRD008"]
    assert finding.severity == "warning"
    assert finding.evidence["graphs"] >= 8
    assert "kept.append(" in text_at(finding)
    assert "kept by kept" in finding.message
    assert not found(lambda: loop(lambda loss: loss.detach()))
    assert not found(lambda: loop(lambda loss: loss.item()))


# ---------------------------------------------------------------------- non-finite


def test_the_operation_that_made_the_first_nan_of_a_run() -> None:
    def join(model: Parts, x: torch.Tensor) -> torch.Tensor:
        return model.head(torch.log(model.body(x) * (x.sum() < 20)))

    finding = found(parts(join))["GRD003"]
    assert finding.severity == "error"
    assert finding.evidence["operation"] == "log"
    assert "torch.log" in text_at(finding)


def test_a_nan_in_the_data() -> None:
    model = mlp()
    optimizer = sgd(model)

    def loop() -> None:
        for step in range(12):
            x, y = batch()
            if step == 7:
                x[3, 2] = float("nan")
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    finding = found(loop)["GRD003"]
    assert finding.evidence["first_step"] == 7
    assert "in the data" in finding.message


def test_a_nan_that_the_backward_made() -> None:
    model = mlp()
    optimizer = sgd(model)

    def loop() -> None:
        for _ in range(5):
            x, y = batch()
            scores = model(x)
            loss = (
                functional.cross_entropy(scores, y)
                + (scores - scores).square().sum(1).sqrt().mean()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    finding = found(loop)["GRD003"]
    assert finding.evidence["operation"] == "sqrt"
    assert "the backward of sqrt makes" in finding.message
    assert text_at(finding).endswith(".sqrt().mean()")
    assert finding.evidence["first_step"] == 0


def test_a_loss_that_recovers_is_a_warning() -> None:
    model = mlp()
    optimizer = sgd(model)

    def loop() -> None:
        for step in range(12):
            x, y = batch()
            loss = functional.cross_entropy(model(x), y) * (float("inf") if step == 6 else 1.0)
            optimizer.zero_grad()
            loss.backward()
            if all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None):
                optimizer.step()

    finding = found(loop)["GRD003"]
    assert finding.severity == "warning"
    assert finding.evidence["losses"] == 1


def test_losses_that_are_finite_are_silent() -> None:
    model = mlp()
    assert not found(lambda: train(model, sgd(model)))
