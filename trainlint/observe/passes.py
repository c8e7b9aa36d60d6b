"""The passes of a watched loop over its data: batches that were trained on, and what validation showed."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from trainlint.generalization.curves import Checkpoint
from trainlint.observe.losses import Judge, Tally, Way, add_judged, marks_of
from trainlint.observe.roots import Forward, Root
from trainlint.tree import map_tensors, tensors

MOST_SAMPLES: Final = 512
MOST_CHECKPOINTS: Final = 16
_MOST_BYTES: Final = 1 << 26
# Samples that have to come back for it to be said how many there are.
_FEWEST_BACK: Final = 8
# Of so many that were looked at at least some come back, where nothing tells how many there are.
_MANY: Final = 256
# Of the samples of a loader's pass, the share from which on it is the training data that it goes over.
_SHARED: Final = 0.5


@dataclass(eq=False)
class Batch:
    """A batch that was trained on: copies of what the model and the loss were given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Tensor | None
    samples: int
    marks: Tensor
    bytes: int


@dataclass
class Kept:
    """Batches that one model was trained on by one loss: each had the same chance to be among them."""

    batches: list[Batch] = field(default_factory=list)
    offered: int = 0
    is_fixed: bool = False
    seconds: float = 0.0
    # Samples that were trained on after these were fixed, as far as they were looked at, and how many of
    # them were among these.
    later: int = 0
    back: Any = 0

    @property
    def samples(self) -> int:
        """How many they hold."""
        return sum(batch.samples for batch in self.batches)

    def draws(self, samples: int, generator: random.Random) -> bool:
        """Whether a batch of so many samples shall be one of them: as in a reservoir, without order."""
        self.offered += 1
        slots = max(1, MOST_SAMPLES // samples)
        return self.offered <= slots or generator.random() * self.offered <= slots

    def put(self, batch: Batch, generator: random.Random) -> None:
        """Add a batch that was drawn, in the place of another where there is no more room."""
        slots = max(1, min(MOST_SAMPLES // batch.samples, _MOST_BYTES // max(1, batch.bytes)))
        if len(self.batches) < slots:
            self.batches.append(batch)
        else:
            self.batches[generator.randrange(len(self.batches))] = batch

    def count_back(self, marks: Tensor | None) -> None:
        """Count which of the samples that are trained on now are among these."""
        if marks is not None and marks.device == self.batches[0].marks.device:
            self.later += len(marks)
            known = torch.cat([batch.marks for batch in self.batches])
            self.back = self.back + torch.isin(marks, known).sum()

    def never_return(self, samples: int | None) -> bool:
        """Whether they do not come back, though there are only so many, or None knows how many.

        Mixed or augmented samples never do; of flipped images every second one does. In the first epoch
        behind them none is due.
        """
        due = float(_FEWEST_BACK)
        if samples:
            due = self.samples * (self.later / samples - 1) / 4
        elif self.later < _MANY:
            return False
        return due >= _FEWEST_BACK / 4 and float(self.back) < due

    def size(self) -> float | None:
        """How many samples there are to be trained on: Lincoln and Petersen's estimate by recapture."""
        back = float(self.back)
        return None if back < _FEWEST_BACK else self.samples * self.later / back


@dataclass
class Pass:
    """A validation pass: the scores of its samples, and those of the training samples at the time."""

    stream: Stream
    number: int
    step: int
    validation: Tally = field(default_factory=Tally)
    train: Tally | None = None


@dataclass
class Stream:
    """The passes of one model over one set of data, with one loss function."""

    root: Root
    judge: Judge | None
    is_loaded: bool
    # As the model was before it was trained, if there is a copy of it.
    first: Pass | None = None
    passes: list[Pass] = field(default_factory=list)
    count: int = 0
    stride: int = 1

    def at(self, step: int) -> Pass:
        """The pass at this step, which may be a new one. The last one is always among those kept."""
        if self.passes and self.passes[-1].step == step:
            return self.passes[-1]
        if self.passes and (self.passes[-1].number % self.stride or not self.passes[-1].train):
            del self.passes[-1]
        self.passes.append(Pass(self, self.count, step))
        self.count += 1
        if len(self.passes) > MOST_CHECKPOINTS:
            self.stride *= 2
            self.passes = [
                one for one in self.passes if one.number % self.stride == 0 or one.step == step
            ]
        return self.passes[-1]


@dataclass
class Load:
    """A `DataLoader` that is trained on: how many samples and batches it has, and what of that came by."""

    samples: int | None
    batches: int | None
    begun: int = 0
    backwards: int = 0

    def epochs(self) -> float | None:
        """How often the samples were passed over."""
        if not self.begun or not self.batches:
            return None
        return self.begun - 1 + min(1.0, self.backwards / self.batches)


@dataclass
class Latest:
    """The forward that has just ended, as long as its loss may follow."""

    root: Root
    inputs: Any
    leaves: list[tuple[str, Tensor]]
    forward: Forward | None
    losses: int = 0


def sizes_of(loader: Any) -> tuple[int | None, int | None]:
    """How many samples and batches a pass has, as far as the loader tells."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None, None
    with contextlib.suppress(Exception):  # the user's own code, which may not know
        return len(loader.sampler), len(loader)
    return None, None


def samples_of(latest: Latest) -> int | None:
    """How many samples the model was given: the first axis of its first input with axes."""
    given = next((t for _, t in tensors(latest.inputs) if t.dim()), None)
    return None if given is None or not len(given) else len(given)


def batch_of(latest: Latest, target: Tensor | None, samples: int) -> Batch | None:
    """Copies of a batch, thinned out where it is large; None where its samples are not told apart."""
    args, kwargs = latest.inputs
    given = (args, dict(kwargs), target)
    size = sum(t.numel() * t.element_size() for _, t in tensors(given))
    every = max(-(-samples // MOST_SAMPLES), -(-size // _MOST_BYTES))
    if every > 1 and (target is None or len(target) != samples):
        return None
    held = map_tensors(given, lambda _, t: _copied(t, samples, every))
    marks = marks_of(held[:2], held[2], -(-samples // every))
    if marks is None:
        return None
    return Batch(held[0], held[1], held[2], len(marks), marks, size // every)


def _copied(tensor: Tensor, samples: int, every: int) -> Tensor:
    part = tensor.detach()
    if every > 1 and part.dim() and len(part) == samples:
        part = part[::every]
    return part.clone()


def distinct(batches: Sequence[Batch]) -> list[Batch]:
    """Without those that are there once more: of a loop that trains on all data at each step."""
    found: list[Batch] = []
    for batch in batches:
        if not any(torch.equal(batch.marks, other.marks) for other in found):
            found.append(batch)
    return found


def add_run(
    tally: Tally,
    module: nn.Module,
    batch: Batch,
    judge: Judge | None,
    way: Way,
    weights: Mapping[str, Tensor],
) -> None:
    """Add what the model makes of a batch, with copies of its buffers."""
    tensors_in_use = {name: buffer.clone() for name, buffer in module.named_buffers()}
    tensors_in_use |= {
        name: t.clone() if name in tensors_in_use else t for name, t in weights.items()
    }
    output = torch.func.functional_call(module, tensors_in_use, batch.args, batch.kwargs)
    answer = way.of(output)
    if answer is None:
        raise LookupError("no answer")
    add_judged(tally, judge, batch.marks, answer, batch.target)


def points_of(stream: Stream) -> tuple[Checkpoint, ...]:
    """The checkpoints of a stream: of the samples that all of its passes looked at."""
    passes = [
        (one, one.validation.by_mark(), one.train.by_mark())
        for one in [*([stream.first] if stream.first else []), *stream.passes]
        if one.train is not None
    ]
    passes = [p for p in passes if _are_finite(p[1]) and _are_finite(p[2])]
    if not passes:
        return ()
    _, validation, train = passes[-1]
    same = len(validation.keys() & train.keys())
    if same > (_SHARED * min(len(validation), len(train)) if stream.is_loaded else 0):
        return ()  # the training data once more
    common = [m for m in validation if all(m in other for _, other, _ in passes)]
    if len(common) < len(validation) / 2:
        passes, common = passes[-1:], list(validation)  # others each time
    common = common[:MOST_SAMPLES]
    kept = [m for m in train if all(m in other for *_, other in passes)]
    return tuple(
        Checkpoint(
            one.step,
            one.train.scores([train[mark] for mark in kept]),
            one.validation.scores([validation[mark] for mark in common]),
        )
        for one, validation, train in passes
        if one.train is not None
    )


def _are_finite(losses: Mapping[float, float]) -> bool:
    return bool(losses) and all(map(math.isfinite, losses.values()))
