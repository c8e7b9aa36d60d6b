"""What a sweep has to know of a target before it trains: its widths, its settings, how long to train.

Comes in: a `Laboratory`, and what built its model. Goes out: an `Outline`, and models of other widths.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch.nn.modules.dropout import _DropoutNd

from trainlint.capture.inputs import Inputs, fits_signature
from trainlint.generalization.laboratory import optimizer_for, setup_with_loss, stepping
from trainlint.generalization.meter import Meter
from trainlint.generalization.swept import Outline, OutlinedWidth
from trainlint.generalization.trials import Copy, Plan, copied, trial
from trainlint.generalization.widths import Origin, Rung, WidthProblem, another, rungs, widths_of
from trainlint.probe.batches import batches, described, first_samples, same_draws
from trainlint.probe.stage import first_inputs
from trainlint.sites import construction_site
from trainlint.targets.loading import LoadedFile, recipe_of

if TYPE_CHECKING:
    from torch import nn

    from trainlint.generalization.laboratory import Laboratory
    from trainlint.probe.setup import Setup
    from trainlint.targets.resizing import Constructions, Size

_SAMPLES: Final = 16
# Training has come to rest where the last half of its steps brought so little of all that was learnt.
_AT_REST: Final = 0.02
_FEWEST_EPOCHS: Final = 5
_MOST_EPOCHS: Final = 200
_FEWEST_STEPS: Final = 200
_SCORED: Final = 256
_FURTHER: Final = 1.2


@dataclass
class OtherWidths:
    """Builds a file's model anew, its hidden sizes times a factor; `names` are theirs, if given."""

    path: Path
    dotted: str | None
    loaded: LoadedFile
    name: str
    model: nn.Module
    setup: Setup
    constructions: Constructions
    names: Sequence[str] = ()
    _origin: Origin | None = field(init=False, default=None)
    _sizes: Sequence[Size] = field(init=False, default=())
    _rungs: dict[float, Rung] = field(init=False, default_factory=dict)

    def sizes(self) -> Sequence[Size]:
        """The integers that are changed. Raises `WidthProblem`."""
        if not self._sizes:
            self._sizes = widths_of(self._known(), self.names)
        return self._sizes

    def _known(self) -> Origin:
        if self._origin is None:
            calls = self.constructions.of(self.model)
            self._origin = Origin(
                self.path, self.loaded, self.name, self.model, calls, self._inputs(), self.dotted
            )
        return self._origin

    def _inputs(self) -> Inputs:
        setup = self.setup
        found = None
        if setup.step is None:
            found = first_inputs(self.model, setup)
        else:
            name = setup.names.get("train_loader", "train_loader")
            with same_draws(setup.train_loader):
                batch = first_samples(next(batches(setup.train_loader, name)), _SAMPLES)
            parts = tuple(batch[:-1]) if isinstance(batch, (list, tuple)) else (batch,)
            found = Inputs(parts, {}, name, given=True)
        if found is None or not fits_signature(found, self.model):
            raise WidthProblem(f"forward of {self.name} does not take what its loader gives")
        return found

    def outlined(self, factors: Sequence[float]) -> list[OutlinedWidth]:
        """The sizes and parameters at each factor."""
        return [
            OutlinedWidth(
                rung.factor,
                {size.name: size.value for size in rung.sizes},
                rung.parameters,
                rung.reason,
            )
            for rung in rungs(self._known(), self.sizes(), factors)
        ]

    def __call__(self, width: float, seed: int) -> Copy:
        """The file run again with other sizes, so that its optimizer fits; `seed` draws the weights."""
        rung = self._rungs.get(width)
        if rung is None:
            [rung] = rungs(self._known(), self.sizes(), [width])
            self._rungs[width] = rung
        if rung.reason is not None:
            raise WidthProblem(rung.reason)
        try:
            loaded, model = another(self._known(), rung.sizes, seed)
        except WidthProblem:
            raise
        except Exception as error:
            what = ", ".join(f"{size.name}={size.value}" for size in rung.sizes)
            raise WidthProblem(f"with {what} the file raised {described(error)}") from error
        made = sum(parameter.numel() for parameter in model.parameters())
        if made != rung.parameters:
            raise WidthProblem(
                f"run with other sizes, the file made a model of {made} parameters, not {rung.parameters}"
            )
        setup = setup_with_loss(model, recipe_of(loaded, model, self.name, loops=False))
        if setup.step is not None:
            model, setup = stepping(model, setup)
        return copied(model, setup, optimizer_for(setup))


