"""Scores of the same few training and validation samples, again and again while a model trains."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from torch import nn

from trainlint.generalization.baselines import constant_loss, linear_scores
from trainlint.generalization.curves import FLAT, Checkpoint, Generalization, Scores
from trainlint.generalization.scoring import BATCH, SAMPLE, Judgement, Scorer, linearised
from trainlint.observe.hooks import unobserved
from trainlint.preserve import preserved_evaluation
from trainlint.probe.batches import Batch, ProbeProblem, described, split
from trainlint.probe.loop import own_loss
from trainlint.sites import construction_site
from trainlint.tree import tensors

if TYPE_CHECKING:
    from trainlint.data.pool import Pool
    from trainlint.probe.setup import Setup

MOST: Final = 512
_BATCH: Final = 128
_LEAST: Final = 32
# Of each set of samples, kept from the first checkpoint on.
_MOST_BYTES: Final = 128 << 20
# Seconds that all of it may take, however short the training is; and how many passes there will be.
_FREE: Final = 2.0
_PASSES: Final = 6


@dataclass
class Meter:
    """Evaluates `model` in eval mode on at most 512 samples of each set, drawn once.

    Nothing within is observed, and random states, modes, attributes and buffers stay as they are. A slow
    model is measured on fewer samples. After `seconds` of all evaluations no more is measured, but for the
    last checkpoint. What cannot be read or evaluated ends it: `problem` then says why. `with_linear`
    fits a linear model as well, where training loss no longer falls, or validation loss is above a guess's.
    """

    model: nn.Module
    setup: Setup
    train: Pool
    validation: Pool
    seconds: float = math.inf
    most: int = MOST
    steps: int = 0
    with_linear: bool = False
    checkpoints: list[Checkpoint] = field(default_factory=list)
    guess: float | None = None
    problem: str = ""
    _scorer: Scorer | None = None
    _judged: tuple[list[Judgement], list[Judgement]] | None = None
    _drawn: tuple[list[Batch], list[Batch]] | None = None
    _spent: float = 0.0

    @property
    def unit(self) -> str:
        """`sample`, or `batch` where samples have no losses of their own."""
        return SAMPLE if self._scorer is None else self._scorer.unit

    @property
    def metric(self) -> str:
        """`accuracy`, `R²` or empty."""
        return "" if self._scorer is None else self._scorer.metric

    def measure(self, step: int, *, last: bool = False) -> None:
        """Add a checkpoint after so many steps."""
        if self.problem or (self._spent > self.seconds and not last):
            return
        started = time.monotonic()
        beside = [self.setup.loss] if isinstance(self.setup.loss, nn.Module) else []
        try:
            with unobserved(), preserved_evaluation(self.model, *beside):
                self.model.eval()
                self._add(step)
        except ProbeProblem as problem:
            self.problem = str(problem)
        except Exception as error:
            self.problem = f"evaluation raised {described(error)}"
        self._spent += time.monotonic() - started

    def _add(self, step: int) -> None:
        train_batches, validation_batches = self._samples()
        scorer = self._scorer
        assert scorer is not None
        unit = scorer.unit
        train = scorer.scores(train_batches)
        of_train = scorer.judged
        validation = scorer.scores(validation_batches)
        if scorer.unit != unit:  # that of the earlier ones is another
            self.checkpoints.clear()
            train = scorer.scores(train_batches)
        if self.guess is None and len(of_train) == len(train_batches):
            self.guess = constant_loss(of_train, scorer.judged)
        self.checkpoints.append(Checkpoint(step, train, validation))
        self._judged = (of_train, scorer.judged)

    def _linear(self) -> Scores | None:
        """The validation losses of a linear model, None where it cannot be had."""
        if self._drawn is None or not self.guess or self.unit == BATCH or self._judged is None:
            return None
        train, validation = (
            list(zip(batches, judged, strict=True))
            for batches, judged in zip(self._drawn, self._judged, strict=True)
        )
        with unobserved():
            found = linear_scores(train, validation, self.guess)
        return None if found is None else Scores(linearised(*found))

    # ------------------------------------------------------------------

    def _samples(self) -> tuple[list[Batch], list[Batch]]:
        if self._drawn is None:
            self._scorer = scorer = Scorer(self.model, self.setup, own_loss)
            most = self._affordable(scorer)
            self._drawn = (self._read(self.train, most), self._read(self.validation, most))
        return self._drawn

    def _affordable(self, scorer: Scorer) -> int:
        """How many samples of each set may be measured, by the time that a few take.

        All of it may take as long as the training will, by the samples that it sees: forward and backward
        are three passes; or two seconds.
        """
        if math.isinf(self.seconds):  # what is compared later must be of the same samples
            return self.most
        few = self._read(self.train, min(self.most, _LEAST))
        scorer.scores(few)  # what is made only once does not count
        started = time.monotonic()
        scorer.scores(few)
        a_sample = (time.monotonic() - started) / min(self.train.size, self.most, _LEAST)
        training = 3 * self.steps * self.train.batch_size * a_sample
        most = int(max(_FREE, training) / (2 * _PASSES * a_sample + 1e-9))
        return max(min(self.most, _LEAST), min(self.most, most))

    def _read(self, pool: Pool, most: int) -> list[Batch]:
        """So many samples, or as many as are no more than 128 MiB."""
        try:
            # Losses of batches depend on how large these are.
            return self._of_size(
                pool, most, _BATCH if self.unit == SAMPLE else self.train.batch_size
            )
        except ProbeProblem:  # samples of several shapes may fit in no larger batch than theirs
            return self._of_size(pool, most, 0)

    def _of_size(self, pool: Pool, most: int, size: int) -> list[Batch]:
        numbers = pool.drawn(most)
        found: list[Batch] = []
        held = 0
        for raw in pool.batches(numbers, size):
            if self.setup.step is not None:
                batch = Batch((), {}, None, raw)
            else:
                batch = split(raw, self.model, self.setup.loss, pool.name)
            found.append(batch)
            held += sum(t.numel() * t.element_size() for _, t in tensors(raw))
            if held > _MOST_BYTES:
                break
        is_ragged = self.unit == BATCH and len(found) > 2 and len(numbers) % (size or len(numbers))
        return found[:-1] if is_ragged else found

    def generalization(
        self, steps: int, guess: float | None, loss: str = ""
    ) -> Generalization | None:
        """What was measured in a training of so many steps, None where nothing was.

        `guess` and `loss` stand where they could not be found here.
        """
        if not self.checkpoints:
            return None
        assert self._scorer is not None
        size = self.train.size if self.train.whole else None
        found = Generalization(
            tuple(self.checkpoints),
            loss=self._scorer.kind or loss,
            guess=self.guess or guess,
            epochs=None if size is None else steps * self.train.batch_size / size,
            samples=size,
            metric=self.metric,
            unit=self.unit,
            site=construction_site(self.model),
        )
        fall = found.fall()
        is_flat = fall is not None and fall.most < FLAT
        is_lost = bool(found.guess) and found.last.validation.mean > (found.guess or 0.0)
        if self.with_linear and (is_flat or is_lost):
            linear = self._linear()
            if linear is not None:
                found = replace(found, linear=linear.mean, linear_losses=linear.losses)
        return found
