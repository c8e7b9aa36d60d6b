"""K trainings on folds: their figures, their errors, what is restored, and what is said where one fails."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import run_command, write_files
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import trainlint
from trainlint.errors import UsageError
from trainlint.generalization.crossvalidation import spread, summary
from trainlint.generalization.experiments import (
    ExperimentError,
    Split,
    TrialPoint,
    TrialResult,
    Trials,
    TrialScore,
    TrialSpec,
    figure,
)
from trainlint.records import CrossValidation

sklearn_data = pytest.importorskip("sklearn.datasets")
selection = pytest.importorskip("sklearn.model_selection")


def wine() -> TensorDataset:
    x, y = sklearn_data.load_wine(return_X_y=True)
    return TensorDataset(torch.tensor(x, dtype=torch.float32).log1p(), torch.tensor(y))


def diabetes() -> TensorDataset:
    x, y = sklearn_data.load_diabetes(return_X_y=True)
    return TensorDataset(
        torch.tensor(x, dtype=torch.float32) * 20,
        torch.tensor(y, dtype=torch.float32)[:, None] / 77,
    )


def net(inputs: int = 13, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, outputs))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def measured(**options: Any) -> CrossValidation:
    given = {
        "loss": nn.CrossEntropyLoss(),
        "optimizer": adam,
        "train_loader": DataLoader(wine(), batch_size=16, shuffle=True),
        "steps": 20,
        **options,
    }
    return trainlint.cross_validate(given.pop("target", None) or net(), given.pop("k", 4), **given)


# ---------------------------------------------------------------------- figures


def test_each_fold_and_all_of_them() -> None:
    found = measured()
    assert [fold.fold for fold in found.folds] == [1, 2, 3, 4]
    assert sum(fold.validation_samples for fold in found.folds) == found.samples == 178
    losses = [float(fold.validation_loss or math.nan) for fold in found.folds]
    assert float(found.validation_loss.mean) == pytest.approx(statistics.fmean(losses), rel=1e-3)
    deviation = statistics.stdev(losses)
    assert float(found.validation_loss.error) == pytest.approx(deviation / 2, rel=1e-3)
    q = statistics.fmean(f.validation_samples / f.train_samples for f in found.folds)
    honest = deviation * math.sqrt(1 / 4 + q)
    assert float(found.validation_loss.corrected) == pytest.approx(honest, rel=1e-3)
    assert found.metric == "accuracy"
    assert found.validation_metric is not None
    assert 0 < float(found.validation_metric.mean) <= 1
    assert found.guess is not None
    assert float(found.guess) == pytest.approx(1.09, abs=0.02)  # entropy of the vineyards' shares
    assert [step for step, _ in found.validation] == [0, 4, 8, 12, 16, 20]


def test_regression_has_its_own_measure() -> None:
    loader = DataLoader(diabetes(), batch_size=32, shuffle=True)
    found = measured(
        target=net(10, 1), k=3, loss=nn.MSELoss(), train_loader=loader, epochs=4, steps=None
    )
    assert (found.splitter, found.metric) == ("KFold", "R²")
    assert found.epochs == 4
    assert found.steps == 40  # 295 of 442 samples make 10 batches


def test_the_correction_for_shared_samples() -> None:
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0], 0.25)
    assert float(found.error) == pytest.approx(math.sqrt(2.5 / 5), rel=1e-4)
    assert float(found.corrected) == pytest.approx(math.sqrt(2.5 * (1 / 5 + 1 / 4)), rel=1e-4)


def test_the_corrected_error_is_that_of_the_mean_over_folds() -> None:
    """Ridge regression of known truth: ± one error holds it as often as that of independent folds would."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(20, generator=generator)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, 20, generator=generator)
        return x, x @ weights + 2 * torch.randn(count, generator=generator)

    k, size, runs = 5, 100, 400
    fresh, answers = draw(5000)
    truth, found = [], []
    for _ in range(runs):
        x, y = draw(size)
        fold = torch.randperm(size, generator=generator) % k
        losses = []
        for held_out in (fold == n for n in range(k)):
            own = x[~held_out]
            fitted = torch.linalg.solve(own.T @ own + torch.eye(20), own.T @ y[~held_out])
            losses.append(float((x[held_out] @ fitted - y[held_out]).square().mean()))
            truth.append(float((fresh @ fitted - answers).square().mean()))
        found.append(spread(losses, 1 / (k - 1)))
    expected = statistics.fmean(truth)

    def coverage(error: str) -> float:
        hits = [abs(float(own.mean) - expected) < float(getattr(own, error)) for own in found]
        return statistics.fmean(hits)

    assert 0.6 < coverage("corrected") < 0.78
    assert coverage("error") < 0.56


def test_the_same_seed_gives_the_same_figures() -> None:
    assert measured().folds == measured().folds
    assert measured().folds != measured(seed=1).folds


