"""What a sweep showed: training and validation error at each value, fold by fold. Imports no torch.

The fact `Sweep`, and the data of `trainlint sweep --format json`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

OVER: Final = ("width", "weight-decay", "l1", "elastic-net", "dropout")


class Inquiry(msgspec.Struct, frozen=True):
    """What has to be known before a sweep.

    `factors` are of widths, none for other sweeps. The number of steps is looked for where `find_length` is
    set, for at most `seconds`.
    """

    factors: list[float] = []
    seconds: float = 10.0
    find_length: bool = True


class OutlinedWidth(msgspec.Struct, frozen=True):
    """What a factor of the width comes to; `reason` says why there is no such model."""

    factor: float
    sizes: dict[str, int] = {}
    parameters: int = 0
    reason: str | None = None


class Outline(msgspec.Struct, frozen=True):
    """A target before its sweep: its `parameters`, `weight_decay` and the `dropout` of its layers.

    `steps` is how long to train, 0 where that was not asked, and `length` how that was found. `per_epoch`
    is how many batches the training samples of a fold make. `place` is where the model was made: file,
    row, and columns of begin and end.
    """

    parameters: int
    widths: list[OutlinedWidth] = []
    weight_decay: float = 0.0
    dropout: list[float] = []
    steps: int = 0
    per_epoch: int = 1
    length: str = ""
    place: tuple[str, int, int, int] | None = None


class Swept(msgspec.Struct, frozen=True):
    """One value, and the losses that it led to.

    `value` is the factor of the hidden sizes, the strength of the penalty or the probability; `sizes` are
    the integers of the file and what they become, for widths alone. `train` and `validation` are mean
    losses, one a fold, after the last step; `metrics` the accuracy or R² on the validation samples.
    `reason` says why there are none: not built, not run, or not finite.
    """

    value: float
    sizes: dict[str, int] = {}
    parameters: int = 0
    train: list[float] = []
    validation: list[float] = []
    metrics: list[float] = []
    seconds: float = 0.0
    reason: str | None = None


class Standing(msgspec.Struct, frozen=True):
    """Where a value stands: means over the folds, with the standard errors of the means.

    `above` is how far its validation loss lies above the best value's, and `above_error` the standard
    error of that: paired, fold by fold, since all values are trained and judged on the same folds.
    """

    train: float
    train_error: float
    validation: float
    validation_error: float
    above: float
    above_error: float
    metric: float | None = None


class Sweep(msgspec.Struct, frozen=True):
    """Losses over a range of one setting, in rising order of its `points`.

    `over` is `width`, `weight-decay`, `l1`, `elastic-net` or `dropout`; `here` the place of the target as
    it is among the points. `folds` trainings were made of each, of `steps` optimizer steps, `epochs` of
    the training samples of a fold; `samples` counts those of all folds. `splitter` made the folds, `loss`
    names the loss function, `metric` is `accuracy`, `R²` or empty. `length` says how the number of steps
    was chosen, `widths` are the integers that were changed, as `--width` takes them. `place` is where the
    model was made.
    """

    target: str
    over: str
    points: list[Swept]
    here: int
    folds: int
    steps: int
    epochs: float
    samples: int
    splitter: str = ""
    loss: str = ""
    metric: str = ""
    length: str = ""
    widths: list[str] = []
    notes: list[str] = []
    seconds: float = 0.0
    place: tuple[str, int, int, int] | None = None

    @property
    def measured(self) -> list[int]:
        """The places of the points that have losses."""
        return [place for place, point in enumerate(self.points) if point.reason is None]

    @property
    def best(self) -> int | None:
        """The place of the least mean validation loss, None where nothing was measured."""
        return min(
            self.measured,
            key=lambda place: statistics.fmean(self.points[place].validation),
            default=None,
        )

    @property
    def chosen(self) -> int | None:
        """The simplest model within one standard error of the best.

        Breiman, Friedman, Olshen & Stone 1984, *Classification and Regression Trees*, section 3.4.3.
        Simplest is the narrowest, or the most penalised.
        """
        best = self.best
        if best is None:
            return None
        reference = self.standing(best)
        limit = reference.validation + reference.validation_error
        within = [p for p in self.measured if statistics.fmean(self.points[p].validation) <= limit]
        return within[0] if self.over == "width" else within[-1]

    def standing(self, place: int) -> Standing:
        """Means and errors at this place, which was measured."""
        point, best = self.points[place], self.best
        assert best is not None
        differences = [
            own - least
            for own, least in zip(point.validation, self.points[best].validation, strict=True)
        ]
        return Standing(
            statistics.fmean(point.train),
            error_of_mean(point.train),
            statistics.fmean(point.validation),
            error_of_mean(point.validation),
            statistics.fmean(differences),
            error_of_mean(differences),
            statistics.fmean(point.metrics) if point.metrics else None,
        )

    def named(self, place: int) -> str:
        """`×2 (hidden=128)`, `p = 0.3`, `λ = 0.01`."""
        point = self.points[place]
        if self.over == "width":
            sizes = ", ".join(f"{name}={value}" for name, value in point.sizes.items())
            return f"{factor(point.value)} ({sizes})" if sizes else factor(point.value)
        return f"{'p' if self.over == 'dropout' else 'λ'} = {point.value:g}"


_FRACTIONS: Final = {0.125: "⅛", 0.25: "¼", 0.5: "½", 0.75: "¾", 1.5: "1½"}


def factor(value: float) -> str:
    """`×¼`."""
    return f"×{_FRACTIONS.get(value) or format(value, 'g')}"


def error_of_mean(values: Sequence[float]) -> float:
    """The standard error of a mean over folds; infinite for one alone.

    Folds share training samples, so that it is too small rather than too large: Bengio & Grandvalet 2004,
    JMLR 5.
    """
    if len(values) < 2:
        return math.inf
    return statistics.stdev(values) / math.sqrt(len(values))
