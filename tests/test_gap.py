"""The gap between training and validation: its statistics, how samples are scored, what is said of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.config import Config
from trainlint.data.pool import pool_of
from trainlint.generalization.baselines import constant_loss, linear_scores
from trainlint.generalization.curves import (
    Checkpoint,
    Generalization,
    HeldOut,
    Scores,
    paired,
    student,
    tail,
    welch,
)
from trainlint.generalization.meter import Meter
from trainlint.generalization.scoring import Scorer
from trainlint.observe.trace import EvaluationTrace, LossTrace, Trace
from trainlint.probe.batches import Batch
from trainlint.probe.loop import own_loss
from trainlint.probe.setup import Setup
from trainlint.registry import all_rules
from trainlint.rule import Finding, NotMeasurable, Shift

figures = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))
samples = st.lists(figures, min_size=3, max_size=40)


# ---------------------------------------------------------------------- statistics


@settings(deadline=None)
@given(t=st.floats(-30, 30), freedom=st.floats(1, 1e5))
def test_the_tail_of_students_t_is_that_of_scipy(t: float, freedom: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-7, abs=1e-12)


@settings(deadline=None)
@given(share=st.floats(0.55, 0.999), freedom=st.floats(1, 1e5))
def test_the_quantile_of_students_t_is_that_of_scipy(share: float, freedom: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert student(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-6)


@settings(deadline=None)
@given(first=samples, second=samples)
def test_welch_is_that_of_scipy(first: list[float], second: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = welch(first, second, unit=2.0)
    if len({*first}) == 1 or len({*second}) == 1:
        return
    known = stats.ttest_ind(second, first, equal_var=False, alternative="greater")
    assert found.t == pytest.approx(known.statistic, rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(known.pvalue, rel=1e-5, abs=1e-12)
    assert 2 * found.bound == pytest.approx(known.confidence_interval(0.95).low, rel=1e-5, abs=1e-6)


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(figures, figures), min_size=3, max_size=40))
def test_pairs_are_those_of_scipy(pairs: list[tuple[float, float]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if len({round(b - a, 9) for a, b in pairs}) == 1:
        return
    found = paired(first, second)
    known = stats.ttest_rel(second, first, alternative="greater")
    assert found.t == pytest.approx(known.statistic, rel=1e-5, abs=1e-7)
    assert found.p == pytest.approx(known.pvalue, rel=1e-4, abs=1e-10)


@given(first=samples, second=samples, factor=st.floats(0.1, 100))
def test_a_difference_does_not_depend_on_the_unit_of_the_loss(
    first: list[float], second: list[float], factor: float
) -> None:
    one = welch(first, second, unit=3.0)
    other = welch([v * factor for v in first], [v * factor for v in second], unit=3 * factor)
    assert other.bound == pytest.approx(one.bound, rel=1e-6, abs=1e-6)
    assert one.bound <= one.mean <= one.most


@pytest.mark.parametrize(
    ("first", "second"),
    [([], [1.0]), ([1.0], [2.0]), ([1.0, math.nan], [2.0, 3.0]), ([1.0, 2.0], [math.inf, 3.0])],
)
def test_nothing_is_known_from_one_figure_or_none_or_what_is_not_finite(
    first: list[float], second: list[float]
) -> None:
    assert welch(first, second).bound == -math.inf


def lognormal(generator: random.Random) -> float:
    return math.exp(1.5 * generator.gauss(0, 1))


@pytest.mark.parametrize("draw", [lognormal, lambda g: g.gauss(1, 0.3), lambda g: g.random() ** 8])
@pytest.mark.parametrize(("train", "validation"), [(400, 200), (40, 40), (12, 6), (3, 3)])
def test_samples_of_one_distribution_make_no_gap(
    draw: Callable[[random.Random], float], train: int, validation: int
) -> None:
    """In 5 % by chance where the bound is asked to be above 0; heavy tails and few samples included."""
    generator = random.Random(0)
    mean = sum(draw(generator) for _ in range(20_000)) / 20_000
    alarms = 0
    for _ in range(400):
        first = [draw(generator) for _ in range(train)]
        second = [draw(generator) for _ in range(validation)]
        alarms += welch(first, second, mean).bound > 0.05
    assert alarms <= 0.05 * 400


def curve(means: Sequence[float], *, samples: int = 100, noise: float = 0.3, seed: int = 0) -> Any:
    """Checkpoints with these means of validation loss: each sample has a level, and noise at each."""
    generator = random.Random(seed)
    levels = [generator.gauss(0, 0.5) for _ in range(samples)]
    return [
        Scores([mean + level + generator.gauss(0, noise) for level in levels]) for mean in means
    ]


def measured_as(validation: Sequence[Scores], **changes: Any) -> Generalization:
    train = Scores([0.5 + 0.01 * (n % 7) for n in range(100)])
    points = [Checkpoint(10 * n, train, scores) for n, scores in enumerate(validation)]
    values: dict[str, Any] = {"guess": 1.0, "epochs": 5.0, "samples": 100, **changes}
    return Generalization(points, **values)


def test_the_best_of_several_checkpoints_is_not_taken_for_a_rise() -> None:
    """The last of six points that differ by noise alone lies above the best of them, as it was chosen."""
    alarms, naive = 0, 0
    for seed in range(300):
        found = measured_as(curve([1.0] * 6, seed=seed))
        rise = found.rise()
        since_best = found.rise(since=found.best())
        assert rise is not None
        assert since_best is not None
        alarms += rise.p < 0.05
        naive += since_best.p < 0.05
    assert alarms <= 0.08 * 300
    assert naive > 2 * alarms


def test_a_true_rise_is_found() -> None:
    rise = measured_as(curve([1.0, 0.7, 0.6, 0.7, 0.8, 0.9])).rise()
    assert rise is not None
    assert rise.p < 1e-3
    assert rise.mean == pytest.approx(0.3, abs=0.1)


def test_a_checkpoint_that_is_not_finite_is_not_the_best() -> None:
    points = [*curve([1.0, 0.6]), Scores([math.nan] * 100), *curve([0.9])]
    assert measured_as(points).best().step == 10
    assert measured_as([*curve([1.0, 0.6]), Scores([math.nan] * 100)]).last.validation.error > 1e9


# ---------------------------------------------------------------------- the losses of single samples


class Parts(nn.Module):
    """A linear layer whose output may be put otherwise."""

    def __init__(self, outputs: int = 3, put: Callable[[Tensor], Any] = lambda out: out) -> None:
        super().__init__()
        self.layer = nn.Linear(8, outputs)
        self.put = put

    def forward(self, x: Tensor) -> Any:
        return self.put(self.layer(x))


class OwnLoss(nn.Module):
    """As those of Hugging Face: positions of all samples in one loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.layer(x)
        return {"loss": F.cross_entropy(scores.flatten(0, 1), labels.flatten()), "logits": scores}


