"""Rules on the batch norms of a watched loop: what they find, at which line, and what they leave alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.records import ReportedFinding

CODES = ("NRM004",)


@pytest.fixture(autouse=True)
def _small_and_the_same() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def found(
    loop: Callable[[], None], error: type[Exception] | None = None
) -> dict[str, ReportedFinding]:
    """The findings on the loop by code. It must end with `error`, if given."""
    watch = trainlint.watch(every=1, select=CODES)
    if error is None:
        with watch:
            loop()
    else:
        with pytest.raises(error), watch:
            loop()
    assert [target.status for target in watch.report().targets] == ["ok"]
    return {finding.code: finding for finding in watch.findings}


def is_at(finding: ReportedFinding, loop: Callable[[], object]) -> bool:
    """Whether it names the line that ends with `# here`."""
    lines, first = inspect.getsourcelines(loop)
    row = first + next(i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    assert Path(finding.filename or "").name == Path(__file__).name
    return finding.location is not None and finding.location.row == row


def net(norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 32), norm or nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4)
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, size: int = 32) -> None:
    x = torch.randn(size, 8)
    loss = F.cross_entropy(model(x), x[:, :4].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


# ---------------------------------------------------------------------- NRM004


def pairs() -> None:
    model = net()
    optimizer = sgd(model)
    for _ in range(8):
        step(model, optimizer, size=2)


def a_rest_of_one() -> None:
    model = net()
    optimizer = sgd(model)
    for (x,) in DataLoader(TensorDataset(torch.randn(65, 8)), batch_size=16):
        loss = F.cross_entropy(model(x), x[:, :4].argmax(1))  # here
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_batchnorm_over_two_samples() -> None:
    finding = found(pairs)["NRM004"]
    assert finding.evidence == {"values_a_channel": 2, "steps": 8, "recorded": 8}
    assert finding.module == "1"


def test_a_last_batch_of_one() -> None:
    finding = found(a_rest_of_one, ValueError)["NRM004"]
    assert finding.severity == "error"
    assert finding.evidence == {"size": [1, 32], "step": 4, "values_before": [16]}
    assert "drop_last=True" in finding.fixes[0].title
    assert is_at(finding, a_rest_of_one)


def two_images() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))
    optimizer = sgd(model)
    for _ in range(8):
        loss = F.cross_entropy(model(torch.randn(2, 1, 8, 8)), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def pairs_with_frozen_statistics() -> None:
    model = net().eval()
    optimizer = sgd(model)
    for _ in range(8):
        step(model, optimizer, size=2)


# ---------------------------------------------------------------------- sound loops


@pytest.mark.parametrize(
    "loop",
    [
        two_images,
        pairs_with_frozen_statistics,
    ],
)
def test_sound_loops_are_left_alone(loop: Callable[[], None]) -> None:
    assert found(loop) == {}
