"""Training and validation error as a model learns, and what can be said of their difference. No torch.

Losses are kept per sample, so that each figure comes with its error. Differences are in units of the
loss of the best constant answer, which makes them comparable between tasks.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trainlint.sites import Site

_CONFIDENCE: Final = 0.95
# A curve that falls by less of the constant answer's loss in two fifths of a run is flat.
FLAT: Final = 0.02
# A gap that is more than this, in the same units, matters.
GAP: Final = 0.05
# From so many figures on, Student's t holds for means of losses, skewed as they are.
_MANY: Final = 100
_SIGNIFICANT: Final = 0.01
# Of five trainings, each on four fifths of the samples: (1/5 + 1/4) / (1/5) - 1.
_SHARED: Final = 1.25


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
        """The mean loss, NaN where one is not finite."""
        return _mean(self.losses)

    @property
    def error(self) -> float:
        """The standard error of the mean; infinite for a single figure."""
        if len(self.losses) < 2 or not math.isfinite(self.mean):
            return math.inf
        return math.sqrt(_variance(self.losses) / len(self.losses))


@dataclass(frozen=True)
class Checkpoint:
    """The scores after so many optimizer steps. The samples are the same at each checkpoint."""

    step: int
    train: Scores
    validation: Scores


@dataclass(frozen=True)
class Difference:
    """A mean difference, and the bound that it exceeds with 95 % confidence (one-sided).

    `p` is the probability of a `t` as large where there is no difference (one-sided, Student's t).
    """

    mean: float
    bound: float
    t: float
    p: float = 1.0

    @property
    def most(self) -> float:
        """The bound on the other side, which it lies below with 95 % confidence."""
        return 2 * self.mean - self.bound if math.isfinite(self.bound) else math.inf

    @property
    def error(self) -> float:
        """The standard error of the mean; 0 where all differences are equal, infinite for a single one."""
        if math.isinf(self.t):
            return 0.0
        return abs(self.mean / self.t) if self.t else math.inf


@dataclass(frozen=True)
class Generalization:
    """The checkpoints of one training, in rising order of their steps.

    `loss` names the loss function, empty where the model computes it; `guess` is the loss of the best
    constant answer, fitted to training targets and judged on the validation samples, `linear` that of a
    linear model on the same samples, `linear_losses` its losses of each; None and empty where not known.
    `epochs` is how often each training sample was seen by the last checkpoint, `samples` how many training
    samples there are. `metric` is `accuracy`, `R²` or empty, `unit` what one loss belongs to: a `sample`
    or a `batch`. `held_out` are the losses, as far as that was tried, of a second training that had to do
    without some of the training samples: of these, and of the validation samples. `altered` tells that no
    training sample comes twice: they are mixed, augmented, or drawn anew. `site` is where the model, or its
    training, is named.
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
    linear_losses: Sequence[float] = field(default=(), repr=False)
    held_out: HeldOut | None = None
    altered: bool = False

    @property
    def first(self) -> Checkpoint | None:
        """That before any training."""
        return self.checkpoints[0] if self.checkpoints[0].step == 0 else None

    @property
    def last(self) -> Checkpoint:
        """The latest checkpoint."""
        return self.checkpoints[-1]

    def best(self) -> Checkpoint:
        """The checkpoint of the least validation loss."""
        return _best(self.checkpoints, lambda point: point.validation.losses)

    def gap(self, point: Checkpoint | None = None) -> Difference | None:
        """Validation loss over training loss, in units of `guess`: Welch's test. None without a guess."""
        point = point or self.last
        if not self.guess:
            return None
        return welch(point.train.losses, point.validation.losses, self.guess)

    def grown(self) -> Difference | None:
        """How much of the gap has come since before the training, with its own error."""
        first = self.first
        if not self.guess or first is None or first is self.last:
            return None
        return welch(
            differences(first.train.losses, self.last.train.losses),
            differences(first.validation.losses, self.last.validation.losses),
            self.guess,
        )

    def shift(self) -> Difference | None:
        """Validation loss over that of training samples that were kept out of the training, likewise."""
        if not self.guess or self.held_out is None:
            return None
        kept_out, validation = self.held_out.kept_out.losses, self.held_out.validation.losses
        found = welch(
            kept_out, validation, self.guess, shared=_SHARED if self.held_out.is_paired else 0.0
        )
        if min(len(kept_out), len(validation)) >= _MANY:
            return found
        return replace(found, p=max(found.p, permuted(kept_out, validation)))

    def overfit(self) -> Difference | None:
        """The loss of training samples that were kept out of the training over that of those within."""
        if not self.guess or self.held_out is None:
            return None
        compared = paired if self.held_out.is_paired else welch
        return compared(self.held_out.train.losses, self.held_out.kept_out.losses, self.guess)

    def is_shifted(self, gap: float) -> bool:
        """Whether samples that were kept out of the training cost less than validation's: p below 0.01."""
        shift = self.shift()
        return shift is not None and shift.bound > gap and shift.p < _SIGNIFICANT

    def overfits(self, gap: float) -> bool:
        """Whether the gap is above this with 95 % confidence, and no shift between the data explains it."""
        seen, own = self.gap(), self.overfit()
        if seen is None or seen.bound <= gap:
            return False
        return not self.is_shifted(gap) or (own is not None and own.bound > gap)

    def metric_fell(self) -> bool | None:
        """Whether accuracy or R² on validation data is worse than at the least loss; None if not known.

        By more than one standard error, which is that of a share of so many samples.
        """
        best, last = self.best().validation.metric, self.last.validation.metric
        if not self.metric or best is None or last is None:
            return None
        share = min(max(best, 0.0), 1.0)
        return best - last > math.sqrt(share * (1 - share) / len(self.last.validation.losses))

    def fall(self) -> Difference | None:
        """How far training loss has come down in the last two fifths of the steps: a paired test."""
        late = [point for point in self.checkpoints if point.step <= 0.6 * self.last.step]
        if not self.guess or len(self.checkpoints) < 2 or not late:
            return None
        return paired(self.last.train.losses, late[-1].train.losses, self.guess)

    def over_linear(self) -> tuple[Difference, Difference] | None:
        """How far training and validation losses lie above a linear model's on validation samples."""
        if not self.guess or not self.linear_losses:
            return None
        return (
            welch(self.linear_losses, self.last.train.losses, self.guess),
            paired(self.linear_losses, self.last.validation.losses, self.guess),
        )

    def rise(self, since: Checkpoint | None = None) -> Difference | None:
        """How far validation loss has risen since its best, in units of `guess`: a paired test.

        The best of several checkpoints looks better than it is. So it is chosen on one half of the samples
        and judged on the other, and the other way round, unless `since` says which.
        """
        if not self.guess or len(self.checkpoints) < 2:
            return None
        last = self.last.validation.losses
        if since is not None:
            return paired(since.validation.losses, last, self.guess)
        if len(last) < 4:
            return None
        before = list(last)
        for half in (0, 1):
            best = _best(self.checkpoints, lambda point: point.validation.losses[1 - half :: 2])  # noqa: B023
            before[half::2] = best.validation.losses[half::2]
        return paired(before, last, self.guess)


@dataclass(frozen=True)
class HeldOut:
    """The scores after trainings without some samples: of those within, those kept out, and validation's.

    `is_paired` tells that the first two are the same samples, each as one of a training and as a new one.
    """

    train: Scores
    kept_out: Scores
    validation: Scores
    is_paired: bool = False


def _best(
    checkpoints: Sequence[Checkpoint], losses: Callable[[Checkpoint], Sequence[float]]
) -> Checkpoint:
    """That of the least mean; one that is not finite is never it, if there is another."""

    def mean(point: Checkpoint) -> float:
        value = _mean(losses(point))
        return math.inf if math.isnan(value) else value

    return min(checkpoints, key=mean)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Sample by sample. Raises `ValueError` for other lengths."""
    return [b - a for a, b in zip(before, after, strict=True)]


def welch(
    first: Sequence[float], second: Sequence[float], unit: float = 1.0, *, shared: float = 0.0
) -> Difference:
    """How far the mean of `second` lies above that of `first`: Welch 1947, Biometrika 34.

    Where `first` are of several trainings, which err alike since they share samples, the variance of its
    mean is larger by the share `shared`: Nadeau & Bengio 2003, Machine Learning 52.

    Nothing is known from a single figure, or where one is not finite: the bound is then -∞.
    """
    values = list(itertools.chain(first, second))
    if not first or not second or not all(map(math.isfinite, values)):
        return Difference(math.nan, -math.inf, 0.0)
    mean = _mean(second) - _mean(first)
    if min(len(first), len(second)) < 2:
        return Difference(mean / unit, -math.inf, 0.0)
    a = (1 + shared) * _variance(first) / len(first)
    b = _variance(second) / len(second)
    if a + b == 0:
        return _exactly(mean / unit)
    freedom = (a + b) ** 2 / (a * a / (len(first) - 1) + b * b / (len(second) - 1))
    return _difference(mean, math.sqrt(a + b), freedom, unit)


def as_share(value: float) -> str:
    """`12%` of a constant answer's loss, and `25 times` it where that is easier to read."""
    return f"{value:.0%}" if abs(value) < 10 else f"{value:.3g} times"


def permuted(first: Sequence[float], second: Sequence[float], rounds: int = 1000) -> float:
    """The share of random divisions of all these figures in which `second` is as far above `first`.

    Fisher 1935, "The Design of Experiments": it holds for few and skewed figures, as losses are. 1 where
    one is not finite.
    """
    values = [*first, *second]
    if not first or not second or not all(map(math.isfinite, values)):
        return 1.0
    fewer = first if len(first) <= len(second) else second
    sign = -1 if fewer is first else 1
    draw = random.Random(0)
    seen = sign * math.fsum(fewer)
    slack = 1e-9 * (abs(seen) + 1e-12)
    as_far = sum(
        sign * math.fsum(draw.sample(values, len(fewer))) >= seen - slack for _ in range(rounds)
    )
    return (as_far + 1) / (rounds + 1)


def paired(first: Sequence[float], second: Sequence[float], unit: float = 1.0) -> Difference:
    """How far `second` lies above `first`, sample by sample. Raises `ValueError` for other lengths."""
    each = differences(first, second)
    if not each or not all(map(math.isfinite, each)):
        return Difference(math.nan, -math.inf, 0.0)
    mean = math.fsum(each) / len(each)
    if len(each) < 2:
        return Difference(mean / unit, -math.inf, 0.0)
    error = math.sqrt(_variance(each) / len(each))
    if error == 0:
        return _exactly(mean / unit)
    return _difference(mean, error, len(each) - 1, unit)


def _exactly(mean: float) -> Difference:
    """All samples say the same."""
    if not mean:
        return Difference(0.0, 0.0, 0.0, 0.5)
    return Difference(mean, mean, math.copysign(math.inf, mean), float(mean < 0))


def _difference(mean: float, error: float, freedom: float, unit: float) -> Difference:
    bound = mean - student(_CONFIDENCE, freedom) * error
    t = mean / error
    return Difference(mean / unit, bound / unit, t, tail(t, freedom))


def tail(t: float, freedom: float) -> float:
    """The probability that Student's t exceeds this: I_x(ν/2, 1/2) / 2 with x = ν / (ν + t²).

    Abramowitz & Stegun 26.7.1 and 26.5.27.
    """
    square = t * t
    upper = _beta(freedom / (freedom + square), square / (freedom + square), freedom / 2, 0.5) / 2
    return upper if t > 0 else 1 - upper


def _beta(x: float, rest: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b): Press et al., Numerical Recipes, section 6.4.

    `rest` is 1 - x, which keeps its digits where x is close to 1.
    """
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    )
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(rest, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d or tiny)
    value = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return value


def student(share: float, freedom: float) -> float:
    """The quantile of Student's t, a `share` above 1/2: where `tail` says so, by bisection."""
    low, high = 0.0, 1.0
    while tail(high, freedom) > 1 - share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, freedom) > 1 - share else (low, middle)
    return (low + high) / 2