def classes(size: int) -> Batch:
    x = torch.randn(size, 8)
    return Batch((x,), {}, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def values(size: int) -> Batch:
    x = torch.randn(size, 8)
    return Batch((x,), {}, 2 * x[:, :1] + 3)


def labels(size: int, count: int = 1) -> Batch:
    x = torch.randn(size, 8)
    return Batch((x,), {}, (x[:, :count] > 0).float())


def tokens(size: int) -> Batch:
    """Sequences of 5 positions, of which up to 3 at the end are to be ignored."""
    x = torch.randn(size, 5, 8)
    y = (x[..., 0] > 0).long() + (x[..., 1] > 0).long()
    y[torch.arange(5) >= torch.randint(2, 6, (size, 1))] = -100
    return Batch((x,), {}, y)


def own(size: int) -> Batch:
    batch = tokens(size)
    return Batch((), {"x": batch.args[0], "labels": batch.target}, None)


def flat(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def by_time(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.transpose(0, 1).flatten(0, 1), target.T.flatten())


def with_branch(output: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(output, target, reduction="none")
    return losses.mean() * (2 if float(losses.detach().mean()) > 1e6 else 1.5)


def gaussian(output: Tensor, target: Tensor) -> Tensor:
    return F.gaussian_nll_loss(output[:, :1], target, output[:, 1:2].exp())


weights = torch.tensor([1.0, 5.0, 0.2])
LOSSES = {
    "cross entropy": (Parts(), nn.CrossEntropyLoss(), classes),
    "class weights": (Parts(), nn.CrossEntropyLoss(weight=weights), classes),
    "smoothing": (Parts(), nn.CrossEntropyLoss(label_smoothing=0.1), classes),
    "sum": (Parts(), nn.CrossEntropyLoss(reduction="sum"), classes),
    "functional": (Parts(), F.cross_entropy, classes),
    "lambda": (Parts(), lambda o, t: 0.5 * F.cross_entropy(o, t), classes),
    "log softmax": (
        Parts(put=lambda o: o.log_softmax(1)),
        nn.NLLLoss(weight=weights),
        classes,
    ),
    "dict output": (
        Parts(put=lambda o: {"logits": o}),
        lambda o, t: F.cross_entropy(o["logits"], t),
        classes,
    ),
    "two terms": (
        Parts(),
        lambda o, t: F.cross_entropy(o, t) + 0.01 * o.square().mean(),
        classes,
    ),
    "branch": (Parts(), with_branch, classes),
    "squared": (Parts(1), nn.MSELoss(), values),
    "absolute": (Parts(1), nn.L1Loss(), values),
    "huber": (Parts(1), nn.HuberLoss(), values),
    "written out": (Parts(1), lambda o, t: ((o - t) ** 2).mean(), values),
    "squeezed": (
        Parts(1),
        lambda o, t: F.mse_loss(o.squeeze(1), t.squeeze(1)),
        values,
    ),
    "gaussian": (Parts(2), gaussian, values),
    "one logit": (
        Parts(1),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)),
        labels,
    ),
    "probability": (Parts(1, torch.sigmoid), nn.BCELoss(), labels),
    "several labels": (
        Parts(4),
        nn.BCEWithLogitsLoss(),
        lambda size: labels(size, 4),
    ),
    "sequences": (
        Parts(put=lambda o: o.transpose(1, 2)),
        nn.CrossEntropyLoss(weight=weights),
        tokens,
    ),
    "flat sequences": (Parts(), flat, tokens),
    "time first": (Parts(), by_time, tokens),
    "loss of its own": (OwnLoss(), None, own),
}


def whole_loss(model: nn.Module, loss: Callable[..., Any] | None, batch: Batch) -> float:
    output = model(*batch.args, **batch.kwargs)
    value = own_loss(output) if loss is None else loss(output, batch.target)
    assert value is not None
    return float(value.detach())


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_samples_add_up_to_that_of_all(name: str) -> None:
    torch.manual_seed(0)
    model, loss, draw = LOSSES[name]
    batch = draw(50)
    scorer = Scorer(model, Setup(loss=loss), own_loss)
    found = scorer.scores([batch])
    known = whole_loss(model, loss, batch) / (50 if name == "sum" else 1)
    assert scorer.unit == "sample"
    assert len(found.losses) == 50
    assert found.mean == pytest.approx(known, rel=1e-4)
    # In batches of other sizes they are the same: 32 and 18.
    both = (batch.args, dict(batch.kwargs), batch.target)
    parts = [
        Batch(*trees)
        for trees in (
            _rows(both, slice(0, 32)),
            _rows(both, slice(32, 50)),
        )
    ]
    again = Scorer(model, Setup(loss=loss), own_loss).scores(parts)
    assert again.losses == pytest.approx(found.losses, rel=1e-4, abs=1e-6)


def _rows(value: Any, rows: slice) -> Any:
    from trainlint.tree import map_tensors

    return map_tensors(value, lambda _, tensor: tensor[rows])


def test_the_error_of_a_weighted_mean_is_that_of_a_ratio() -> None:
    """As resampling of whole sequences shows it."""
    torch.manual_seed(0)
    model, loss, draw = LOSSES["sequences"]
    batch = draw(200)
    found = Scorer(model, Setup(loss=loss), own_loss).scores([batch])
    both = (batch.args, dict(batch.kwargs), batch.target)
    means = []
    for _ in range(400):
        rows = torch.randint(200, (200,))
        args, _, target = _rows(both, rows)  # type: ignore[arg-type]
        means.append(whole_loss(model, loss, Batch(args, {}, target)))
    assert found.error == pytest.approx(float(torch.tensor(means).std()), rel=0.2)


def test_a_loss_of_the_batch_has_one_figure_for_each() -> None:
    def spread(output: Tensor, target: Tensor) -> Tensor:
        return (output.mean(0) - target.mean(0)).square().mean() + output.var()

    scorer = Scorer(Parts(1), Setup(loss=spread), own_loss)
    found = scorer.scores([values(32), values(32), values(20)])
    assert scorer.unit == "batch"
    assert len(found.losses) == 3


def test_a_training_step_is_scored_as_it_is() -> None:
    model = Parts()

    def step(batch: Any, _: int) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(model(batch[0]), batch[1])}

    drawn = classes(40)
    batch = Batch((), {}, None, (drawn.args[0], drawn.target))
    scorer = Scorer(model, Setup(step=step), own_loss)
    found = scorer.scores([batch])
    assert (scorer.unit, scorer.metric, len(found.losses)) == ("sample", "accuracy", 40)
    assert found.mean == pytest.approx(whole_loss(model, F.cross_entropy, drawn), rel=1e-5)


