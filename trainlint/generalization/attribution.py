"""Whether a gap is overfitting, or a difference between the two sets of data: one more training tells.

It has to do without some of the training samples. These are as new to the model as validation's, and come
from where the others come from: what they cost more than those is overfitting, what validation costs more
than they do is a shift.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from trainlint.generalization.curves import HeldOut
from trainlint.generalization.meter import MOST, Meter
from trainlint.generalization.trials import Plan, copied, trial
from trainlint.probe.batches import ProbeProblem

if TYPE_CHECKING:
    from torch import nn

    from trainlint.data.pool import Pool
    from trainlint.probe.setup import Setup

_SHARE: Final = 5
_LEAST: Final = 20


def without_some(
    model: nn.Module,
    setup: Setup,
    optimizer: Any,
    train: Pool,
    validation: Pool,
    steps: int,
    seconds: float,
    seed: int = 0,
) -> HeldOut:
    """Train a copy of the model on four fifths of the samples, and score all three sets.

    At least 20 samples are kept out, at most half and 512. Raises `ProbeProblem` where that is not
    possible; whatever the model raises passes through.
    """
    count = min(max(train.size // _SHARE, _LEAST), train.size // 2, MOST)
    if not count:
        raise ProbeProblem("there are too few training samples to keep some of them out")
    order = torch.randperm(train.size, generator=torch.Generator().manual_seed(seed)).tolist()
    kept_out, rest = sorted(order[:count]), sorted(order[count:])
    subject = copied(model, setup, optimizer)
    plan = Plan(rest, kept_out, steps, seed=seed, seconds=seconds, ends_only=True)
    last = trial(subject, train, plan).last
    meter = Meter(subject.model, subject.setup, train.only(kept_out), validation)
    meter.measure(last.step)
    if meter.problem:
        raise ProbeProblem(meter.problem)
    return HeldOut(last.train, last.validation, meter.checkpoints[-1].validation)
