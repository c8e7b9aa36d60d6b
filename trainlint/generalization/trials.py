"""One training on some of the samples, judged on others: what folds, sweeps and remedies compare.

Comes in: a model with its setup, the samples of its loader, and a `Plan`. Goes out: checkpoints. The
model and its optimizer are copied; nothing of the user's changes but random states, which the caller
restores.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainlint.capture.tracer import copies_of_lazy
from trainlint.generalization.meter import MOST, Meter
from trainlint.measure.pulse import seed_generators
from trainlint.probe.batches import Batch, ProbeProblem, described, split
from trainlint.probe.loop import checkpoints, step_of

if TYPE_CHECKING:
    from trainlint.data.pool import Pool
    from trainlint.generalization.curves import Generalization
    from trainlint.probe.setup import Setup


@dataclass(frozen=True)
class Plan:
    """Which samples to train and to validate on, by number, and for how many optimizer steps.

    `seed` decides the order of the samples, dropout and augmentation. `most` samples of each set are
    scored, at six points of the way or, with `ends_only`, before and after.
    """

    train: Sequence[int]
    validation: Sequence[int]
    steps: int
    seed: int = 0
    seconds: float = 60.0
    most: int = MOST
    ends_only: bool = False


@dataclass(frozen=True)
class Copy:
    """A model with an optimizer and a setup of its own, to be trained and thrown away."""

    model: nn.Module
    optimizer: Any
    setup: Setup


def copied(model: nn.Module, setup: Setup, optimizer: Any) -> Copy:
    """All of it once more, sharing nothing; an optimizer keeps its options and its state.

    `optimizer` is one, or a function of the model that makes one. Raises `ProbeProblem` where that fails.
    """
    made = None if callable(optimizer) else optimizer
    loss = setup.loss if isinstance(setup.loss, nn.Module) else None
    try:
        memo = copies_of_lazy(model)
        given, (model, made, loss) = made, copy.deepcopy((model, made, loss), memo)
        # Optimizers leave out what their base class does not know: LBFGS its parameters.
        for name in vars(given).keys() - vars(made).keys() if given is not None else ():
            # A scheduler puts a `step` in its place that steps the one it was made for.
            if not isinstance(value := getattr(given, name), FunctionType):
                setattr(made, name, copy.deepcopy(value, memo))
    except Exception as error:
        raise ProbeProblem(f"the model cannot be copied: {described(error)}") from error
    if callable(optimizer):
        made = optimizer(model)
        if not isinstance(made, torch.optim.Optimizer):
            raise ProbeProblem(
                f"the optimizer's function makes {type(made).__name__}, no optimizer"
            )
    return Copy(model, made, setup if loss is None else replace(setup, loss=loss))


def trial(
    subject: Copy,
    pool: Pool,
    plan: Plan,
    *,
    held_out: Pool | None = None,
    guess: float | None = None,
    prepared: Callable[[Batch], Batch] | None = None,
    before_step: Callable[[], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Generalization:
    """Train the copy, and measure it on the way.

    Validation samples are of `held_out`, if given, else of the same pool. `prepared` changes a training
    batch (noise, augmentation), `before_step` the gradients (L1). Raises `ProbeProblem` where data cannot
    be read or evaluated, or the loss is no number; what the model raises in training passes through.
    """
    with subject.setup.entered():
        seed_generators(plan.seed)
        meter = Meter(
            subject.model,
            subject.setup,
            pool.only(plan.train),
            (held_out or pool).only(plan.validation),
            most=plan.most,
        )
        points = frozenset({0}) if plan.ends_only else checkpoints(plan.steps)
        device = next((p.device for p in subject.model.parameters()), torch.device("cpu"))
        deadline = time.monotonic() + plan.seconds
        done = 0
        spent = 0.0
        subject.model.train()
        for batch in _passes(subject, meter.train, plan):
            # Of a slow model fewer points are measured, not fewer samples: trials are compared by these.
            if done in points and spent <= plan.seconds / 2:
                started = time.monotonic()
                _measure(meter, done)
                spent += time.monotonic() - started
            if done >= plan.steps or time.monotonic() > deadline:
                break
            ready = batch if prepared is None else prepared(batch)
            step_of(
                subject.model, subject.setup, subject.optimizer, ready, done, device, before_step
            )
            done += 1
            if progress is not None:
                progress(done)
        if meter.checkpoints[-1].step != done:
            _measure(meter, done)
        measured = meter.generalization(done, guess)
        assert measured is not None
        return measured


def _measure(meter: Meter, step: int) -> None:
    meter.measure(step, last=True)
    if meter.problem:
        raise ProbeProblem(meter.problem)


def _passes(subject: Copy, pool: Pool, plan: Plan) -> Iterator[Batch]:
    """The training samples, epoch after epoch, in a new order each time where the loader shuffles."""
    generator = torch.Generator().manual_seed(plan.seed)
    while True:
        order = (
            range(pool.size)
            if pool.shuffles is False
            else torch.randperm(pool.size, generator=generator).tolist()
        )
        # A sample alone has no statistics for a BatchNorm: it waits for the next pass.
        if pool.batch_size > 1 and pool.size > 1 and pool.size % pool.batch_size == 1:
            order = order[:-1]
        for raw in pool.batches(order):
            yield split(raw, subject.model, subject.setup.loss, pool.name)