# ---------------------------------------------------------------------- metrics


@pytest.mark.parametrize("name", ["cross entropy", "dict output", "log softmax", "flat sequences"])
def test_accuracy_is_the_share_of_right_answers(name: str) -> None:
    torch.manual_seed(1)
    model, loss, draw = LOSSES[name]
    batch = draw(60)
    scorer = Scorer(model, Setup(loss=loss), own_loss)
    found = scorer.scores([batch])
    scores = model.layer(batch.args[0])
    counts = batch.target != -100
    answers = scores.argmax(-1)
    assert scorer.metric == "accuracy"
    assert found.metric == pytest.approx(float((answers == batch.target)[counts].float().mean()))
    assert sum(found.predicted.values()) == int(counts.sum())


@pytest.mark.parametrize("name", ["one logit", "probability", "several labels"])
def test_accuracy_of_labels(name: str) -> None:
    torch.manual_seed(1)
    model, loss, draw = LOSSES[name]
    batch = draw(60)
    scorer = Scorer(model, Setup(loss=loss), own_loss)
    found = scorer.scores([batch])
    right = (model.layer(batch.args[0]) > 0) == (batch.target > 0)
    assert scorer.metric == "accuracy"
    assert found.metric == pytest.approx(float(right.float().mean()))
    assert sum(found.predicted.values()) == (0 if name == "several labels" else 60)


