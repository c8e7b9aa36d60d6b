"""Splits of samples without leakage, by scikit-learn's splitters (`pip install "trainlint[folds]"`).

Comes in: the samples of a loader, and what is known of their classes, groups and order. Goes out: for each
fold the numbers of the samples to train and to validate on.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from trainlint.data.pool import Pool
from trainlint.errors import UsageError
from trainlint.probe.batches import LABELS, Batch, ProbeProblem, described, size_of, split
from trainlint.tree import tensors

if TYPE_CHECKING:
    from torch import nn

    from trainlint.probe.setup import Setup

# Bounds on what is read to make folds; of larger data a random part is cross-validated.
MOST: Final = 20_000
_SECONDS: Final = 30.0
_READ: Final = 256
_MOST_CLASSES: Final = 1000


@dataclass(frozen=True)
class Samples:
    """What folds are made by: the pool, and for each of its samples the class, and a hash of its inputs.

    `classes` is None where the targets are no classes. `repeatable` tells whether a sample comes out twice
    the same. `checksum` is of the first samples.
    """

    pool: Pool
    classes: Sequence[int] | None
    hashes: Sequence[int]
    repeatable: bool
    checksum: int
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Folds:
    """Pairs of (numbers to train on, numbers to validate on), who made them, and why so."""

    pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    splitter: str
    why: str
    notes: Sequence[str] = ()


def samples_of(pool: Pool, model: nn.Module, setup: Setup, *, seconds: float = _SECONDS) -> Samples:
    """Read the samples once, at most 20 000 of them.

    Raises `ProbeProblem` where they cannot be told apart, or not in that time.
    """
    _model_selection()
    notes = []
    if not pool.whole:
        notes.append(
            f"of {pool.name} the first {pool.size} samples alone: it gives more, or no end"
        )
    if pool.size > MOST:
        notes.append(f"of the {pool.size} samples of {pool.name} {MOST}, drawn at random")
        pool = pool.only(pool.drawn(MOST))
    deadline = time.monotonic() + seconds
    hashes: list[int] = []
    classes: list[int] | None = []
    first: Sequence[int] = ()
    # A sample that is made anew each time has no hash to know it by: the first are read twice.
    few = range(min(_READ, pool.size))
    for raw in pool.batches(few, _READ):
        first = [*first, *_hashes(_parts(raw, model, setup, pool.name), pool.name)]
    for raw in pool.batches(range(pool.size), _READ):
        batch = _parts(raw, model, setup, pool.name)
        hashes += _hashes(batch, pool.name)
        its = None if classes is None else _classes(batch.target)
        classes = None if its is None or classes is None else classes + its
        if time.monotonic() > deadline:
            raise ProbeProblem(
                f"to read {pool.size} samples of {pool.name} takes more than {seconds:g} s"
            )
    if len(hashes) != pool.size:
        raise ProbeProblem(f"{pool.name} gave {len(hashes)} samples where it has {pool.size}")
    if classes is not None and (len(classes) != pool.size or len(set(classes)) > _MOST_CLASSES):
        classes = None
    repeatable = list(first) == hashes[: len(first)]
    if not repeatable:
        notes.append(
            f"{pool.name} changes its samples each time (augmentation?), also those validated on"
        )
    return Samples(pool, classes, hashes, repeatable, sum(hashes[:_READ]) % (1 << 32), notes)


def _parts(raw: Any, model: nn.Module, setup: Setup, name: str) -> Batch:
    """Inputs and target; of a batch that a model takes whole, to compute its loss, by custom."""
    label = next((key for key in LABELS if key in raw), None) if isinstance(raw, Mapping) else None
    if label is not None:
        inputs = {key: value for key, value in raw.items() if key != label}
        return Batch((), inputs, raw[label], raw)
    if setup.step is None:
        return split(raw, model, setup.loss, name)
    if isinstance(raw, (list, tuple)) and len(raw) > 1:
        return Batch(tuple(raw[:-1]), {}, raw[-1], raw)
    return Batch((raw,), {}, None, raw)


def _hashes(batch: Batch, name: str) -> list[int]:
    inputs = [tensor.detach().cpu() for _, tensor in tensors((batch.args, dict(batch.kwargs)))]
    inputs = [tensor for tensor in inputs if tensor.dim()]
    size = size_of(tuple(inputs))
    if not inputs or size is None:
        raise ProbeProblem(f"the samples of a batch of {name} cannot be told apart")
    found = []
    for row in range(size):
        hashed = hashlib.blake2b(digest_size=6)
        for tensor in inputs:
            hashed.update(_bytes(tensor[row]))
        found.append(int.from_bytes(hashed.digest(), "big"))
    return found


def _bytes(tensor: Tensor) -> bytes:
    data: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def _classes(target: Any) -> list[int] | None:
    """The classes of these targets, one a sample: whole numbers, or zeros and ones."""
    if not isinstance(target, Tensor) or target.dim() == 0 or target.numel() != target.shape[0]:
        return None
    flat = target.detach().cpu().reshape(-1)
    if flat.is_floating_point():
        if not bool(((flat == 0) | (flat == 1)).all()):
            return None
    elif flat.is_complex():
        return None
    return [int(value) for value in flat.tolist()]


def folds_of(
    samples: Samples, k: int, *, groups: Any = None, splitter: Any = None, seed: int = 0
) -> Folds:
    """Split into `k` folds.

    A `splitter` of scikit-learn's kind is used as it is; with `k` of 1 it makes any number. Otherwise
    classes have the same shares in each fold, and samples of one group stay together: those that `groups`
    names, one a sample, or those with equal inputs. Raises `ProbeProblem` where there are fewer samples,
    or groups, than folds, and `UsageError` without scikit-learn.
    """
    selection = _model_selection()
    size = samples.pool.size
    if size < k:
        raise ProbeProblem(f"{size} samples of {samples.pool.name} make no {k} folds")
    notes = list(samples.notes)
    twins = size - len(set(samples.hashes))
    known = None if groups is None else _numbered(groups, samples.pool)
    if splitter is not None:
        return _given(splitter, samples, known, k, notes)
    why = []
    held: Sequence[int] | None = None
    if known is not None:
        number = len(set(known))
        if number < k:
            raise ProbeProblem(f"{number} groups make no {k} folds")
        held = _joined(known, samples.hashes) if samples.repeatable else known
        joined = number - len(set(held))
        why.append(f"{number} groups stay whole")
        if joined:
            why.append("groups with equal samples stay together")
            if len(set(held)) < k:
                raise ProbeProblem(f"{number} groups that share samples make no {k} folds")
    elif twins and samples.repeatable:
        why.append(f"{twins} of {size} samples equal an earlier one and stay with it")
        held = samples.hashes
        if len(set(held)) < k:
            raise ProbeProblem(f"{len(set(held))} different samples make no {k} folds")
    classes = samples.classes
    if classes is not None:
        counts = Counter(classes)
        if len(counts) < 2 or max(counts.values()) < k:
            classes = None
        else:
            why.insert(0, f"{len(counts)} classes, in each fold in the same shares")
            rare = [name for name, count in sorted(counts.items()) if count < k]
            if rare:
                notes.append(_rare(rare, counts, k))
    if samples.pool.shuffles is False:
        notes.append(
            f"{samples.pool.name} does not shuffle; folds do. If its samples follow each other in time, "
            f"split by TimeSeriesSplit({k}): as cv in a file, as k of cross_validate"
        )
    name = _name(classes, held)
    options: dict[str, Any] = {"n_splits": k}
    if name != "GroupKFold":
        options |= {"shuffle": True, "random_state": seed}
    made = getattr(selection, name)(**options)
    return Folds(
        _pairs(made, samples, classes, None if held is None else _relabelled(held, seed)),
        name,
        "; ".join(why) or "neither classes nor groups are known",
        notes,
    )


def _name(classes: Any, held: Any) -> str:
    if held is None:
        return "KFold" if classes is None else "StratifiedKFold"
    return "GroupKFold" if classes is None else "StratifiedGroupKFold"


def _rare(rare: Sequence[int], counts: Counter[int], k: int) -> str:
    few = ", ".join(f"{name} ({counts[name]})" for name in rare[:5])
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    return f"classes with fewer samples than {k} folds, which some folds lack: {few}{more}"


def _pairs(
    splitter: Any, samples: Samples, classes: Sequence[int] | None, groups: Sequence[int] | None
) -> list[tuple[Sequence[int], Sequence[int]]]:
    place = list(range(samples.pool.size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rare classes, which is said by us
        try:
            found = list(splitter.split(place, classes, groups))
        except Exception as error:
            raise ProbeProblem(f"{type(splitter).__name__} raised {described(error)}") from error
    return [([int(n) for n in train], [int(n) for n in validation]) for train, validation in found]


def _given(
    splitter: Any, samples: Samples, groups: Sequence[int] | None, k: int, notes: list[str]
) -> Folds:
    """The folds of a splitter that the user gave, if they hold out what they validate on."""
    pairs = _pairs(splitter, samples, samples.classes, groups)
    name = type(splitter).__name__
    if len(pairs) < 2 or (k > 1 and len(pairs) != k):
        raise ProbeProblem(f"{name} makes {len(pairs)} folds: ask for as many, and at least 2")
    for number, (train, validation) in enumerate(pairs):
        if not train or not validation:
            raise ProbeProblem(f"fold {number + 1} of {name} is empty")
        if not set(train).isdisjoint(validation):
            raise ProbeProblem(
                f"fold {number + 1} of {name} trains on samples that it validates on"
            )
    leaking = _leaking(samples, pairs)
    if leaking:
        notes.append(
            f"{leaking} samples validated on equal one that is trained on in the same fold"
        )
    return Folds(pairs, name, "it was given", notes)


def _leaking(samples: Samples, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> int:
    if not samples.repeatable:
        return 0
    found: set[int] = set()
    for train, validation in pairs:
        seen = {samples.hashes[n] for n in train}
        found |= {n for n in validation if samples.hashes[n] in seen}
    return len(found)


def _numbered(groups: Any, pool: Pool) -> list[int]:
    """The groups of the pool's samples as numbers. Raises `ProbeProblem` where they do not fit."""
    try:
        listed = groups.tolist() if hasattr(groups, "tolist") else list(groups)
        names = {name: number for number, name in enumerate(dict.fromkeys(listed))}
    except TypeError as error:
        raise ProbeProblem(f"groups must be one name or number a sample: {error}") from error
    if len(listed) != pool.size:
        raise ProbeProblem(f"{len(listed)} groups for {pool.size} samples of {pool.name}")
    return [names[name] for name in listed]


def _joined(groups: Sequence[int], hashes: Sequence[int]) -> list[int]:
    """Groups of which samples are equal become one."""
    parents = list(range(max(groups) + 1))

    def root(group: int) -> int:
        while parents[group] != group:
            parents[group] = parents[parents[group]]
            group = parents[group]
        return group

    first: dict[int, int] = {}
    for group, known in zip(groups, hashes, strict=True):
        parents[root(group)] = root(first.setdefault(known, group))
    return [root(group) for group in groups]


def _relabelled(groups: Sequence[int], seed: int) -> list[int]:
    """The same groups under numbers in random order: GroupKFold deals equal ones out in theirs."""
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    number = dict(zip(names, order, strict=True))
    return [number[group] for group in groups]


def _model_selection() -> Any:
    try:
        from sklearn import model_selection
    except ImportError:
        raise UsageError('folds need scikit-learn: pip install "trainlint[folds]"') from None
    return model_selection
