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

    `name` is `input`, `input[1]`, a dict's key, or `target`. `kind` is `image` (C, H, W), `table` (F,),
    `ids` (whole numbers into a table), `sequence` (T, F), `classes`, `values`, or `other`. `shape` is
    that of one sample, with None where samples differ. Statistics are of the finite values; `columns` those
    of each channel or feature, at most 1024. `non_finite` counts the samples with a NaN or infinity,
    `broken` are the first of their numbers. `counts` says how often each class was there.
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


@dataclass(frozen=True)
class SplitData:
    """The training data, or the validation data.

    `name` is the loader's in the file, `site` where it was made. `size` is how many samples there are, None
    where only a pass would tell; `read` how many were looked at. `shuffles` tells whether the loader's
    order is random, `repeatable` whether the same sample comes out twice the same: not so where it is
    augmented; None where that is not known. `duplicates` counts samples whose inputs equal those of an
    earlier one. `runs` is the number of runs of equal class in the loader's order over that expected of a
    random order, None where there are no classes.
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


@dataclass(frozen=True)
class Overlap:
    """Validation samples that stand in the training data as well.

    Of `compared` validation samples, `exact` equal one of `against` training samples in all inputs, and
    `near` more nearly do, so that they look like copies (resaved, shifted, rounded). `pairs` are the first
    of them: (validation sample, training sample). `usual` is the share of training samples that have such a
    twin in the training data themselves, and `excess` how many there are beyond that share, with 95 %
    confidence: data with few possible values have equal samples by chance, in any split.
    """

    exact: int
    near: int
    compared: int
    against: int
    usual: float
    excess: float
    pairs: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Shift:
    """How training and validation data differ as sets: two-sample tests, of equal distributions.

    `inputs` is the p-value that a test on the inputs gave, `distance` the size of the difference in
    standard deviations of the feature that differs most, `feature` its name. `labels` is the p-value of
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
    the model trains on them.
    """

    train: SplitData
    validation: SplitData | None = None
    overlap: Overlap | None = None
    shift: Shift | None = None
    trainable: int = 0
