"""Many trainings of one target, and their results: fold by fold, change by change. Imports no torch.

Comes in: a target, and what to try on it. Goes out: a result for each trial, in the order asked for. The
trials of a file run in child processes, as many at once as memory and cores allow; those of a live model
in this process, one after another.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from trainlint.config import Config
from trainlint.errors import TrainlintError
from trainlint.generalization.swept import Inquiry, Outline
from trainlint.generalization.variants import Variant
from trainlint.measure.memory import usable_processors
from trainlint.records import Figure

if TYPE_CHECKING:
    from trainlint.processes.jobs import Job, Message

_DIGITS: Final = 5
OUT_OF_TIME: Final = "not run: the time was up (--seconds)"


class ExperimentError(TrainlintError):
    """Why no trial is possible at all: no data, too few samples, a model that cannot be copied."""


class TrialSpec(msgspec.Struct, frozen=True):
    """One training: with which change, on which fold (from 0), in which order of the samples."""

    variant: Variant = Variant()
    fold: int = 0
    seed: int = 0


class Experiment(msgspec.Struct, frozen=True):
    """What the trials of one target have in common.

    With `folds` of 2 or more, the samples of the training loader are split into so many, each held out
    once; 0 stands for the file's own training and validation loaders, 1 for as many as a given splitter
    makes. `seed` decides the split. A trial takes `steps` optimizer steps, or `epochs` of its training
    samples, for at most `seconds`. `most` samples of either set are scored at each checkpoint: six of
    them or, with `ends_only`, two.

    With `anew`, the model is built for each trial, with weights of the trial's seed; else all trials of a
    width of 1 start from the weights that it has. `widths` names the integers that a variant's width
    changes, none where they are to be found.
    """

    folds: int = 5
    steps: int = 50
    epochs: float | None = None
    seconds: float = 60.0
    seed: int = 0
    most: int = 1000
    ends_only: bool = False
    anew: bool = False
    widths: list[str] = []


class Split(msgspec.Struct, frozen=True):
    """How the samples were split, and with what is trained.

    `splitter` names the class of scikit-learn, `why` says for what reason. `data` is a checksum of the
    first samples, by which processes see that they have the same ones.
    """

    splitter: str
    why: str
    folds: int
    samples: int
    loader: str
    optimizer: str
    loss: str = ""
    data: int = 0
    batch_size: int = 1
    notes: list[str] = []


class TrialScore(msgspec.Struct, frozen=True):
    """Loss of `n` samples: its mean, the standard error of that, and accuracy or R².

    `losses` are those of single samples, of validation samples only, for paired comparisons: the samples
    of a fold are the same in each trial.
    """

    mean: Figure
    error: Figure
    n: int
    metric: Figure | None = None
    losses: list[Figure] = []


class TrialPoint(msgspec.Struct, frozen=True):
    """The scores after so many optimizer steps."""

    step: int
    train: TrialScore
    validation: TrialScore


class TrialResult(msgspec.Struct, frozen=True):
    """What became of one trial. `reason` says why it has no result, or None.

    `metric` is `accuracy`, `R²` or empty, `unit` what one loss belongs to: a `sample` or a `batch`. `asked`
    is how many steps were planned, where time did not suffice for them. `scored` are the
    dataset's numbers of the samples that were validated on, `guess` is the loss of the best constant
    answer to these, None where it is not known, `memory` the bytes that the process grew by.
    """

    spec: TrialSpec
    reason: str | None = None
    checkpoints: list[TrialPoint] = []
    steps: int = 0
    asked: int = 0
    epochs: float | None = None
    train_samples: int = 0
    validation_samples: int = 0
    parameters: int = 0
    guess: Figure | None = None
    metric: str = ""
    unit: str = "sample"
    seconds: float = 0.0
    memory: int = 0
    scored: list[int] = []

    @property
    def last(self) -> TrialPoint:
        """The checkpoint at the end."""
        return self.checkpoints[-1]

    def best(self) -> TrialPoint:
        """The checkpoint of the least validation loss."""
        return min(self.checkpoints, key=lambda point: _or_infinite(point.validation.mean))


@dataclass(frozen=True)
class Trials:
    """All results, in the order in which they were asked for."""

    results: Sequence[TrialResult]
    split: Split


# Told of the share of all work that is done, and what is done now.
Progress = Callable[[float, str], None]


def figure(value: float) -> Figure:
    """A number that JSON can hold, or the word for it."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.{_DIGITS}g}")


def _or_infinite(value: Figure) -> float:
    number = float(value)
    return math.inf if math.isnan(number) else number


