"""Rules on optimisation, on training loops that are watched: faulty ones, and sound look-alikes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
import watching
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

import trainlint
from trainlint.records import ReportedFinding
from trainlint.sites import construction_sites

Optimizer = torch.optim.Optimizer


def found(loop: Callable[[], object], *, every: int = 1) -> dict[str, ReportedFinding]:
    """The findings of these rules on what the loop does, symptoms included."""
    with construction_sites(), trainlint.watch(every=every) as w:
        loop()
    report = w.report()
    assert [target.status for target in report.targets] == ["ok"]
    every_one = [each for finding in report.findings for each in (finding, *finding.symptoms)]
    return {finding.code: finding for finding in every_one if finding.code.startswith("OPT")}


def loud(loop: Callable[[], object], *, every: int = 1) -> dict[str, ReportedFinding]:
    """Without advice."""
    return {
        code: finding
        for code, finding in found(loop, every=every).items()
        if finding.severity != "info"
    }


text_at = partial(watching.text_at, file=__file__)


def mlp(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs)
    )


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int = 30,
    after: Callable[[], object] = lambda: None,
) -> None:
    for _ in range(steps):
        x = torch.randn(64, 8)
        loss = functional.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after()


def sgd(model: nn.Module, rate: float = 0.1, decay: float = 0.0) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay)


def adam(model: nn.Module, rate: float = 1e-3, decay: float = 0.0) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)


# ---------------------------------------------------------------------- parameters-not-optimized


def test_a_head_that_was_replaced_after_the_optimizer_was_made() -> None:
    def loop() -> None:
        model = mlp()
        optimizer = adam(model)
        model[4] = nn.Linear(32, 2)
        train(model, optimizer)

    finding = found(loop)["OPT001"]
    assert finding.severity == "error"
    assert finding.evidence["parameters"] == ["4.bias", "4.weight"]
    assert "torch.optim.Adam(" in text_at(finding)


def test_an_optimizer_of_the_head_alone_is_a_warning() -> None:
    def loop() -> None:
        model = mlp()
        train(model, torch.optim.SGD(model[4].parameters(), lr=0.1))

    finding = found(loop)["OPT001"]
    assert finding.severity == "warning"
    assert finding.evidence["share"] > 0.9


def test_an_optimizer_of_another_model() -> None:
    def loop() -> None:
        optimizer = adam(mlp())
        model = mlp()
        for _ in range(10):
            functional.cross_entropy(model(torch.randn(8, 8)), torch.zeros(8).long()).backward()
            optimizer.step()

    finding = found(loop)["OPT001"]
    assert finding.severity == "error"
    assert "another model" in finding.message
    assert "optimizer.step()" in text_at(finding)


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_are_cleared_before_the_step(to_none: bool) -> None:
    def loop() -> None:
        model = mlp()
        optimizer = sgd(model)
        for _ in range(10):
            functional.cross_entropy(model(torch.randn(8, 8)), torch.zeros(8).long()).backward()
            optimizer.zero_grad(set_to_none=to_none)
            optimizer.step()

    finding = found(loop)["OPT001"]
    assert finding.severity == "error"
    assert finding.evidence["times"] == 10


def test_gradients_that_are_zero_by_themselves_are_sound() -> None:
    def loop() -> None:
        model = mlp()
        optimizer = sgd(model)
        for _ in range(10):
            loss = functional.relu(
                model(torch.randn(8, 8)) - 1000
            ).mean()  # a hinge that is satisfied
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            optimizer.step()

    assert "OPT001" not in found(loop)


def test_optimizers_that_take_turns_are_sound() -> None:
    def loop() -> None:
        model = mlp()
        first = torch.optim.SGD(model[:4].parameters(), lr=0.1)
        second = torch.optim.Adam(model[4].parameters(), lr=1e-3)
        for step in range(20):
            x = torch.randn(8, 8)
            model.zero_grad()
            functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            (first if step % 2 else second).step()

    assert not loud(loop)


def test_groups_that_are_added_later_are_sound() -> None:
    def loop() -> None:
        model = mlp()
        optimizer = torch.optim.Adam(model[4].parameters(), lr=1e-3)
        train(model, optimizer, 8)
        optimizer.add_param_group({"params": model[:4].parameters()})
        train(model, optimizer, 8)

    assert not loud(loop)


# ---------------------------------------------------------------------- learning rates


@pytest.mark.parametrize("rate", [100.0, 5.0])
def test_a_rate_that_makes_the_loss_infinite(rate: float) -> None:
    def loop() -> None:
        model = mlp(1)
        optimizer = sgd(model, rate)
        for _ in range(40):
            x = torch.randn(32, 8)
            loss = functional.mse_loss(model(x), 3 * x[:, :1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    finding = found(loop)["OPT002"]
    assert finding.severity == "error"
    assert finding.evidence["learning_rate"] == rate
    assert finding.evidence["largest_update"] > 0.1
    assert finding.fixes[0].title.startswith("lower the learning rate to lr=")
    assert "torch.optim.SGD(" in text_at(finding)


def test_a_rate_that_makes_the_loss_grow() -> None:
    def loop() -> None:
        model = mlp()
        train(model, adam(model, 1.0), 25)

    assert "OPT002" in loud(loop)


def test_a_rate_that_is_too_low() -> None:
    def loop() -> None:
        model = mlp()
        train(model, adam(model, 1e-6), 40)

    finding = loud(loop)["OPT003"]
    assert finding.evidence["learning_rate"] == 1e-6
    assert finding.evidence["largest_update"] < 1e-4
    assert "torch.optim.Adam(" in text_at(finding)
    # What a sound run's first steps change, and a rate at which none is found too low or too high.
    [patch] = finding.fixes[0].patches
    rate = 1e-6 * patch.values["factor"]
    assert 0.01 < patch.values["factor"] * finding.evidence["largest_update"] < 0.1

    def faster() -> None:
        model = mlp()
        train(model, adam(model, rate), 40)

    assert not loud(faster)


def test_steps_of_units_that_are_dead_say_nothing_of_the_rate() -> None:
    def loop() -> None:
        model = mlp()
        nn.init.constant_(model[2].bias, -1e4)
        train(model, torch.optim.SGD(model.parameters(), 0.1), 40)

    assert "OPT003" not in found(loop)


class Probabilities(nn.Module):
    """Its softmax stands in front of that of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).softmax(1)


