"""Training and validation error as a model learns, and what can be said of their difference. No torch.

Losses are kept per sample, so that each figure comes with its error. Differences are in units of the
loss of the best constant answer, which makes them comparable between tasks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainlint.sites import Site


@dataclass(frozen=True)
class Scores:
    """What a model in eval mode makes of a set of samples.

    `losses` are one a sample, or one a batch where a sample has none of its own. `metric` is the accuracy
    or R², None where the task is not clear; `predicted` says how often each class was answered.
    """

    losses: Sequence[float] = field(repr=False)
    metric: float | None = None
    predicted: Mapping[int, int] = field(default_factory=dict, repr=False)

    @property
    def mean(self) -> float:
        """The mean loss."""
        return statistics.fmean(self.losses)

    @property
    def error(self) -> float:
        """The standard error of the mean; infinite for a single figure."""
        if len(self.losses) < 2:
            return math.inf
        return statistics.stdev(self.losses) / math.sqrt(len(self.losses))


@dataclass(frozen=True)
class Checkpoint:
    """The scores after so many optimizer steps. The samples are the same at each checkpoint."""

    step: int
    train: Scores
    validation: Scores


@dataclass(frozen=True)
class Difference:
    """A mean difference, and the bound that it exceeds with 95 % confidence (one-sided)."""

    mean: float
    bound: float
    t: float


@dataclass(frozen=True)
class Generalization:
    """The checkpoints of one training, in rising order of their steps.

    `loss` names the loss function, empty where the model computes it; `guess` is the loss of the best
    constant answer, `linear` that of a linear model on the validation samples, None where not known.
    `epochs` is how often each training sample was seen by the last checkpoint, `samples` how many training
    samples there are. `metric` is `accuracy`, `R²` or empty, `unit` what one loss belongs to: a `sample`
    or a `batch`. `site` is where the model, or its training, is named.
    """

    checkpoints: Sequence[Checkpoint]
    loss: str = ""
    guess: float | None = None
    linear: float | None = None
    epochs: float | None = None
    samples: int | None = None
    metric: str = ""
    unit: str = "sample"
    site: Site | None = field(default=None, repr=False)

    @property
    def last(self) -> Checkpoint:
        """The latest checkpoint."""
        return self.checkpoints[-1]

    def best(self) -> Checkpoint:
        """The checkpoint of the least validation loss."""
        return min(self.checkpoints, key=lambda point: point.validation.mean)

    def gap(self, point: Checkpoint | None = None) -> Difference | None:
        """Validation loss over training loss, in units of `guess`: Welch's test. None without a guess."""
        point = point or self.last
        if not self.guess:
            return None
        return welch(point.train.losses, point.validation.losses, self.guess)

    def rise(self, since: Checkpoint | None = None) -> Difference | None:
        """How far validation loss has risen since its best, in units of `guess`: a paired test."""
        since = since or self.best()
        if not self.guess or since is self.last:
            return None
        return paired(since.validation.losses, self.last.validation.losses, self.guess)


def welch(first: Sequence[float], second: Sequence[float], unit: float = 1.0) -> Difference:
    """How far the mean of `second` lies above that of `first`: Welch 1947, Biometrika 34."""
    mean = statistics.fmean(second) - statistics.fmean(first)
    if min(len(first), len(second)) < 2:
        return Difference(mean / unit, -math.inf, 0.0)
    a = statistics.variance(first) / len(first)
    b = statistics.variance(second) / len(second)
    if a + b == 0:
        return Difference(mean / unit, mean / unit, math.copysign(math.inf, mean) if mean else 0.0)
    freedom = (a + b) ** 2 / (a * a / (len(first) - 1) + b * b / (len(second) - 1))
    error = math.sqrt(a + b)
    bound = mean - student(0.95, freedom) * error
    return Difference(mean / unit, bound / unit, mean / error)


def paired(first: Sequence[float], second: Sequence[float], unit: float = 1.0) -> Difference:
    """How far `second` lies above `first`, sample by sample. Raises `ValueError` for other lengths."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Difference(mean / unit, -math.inf, 0.0)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return Difference(mean / unit, mean / unit, math.copysign(math.inf, mean) if mean else 0.0)
    bound = mean - student(0.95, len(differences) - 1) * error
    return Difference(mean / unit, bound / unit, mean / error)


def student(share: float, freedom: float) -> float:
    """The quantile of Student's t: Abramowitz & Stegun 26.7.5, right to 1 % from 3 degrees on."""
    z = statistics.NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
