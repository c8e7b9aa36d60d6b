"""Folds: nothing of a fold is trained on, neither as a twin nor as a part of a group."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trainlint.data.pool import pool_of
from trainlint.errors import UsageError
from trainlint.generalization.folds import Folds, Samples, folds_of, samples_of
from trainlint.probe.batches import ProbeProblem
from trainlint.probe.setup import Setup

sklearn_data = pytest.importorskip("sklearn.datasets")
selection = pytest.importorskip("sklearn.model_selection")


def samples(
    x: Tensor, y: Tensor, loss: nn.Module | None = None, *, shuffle: bool = True
) -> Samples:
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=shuffle)
    setup = Setup(loss or nn.CrossEntropyLoss(), None, loader)
    return samples_of(pool_of(loader, "loader"), nn.Linear(x.shape[1], 3), setup)


def iris() -> tuple[Tensor, Tensor]:
    x, y = sklearn_data.load_iris(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def each_sample_is_held_out_once(folds: Folds, size: int) -> bool:
    held_out = Counter(n for _, validation in folds.pairs for n in validation)
    apart = all(not set(train) & set(validation) for train, validation in folds.pairs)
    whole = all(len(train) + len(validation) == size for train, validation in folds.pairs)
    return apart and whole and held_out == Counter(range(size))


def test_classes_have_the_same_share_in_each_fold() -> None:
    x, y = sklearn_data.load_wine(return_X_y=True)
    found = samples(torch.tensor(x, dtype=torch.float32), torch.tensor(y))
    folds = folds_of(found, 5)
    assert folds.splitter == "StratifiedKFold"
    assert each_sample_is_held_out_once(folds, 178)
    whole = Counter(y.tolist())
    for _, validation in folds.pairs:
        counts = Counter(int(y[n]) for n in validation)
        assert all(abs(counts[name] - whole[name] / 5) <= 1 for name in whole)


def test_the_seed_decides_the_folds() -> None:
    found = samples(*iris())
    assert folds_of(found, 5, seed=3) == folds_of(found, 5, seed=3)
    assert folds_of(found, 5, seed=3) != folds_of(found, 5, seed=4)


def test_real_targets_are_split_at_random() -> None:
    x, y = sklearn_data.load_diabetes(return_X_y=True)
    found = samples(torch.tensor(x).float(), torch.tensor(y).float()[:, None], nn.MSELoss())
    folds = folds_of(found, 4)
    assert folds.splitter == "KFold"
    assert each_sample_is_held_out_once(folds, 442)


def test_equal_samples_stay_together() -> None:
    x, y = iris()  # two of its flowers are alike
    folds = folds_of(samples(x, y), 5)
    assert folds.splitter == "StratifiedGroupKFold"
    assert "1 of 150 samples equal an earlier one" in folds.why
    rows = [tuple(row) for row in x.tolist()]
    for train, validation in folds.pairs:
        assert not {rows[n] for n in train} & {rows[n] for n in validation}


@pytest.mark.parametrize("is_class", [True, False])
def test_copies_of_all_samples_stay_with_them(*, is_class: bool) -> None:
    x = torch.randn(60, 4).repeat(3, 1)
    y = (x[:, 0] > 0).long() if is_class else x[:, :1] * 2
    folds = folds_of(samples(x, y, None if is_class else nn.MSELoss()), 5)
    assert folds.splitter == ("StratifiedGroupKFold" if is_class else "GroupKFold")
    assert each_sample_is_held_out_once(folds, 180)
    for train, validation in folds.pairs:
        assert not {n % 60 for n in train} & {n % 60 for n in validation}


def test_groups_stay_whole_and_are_dealt_at_random() -> None:
    x = torch.randn(120, 4)
    found = samples(x, x[:, :1], nn.MSELoss())
    groups = [f"patient {n // 10}" for n in range(120)]
    folds = folds_of(found, 4, groups=groups)
    assert folds.splitter == "GroupKFold"
    assert "12 groups stay whole" in folds.why
    for train, validation in folds.pairs:
        assert not {groups[n] for n in train} & {groups[n] for n in validation}
    assert folds.pairs != folds_of(found, 4, groups=groups, seed=1).pairs


def test_groups_that_share_samples_stay_together() -> None:
    x = torch.randn(60, 4)
    x[10] = x[0]  # groups 0 and 1
    x[29] = x[11]  # 1 and 2
    found = samples(x, x[:, :1], nn.MSELoss())
    folds = folds_of(found, 4, groups=[n // 10 for n in range(60)])
    assert "groups with equal samples stay together" in folds.why
    assert {n // 10 for _, own in folds.pairs for n in own if 0 in own} == {0, 1, 2}
    with pytest.raises(ProbeProblem, match="6 groups that share samples make no 5 folds"):
        folds_of(found, 5, groups=[n // 10 for n in range(60)])


def test_a_splitter_that_is_given_is_used() -> None:
    found = samples(*iris(), shuffle=False)
    folds = folds_of(found, 5, splitter=selection.TimeSeriesSplit(5))
    assert folds.splitter == "TimeSeriesSplit"
    assert all(max(train) < min(validation) for train, validation in folds.pairs)


def test_a_splitter_that_leaks_twins_is_said() -> None:
    x = torch.randn(60, 4).repeat(2, 1)
    found = samples(x, (x[:, 0] > 0).long())
    notes = folds_of(found, 5, splitter=selection.KFold(5)).notes
    assert any(note.startswith("120 samples validated on equal one") for note in notes)


class Leaking:
    def split(self, x: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Any, Any]]:
        yield list(range(10)), list(range(5, 15))
        yield list(range(10)), list(range(10, 15))


def test_a_splitter_that_does_not_hold_out_is_refused() -> None:
    with pytest.raises(ProbeProblem, match="fold 1 of Leaking trains on samples that it validates"):
        folds_of(samples(*iris()), 2, splitter=Leaking())


def test_what_makes_no_folds_is_named() -> None:
    x, y = iris()
    few = samples(x[:3], y[:3])
    with pytest.raises(ProbeProblem, match="3 samples of loader make no 5 folds"):
        folds_of(few, 5)
    found = samples(x, y)
    with pytest.raises(ProbeProblem, match="2 groups for 150 samples"):
        folds_of(found, 5, groups=[1, 2])
    with pytest.raises(ProbeProblem, match="2 groups make no 5 folds"):
        folds_of(found, 5, groups=[n % 2 for n in range(150)])
    with pytest.raises(ProbeProblem, match="KFold makes 3 folds"):
        folds_of(found, 5, splitter=selection.KFold(3))
    with pytest.raises(ProbeProblem, match="KFold raised ValueError"):
        folds_of(found, 1, splitter=selection.KFold(500))
    same = samples(torch.ones(20, 4), torch.arange(20) % 2)
    with pytest.raises(ProbeProblem, match="1 different samples make no 5 folds"):
        folds_of(same, 5)


def test_rare_classes_are_said() -> None:
    x = torch.randn(60, 4)
    y = torch.tensor([0, 1] * 30)
    y[:3] = 2
    notes = folds_of(samples(x, y), 5).notes
    assert notes == ["classes with fewer samples than 5 folds, which some folds lack: 2 (3)"]
    alone = samples(x[:6], torch.arange(6))  # no class has as many samples as there are folds
    assert folds_of(alone, 5).splitter == "KFold"


def test_a_loader_that_does_not_shuffle_is_a_hint_at_time() -> None:
    notes = folds_of(samples(*iris(), shuffle=False), 5).notes
    assert len(notes) == 1
    assert "split by TimeSeriesSplit(5)" in notes[0]


def test_samples_that_are_changed_each_time_are_no_twins_and_said() -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, place: Any) -> Any:
            x, y = self.tensors[0][place], self.tensors[1][place]
            return x + torch.randn_like(x), y

    x, y = iris()
    dataset = Noisy(x, y)
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    setup = Setup(nn.CrossEntropyLoss(), None, loader)
    found = samples_of(pool_of(loader, "loader"), nn.Linear(4, 3), setup)
    assert not found.repeatable
    folds = folds_of(found, 5)
    assert folds.splitter == "StratifiedKFold"
    assert any("changes its samples each time" in note for note in folds.notes)


class OwnLoss(nn.Module):
    def forward(self, x: Tensor, labels: Tensor) -> Any:
        return nn.functional.cross_entropy(x, labels)


def test_the_labels_of_a_dict_are_no_inputs() -> None:
    x = torch.randn(40, 2).repeat(2, 1)
    y = torch.arange(80) % 3  # the copies have other labels
    rows = [{"x": own, "labels": label} for own, label in zip(x, y, strict=True)]
    loader = DataLoader(rows, batch_size=8, shuffle=True)
    found = samples_of(pool_of(loader, "loader"), OwnLoss(), Setup(None, None, loader))
    assert found.classes == y.tolist()
    assert "40 of 80 samples equal an earlier one" in folds_of(found, 4).why


def test_of_very_many_samples_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainlint.generalization.folds.MOST", 50)
    found = samples(*iris())
    assert found.pool.size == 50
    assert any("50, drawn at random" in note for note in found.notes)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r'pip install "trainlint\[folds\]"'):
        samples(*iris())
