"""A training of some steps under observation: with a loop of ours, or the user's own, ended from within.

Comes in: a model, a `Setup` and batches. Goes out: the `Trace`, and how it ended. Whoever calls restores
the model (`preserve.preserved_training`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from trainlint.observe.hooks import observed
from trainlint.observe.observer import TrainingObserver
from trainlint.probe.batches import Batch, ProbeProblem, described, moved
from trainlint.probe.guard import Writes
from trainlint.sites import Site, optimizer_site, outermost, owner_of
from trainlint.targets.loading import Stop

if TYPE_CHECKING:
    from trainlint.generalization.meter import Meter
    from trainlint.observe.trace import Trace
    from trainlint.probe.setup import Setup

_VALIDATED: Final = 4
_VALIDATIONS: Final = 4
_MEASURED: Final = 5
# Of the time of the user's own loop, for losses of single samples at its validation passes.
_MEASURING: Final = 0.25
# After so many steps, and twice that, and so on, it is asked whether the probe may end.
_FIRST_LOOK: Final = 5
_DECIDED: Final = "an error was certain"


class Enough(BaseException):
    """Ends the user's loop from within. No `except Exception` catches it."""


@dataclass(frozen=True)
class Limits:
    """How long to train: `steps` of the optimizer, at most `seconds`."""

    steps: int = 50
    seconds: float = 30.0


@dataclass(frozen=True)
class Ran:
    """What was seen, and why it ended before its last step, if it did."""

    trace: Trace
    ended: str | None = None
    failed: bool = False
    decided: bool = False


def loss_of(model: nn.Module, batch: Batch, loss: Callable[..., Any] | None) -> Tensor:
    """The loss of one batch. Raises `ProbeProblem` where the model gives none and there is none."""
    output = model(*batch.args, **batch.kwargs)
    if loss is not None:
        value = loss(output, batch.target)
    else:
        value = own_loss(output)
        if value is None:
            raise ProbeProblem(
                "no loss: name one criterion or loss_fn, or let the model return `.loss`"
            )
    if not isinstance(value, Tensor):
        raise ProbeProblem(f"the loss is {type(value).__name__}, not a tensor")
    return value if value.dim() == 0 else value.mean()


def own_loss(output: Any) -> Tensor | None:
    """What a model computes itself: `output.loss`, `output["loss"]`, or a scalar that comes first."""
    if isinstance(output, Mapping) and isinstance(output.get("loss"), Tensor):
        given: Tensor = output["loss"]
        return given
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    return first if isinstance(first, Tensor) and first.dim() == 0 else None


@outermost
def train(
    model: nn.Module,
    setup: Setup,
    optimizer: Any,
    data: Callable[[], Iterator[Batch]],
    validation: Callable[[], Iterator[Batch]] | None,
    limits: Limits,
    *,
    after_step: Callable[[int], None] | None = None,
    decided: Callable[[Trace], bool] | None = None,
    meter: Meter | None = None,
) -> Ran:
    """Train with the plain loop of every tutorial, recorded at each step.

    `decided` is asked now and then whether what was seen settles it; `meter` measures before, five times on
    the way, and at the end.
    """
    observer = TrainingObserver(period=1)
    if isinstance(optimizer, torch.optim.Optimizer):
        made = optimizer_site(optimizer)
        observer.optimizer_made(optimizer, made if _is_users(made) else None)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    started = time.monotonic()
    ended: str | None = None
    failed = False
    notes: list[str] = []
    is_settled = _settler(observer, limits, decided)
    with observed(observer) as problem, setup.entered():
        try:
            model.train()
            for index, batch in enumerate(islice(data(), limits.steps)):
                if validation is not None and index in _validation_steps(limits.steps):
                    try:
                        _validate(model, setup, validation, device)
                    except ProbeProblem:  # the meter says so
                        validation = None
                    except Exception as error:
                        validation, notes = None, [f"validation raised {described(error)}"]
                _measure(meter, index, limits)
                if index and time.monotonic() - started > limits.seconds:
                    ended = f"{index} of {limits.steps} steps in {limits.seconds:g} s"
                    break
                step_of(model, setup, optimizer, batch, index, device)
                if after_step is not None:
                    after_step(index + 1)
                if is_settled(index + 1):
                    ended = _DECIDED
                    break
            if ended is not _DECIDED:
                _measure(meter, observer.step, limits, last=True)
        except (ProbeProblem, Stop) as stop:
            if isinstance(stop, ProbeProblem) and not observer.step:
                raise
            ended = f"{observer.step} of {limits.steps} steps: {stop}"
        except Exception as error:
            observer.fails(error)
            ended, failed = described(error), True
    broken = problem()
    if broken is not None:
        raise ProbeProblem(f"watching stopped: {type(broken).__name__}: {broken}")
    trace = _located(observer.trace(), setup, type(model).__name__)
    trace = _cut_short(trace) if ended is _DECIDED else _measured(trace, meter)
    trace = replace(trace, notes=[*trace.notes, *notes])
    return Ran(trace, ended, failed, ended is _DECIDED)


def checkpoints(steps: int) -> frozenset[int]:
    """The steps before which, or at the end after which, it is measured how well a model does."""
    return frozenset(round(part * steps / _MEASURED) for part in range(_MEASURED + 1))


