"""Read samples of a pool, and keep what describes and compares them, not the samples themselves.

Comes in: a `Pool`. Goes out: a `Reading`: figures of each field, a hash of each sample's inputs, features
for two-sample tests, fingerprints that survive a resaved, shifted or brightened image. Bounded in
samples, seconds and memory; what ends it early is a word in `Reading.problem`.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from trainlint.data.columns import FieldFigures
from trainlint.data.features import summaries, vectors
from trainlint.preserve import random_states
from trainlint.probe.batches import LABELS, ProbeProblem
from trainlint.tree import tensors

if TYPE_CHECKING:
    from torch import nn

    from trainlint.data.pool import Pool

MOST: Final = 50_000
# Samples whose features and fingerprints are kept, out of all that are hashed.
_KEPT: Final = 16_384
_CHUNK_SECONDS: Final = 0.1
_LARGEST_CHUNK: Final = 256
_AGAIN: Final = 16
_MOST_FAILURES: Final = 5
_BLOCK: Final = 1 << 16
_LARGEST_MIX: Final = 1 << 22


@dataclass
class Reading:
    """What was read of a pool. Lists run along the samples, in the order of their numbers.

    `hashes` are equal for samples of equal inputs; `informative` tells whether these say anything: not all
    values are alike, nor is the text empty. `features` (N, D), `vectors` (N, E), `prints` of images (N, 9,
    F) and `labels` (N, ...) are of the samples at the positions `kept`, None where they do not fit
    together.
    """

    pool: Pool
    inputs: list[FieldFigures] = field(default_factory=list)
    target: FieldFigures | None = None
    numbers: list[int] = field(default_factory=list)
    hashes: list[tuple[int, ...]] = field(default_factory=list)
    informative: list[bool] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    features: Tensor | None = None
    feature_names: Sequence[str] = ()
    vectors: Tensor | None = None
    prints: Tensor | None = None
    labels: Tensor | None = None
    repeatable: bool | None = None
    repeats_targets: bool | None = None
    problem: str = ""

    @property
    def places(self) -> list[Any]:
        """The dataset's own numbers of the samples."""
        return [self.pool.place(number) for number in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)


# Where the parts of a batch belong: (inputs by name, target).
Parts = tuple[dict[str, Any], Any]


def parts_of(batch: Any, model: nn.Module | None, *, has_loss: bool) -> Parts:
    """The inputs of a batch by name, and the target or None, as the probe would divide them.

    Unlike `split` it refuses nothing: what cannot train a model can be described.
    """
    if isinstance(batch, Mapping):
        label = next((key for key in LABELS if key in batch), None)
        return {str(k): v for k, v in batch.items() if k != label}, batch.get(label)
    if isinstance(batch, (list, tuple)) and not all(isinstance(part, str) for part in batch):
        if len(batch) == 1:
            return {"input": batch[0]}, None
        place = len(batch) - 1 if has_loss else _label_place(batch, model)
        inputs = [part for at, part in enumerate(batch) if at != place]
        names = ["input"] if len(inputs) == 1 else [f"input[{at}]" for at in range(len(inputs))]
        return dict(zip(names, inputs, strict=True)), None if place is None else batch[place]
    target = None if isinstance(batch, Tensor) else getattr(batch, "y", None)
    return {"input": batch}, target


def _label_place(batch: Sequence[Any], model: nn.Module | None) -> int | None:
    """Which part is the target where no loss is known: the one that forward calls so, or does not take."""
    if model is None:
        return len(batch) - 1
    try:
        bound = inspect.signature(model.forward).bind(*batch)
    except (TypeError, ValueError):
        return len(batch) - 1
    names = list(bound.arguments)[: len(batch)]
    return next((place for place, name in enumerate(names) if name in LABELS), None)


def _leaves(inputs: Mapping[str, Any], target: Any) -> tuple[dict[str, Any], Any]:
    """Tensors and lists of texts by name, and the target where it is one tensor."""
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
            found[name] = list(value)
            continue
        for path, tensor in tensors(value):
            if tensor is not target or isinstance(value, Tensor):
                found[f"{name}.{path}" if path else name] = tensor
    return found, target if isinstance(target, Tensor) else None


def read(
    pool: Pool,
    *,
    model: nn.Module | None = None,
    has_loss: bool = True,
    most: int = MOST,
    seconds: float = 3.0,
) -> Reading:
    """Read samples, all of them or as many at random as there is time for.

    Raises `ProbeProblem` where not one could be read. A model is asked only for the names of its arguments.
    """
    reader = _Reader(pool, model, has_loss, time.monotonic() + seconds)
    reader.read(_order(pool, most))
    return reader.reading()


def _order(pool: Pool, most: int) -> list[int]:
    """Random where that is possible, so that what was read when time is up is a fair sample."""
    numbers = pool.drawn(most)
    if pool.dataset is None:
        return numbers
    generator = torch.Generator().manual_seed(1)
    return [numbers[at] for at in torch.randperm(len(numbers), generator=generator).tolist()]


