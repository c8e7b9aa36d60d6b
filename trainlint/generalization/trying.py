"""Try what is said to help against overfitting, beside an unchanged training, and measure it.

Comes in: a model, its setup, the samples. Goes out: the fact `Remedies`. Each training is of a copy, from
the same initial weights, over the same samples in the same order, for as many steps; control and early
stopping are one training. Random states change; the caller restores them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Final

import torch

from trainlint.generalization.applying import (
    applied,
    decay_is_apart,
    dropout_layers,
    has_images,
    is_image,
    shift_of,
    weight_matrices,
)
from trainlint.generalization.remedies import EARLY, Option, Remedies, half_of_data, ranked
from trainlint.generalization.trials import Plan, copied, trial
from trainlint.generalization.variants import Variant
from trainlint.probe.batches import Batch, ProbeProblem, described, split
from trainlint.tree import tensors

if TYPE_CHECKING:
    from torch import nn

    from trainlint.data.pool import Pool
    from trainlint.generalization.curves import Generalization
    from trainlint.generalization.remedies import MoreData
    from trainlint.generalization.trials import Copy
    from trainlint.probe.setup import Setup

SEEDS: Final = 2
# Of each change the middle strength is tried first, then the stronger one, then the weaker.
# What decay takes of the weights in each step: from 3e-3 on it is too strong for a long training.
_DECAYS: Final = (1e-3, 2.5e-3, 2.5e-4)
# The L1 penalty on the initial weights, in units of a constant answer's loss.
_PENALTIES: Final = (0.3, 1.0, 0.03)
_DROPOUTS: Final = (0.3, 0.5, 0.1)
_NOISES: Final = (0.3, 1.0, 0.1)
_WIDTHS: Final = (0.5, 0.25)


@dataclass(frozen=True)
class Candidate:
    """A change to be tried. `kind` is what it is reported as."""

    kind: str
    variant: Variant
    strength: float
    title: str


@dataclass
class Experiment:
    """The trainings of one model, one after the other until the time is over.

    `optimizer` is one, or a function of the model that makes one; `guess` the loss of a constant answer.
    `of_width` builds the model anew with its hidden sizes times a factor and weights of a seed, None where
    that is not possible.
    """

    model: nn.Module
    setup: Setup
    optimizer: Any
    train: Pool
    validation: Pool
    steps: int
    guess: float
    seconds: float
    of_width: Callable[[float, int], Copy] | None = None
    progress: Callable[[str], None] | None = None
    _started: float = field(default_factory=time.monotonic)
    _longest: float = 0.0

    def remedies(self) -> Remedies:
        """All of it. Raises `ProbeProblem` where not even the unchanged training is possible."""
        control = [self._trained(Variant(), seed, ends_only=False)[0] for seed in range(SEEDS)]
        losses = [run.last.validation.losses for run in control]
        if not all(math.isfinite(loss) for loss in chain(*losses)):
            raise ProbeProblem("the loss of the unchanged training is no number")
        kinds: dict[str, list[Option]] = {}
        if stops := _stops(control):
            kinds[EARLY] = stops
        untried, late = self._try_all(kinds)
        more = None if self._is_late() else self._half(losses)
        tried, lost = ranked(losses, kinds, self.guess)
        return Remedies(
            tried,
            statistics.fmean(chain(*losses)),
            self.guess,
            self.steps,
            SEEDS,
            len(losses[0]),
            more,
            [*untried, *lost, *([f"no time for {', '.join(late)}"] if late else [])],
            time.monotonic() - self._started,
        )

    def _try_all(self, kinds: dict[str, list[Option]]) -> tuple[list[str], list[str]]:
        """Fill in what was measured. Goes out: what could not be tried, and for what there was no time."""
        untried: dict[str, str] = {}
        late: list[str] = []
        candidates = list(self.candidates())
        for number, candidate in enumerate(candidates, start=1):
            if candidate.kind in untried:
                continue
            if self._is_late():
                late.append(candidate.title)
                continue
            if self.progress is not None:
                self.progress(f"remedies: {candidate.title} ({number} of {len(candidates)})")
            try:
                runs = [self._trained(candidate.variant, seed) for seed in range(SEEDS)]
            except ProbeProblem as problem:
                untried[candidate.kind] = f"{candidate.kind}: {problem}"
                continue
            title = " ".join([candidate.title, *runs[0][1]])
            losses = [run.last.validation.losses for run, _ in runs]
            kinds.setdefault(candidate.kind, []).append(Option(title, candidate.strength, losses))
        return list(untried.values()), late

    def _trained(
        self, variant: Variant, seed: int, *, ends_only: bool = True, samples: Sequence[int] = ()
    ) -> tuple[Generalization, list[str]]:
        """One training, and where it was changed. Raises `ProbeProblem` for whatever ends it early."""
        started = time.monotonic()
        if variant.width != 1.0:
            assert self.of_width is not None
            change = applied(self.of_width(variant.width, seed), Variant())
        else:
            change = applied(copied(self.model, self.setup, self.optimizer), variant)
        plan = Plan(
            samples or range(self.train.size),
            range(self.validation.size),
            self.steps,
            seed=seed,
            seconds=math.inf,
            ends_only=ends_only,
        )
        try:
            run = trial(
                change.subject,
                self.train,
                plan,
                held_out=self.validation,
                prepared=change.prepared,
                before_step=change.before_step,
            )
        except ProbeProblem:
            raise
        except Exception as error:
            raise ProbeProblem(f"the training raised {described(error)}") from error
        self._longest = max(self._longest, time.monotonic() - started)
        return run, change.details

    def _is_late(self) -> bool:
        """Whether there is no time for another pair of trainings."""
        left = self._started + self.seconds - time.monotonic()
        return left < SEEDS * self._longest

    def _half(self, control: Sequence[Sequence[float]]) -> MoreData | None:
        """The same on halves of the training samples: for each seed one, and the other."""
        size = self.train.size
        if size < 4:
            return None
        if self.progress is not None:
            self.progress("remedies: half of the training samples")
        try:
            halves = [
                (seed, half)
                for seed in range(SEEDS)
                for half in _halves(size, self.train.drawn(size // 2, seed))
            ]
            runs = [self._trained(Variant(), seed, samples=half)[0] for seed, half in halves]
        except ProbeProblem:
            return None
        halved = [run.last.validation.losses for run in runs]
        if not all(math.isfinite(loss) for loss in chain(*halved)):
            return None
        return half_of_data(control, halved, self.guess, size)

    # ------------------------------------------------------------------ what there is to try

    def candidates(self) -> Iterator[Candidate]:
        """All there is to try: each kind at its first strength, then each at its second, and so on."""
        subject = copied(self.model, self.setup, self.optimizer)
        kinds = [
            list(self._decays(subject)),
            list(self._penalties(subject)),
            list(_dropouts(subject.model)),
            list(self._inputs(subject)),
            [] if self.of_width is None else list(_widths()),
        ]
        for candidates in zip_longest(*kinds):
            yield from (candidate for candidate in candidates if candidate is not None)

    def _decays(self, subject: Copy) -> Iterator[Candidate]:
        optimizer = subject.optimizer
        groups = getattr(optimizer, "param_groups", None) or [{}]
        rate = float(groups[0].get("lr", 0.0))
        now = groups[0].get("weight_decay")
        name = type(optimizer).__name__
        if not rate:
            return
        for share in _DECAYS:
            strength = _rounded(share / rate)
            if now is None:
                title = f"an L2 penalty of {strength:g} · Σw² / 2 in the loss"
            elif decay_is_apart(optimizer):
                title = f"weight decay {strength:g}, in AdamW in place of {name}"
                if name != "Adam":
                    title = f"weight decay {strength:g}, apart from the gradient of {name}"
            else:
                title = f"weight decay {strength:g} in {name}"
            if strength != now:
                yield Candidate("weight decay", Variant(l2=strength), strength, title)

    def _penalties(self, subject: Copy) -> Iterator[Candidate]:
        with torch.no_grad():
            size = sum(float(weight.abs().sum()) for weight in weight_matrices(subject.model))
        if not size:
            return
        for share in _PENALTIES:
            strength = _rounded(share * self.guess / size)
            title = f"an L1 penalty of {strength:g} · Σ|w| in the loss"
            yield Candidate("L1 penalty", Variant(l1=strength), strength, title)

    def _inputs(self, subject: Copy) -> Iterator[Candidate]:
        """Shifts for images, noise for what else is of real numbers."""
        if self.setup.step is not None:
            return
        batch = self._first(subject)
        inputs = [value for _, value in tensors((batch.args, dict(batch.kwargs)))]
        if has_images(batch):
            (images,) = (value for value in inputs if is_image(value))
            most = shift_of(images)
            title = f"random shifts by up to {most} pixel{'s' if most > 1 else ''}"
            yield Candidate("augmentation", Variant(augment="shift"), most, title)
        elif any(value.is_floating_point() and value.dim() > 1 for value in inputs):
            for strength in _NOISES:
                title = f"noise of {strength:g} standard deviations on the inputs"
                yield Candidate("input noise", Variant(noise=strength), strength, title)

    def _first(self, subject: Copy) -> Batch:
        (raw,) = self.train.batches(range(min(self.train.size, 4)), 4)
        return split(raw, subject.model, subject.setup.loss, self.train.name)


def _dropouts(model: nn.Module) -> Iterator[Candidate]:
    now = set(dropout_layers(model).values())
    for share in _DROPOUTS:
        if now != {share}:
            yield Candidate("dropout", Variant(dropout=share), share, f"dropout {share:g}")


def _widths() -> Iterator[Candidate]:
    for factor in _WIDTHS:
        title = f"a model of {factor:g} times the width"
        yield Candidate("smaller model", Variant(width=factor), factor, title)


def _stops(control: Sequence[Generalization]) -> list[Option]:
    """To stop at each of the checkpoints on the way."""
    last = control[0].last.step
    return [
        Option(
            f"stop after {point.step} of {last} steps",
            point.step,
            [run.checkpoints[number].validation.losses for run in control],
        )
        for number, point in enumerate(control[0].checkpoints)
        if 0 < point.step < last
    ]


def _halves(size: int, half: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    chosen = set(half)
    return half, [number for number in range(size) if number not in chosen]


def _rounded(value: float) -> float:
    """To one digit: nobody sets a weight decay of 0.0833."""
    return float(f"{value:.0e}")
