"""The samples of a loader by number, so that a few can be drawn and folds be made.

Comes in: a loader of any kind. Goes out: a `Pool`, whose batches are as the loader's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SubsetRandomSampler

from trainlint.probe.batches import ProbeProblem, batches, described, size_of
from trainlint.tree import map_tensors

_MOST: Final = 20_000
_SECONDS: Final = 10.0


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
        """Batches of these samples, of `size` each (the loader's own if 0), the last one smaller.

        Raises `ProbeProblem` where a sample cannot be read. Samples of a loader that was read in its order
        stay with those that they came with, so that batches can be smaller there.
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
        wanted = sorted(self._number(n) for n in numbers)
        place = 0
        for first, batch in self._stored:
            count = _count(batch)
            rows = []
            while place < len(wanted) and wanted[place] < first + count:
                rows.append(wanted[place] - first)
                place += 1
            for start in range(0, len(rows), size):
                yield _rows(batch, rows[start : start + size], count)

    def only(self, numbers: Sequence[int]) -> Pool:
        """These samples as a pool of their own, numbered anew in this order."""
        if self._loader is not None:
            indices = [self._indices[n] for n in numbers]
            return replace(self, size=len(indices), _indices=indices)
        return replace(self, size=len(numbers), _numbers=[self._number(n) for n in numbers])

    def _number(self, number: int) -> int:
        return number if self._numbers is None else self._numbers[number]

    def drawn(self, most: int, seed: int = 0) -> list[int]:
        """The numbers of so many samples, drawn at random without replacement, in rising order."""
        if self.size <= most:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(seed)
        return sorted(torch.randperm(self.size, generator=generator)[:most].tolist())


def pool_of(loader: Any, name: str, *, most: int = _MOST, seconds: float = _SECONDS) -> Pool:
    """The samples of a loader. Raises `ProbeProblem` where it fails, gives nothing, or no samples.

    A `DataLoader` over a dataset with numbers is read as it is asked; of any other one pass is read, up to
    `most` samples in so many `seconds`, and kept.
    """
    made = loader() if callable(loader) and not hasattr(loader, "__iter__") else loader
    if isinstance(made, DataLoader) and _is_numbered(made):
        indices = _indices(made)
        if not indices:
            raise ProbeProblem(f"{name} is empty")
        sampler = type(made.sampler).__name__
        return Pool(
            name,
            len(indices),
            made.batch_size or 1,
            whole=True,
            shuffles=sampler != "SequentialSampler",
            _indices=indices,
            _loader=made,
        )
    return _stored(loader, name, most, seconds)


def _is_numbered(loader: Any) -> bool:
    """Whether its batches are made of numbered samples in the plain way."""
    return (
        loader.batch_size is not None
        and type(loader.batch_sampler) is BatchSampler
        and not isinstance(loader.dataset, IterableDataset)
        and hasattr(loader.dataset, "__len__")
        and hasattr(loader.dataset, "__getitem__")
    )


def _indices(loader: Any) -> Sequence[int]:
    if isinstance(loader.sampler, SubsetRandomSampler):
        return list(loader.sampler.indices)
    return range(len(loader.dataset))


def _stored(loader: Any, name: str, most: int, seconds: float) -> Pool:
    deadline = time.monotonic() + seconds
    kept: list[tuple[int, Any]] = []
    count = 0
    whole = False
    for batch in batches(loader, name, once=True):
        size = _count(batch)
        if size is None:
            raise ProbeProblem(f"the samples of a batch of {name} cannot be told apart")
        kept.append((count, batch))
        count += size
        if count >= most or time.monotonic() > deadline:
            break
    else:
        whole = True
    largest = max(size for _, batch in kept if (size := _count(batch)) is not None)
    return Pool(name, count, largest, whole, shuffles=None, _stored=kept)


def _count(batch: Any) -> Any:
    """The number of samples in a batch, None where they cannot be told apart."""
    size = size_of(batch)
    if size is None and isinstance(batch, (list, tuple)):
        lengths = {len(part) for part in batch if hasattr(part, "__len__")}
        return lengths.pop() if len(lengths) == 1 else None
    return size


def _rows(batch: Any, rows: Sequence[int], count: int) -> Any:
    if rows == list(range(count)):
        return batch
    index = torch.tensor(rows)
    return map_tensors(batch, lambda _, t: t[index.to(t.device)] if t.dim() else t)