def test_r_squared_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    torch.manual_seed(0)
    model = Parts(3)
    batches = [Batch((x := torch.randn(n, 8),), {}, x[:, :3] * 2 + 5) for n in (30, 11)]
    scorer = Scorer(model, Setup(loss=nn.MSELoss()), own_loss)
    found = scorer.scores(batches)
    x, y = torch.cat([b.args[0] for b in batches]), torch.cat([b.target for b in batches])
    known = metrics.r2_score(y, model(x).detach(), multioutput="variance_weighted")
    assert scorer.metric == "R²"
    assert found.metric == pytest.approx(known, rel=1e-4)


# ---------------------------------------------------------------------- what a model has to beat


def baselines(
    model: nn.Module, loss: Callable[..., Any] | None, train: Batch, validation: Batch
) -> tuple[float | None, float | None]:
    """(loss of the constant answer, that of the linear model)."""
    scorer = Scorer(model, Setup(loss=loss), own_loss)
    scorer.scores([train])
    of_train = scorer.judged
    scorer.scores([validation])
    guess = constant_loss(of_train, scorer.judged)
    if guess is None:
        return None, None
    found = linear_scores([(train, of_train[0])], [(validation, scorer.judged[0])], guess)
    return guess, None if found is None else float(found[0].sum() / found[1].sum())


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sum"])
def test_no_constant_answer_is_better_than_that_by_much(name: str) -> None:
    """It is fitted to other samples of the same kind: any other constant costs as much or more."""
    torch.manual_seed(0)
    model, loss, draw = LOSSES[name]
    train, validation = draw(400), draw(400)
    guess, _ = baselines(model, loss, train, validation)
    assert guess is not None

    def constant(bias: Tensor) -> float:
        model.layer.weight.data.zero_()
        model.layer.bias.data = bias
        with torch.no_grad():
            return whole_loss(model, loss, validation)

    kept = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        start = torch.zeros(len(model.layer.bias))
        tried = [constant(start + 2 * torch.randn_like(start)) for _ in range(50)]
    finally:
        model.load_state_dict(kept)
    assert guess <= min(tried) * 1.05


