"""Validation samples that stand in the training data as well: the same entries, equal inputs, near copies.

Comes in: two `Reading`s. Goes out: an `Overlap`. Three questions are asked. Which entries do both hold, of
a dataset that they share? Which inputs are equal, and are there more of them than a random split of these
very data would put on both sides? Which validation samples are nearer to a training sample than training
samples ever are to each other?
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from trainlint.data.facts import Overlap
from trainlint.data.reading import Reading

# So many false findings in a comparison are put up with, of equal inputs and of near ones.
_FALSE_EXACT: Final = 1e-3
_FALSE_NEAR: Final = 1e-2
_QUANTILE: Final = 1.645
_SURE: Final = 2.326
_MOST_PAIRS: Final = 16
_MOST_NESTED: Final = 8
# Training samples of which the distance to the next one is known before anything is said.
_LEAST: Final = 30
_TAIL: Final = 0.1
_LEAST_TAIL: Final = 8
# Columns whose values are that many deviations apart, or more, are categories.
_COARSE: Final = 0.25
# By so many times what rounding bridges are samples apart that tell anything of smaller distances.
_GRAINS: Final = 3.0
_FLOPS: Final = 1e10
_MOST_VALUES: Final = 4_000_000
_MOST_ROWS: Final = 2048


def overlap_of(train: Reading, validation: Reading) -> Overlap:
    """What both sets have in common."""
    same = _same_entries(train, validation)
    mine, other = _informative(train), _informative(validation)
    places: dict[Any, int] = {}
    for at in mine:
        places.setdefault(train.hashes[at], at)
    equal = {at: places[validation.hashes[at]] for at in other if validation.hashes[at] in places}
    in_train = Counter(train.hashes[at] for at in mine)
    usual = sum(n for n in in_train.values() if n > 1) / max(1, len(mine))
    in_validation = Counter(validation.hashes[at] for at in other)
    surplus = _surplus(in_train, in_validation, len(mine), len(other))
    near, certain = _near(train, validation, equal.keys())
    share = len(equal) / max(1, len(other))
    if certain and (usual < share / 2 or share > 0.1):
        # Such inputs are never equal by chance: one is a copy of the other.
        surplus = max(surplus, float(len(equal)))
    copies = same | equal | near
    mine_places, other_places = train.places, validation.places
    return Overlap(
        exact=len(equal),
        near=len(near),
        compared=len(other),
        against=len(mine),
        usual=usual,
        excess=max(surplus + len(near), float(len(same))),
        pairs=[
            (other_places[at], mine_places[copies[at]] if copies[at] >= 0 else other_places[at])
            for at in sorted(copies)[:_MOST_PAIRS]
        ],
        same=len(same),
    )


def _informative(reading: Reading) -> list[int]:
    return [at for at, informs in enumerate(reading.informative) if informs]


def _surplus(
    train: Mapping[Any, int], validation: Mapping[Any, int], size: int, other: int
) -> float:
    """How many more values stand on both sides than a random split leaves there; 0 if that may be chance.

    A value that comes m times in all is on both sides with probability 1 - q^m - (1 - q)^m, where q is the
    share of validation samples.
    """
    share = other / max(1, size + other)
    repeated = Counter(
        count + validation.get(value, 0)
        for value, count in train.items()
        if count + validation.get(value, 0) > 1
    )
    repeated.update(n for value, n in validation.items() if n > 1 and value not in train)
    seen = sum(1 for value in validation if value in train)
    chances = [(1 - share**m - (1 - share) ** m, times) for m, times in repeated.items()]
    if not seen or _tail(chances, seen) > _FALSE_EXACT:
        return 0.0
    mean = sum(chance * times for chance, times in chances)
    deviation = math.sqrt(sum(chance * (1 - chance) * times for chance, times in chances))
    shared = sum(validation[value] for value in validation if value in train)
    return max(0.0, seen - mean - _QUANTILE * deviation) * shared / seen


def _tail(chances: Sequence[tuple[float, int]], least: int) -> float:
    """The probability that so many of these independent events come true: Chernoff's bound on it."""
    total = sum(times for _, times in chances)
    mean = sum(chance * times for chance, times in chances)
    if least <= mean:
        return 1.0
    if least > total or mean <= 0:
        return 0.0
    if least == total:
        return math.exp(sum(times * math.log(max(chance, 1e-300)) for chance, times in chances))
    at, rest = least / total, mean / total
    divergence = at * math.log(at / rest) + (1 - at) * math.log((1 - at) / (1 - rest))
    return math.exp(-total * divergence)