def _settler(
    observer: TrainingObserver, limits: Limits, decided: Callable[[Trace], bool] | None
) -> Callable[[int], bool]:
    """Asked after each step; asks `decided` after 5, 10, 20 and so on, but not after the last."""
    look = _FIRST_LOOK

    def is_settled(steps: int) -> bool:
        nonlocal look
        if decided is None or steps != look or steps >= limits.steps:
            return False
        look *= 2
        return decided(observer.trace())

    return is_settled


def _measure(meter: Meter | None, steps: int, limits: Limits, *, last: bool = False) -> None:
    if meter is not None and ((last and steps) or steps in checkpoints(limits.steps)):
        meter.measure(steps, last=last)


def _measured(trace: Trace, meter: Meter | None) -> Trace:
    """With what the meter showed, in units of the loss of a constant answer."""
    if meter is None:
        return trace
    if meter.problem:
        note = f"training and validation data were not compared: {meter.problem}"
        trace = replace(trace, notes=[*trace.notes, note])
    known = [objective for objective in trace.objectives if objective.guess is not None]
    objective = known[0] if len(known) == 1 else None
    found = meter.generalization(
        trace.steps,
        None if objective is None else objective.guess,
        "" if objective is None else objective.kind,
    )
    return replace(trace, generalization=found)


def _validation_steps(steps: int) -> range:
    return range(0, steps, max(1, steps // _VALIDATIONS))


def step_of(
    model: nn.Module,
    setup: Setup,
    optimizer: Any,
    batch: Batch,
    index: int,
    device: torch.device,
    before_step: Callable[[], None] | None = None,
) -> None:
    """One forward, backward and step, the `index`-th; `before_step` may change the gradients."""
    here = Batch(
        moved(batch.args, device), moved(dict(batch.kwargs), device), moved(batch.target, device)
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        if setup.step is not None:
            given = own_loss(setup.step(moved(batch.whole, device), index))
            if given is None:
                raise ProbeProblem("training_step returns no loss")
            value = given
        else:
            value = loss_of(model, here, setup.loss)
        value.backward()  # type: ignore[no-untyped-call]
        if before_step is not None:
            before_step()
        return value

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    else:
        closure()
        optimizer.step()


def _validate(
    model: nn.Module,
    setup: Setup,
    validation: Callable[[], Iterator[Batch]],
    device: torch.device,
) -> None:
    model.eval()
    try:
        with torch.no_grad():
            for batch in islice(validation(), _VALIDATED):
                here = Batch(moved(batch.args, device), moved(dict(batch.kwargs), device),
                             moved(batch.target, device))  # fmt: skip
                loss_of(model, here, setup.loss)
    finally:
        model.train()


@outermost
def run_loop(
    loop: Callable[[], Any],
    limits: Limits,
    *,
    after_step: Callable[[int], None] | None = None,
    decided: Callable[[Trace], bool] | None = None,
) -> Ran:
    """Run the user's own loop under observation, and end it after its steps or seconds.

    It is ended from within the optimizer's step, so that its `finally` blocks run.
    """
    started = time.monotonic()
    ended: str | None = None
    look = _FIRST_LOOK

    def after(steps: int) -> None:
        nonlocal ended, look
        if after_step is not None:
            after_step(steps)
        if steps >= limits.steps:
            raise Enough
        if time.monotonic() - started > limits.seconds:
            ended = f"{steps} of {limits.steps} steps in {limits.seconds:g} s"
            raise Enough
        if decided is not None and steps == look:
            look *= 2
            if decided(observer.trace()):
                ended = _DECIDED
                raise Enough

    observer = TrainingObserver(period=1, after_step=after, measuring=limits.seconds * _MEASURING)
    failed = False
    with observed(observer) as problem:
        try:
            loop()
        except Enough:
            pass
        except (Writes, Stop) as end:
            ended = f"{observer.step} of {limits.steps} steps: {end}"
        except (Exception, SystemExit) as error:
            observer.fails(error)
            ended, failed = described(error), True
    broken = problem()
    if broken is not None:
        raise ProbeProblem(f"watching stopped: {type(broken).__name__}: {broken}")
    trace = observer.trace()
    is_decided = ended is _DECIDED
    return Ran(_cut_short(trace) if is_decided else trace, ended, failed, is_decided)


def _cut_short(trace: Trace) -> Trace:
    """Without what its few steps would seem to tell of how the training goes on."""
    return replace(trace, generalization=None, unmeasured="the probe ended early")


def _is_users(site: Site | None) -> bool:
    """Whether a place is in the user's files; a library's own loss is named where the model was made."""
    return site is not None and owner_of(site.project.filename) == "project"


def _located(trace: Trace, setup: Setup, model: str) -> Trace:
    """Our loop has no place of the user's: a loss or an optimizer is named where it was made.

    The `model`, by its class, is known by the names that it has.
    """
    loss, optimizer = setup.loss_site(), setup.optimizer_site()
    return replace(
        trace,
        own=setup.own,
        models=[
            replace(each, called=setup.model) if each.name == model else each
            for each in trace.models
        ],
        objectives=[
            objective if _is_users(objective.site) else replace(objective, site=loss)
            for objective in trace.objectives
        ],
        incidents=[
            incident
            if incident.site is not None
            else replace(incident, site=optimizer if "step" in incident.kind else loss)
            for incident in trace.incidents
        ],
    )
