"""The pass by a few samples: whatever can learn at all can learn these by heart."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from trainlint.observe.hooks import observed
from trainlint.observe.observer import TrainingObserver
from trainlint.probe.batches import Batch, first_samples, moved, size_of
from trainlint.probe.loop import loss_of
from trainlint.probe.memorisation import Memorisation
from trainlint.sites import outermost

if TYPE_CHECKING:
    from trainlint.probe.setup import Setup

SAMPLES: Final = 16
LEAST_SAMPLES: Final = 8
_STEPS: Final = 60
_RATES: Final = (3e-3, 3e-4, 3e-2)
_LAST_STEPS: Final = 400
# Shares of the constant answer's loss: what is left of a batch learnt by heart, or well on its way to it.
KNOWN: Final = 0.1
HALF: Final = 0.5
UNKNOWN: Final = "the best constant answer to this loss is not known"
_WATCHED: Final = 2


def memorise(
    model: nn.Module,
    setup: Setup,
    batch: Batch,
    restored: Callable[[], Any],
    seconds: float,
    guess: float | None = None,
) -> Memorisation | str:
    """Train on the first 16 samples of the batch alone, with Adam, or say why that tells nothing.

    `restored` gives a context manager that puts the model back as it was. Learning rates 3e-3, 3e-4 and
    3e-2 in turn, 60 steps each (Karpathy 2019, "overfit a single batch of only a few examples"), until
    one leaves less than half of the best constant answer's loss; if none does, the best of them once
    more with 400 steps. Dropout is off. `guess` is that loss, where it need not be found out.
    """
    size = size_of((batch.args, dict(batch.kwargs), batch.target))
    if size is None:
        return "the samples of a batch cannot be told apart"
    if size < LEAST_SAMPLES:
        return f"a batch has {size} samples, of which at least {LEAST_SAMPLES} are needed"
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    few = Batch(
        *moved(first_samples((batch.args, dict(batch.kwargs), batch.target), SAMPLES), device)
    )
    if _has_twins(few):
        return "equal samples have different targets"
    deadline = time.monotonic() + seconds
    attempts: list[tuple[float, list[float]]] = []

    def is_learnt() -> bool:
        return guess is not None and min(attempts[-1][1]) < HALF * guess

    def tried(rate: float, steps: int) -> str | None:
        nonlocal guess
        with restored():
            known, losses = _attempt(model, setup, few, rate, steps, deadline, guess)
        if known is None or not losses:
            if time.monotonic() > deadline:
                return f"not finished in {seconds:g} s"
            return UNKNOWN
        guess = known
        attempts.append((rate, losses))
        return None

    for rate in _RATES:
        problem = tried(rate, _STEPS)
        if problem is not None:
            return problem
        if is_learnt():
            break
    else:
        problem = tried(min(attempts, key=lambda attempt: min(attempt[1]))[0], _LAST_STEPS)
        if problem is not None:
            return problem
    rate, losses = min(attempts, key=lambda attempt: min(attempt[1]))
    assert guess is not None
    if time.monotonic() > deadline and min(losses) >= HALF * guess:
        return f"not finished in {seconds:g} s"
    return Memorisation(
        samples=min(size, SAMPLES),
        guess=guess,
        losses=tuple(losses),
        rate=rate,
        outputs=few.target.numel() if isinstance(few.target, Tensor) else 0,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        site=setup.loss_site(),
    )


def train_without_dropout(model: nn.Module) -> None:
    """Set train mode, with dropout off."""
    model.train()
    for module in model.modules():
        if "dropout" in type(module).__name__.lower():
            module.training = False


def _has_twins(batch: Batch) -> bool:
    """Whether two samples have equal inputs, as far as tensors can tell, but not equal targets."""
    if not isinstance(batch.target, Tensor) or not batch.target.dim():
        return False
    inputs = [v for v in (*batch.args, *batch.kwargs.values()) if isinstance(v, Tensor) and v.dim()]
    size = batch.target.shape[0]
    if not inputs or any(v.shape[0] != size for v in inputs):
        return False
    rows = torch.cat([v.reshape(size, -1).double().cpu() for v in inputs], dim=1)
    _, twins = torch.unique(rows, dim=0, return_inverse=True)
    both = torch.cat([twins[:, None], batch.target.reshape(size, -1).double().cpu()], dim=1)
    return len(torch.unique(both, dim=0)) > int(twins.max()) + 1


@outermost
def _attempt(
    model: nn.Module,
    setup: Setup,
    batch: Batch,
    rate: float,
    steps: int,
    deadline: float,
    guess: float | None,
) -> tuple[float | None, list[float]]:
    """(loss of the best constant answer, losses); the first is None where it is not known.

    Watched for two steps, which know the constant answer, then bare.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return None, []
    train_without_dropout(model)
    optimizer = torch.optim.Adam(parameters, rate)
    observer = TrainingObserver(period=1)
    losses: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(observed(observer))
        for index in range(steps):
            if index == _WATCHED:
                stack.close()
                guess = _guess(observer, losses) if guess is None else guess
                if guess is None:
                    return None, []
            if time.monotonic() > deadline:
                break
            optimizer.zero_grad()
            loss = loss_of(model, batch, setup.loss)
            losses.append(float(loss.detach()))
            if not torch.isfinite(loss):
                break
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if guess is not None and losses[-1] < KNOWN * guess:
                break
    return guess, [loss for loss in losses if loss == loss]


def _guess(observer: TrainingObserver, losses: list[float]) -> float | None:
    """The best constant answer's loss, where the one loss that is known makes up all of the loss."""
    objectives = [o for o in observer.trace().objectives if o.guess is not None]
    if len(objectives) != 1 or not objectives[0].values or not losses:
        return None
    objective = objectives[0]
    whole = abs(objective.values[0] - losses[0]) <= 0.02 * abs(losses[0])
    return objective.guess if whole and objective.guess else None
