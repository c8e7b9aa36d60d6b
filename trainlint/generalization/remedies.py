"""What would help against overfitting, as it was measured: the REMEDIES. No torch.

Comes in: losses of the same validation samples after trainings that differ in one thing. Goes out: what
each change is worth, with its error. Several strengths of one change are tried, and the best of several is
better than it will be again: the strength is chosen on one half of the validation samples and judged on
the other, over many halves.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from trainlint.fixes.edit import Attempt, Fix
from trainlint.generalization.curves import student

# By seed: the loss of each validation sample, in the same order.
Losses = Sequence[Sequence[float]]

EARLY: Final = "early stopping"
_SPLITS: Final = 20
_CONFIDENCE: Final = 0.95
# A change worth less is no remedy, however sure it is.
_LEAST: Final = 0.01


@dataclass(frozen=True)
class Option:
    """One strength of a change, and the losses after a training with it."""

    title: str
    strength: float
    losses: Losses = field(repr=False)

    @property
    def is_finite(self) -> bool:
        """Whether every loss is a number."""
        return all(math.isfinite(loss) for losses in self.losses for loss in losses)


@dataclass(frozen=True)
class Remedy:
    """A change of the training, at the strength that did best.

    `gain` is by how much it lowered the validation loss, in units of a constant answer's, `error` the
    standard error of that, over validation samples and seeds; `bound` what the gain exceeds with 95 %
    confidence for all the changes tried at once. `loss` is the validation loss with it, `guess` that of a
    constant answer. `strengths` are all that were tried.
    """

    kind: str
    title: str
    strength: float
    gain: float
    error: float
    bound: float
    loss: float
    strengths: Sequence[float] = ()
    guess: float = math.inf

    @property
    def helps(self) -> bool:
        """Whether the loss is lower with it beyond doubt, by enough to matter, and below a guess's."""
        return self.bound > 0 and self.gain > _LEAST and self.loss < self.guess


@dataclass(frozen=True)
class MoreData:
    """How much is lost with half of the training samples: what more of them promise.

    `samples` is how many there are, `loss` the validation loss with half of them, `rise` by how much that
    is higher in units of a constant answer's loss, `error` the standard error.
    """

    samples: int
    loss: float
    rise: float
    error: float

    @property
    def is_sure(self) -> bool:
        """Whether half of the samples are plainly worse."""
        return self.rise > 2 * self.error and self.rise > _LEAST


@dataclass(frozen=True)
class Remedies:
    """What was tried against overfitting, the best first.

    All trainings have the same initial weights, `steps` optimizer steps, and `seeds` orders of the data;
    `loss` is the validation loss without a change, on `samples` validation samples, and `guess` the loss of
    the best constant answer, the unit of gains. `untried` says what was not tried or came to no end, and
    why; `seconds` is what it took.
    """

    tried: Sequence[Remedy]
    loss: float
    guess: float
    steps: int
    seeds: int
    samples: int
    more: MoreData | None = None
    untried: Sequence[str] = ()
    seconds: float = 0.0

    @property
    def helpful(self) -> list[Remedy]:
        """Those that help, the best first."""
        return [remedy for remedy in self.tried if remedy.helps]

    def fixes(self) -> list[Fix]:
        """What helps, the best first; then what more data promise; or that nothing helped."""
        found = [Fix(remedy.title, verified=self._record(remedy)) for remedy in self.helpful]
        if not found and self.tried:
            names = ", ".join(dict.fromkeys(remedy.kind for remedy in self.tried))
            found.append(Fix(f"none of these helped in {self.steps} steps: {names}"))
        if self.more is not None and self.more.is_sure:
            found.append(
                Fix(
                    f"more data: with half of the {self.more.samples} training samples validation loss is "
                    f"{self.more.loss:.3g} in place of {self.loss:.3g}"
                )
            )
        return found

    def _record(self, remedy: Remedy) -> Attempt:
        return Attempt(
            measure="validation loss",
            before=_plain(self.loss),
            after=_plain(remedy.loss),
            gain=_plain(remedy.gain),
            error=_plain(remedy.error),
            # To stop early says itself after how many.
            steps=0 if remedy.kind == EARLY else self.steps,
            seeds=self.seeds,
        )

    def evidence(self) -> dict[str, Any]:
        """The table, in plain JSON types: a row for each change, and for half of the data."""
        rows = [
            {
                "kind": remedy.kind,
                "title": remedy.title,
                "strength": remedy.strength,
                "strengths": list(remedy.strengths),
                "gain": _plain(remedy.gain),
                "error": _plain(remedy.error),
                "loss": _plain(remedy.loss),
                "helps": remedy.helps,
            }
            for remedy in self.tried
        ]
        found: dict[str, Any] = {"remedies": rows}
        if self.more is not None:
            found["half_of_the_data"] = {
                name: value if isinstance(value, int) else _plain(value)
                for name, value in asdict(self.more).items()
            }
        if self.untried:
            found["untried"] = list(self.untried)
        return found


