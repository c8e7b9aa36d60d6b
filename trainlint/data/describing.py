"""From loaders to the fact `Data`.

Comes in: a model with its setup. Goes out: what the loaders give, described and compared, and why where
they cannot be read. No training.
"""

from __future__ import annotations

import inspect
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from trainlint.data.facts import Data, FieldData, SplitData
from trainlint.data.overlap import overlap_of
from trainlint.data.pool import pool_of
from trainlint.data.reading import Reading, read
from trainlint.data.shift import shift_of
from trainlint.preserve import random_states
from trainlint.probe.batches import ProbeProblem, same_draws
from trainlint.sites import loader_site

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainlint.probe.setup import Setup

SECONDS: Final = 6.0
_NAN: Final = re.compile(r"isnan|isfinite|isinf|nan_to_num|nanmean|nansum|nanmedian")


def data_of(model: nn.Module, setup: Setup, *, seconds: float = SECONDS) -> Data:
    """What the loaders of a setup give. Raises `ProbeProblem` where the training data cannot be read.

    As `described`.
    """
    return described(
        setup.train_loader,
        setup.val_loader,
        names=setup.names,
        model=model,
        loss=setup.loss,
        has_loss=setup.loss is not None,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        seconds=seconds,
    )


def described(
    train_loader: Any,
    val_loader: Any = None,
    *,
    names: Mapping[str, str] | None = None,
    model: nn.Module | None = None,
    loss: Any = None,
    has_loss: bool = True,
    trainable: int = 0,
    seconds: float = SECONDS,
) -> Data:
    """What these loaders give. Raises `ProbeProblem` where the training data cannot be read.

    A model and its loss are only asked for their signature and source. Random states are as before, those
    that loaders, samplers and datasets have for themselves among them. Half of the `seconds` is for either
    set.
    """
    called = names or {}
    handles = handles_nan(model, loss)

    def of(loader: Any, part: str) -> tuple[SplitData, Reading]:
        started = time.monotonic()
        pool = pool_of(loader, called.get(part, part), seconds=seconds / 4)
        left = seconds / 2 - (time.monotonic() - started)
        found = read(pool, model=model, has_loss=has_loss, seconds=left)
        return split_of(found, loader), found

    loaders = (train_loader, val_loader)
    with random_states(*loaders), same_draws(*loaders):
        train, read_train = of(train_loader, "train_loader")
        if val_loader is None:
            return Data(train, trainable=trainable, handles_nan=handles)
        try:
            validation, read_validation = of(val_loader, "val_loader")
        except ProbeProblem as problem:
            return Data(train, trainable=trainable, handles_nan=handles, problem=str(problem))
        return Data(
            train,
            validation,
            overlap_of(read_train, read_validation),
            shift_of(read_train, read_validation),
            trainable,
            handles,
        )


def handles_nan(model: nn.Module | None, loss: Any) -> bool:
    """Whether the user's source of a layer or of the loss says what is to become of NaN."""
    kinds = {type(m) for m in (() if model is None else model.modules())} | {
        loss if callable(loss) else type(loss)
    }
    kinds |= {type(loss), getattr(loss, "func", type(None))}
    for kind in kinds:
        if not (getattr(kind, "__module__", None) or "torch").startswith(("torch", "builtins")):
            try:
                source = inspect.getsource(kind)
            except (OSError, TypeError):
                continue
            if _NAN.search(source):
                return True
    return False


def split_of(reading: Reading, loader: Any = None) -> SplitData:
    """What was read, as it is told."""
    pool = reading.pool
    target = None if reading.target is None else reading.target.described()
    repeatable = (
        True if reading.repeatable is None and isinstance(loader, list) else reading.repeatable
    )
    return SplitData(
        pool.name,
        loader_site(loader),
        pool.size if pool.whole else None,
        len(reading),
        pool.batch_size,
        pool.shuffles,
        repeatable,
        [figures.described() for figures in reading.inputs],
        target,
        len(reading.hashes) - len(set(reading.hashes)),
        None if pool.shuffles else _runs(reading.labels, target),
        max(Counter(reading.hashes).values()),
        reading.problem,
    )


def _runs(labels: Tensor | None, target: FieldData | None) -> float | None:
    """Runs of equal class over those of a random order (Wald & Wolfowitz 1940)."""
    if labels is None or target is None or target.kind != "classes" or labels[0].numel() != 1:
        return None
    seen = labels.flatten().tolist()
    return runs_ratio(seen)


def runs_ratio(labels: Sequence[float]) -> float | None:
    """Runs of equal labels over those expected of a random order; None where all are alike."""
    counts: dict[float, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    if len(counts) < 2:
        return None
    size = len(labels)
    expected = 1 + size - sum(count**2 for count in counts.values()) / size
    runs = 1 + sum(a != b for a, b in pairwise(labels))
    return runs / expected
