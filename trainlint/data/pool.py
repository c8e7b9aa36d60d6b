"""The samples of a loader by number, so that a few can be drawn and folds be made.

Comes in: a loader of any kind. Goes out: a `Pool`, whose batches are as the loader's own. A `DataLoader`
over a dataset with numbers is asked for the samples that are wanted; of anything else one pass is read and
kept, within bounds, and its rows are put together anew.
"""

from __future__ import annotations

import copy
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from trainlint.probe.batches import ProbeProblem, described, size_of
from trainlint.tree import map_tensors, tensors

_MOST: Final = 20_000
_SECONDS: Final = 10.0
# What a pass may hold in memory, and how many numbers a sampler of the user's own is asked for.
_BYTES: Final = 256 << 20
_MOST_NUMBERS: Final = 1_000_000
_SECONDS_OF_PASS: Final = 1.0


@dataclass(frozen=True)
class Pool:
    """Samples numbered from 0 to `size` - 1.

    `whole` tells whether they are all that the loader has; `shuffles` whether its order is random, None
    where that is not known. `batch_size` is that of the loader's batches.
    """

    name: str
    size: int
    batch_size: int
    whole: bool
    shuffles: bool | None
    _indices: Sequence[int] = field(repr=False, default=())
    _loader: Any = field(repr=False, default=None)
    # For a loader that can only be read in its order: its batches, and the number of each one's first.
    _stored: Sequence[tuple[int, Any]] = field(repr=False, default=())
    _numbers: Sequence[int] | None = field(repr=False, default=None)

    def batches(self, numbers: Sequence[int], size: int = 0) -> Iterator[Any]:
        """Batches of these samples in this order, of `size` each (the loader's own if 0), the last smaller.

        Raises `ProbeProblem` where a sample cannot be read, or where samples of different shapes, from a
        loader that was read in its order, would have to share a batch. Samples in rising order never have
        to: they then stay with those that they came with, in smaller batches.
        """
        size = size or self.batch_size
        if self._loader is None:
            yield from self._cut(numbers, size)
            return
        dataset, collate = self._loader.dataset, self._loader.collate_fn
        for start in range(0, len(numbers), size):
            places = [self._indices[n] for n in numbers[start : start + size]]
            try:
                if hasattr(dataset, "__getitems__"):
                    batch = collate(dataset.__getitems__(places))
                else:
                    batch = collate([dataset[place] for place in places])
            except Exception as error:
                raise ProbeProblem(f"{self.name} raised {described(error)}") from error
            yield batch

    def _cut(self, numbers: Sequence[int], size: int) -> Iterator[Any]:
        firsts = [first for first, _ in self._stored]
        for start in range(0, len(numbers), size):
            wanted = [self._number(n) for n in numbers[start : start + size]]
            rows: dict[int, list[int]] = {}
            for number in wanted:
                place = bisect_right(firsts, number) - 1
                rows.setdefault(place, []).append(number - firsts[place])
            came = [firsts[place] + row for place, own in rows.items() for row in own]
            sources = [_Rows(self._stored[place][1], own) for place, own in rows.items()]
            position = {number: at for at, number in enumerate(came)}
            order = None if came == wanted else [position[number] for number in wanted]
            try:
                yield _gathered([s.batch for s in sources], sources, order)
            except _Ragged as ragged:
                if order is not None or wanted != sorted(wanted):
                    raise ProbeProblem(
                        f"the batches of {self.name} hold samples of different shapes ({ragged}), which "
                        "cannot be dealt anew: a DataLoader over a dataset could be asked for them"
                    ) from None
                for source in sources:
                    yield _gathered([source.batch], [source], None)

    def only(self, numbers: Sequence[int]) -> Pool:
        """These samples as a pool of their own, numbered anew in this order."""
        if self._loader is not None:
            indices = [self._indices[n] for n in numbers]
            return replace(self, size=len(indices), _indices=indices)
        return replace(self, size=len(numbers), _numbers=[self._number(n) for n in numbers])

    def _number(self, number: int) -> int:
        return number if self._numbers is None else self._numbers[number]

    def place(self, number: int) -> int:
        """The number that the loader's dataset gives this sample, or its place in the order of reading."""
        return self._indices[number] if self._loader is not None else self._number(number)

    @property
    def dataset(self) -> Any:
        """What `place` counts in; None where the samples have no numbers of their own."""
        return None if self._loader is None else self._loader.dataset

    def drawn(self, most: int, seed: int = 0) -> list[int]:
        """The numbers of so many samples, drawn at random without replacement, in rising order."""
        if self.size <= most:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(seed)
        return sorted(torch.randperm(self.size, generator=generator)[:most].tolist())