def test_text_and_json_have_each_fold() -> None:
    found = measured()
    text = str(found)
    assert "4 folds of 178 samples of train_loader by StratifiedKFold" in text
    assert "Nadeau & Bengio" in text
    assert max(map(len, text.splitlines())) <= 100
    data = json.loads(found.to_json())
    assert len(data["folds"]) == 4
    assert data["gap"].keys() == {"mean", "error", "corrected"}


# ---------------------------------------------------------------------- made-up folds


def trials(losses: list[list[float]], reasons: list[str | None] | None = None) -> Trials:
    results = []
    for fold, own in enumerate(losses):
        score = TrialScore(figure(statistics.fmean(own)), 0.1, len(own), None, [*map(figure, own)])
        point = TrialPoint(10, TrialScore(0.5, 0.01, 100), score)
        reason = None if reasons is None else reasons[fold]
        results.append(
            TrialResult(
                TrialSpec(fold=fold), reason, [] if reason else [point], 10, 10, 1.0, 160, 40,
                scored=list(range(fold * 40, fold * 40 + 40)),
            )
        )  # fmt: skip
    return Trials(results, Split("KFold", "so", len(losses), 200, "train_loader", "SGD"))


def test_a_fold_of_another_source_sticks_out_with_its_worst_samples() -> None:
    draw = random.Random(0)
    losses = [[draw.expovariate(1.0) for _ in range(40)] for _ in range(5)]
    losses[2] = [loss + 2.0 for loss in losses[2]]
    losses[2][7] = 20.0
    found = summary("net", trials(losses), 1.0)
    assert [fold.sticks_out for fold in found.folds] == [False, False, True, False, False]
    assert found.folds[2].worst[0] == 87
    assert "fold 3 sticks out" in str(found)
    assert "(87, " in str(found)


def test_where_validation_loss_rises_in_all_folds_it_says_when_to_stop() -> None:
    made = trials([[1.0 + fold / 50, 1.2] for fold in range(5)])
    earlier = [
        TrialPoint(5, TrialScore(0.7, 0.01, 100), TrialScore(0.5 + fold / 40, 0.1, 2))
        for fold in range(5)
    ]
    results = [
        msgspec.structs.replace(result, checkpoints=[point, *result.checkpoints])
        for point, result in zip(earlier, made.results, strict=True)
    ]
    found = summary("net", Trials(results, made.split), 1.0)
    assert found.best_step == 5
    assert found.rise is not None
    assert float(found.rise.mean) == pytest.approx(0.57, abs=0.01)
    assert "validation loss was least after 5 of 10 steps" in str(found)
    assert "stop there" not in str(summary("net", made, 1.0))


def test_folds_of_one_source_seldom_stick_out() -> None:
    draw = random.Random(1)
    alarms = 0
    for _ in range(300):
        losses = [[draw.expovariate(1.0) for _ in range(40)] for _ in range(5)]
        alarms += any(fold.sticks_out for fold in summary("net", trials(losses), 1.0).folds)
    assert alarms <= 9


def test_a_fold_without_a_result_is_named_and_left_out() -> None:
    found = summary(
        "net", trials([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]], [None, "it died", None]), 1.0
    )
    assert found.folds[1].reason == "it died"
    assert found.folds[1].validation_loss is None
    assert "fold 2 has no result: it died" in found.notes
    assert "means are over the other 2 of 3 folds" in found.notes
    assert float(found.validation_loss.mean) == pytest.approx(2.5)
    assert "no result" in str(found)
    with pytest.raises(ExperimentError, match="all died"):
        summary("net", trials([[1.0], [1.0]], ["all died", "all died"]), 1.0)


def test_a_diverging_fold_is_said_and_not_left_out() -> None:
    found = summary("net", trials([[1.0, 2.0], [1.0, 2.0], [math.inf, 1.0]]), 1.0)
    assert found.validation_loss.mean == "inf"
    assert any("diverged in fold 3" in note for note in found.notes)
    assert "inf" in str(found)
    assert json.loads(found.to_json())["folds"][2]["validation_loss"] == "inf"


# ---------------------------------------------------------------------- live models


def test_everything_is_as_before() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    nn.CrossEntropyLoss()(model(torch.randn(4, 13)), torch.zeros(4).long()).backward()
    optimizer.step()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = {
        n: {k: v.clone() for k, v in s.items()} for n, s in enumerate(optimizer.state.values())
    }
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(wine(), batch_size=16, shuffle=True, generator=generator)
    draws = (torch.random.get_rng_state(), random.getstate(), generator.get_state())
    model.eval()
    measured(target=model, optimizer=optimizer, train_loader=loader)
    assert not model.training
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    for number, its in enumerate(optimizer.state.values()):
        assert all(torch.equal(state[number][key], value) for key, value in its.items())
    assert torch.equal(draws[0], torch.random.get_rng_state())
    assert draws[1] == random.getstate()
    assert torch.equal(draws[2], generator.get_state())


