"""Try changes of a live model: on copies, in this process, one after another.

The model, its optimizer, its loss, its loaders and the random states are as before afterwards.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainlint.generalization.laboratory import optimizer_for
from trainlint.generalization.trials import Copy, copied
from trainlint.preserve import preserved_training
from trainlint.probe.batches import ProbeProblem, described, same_draws
from trainlint.subject import analyze
from trainlint.surgery import patched
from trainlint.verification.changes import (
    SEEDS,
    Budget,
    Outcome,
    Progress,
    Training,
    Trial,
    Version,
)
from trainlint.verification.subject import recipe_with
from trainlint.verification.training import training
from trainlint.verification.verifying import Verification, Verified, budget_of

if TYPE_CHECKING:
    from trainlint.capture.inputs import Inputs
    from trainlint.config import Config
    from trainlint.loss.uses import Recipe
    from trainlint.records import Report, ReportedFinding
    from trainlint.rule import Settings


def verified_live(
    report: Report,
    known: Sequence[ReportedFinding],
    model: nn.Module,
    inputs: Inputs | None,
    recipe: Recipe,
    settings: Settings,
    config: Config,
    progress: Progress | None = None,
) -> Verified:
    """Try the fixes of the report on a live model, and what helps together, on a copy."""
    make = LiveMaker(model, inputs, recipe, replace(settings, remedies=False))

    def reported(outcome: Outcome, _: Version) -> Sequence[ReportedFinding]:
        return outcome.findings or ()

    found = Verification(make, budget_of(config), reported, live=True).of(report, known, progress)
    repaired = None
    for combination in found.combinations.values():
        with make.restored():
            repaired = make.copy(combination.version).model
    return replace(found, model=repaired)


@dataclass(frozen=True)
class LiveMaker:
    """Makes trials of copies of one model; `inputs` are those that were given for it, or None."""

    model: nn.Module
    inputs: Inputs | None
    recipe: Recipe
    settings: Settings

    def __call__(
        self, trials: Sequence[Trial], budget: Budget, progress: Progress | None = None
    ) -> list[Outcome]:
        """The outcomes of trials, as far as the time goes."""
        outcomes = []
        for number, trial in enumerate(trials):
            if budget.is_spent:
                outcomes.append(Outcome(reason=budget.out_of_time))
                continue
            with self.restored():
                outcomes.append(self._outcome(trial, budget))
            if progress is not None:
                done = f"{number + 1} of {len(trials)} changes tried"
                progress((number + 1) / len(trials), done)
        return outcomes

    def copy(self, version: Version, seed: int = 0) -> Copy:
        """A copy of the model as this version has it. Raises `ProbeProblem`."""
        setup = self.recipe.setup
        subject = copied(self.model, setup, optimizer_for(setup))
        if version.patches:
            subject = patched(subject, version.patches, inputs=self.inputs, seed=seed).subject
        return subject

    def _rate(self, version: Version) -> float | None:
        setup = self.recipe.setup
        subject = copied(self.model, setup, optimizer_for(setup))
        return patched(subject, version.patches, inputs=self.inputs, seed=SEEDS[0]).rate

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Within, nothing that is done to the model and its training lasts."""
        setup = self.recipe.setup
        optimizer: Any = setup.optimizer
        given = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
        beside = [setup.loss] if isinstance(setup.loss, nn.Module) else []
        loaders = (setup.train_loader, setup.val_loader)
        with preserved_training(self.model, given, beside=beside), same_draws(*loaders):
            yield

    def _outcome(self, trial: Trial, budget: Budget) -> Outcome:
        outcome = Outcome()
        try:
            if trial.finds_rate:
                outcome.trainings.append(Training(0, rate=self._rate(trial.version)))
                return outcome
            if trial.check:
                subject = self.copy(trial.version)
                analysis = analyze(
                    subject.model,
                    self.inputs,
                    target=trial.target,
                    settings=self.settings,
                    recipe=recipe_with(self.recipe, subject),
                )
                outcome.findings = [finding.reported for finding in analysis.findings]
                outcome.result = analysis.result
            for seed in SEEDS:
                if time.monotonic() > budget.deadline:
                    outcome.reason = budget.out_of_time
                    break
                seconds = min(budget.seconds, max(0.1, budget.deadline - time.monotonic()))
                subject = self.copy(trial.version, seed)
                with same_draws(self.recipe.setup.train_loader, self.recipe.setup.val_loader):
                    outcome.trainings.append(
                        training(subject, steps=budget.steps, seed=seed, seconds=seconds)
                    )
        except ProbeProblem as problem:
            outcome.reason = str(problem)
        except Exception as error:  # what the changed model raises is its own affair
            outcome.reason = f"the changed model raised {described(error)}"
        return outcome
