"""Scores of the same few training and validation samples, again and again while a model trains."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from trainlint.generalization.curves import Checkpoint, Generalization, Scores
from trainlint.generalization.scoring import scored
from trainlint.observe.hooks import unobserved
from trainlint.preserve import random_states
from trainlint.probe.batches import Batch, split
from trainlint.probe.loop import own_loss

if TYPE_CHECKING:
    from torch import nn

    from trainlint.data.pool import Pool
    from trainlint.probe.setup import Setup

MOST: Final = 512
_BATCH: Final = 64


@dataclass
class Meter:
    """Evaluates `model` in eval mode on at most 512 samples of each set, drawn once.

    Nothing within is observed, and the random state, the modes and buffers of the model stay as they are.
    After `seconds` of all evaluations it measures no more, but for the last checkpoint.
    """

    model: nn.Module
    setup: Setup
    train: Pool
    validation: Pool
    seconds: float = math.inf
    most: int = MOST
    checkpoints: list[Checkpoint] = field(default_factory=list)
    unit: str = "sample"
    metric: str = ""
    _drawn: tuple[list[Batch], list[Batch]] | None = None
    _spent: float = 0.0

    def measure(self, step: int, *, last: bool = False) -> None:
        """Add a checkpoint after so many steps. Raises `ProbeProblem` where the data cannot be read."""
        if self._spent > self.seconds and not last:
            return
        started = time.monotonic()
        modes = [(module, module.training) for module in self.model.modules()]
        with unobserved(), random_states():
            try:
                self.model.eval()
                train, validation = (self._scores(batches) for batches in self._samples())
            finally:
                for module, mode in modes:
                    module.training = mode
        self.checkpoints.append(Checkpoint(step, train, validation))
        self._spent += time.monotonic() - started

    def _scores(self, batches: Sequence[Batch]) -> Scores:
        scores, unit, metric = scored(self.model, self.setup, batches, own_loss)
        self.unit, self.metric = unit, metric
        return scores

    def _samples(self) -> tuple[list[Batch], list[Batch]]:
        if self._drawn is None:
            self._drawn = (self._read(self.train), self._read(self.validation))
        return self._drawn

    def _read(self, pool: Pool) -> list[Batch]:
        return [
            split(batch, self.model, self.setup.loss, pool.name)
            for batch in pool.batches(pool.drawn(self.most), _BATCH)
        ]

    def generalization(
        self, steps: int, guess: float | None, loss: str = ""
    ) -> Generalization | None:
        """What was measured in a training of so many steps, None where nothing was."""
        if not self.checkpoints:
            return None
        size = self.train.size if self.train.whole else None
        return Generalization(
            tuple(self.checkpoints),
            loss=loss,
            guess=guess,
            epochs=None if size is None else steps * self.train.batch_size / size,
            samples=size,
            metric=self.metric,
            unit=self.unit,
        )