class Interrupted(nn.Module):
    """Ctrl-C in the tenth forward in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()
        self.forwards = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.forwards[0] += self.training
        if self.forwards[0] == 10:
            raise KeyboardInterrupt
        result: Tensor = self.inner(x)
        return result


def test_ctrl_c_ends_it_and_leaves_all_as_it_was() -> None:
    model = Interrupted()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.random.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        measured(target=model)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_one_optimizer_serves_all_folds() -> None:
    model = net()
    shared = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    found = measured(target=model, optimizer=shared)
    assert found.optimizer == "SGD"
    assert not shared.state
    first = [float(value) for step, value in found.validation if step == 0]
    assert first == [
        float(v) for s, v in measured(target=model, optimizer=shared).validation if s == 0
    ]


def test_the_optimizer_of_another_model_is_refused() -> None:
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(ExperimentError, match="none of the model's parameters"):
        measured(optimizer=other)


def test_a_splitter_and_groups() -> None:
    found = measured(k=selection.ShuffleSplit(3, test_size=0.3, random_state=0))
    assert found.splitter == "ShuffleSplit"
    assert len(found.folds) == 3
    grouped = measured(k=3, groups=[n // 10 for n in range(178)])
    assert grouped.splitter == "StratifiedGroupKFold"


class Failing(nn.Module):
    """Raises in training where a certain sample is among the batch."""

    def __init__(self, marked: Tensor) -> None:
        super().__init__()
        self.inner = net()
        self.marked = marked

    def forward(self, x: Tensor) -> Tensor:
        if self.training and bool((x == self.marked).all(1).any()):
            raise RuntimeError("that sample")
        result: Tensor = self.inner(x)
        return result


def test_a_fold_that_raises_costs_that_fold_only() -> None:
    # In training in all folds but the one that holds it out.
    found = measured(target=Failing(wine().tensors[0][3]), steps=30)
    done = [fold for fold in found.folds if fold.reason is None]
    assert len(done) == 1
    reasons = {fold.reason for fold in found.folds} - {None}
    assert all("RuntimeError: that sample" in str(reason) for reason in reasons)


def test_weights_that_have_learnt_already_are_said() -> None:
    model, data = net(), wine()
    optimizer = adam(model)
    for _ in range(300):
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(model(data.tensors[0]), data.tensors[1]).backward()
        optimizer.step()
    said = "its weights have been trained"
    assert any(said in note for note in measured(target=model).notes)
    assert not any(said in note for note in measured().notes)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from wine()


def test_a_stream_is_read_and_split() -> None:
    found = measured(train_loader=DataLoader(Stream(), batch_size=16))
    assert found.samples == 178
    assert found.splitter == "StratifiedKFold"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"k": 1}, "1 folds: at least 2"),
        ({"k": 3.5}, "k is a number of folds or a splitter, not float"),
        ({"k": 200}, "178 samples of train_loader make no 200 folds"),
        ({"train_loader": None}, "no training data are known"),
        ({"train_loader": []}, "train_loader is empty"),
        ({"train_loader": iter([1])}, "is an iterator"),
        ({"train_loader": [None]}, "None"),
        ({"epochs": 1}, "epochs or steps, not both"),
        ({"steps": 0}, "at least one step"),
        ({"steps": None, "epochs": math.inf}, "at least one step"),
        ({"groups": 3}, "one name or number a sample"),
        ({"target": "missing.py"}, "belong to a live model"),
        ({"target": 3}, "int is no model"),
        ({"optimizer": lambda model: None}, "makes NoneType, no optimizer"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], reason: str) -> None:
    with pytest.raises((ExperimentError, UsageError), match=reason) as caught:
        measured(**options)
    assert "\n" not in str(caught.value)


class LightningModule(nn.Module):
    """As far as it matters here."""


class Wine(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return {"optimizer": adam(self)}

    def train_dataloader(self) -> Any:
        return DataLoader(wine(), batch_size=16, shuffle=True)


def test_a_lightning_module_trains_by_its_own_step() -> None:
    model = Wine()
    before = model.net[0].weight.clone()
    found = trainlint.cross_validate(model, 3, steps=20)
    assert torch.equal(before, model.net[0].weight)
    assert found.splitter == "StratifiedKFold"
    start, end = found.validation[0][1], found.validation[-1][1]
    assert float(end) < float(start)
    with pytest.raises(UsageError, match="brings its own"):
        trainlint.cross_validate(model, 3, loss=nn.CrossEntropyLoss())


# ---------------------------------------------------------------------- files

HEAD = """
    import os, time
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    x = torch.randn(80, 6)
    y = (x[:, 0] > 0).long()
    data = TensorDataset(x, y)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_loader = DataLoader(data, batch_size=16, shuffle=True)
