"""The learning rate range test of Smith 2017 (arXiv:1506.01186), on a copy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from trainlint.generalization.trials import Copy, copied
from trainlint.measure.pulse import seed_generators
from trainlint.preserve import random_states
from trainlint.probe.batches import (
    Batch,
    ProbeProblem,
    batches,
    described,
    moved,
    same_draws,
    split,
)
from trainlint.probe.loop import loss_of
from trainlint.surgery.case import Case, PatchProblem

if TYPE_CHECKING:
    from torch.optim import Optimizer

_LOWEST: Final = 1e-6
_HIGHEST: Final = 10.0
_STEPS: Final = 80
_SECONDS: Final = 20.0
_FEWEST: Final = 10
# The loss is smoothed over about five steps, and has diverged at twice its best.
_SMOOTHING: Final = 0.8
_DIVERGED: Final = 2.0


def range_test(case: Case, scale_to: Callable[[Optimizer, float], None]) -> float:
    """A learning rate for the largest of the optimizer's groups.

    A copy is trained with a rate that grows from 1e-6 to 10 in equal factors, until its smoothed loss is
    twice the least. The rate is where that loss falls fastest over the logarithm of the rate, and at most
    a tenth of the one at which it is least, near which it is about to diverge. Raises `PatchProblem`
    where the loss falls nowhere.
    """
    losses, rates = _swept(case, scale_to)
    return chosen(rates, losses)


def chosen(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate, of the smoothed losses of a sweep that ended where they diverged."""
    known = [loss for loss in losses if math.isfinite(loss)]
    if len(known) < _FEWEST:
        raise PatchProblem("the range test diverges at once")
    slopes = [
        (known[i + 1] - known[i - 1]) / (math.log(rates[i + 1]) - math.log(rates[i - 1]))
        for i in range(1, len(known) - 1)
    ]
    steepest = min(range(len(slopes)), key=slopes.__getitem__)
    if slopes[steepest] >= 0:
        raise PatchProblem("in the range test the loss falls at no learning rate")
    rate = rates[steepest + 1]
    least = min(range(len(known)), key=known.__getitem__)
    return min(rate, rates[least] / 10)


def _swept(
    case: Case, scale_to: Callable[[Optimizer, float], None]
) -> tuple[list[float], list[float]]:
    """(smoothed losses, rates). The loss of each step is that before it."""
    setup = case.setup
    if setup.train_loader is None or setup.step is not None or case.optimizer is None:
        raise PatchProblem(
            "a range test needs an optimizer, and a loader that our loop can train on"
        )
    subject = copied(case.model, setup, case.optimizer)
    if isinstance(subject.optimizer, torch.optim.LBFGS):
        raise PatchProblem("LBFGS searches its step itself")
    device = next((p.device for p in subject.model.parameters()), torch.device("cpu"))
    name = setup.names.get("train_loader", "train_loader")
    rates = [_LOWEST * (_HIGHEST / _LOWEST) ** (i / (_STEPS - 1)) for i in range(_STEPS)]
    smoothed: list[float] = []
    average = 0.0
    deadline = time.monotonic() + _SECONDS
    setup = subject.setup
    with (
        random_states(),
        same_draws(setup.train_loader),
    ):
        seed_generators(case.seed)
        subject.model.train()
        for index, (rate, raw) in enumerate(
            zip(rates, batches(setup.train_loader, name), strict=False)
        ):
            scale_to(subject.optimizer, rate)
            batch = split(raw, subject.model, setup.loss, name)
            try:
                value = _step(subject, batch, device)
            except ProbeProblem:
                raise
            except Exception as error:
                raise PatchProblem(f"the range test raised {described(error)}") from error
            average = _SMOOTHING * average + (1 - _SMOOTHING) * value
            smoothed.append(average / (1 - _SMOOTHING ** (index + 1)))
            if not math.isfinite(smoothed[-1]) or smoothed[-1] > _DIVERGED * max(
                min(smoothed), 1e-12
            ):
                break
            if time.monotonic() > deadline:
                raise PatchProblem(f"a range test takes longer than {_SECONDS:.0f} s")
    return smoothed, rates


def _step(subject: Copy, batch: Batch, device: torch.device) -> float:
    here = replace(
        batch,
        args=moved(batch.args, device),
        kwargs=moved(dict(batch.kwargs), device),
        target=moved(batch.target, device),
    )
    subject.optimizer.zero_grad()
    loss = loss_of(subject.model, here, subject.setup.loss)
    loss.backward()  # type: ignore[no-untyped-call]
    subject.optimizer.step()
    return float(loss.detach())
