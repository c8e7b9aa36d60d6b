"""One model with its training, its samples and their folds: what trials are made on.

Comes in: a model, a `Setup`, an `Experiment`. Goes out: a `TrialResult` for each `TrialSpec`. The model and
the optimizer are copied for each trial, from the weights that they have: all trials start from the
same. Random states change; the caller restores them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch
from torch import nn

from trainlint.data.pool import Pool, pool_of
from trainlint.generalization.applying import applied
from trainlint.generalization.curves import Checkpoint, Generalization, Scores
from trainlint.generalization.experiments import (
    Experiment,
    Split,
    TrialPoint,
    TrialResult,
    TrialScore,
    TrialSpec,
    figure,
)
from trainlint.generalization.folds import Folds, folds_of, samples_of
from trainlint.generalization.trials import Copy, Plan, copied, trial
from trainlint.measure.pulse import seed_generators
from trainlint.probe.batches import ProbeProblem, described
from trainlint.probe.loop import own_loss

if TYPE_CHECKING:
    from trainlint.loss.uses import Recipe
    from trainlint.probe.setup import Setup

_DEFAULT_RATE: Final = 1e-3
_MOST_LOSSES: Final = 1000


@dataclass
class Laboratory:
    """Makes trials of one model. `groups` and `splitter` are as for `folds_of`.

    `of_width` builds the model anew with its hidden sizes times a factor and weights of a seed, to be
    thrown away.

    Raises `ProbeProblem` where no trial is possible, `UsageError` where scikit-learn is missing.
    """

    model: nn.Module
    setup: Setup
    experiment: Experiment
    groups: Any = None
    splitter: Any = None
    of_width: Callable[[float, int], Copy] | None = None
    pool: Pool = field(init=False)
    held_out: Pool | None = field(init=False, default=None)
    folds: Folds = field(init=False)
    split: Split = field(init=False)

    def __post_init__(self) -> None:
        setup = self.setup
        if setup.train_loader is None:
            raise ProbeProblem("no training data are known: name them train_loader")
        if not any(p.requires_grad for p in self.model.parameters()):
            raise ProbeProblem("none of its parameters is trainable")
        if isinstance(setup.optimizer, torch.optim.Optimizer):
            held = {id(p) for group in setup.optimizer.param_groups for p in group["params"]}
            if not any(id(p) in held for p in self.model.parameters()):
                raise ProbeProblem("the optimizer has none of the model's parameters")
        names = setup.names
        self.pool = pool_of(setup.train_loader, names.get("train_loader", "train_loader"))
        if setup.step is not None:
            self.model, self.setup = stepping(self.model, setup)
        checksum = 0
        if self.experiment.folds:
            samples = samples_of(self.pool, self.model, setup)
            self.pool, checksum = samples.pool, samples.checksum
            self.folds = folds_of(
                samples,
                self.experiment.folds,
                groups=self.groups,
                splitter=self.splitter,
                seed=self.experiment.seed,
            )
        else:
            if setup.val_loader is None:
                raise ProbeProblem("no validation data are known: name them val_loader")
            self.held_out = pool_of(setup.val_loader, names.get("val_loader", "val_loader"))
            pair = (range(self.pool.size), range(self.held_out.size))
            self.folds = Folds([pair], "", f"{self.pool.name} and {self.held_out.name}")
        self.split = Split(
            self.folds.splitter,
            self.folds.why,
            len(self.folds.pairs),
            self.pool.size,
            self.pool.name,
            _optimizer_name(setup),
            loss=_loss_name(setup),
            data=checksum,
            batch_size=self.pool.batch_size,
            notes=[*self.folds.notes],
        )

    def run(self, spec: TrialSpec, progress: Callable[[float], None] | None = None) -> TrialResult:
        """One trial. What the model raises, or does, becomes the reason."""
        started = time.monotonic()
        try:
            result = self._run(spec, progress)
        except ProbeProblem as problem:
            result = TrialResult(spec, str(problem))
        except (Exception, SystemExit) as error:
            result = TrialResult(spec, f"the training raised {described(error)}")
        took = round(time.monotonic() - started, 3)
        return msgspec.structs.replace(result, seconds=took)

    def _run(self, spec: TrialSpec, progress: Callable[[float], None] | None) -> TrialResult:
        train, validation = self.folds.pairs[spec.fold]
        steps = self.steps_for(len(train))
        # Where a variant builds the model anew, its weights are those of the trial's seed.
        seed_generators(spec.seed)
        change = applied(
            self._copy(spec.variant.width, spec.seed), replace(spec.variant, width=1.0)
        )
        measured = trial(
            change.subject,
            self.pool,
            Plan(
                train,
                validation,
                steps,
                seed=spec.seed,
                seconds=self.experiment.seconds,
                most=self.experiment.most,
                ends_only=self.experiment.ends_only,
            ),
            held_out=self.held_out,
            prepared=change.prepared,
            before_step=change.before_step,
            progress=None if progress is None else lambda done: progress(done / max(1, steps)),
        )
        return self._result(spec, change.subject, measured, train, validation, steps)

    def _copy(self, width: float, seed: int) -> Copy:
        """The model to be trained, of the width that a variant asks for."""
        if width != 1.0 or self.experiment.anew:
            if self.of_width is None:
                raise ProbeProblem("a model of another width has to be built anew")
            return self.of_width(width, seed)
        return copied(self.model, self.setup, optimizer_for(self.setup))

    def steps_for(self, samples: int) -> int:
        """How many steps a trial on so many samples takes."""
        experiment = self.experiment
        if experiment.epochs is None:
            return experiment.steps
        return max(1, round(experiment.epochs * self._steps_of_pass(samples)))

    def _steps_of_pass(self, samples: int) -> int:
        return math.ceil(samples / self.pool.batch_size)

    def _result(
        self,
        spec: TrialSpec,
        subject: Copy,
        measured: Generalization,
        train: Sequence[int],
        validation: Sequence[int],
        steps: int,
    ) -> TrialResult:
        held_out = self.held_out or self.pool
        scored = held_out.only(validation).drawn(self.experiment.most)
        return TrialResult(
            spec,
            None,
            [_point(point) for point in measured.checkpoints],
            steps=measured.last.step,
            asked=steps,
            epochs=measured.last.step / self._steps_of_pass(len(train)),
            train_samples=len(train),
            validation_samples=len(validation),
            parameters=sum(p.numel() for p in subject.model.parameters()),
            guess=None if measured.guess is None else figure(measured.guess),
            metric=measured.metric,
            unit=measured.unit,
            scored=[_place(held_out, validation[n]) for n in scored],
        )


def _place(pool: Pool, number: int) -> int:
    """The number that the dataset gives a sample, where that is one."""
    place = pool.place(number)
    return place if isinstance(place, int) else number


def _point(point: Checkpoint) -> TrialPoint:
    return TrialPoint(
        point.step, _score(point.train, keep=False), _score(point.validation, keep=True)
    )


def _score(scores: Scores, *, keep: bool) -> TrialScore:
    losses = scores.losses if keep and len(scores.losses) <= _MOST_LOSSES else ()
    return TrialScore(
        figure(scores.mean),
        figure(scores.error),
        len(scores.losses),
        None if scores.metric is None else figure(scores.metric),
        [figure(loss) for loss in losses],
    )


def optimizer_for(setup: Setup) -> Any:
    """The user's optimizer, or a function of the model that makes one: Adam where none is known."""
    if setup.optimizer is not None:
        return setup.optimizer
    return lambda model: torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], _DEFAULT_RATE
    )