def test_the_constant_answer_has_the_known_losses() -> None:
    torch.manual_seed(0)
    train, validation = classes(2000), classes(2000)
    guess, _ = baselines(Parts(), nn.CrossEntropyLoss(), train, validation)
    shares = torch.bincount(validation.target) / 2000
    assert guess == pytest.approx(float(torch.special.entr(shares).sum()), rel=0.01)
    train, validation = values(2000), values(2000)
    guess, _ = baselines(Parts(1), nn.MSELoss(), train, validation)
    assert guess == pytest.approx(float(validation.target.var()), rel=0.05)


def test_an_unbounded_loss_has_no_constant_answer() -> None:
    train, validation = values(50), values(50)
    assert baselines(Parts(1), lambda o, t: (-o * t).mean(), train, validation) == (None, None)


@pytest.mark.parametrize("name", ["cross entropy", "probability", "squared", "log softmax"])
def test_a_linear_model_learns_what_is_linear(name: str) -> None:
    torch.manual_seed(0)
    model, loss, draw = LOSSES[name]
    guess, linear = baselines(model, loss, draw(400), draw(400))
    assert guess is not None
    assert linear is not None
    assert linear < 0.8 * guess


def test_a_linear_model_of_noise_is_hardly_worse_than_a_guess() -> None:
    """With more columns than samples, too: that is what the ridge is for."""
    torch.manual_seed(0)
    train, validation = (
        Batch((torch.randn(n, 80),), {}, torch.randint(2, (n,))) for n in (60, 300)
    )
    model = nn.Linear(80, 2)
    guess, linear = baselines(model, nn.CrossEntropyLoss(), train, validation)
    assert guess is not None
    assert linear is not None
    assert 0.95 * guess < linear < 1.3 * guess


def test_there_is_no_linear_model_of_ids() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    train, validation = (
        Batch((torch.randint(9, (n, 3)),), {}, torch.randint(2, (n,))) for n in (60, 60)
    )
    guess, linear = baselines(model, nn.CrossEntropyLoss(), train, validation)
    assert guess is not None
    assert linear is None


# ---------------------------------------------------------------------- the meter


def loaders(train: int = 96, validation: int = 64, seed: int = 0) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(train + validation, 8, generator=generator)
    y = (x[:, 0] > 0).long()
    return (
        DataLoader(TensorDataset(x[:train], y[:train]), 16, shuffle=True),
        DataLoader(TensorDataset(x[train:], y[train:]), 16),
    )


