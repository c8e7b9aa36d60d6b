"""One training of a model for a given number of steps, and its loss before and after.

Comes in: a model with an optimizer and a setup, which are trained and spent. Goes out: a `Training`. The
loss is that of the training samples in eval mode, which dropout and the order of batches have no part in;
where the loop is the user's own, what is seen of it while it runs. Random states change; the caller
restores them.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch

from trainlint.data.pool import pool_of
from trainlint.generalization.baselines import constant_loss
from trainlint.generalization.experiments import figure
from trainlint.generalization.meter import MOST
from trainlint.generalization.scoring import BATCH, Scorer
from trainlint.measure.pulse import seed_generators
from trainlint.preserve import preserved_evaluation, random_states
from trainlint.probe.batches import Batch, ProbeProblem, batches, described, split
from trainlint.probe.loop import Limits, own_loss, run_loop, step_of
from trainlint.targets.loading import Stop
from trainlint.verification.changes import NO_TRAINING, Loss, Training, at_end

if TYPE_CHECKING:
    from trainlint.generalization.trials import Copy
    from trainlint.observe.trace import LossTrace, Trace
    from trainlint.probe.probing import Guard

_SAMPLES_AT_ONCE: Final = 128
# The loss is the median at these shares of the steps and at the end: it goes up and down with each step.
_LOOKS: Final = (0.8, 0.9)


def training(
    subject: Copy,
    *,
    steps: int,
    seed: int,
    seconds: float,
    guard: Guard | None = None,
) -> Training:
    """Train it, with the user's own loop where there is one. What goes wrong is the training's reason."""
    seed_all(seed)
    empty = Training(
        seed, asked=steps, parameters=sum(p.numel() for p in subject.model.parameters())
    )
    try:
        with nullcontext() if guard is None else guard(seconds, subject.setup.train is not None):
            if subject.setup.train is not None:
                return _watched(subject, empty, Limits(steps, seconds))
            with subject.setup.entered():
                return _scored(subject, empty, seconds)
    except (ProbeProblem, Stop) as problem:
        return _without(empty, str(problem))
    except (Exception, SystemExit) as error:
        return _without(empty, f"the training raised {described(error)}")


def seed_all(seed: int) -> None:
    """The generators of torch, Python and, where it was imported, numpy."""
    seed_generators(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


def _without(training: Training, reason: str) -> Training:
    return msgspec.structs.replace(training, reason=reason)


# ---------------------------------------------------------------------- a loop of ours


def _scored(subject: Copy, empty: Training, seconds: float) -> Training:
    model, setup, optimizer = subject.model, subject.setup, subject.optimizer
    if setup.train_loader is None:
        known = {"criterion": setup.loss, "optimizer": setup.optimizer, "train_loader": None}
        missing = [name for name, value in known.items() if value is None]
        raise ProbeProblem(NO_TRAINING + ", ".join(missing))
    name = setup.names.get("train_loader", "train_loader")
    samples = _Samples(subject, setup.train_loader, name)
    others = _others(subject)
    start, start_of_others = samples.score(), _optional(others)
    ends: list[tuple[float, float | None]] = []
    looks = {round(share * empty.asked) for share in _LOOKS}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    began = time.monotonic()
    done = 0
    times: list[float] = []
    model.train()
    for raw in _in_order(setup.train_loader, name, empty.seed):
        if done >= empty.asked or time.monotonic() - began > seconds:
            break
        if done in looks:
            ends.append((samples.score(), _optional(others)))
        batch = split(raw, model, setup.loss, name)
        started = time.process_time()
        step_of(model, setup, optimizer, batch, done, device)
        times.append(time.process_time() - started)
        done += 1
    if done < empty.asked:
        raise ProbeProblem(f"{done} of {empty.asked} steps in {seconds:g} s")
    ends.append((samples.score(), _optional(others)))
    end = at_end([value for value, _ in ends])
    of_others = [value for _, value in ends if value is not None]
    validation = None
    if others is not None and start_of_others is not None and len(of_others) == len(ends):
        validation = Loss(figure(start_of_others), figure(at_end(of_others)),
                          _figure(others.guess(samples)))  # fmt: skip
    return Training(
        empty.seed,
        None,
        Loss(figure(start), figure(end), _figure(samples.guess(samples))),
        validation,
        steps=done,
        asked=empty.asked,
        parameters=empty.parameters,
        seconds=float(f"{statistics.median(times):.3g}") if times else 0.0,
    )


def _others(subject: Copy) -> _Samples | None:
    """Validation samples, where there are some that can be read."""
    setup = subject.setup
    if setup.val_loader is None:
        return None
    try:
        return _Samples(subject, setup.val_loader, setup.names.get("val_loader", "val_loader"))
    except ProbeProblem:
        return None


def _figure(value: float | None) -> Any:
    return None if value is None else figure(value)


def _in_order(loader: Any, name: str, seed: int) -> Iterator[Any]:
    """Batches whose order and augmentation do not depend on what the model draws between them."""
    passing = batches(loader, name)
    with random_states():
        seed_all(seed)
        kept = _states()
    while True:
        with random_states():
            _restore(kept)
            raw = next(passing)
            kept = _states()
        yield raw


def _states() -> tuple[Any, Any, Any]:
    numpy = sys.modules.get("numpy")
    return (
        torch.random.get_rng_state(),
        random.getstate(),
        None if numpy is None else numpy.random.get_state(),
    )


def _restore(states: tuple[Any, Any, Any]) -> None:
    of_torch, of_python, of_numpy = states
    torch.random.set_rng_state(of_torch)
    random.setstate(of_python)
    if of_numpy is not None:
        sys.modules["numpy"].random.set_state(of_numpy)


@dataclass
class _Samples:
    """At most 512 samples of a loader, drawn once, and their loss in eval mode."""

    subject: Copy
    loader: Any
    name: str

    def __post_init__(self) -> None:
        with random_states():
            pool = pool_of(self.loader, self.name, most=MOST)
            numbers = pool.drawn(MOST)
            try:
                raw = list(pool.batches(numbers, _SAMPLES_AT_ONCE))
            except ProbeProblem:  # samples of several shapes
                raw = list(pool.batches(numbers))
        model, setup = self.subject.model, self.subject.setup
        self._batches = [
            Batch((), {}, None, each)
            if setup.step is not None
            else split(each, model, setup.loss, self.name)
            for each in raw
        ]
        self._scorer = Scorer(model, setup, own_loss)
        self.judged: Sequence[Any] = ()

    def score(self) -> float:
        """The mean loss. Raises what the model raises."""
        model, loss = self.subject.model, self.subject.setup.loss
        beside = [loss] if isinstance(loss, torch.nn.Module) else []
        with preserved_evaluation(model, *beside):
            model.eval()
            scores = self._scorer.scores(self._batches)
            if self._scorer.unit == BATCH and len(scores.losses) != len(self._batches):
                scores = self._scorer.scores(self._batches)
        self.judged = self._scorer.judged
        return scores.mean

    def guess(self, train: _Samples) -> float | None:
        """The loss of the constant answer that suits the training samples best, on these."""
        if len(self.judged) != len(self._batches) or len(train.judged) != len(train._batches):
            return None
        return constant_loss(train.judged, self.judged)


def _optional(samples: _Samples | None) -> float | None:
    """Of validation samples: what cannot be had of them is no reason to have nothing."""
    if samples is None:
        return None
    try:
        return samples.score()
    except Exception:
        return None


# ---------------------------------------------------------------------- the user's own loop


def _watched(subject: Copy, empty: Training, limits: Limits) -> Training:
    """Run it for so many steps, and read its losses from what was seen."""
    assert subject.setup.train is not None
    started = time.process_time()
    ran = run_loop(subject.setup.train, limits)
    took = time.process_time() - started
    trace = ran.trace
    if ran.failed or not trace.steps:
        why = "no step was made" if ran.ended is None else f"the training raised {ran.ended}"
        raise ProbeProblem(why)
    objective = _objective(trace)
    values = _values(trace, objective)
    if not values:
        raise ProbeProblem("no loss was seen in the training loop")
    return Training(
        empty.seed,
        None,
        Loss(figure(values[0]), figure(at_end(values)),
             None if objective is None else _figure(objective.guess)),
        watched=True,
        series=[figure(value) for value in values],
        steps=trace.steps,
        asked=empty.asked,
        parameters=empty.parameters,
        seconds=float(f"{took / trace.steps:.3g}"),
    )  # fmt: skip


def _objective(trace: Trace) -> LossTrace | None:
    """The loss function that was called most often, of those with a known unit first."""
    if not trace.objectives:
        return None
    return max(trace.objectives, key=lambda each: (each.guess is not None, len(each.values)))


def _values(trace: Trace, objective: LossTrace | None) -> list[float]:
    """The loss at each step."""
    if objective is not None:
        return list(trace.values_of(objective) or objective.values)
    by_step: dict[int, float] = {}
    for step, value in trace.losses:
        by_step[step] = by_step.get(step, 0.0) + value
    return [by_step[step] for step in sorted(by_step)]