class Sigmoids(nn.Module):
    """Six in series."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [8, 16, 16, 16, 16, 16, 16]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Sigmoid())]
        self.net = nn.Sequential(*layers, nn.Linear(16, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize(("made", "code"), [(Probabilities, "LOS001"), (Sigmoids, "ARC008")])
def test_a_rate_that_looks_too_low_stands_under_what_makes_gradients_small(
    made: type[nn.Module], code: str
) -> None:
    with construction_sites(), trainlint.watch(every=1) as w:
        model = made()
        train(model, sgd(model, 2e-4), 60)
    (finding,) = (f for f in w.report().findings if f.severity != "info")
    assert finding.code == code
    assert "OPT003" in [symptom.code for symptom in finding.symptoms]


@pytest.mark.parametrize(("rate", "better"), [(0.01, None), (1e-5, 0.5)])
def test_a_suggested_rate_is_one_that_sound_runs_have(rate: float, better: float | None) -> None:
    def loop() -> None:
        model = mlp()
        optimizer = sgd(model, rate)
        for _ in range(40):
            x = torch.randn(64, 8)
            loss = 0.01 * functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    fixes = loud(loop)["OPT003"].fixes
    titles = [fix.title for fix in fixes]
    assert [fix.title for fix in fixes if "raise" in fix.title] == (
        [] if better is None else [f"raise the learning rate to lr={better:g}"]
    )
    assert any("range test" in title for title in titles)
    assert any("so small" in title for title in titles) == (better is None)


def test_a_rate_that_threw_the_weights_far_is_not_called_too_low_as_well() -> None:
    def loop() -> None:
        torch.manual_seed(0)
        model = mlp()
        optimizer = sgd(model, 0.05)
        for _ in range(60):
            x = torch.randn(32, 8)
            loss = functional.cross_entropy(model(300 * x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert not {"OPT002", "OPT003"} <= set(found(loop))


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 3e-2])
def test_rates_that_learn_are_sound(rate: float) -> None:
    def loop() -> None:
        model = mlp()
        train(model, adam(model, rate), 40)

    assert not loud(loop)


def test_a_trained_model_at_a_low_rate_is_sound() -> None:
    model = mlp()
    train(model, adam(model, 1e-2), 150)
    assert not loud(lambda: train(model, adam(model, 1e-6), 30))


def test_a_warm_up_that_is_under_way_is_sound() -> None:
    def loop() -> None:
        model = mlp()
        optimizer = adam(model)
        schedule = lr_scheduler.LambdaLR(optimizer, lambda step: step / 10_000)
        train(model, optimizer, 40, schedule.step)

    assert not loud(loop)


def test_a_low_rate_for_a_loss_without_a_known_guess_is_advice() -> None:
    def loop() -> None:
        model = mlp()
        optimizer = adam(model, 5e-7)
        for _ in range(30):
            loss = -functional.logsigmoid(model(torch.randn(32, 8))[:, 0]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert found(loop)["OPT003"].severity == "info"


def test_branches_that_start_at_zero_are_sound() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = mlp(32).requires_grad_(False)
            self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 32, bias=False)
            self.head = nn.Linear(32, 2).requires_grad_(False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.base(x) + self.up(self.down(x)))  # type: ignore[no-any-return]

    def loop() -> None:
        model = Adapted()
        train(model, torch.optim.AdamW([*model.down.parameters(), *model.up.parameters()], 1e-3))

    assert "OPT002" not in found(loop)


# ---------------------------------------------------------------------- weight decay


def test_a_decay_that_takes_the_weights() -> None:
    def loop() -> None:
        model = mlp()
        train(model, sgd(model, 0.1, 0.5), 40)

    finding = loud(loop)["OPT004"]
    assert finding.evidence["shrinkage"] == pytest.approx(0.05)
    assert finding.evidence["left"] < 0.9
    assert "torch.optim.SGD(" in text_at(finding)


def test_a_decay_that_adam_makes_whole_steps_of() -> None:
    def loop() -> None:
        model = mlp()
        train(model, adam(model, 1e-2, 5.0), 40)

    results = found(loop)
    assert results["OPT004"].evidence["decay_over_gradient"] > 10
    assert results["OPT008"].severity == "info"
    assert "AdamW" in results["OPT008"].fixes[0].title


def test_a_usual_decay_times_a_far_rate_is_a_matter_of_the_rate() -> None:
    def loop(rate: float, decay: float) -> Callable[[], None]:
        def run() -> None:
            model = mlp()
            optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
            train(model, optimizer, 40)

        return run

    finding = found(loop(0.5, 0.01))["OPT004"]
    assert finding.fixes[0].title == "lower the learning rate to lr=0.001"
    assert [patch.kind for patch in finding.fixes[0].patches] == ["learning-rate"]
    finding = found(loop(1e-3, 10.0))["OPT004"]
    assert finding.fixes[0].title == "weaken the decay to weight_decay=0.01"


@pytest.mark.parametrize("steps", [30, 60])
def test_a_far_rate_at_which_nothing_is_learnt_is_shown(steps: int) -> None:
    def run() -> None:
        model = mlp()
        train(model, torch.optim.AdamW(model.parameters(), lr=3.0, weight_decay=0.01), steps)

    finding = found(run)["OPT004"]
    assert (finding.severity == "warning") is (steps == 60)
    assert finding.message.endswith("nothing is learnt") is (steps == 60)


def test_a_rate_and_what_the_decay_makes_of_it_are_one_finding() -> None:
    def loop() -> None:
        model = mlp()
        train(model, sgd(model, 50.0, 1e-4), 40)

    with construction_sites(), trainlint.watch(every=1) as w:
        loop()
    codes = {f.code: [s.code for s in f.symptoms] for f in w.report().findings}
    assert "OPT004" in codes["OPT002"]
    assert "OPT004" not in codes


def test_usual_decays_are_at_most_advice() -> None:
    def loop() -> None:
        model = mlp()
        train(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))

    results = found(loop)
    assert list(results) == ["OPT005"]
    assert results["OPT005"].evidence["parameters"] == ["0.bias", "2.bias", "4.bias"]


# ---------------------------------------------------------------------- schedules


def schedule(
    make: Callable[[Optimizer], lr_scheduler.LRScheduler], per_batch: bool
) -> Callable[[], None]:
    def loop() -> None:
        model = mlp()
        optimizer = sgd(model)
        scheduler = make(optimizer)
        for _ in range(4):
            train(model, optimizer, 30, scheduler.step if per_batch else lambda: None)
            if not per_batch:
                scheduler.step()

    return loop


@pytest.mark.parametrize(
    ("make", "per_batch", "words"),
    [
        (lambda o: lr_scheduler.LambdaLR(o, lambda e: min(1, e / 3)), False, "is 0 in 30 of 120"),
        (lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 50), True, "is 0 in 70 of 120"),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.7), True, "below 0.0001 of its largest"),
        (lambda o: lr_scheduler.StepLR(o, 10), True, "below 0.0001 of its largest"),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 10), True, "rises again"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 120), False, "hardly begun"),
    ],
)
def test_schedules_in_the_wrong_rhythm(
    make: Callable[[Optimizer], lr_scheduler.LRScheduler], per_batch: bool, words: str
) -> None:
    finding = loud(schedule(make, per_batch), every=9)["OPT006"]
    assert words in finding.message
    assert "scheduler.step" in text_at(finding) or "after()" in text_at(finding)


@pytest.mark.parametrize(
    ("make", "per_batch"),
    [
        (lambda o: lr_scheduler.StepLR(o, 1), False),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 120), True),
        (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10), True),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 121), True),
        (lambda o: lr_scheduler.LambdaLR(o, lambda s: 0.5 + 0.5 * math.cos(s / 40)), True),
        (lambda o: lr_scheduler.LinearLR(o, 1e-3, 1.0, 20), True),
    ],
)
def test_schedules_in_their_own_rhythm_are_sound(
    make: Callable[[Optimizer], lr_scheduler.LRScheduler], per_batch: bool
) -> None:
    assert "OPT006" not in found(schedule(make, per_batch), every=9)


@pytest.mark.parametrize(("ahead", "is_fault"), [(1, True), (5, False)])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_schedule_before_the_first_step_and_one_that_is_wound_forward(
    ahead: int, is_fault: bool
) -> None:
    def loop() -> None:
        model = mlp()
        optimizer = sgd(model)
        scheduler = lr_scheduler.StepLR(optimizer, 10, 0.5)
        for _ in range(ahead):
            scheduler.step()
        train(model, optimizer, 10)

    assert ("OPT006" in found(loop)) is is_fault


# ---------------------------------------------------------------------- frozen-parameters


def frozen(*layers: int) -> Callable[[], None]:
    def loop() -> None:
        model = nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)
        )
        for layer in layers:
            model[layer].requires_grad_(False)
        train(model, sgd(model))

    return loop


def test_a_frozen_end_behind_layers_that_learn() -> None:
    finding = loud(frozen(2, 4))["OPT007"]
    assert finding.evidence["share"] > 0.5
    assert "model[4]" in finding.message
    assert "nn.Linear(32, 8)" in text_at(finding)


@pytest.mark.parametrize("layers", [(), (0,), (0, 2)])
def test_a_frozen_beginning_is_sound(layers: tuple[int, ...]) -> None:
    assert "OPT007" not in found(frozen(*layers))


def test_an_optimizer_that_never_steps_is_no_schedule() -> None:
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainlint.watch(model, optimizer) as w:
        torch.optim.lr_scheduler.StepLR(optimizer, 2)
        model(torch.randn(4, 8)).sum().backward()
    (target,) = w.report().targets
    assert (target.status, target.reason) == ("ok", None)


# ---------------------------------------------------------------------- unscaled-accumulation


def accumulated(
    divisor: float, make: Callable[[nn.Module], Optimizer] = sgd, passes: int = 4
) -> Callable[[], None]:
    def loop() -> None:
        model = mlp()
        optimizer = make(model)
        for _ in range(20):
            optimizer.zero_grad()
            for _ in range(passes):
                x = torch.randn(16, 8)
                loss = functional.cross_entropy(model(x), (x[:, 0] > 0).long())
                (loss / divisor).backward()
            optimizer.step()

    return loop


def test_gradients_of_micro_batches_that_are_summed_up() -> None:
    finding = found(accumulated(1.0))["OPT009"]
    assert finding.severity == "info"
    assert finding.evidence == {"backward_passes": 4, "learning_rate": 0.1}
    assert "0.4" in finding.message
    assert "cross_entropy" in text_at(finding)


def two_losses() -> None:
    model = mlp()
    optimizer = sgd(model)
    for _ in range(20):
        x = torch.randn(16, 8)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        functional.cross_entropy(model(-x), (x[:, 1] > 0).long()).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "loop",
    [accumulated(4.0), accumulated(1.0, adam), accumulated(1.0, passes=1), two_losses],
    ids=["divided", "Adam", "no accumulation", "two losses"],
)
def test_accumulation_that_is_sound(loop: Callable[[], None]) -> None:
    assert "OPT009" not in found(loop)


# ---------------------------------------------------------------------- hyperparameter-out-of-range


def with_options(kind: type[Optimizer], **options: object) -> Callable[[], None]:
    def loop() -> None:
        model = mlp()
        train(model, kind(model.parameters(), lr=1e-3, **options), 5)  # type: ignore[call-arg]

    return loop


@pytest.mark.parametrize(
    ("kind", "options", "option", "fix"),
    [
        (torch.optim.Adam, {"betas": (0.999, 0.9)}, "betas", "betas=(0.9, 0.999)"),
        (torch.optim.AdamW, {"betas": (0.99, 0.5)}, "betas", "betas=(0.5, 0.99)"),
        (torch.optim.Adam, {"eps": 0.0}, "eps", "eps=1e-08"),
        (torch.optim.RMSprop, {"eps": 1e8}, "eps", "eps=1e-08"),
        (torch.optim.SGD, {"momentum": 1.0}, "momentum", "momentum=0.9"),
        (torch.optim.SGD, {"momentum": 0.9, "dampening": 1.0}, "dampening", "dampening=0"),
        (torch.optim.RMSprop, {"alpha": 0.01}, "alpha", "alpha=0.99"),
        (torch.optim.RMSprop, {"alpha": 1.0}, "alpha", "alpha=0.99"),
    ],
)
def test_an_option_that_is_out_of_range(
    kind: type[Optimizer], options: dict[str, object], option: str, fix: str
) -> None:
    finding = loud(with_options(kind, **options))["OPT010"]
    assert finding.evidence["option"] == option
    assert finding.fixes[0].title == f"set {fix}"
    assert "kind(model.parameters()" in text_at(finding)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"betas": (0.0, 0.9)}),
        (torch.optim.Adam, {"betas": (0.5, 0.999), "eps": 1e-4}),
        (torch.optim.AdamW, {"betas": (0.9, 0.95)}),
        (torch.optim.NAdam, {"betas": (0.95, 0.95)}),
        (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1.0, "momentum": 0.9}),
        (torch.optim.SGD, {"momentum": 0.99, "nesterov": True}),
        (torch.optim.SGD, {"dampening": 1.0}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_options_that_are_in_use(kind: type[Optimizer], options: dict[str, object]) -> None:
    assert "OPT010" not in found(with_options(kind, **options))


@pytest.mark.parametrize(("limit", "is_fault"), [(0.0, True), (1.0, False), (math.inf, False)])
def test_clipping_to_nothing(limit: float, is_fault: bool) -> None:
    def loop() -> None:
        model = mlp()
        optimizer = sgd(model)
        for _ in range(5):
            x = torch.randn(16, 8)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()

    findings = found(loop)
    assert ("OPT010" in findings) is is_fault
    if is_fault:
        assert findings["OPT010"].severity == "error"
        assert "clip_grad_norm_" in text_at(findings["OPT010"])


# ---------------------------------------------------------------------- what cannot be measured


def unmeasured(loop: Callable[[], object]) -> list[str]:
    with trainlint.watch(every=1) as w:
        loop()
    return w.report().targets[0].not_measurable


def test_few_steps_are_said_to_be_few() -> None:
    def loop() -> None:
        model = mlp()
        train(model, adam(model, 1e-7), 12)

    told = unmeasured(loop)
    assert "OPT003 learning-rate-too-low: 12 of 20 steps were seen" in told
    assert "LOS008 loss-never-moves: 12 of 50 steps were seen" in told
    assert "ACT001 dead-relu: 12 of 20 steps were seen" in told


def test_a_rate_that_still_rises_is_not_judged() -> None:
    def loop() -> None:
        model = mlp()
        optimizer = adam(model, 1e-3)
        schedule = lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 1e6)
        train(model, optimizer, 40, schedule.step)

    assert any(text.startswith("OPT003") and "rising" in text for text in unmeasured(loop))


def test_weights_that_hardly_moved_say_nothing_of_the_loss() -> None:
    def loop() -> None:
        model = mlp()
        train(model, sgd(model, 1e-5), 80)

    assert "OPT003" in loud(loop)
    assert any(text.startswith("LOS008") and "moved" in text for text in unmeasured(loop))


def epsilon(rate: float, eps: float) -> Callable[[], None]:
    def loop() -> None:
        model = mlp()
        train(model, torch.optim.Adam(model.parameters(), lr=rate, eps=eps), 60)

    return loop


def test_an_epsilon_beside_which_the_gradients_are_nothing() -> None:
    with construction_sites(), trainlint.watch(every=1) as w:
        epsilon(1e-3, 1.0)()
    (finding,) = (f for f in w.report().findings if f.severity != "info")
    assert finding.code == "OPT010"
    assert finding.fixes[0].title == "set eps=1e-08"
    assert "OPT003" in [symptom.code for symptom in finding.symptoms]


@pytest.mark.parametrize(("rate", "eps"), [(10.0, 1.0), (1e-3, 1e-3)])
def test_an_epsilon_with_a_rate_that_goes_with_it_is_sound(rate: float, eps: float) -> None:
    assert "OPT010" not in found(epsilon(rate, eps))


def carried(rate: float, momentum: float) -> Callable[[], None]:
    def loop() -> None:
        model = mlp()
        train(model, torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum), 100)

    return loop


def test_a_momentum_that_runs_past_what_it_found() -> None:
    finding = loud(carried(0.05, 0.9995))["OPT010"]
    assert finding.evidence == {"option": "momentum", "value": 0.9995}
    assert finding.fixes[0].title == "set momentum=0.9"


@pytest.mark.parametrize(("rate", "momentum"), [(1e-5, 0.9995), (1e-3, 0.999), (0.05, 0.9)])
def test_a_momentum_that_learns_or_has_yet_to_learn_is_sound(rate: float, momentum: float) -> None:
    assert "OPT010" not in found(carried(rate, momentum))
