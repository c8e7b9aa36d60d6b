"""Losses of passes that nothing is trained by, as the trace of a watched loop has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.observe.evaluations import EACH

Losses = list[list[float]]


def data(samples: int, seed: int) -> TensorDataset:
    x = torch.randn(samples, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long())


class Training:
    """A small loop whose parts tests put together."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.Linear(16, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.train_loader = DataLoader(data(64, 1), batch_size=16)
        self.val_loader = DataLoader(data(48, 2), batch_size=16)

    def epoch(self) -> None:
        self.model.train()
        for x, y in self.train_loader:
            self.step(x, y)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    @torch.no_grad()
    def losses(self, loader: Any) -> list[float]:
        self.model.eval()
        return [functional.cross_entropy(self.model(x), y).item() for x, y in loader]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_each_pass_over_validation_data_is_one_mean_loss() -> None:
    training = Training()
    seen = []
    with trainlint.watch() as w:
        for _ in range(3):
            training.epoch()
            seen.append(mean(training.losses(training.val_loader)))
    (found,) = w.trace.evaluations
    assert found.kind == "cross_entropy"
    assert list(found.steps) == [4, 8, 12]
    assert list(found.values) == pytest.approx(seen)
    assert not found.on_training_data
    assert found.site is not None
    assert found.site.filename == __file__


def test_training_losses_are_those_of_training_alone() -> None:
    training = Training()
    with trainlint.watch(every=1) as w:
        for _ in range(2):
            training.epoch()
            training.losses(training.val_loader)
    (objective,) = w.trace.objectives
    assert list(objective.steps) == list(range(8))


def test_the_training_data_evaluated_by_the_same_function_are_told_apart() -> None:
    training = Training()
    on_training, on_validation = [], []
    with trainlint.watch() as w:
        for _ in range(2):
            training.epoch()
            on_training.append(mean(training.losses(training.train_loader)))
            on_validation.append(mean(training.losses(training.val_loader)))
    found = {trace.on_training_data: trace for trace in w.trace.evaluations}
    assert list(found[True].values) == pytest.approx(on_training)
    assert list(found[False].values) == pytest.approx(on_validation)


class Drawn(Training):
    """Without loaders: batches are drawn, and functions evaluate what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.data = {"train": torch.randn(48, 8), "val": torch.randn(16, 8)}

    def batch(self, split: str) -> tuple[Tensor, Tensor]:
        x = self.data[split][torch.randint(len(self.data[split]), (8,))]
        return x, (x[:, 0] > 0).long()

    def train(self) -> None:
        self.model.train()
        self.step(*self.batch("train"))

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> float:
        self.model.eval()
        return functional.cross_entropy(self.model(x), y).item()


def by_a_variable(drawn: Drawn) -> dict[str, float]:
    out = {}
    for split in ("train", "val"):
        out[split] = mean([drawn.loss(*drawn.batch(split)) for _ in range(3)])
    return out


def by_a_variable_of_an_earlier_call(drawn: Drawn) -> dict[str, float]:
    out = {}
    for split in ("train", "val"):
        x, y = drawn.batch(split)
        out[split] = drawn.loss(x, y)
    return out


def by_the_names_of_arguments(drawn: Drawn) -> dict[str, float]:
    x_train, y_train = drawn.batch("train")
    x_val, y_val = drawn.batch("val")
    return {"train": drawn.loss(x_train, y_train), "val": drawn.loss(x_val, y_val)}


@pytest.mark.parametrize(
    "evaluate", [by_a_variable, by_a_variable_of_an_earlier_call, by_the_names_of_arguments]
)
def test_data_without_a_loader_are_told_apart_by_what_the_code_calls_them(
    evaluate: Callable[[Drawn], dict[str, float]],
) -> None:
    drawn, seen = Drawn(), []
    with trainlint.watch() as w:
        for _ in range(3):
            drawn.train()
            seen.append(evaluate(drawn))
    found = {trace.on_training_data: trace for trace in w.trace.evaluations}
    assert len(w.trace.evaluations) == 2
    assert list(found[True].values) == pytest.approx([each["train"] for each in seen])
    assert list(found[False].values) == pytest.approx([each["val"] for each in seen])


def test_a_variable_that_always_says_the_same_says_nothing() -> None:
    drawn, phase = Drawn(), "train"
    with trainlint.watch() as w:
        for _ in range(3):
            drawn.train()
            x, y = drawn.batch("val")
            drawn.loss(x, y)
    (found,) = w.trace.evaluations
    assert phase == "train"
    assert not found.on_training_data


def test_validation_in_the_middle_of_an_epoch() -> None:
    training = Training()
    with trainlint.watch() as w:
        for number, (x, y) in enumerate(training.train_loader):
            training.model.train()
            training.step(x, y)
            if number == 1:
                seen = mean(training.losses(training.val_loader))
    (found,) = w.trace.evaluations
    assert (list(found.steps), list(found.values)) == ([2], pytest.approx([seen]))
    assert not found.on_training_data


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (functional.cross_entropy, lambda y: y),
        (functional.cross_entropy, lambda y: y.where(torch.arange(len(y)) % 3 > 0, -100)),
        (functional.cross_entropy, lambda y: functional.one_hot(y, 2).float()),
        (functional.mse_loss, lambda y: functional.one_hot(y, 2).float()),
        (nn.CrossEntropyLoss, lambda y: y),
    ],
)
def test_a_sum_over_the_batch_counts_as_its_mean(loss: Any, targets: Any) -> None:
    """Many scripts add up sums, and divide by the number of samples at the end."""
    training = Training()
    seen = []

    def of(scores: Tensor, y: Tensor, reduction: str) -> Tensor:
        if isinstance(loss, type):
            found: Tensor = loss(reduction=reduction)(scores, targets(y))
        else:
            found = loss(scores, targets(y), reduction=reduction)
        return found

    with trainlint.watch() as w:
        training.epoch()
        training.model.eval()
        with torch.no_grad():
            for x, y in training.val_loader:
                of(training.model(x), y, "sum")
    with torch.no_grad():
        for x, y in training.val_loader:
            seen.append(of(training.model(x), y, "mean").item())
    (found,) = w.trace.evaluations
    assert list(found.values) == pytest.approx([mean(seen)])


class ReturnsLoss(nn.Module):
    """A model that computes its loss itself, as language models do."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.form = form

    def forward(self, x: Tensor, y: Tensor) -> Any:
        scores = self.layer(x)
        return self.form(scores, functional.cross_entropy(scores, y))


