"""The data: samples of any loader by number, what is said of them, copies in both sets, and shift."""

from __future__ import annotations

import math
import random
import textwrap
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

import trainlint
from trainlint.data.columns import FieldFigures
from trainlint.data.describing import described, runs_ratio
from trainlint.data.facts import Data
from trainlint.data.overlap import _tail
from trainlint.data.pool import count_of, pool_of
from trainlint.data.reading import hashed
from trainlint.data.shift import kolmogorov_smirnov, of_classes, of_inputs
from trainlint.probe.batches import ProbeProblem

X = torch.arange(40.0).reshape(20, 2)
Y = torch.arange(20)
ROWS = TensorDataset(X, Y)


class Stream(IterableDataset[Any]):
    """Rows without numbers."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(X[i], Y[i]) for i in range(20)])


class Backwards(Sampler[int]):
    """An order of one's own."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(19, -1, -1))

    def __len__(self) -> int:
        return 20


def pieces() -> list[Any]:
    """The rows as a plain list of batches of different sizes."""
    return [(X[:7], Y[:7]), (X[7:8], Y[7:8]), (X[8:], Y[8:])]


LOADERS: dict[str, tuple[Callable[[], Any], list[int], bool | None]] = {
    "sequential": (lambda: DataLoader(ROWS, 4), list(range(20)), False),
    "shuffled": (lambda: DataLoader(ROWS, 4, shuffle=True), list(range(20)), True),
    "subset": (lambda: DataLoader(Subset(ROWS, [3, 9, 4]), 2), [3, 9, 4], False),
    "subset sampler": (
        lambda: DataLoader(ROWS, 2, sampler=SubsetRandomSampler([5, 1])), [5, 1], True,
    ),
    "weights": (
        lambda: DataLoader(ROWS, 2, sampler=WeightedRandomSampler([0.0] * 17 + [1.0, 0.0, 2.0], 9)),
        [17, 19], True,
    ),
    "sampler": (lambda: DataLoader(ROWS, 4, sampler=Backwards()), list(range(19, -1, -1)), False),
    "batch sampler": (lambda: DataLoader(ROWS, batch_sampler=[[2, 0], [7]]), [2, 0, 7], False),
    "concat": (
        lambda: DataLoader(ConcatDataset([Subset(ROWS, [1]), Subset(ROWS, [8, 6])]), 2), [1, 8, 6], False,
    ),
    "stream": (lambda: DataLoader(Stream(), 3), list(range(20)), None),
    "workers": (lambda: DataLoader(Stream(), 3, num_workers=2), list(range(20)), None),
    "batches": (pieces, list(range(20)), False),
    "function": (lambda: lambda: iter(pieces()), list(range(20)), None),
    "function of a loader": (lambda: lambda: DataLoader(ROWS, 4), list(range(20)), False),
}  # fmt: skip


@pytest.mark.parametrize("name", LOADERS)
def test_samples_come_in_the_order_that_was_asked_for(name: str) -> None:
    make, held, shuffles = LOADERS[name]
    pool = pool_of(make(), name)
    assert (pool.size, pool.whole, pool.shuffles) == (len(held), True, shuffles)
    numbers = torch.randperm(pool.size, generator=torch.Generator().manual_seed(3)).tolist()
    got = list(pool.batches(numbers, 4))
    assert [len(y) for _, y in got[:-1]] == [4] * (len(got) - 1)
    assert torch.cat([y for _, y in got]).tolist() == [held[n] for n in numbers]
    assert torch.equal(torch.cat([x for x, _ in got]), X[[held[n] for n in numbers]])
    some = pool.only(numbers[:2])
    assert torch.cat([y for _, y in some.batches([1, 0])]).tolist() == [
        held[numbers[1]],
        held[numbers[0]],
    ]


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_stored_batches_are_dealt_anew(sizes: list[int], data: st.DataObject) -> None:
    count = sum(sizes)
    x, names = torch.arange(count * 3.0).reshape(count, 3), [f"row {i}" for i in range(count)]
    stored, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        stored.append({"x": x[rows], "text": names[rows], "fixed": torch.tensor(7.0)})
        start += size
    numbers = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=2 * count))
    size = data.draw(st.integers(1, 7))
    got = list(pool_of(stored, "loader").batches(numbers, size))
    assert torch.equal(torch.cat([batch["x"] for batch in got]), x[numbers])
    assert [text for batch in got for text in batch["text"]] == [names[n] for n in numbers]
    assert all(batch["fixed"] == 7 for batch in got)


