"""What the tests of rules on watched loops share: a small model, a step, and what is found where."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import trainlint
from trainlint.records import ReportedFinding


def found_by(
    codes: Collection[str], loop: Callable[[], object], error: type[Exception] | None = None
) -> dict[str, ReportedFinding]:
    """The findings of these rules on the loop, by code. It must end with `error`, if given."""
    watch = trainlint.watch(every=1, select=tuple(codes))
    with nullcontext() if error is None else pytest.raises(error), watch:
        loop()
    assert [target.status for target in watch.report().targets] == ["ok"]
    return {finding.code: finding for finding in watch.findings}


def is_at(finding: ReportedFinding, loop: Callable[[], object]) -> bool:
    """Whether it names the line of the loop that ends with `# here`."""
    lines, first = inspect.getsourcelines(loop)
    row = first + next(i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    assert Path(finding.filename or "").name == Path(inspect.getfile(loop)).name
    return finding.location is not None and finding.location.row == row


def text_at(finding: ReportedFinding, file: str) -> str:
    """The line of this file that a finding names."""
    assert finding.filename is not None
    assert Path(finding.filename).name == Path(file).name
    assert finding.location is not None
    return Path(file).read_text(encoding="utf-8").splitlines()[finding.location.row - 1]


def net(norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 32), norm or nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4)
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, size: int = 32) -> None:
    x = torch.randn(size, 8)
    loss = functional.cross_entropy(model(x), x[:, :4].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)
