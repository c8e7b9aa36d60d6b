"""Rules on the losses of a watched loop: what they find, at which line, and what they leave alone."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import trainlint
from trainlint.records import ReportedFinding


@pytest.fixture(autouse=True)
def _small_and_the_same() -> Iterator[None]:
    torch.manual_seed(0)
    random.seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def found(
    loop: Callable[[], None], error: type[Exception] | None = None
) -> dict[str, ReportedFinding]:
    """The findings on the loop by code, symptoms included. It must end with `error`, if given."""
    watch = trainlint.watch(every=1, select=["LOS", "GRD003"])
    if error is None:
        with watch:
            loop()
    else:
        with pytest.raises(error), watch:
            loop()
    assert [target.status for target in watch.report().targets] == ["ok"]
    return {f.code: f for finding in watch.findings for f in (finding, *finding.symptoms)}


def row_of(loop: Callable[[], None]) -> int:
    """The row of the line that ends with `# here`."""
    lines, first = inspect.getsourcelines(loop)
    return first + next(i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))


def row(finding: ReportedFinding) -> int:
    assert Path(finding.filename or "").name == Path(__file__).name
    assert finding.location is not None
    return finding.location.row


def mlp(outputs: int, *last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs), *last)


def trained(
    model: nn.Module, loss_of: Callable[[Tensor], Tensor], *, steps: int = 12, lr: float = 1e-3
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        loss = loss_of(torch.randn(32, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def classes(x: Tensor, count: int = 4) -> Tensor:
    return x[:, :count].argmax(1)


# ---------------------------------------------------------------------- LOS005


def a_column_with_a_row() -> None:
    model = mlp(1)
    trained(model, lambda x: F.l1_loss(model(x), x[:, 0]))  # here


def a_row_with_a_column() -> None:
    model = mlp(1)
    trained(model, lambda x: ((model(x).squeeze(1) - x[:, :1]) ** 2).mean())  # here


def maps_with_and_without_channel() -> None:
    model = nn.Conv2d(3, 1, 3, padding=1)

    def loss_of(_: Tensor) -> Tensor:
        x = torch.randn(4, 3, 6, 6)
        return F.smooth_l1_loss(model(x), x[:, 0])  # here

    trained(model, loss_of)
    maps_with_and_without_channel.inner = loss_of  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("loop", "operation", "prediction"),
    [
        (a_column_with_a_row, "l1_loss", [32, 1]),
        (a_row_with_a_column, "sub", [32]),
        (maps_with_and_without_channel, "smooth_l1_loss", [4, 1, 6, 6]),
    ],
)
def test_broadcast_loss(loop: Callable[[], None], operation: str, prediction: list[int]) -> None:
    finding = found(loop)["LOS005"]
    assert finding.evidence["operation"] == operation
    assert finding.evidence["prediction"] == prediction
    assert row(finding) == row_of(loop)


def thresholds_of_an_ordinal_model() -> None:
    model, cuts = mlp(1), nn.Parameter(torch.linspace(-1, 1, 32))

    def loss_of(x: Tensor) -> Tensor:
        targets = (x[:, :1] > cuts.detach()).float()
        return F.binary_cross_entropy_with_logits(model(x) - cuts, targets)

    trained(model, loss_of)


def a_table_that_is_asked_for() -> None:
    model = mlp(1)

    def loss_of(x: Tensor) -> Tensor:
        scores, targets = model(x), x[:, 0]
        return F.softplus(targets[None, :] - scores).mean()

    trained(model, loss_of)


# ---------------------------------------------------------------------- LOS006


def squared_error_of_a_sigmoid() -> None:
    model = mlp(1, nn.Sigmoid())
    trained(model, lambda x: F.mse_loss(model(x), (x[:, :1] > 0).float()))  # here


def squared_error_of_a_softmax() -> None:
    model = mlp(4, nn.Softmax(dim=1))
    trained(model, lambda x: F.mse_loss(model(x), F.one_hot(classes(x)).float()))  # here


def squared_error_of_class_numbers() -> None:
    model = mlp(1)
    trained(model, lambda x: F.mse_loss(model(x)[:, 0], classes(x).float()))  # here


@pytest.mark.parametrize(
    ("loop", "severity"),
    [
        (squared_error_of_a_sigmoid, "warning"),
        (squared_error_of_a_softmax, "warning"),
        (squared_error_of_class_numbers, "info"),
    ],
)
def test_regression_loss_for_classes(loop: Callable[[], None], severity: str) -> None:
    finding = found(loop)["LOS006"]
    assert finding.severity == severity
    assert row(finding) == row_of(loop)


def an_autoencoder_of_bits() -> None:
    model = nn.Sequential(nn.Linear(8, 3), nn.Sigmoid(), nn.Linear(3, 8), nn.Sigmoid())

    def loss_of(_: Tensor) -> Tensor:
        x = torch.eye(8)[torch.randint(0, 8, (32,))]
        return F.mse_loss(model(x), x)

    trained(model, loss_of)


def counts_of_events() -> None:
    model = mlp(1)
    trained(model, lambda x: F.mse_loss(model(x), torch.poisson(x[:, :1].exp())))


def a_least_squares_critic() -> None:
    model = mlp(1)
    targets = torch.cat([torch.ones(16, 1), torch.zeros(16, 1)])
    trained(model, lambda x: F.mse_loss(model(x), targets))


# ---------------------------------------------------------------------- LOS007


def one_class_too_many() -> None:
    model, step = mlp(9), iter(range(100))

    def loss_of(x: Tensor) -> Tensor:
        targets = torch.full((32,), 9 if next(step) == 7 else 3)
        targets[1:] = 0
        return F.cross_entropy(model(x), targets)  # here

    one_class_too_many.inner = loss_of  # type: ignore[attr-defined]
    trained(model, loss_of)


def test_the_class_that_raised_is_named_though_its_step_was_not_recorded() -> None:
    watch = trainlint.watch(every=50)
    with pytest.raises(IndexError), watch:
        one_class_too_many()
    [finding] = [finding for finding in watch.findings if finding.code == "LOS007"]
    assert {"classes": 9, "largest": 9, "outside": 1, "step": 7}.items() <= finding.evidence.items()
    assert finding.fixes[0].title.startswith("give the last layer 10 outputs")
    assert row(finding) == row_of(one_class_too_many)


@pytest.mark.parametrize(
    ("targets", "title"),
    [
        (torch.arange(32) % 4 + 1, "targets - 1"),
        (torch.where(torch.arange(32) < 3, 255, 1), "ignore_index=255"),
        (torch.where(torch.arange(32) < 3, -1, 1), "ignore_index=-1"),
    ],
)
def test_what_to_do_with_targets_that_are_no_class(targets: Tensor, title: str) -> None:
    def loop() -> None:
        model = mlp(4)
        trained(model, lambda x: F.cross_entropy(model(x), targets))

    assert title in found(loop, IndexError)["LOS007"].fixes[0].title


def a_mask_of_bytes() -> None:
    model = mlp(1)

    def loss_of(x: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x), (x[:, :1] > 0) * 255.0)  # here

    trained(model, loss_of)


def test_a_loss_without_a_bound() -> None:
    finding = found(a_mask_of_bytes)["LOS007"]
    assert finding.evidence["largest"] == 255
    assert finding.fixes[0].title.endswith("targets / 255")
    assert row(finding) == row_of(a_mask_of_bytes)


def test_probabilities_that_are_refused() -> None:
    def loop() -> None:
        model = mlp(1, nn.Sigmoid())
        trained(model, lambda x: F.binary_cross_entropy(model(x), (x[:, :1] > 0) + 1.0))

    finding = found(loop, RuntimeError)["LOS007"]
    assert finding.fixes[0].title.endswith("targets - 1")


def test_a_batch_without_a_target_explains_the_nan() -> None:
    def loop() -> None:
        model, step = mlp(4), iter(range(100))

        def loss_of(x: Tensor) -> Tensor:
            return F.cross_entropy(model(x), classes(x) * (next(step) != 3), ignore_index=0)

        trained(model, loss_of)

    watch = trainlint.watch(every=1)
    with watch:
        loop()
    [finding] = [finding for finding in watch.findings if finding.code == "LOS007"]
    assert finding.evidence["batches"] == 1
    assert [symptom.code for symptom in finding.symptoms] == ["GRD003"]


def targets_that_are_masked() -> None:
    model = mlp(4)

    def loss_of(x: Tensor) -> Tensor:
        targets = torch.where(torch.rand(32, 4) < 0.3, -1.0, (x[:, :4] > 0).float())
        losses = F.binary_cross_entropy_with_logits(model(x), targets, reduction="none")
        return losses[targets >= 0].mean()

    trained(model, loss_of)


def noisy_labels_of_a_critic() -> None:
    model = mlp(1)
    trained(
        model,
        lambda x: F.binary_cross_entropy_with_logits(
            model(x), torch.empty(32, 1).uniform_(0.7, 1.2)
        ),
    )


# ---------------------------------------------------------------------- LOS008


def labels_of_nothing() -> None:
    model = mlp(2)

    def loss_of(x: Tensor) -> Tensor:
        scores = model(x.repeat(8, 1))
        return F.cross_entropy(scores, torch.randint(0, 2, (256,)))  # here

    trained(model, loss_of, steps=80)


def test_loss_never_moves() -> None:
    finding = found(labels_of_nothing)["LOS008"]
    assert finding.evidence["steps"] == 80
    assert finding.evidence["constant_answer"] == pytest.approx(0.693, abs=0.001)
    assert row(finding) == row_of(labels_of_nothing)


def warm_up() -> None:
    model = mlp(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 1000)
    for _ in range(60):
        x = torch.randn(32, 8)
        loss = F.cross_entropy(model(x), classes(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def mixed_up() -> None:
    model = mlp(4)

    def loss_of(x: Tensor) -> Tensor:
        share, order = random.betavariate(0.2, 0.2), torch.randperm(32)
        scores = model(share * x + (1 - share) * x[order])
        return share * F.cross_entropy(scores, classes(x)) + (1 - share) * F.cross_entropy(
            scores, classes(x)[order]
        )

    trained(model, loss_of, steps=60)


def slowly_falling_from_high_above_a_guess() -> None:
    model, words = nn.Linear(8, 2000), torch.arange(1.0, 2001).reciprocal()

    def loss_of(x: Tensor) -> Tensor:
        return F.cross_entropy(model(x), torch.multinomial(words, 32, replacement=True))

    trained(model, loss_of, steps=60, lr=3e-3)


# ---------------------------------------------------------------------- LOS011


def a_number_made_a_leaf() -> None:
    model = mlp(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        x = torch.randn(32, 8)
        loss = torch.tensor(F.cross_entropy(model(x), classes(x)).item(), requires_grad=True)
        loss.backward()  # here
        optimizer.step()


def a_loss_of_decisions() -> None:
    model = mlp(4)
    x = torch.randn(32, 8)
    F.mse_loss(model(x).argmax(1).float(), classes(x).float()).backward()  # here


def a_model_without_graph() -> None:
    model = mlp(4)
    x = torch.randn(32, 8)
    with torch.no_grad():
        scores = model(x)
    F.cross_entropy(scores, classes(x)).backward()  # here


@pytest.mark.parametrize(
    ("loop", "error", "leaf", "graph"),
    [
        (a_number_made_a_leaf, None, True, True),
        (a_loss_of_decisions, RuntimeError, False, True),
        (a_model_without_graph, RuntimeError, False, False),
    ],
)
def test_detached_loss(
    loop: Callable[[], None], error: type[Exception] | None, leaf: bool, graph: bool
) -> None:
    finding = found(loop, error)["LOS011"]
    assert finding.evidence["is_leaf"] == leaf
    assert finding.evidence["model_had_graph"] == graph
    assert row(finding) == row_of(loop)


def gradients_by_hand() -> None:
    first, second = mlp(4), nn.Linear(4, 4)

    def loss_of(x: Tensor) -> Tensor:
        passed = first(x)
        received = passed.detach().requires_grad_()
        loss = F.cross_entropy(second(received), classes(x))
        loss.backward()
        assert received.grad is not None
        return (passed * received.grad).sum()

    trained(first, loss_of)


# ---------------------------------------------------------------------- LOS001 to LOS004


def softmax_twice() -> None:
    model = mlp(4, nn.Softmax(dim=1))
    trained(model, lambda x: F.cross_entropy(model(x), classes(x)))  # here


def probabilities_without_logarithm() -> None:
    model = mlp(4)
    trained(model, lambda x: F.nll_loss(model(x).softmax(1), classes(x)))  # here


def scores_without_logarithm() -> None:
    model = mlp(4)
    trained(model, lambda x: F.nll_loss(model(x), classes(x)))  # here


def sigmoid_twice() -> None:
    model, loss = mlp(1, nn.Sigmoid()), nn.BCEWithLogitsLoss()
    trained(model, lambda x: loss(model(x).squeeze(1), (x[:, 0] > 0).float()))  # here


def scores_as_probabilities() -> None:
    model, loss = mlp(1), nn.BCELoss()
    trained(model, lambda x: loss(model(x).squeeze(1), (x[:, 0] > 0).float()))  # here


@pytest.mark.parametrize(
    ("loop", "code", "error"),
    [
        (softmax_twice, "LOS001", None),
        (probabilities_without_logarithm, "LOS002", None),
        (scores_without_logarithm, "LOS002", None),
        (sigmoid_twice, "LOS003", None),
        (scores_as_probabilities, "LOS004", RuntimeError),
    ],
)
def test_what_stands_before_a_loss(
    loop: Callable[[], None], code: str, error: type[Exception] | None
) -> None:
    assert row(found(loop, error)[code]) == row_of(loop)


def log_probabilities() -> None:
    model = mlp(4, nn.LogSoftmax(dim=1))
    trained(model, lambda x: F.nll_loss(model(x), classes(x)))


# ---------------------------------------------------------------------- sound loops


@pytest.mark.parametrize(
    "loop",
    [
        thresholds_of_an_ordinal_model,
        a_table_that_is_asked_for,
        an_autoencoder_of_bits,
        counts_of_events,
        a_least_squares_critic,
        targets_that_are_masked,
        noisy_labels_of_a_critic,
        warm_up,
        mixed_up,
        slowly_falling_from_high_above_a_guess,
        gradients_by_hand,
        log_probabilities,
    ],
)
def test_no_loss_rule_speaks_of_a_sound_loop(loop: Callable[[], None]) -> None:
    assert [code for code in found(loop) if code.startswith("LOS")] == []
