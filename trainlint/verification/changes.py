"""What is tried and what came of it, as data that crosses between processes. Imports no torch.

A `Change` is what one fix does to a model, a `Version` the model after one or several; a `Training` is one
training of it, an `Outcome` all that came of trying it.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from trainlint.errors import TrainlintError
from trainlint.fixes.edit import Edit, Fix
from trainlint.fixes.patch import Patch
from trainlint.fixes.source import SourceText, apply
from trainlint.records import Figure, ReportedFinding, TargetResult

SEEDS: Final = (0, 1)
NO_TRAINING: Final = "not tried: there is no training: give "
_LEAST_AVERAGED: Final = 3
_LEAST_SECONDS: Final = 1.0


class Change(msgspec.Struct, frozen=True):
    """Edits of the source, or patches of a live copy; with neither, the model as it is."""

    edits: list[Edit] = []
    patches: list[Patch] = []

    @property
    def key(self) -> bytes:
        """Equal for equal changes."""
        return msgspec.json.encode(self)

    @classmethod
    def of(cls, fix: Fix, *, live: bool = False) -> Change | None:
        """How a fix is tried: by its edits where it has some, by its patches on a live model."""
        if fix.edits and not live:
            return cls(edits=list(fix.edits))
        return cls(patches=list(fix.patches)) if fix.patches else None


class Version(msgspec.Struct, frozen=True):
    """A target after some changes: texts that stand in for its files, by name, and patches of its model."""

    texts: dict[str, str] = {}
    patches: list[Patch] = []

    def changed(self, change: Change) -> Version:
        """With one more change, whose edits are of these texts. Raises `UnreadableError`."""
        texts = dict(self.texts)
        by_file: dict[str, list[Edit]] = {}
        for edit in change.edits:
            by_file.setdefault(os.path.realpath(edit.filename), []).append(edit)
        for name, edits in by_file.items():
            source = None if name in texts else SourceText.read(name)
            if name not in texts and source is None:
                raise UnreadableError(f"{name} can no longer be read")
            texts[name] = apply(texts[name] if source is None else source.text, edits)
        return Version(texts, [*self.patches, *change.patches])


class UnreadableError(TrainlintError):
    """A file that a fix edits has gone."""


@dataclass(frozen=True)
class Trial:
    """A version of a target to be checked and trained; without `check` it is trained only.

    With `finds_rate` neither is done: all that is wanted is the rate that a range test among its patches
    chooses.
    """

    target: str
    version: Version
    check: bool = True
    finds_rate: bool = False


@dataclass(frozen=True)
class Budget:
    """How trials are made: `steps` a training, of `seconds` at most, and all of them until `deadline`.

    `most` is how many seconds all of them had, `workers` how many are made at once.
    """

    steps: int
    seconds: float
    deadline: float
    workers: int
    most: float

    @property
    def out_of_time(self) -> str:
        """The reason of what was not tried."""
        return f"not tried: no time left (--verify-seconds {self.most:g})"

    @property
    def is_spent(self) -> bool:
        """Whether there is no time for another trial."""
        return time.monotonic() + _LEAST_SECONDS > self.deadline


# Told of the share of all work that is done, and what is done now.
Progress = Callable[[float, str], None]


class Loss(msgspec.Struct, frozen=True):
    """A loss before and after a training, and that of the best constant answer to the same targets.

    None where it could not be had, or is no number.
    """

    start: Figure | None = None
    end: Figure | None = None
    guess: Figure | None = None


class Training(msgspec.Struct, frozen=True):
    """One training of `steps` optimizer steps, of the `asked`. `reason` says why there is no loss, or None.

    `train` is the loss of training samples, `validation` that of others. `watched` tells that `train` is
    what the user's own loop showed while it ran: `series` is then the loss at each step. `seconds` are
    those of the processor in a step, `parameters` how many the model has, `memory` the bytes that the
    process grew by. `rate` is the learning rate that a range test chose, where that was all that was asked.
    """

    seed: int
    reason: str | None = None
    train: Loss = Loss()
    validation: Loss | None = None
    watched: bool = False
    series: list[Figure] = []
    steps: int = 0
    asked: int = 0
    parameters: int = 0
    seconds: float = 0.0
    memory: int = 0
    rate: float | None = None


class Plan(msgspec.Struct, frozen=True):
    """What a child process is to do with a model: change it by `patches`, check it, and train it.

    One training for each seed, of so many `steps`, for at most `seconds` each. Without `check`, it is
    trained only; with `finds_rate` it is not trained either, a range test among its patches is made.
    """

    patches: list[Patch] = []
    seeds: tuple[int, ...] = SEEDS
    steps: int = 50
    seconds: float = 30.0
    check: bool = True
    finds_rate: bool = False


@dataclass
class Outcome:
    """All that came of a trial.

    `findings` are those of the changed model as the rules reported them, None where it was not checked,
    with `result`, what became of the check. `reason` says why there is not all of it.
    """

    findings: Sequence[ReportedFinding] | None = None
    result: TargetResult | None = None
    trainings: list[Training] = field(default_factory=list)
    reason: str | None = None


def at_end(values: Sequence[float]) -> float:
    """The median of the last fifth, at least three: batches differ. NaN where one is not finite."""
    last = list(values[-max(_LEAST_AVERAGED, len(values) // 5) :])
    return statistics.median(last) if all(map(math.isfinite, last)) else math.nan


# Makes trials, in this order as far as the time goes. Goes out: an outcome for each.
Maker = Callable[[Sequence[Trial], Budget, Progress | None], list[Outcome]]