def test_ragged_batches_stay_as_they_came_or_are_refused() -> None:
    ragged = [(torch.ones(3, 2), Y[:3]), (torch.zeros(2, 5), Y[3:5])]
    pool = pool_of(ragged, "loader")
    assert [y.tolist() for _, y in pool.batches([0, 2, 3, 4], 3)] == [[0, 2], [3], [4]]
    with pytest.raises(ProbeProblem, match="different shapes"):
        list(pool.batches([4, 0], 2))


def broken() -> Iterator[Any]:
    yield from pieces()
    raise OSError("damaged file")


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ([], "loader is empty"),
        (DataLoader(TensorDataset(X[:0]), 2), "loader is empty"),
        ([None], "gives None"),
        (["text"], "gives a str"),
        ([torch.tensor(1.0)], "cannot be told apart"),
        (iter(pieces()), "is an iterator"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: 5, "no loader"),
        (broken, "OSError: damaged file"),
    ],
)
def test_what_gives_no_samples_is_said_in_one_line(loader: Any, said: str) -> None:
    with pytest.raises(ProbeProblem, match=said) as problem:
        pool_of(loader, "loader")
    assert "\n" not in str(problem.value)


def test_an_endless_loader_is_read_for_a_while_and_its_buffer_not_kept() -> None:
    def endless() -> Iterator[Tensor]:
        buffer, count = torch.zeros(4, 1), 0
        while True:
            buffer.fill_(count)
            count += 1
            yield buffer

    pool = pool_of(endless, "loader", most=40)
    assert not pool.whole
    assert [float(batch) for batch in pool.batches([0, 39], 1)] == [0, 9]


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((X, Y), 20),
        (X, 20),
        (["a", "b", "c"], 3),
        ((["a", "b"], Y[:2]), 2),
        (([torch.ones(3, 4, 4), torch.ones(3, 5, 4)], [{"box": X[:1]}, {"box": X[:3]}]), 2),
        (([torch.ones(3, 4, 4)] * 5, [1, 2, 3, 4, 5]), 5),
        (((X, X), Y), 20),
        ({"x": X, "n": 3}, 20),
        ((X, Y[:3]), None),
        (SimpleNamespace(x=X, edges=torch.zeros(2, 7)), None),
        (5, None),
    ],
)
def test_the_samples_of_a_batch_are_counted(batch: Any, count: int | None) -> None:
    assert count_of(batch) == count


# ------------------------------------------------------------------------------------- describing