# ----------------------------------------------------------------- the same entries of one dataset


def _same_entries(train: Reading, validation: Reading) -> dict[int, int]:
    """Positions of validation samples -> -1, that are entries of a dataset which is trained on.

    Datasets that make up a new sample at each question have no entries: inputs or targets have to repeat.
    """
    if not all(r.repeatable or r.repeats_targets for r in (train, validation)):
        return {}
    known = {key: -1 for _, key in _entries(train, range(train.pool.size))}
    return {at: known[key] for at, key in _entries(validation, validation.numbers) if key in known}


def _entries(reading: Reading, numbers: Sequence[int]) -> Iterator[tuple[int, tuple[int, Any]]]:
    dataset = reading.pool.dataset
    if dataset is None:
        return
    for at, number in enumerate(numbers):
        yield at, _entry(dataset, reading.pool.place(number))


def _entry(dataset: Any, place: Any) -> tuple[int, Any]:
    """(identity of the dataset that holds it, its number there), through subsets and concatenations."""
    for _ in range(_MOST_NESTED):
        if type(dataset) is Subset:
            dataset, place = dataset.dataset, int(dataset.indices[place])
        elif type(dataset) is ConcatDataset:
            part = bisect_right(dataset.cumulative_sizes, place)
            place -= dataset.cumulative_sizes[part - 1] if part else 0
            dataset = dataset.datasets[part]
        else:
            break
    return id(dataset), place


# ----------------------------------------------------------------------------------- near copies


