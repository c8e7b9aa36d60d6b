"""What is known of the data: the fact `Data`. Imports no torch.

Figures are of the samples that were read, which may be fewer than there are. Samples are numbered as in
the dataset, where it has numbers, else in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainlint.sites import Site


@dataclass(frozen=True)
class ColumnData:
    """A channel of images or a feature of a table, over all samples that were read."""

    mean: float
    std: float
    least: float
    largest: float


@dataclass(frozen=True)
class FieldData:
    """One tensor of each sample: an input, or the target.

    `name` is `input`, `input[1]`, a dict's key, or `target`. `kind` is `image` (C, H, W) or (H, W, C),
    `table` (F,), `ids` (whole numbers into a table), `sequence` (T, F), `text` (a str), or `other`; of a
    target `classes` (whole numbers, or one number a sample that is 0 or 1) or `values`. `shape` is that of
    one sample, with None where samples differ. Statistics are of the finite values; `columns` those along
    `axis` of the shape, the channels or features, at most 1024. `whole` tells whether all values are whole
    numbers. `non_finite` counts the samples with a NaN or infinity, `broken` are the first of their
    numbers, `broken_columns` the columns with the count of samples. `counts` says how often each class was
    there, and is empty for more than 4096 of them.
    """

    name: str
    kind: str
    dtype: str
    shape: Sequence[int | None]
    mean: float
    std: float
    least: float
    largest: float
    columns: Sequence[ColumnData] = field(default=(), repr=False)
    non_finite: int = 0
    broken: Sequence[int] = ()
    counts: Mapping[int, int] = field(default_factory=dict, repr=False)
    axis: int | None = None
    whole: bool = False
    broken_columns: Mapping[int, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class SplitData:
    """The training data, or the validation data.

    `name` is the loader's in the file, `site` where it was made. `size` is how many samples there are, None
    where only a pass would tell; `read` how many were looked at. `shuffles` tells whether the loader's
    order is random, `repeatable` whether the same sample comes out twice the same: not so where it is
    augmented; None where that is not known. `duplicates` counts samples whose inputs equal those of an
    earlier one, `commonest` those with the input that came most often. `runs` is the number of runs of
    equal class in the loader's order over that expected of a random order, None where there are no classes,
    or the loader shuffles. `problem` says why not all was read that could be asked for.
    """

    name: str
    site: Site | None = field(repr=False)
    size: int | None
    read: int
    batch_size: int
    shuffles: bool | None
    repeatable: bool | None
    inputs: Sequence[FieldData]
    target: FieldData | None
    duplicates: int = 0
    runs: float | None = None
    commonest: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Overlap:
    """Validation samples that stand in the training data as well.

    Of `compared` validation samples, `exact` equal one of `against` training samples in all inputs, and
    `near` more nearly do, so that they look like copies (resaved, shifted, rounded). `same` of the
    validation samples are the very entries of a dataset that the training data hold too. `pairs` are the
    first of all these: (validation sample, training sample). `usual` is the share of training samples that
    have an equal twin in the training data themselves, and `excess` how many copies there are beyond
    chance, with 95 % confidence and 0 where they are no more than chance makes: data with few possible
    values have equal samples in any split. Samples that carry no information (all values alike, an empty
    text) are not compared.
    """

    exact: int
    near: int
    compared: int
    against: int
    usual: float
    excess: float
    pairs: Sequence[tuple[int, int]] = ()
    same: int = 0


@dataclass(frozen=True)
class Shift:
    """How training and validation data differ as sets: two-sample tests, of equal distributions.

    `inputs` is the p-value that a test on the inputs gave, corrected for the number of features; `distance`
    how far the values of the feature that differs most have moved on average (Wasserstein), in its standard
    deviations, `feature` its name. `labels` is the p-value of
    the targets, `label_distance` the total variation between their shares, or the Kolmogorov-Smirnov
    distance of real targets. None is what could not be compared.
    """

    inputs: float | None = None
    distance: float | None = None
    feature: str = ""
    labels: float | None = None
    label_distance: float | None = None


@dataclass(frozen=True)
class Data:
    """The data as the loaders give them.

    `validation`, `overlap` and `shift` are None without validation data. `trainable` is how many parameters
    the model trains on them. `handles_nan` tells whether the source of the model or
    the loss asks for NaN. `problem` says why validation data that there are could not be described.
    """

    train: SplitData
    validation: SplitData | None = None
    overlap: Overlap | None = None
    shift: Shift | None = None
    trainable: int = 0
    handles_nan: bool = False
    problem: str = ""