def outline(
    laboratory: Laboratory,
    factors: Sequence[float],
    *,
    seconds: float,
    find_length: bool,
    progress: Callable[[str], None],
) -> Outline:
    """What is known before the sweep. `factors` are of widths, none for other sweeps.

    Raises `ProbeProblem`, `WidthProblem` among them, where there can be no sweep.
    """
    widths: list[OutlinedWidth] = []
    if factors:
        progress("looking for what sets the width")
        of_width = laboratory.of_width
        assert isinstance(of_width, OtherWidths)
        widths = of_width.outlined(factors)
    steps, rest = (0, "") if not find_length else _length(laboratory, seconds, progress)
    train = len(laboratory.folds.pairs[0][0])
    model = laboratory.model
    return Outline(
        sum(parameter.numel() for parameter in model.parameters()),
        widths,
        _decay(laboratory.setup, model),
        sorted({layer.p for layer in model.modules() if isinstance(layer, _DropoutNd)}),
        steps,
        math.ceil(train / laboratory.pool.batch_size),
        rest,
        _place(laboratory),
    )


def _place(laboratory: Laboratory) -> tuple[str, int, int, int] | None:
    """Where the user's file makes the model."""
    of_width = laboratory.of_width
    site = construction_site(of_width.model) if isinstance(of_width, OtherWidths) else None
    span = None if site is None else site.project.span()
    if site is None or span is None:
        return None
    row, end_row, column, end_column = span
    return site.project.filename, row, column + 1, (end_column if end_row == row else column) + 1


def _decay(setup: Setup, model: nn.Module) -> float:
    """The optimizer's own weight decay, the largest of its groups'."""
    optimizer = copied(model, setup, optimizer_for(setup)).optimizer
    groups: list[dict[str, Any]] = getattr(optimizer, "param_groups", [])
    return max((float(group.get("weight_decay") or 0.0) for group in groups), default=0.0)


class _AtRest(Exception):  # noqa: N818 (an answer)
    """More steps would bring no more."""


def _length(
    laboratory: Laboratory, seconds: float, progress: Callable[[str], None]
) -> tuple[int, str]:
    """After how many steps the training loss has stopped falling, and what ended the search.

    It has where the second half of the steps brought less than 2 % of all that was learnt before. A model
    that can overfit has begun to by then, and one that cannot learn more has shown it.
    """
    train, validation = laboratory.folds.pairs[0]
    per_epoch = math.ceil(len(train) / laboratory.pool.batch_size)
    fewest = max(_FEWEST_STEPS, _FEWEST_EPOCHS * per_epoch)
    most = max(fewest, _MOST_EPOCHS * per_epoch)
    subject = copied(laboratory.model, laboratory.setup, optimizer_for(laboratory.setup))
    pool = laboratory.pool
    held_out = laboratory.held_out or pool
    meter = Meter(
        subject.model, subject.setup, pool.only(train), held_out.only(validation[:1]), most=_SCORED
    )
    meter.measure(0)
    losses = {0: meter.checkpoints[-1].train.mean}
    deadline = time.monotonic() + seconds
    following = min(10, fewest)

    def watch(step: int) -> None:
        nonlocal following
        if time.monotonic() > deadline:
            raise _AtRest(f"as many as the time allows ({seconds:.0f} s for one training)", step)
        if step < following:
            return
        following = math.ceil(step * _FURTHER)
        meter.measure(step)
        losses[step] = meter.checkpoints[-1].train.mean
        progress(f"how long to train: step {step}, training loss {losses[step]:.3g}")
        if step >= fewest and is_at_rest(losses):
            raise _AtRest("until the training loss had stopped falling", step)

    plan = Plan(train, validation[:1], most, seconds=seconds + 1.0, most=1, ends_only=True)
    try:
        trial(subject, pool, plan, held_out=laboratory.held_out, progress=watch)
    except _AtRest as end:
        why, steps = end.args
        return max(1, steps), str(why)
    return most, "the training loss was still falling"


def is_at_rest(losses: dict[int, float]) -> bool:
    """Whether the loss, by step, fell but little over the second half of the steps."""
    last = max(losses)
    half = max(step for step in losses if step <= last / 2)
    if not all(map(math.isfinite, losses.values())):
        return True
    learnt = losses[0] - min(losses.values())
    return losses[half] - losses[last] <= _AT_REST * learnt
