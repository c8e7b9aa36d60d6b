"""Remedies against overfitting: the figures on made-up losses, and on a small task with known truth."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.config import Config
from trainlint.data.pool import pool_of
from trainlint.generalization.remedies import (
    Option,
    Remedies,
    Remedy,
    crossed,
    half_of_data,
    ranked,
)
from trainlint.generalization.trying import Experiment
from trainlint.probe.batches import ProbeProblem
from trainlint.probe.setup import Setup
from trainlint.report.plots import PLAIN
from trainlint.report.remedies import picture
from trainlint.report.text import as_text

# ---------------------------------------------------------------------- figures


def noisy(mean: float, seed: int, count: int = 200, deviation: float = 1.0) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(mean, deviation) for _ in range(count)]


def test_a_strength_is_not_judged_where_it_was_chosen() -> None:
    best, honest = [], []
    for repeat in range(40):
        gains = [noisy(0.0, 100 * repeat + strength) for strength in range(8)]
        best.append(max(sum(gain) / len(gain) for gain in gains))
        honest.append(sum(crossed(gains)) / len(gains[0]))
    assert sum(best) / 40 > 0.08  # what is nothing looks like a gain where it was chosen
    assert abs(sum(honest) / 40) < 0.03


def test_a_gain_that_is_there_is_found_with_its_error() -> None:
    control = [noisy(1.0, 1), noisy(1.0, 2)]
    better = [[loss - 0.3 + 0.05 * n for n, loss in zip(noisy(0.0, 7), losses, strict=True)]
              for losses in control]  # fmt: skip
    (found,), lost = ranked(control, {"a": [Option("a", 1.0, better)]}, 2.0)
    assert found.gain == pytest.approx(0.15, abs=0.01)
    assert found.loss == pytest.approx(1.0 - 0.3, abs=0.15)
    assert found.error < 0.01
    assert found.helps
    assert not lost


def test_what_differs_between_seeds_is_no_gain() -> None:
    control = [[1.0] * 100, [1.0] * 100]
    changed = [[0.6] * 100, [1.2] * 100]
    (found,), _ = ranked(control, {"a": [Option("a", 1.0, changed)]}, 1.0)
    assert found.gain == pytest.approx(0.1)
    assert found.error == pytest.approx(0.3)
    assert not found.helps


def test_a_training_without_a_number_is_said() -> None:
    control = [noisy(1.0, 1), noisy(1.0, 2)]
    nan = [[float("nan")] * 200] * 2
    found, lost = ranked(control, {"a": [Option("a 3", 3.0, nan)]}, 1.0)
    assert not found
    assert lost == ["a 3: the loss became no number"]


def test_half_of_the_data_is_worse_where_all_halves_say_so() -> None:
    control = [[1.0] * 50] * 2
    found = half_of_data(control, [[1.5] * 50, [1.4] * 50, [1.6] * 50, [1.5] * 50], 2.0, 80)
    assert (found.rise, found.samples) == (pytest.approx(0.25), 80)
    assert found.is_sure
    assert not half_of_data(control, [[1.0] * 50, [2.0] * 50], 2.0, 80).is_sure


def made(gain: float, *, bound: float) -> Remedies:
    remedy = Remedy("dropout", "dropout 0.5 before fc", 0.5, gain, 0.01, bound, 0.4, [0.3, 0.5])
    return Remedies([remedy], 0.5, 1.0, 50, 2, 200)


def test_what_helps_becomes_a_fix_with_its_figures() -> None:
    (fix,) = made(0.1, bound=0.08).fixes()
    assert fix.title == "dropout 0.5 before fc"
    assert fix.verified is not None
    assert (fix.verified.gain, fix.verified.seeds) == (0.1, 2)


def test_none_helped_is_an_answer() -> None:
    (fix,) = made(0.01, bound=-0.01).fixes()
    assert fix.title == "none of these helped in 50 steps: dropout"
    assert fix.verified is None


def test_the_picture_stays_within_the_width() -> None:
    rows = made(0.1, bound=0.08).evidence()["remedies"]
    rows += [{**rows[0], "title": "an L1 penalty of so much", "gain": -0.05, "helps": False}]
    for width in (30, 60, 120):
        for row in picture(rows, width, PLAIN).rows:
            assert row.cell_len <= width
    first, second = (row.plain for row in picture(rows, 120, PLAIN).rows)
    assert first.index("|") < first.rindex("#")
    assert second.index("#") < second.index("|")
    assert "helps" in first
    assert "helps" not in second


# ---------------------------------------------------------------------- trainings


def loaders(samples: int = 64) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Five of forty columns tell the class."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples + 300, 40, generator=generator)
    noise = torch.randn(samples + 300, generator=generator)
    y = (x[:, :5].sum(1) + noise > 0).long()
    train, validation = (
        TensorDataset(x[:samples], y[:samples]),
        TensorDataset(x[samples:], y[samples:]),
    )
    return DataLoader(train, 32, shuffle=True), DataLoader(validation, 100)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 128), nn.ReLU(), nn.Linear(128, 2))


def experiment(model: nn.Module, seconds: float = 60.0, **setup: Any) -> Experiment:
    train, validation = loaders()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Experiment(
        model,
        Setup(nn.CrossEntropyLoss(), optimizer, train, validation, **setup),
        optimizer,
        pool_of(train, "train_loader"),
        pool_of(validation, "val_loader"),
        40,
        0.693,
        seconds,
    )


def test_remedies_of_an_overfit_model_are_measured() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    tried = experiment(model)
    found = tried.remedies()
    assert {"weight decay", "L1 penalty", "dropout", "input noise", "early stopping"} == {
        remedy.kind for remedy in found.tried
    }
    assert found.helpful
    assert [r.gain for r in found.tried] == sorted((r.gain for r in found.tried), reverse=True)
    assert found.more is not None
    assert found.more.is_sure
    assert json.loads(json.dumps(found.evidence()))["remedies"][0]["title"] == found.tried[0].title
    assert not found.untried
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not tried.optimizer.state


def test_what_there_is_no_time_for_is_said() -> None:
    found = experiment(net(), seconds=0.0).remedies()
    assert {remedy.kind for remedy in found.tried} == {"early stopping"}
    assert found.more is None
    assert found.untried[0].startswith("no time for weight decay")


def test_images_are_shifted_and_not_made_noisy() -> None:
    x = torch.randn(40, 1, 8, 8)
    loader = DataLoader(TensorDataset(x, torch.arange(40) % 2), 20)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pool = pool_of(loader, "train_loader")
    setup = Setup(nn.CrossEntropyLoss(), optimizer, loader, loader)
    tried = Experiment(model, setup, optimizer, pool, pool, 5, 0.7, 60.0)
    titles = {candidate.kind: candidate.title for candidate in tried.candidates()}
    assert titles["augmentation"] == "random shifts by up to 1 pixel"
    assert "input noise" not in titles
    assert titles["weight decay"].endswith("in SGD")


def test_a_model_that_cannot_be_copied() -> None:
    class Fixed(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not to be copied")

    with pytest.raises(ProbeProblem, match="cannot be copied"):
        experiment(Fixed(40, 2)).remedies()


# ---------------------------------------------------------------------- the check


def checked(samples: int) -> tuple[trainlint.Report, nn.Module, Any]:
    train, validation = loaders(samples)
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    report = trainlint.check(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        train_loader=train,
        val_loader=validation,
        config=Config(probe_seconds=120.0),
    )
    return report, model, optimizer


def test_an_overfit_model_is_told_what_helps() -> None:
    before = net().state_dict()
    after_building = torch.get_rng_state()
    report, model, optimizer = checked(64)
    (finding,) = [found for found in report.findings if found.code == "GEN001"]
    rows = finding.evidence["remedies"]
    assert rows[0]["helps"]
    assert finding.fixes[0].title.startswith(rows[0]["title"])
    assert "with two standard errors" in " ".join(as_text(report).split())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), after_building)


def test_nothing_is_tried_without_the_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Any) -> Any:
        raise AssertionError("remedies were tried")

    monkeypatch.setattr(Experiment, "remedies", never)
    report, _, _ = checked(3000)
    assert not [found for found in report.findings if found.code == "GEN001"]
    assert not any("remedies" in note for target in report.targets for note in target.notes)
