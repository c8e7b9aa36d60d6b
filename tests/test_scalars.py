"""`watch(log=...)`: what is recorded goes to a function, or to TensorBoard, and is read back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import trainlint
from trainlint.errors import UsageError


def trained(steps: int, log: Any, **options: Any) -> tuple[trainlint.watch, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with trainlint.watch(model, log=log, **options) as watched:
        for _ in range(steps):
            inputs = torch.randn(32, 8)
            loss = functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return watched, model


def test_each_recorded_step_comes_once_and_in_order() -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    watched, _ = trained(250, lambda figures, step: rows.append((step, figures)), every=2)
    steps = [step for step, _ in rows]
    assert steps == sorted(set(steps)) == list(watched.trace.recorded)
    losses = dict(watched.trace.losses)
    assert all(figures["loss"] == losses[step] for step, figures in rows)
    first, last = rows[0][1], rows[-1][1]
    assert first["learning_rate/0"] == 0.1
    assert last["learning_rate/0"] == pytest.approx(0.1 * 0.1 ** (steps[-1] // 3))
    assert {"gradient/0.weight", "update/2.bias", "weight/0.weight", "rms/0.linear"} <= set(first)
    assert {"zero/1.relu", "saturated/1.relu"} & set(first)
    assert all(math.isfinite(value) for _, figures in rows for value in figures.values())


def test_what_is_recorded_is_what_torch_computes() -> None:
    rows: dict[int, dict[str, float]] = {}
    norms: list[float] = []
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with trainlint.watch(model, log=lambda figures, step: rows.update({step: figures}), every=1):
        for _ in range(5):
            loss: Tensor = functional.mse_loss(model(torch.randn(16, 4)), torch.randn(16, 1))
            optimizer.zero_grad()
            loss.backward()
            assert model.weight.grad is not None
            norms.append(float(model.weight.grad.norm()))
            optimizer.step()
    assert [rows[step]["gradient/weight"] for step in range(5)] == pytest.approx(norms, rel=1e-5)


def test_tensorboard_reads_it_back(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        watched, _ = trained(20, writer, every=1)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(watched.trace.recorded)
    values = [event.value for event in events.Scalars("loss")]
    assert values == pytest.approx([value for _, value in watched.trace.losses], rel=1e-6)
    assert "gradient/0.weight" in events.Tags()["scalars"]


def test_a_log_that_raises_does_not_reach_the_loop() -> None:
    def log(figures: dict[str, float], step: int) -> None:
        raise OSError("disk full")

    watched, model = trained(120, log)
    assert "not logged from step 0 on: OSError: disk full" in watched.report().targets[0].notes
    _, other = trained(120, None)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_a_later_process_logs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows: list[int] = []
    trained(20, lambda figures, step: rows.append(step))
    assert rows == []


def test_what_cannot_be_called_is_an_error() -> None:
    with pytest.raises(UsageError, match="a function of"):
        trainlint.watch(log="runs/1")  # type: ignore[arg-type]