def _optimizer_name(setup: Setup) -> str:
    if setup.optimizer is None:
        return "Adam, an optimizer of ours"
    if isinstance(setup.optimizer, torch.optim.Optimizer):
        return type(setup.optimizer).__name__
    name = setup.names.get("optimizer", getattr(setup.optimizer, "__name__", ""))
    return name if name.isidentifier() else "the optimizer given"


def _loss_name(setup: Setup) -> str:
    loss = setup.judge or setup.loss
    if loss is None:
        return ""
    return type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", "")


class _Stepping(nn.Module):
    """A LightningModule as a model that computes its own loss, by its training step."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._index = 0

    def forward(self, *parts: Any, **named: Any) -> dict[str, Any]:
        batch = named or (parts[0] if len(parts) == 1 else parts)
        step: Any = self.inner.training_step
        loss = own_loss(step(batch, self._index))
        if loss is None:
            raise ProbeProblem("training_step returns no loss")
        self._index += 1
        return {"loss": loss}


def stepping(model: nn.Module, setup: Setup) -> tuple[nn.Module, Setup]:
    """A LightningModule as a model that computes its own loss, and the setup that goes with it."""
    made = setup.optimizer
    return _Stepping(model), replace(
        setup, step=None, loss=None, optimizer=lambda whole: made(whole.inner)
    )


def setup_with_loss(model: nn.Module, recipe: Recipe) -> Setup:
    """The setup with the loss as the file applies it to this model, as the probe trains it."""
    from trainlint.capture.tracer import capture
    from trainlint.graph import Graph
    from trainlint.probe.stage import first_inputs, with_loss_of_file
    from trainlint.subject import static_facts

    setup = recipe.setup
    if recipe.explicit or setup.step is not None or setup.train_loader is None:
        return setup
    inputs = first_inputs(model, setup)
    if inputs is None:
        return setup
    recording = capture(model, inputs.args, inputs.kwargs)
    if recording.exception is not None:
        return setup
    graph = Graph(
        recording.graph, recording.model, faults=recording.faults, inputs_given=inputs.given
    )
    losses = static_facts(inputs, graph, recipe).get("Losses")
    return setup if losses is None else with_loss_of_file(setup, losses)