def run_trials(
    target: str,
    specs: Sequence[TrialSpec],
    experiment: Experiment,
    config: Config | None = None,
    progress: Progress | None = None,
    *,
    limit: float = math.inf,
    debug: bool = False,
) -> Trials:
    """Run trials of a file, `file.py::Net` or `package.module:name`, in child processes.

    The one of the greatest width runs first: what it takes decides how many run at once then. A trial
    whose process dies has a reason in place of figures, and the others go on. So has one that is not done
    when so many seconds, the `limit`, are over. Raises `ExperimentError`
    where none is possible, `UsageError` for what is no single file.
    """
    from trainlint.files import job_of

    config = config or Config()
    job = job_of(target, config, debug=debug)
    run = _Run(job, list(specs), experiment, progress, time.monotonic() + limit)
    if not specs:
        raise ValueError("no trials were asked for")
    first = max(range(len(specs)), key=lambda n: specs[n].variant.width)
    rest = [number for number in range(len(specs)) if number != first]
    workers = max(1, min(config.jobs or usable_processors(), len(rest)))
    run.work([[first], *(rest[n::workers] for n in range(workers) if rest[n::workers])], workers)
    if run.split is None:
        reasons = [result.reason for result in run.results.values() if result.reason]
        raise ExperimentError(reasons[0] if reasons else "no trial was finished")
    return Trials([run.results[n] for n in range(len(specs))], run.split)


def outline_of(
    target: str,
    experiment: Experiment,
    inquiry: Inquiry,
    config: Config | None = None,
    progress: Callable[[str], None] | None = None,
    *,
    debug: bool = False,
) -> tuple[Split, Outline]:
    """What is known of a target before trials of it, from a child process.

    Raises `ExperimentError` where no trial is possible, `UsageError` for what is no single file.
    """
    from trainlint.files import job_of
    from trainlint.processes.jobs import Died, Outlined, Prepared, Refused, Told, TrialJob
    from trainlint.processes.supervisor import run_jobs

    job = job_of(target, config or Config(), debug=debug)
    job = msgspec.structs.replace(job, trials=TrialJob(experiment, inquiry=inquiry))
    split: Split | None = None
    for _, message in run_jobs([job], 1):
        if isinstance(message, Refused):
            raise ExperimentError(message.reason)
        if isinstance(message, Died):
            raise ExperimentError(message.reason)
        if isinstance(message, Prepared):
            split = message.split
        elif isinstance(message, Told) and progress is not None:
            progress(message.text)
        elif isinstance(message, Outlined) and split is not None:
            return split, message.outline
    raise ExperimentError("nothing came of it")


@dataclass
class _Run:
    """Trials under way, by their numbers."""

    job: Job
    specs: Sequence[TrialSpec]
    experiment: Experiment
    progress: Progress | None
    deadline: float = math.inf
    results: dict[int, TrialResult] = field(default_factory=dict)
    split: Split | None = None
    _shares: dict[int, float] = field(default_factory=dict)

    def work(self, portions: Iterable[Sequence[int]], workers: int) -> None:
        """Run these trials, a portion a process; what a dying process leaves undone gets a new one."""
        from trainlint.processes.jobs import Died, TrialJob
        from trainlint.processes.supervisor import run_jobs

        waiting = [deque(portion) for portion in portions]
        while waiting:
            jobs = [
                msgspec.structs.replace(
                    self.job, trials=TrialJob(self.experiment, [self.specs[n] for n in portion])
                )
                for portion in waiting
            ]
            for place, message in run_jobs(jobs, workers):
                if time.monotonic() > self.deadline:
                    self._give_up(waiting)
                    return
                portion = waiting[place]
                self._receive(portion, message)
                if isinstance(message, Died) and self.split is None:
                    raise ExperimentError(message.reason)  # before its first training
                if isinstance(message, Died) and portion:
                    number = portion.popleft()
                    self._finish(number, TrialResult(self.specs[number], message.reason))
            waiting = [portion for portion in waiting if portion]

    def _give_up(self, waiting: Iterable[Iterable[int]]) -> None:
        for number in [number for portion in waiting for number in portion]:
            self._finish(number, TrialResult(self.specs[number], OUT_OF_TIME))

    def _receive(self, portion: deque[int], message: Message) -> None:
        from trainlint.processes.jobs import Advanced, Prepared, Refused, Tried

        if isinstance(message, Refused):
            raise ExperimentError(message.reason)
        if isinstance(message, Prepared):
            if self.split is not None and message.split.data != self.split.data:
                raise ExperimentError(
                    "the data come out otherwise each time that the file is run: seed what makes them"
                )
            self.split = message.split
        elif isinstance(message, Advanced) and portion:
            self._shares[portion[0]] = message.share
            self._tell()
        elif isinstance(message, Tried) and portion:
            self._finish(portion.popleft(), message.result)

    def _finish(self, number: int, result: TrialResult) -> None:
        self.results[number] = result
        self._shares[number] = 1.0
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            share = sum(self._shares.values()) / len(self.specs)
            self.progress(share, f"{len(self.results)} of {len(self.specs)} trainings")