def pool_of(loader: Any, name: str, *, most: int = _MOST, seconds: float = _SECONDS) -> Pool:
    """The samples of a loader. Raises `ProbeProblem` where it fails, gives nothing, or no samples.

    A `DataLoader` over a dataset with numbers is read as it is asked; of any other one pass is read, up to
    `most` samples in so many `seconds`, and kept. Neither starts a worker process, where it can do without.
    """
    made = loader
    if callable(loader) and not hasattr(loader, "__iter__"):
        try:
            made = loader()
        except Exception as error:
            raise ProbeProblem(f"{name} raised {described(error)}") from error
        if not hasattr(made, "__iter__"):
            raise ProbeProblem(f"{name} gives {_said(made)}, which is no loader")
    elif hasattr(loader, "__next__"):
        raise ProbeProblem(
            f"{name} is an iterator, which can be read only once: give what it reads"
        )
    if isinstance(made, DataLoader) and _is_numbered(made):
        return _numbered(made, name)
    return _read_through(made, name, most, seconds)


def _is_numbered(loader: Any) -> bool:
    """Whether its batches are made of numbered samples in the plain way."""
    return (
        loader.batch_sampler is not None
        and type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and hasattr(loader.dataset, "__getitem__")
    )


def _numbered(loader: Any, name: str) -> Pool:
    try:
        indices, shuffles, size = _indices(loader)
    except Exception as error:
        raise ProbeProblem(f"{name} raised {described(error)}") from error
    if not indices:
        raise ProbeProblem(f"{name} is empty")
    whole = len(indices) < _MOST_NUMBERS or isinstance(indices, range)
    return Pool(name, len(indices), size, whole, shuffles, _indices=indices, _loader=loader)


def _indices(loader: Any) -> tuple[Sequence[int], bool | None, int]:
    """(the dataset's numbers of the samples, whether their order is random, samples in a batch)."""
    batch_sampler = loader.batch_sampler
    if type(batch_sampler) is BatchSampler:
        sampler: Any = batch_sampler.sampler
        size = batch_sampler.batch_size
        if type(sampler) in (SequentialSampler, RandomSampler):
            return range(len(sampler.data_source)), type(sampler) is RandomSampler, size
        if type(sampler) is SubsetRandomSampler:
            return list(map(int, sampler.indices)), True, size
        if type(sampler) is WeightedRandomSampler:
            drawable = (sampler.weights > 0).nonzero().reshape(-1).tolist()
            return drawable, True, size
        first, second = (_pass((place,) for place in sampler) for _ in range(2))
    else:
        first, second = (_pass(batch_sampler) for _ in range(2))
        size = Counter(map(len, first)).most_common(1)[0][0] if first else 1
    numbers = dict.fromkeys(place for batch in first for place in batch)
    return list(numbers), first != second, size


def _pass(places: Iterable[Any]) -> list[tuple[Any, ...]]:
    """One pass over what a batch sampler gives; of an endless one, the first million of numbers."""
    found: list[tuple[Any, ...]] = []
    count, deadline = 0, time.monotonic() + _SECONDS_OF_PASS
    for batch in places:
        found.append(tuple(batch))
        count += len(found[-1])
        if count >= _MOST_NUMBERS or (not count % 256 and time.monotonic() > deadline):
            break
    return found


def _read_through(loader: Any, name: str, most: int, seconds: float) -> Pool:
    """One pass, kept; without worker processes if it works without."""
    try:
        with _alone(loader):
            return _kept(loader, name, most, seconds)
    except ProbeProblem:
        if not getattr(loader, "num_workers", 0):
            raise
    return _kept(loader, name, most, seconds)


@contextmanager
def _alone(loader: Any) -> Iterator[None]:
    """A `DataLoader` reads in this process."""
    if not isinstance(loader, DataLoader) or not loader.num_workers:
        yield
        return
    settings = {
        "num_workers": 0,
        "prefetch_factor": None,
        "timeout": 0,
        "persistent_workers": False,
    }
    before = {name: getattr(loader, name) for name in settings}
    # Not through its own check, which refuses changes.
    vars(loader).update(settings)
    try:
        yield
    finally:
        vars(loader).update(before)


def _kept(loader: Any, name: str, most: int, seconds: float) -> Pool:
    deadline = time.monotonic() + seconds
    kept: list[tuple[int, Any]] = []
    count = total = 0
    whole = True
    # What makes its batches while it is read may use one buffer for all.
    lasts = isinstance(loader, (Sequence, DataLoader, Tensor))
    passing = iter(_guarded(loader, name))
    for batch in passing:
        size = count_of(batch)
        if not size:
            if size is None:
                raise ProbeProblem(f"{name} gives {_said(batch)}: its samples cannot be told apart")
            continue
        kept.append((count, batch if lasts else map_tensors(batch, lambda _, t: t.clone())))
        count += size
        total += sum(t.numel() * t.element_size() for _, t in tensors(batch))
        if count >= most or total >= _BYTES or time.monotonic() > deadline:
            whole = next(passing, None) is None if lasts else False
            break
    if not kept:
        raise ProbeProblem(f"{name} is empty")
    sizes = [after[0] - before[0] for before, after in pairwise(kept)]
    largest = max([*sizes, count - kept[-1][0]])
    shuffles = False if isinstance(loader, (Sequence, Tensor)) else None
    return Pool(name, count, largest, whole, shuffles, _stored=kept)