"""


def kfold(folder: Path, text: str, *options: str, k: int = 4) -> Any:
    write_files(folder, {"net.py": text})
    return run_command(
        "check",
        "net.py",
        "--kfold",
        str(k),
        "--probe-steps",
        "10",
        "--format",
        "json",
        *options,
        cwd=folder,
    )


def test_a_file_is_cross_validated_after_its_check(tmp_path: Path) -> None:
    result = kfold(tmp_path, HEAD, "--epochs", "2", "--output", "report.json")
    assert result.status == 0, result.stderr
    target = json.loads((tmp_path / "report.json").read_text())["targets"][0]
    assert "probe" in target["stages"]
    found = target["cross_validation"]
    assert found["target"] == "net.py::model"
    assert [fold["steps"] for fold in found["folds"]] == [8] * 4
    assert found["train_loss"]["mean"] < found["guess"]
    text = run_command(
        "check", "net.py", "--kfold", "4", "--probe-steps", "10", cwd=tmp_path
    ).stdout
    assert "4 folds of 80 samples of train_loader by StratifiedKFold" in text
    assert "fold   train + val" in text
    concise = run_command(
        "check", "net.py", "--kfold", "4", "--probe-steps", "0", "--format", "concise", cwd=tmp_path
    )
    assert any("over 4 folds" in line for line in concise.complaints())


def test_an_error_makes_folds_moot(tmp_path: Path) -> None:
    wrong = HEAD + "    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(12, 2))\n"
    result = kfold(tmp_path, wrong)
    assert result.status == 1
    target = result.targets["net.py::model"]
    assert target["cross_validation"] is None
    assert any("not cross-validated: it has 1 error (ARC002)" in note for note in target["notes"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            HEAD + "    del train_loader\n",
            "no training data at module level: name them train_loader",
        ),
        (
            HEAD + "    def train(model):\n"
            "        for a, b in DataLoader(data, 16):\n"
            "            optimizer.zero_grad(); criterion(model(a), b).backward(); optimizer.step()\n"
            "    del train_loader\n",
            "its own training loop is not to be split into folds",
        ),
        (
            HEAD + "    torch.seed()\n    x = torch.randn(80, 6)\n"
            "    train_loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)\n",
            "the data come out otherwise each time",
        ),
        (HEAD + "    groups = [1, 2]\n", "2 groups for 80 samples of train_loader"),
    ],
)
def test_why_a_file_cannot_be_split_is_said(tmp_path: Path, text: str, reason: str) -> None:
    write_files(tmp_path, {"net.py": text})
    with pytest.raises(ExperimentError, match=reason):
        trainlint.cross_validate(tmp_path / "net.py", 4)


def test_what_has_no_data_is_an_error_of_the_check(tmp_path: Path) -> None:
    result = kfold(tmp_path, HEAD + "    del train_loader\n")
    assert result.status == 2
    assert result.targets["net.py::model"]["reason"].startswith("not cross-validated: it has no")
    assert len(result.complaints()) == 1


def test_the_file_decides_on_groups_and_splitter(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "time.py": HEAD + "    from sklearn.model_selection import TimeSeriesSplit\n"
            "    cv = TimeSeriesSplit(4)\n",
            "groups.py": HEAD + "    groups = [n // 8 for n in range(80)]\n",
        },
    )
    found = trainlint.cross_validate(tmp_path / "time.py", 4)
    assert found.splitter == "TimeSeriesSplit"
    assert [fold.train_samples for fold in found.folds] == [16, 32, 48, 64]
    assert trainlint.cross_validate(tmp_path / "groups.py", 4).splitter == "StratifiedGroupKFold"


def test_our_loop_trains_and_the_held_out_data_stay_out(tmp_path: Path) -> None:
    rest = (
        "    val_loader = test_loader = DataLoader(TensorDataset(x * 9, y), batch_size=7)\n"
        "    def train(model):\n"
        "        for a, b in train_loader:\n"
        "            optimizer.zero_grad(); criterion(model(a), b).backward(); optimizer.step()\n"
    )
    target = kfold(tmp_path, HEAD + rest).targets["net.py::model"]
    assert "in train()" in target["watched"]
    assert target["cross_validation"]["samples"] == 80
    assert [fold["steps"] for fold in target["cross_validation"]["folds"]] == [10] * 4


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--kfold", "3", "--static"], "--kfold trains the model"),
        (["--epochs", "3"], "--epochs is for --kfold"),
        (["--kfold", "1"], "1 is not in the range x>=2"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: list[str], reason: str) -> None:
    write_files(tmp_path, {"net.py": HEAD})
    result = run_command("check", "net.py", *options, cwd=tmp_path)
    assert result.status == 2
    assert reason in result.stderr