class Noisy(Dataset[Any]):
    """Draws from each generator that there is."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(0)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        noise = random.random() + np.random.rand() + float(torch.rand(())) + self.own.random()
        return torch.full((3,), index + noise), index % 2


def test_nothing_of_the_loaders_or_generators_changes() -> None:
    loader = DataLoader(Noisy(), 5, shuffle=True, generator=torch.Generator().manual_seed(1))
    stream = DataLoader(Stream(), 3, num_workers=1, persistent_workers=True)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    own = loader.generator.get_state(), loader.dataset.own.bit_generator.state
    data = described(loader, stream)
    assert data.train.repeatable is False
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert torch.equal(loader.generator.get_state(), own[0])
    assert loader.dataset.own.bit_generator.state == own[1]
    assert (stream.num_workers, stream.persistent_workers, stream._iterator) == (1, True, None)


class Sentences(nn.Module):
    """Takes ids and computes its own loss."""

    def forward(self, input_ids: Tensor, labels: Tensor) -> None: ...


def graph(count: int) -> Any:
    return SimpleNamespace(x=torch.randn(count, 4), y=torch.tensor([count % 2]))


PIXELS = torch.rand(12, 3, 8, 8)
KINDS: dict[str, tuple[Any, nn.Module | None, bool, list[str], str | None]] = {
    "images": (DataLoader(TensorDataset(PIXELS, Y[:12]), 4), None, True, ["image"], "classes"),
    "channels last": ([(PIXELS.movedim(1, -1), Y[:12])], None, True, ["image"], "classes"),
    "rows": ([(X, X[:, :1])], None, True, ["table"], "values"),
    "yes and no": ([(X, (Y % 2).float())], None, True, ["table"], "classes"),
    "two inputs": ([(X, PIXELS.repeat(2, 1, 1, 1)[:20], Y)], None, True, ["table", "image"], "classes"),
    "single": ([X], None, True, ["table"], None),
    "dict": ([{"input_ids": Y[:, None], "labels": Y}], Sentences(), False, ["ids"], "classes"),
    "own loss": ([(Y[:, None], Y)], Sentences(), False, ["ids"], "classes"),
    "texts": ([(["good", "bad"], Y[:2])], None, True, ["text"], "classes"),
    "series": ([(torch.rand(4, 9, 2), Y[:4])], None, True, ["sequence"], "classes"),
    "tokens": ([(Y.reshape(4, 5), Y.reshape(4, 5))], None, True, ["ids"], "classes"),
    "graphs": (
        DataLoader([graph(n) for n in range(2, 9)], 2, collate_fn=lambda graphs: graphs[0]),
        None, False, ["sequence"], "classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_fields_are_told_apart(name: str) -> None:
    loader, model, has_loss, inputs, target = KINDS[name]
    train = described(loader, model=model, has_loss=has_loss).train
    kinds = [field.kind for field in train.inputs]
    assert kinds == inputs
    assert (train.target.kind if train.target else None) == target


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.one_of(
                st.floats(-1e3, 1e3, width=32), st.sampled_from([math.nan, math.inf, -math.inf])
            ),
            min_size=2,
            max_size=2,
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 8),
)
def test_figures_of_batches_are_those_of_all(rows: list[list[float]], size: int) -> None:
    values = torch.tensor(rows)
    figures = FieldFigures("input")
    for start in range(0, len(values), size):
        part = values[start : start + size]
        figures.add(list(range(start, start + len(part))), part)
    field = figures.described()
    fine = torch.isfinite(values)
    for place, column in enumerate(field.columns):
        held = values[fine[:, place], place].double()
        if not len(held):
            assert math.isnan(column.mean)
            continue
        assert column.mean == pytest.approx(float(held.mean()), abs=1e-2, rel=1e-4)
        assert column.std == pytest.approx(float(held.std(correction=0)), abs=1e-1, rel=1e-3)
        assert (column.least, column.largest) == (float(held.min()), float(held.max()))
    expected = (~fine).any(1).nonzero().reshape(-1).tolist()
    only_mask = bool((values[~fine] == -math.inf).all()) and not bool((values[fine] != 0).any())
    assert field.non_finite == (0 if only_mask and fine.any() else len(expected))


def test_classes_order_and_copies() -> None:
    x = torch.randn(60, 3)
    x[31] = x[30]
    data = described(DataLoader(TensorDataset(x, torch.arange(60) // 20), 6))
    assert data.train.target is not None
    assert data.train.target.counts == {0: 20, 1: 20, 2: 20}
    assert data.train.runs == pytest.approx(3 / 41)
    assert (data.train.duplicates, data.train.commonest, data.train.read) == (1, 2, 60)
    assert data.train.repeatable is True
    assert described(DataLoader(TensorDataset(x, Y.repeat(3)), 6, shuffle=True)).train.runs is None


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60))
def test_runs_of_random_orders_average_one(labels: list[int]) -> None:
    orders = [random.Random(seed).sample(labels, len(labels)) for seed in range(400)]
    ratios = [runs_ratio(order) for order in orders]
    if len(set(labels)) < 2:
        assert ratios == [None] * 400
    else:
        assert sum(r for r in ratios if r is not None) / 400 == pytest.approx(1, abs=0.15)


def test_a_slow_dataset_is_looked_at_in_part() -> None:
    class Slow(Dataset[Any]):
        def __len__(self) -> int:
            return 10_000

        def __getitem__(self, index: int) -> Any:
            time.sleep(0.005)
            return X[index % 20], index % 2

    train = described(DataLoader(Slow(), 8), seconds=0.4).train
    assert 0 < train.read < 10_000
    assert train.size == 10_000


def test_what_cannot_be_read_is_left_out_and_said() -> None:
    class Damaged(Dataset[Any]):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> Any:
            if index in (3, 8):
                raise OSError(f"damaged file {index}")
            return X[index % 20], index % 2

    data = described(DataLoader(Damaged(), 8), [None])
    assert data.train.read == 28
    assert "damaged file" in data.train.problem
    assert data.validation is None
    assert "gives None" in data.problem


# ----------------------------------------------------------------------------------------- copies


def compared(x: Tensor, other: Tensor) -> Data:
    zeros = torch.zeros(max(len(x), len(other)))
    return described(
        DataLoader(TensorDataset(x, zeros[: len(x)]), 16),
        DataLoader(TensorDataset(other, zeros[: len(other)]), 16),
        seconds=60,
    )


def copies(data: Data) -> tuple[int, int, bool]:
    assert data.overlap is not None
    return data.overlap.exact, data.overlap.near, data.overlap.excess > 0


def test_the_same_entries_are_found_through_subsets_and_augmentation() -> None:
    class Augmented(Dataset[Any]):
        def __len__(self) -> int:
            return 50

        def __getitem__(self, index: int) -> Any:
            return torch.randn(4), index

    whole = Augmented()
    train, val = Subset(whole, range(40)), Subset(ConcatDataset([whole]), range(30, 50))
    data = described(DataLoader(train, 8), DataLoader(val, 8))
    assert data.overlap is not None
    assert (data.overlap.same, data.overlap.excess) == (10, 10)
    clean = described(*(DataLoader(part, 8) for part in random_split(whole, [40, 10])))
    assert clean.overlap is not None
    assert (clean.overlap.same, clean.overlap.excess) == (0, 0)


def test_data_that_are_made_up_at_each_question_have_no_entries() -> None:
    class MadeUp(Dataset[Any]):
        def __len__(self) -> int:
            return 50

        def __getitem__(self, _: int) -> Any:
            x = torch.randn(4)
            return x, x.sum()

    whole = MadeUp()
    data = described(DataLoader(whole, 8), DataLoader(whole, 8))
    assert data.overlap is not None
    assert data.overlap.same == 0


@pytest.mark.parametrize("seed", range(3))
def test_one_copy_among_samples_of_many_values_is_a_leak(seed: int) -> None:
    torch.manual_seed(seed)
    x, other = torch.randn(300, 8), torch.randn(60, 8)
    assert copies(compared(x, other)) == (0, 0, False)
    other[7] = x[11]
    data = compared(x, other)
    assert copies(data) == (1, 0, True)
    assert data.overlap is not None
    assert list(data.overlap.pairs) == [(7, 11)]
    other[7] += 1e-3
    assert copies(compared(x, other)) == (0, 1, True)


@pytest.mark.parametrize("seed", range(3))
def test_equal_samples_of_few_values_are_no_leak_unless_there_are_too_many(seed: int) -> None:
    torch.manual_seed(seed)
    answers = torch.randint(0, 3, (500, 8)).float()
    x, other = answers[:400], answers[400:].clone()
    exact, _, is_leak = copies(compared(x, other))
    assert exact > 0
    assert not is_leak
    other[:50] = x[:50]
    assert copies(compared(x, other))[2]


def test_samples_without_information_are_not_compared() -> None:
    blank = torch.zeros(100, 1, 8, 8)
    data = compared(blank, blank[:40])
    assert data.overlap is not None
    assert (data.overlap.exact, data.overlap.compared) == (0, 0)
    texts = [(["", " ", "a word", "other"], Y[:4])]
    found = described(texts, [(["", " "], Y[:2])]).overlap
    assert found is not None
    assert found.compared == 0


@pytest.mark.parametrize("how", ["shifted", "brighter", "resaved"])
def test_near_copies_of_images_are_found(how: str) -> None:
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    x, other = images[:1400], images[1400:].clone()
    assert not copies(compared(x, other))[2]
    changed = {
        "shifted": nn.functional.pad(x[:6], (1, 0))[..., :8],
        "brighter": x[:6] * 1.2 + 0.1,
        "resaved": x[:6] + 0.01 * torch.randn(6, 1, 8, 8),
    }[how]
    other[:6] = changed
    assert copies(compared(x, other)) == (0, 6, True)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(1, 3)), min_size=1, max_size=3), st.data()
)
def test_the_tail_is_no_less_than_the_probability(
    chances: list[tuple[float, int]], data: st.DataObject
) -> None:
    events = [chance for chance, times in chances for _ in range(times)]
    least = data.draw(st.integers(0, len(events)))
    exact = sum(
        math.prod(p if i in hits else 1 - p for i, p in enumerate(events))
        for count in range(least, len(events) + 1)
        for hits in map(set, combinations(range(len(events)), count))
    )
    assert _tail(chances, least) >= exact * (1 - 1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 9))
def test_hashes_do_not_see_padding_and_see_the_rest(ids: list[int], more: int) -> None:
    row = torch.tensor([ids])
    padded = torch.tensor([ids + [0] * more])
    assert hashed([row])[0] == hashed([padded])[0]
    other = torch.tensor([[*ids[:-1], ids[-1] + 1]])
    assert hashed([row])[0] != hashed([other])[0]
    assert hashed([torch.tensor([[0.0, 1.0]])])[0] == hashed([torch.tensor([[-0.0, 1.0]])])[0]


# ------------------------------------------------------------------------------------------ shift


def test_the_tests_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(300, generator=generator), torch.randn(200, generator=generator) * 1.2
    p, distance = kolmogorov_smirnov(one.double(), other.double())
    expected = stats.ks_2samp(one.numpy(), other.numpy(), method="exact")
    assert distance == pytest.approx(expected.statistic)
    assert p == pytest.approx(expected.pvalue, rel=0.1)
    from collections import Counter

    counts = Counter({0: 50, 1: 30, 2: 20}), Counter({0: 20, 1: 30, 2: 30})
    p_classes, variation = of_classes(*counts)
    table = [[50, 30, 20], [20, 30, 30]]
    assert p_classes == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue)
    assert variation == pytest.approx(0.25)


def test_p_values_of_equal_distributions_are_no_smaller_than_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(300):
        both = torch.randn(150, 4, generator=generator)
        p, _, _ = of_inputs(both[:100], both[100:])
        assert p is not None
        values.append(p)
    # 15 of 300 are below 0.05 on average; 29 or more in one of 1000 such draws.
    assert sum(p < 0.05 for p in values) < 29


def test_a_shift_is_found_with_its_feature_and_size() -> None:
    torch.manual_seed(0)
    x, other = torch.randn(400, 5), torch.randn(150, 5)
    other[:, 3] += 0.8
    shift = compared(x, other).shift
    assert shift is not None
    assert shift.inputs is not None
    assert shift.inputs < 1e-6
    assert shift.feature == "input[3]"
    assert shift.distance == pytest.approx(0.8, abs=0.2)


def test_part_of_a_stream_is_not_compared_as_if_it_were_all() -> None:
    def sorted_rows() -> Iterator[Any]:
        for start in range(10**9):
            yield torch.full((8, 2), float(start)), torch.zeros(8)

    data = described(sorted_rows, [(X, torch.zeros(20))], seconds=1)
    assert data.shift is not None
    assert data.shift.inputs is None


# ------------------------------------------------------------------------------------ all together


SETUP = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    x = torch.randn(200, 6)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train_loader = DataLoader(TensorDataset(x[:150], y[:150]), batch_size=10, shuffle=True)
"""


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ("[None]", "val_loader gives None"),
        ("[]", "val_loader is empty"),
        ("lambda: 1 / 0", "val_loader raised ZeroDivisionError"),
        ("DataLoader([1, 'a', None], 3)", "val_loader raised TypeError"),
        ("[(x[:5, :4], y[:5])]", "validation raised RuntimeError"),
    ],
)
def test_validation_data_that_fail_cost_no_finding(loader: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(textwrap.dedent(SETUP) + f"val_loader = {loader}\n", encoding="utf-8")
    [target] = trainlint.check(path).targets
    assert target.status == "ok"
    assert {"data", "probe"} <= set(target.stages)
    assert any(said in note for note in target.notes)
    assert all("\n" not in note for note in target.notes)