def _guarded(loader: Any, name: str) -> Iterator[Any]:
    try:
        yield from loader
    except GeneratorExit:
        raise
    except Exception as error:
        raise ProbeProblem(f"{name} raised {described(error)}") from error


def _said(value: Any) -> str:
    """`None`, `a str`, `a list of 3`."""
    if value is None:
        return "None"
    length = f" of {len(value)}" if isinstance(value, (list, tuple, dict)) else ""
    return f"a {type(value).__name__}{length}"


def count_of(batch: Any) -> int | None:
    """The number of samples in a batch, None where they cannot be told apart."""
    size = size_of(batch)
    parts = _parts(batch)
    flat = {len(part) for part in parts if _is_list(part) and not any(True for _ in tensors(part))}
    if size is not None and flat <= {size}:
        return size
    lengths = {len(part) if _is_list(part) else _length(part) for part in parts}
    lengths.discard(-1)
    return lengths.pop() if len(lengths) == 1 else None


def _parts(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, (list, tuple)) and not all(isinstance(part, str) for part in batch):
        return list(batch)
    return [batch]


def _is_list(part: Any) -> bool:
    return isinstance(part, (list, tuple))


def _length(part: Any) -> int:
    """That of a tensor or array along its first axis, -1 of what has none."""
    shape: Sequence[int] = getattr(part, "shape", ())
    return int(shape[0]) if len(shape) else -1


@dataclass(frozen=True)
class _Rows:
    """These rows of a batch."""

    batch: Any
    rows: list[int]

    @property
    def is_all(self) -> bool:
        return self.rows == list(range(count_of(self.batch) or 0))


class _Ragged(Exception):  # noqa: N818 (an answer)
    """Which shapes do not go together."""


def _gathered(values: list[Any], sources: Sequence[_Rows], order: Sequence[int] | None) -> Any:
    """One batch of the rows of several; `values` are the same part of each, `order` that of the rows."""
    if order is None and len(sources) == 1 and sources[0].is_all:
        return values[0]
    counts = [count_of(source.batch) or 0 for source in sources]
    return _joined(values, [source.rows for source in sources], counts, order)


def _joined(
    values: list[Any], rows: list[list[int]], counts: list[int], order: Sequence[int] | None
) -> Any:
    first = values[0]
    if len({type(value) for value in values}) > 1:
        raise _Ragged("parts of " + " and ".join(sorted({type(v).__name__ for v in values})))
    if hasattr(first, "shape") and hasattr(first, "dtype"):
        return _joined_arrays(values, rows, counts, order)
    if isinstance(first, (list, tuple)):
        return _joined_lists(values, rows, counts, order)
    if isinstance(first, Mapping):
        if any(value.keys() != first.keys() for value in values):
            raise _Ragged("dicts of different keys")
        joined = {
            key: _joined([value[key] for value in values], rows, counts, order) for key in first
        }
        if type(first) is dict:
            return joined
        rebuilt: Any = copy.copy(first)
        for key, part in joined.items():
            rebuilt[key] = part
        return rebuilt
    if any(True for _ in tensors(first)):
        rebuilt = copy.copy(first)
        for key, part in vars(first).items():
            parts = [part, *(vars(value).get(key) for value in values[1:])]
            object.__setattr__(rebuilt, key, _joined(parts, rows, counts, order))
        return rebuilt
    return first


def _joined_arrays(
    values: list[Any], rows: list[list[int]], counts: list[int], order: Sequence[int] | None
) -> Any:
    """Tensors or arrays; those without an axis of samples belong to all of them."""
    if any(_length(value) != count for value, count in zip(values, counts, strict=True)):
        return values[0]
    shapes = dict.fromkeys(tuple(value.shape[1:]) for value in values)
    if len(shapes) > 1:
        raise _Ragged(" and ".join(map(str, islice(shapes, 2))))
    taken = [value[own] for value, own in zip(values, rows, strict=True)]
    if isinstance(taken[0], Tensor):
        whole = torch.cat(taken) if len(taken) > 1 else taken[0]
        return whole if order is None else whole[list(order)]
    import numpy as np  # an array: it is there

    joined = np.concatenate(taken)
    return joined if order is None else joined[list(order)]


def _joined_lists(
    values: list[Any], rows: list[list[int]], counts: list[int], order: Sequence[int] | None
) -> Any:
    first = values[0]
    if _is_of_samples(values, counts):
        whole = [value[row] for value, own in zip(values, rows, strict=True) for row in own]
        return type(first)(whole if order is None else [whole[place] for place in order])
    if len({len(value) for value in values}) > 1:
        raise _Ragged("lists of different lengths")
    joined = [_joined(list(parts), rows, counts, order) for parts in zip(*values, strict=True)]
    return type(first)(*joined) if hasattr(first, "_fields") else type(first)(joined)


def _is_of_samples(values: list[Any], counts: list[int]) -> bool:
    """Whether each list has one thing a sample, and is no list of tensors that have a row for each."""
    return all(
        len(value) == count and not (hasattr(value, "_fields")) and size_of(value) != count
        for value, count in zip(values, counts, strict=True)
    )