class Counting(nn.Module):
    """Keeps books in its forward, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)
        )
        self.register_buffer("seen", torch.zeros(()))
        self.calls: list[int] = []
        self.body[2].eval()

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.calls.append(len(x))
        return self.body(x) + 0 * torch.rand(())


def test_a_model_is_as_before_when_it_was_measured() -> None:
    model = Counting().train()
    model.body[2].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    train, validation = (pool_of(loader, "loader") for loader in loaders())
    meter = Meter(
        model, Setup(loss=nn.CrossEntropyLoss()), train, validation, seconds=5.0, steps=10
    )
    random_state = torch.get_rng_state()
    meter.measure(0)
    meter.measure(5, last=True)
    assert not meter.problem
    assert [len(point.train.losses) for point in meter.checkpoints] == [96, 96]
    assert meter.checkpoints[0].train.losses == meter.checkpoints[1].train.losses
    assert [module.training for module in model.modules()] == modes
    assert model.calls == []
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_what_cannot_be_measured_is_said_and_nothing_raised() -> None:
    class NotInEval(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError("only for training")
            return super().forward(x)

    train, validation = (pool_of(loader, "loader") for loader in loaders())
    meter = Meter(NotInEval(8, 2), Setup(loss=nn.CrossEntropyLoss()), train, validation)
    meter.measure(0)
    assert "only for training" in meter.problem
    assert meter.generalization(0, None) is None


# ---------------------------------------------------------------------- what the rules say


RULES = {rule.code: rule.function for rule in all_rules()}


def said(code: str, measured: Generalization | None, *beside: Any, **options: Any) -> list[Any]:
    trace = Trace(50, (), (), (), (), generalization=measured)
    if code == "GEN001" and not beside:
        beside = (None,)  # no remedies were tried
    return list(RULES[code](trace, *beside, **options))


def around(mean: float, size: int = 100, spread: float = 0.2, seed: int = 0) -> Scores:
    generator = random.Random(seed)
    return Scores([mean + generator.gauss(0, spread) for _ in range(size)])


def overfitted(**changes: Any) -> Generalization:
    points = [
        Checkpoint(0, around(1.0), around(1.0, seed=1)),
        Checkpoint(50, around(0.2), around(0.8, seed=1)),
    ]
    values: dict[str, Any] = {"guess": 1.0, "epochs": 5.0, "samples": 100, **changes}
    return Generalization(points, **values)


def test_a_gap_is_overfitting() -> None:
    (found,) = said("GEN001", overfitted())
    assert isinstance(found, Finding)
    assert found.evidence["gap"] == pytest.approx(0.6, abs=0.1)
    assert found.evidence["bound"] < found.evidence["gap"]
    assert said("GEN007", overfitted(), None) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"epochs": 0.4}, "0.4 of an epoch was seen"),
        ({"epochs": None}, "how often"),
        ({"guess": None}, "constant answer"),
    ],
)
def test_where_it_cannot_tell_it_says_so(changes: dict[str, Any], word: str) -> None:
    (found,) = said("GEN001", overfitted(**changes))
    assert isinstance(found, NotMeasurable)
    assert word in found.reason


@pytest.mark.parametrize("code", ["GEN001", "GEN003"])
def test_without_validation_nothing_is_said(code: str) -> None:
    assert said(code, None) == []


def held_out(train: float, kept_out: float, validation: float) -> HeldOut:
    return HeldOut(around(train), around(kept_out, seed=1), around(validation, seed=2))


@pytest.mark.parametrize(
    ("kept_out", "validation", "codes"),
    [
        (0.8, 0.8, ["GEN001"]),
        (0.2, 0.8, ["GEN007"]),
        (0.5, 0.8, ["GEN001", "GEN007"]),
    ],
)
def test_a_second_training_tells_a_shift_from_overfitting(
    kept_out: float, validation: float, codes: list[str]
) -> None:
    measured = overfitted(held_out=held_out(0.2, kept_out, validation))
    found = [
        code
        for code, beside in (("GEN001", ()), ("GEN007", (None,)))
        if any(isinstance(one, Finding) for one in said(code, measured, *beside))
    ]
    assert found == codes


def test_a_gap_that_was_there_before_is_a_shift() -> None:
    points = [
        Checkpoint(0, around(1.0), around(1.6, seed=1)),
        Checkpoint(50, around(0.2), around(0.8, seed=1)),
    ]
    measured = Generalization(points, guess=1.0, epochs=5.0)
    assert said("GEN001", measured) == []
    (found,) = said("GEN007", measured, None)
    assert "before any training" in found.message


def test_a_model_that_had_learnt_before_is_not_taken_for_shifted_data() -> None:
    points = [
        Checkpoint(0, around(0.2), around(0.8, seed=1)),
        Checkpoint(50, around(0.2), around(0.8, seed=1)),
    ]
    measured = Generalization(points, guess=1.0, epochs=5.0)
    assert said("GEN007", measured, None) == []
    data = type("Seen", (), {"shift": Shift(inputs=1e-9, distance=2.0, feature="age")})()
    (found,) = said("GEN007", measured, data)
    assert "age" in found.message


def test_past_early_stop_names_the_step_and_a_patience() -> None:
    measured = measured_as(curve([1.0, 0.7, 0.75, 0.6, 0.8, 1.1]))
    (found,) = said("GEN003", measured)
    assert found.evidence["best_step"] == 30
    assert found.evidence["patience"] == 2
    assert found.evidence["every"] == 10


def test_a_training_loss_that_rises_too_is_no_early_stop() -> None:
    validation = curve([1.0, 0.6, 0.7, 0.8, 1.1])
    points = [
        Checkpoint(10 * n, around(scores.mean - 0.1), scores) for n, scores in enumerate(validation)
    ]
    assert said("GEN003", Generalization(points, guess=1.0, epochs=5.0)) == []


def flat_at(level: float, linear: float | None, **changes: Any) -> Generalization:
    scores = around(level, spread=0.1)
    points = [Checkpoint(10 * n, scores, around(level, spread=0.1, seed=1)) for n in range(6)]
    losses = () if linear is None else around(linear, spread=0.1, seed=2).losses
    values: dict[str, Any] = {"guess": 1.0, "epochs": 5.0, **changes}
    return Generalization(points, linear=linear, linear_losses=losses, **values)


def test_a_flat_curve_above_a_linear_model_is_underfitting() -> None:
    (found,) = said("GEN002", flat_at(0.7, 0.3), None)
    assert "linear model" in found.message
    assert said("GEN002", flat_at(0.7, 0.68), None) == []
    assert said("GEN002", flat_at(0.7, None), None) == []


def by_heart(right: float) -> Trace:
    """Training loss falls, and validation's never does, by every step's loss; few steps were recorded."""
    every = [math.log(10) * (1 - 0.6 * step / 2000) for step in range(2000)]
    steps = [0, 1, 2, 3, 4, 100, 400]
    values = [every[step] for step in steps]
    points = [
        Checkpoint(step, around(value, 200), replace(around(2.4, 200, seed=1), metric=right))
        for step, value in ((0, 2.3), (100, 2.2), (400, 2.1))
    ]
    return Trace(
        2000, steps, (), (), list(enumerate(every)),
        objectives=[LossTrace("cross_entropy", None, steps, values, math.log(10), 10, is_plain=True)],
        evaluations=[EvaluationTrace("cross_entropy", None, [50, 600, 1200, 1800], [2.31, 2.5, 2.7, 3.0])],
        generalization=Generalization(
            points, "cross_entropy", math.log(10), samples=1600, metric="accuracy"
        ),
    )  # fmt: skip


def test_labels_that_are_learnt_by_heart_late_in_a_long_run() -> None:
    (found,) = RULES["DAT004"](by_heart(right=0.11))
    assert isinstance(found, Finding)
    assert found.evidence["learnt"] > 0.5
    assert list(RULES["DAT004"](by_heart(right=0.4))) == []
    diverged = by_heart(right=0.11)
    lost = [(step, math.nan if step > 1500 else value) for step, value in diverged.losses]
    assert list(RULES["DAT004"](replace(diverged, losses=lost))) == []


def test_a_loss_that_hardly_leaves_a_guess_is_not_settled_by_its_training_loss() -> None:
    every = [math.log(10) * (1 - 0.018 * (step / 250) ** 4) for step in range(250)]
    optimizer: Any = SimpleNamespace(steps=250, rates=[(0, (1e-3,))])
    loss = LossTrace("cross_entropy", None, range(250), every, math.log(10), 10, is_plain=True)
    trace = Trace(250, range(250), (), [optimizer], list(enumerate(every)), objectives=[loss])
    (found,) = RULES["LOS008"](trace)
    assert isinstance(found, NotMeasurable)
    assert "still falls" in found.reason


def test_noise_is_not_underfitting() -> None:
    """Nothing is better than a guess, and the model is not either; 16 samples it can learn."""
    memory = type("Memory", (), {"left": 0.05})()
    assert said("GEN002", flat_at(1.0, 1.02), memory) == []
    stuck = type("Memory", (), {"left": 0.9})()
    assert len(said("GEN002", flat_at(1.0, 1.02), stuck)) == 1


# ---------------------------------------------------------------------- checks of whole trainings


def codes(report: trainlint.Report) -> set[str]:
    return {found.code for finding in report.findings for found in (finding, *finding.symptoms)}


def check(x: Tensor, y: Tensor, train: int, model: nn.Module, **options: Any) -> trainlint.Report:
    loss = nn.CrossEntropyLoss() if y.dtype == torch.int64 else nn.MSELoss()
    return trainlint.check(
        model,
        loss=loss,
        optimizer=torch.optim.Adam(model.parameters(), 5e-3),
        train_loader=DataLoader(TensorDataset(x[:train], y[:train]), 32, shuffle=True),
        val_loader=DataLoader(TensorDataset(x[train:], y[train:]), 64),
        select=["GEN001", "GEN002", "GEN003", "GEN007", "DAT004"],
        **options,
    )


def wide(inputs: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, outputs))


def test_labels_that_have_nothing_to_do_with_the_inputs_are_named_as_that() -> None:
    """Such a model overfits, too: that stands below."""
    torch.manual_seed(0)
    x, y = torch.randn(600, 60), torch.randint(2, (600,))
    report = check(x, y, 300, wide(60, 2), config=Config(probe_steps=100))
    assert [finding.code for finding in report.findings] == ["DAT004"]
    assert {"GEN001"} <= {found.code for found in report.findings[0].symptoms}


def test_overfitting_where_something_holds_is_not_taken_for_that() -> None:
    torch.manual_seed(0)
    x = torch.randn(364, 40)
    y = (x[:, :3].sum(1) > 0).long()
    report = check(x, y, 64, wide(40, 2))
    assert [finding.code for finding in report.findings] == ["GEN001"]


@pytest.mark.parametrize("name", ["digits", "wine", "breast_cancer", "diabetes"])
def test_splits_of_real_data_show_no_shift(name: str) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    table = getattr(datasets, f"load_{name}")()
    order = torch.randperm(len(table.data), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(table.data, dtype=torch.float32)[order]
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    y = torch.tensor(table.target)[order]
    outputs = int(y.max()) + 1
    if name == "diabetes":
        y, outputs = ((y - y.mean()) / y.std()).float()[:, None], 1
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, outputs))
    report = check(x, y, len(x) * 2 // 3, model)
    assert codes(report) == set()


class LightningModule(nn.Module):
    """Named as that of Lightning, by which it is known."""


class Digits(LightningModule):
    def __init__(self, train: int) -> None:
        super().__init__()
        self.net = wide(40, 2)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(train + 200, 40, generator=generator)
        self.data = TensorDataset(x, (x[:, :3].sum(1) > 0).long())
        self.train_size = train

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 5e-3)

    def train_dataloader(self) -> Any:
        part = torch.utils.data.Subset(self.data, range(self.train_size))
        return DataLoader(part, 32, shuffle=True)

    def val_dataloader(self) -> Any:
        part = torch.utils.data.Subset(self.data, range(self.train_size, len(self.data)))
        return DataLoader(part, 64)


def test_a_lightning_module_is_measured_by_its_training_step(tmp_path: Any) -> None:
    from trainlint.probe.setup import setup_of

    found = setup_of({}, Digits(64), None)
    assert found.val_loader is not None
    meter = Meter(
        module := Digits(64), setup_of({}, module, None),
        pool_of(module.train_dataloader(), "train"), pool_of(module.val_dataloader(), "val"),
    )  # fmt: skip
    meter.measure(0)
    assert not meter.problem
    assert (meter.unit, meter.metric) == ("sample", "accuracy")
    assert meter.guess == pytest.approx(math.log(2), rel=0.05)


def test_validation_data_that_fail_lose_nothing() -> None:
    def failing() -> Iterator[Any]:
        yield torch.randn(8, 40), torch.zeros(8).long()
        raise OSError("disk is gone")

    torch.manual_seed(0)
    x, y = torch.randn(64, 40), torch.randint(2, (64,))
    model = wide(40, 2)
    report = trainlint.check(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters()),
        train_loader=[(x, y)],
        val_loader=failing,
        config=Config(probe_steps=6),
    )
    assert report.targets[0].status == "ok"
    assert "disk is gone" in " ".join(report.targets[0].notes + report.targets[0].not_measurable)


def test_the_benchmark_runs_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import generalization

    case = generalization.measured(generalization.Case("teacher", 40, 64, 40, 100))
    assert case.gap > generalization.OVERFIT
    assert case.found >= {"GEN001"}
    shifted = generalization.Case("regression", 2000, 8, 200, 100, "labels")
    lines = [*generalization.gap_lines([case]), *generalization.shift_lines([case], [shifted])]
    assert any(line.startswith("| GEN001 |") for line in lines)