class _Reader:
    """Reads in chunks, and one by one what refuses to share a batch or cannot be told apart in one."""

    def __init__(
        self, pool: Pool, model: nn.Module | None, has_loss: bool, deadline: float
    ) -> None:
        self.pool = pool
        self.parts: Callable[[Any], Parts] = lambda batch: parts_of(batch, model, has_loss=has_loss)
        self.deadline = deadline
        self.found = Reading(pool)
        self.single = False
        self.failures = 0
        self._figures: dict[str, FieldFigures] = {}
        self._features: list[Tensor] = []
        self._vectors: list[Tensor] | None = []
        self._prints: list[Tensor] | None = []
        self._labels: list[Tensor] | None = []

    def read(self, order: Sequence[int]) -> None:
        place, size = 0, 1
        while place < len(order) and self.failures < _MOST_FAILURES:
            started = time.monotonic()
            if place and started > self.deadline:
                break
            chunk = order[place : place + (1 if self.single else size)]
            if self._take(chunk):
                if place == 0:
                    self._look_again(chunk, order)
                place += len(chunk)
                spent = time.monotonic() - started
                grown = 4 * size if spent < _CHUNK_SECONDS / 4 else size
                size = max(1, min(_LARGEST_CHUNK, grown if spent < _CHUNK_SECONDS else size // 2))
            elif len(chunk) > 1:
                self.single = True
            else:
                self.failures += 1
                place += 1
        if not self.found.numbers:
            raise ProbeProblem(self.found.problem or f"{self.pool.name} is empty")

    def _take(self, chunk: Sequence[int]) -> bool:
        """Read these samples; False where that failed, with the reason noted if it was one alone."""
        try:
            given = list(self.pool.batches(chunk, len(chunk)))
        except ProbeProblem as problem:
            if len(chunk) == 1 and not self.found.problem:
                self.found.problem = str(problem)
            return False
        sizes = [len(chunk)] if len(given) == 1 else _sizes(given)
        if sizes is None or sum(sizes) != len(chunk):
            return False
        divided = [self._divided(batch, size) for batch, size in zip(given, sizes, strict=True)]
        if any(part is None for part in divided):
            if len(chunk) == 1 and not self.found.problem:
                self.found.problem = f"{self.pool.name} gives no tensors or texts"
            return False
        start = 0
        for (fields, target), size in zip(divided, sizes, strict=True):
            self._note(list(chunk[start : start + size]), fields, target)
            start += size
        return True

    def _divided(self, batch: Any, size: int) -> Any:
        """Fields with samples along the first axis, and the target; None where there are none such."""
        inputs, target = self.parts(batch)
        fields, label = _leaves(inputs, target)
        has_rows = {name: _has_rows(value, size) for name, value in fields.items()}
        if not all(has_rows.values()):
            if size > 1:
                return None
            # All of it belongs to the only sample.
            fields = {
                n: v if has_rows[n] or not isinstance(v, Tensor) else v[None]
                for n, v in fields.items()
            }
        if not fields:
            return None
        return fields, label if label is not None and _has_rows(label, size) else None

    def _note(self, chunk: list[int], fields: Mapping[str, Any], target: Tensor | None) -> None:
        places = [self.pool.place(number) for number in chunk]
        for name, values in fields.items():
            figures = self._figures.setdefault(name, FieldFigures(name))
            figures.add(places, values)
        if target is not None:
            if self.found.target is None:
                self.found.target = FieldFigures("target", is_target=True)
            self.found.target.add(places, target)
        hashes, informative = hashed(list(fields.values()))
        self.found.numbers += chunk
        self.found.hashes += hashes
        self.found.informative += informative
        if len(self.found.numbers) <= _KEPT:
            self._keep(fields, target)

    def _keep(self, fields: Mapping[str, Any], target: Tensor | None) -> None:
        found = [summaries(name, values) for name, values in fields.items()]
        self.found.feature_names = [name for names, _ in found for name in names]
        self._features.append(torch.cat([figures for _, figures in found], 1))
        made = vectors(list(fields.values()))
        self._vectors = _with(self._vectors, None if made is None else made[0])
        self._prints = _with(self._prints, None if made is None else made[1])
        self._labels = _with(self._labels, None if target is None else target.detach().cpu())

    def _look_again(self, first: Sequence[int], order: Sequence[int]) -> None:
        """Whether a sample comes out the same when the random generators stand elsewhere."""
        if self.pool.dataset is None:
            return
        asked = [*first, *order[1:_AGAIN]]
        alike = alike_targets = True
        seen = False
        for number in asked:
            pairs = []
            for seed in (1, 2):
                with random_states():
                    _seed(seed)
                    try:
                        batch = next(iter(self.pool.batches([number], 1)))
                    except ProbeProblem:
                        break
                    pairs.append(self._divided(batch, 1))
            if len(pairs) < 2 or None in pairs:
                continue
            (one, target), (other, its) = pairs
            seen = True
            alike &= hashed(list(one.values()))[0] == hashed(list(other.values()))[0]
            if target is not None and its is not None:
                alike_targets &= hashed([target])[0] == hashed([its])[0]
            else:
                alike_targets = False
            if time.monotonic() > self.deadline:
                break
        if seen:
            self.found.repeatable, self.found.repeats_targets = alike, alike_targets

    def reading(self) -> Reading:
        """What was read, in the order of the samples' numbers."""
        found = self.found
        found.inputs = list(self._figures.values())
        order = sorted(range(len(found.numbers)), key=found.numbers.__getitem__)
        held = sum(len(features) for features in self._features)
        kept = torch.tensor([place for place in order if place < held], dtype=torch.long)
        widths = {features.shape[1] for features in self._features}
        if len(widths) == 1:
            found.features = torch.cat(self._features)[kept]
        if self._vectors:
            found.vectors = torch.cat(self._vectors)[kept]
        if self._prints:
            found.prints = torch.cat(self._prints)[kept]
        if self._labels:
            found.labels = torch.cat(self._labels)[kept]
        found.numbers = [found.numbers[place] for place in order]
        found.hashes = [found.hashes[place] for place in order]
        found.informative = [found.informative[place] for place in order]
        found.kept = [at for at, place in enumerate(order) if place < held]
        return found


def _with(held: list[Tensor] | None, more: Tensor | None) -> list[Tensor] | None:
    """One more of the same shape; None for good where one is missing or of another."""
    if held is None or more is None or (held and held[0].shape[1:] != more.shape[1:]):
        return None
    return [*held, more]


def _seed(seed: int) -> None:
    from trainlint.measure.pulse import seed_generators

    seed_generators(seed)


def _sizes(given: Sequence[Any]) -> list[int] | None:
    from trainlint.data.pool import count_of

    sizes = [count_of(batch) for batch in given]
    return [size for size in sizes if size] if all(sizes) else None


def _has_rows(value: Any, size: int) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == size
    return isinstance(value, list) and len(value) == size


_WEIGHTS: Final[dict[int, tuple[torch.Generator, Tensor]]] = {}


def _weights(place: int, size: int) -> Tensor:
    """(2, size or more) odd whole numbers, always the same for the field at this place."""
    if place not in _WEIGHTS:
        _WEIGHTS[place] = torch.Generator().manual_seed(place), torch.zeros(2, 0, dtype=torch.long)
    generator, held = _WEIGHTS[place]
    while held.shape[1] < size:
        block = torch.randint(-(2**63), 2**63 - 1, (2, _BLOCK), generator=generator) | 1
        held = torch.cat([held, block], 1)
        _WEIGHTS[place] = generator, held
    return held[:, :size]


def hashed(fields: Sequence[Any]) -> tuple[list[tuple[int, ...]], list[bool]]:
    """(hashes, whether they carry information) of the samples of a batch, over all fields.

    A multilinear hash of 128 bits (Carter & Wegman 1979): zeros at the end add nothing, so that sequences
    hash alike however far they are padded. Numbers are compared as float32.
    """
    codes: list[tuple[int, ...]] = []
    told: list[bool] = []
    for place, values in enumerate(fields):
        if isinstance(values, Tensor):
            own, informs = _hashed_rows(values, place)
        else:
            digests = (hashlib.blake2b(text.encode(), digest_size=15).digest() for text in values)
            own = [(int.from_bytes(digest, "big"),) for digest in digests]
            informs = [bool(text.strip()) for text in values]
        codes = [a + b for a, b in zip(codes, own, strict=True)] if place else own
        told = [a or b for a, b in zip(told, informs, strict=True)] if place else informs
    return codes, told


def _hashed_rows(values: Tensor, place: int) -> tuple[list[tuple[int, ...]], list[bool]]:
    real = torch.view_as_real(values) if values.is_complex() else values
    flat = real.detach().cpu().reshape(len(values), -1)
    size = flat.shape[1]
    if not size:
        return [(0, 0)] * len(flat), [False] * len(flat)
    informs = (flat != flat[:, :1]).any(1) if size > 1 else torch.ones(len(flat), dtype=torch.bool)
    if flat.is_floating_point():
        flat = (flat.float() + 0.0).view(torch.int32)  # -0.0 is 0.0
    weights = _weights(place, size)
    rows = max(1, _LARGEST_MIX // size)
    sums = [
        torch.stack([(part.long() * w).sum(1) for w in weights], 1)
        for part in torch.split(flat, rows)
    ]
    return [tuple(row) for row in torch.cat(sums).tolist()], informs.tolist()
