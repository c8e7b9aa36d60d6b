"""Whether a gap is overfitting, or a difference between the two sets of data: more trainings tell.

Each has to do without some of the training samples. These are as new to the model as validation's, and
come from where the others come from: what they cost more than those is overfitting, what validation costs
more than they do is a shift. Of few samples each is kept out once, since a fifth of them would tell little.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from trainlint.generalization.curves import HeldOut, Scores
from trainlint.generalization.meter import MOST, Meter
from trainlint.generalization.trials import Plan, copied, trial
from trainlint.probe.batches import ProbeProblem

if TYPE_CHECKING:
    from torch import nn

    from trainlint.data.pool import Pool
    from trainlint.probe.setup import Setup

_SHARE: Final = 5
# Above so many training samples, a fifth of them is enough, and one training.
_FEW: Final = 500


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
    """Train copies of the model on four fifths of the samples each, and score all three sets.

    One copy where there are more than 500 samples; else five, as far as `seconds` go, so that each sample
    is kept out of one. At most 512 samples are scored of each set. Raises `ProbeProblem` where that is
    not possible; whatever the model raises passes through.
    """
    if train.size < 2 * _SHARE:
        raise ProbeProblem("there are too few training samples to keep some of them out")
    order = torch.randperm(train.size, generator=torch.Generator().manual_seed(seed)).tolist()
    deadline = time.monotonic() + seconds
    folds: list[_Fold] = []
    for number in range(_SHARE if train.size <= _FEW else 1):
        kept_out = sorted(order[number::_SHARE][:MOST])
        rest = sorted(set(order) - set(order[number::_SHARE]))
        subject = copied(model, setup, optimizer)
        left = max(1.0, deadline - time.monotonic())
        plan = Plan(rest, kept_out, steps, seed=seed, seconds=left, ends_only=True)
        last = trial(subject, train, plan).last
        meter = Meter(subject.model, subject.setup, train.only(kept_out), validation)
        meter.measure(last.step)
        if meter.problem:
            raise ProbeProblem(meter.problem)
        validated = meter.checkpoints[-1].validation
        folds.append(_Fold(rest, kept_out, last.train, last.validation, validated))
        if time.monotonic() > deadline or not folds[-1].is_of_samples:
            break
    return folds[0].alone() if len(folds) == 1 else _joined(folds)


@dataclass(frozen=True)
class _Fold:
    """One training: the numbers of the samples that it had and had not, and the scores after it."""

    rest: Sequence[int]
    kept_out: Sequence[int]
    train: Scores
    new: Scores
    validation: Scores

    @property
    def is_of_samples(self) -> bool:
        """Whether there is a loss for each sample of both parts."""
        return (len(self.train.losses), len(self.new.losses)) == (
            len(self.rest),
            len(self.kept_out),
        )

    def alone(self) -> HeldOut:
        """What this one training says."""
        return HeldOut(self.train, self.new, self.validation)


def _joined(folds: Sequence[_Fold]) -> HeldOut:
    """Each sample that was kept out, before and after: its loss as a new one, and as one of the training.

    A validation sample is scored by one of the models, as those are.
    """
    seen: dict[int, list[float]] = {}
    for fold in folds:
        for number, loss in zip(fold.rest, fold.train.losses, strict=True):
            seen.setdefault(number, []).append(loss)
    new = {n: x for fold in folds for n, x in zip(fold.kept_out, fold.new.losses, strict=True)}
    both = [number for number in sorted(new) if number in seen]
    length = min(len(fold.validation.losses) for fold in folds)
    return HeldOut(
        Scores([sum(seen[n]) / len(seen[n]) for n in both]),
        Scores([new[n] for n in both]),
        Scores([folds[i % len(folds)].validation.losses[i] for i in range(length)]),
        is_paired=True,
    )
