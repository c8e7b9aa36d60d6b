"""Rules on the modes of a watched loop: what they find, at which line, and what they leave alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset
from watching import found_by, is_at, net, sgd, step

CODES = (
    "REG004",
    "REG005",
)


found = partial(found_by, CODES)


def score(model: nn.Module) -> float:
    return sum(float(model(torch.randn(16, 8)).mean().detach()) for _ in range(3))  # here


# ---------------------------------------------------------------------- REG004


def never_back_to_training() -> None:
    model = net()
    optimizer = sgd(model)
    for _ in range(3):
        for _ in range(6):
            step(model, optimizer)
        model.eval()  # here
        with torch.no_grad():
            score(model)


def test_eval_mode_in_training() -> None:
    finding = found(never_back_to_training)["REG004"]
    assert finding.evidence == {"steps": 12, "first_step": 6, "steps_in_train_mode": 6}
    assert is_at(finding, never_back_to_training)


def trained_in_eval_mode_from_the_start() -> None:
    model = net().eval()
    optimizer = sgd(model)
    for _ in range(12):
        step(model, optimizer)


def attacks_in_eval_mode() -> None:
    model = net()
    optimizer = sgd(model)
    for _ in range(8):
        model.eval()
        x = torch.randn(32, 8, requires_grad=True)
        F.cross_entropy(model(x), torch.zeros(32, dtype=torch.long)).backward()
        model.train()
        step(model, optimizer)


def a_critic_that_scores_in_eval_mode() -> None:
    maker, critic = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), net()
    makes, judges = sgd(maker), sgd(critic)
    for _ in range(8):
        critic.train()
        judges.zero_grad()
        with torch.no_grad():
            made = maker(torch.randn(16, 4))
        (critic(made).mean() - critic(torch.randn(16, 8)).mean()).backward()
        judges.step()
        critic.eval()
        makes.zero_grad()
        (-critic(maker(torch.randn(16, 4))).mean()).backward()
        makes.step()


def statistics_frozen_after_an_epoch() -> None:
    model = net()
    optimizer = sgd(model)
    for epoch in range(2):
        model.train()
        if epoch:
            model[1].eval()
        for _ in range(6):
            step(model, optimizer)


# ---------------------------------------------------------------------- REG005


def scored_in_train_mode() -> None:
    model = net()
    optimizer = sgd(model)
    for _ in range(3):
        for _ in range(8):
            step(model, optimizer)
        with torch.no_grad():
            score(model)


def scored_in_train_mode_and_with_graphs() -> None:
    model = net()
    optimizer = sgd(model)
    for _ in range(3):
        for _ in range(8):
            step(model, optimizer)
        score(model)


@pytest.mark.parametrize("loop", [scored_in_train_mode, scored_in_train_mode_and_with_graphs])
def test_train_mode_in_validation(loop: Callable[[], None]) -> None:
    finding = found(loop)["REG005"]
    assert finding.evidence == {"passes": 3, "first_step": 8}
    assert finding.severity == "warning"
    assert is_at(finding, score)


def scored_with_graphs() -> None:
    model = net()
    optimizer = sgd(model)
    for _ in range(3):
        model.train()
        for _ in range(8):
            step(model, optimizer)
        model.eval()
        score(model)


def test_graphs_that_nobody_uses_are_an_info() -> None:
    finding = found(scored_with_graphs)["REG005"]
    assert finding.severity == "info"
    assert finding.fixes[0].title.startswith("with torch.no_grad()")


def statistics_estimated_anew() -> None:
    model = net()
    optimizer, averaged = sgd(model), AveragedModel(model)
    for _ in range(8):
        step(model, optimizer)
    averaged.update_parameters(model)
    loader = DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=16)
    update_bn(loader, averaged)
    update_bn(loader, model)


def samples_of_dropout() -> None:
    model = net()
    optimizer = sgd(model)
    for _ in range(8):
        step(model, optimizer)
    x = torch.randn(16, 8)
    with torch.no_grad():
        torch.stack([model(x) for _ in range(5)]).std(0)


def a_mean_teacher() -> None:
    model = net()
    teacher, optimizer = copy.deepcopy(model), sgd(model)
    for _ in range(8):
        with torch.no_grad():
            score(teacher)
        step(model, optimizer)


def a_gradient_cache() -> None:
    model = net()
    optimizer = sgd(model)
    for _ in range(8):
        parts = torch.randn(32, 8).split(8)
        with torch.no_grad():
            cached = torch.cat([model(part) for part in parts])
        cached.requires_grad_()
        F.cross_entropy(cached, torch.arange(32) % 4).backward()
        assert cached.grad is not None
        optimizer.zero_grad()
        for part, gradient in zip(parts, cached.grad.split(8), strict=True):
            model(part).backward(gradient)
        optimizer.step()


# ---------------------------------------------------------------------- sound loops


@pytest.mark.parametrize(
    "loop",
    [
        trained_in_eval_mode_from_the_start,
        attacks_in_eval_mode,
        a_critic_that_scores_in_eval_mode,
        statistics_frozen_after_an_epoch,
        statistics_estimated_anew,
        samples_of_dropout,
        a_mean_teacher,
        a_gradient_cache,
    ],
)
def test_sound_loops_are_left_alone(loop: Callable[[], None]) -> None:
    assert found(loop) == {}
