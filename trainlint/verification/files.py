"""Try changes of the models in files: each in a child process of its own. Imports no torch.

Comes in: jobs, and changes. Goes out: an `Outcome` for each, in the order asked for. A process that hangs,
exits, crashes or takes too much memory costs its own change, and nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from trainlint.fixes.source import SourceText, apply
from trainlint.verification.changes import Change, Outcome, Plan

if TYPE_CHECKING:
    from trainlint.fixes.edit import Edit
    from trainlint.processes.jobs import Job, Message

# A change that hangs may have this share of all the time, or so many seconds at least.
_SHARE: Final = 0.5
_LEAST_TIMEOUT: Final = 10.0

# Told of the share of all work that is done, and what is done now.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Trial:
    """A change of the one model that a job names; without `check` it is trained only."""

    job: Job
    change: Change
    check: bool = True


@dataclass(frozen=True)
class Budget:
    """How trials are made: `steps` a training, of `seconds` at most, and until when all of them."""

    steps: int
    seconds: float
    deadline: float
    workers: int
    most: float

    @property
    def out_of_time(self) -> str:
        """The reason of what was not tried."""
        return f"not tried: no time left (--verify-seconds {self.most:g})"


def texts_with(edits: Sequence[Edit]) -> dict[str, str]:
    """The texts of the files with these edits made, by file name. Raises `OSError` where one is gone."""
    by_file: dict[str, list[Edit]] = {}
    for edit in edits:
        by_file.setdefault(os.path.realpath(edit.filename), []).append(edit)
    texts = {}
    for name, own in by_file.items():
        source = SourceText.read(name)
        if source is None:
            raise OSError(f"{name} cannot be read")
        texts[name] = apply(source.text, own)
    return texts


def tried(
    trials: Sequence[Trial], budget: Budget, progress: Progress | None = None
) -> list[Outcome]:
    """Make the trials, in this order as far as the time goes; several at once where there is room."""
    from trainlint.processes.supervisor import run_jobs

    outcomes = [Outcome() for _ in trials]
    jobs, numbers = [], []
    for number, each in enumerate(trials):
        try:
            jobs.append(_job(each, budget))
            numbers.append(number)
        except OSError as error:
            outcomes[number].reason = str(error)
    if not jobs:
        return outcomes
    ended: set[int] = set()
    running = run_jobs(jobs, budget.workers)
    try:
        for place, message in running:
            number = numbers[place]
            if _receive(outcomes[number], message):
                ended.add(number)
                if progress is not None:
                    progress(len(ended) / len(jobs), f"{len(ended)} of {len(jobs)} fixes tried")
            if time.monotonic() > budget.deadline:
                break
    finally:
        running.close()
    for number in numbers:
        if number not in ended and outcomes[number].reason is None:
            outcomes[number].reason = budget.out_of_time
    return outcomes


def _job(trial: Trial, budget: Budget) -> Job:
    return msgspec.structs.replace(
        trial.job,
        overlay={**trial.job.overlay, **texts_with(trial.change.edits)},
        timeout=min(trial.job.timeout, max(_LEAST_TIMEOUT, _SHARE * budget.most)),
        plan=Plan(
            trial.change.patches, steps=budget.steps, seconds=budget.seconds, check=trial.check
        ),
    )


def _receive(outcome: Outcome, message: Message) -> bool:
    """Take in a message; tell whether it is the last one."""
    from trainlint.processes.jobs import Analyzed, Died, Done, Trained

    if isinstance(message, Analyzed) and not message.provisional:
        outcome.findings, outcome.result = message.findings, message.result
    elif isinstance(message, Trained):
        outcome.trainings.append(message.training)
    elif isinstance(message, Died):
        outcome.reason = message.reason
    return isinstance(message, (Done, Died))
