"""Try changes of the models in files: each in a child process of its own. Imports no torch.

A process that hangs, exits, crashes or takes too much memory costs its own change, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final

import msgspec

from trainlint.verification.changes import Budget, Outcome, Plan, Progress, Trial

if TYPE_CHECKING:
    from trainlint.processes.jobs import Job, Message

# A change that hangs may have this share of all the time, or so many seconds at least.
_SHARE: Final = 0.5
_LEAST_TIMEOUT: Final = 10.0


def made_in_children(
    trials: Sequence[Trial],
    jobs: Sequence[Job],
    budget: Budget,
    progress: Progress | None = None,
) -> list[Outcome]:
    """The outcomes of trials of files that these jobs have checked; several at once where there is room."""
    from trainlint.processes.supervisor import run_jobs

    outcomes = [Outcome() for _ in trials]
    wanted: list[Job] = []
    numbers: list[int] = []
    for number, trial in enumerate(trials):
        job = job_of_target(trial.target, jobs)
        if job is None:
            outcomes[number].reason = "not tried: it belongs to no single model of the file"
            continue
        wanted.append(_job(trial, job, budget))
        numbers.append(number)
    if not wanted:
        return outcomes
    ended: set[int] = set()
    with closing(run_jobs(wanted, budget.workers)) as running:
        for place, message in running:
            if _receive(outcomes[numbers[place]], message):
                ended.add(numbers[place])
                if progress is not None:
                    done = f"{len(ended)} of {len(wanted)} changes tried"
                    progress(len(ended) / len(wanted), done)
            if time.monotonic() > budget.deadline:
                break
    for number in numbers:
        if number not in ended and outcomes[number].reason is None:
            outcomes[number].reason = budget.out_of_time
    return outcomes


def _job(trial: Trial, job: Job, budget: Budget) -> Job:
    plan = Plan(
        trial.version.patches,
        steps=budget.steps,
        seconds=budget.seconds,
        check=trial.check and not trial.finds_rate,
        finds_rate=trial.finds_rate,
    )
    return msgspec.structs.replace(
        job,
        overlay={**job.overlay, **trial.version.texts},
        timeout=min(job.timeout, max(_LEAST_TIMEOUT, _SHARE * budget.most)),
        plan=plan,
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


def job_of_target(target: str, jobs: Sequence[Job]) -> Job | None:
    """The job that checks this model alone, None where no job of these did."""
    for job in jobs:
        if target == job.target:
            return job if job.name is not None else None
        name = target.removeprefix(f"{job.label}::")
        if name != target:
            return msgspec.structs.replace(job, name=name, scanned=False, skip=[])
    return None