def _near(
    train: Reading, validation: Reading, equal: Container[int]
) -> tuple[dict[int, int], bool]:
    """(validation -> training positions of near copies, whether equal inputs cannot be so by chance).

    The distances of training samples to their next one, of all different inputs, show how often a sample
    has another one so near: the lower tail goes like a power of the distance, with the data's own dimension
    as exponent (Levina & Bickel 2004). Nearer than what that leaves for chance is a copy; but where the
    values are so coarse that samples as near as that can be rounded to equal ones, neither is.
    """
    if train.vectors is None or validation.vectors is None:
        return {}, False
    own, other = _comparable(train, train.vectors), _comparable(validation, validation.vectors)
    own = list({train.hashes[at]: (row, at) for row, at in reversed(own)}.values())
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(0)).tolist()
    own = [own[at] for at in order[: _MOST_VALUES // max(1, train.vectors.shape[1])]]
    mine, its = _rows(own), _rows(other)
    if len(own) < _LEAST or not other or train.vectors.shape[1] != validation.vectors.shape[1]:
        return {}, False
    base, queries, grain = _scaled(train.vectors[mine], validation.vectors[its])
    if not base.shape[1]:
        return {}, False
    if train.prints is None or validation.prints is None:
        limit, found = _copies(base[:, None], queries[:, None], grain)
    else:
        limit, _ = _copies(base[:, None], queries[:0, None], grain, asked=len(queries))
        own, other = (
            _comparable(train, train.prints, own),
            _comparable(validation, validation.prints, other),
        )
        _, found = _copies(train.prints[_rows(own)], validation.prints[_rows(other)], 0.0)
    if not limit:
        return {}, False
    return {
        other[query][1]: own[partner][1]
        for query, partner in found.items()
        if other[query][1] not in equal
    }, True


def _copies(
    base: Tensor, queries: Tensor, grain: float, *, asked: int = 0
) -> tuple[float, dict[int, int]]:
    """(distance below which nothing is chance or 0, query -> row of the base that is nearer than that).

    Of (N, S, D), where the first of S shifts of the base are compared with all of the queries'.
    """
    if len(base) < _LEAST:
        return 0.0, {}
    generator = torch.Generator().manual_seed(0)
    # As many questions as there is time for: a part of them to learn what is usual.
    most = int(_FLOPS / (2 * base.numel()))
    sample = torch.randperm(len(base), generator=generator)[: max(_LEAST, min(1000, most // 3))]
    usual, _ = _nearest(base[sample], base[:, 0], sample)
    limit = _limit(usual, asked or len(queries), grain)
    if not limit or not len(queries):
        return limit, {}
    drawn = torch.randperm(len(queries), generator=generator)[: max(_LEAST, most)]
    distances, partners = _nearest(queries[drawn], base[:, 0], None)
    rows = zip(drawn.tolist(), partners.tolist(), distances.tolist(), strict=True)
    return limit, {query: partner for query, partner, distance in rows if distance <= limit}


def _rows(samples: Sequence[tuple[int, int]]) -> list[int]:
    return [row for row, _ in samples]


def _comparable(
    reading: Reading, values: Tensor, among: Sequence[tuple[int, int]] | None = None
) -> list[tuple[int, int]]:
    """(row among the kept, position) of the samples whose values are finite and say something."""
    told = torch.isfinite(values).flatten(1).all(1)
    if values.dim() == 3:
        told &= values[:, 0].any(1)  # the inner part of an image may be empty
    says = told.tolist()
    rows = list(enumerate(reading.kept)) if among is None else among
    return [(row, at) for row, at in rows if says[row] and reading.informative[at]]


def _scaled(base: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, float]:
    """Columns of many values in units of the training data's deviations, and what rounding can bridge.

    Equal in all columns is equal in these: the others could only make it rarer. Two numbers that are
    rounded to the same one are √(1/6) of a step apart on average.
    """
    std, mean = torch.std_mean(base, 0, correction=0)
    steps = torch.stack([_step(column) for column in base[:_MOST_ROWS].unbind(1)])
    fine = (std > 1e-6 * mean.abs()) & (steps < _COARSE * std)
    std, mean, steps = std[fine], mean[fine], steps[fine]
    base, queries = (base[:, fine] - mean) / std, (queries[:, fine] - mean) / std
    return base, queries, float((steps / std).norm() / 6**0.5)


def _step(column: Tensor) -> Tensor:
    """The smallest difference between two values of a column: to how much it is rounded."""
    gaps = column.sort().values.diff()
    gaps = gaps[gaps > 1e-6 * column.abs().amax()]
    return gaps.min() if len(gaps) else torch.tensor(0.0)


def _limit(distances: Tensor, asked: int, grain: float) -> float:
    """The distance below which not one of `asked` samples is expected by chance, but for 1 in 100.

    0 where there is none above the `grain`: where samples are as near to each other as their values are
    rounded, the tail is that of the rounding.
    """
    ordered = distances[torch.isfinite(distances)].sort().values
    if len(ordered) < _LEAST:
        return 0.0
    count = max(_LEAST_TAIL, int(_TAIL * len(ordered)))
    edge = float(ordered[count])
    if edge <= _GRAINS * grain:
        return 0.0
    tail = (ordered[:count] / edge).clamp(min=1e-12)
    # Hill's estimate of the exponent, and a lower bound of it.
    exponent = count / float(-tail.log().sum().clamp(max=-1e-12))
    exponent *= max(0.0, 1 - _SURE / math.sqrt(count))
    if exponent <= 0:
        return 0.0
    chance = _FALSE_NEAR / max(1, asked) * len(ordered) / count
    limit = edge * math.exp(min(0.0, math.log(chance)) / exponent)
    return limit if limit > grain else 0.0


def _nearest(queries: Tensor, base: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """(distance, row) of the training sample next to each query, over its shifts; not the `own` one."""
    found, partners = [], []
    squares = base.square().sum(1)
    rows = max(1, (1 << 24) // max(1, len(base) * queries.shape[1]))
    for start in range(0, len(queries), rows):
        part = queries[start : start + rows]
        flat = part.reshape(-1, part.shape[-1])
        far = torch.addmm(squares, flat, base.T, alpha=-2) + flat.square().sum(1, keepdim=True)
        far = torch.nan_to_num(far, nan=math.inf).reshape(len(part), -1, len(base)).amin(1)
        if own is not None:
            far[torch.arange(len(part)), own[start : start + rows]] = math.inf
        _, place = far.min(1)
        found.append(_exactly(part, base[place]))
        partners.append(place)
    return torch.cat(found), torch.cat(partners)


def _exactly(queries: Tensor, partners: Tensor) -> Tensor:
    """Distances of queries to their partners, the least of all shifts, without cancellation."""
    return (queries - partners[:, None]).square().sum(2).sqrt().amin(1)