def ranked(
    control: Losses, kinds: Mapping[str, Sequence[Option]], guess: float
) -> tuple[list[Remedy], list[str]]:
    """Each kind of change at its best strength, the largest gain first; and what came to no number.

    The error is of the paired differences, over samples and over seeds; that over seeds is estimated from
    all trainings together, since each has but a few.
    """
    lost = [
        f"{option.title}: the loss became no number"
        for options in kinds.values()
        for option in options
        if not option.is_finite
    ]
    usable = {
        kind: sound
        for kind, options in kinds.items()
        if (sound := [option for option in options if option.is_finite])
    }
    noise = _between_seeds(control, [o for options in usable.values() for o in options], guess)
    found = [
        _judged(kind, control, options, guess, noise, len(usable))
        for kind, options in usable.items()
    ]
    return sorted(found, key=lambda remedy: -remedy.gain), lost


def _judged(
    kind: str,
    control: Losses,
    options: Sequence[Option],
    guess: float,
    noise: float,
    kinds: int,
) -> Remedy:
    gains = [_gains(control, option.losses, guess) for option in options]
    honest = crossed(gains)
    mean, error = _estimate(honest, noise, len(control))
    best = max(range(len(options)), key=lambda number: statistics.fmean(gains[number]))
    share = 1.0 - (1.0 - _CONFIDENCE) / kinds
    before = statistics.fmean(statistics.fmean(losses) for losses in control)
    return Remedy(
        kind,
        options[best].title,
        options[best].strength,
        mean,
        error,
        mean - student(share, max(3, len(honest) - 1)) * error,
        before - mean * guess,
        [option.strength for option in options],
        guess,
    )


def half_of_data(control: Losses, halved: Losses, guess: float, samples: int) -> MoreData:
    """What half of the training samples cost; `halved` is by half, and halves differ as seeds do."""
    before = [statistics.fmean(of_sample) for of_sample in zip(*control, strict=True)]
    rises = [-gain for gain in _gains([before] * len(halved), halved, guess)]
    means = [statistics.fmean(losses) / guess for losses in halved]
    rise, error = _estimate(rises, statistics.variance(means), len(halved))
    return MoreData(samples, statistics.fmean(means) * guess, rise, error)


def _gains(control: Losses, changed: Losses, guess: float) -> list[float]:
    """By sample: how much lower the loss is, in the mean over seeds."""
    seeds = min(len(control), len(changed))
    pairs = [
        [(a - b) / guess for a, b in zip(control[seed], changed[seed], strict=True)]
        for seed in range(seeds)
    ]
    return [statistics.fmean(of_sample) for of_sample in zip(*pairs, strict=True)]


def crossed(gains: Sequence[Sequence[float]]) -> list[float]:
    """By sample: the gain at the strength that was best on a half that the sample was not in.

    The mean over 20 splits into halves. `gains` are by strength and sample.
    """
    count = len(gains[0])
    if len(gains) == 1 or count < 4:
        return list(gains[0])
    generator = random.Random(0)
    totals = [0.0] * count
    for _ in range(_SPLITS):
        order = generator.sample(range(count), count)
        halves = (order[: count // 2], order[count // 2 :])
        for chosen_on, judged_on in (halves, halves[::-1]):
            best = max(gains, key=lambda gain: math.fsum(gain[sample] for sample in chosen_on))
            for sample in judged_on:
                totals[sample] += best[sample]
    return [total / _SPLITS for total in totals]


def _estimate(values: Sequence[float], noise: float, seeds: int) -> tuple[float, float]:
    """The mean, and its error over samples and seeds; `noise` is the variance of one seed's mean."""
    spread = statistics.variance(values) / len(values) if len(values) > 1 else math.inf
    return statistics.fmean(values), math.sqrt(spread + noise / max(1, seeds))


def _between_seeds(control: Losses, options: Sequence[Option], guess: float) -> float:
    """The variance of a training's mean gain from seed to seed, over all that have several."""
    variances = []
    for option in options:
        means = [
            (statistics.fmean(before) - statistics.fmean(after)) / guess
            for before, after in zip(control, option.losses, strict=False)
        ]
        if len(means) > 1:
            variances.append(statistics.variance(means))
    return statistics.fmean(variances) if variances else 0.0


def _plain(value: float) -> float | None:
    """To four digits; what JSON cannot say is None."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
