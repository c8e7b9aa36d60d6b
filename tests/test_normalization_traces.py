"""Rules on the batch norms of a watched loop: what they find, at which line, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from watching import found_by, is_at, net, sgd, step

CODES = ("NRM004",)


found = partial(found_by, CODES)


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