@pytest.mark.parametrize(
    ("form", "take"),
    [
        (lambda scores, loss: (scores, loss), lambda out: out[1]),
        (lambda scores, loss: {"loss": loss, "scores": scores}, lambda out: out["loss"]),
        (lambda _, loss: loss, lambda out: out),
    ],
)
def test_a_loss_that_the_model_returns(form: Any, take: Any) -> None:
    training = Training()
    model = ReturnsLoss(form)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainlint.watch() as w:
        for x, y in training.train_loader:
            optimizer.zero_grad()
            take(model(x, y)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            seen = [take(model(x, y)).item() for x, y in training.val_loader]
    (found,) = w.trace.evaluations
    assert (found.kind, list(found.steps)) == ("", [4])
    assert list(found.values) == pytest.approx([mean(seen)])


def test_of_a_long_pass_fewer_batches_stand_for_all() -> None:
    """A loss that rises evenly over the pass has the mean that all batches together have."""
    training = Training()
    calls: list[bool] = []

    class Noting(nn.Module):
        def forward(self, scores: Tensor, level: Tensor) -> Tensor:
            calls.append(bool(_get_current_function_mode_stack()))
            return functional.mse_loss(scores * 0, level)

    criterion = Noting()
    batches = 8 * EACH
    with trainlint.watch() as w:
        training.epoch()
        training.model.eval()
        with torch.no_grad():
            for number in range(batches):
                scores = training.model(torch.randn(4, 8))
                criterion(scores, torch.full_like(scores, float(number) ** 0.5))
    (found,) = w.trace.evaluations
    assert sum(calls) < len(calls) / 3
    assert found.values[0] == pytest.approx((batches - 1) / 2, rel=0.05)


def test_a_forward_without_a_graph_inside_of_a_training_step_is_no_evaluation() -> None:
    """Targets from the model itself, as in Q-learning: the loss that follows is trained by."""
    training = Training()
    modes = []
    with trainlint.watch() as w:
        for x, _ in [*training.train_loader] * 10:
            with torch.no_grad():
                targets = training.model(x).amax(1, keepdim=True).expand(-1, 2)
            modes.append(bool(_get_current_function_mode_stack()))
            training.optimizer.zero_grad()
            functional.mse_loss(training.model(x), targets).backward()
            training.optimizer.step()
    assert list(w.trace.evaluations) == []
    # It soon stops looking out for a loss there.
    assert not any(modes[-20:])


def test_nothing_is_left_on_and_nothing_changes() -> None:
    def run(watched: bool) -> tuple[Losses, Tensor]:
        training = Training()
        losses: Losses = []

        def loop() -> None:
            for _ in range(3):
                training.epoch()
                losses.append(training.losses(training.val_loader))

        if watched:
            with trainlint.watch():
                loop()
            assert not _get_current_function_mode_stack()
        else:
            loop()
        return losses, torch.cat([p.detach().reshape(-1) for p in training.model.parameters()])

    with_watch, without = run(True), run(False)
    assert with_watch[0] == without[0]
    assert torch.equal(with_watch[1], without[1])


def test_what_is_evaluated_but_never_trained_is_not_looked_at() -> None:
    training = Training()
    with trainlint.watch() as w:
        training.losses(training.val_loader)
    assert list(w.trace.evaluations) == []
