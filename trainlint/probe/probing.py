"""The probe of `trainlint check`: which training is possible, that training, and the model as before.

Comes in: a model, its inputs, a `Setup`. Goes out: the facts `Trace` and `Memorisation`, and a sentence on
what was done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from trainlint.data.pool import pool_of
from trainlint.engine import FactUnavailable
from trainlint.generalization.attribution import without_some
from trainlint.generalization.curves import GAP
from trainlint.generalization.meter import MOST, Meter
from trainlint.measure.memory import available_memory
from trainlint.measure.pulse import objective_of, on_device_of, seed_generators
from trainlint.preserve import preserved_training, random_states
from trainlint.probe.batches import Batch, ProbeProblem, batches, described, same_draws, split
from trainlint.probe.loop import Limits, Ran, run_loop, train
from trainlint.probe.memorisation import Memorisation
from trainlint.probe.memory import memorise
from trainlint.targets.loading import Stop

if TYPE_CHECKING:
    from trainlint.capture.inputs import Inputs
    from trainlint.data.pool import Pool
    from trainlint.generalization.remedies import Remedies
    from trainlint.generalization.trials import Copy
    from trainlint.observe.trace import Trace
    from trainlint.probe.setup import Setup

_DEFAULT_RATE: Final = 1e-3
# Made-up data show only what any data would: that is seen at once.
_MADE_UP_STEPS: Final = 5
# Weights, their copy, gradients, and two moments of Adam.
_COPIES: Final = 5
# Of the time for a probe, what remedies may take once there is something to remedy.
_SHARE: Final = 0.5


# Seconds by which a single step may outlast the time of all.
_PATIENCE: Final = 1.5
# Entered for a training of so many seconds at most; tells whether the loop is the user's own.
Guard = Callable[[float, bool], AbstractContextManager[Any]]

# Builds the model anew with its hidden sizes times a factor, with weights of a seed.
OfWidth = Callable[[float, int], "Copy"]


@dataclass
class Probe:
    """The training of one model, made when it is first asked for.

    `loss` is what to differentiate where the setup has none: from the model's output, a scalar.
    """

    model: nn.Module
    inputs: Inputs
    setup: Setup
    limits: Limits
    loss: Callable[[Any], Any] | None = None
    progress: Callable[[str], None] | None = None
    decided: Callable[[Trace], bool] | None = None
    guard: Guard | None = None
    of_width: OfWidth | None = None
    target: str = ""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ran: Ran | None = None
    # Further trainings, by their seeds.
    again: dict[int, Trace] = field(default_factory=dict)
    _first: list[Batch] = field(default_factory=list)
    _pools: dict[str, Pool] = field(default_factory=dict)
    _note: str = ""
    _took: float = 0.0

    def trace(self, seed: int = 0, longer: int = 1) -> Trace:
        """What was seen of a training so many times `longer` than the limit of steps.

        Raises `FactUnavailable` where none is possible.
        """
        self._check_memory()
        started = time.monotonic()
        try:
            with (
                self._restored(self._given_optimizer()),
                same_draws(self.setup.train_loader, self.setup.val_loader),
            ):
                seed_generators(seed)
                ran = self._run(replace(self.limits, steps=self.limits.steps * longer))
            took = time.monotonic() - started
            ran = self._attributed(ran, seed)
        except ProbeProblem as problem:
            raise FactUnavailable(str(problem)) from None
        if not ran.trace.steps and ran.ended and not ran.trace.incidents:
            raise FactUnavailable(f"the training raised {ran.ended}" if ran.failed else ran.ended)
        if seed == 0:
            self.ran, self._took = ran, took
        else:
            self.again[seed] = ran.trace
        return ran.trace

    def memorisation(self) -> Memorisation:
        """The pass by 16 samples. Raises `FactUnavailable` where it tells nothing."""
        if self.ran is None or self.ran.failed or self.is_decided:
            raise FactUnavailable("the training came to no end")
        if not self._first:
            raise FactUnavailable("")
        restored = self._restored
        if self.progress is not None:
            self.progress("probe: can 16 samples be learnt by heart?")
        seed_generators(0)
        found = memorise(self.model, self.setup, self._first[0], restored, self.limits.seconds / 2)
        if isinstance(found, str):
            raise FactUnavailable(found)
        return found

    def remedies(self) -> Remedies:
        """What would help against overfitting. Raises `FactUnavailable` where that cannot be measured."""
        from trainlint.generalization.laboratory import optimizer_for
        from trainlint.generalization.trying import SEEDS, Experiment

        measured = None if self.ran is None else self.ran.trace.generalization
        if measured is None or not measured.guess or self.setup.train is not None:
            raise FactUnavailable("there is no validation loss to go by")
        seconds = self.limits.seconds * _SHARE
        # Beside the unchanged training, one remedy at least.
        if 2 * SEEDS * self._took > seconds:
            raise FactUnavailable(
                f"a training takes {self._took:.2g} s, and of --probe-seconds they may take {seconds:g} s"
            )
        self._check_memory()
        try:
            with (
                self._restored(self._given_optimizer()),
                same_draws(self.setup.train_loader, self.setup.val_loader),
                self._guarded(is_own_loop=False),
            ):
                train, validation = self._whole("train_loader"), self._pool("val_loader")
                return Experiment(
                    self.model,
                    self.setup,
                    optimizer_for(self.setup),
                    train,
                    validation,
                    measured.last.step,
                    measured.guess,
                    seconds,
                    of_width=self.of_width,
                    progress=self.progress,
                ).remedies()
        except (ProbeProblem, Stop) as problem:
            raise FactUnavailable(str(problem)) from None

    @property
    def is_decided(self) -> bool:
        """Whether the training was ended for what was already seen."""
        return self.ran is not None and self.ran.decided

    @property
    def is_made_up(self) -> bool:
        """Whether nobody has given data, so that it trains on some of its own."""
        return self.setup.train is None and self.setup.train_loader is None

    def described(self) -> str:
        """`50 steps of SGD on train_loader`."""
        assert self.ran is not None
        trace, names = self.ran.trace, self.setup.names
        kinds = " and ".join(dict.fromkeys(o.kind for o in trace.optimizers if o.steps))
        steps = f"{trace.steps} step{'s' if trace.steps != 1 else ''}"
        text = f"{steps} of {kinds}" if kinds else steps
        if self.setup.train is not None:
            text += f" in {names.get('train', 'train')}()"
        elif self.setup.train_loader is not None:
            text += f" on {names.get('train_loader', 'train_loader')}"
        else:
            text += " on made-up data"
        if not any((self.setup.train, self.setup.optimizer)):
            text += ", an optimizer of ours"
        return text

    def notes(self) -> list[str]:
        """What could not be measured, and why it ended before its last step, if it did."""
        if self.ran is None:
            return []
        notes = [*self.ran.trace.notes, *([self._note] if self._note else [])]
        if self.ran.ended is None:
            return notes
        how = "the probe's training raised" if self.ran.failed else "the probe ended early:"
        return [*notes, f"{how} {self.ran.ended}"]

    # ------------------------------------------------------------------

    def _restored(
        self, optimizer: torch.optim.Optimizer | None = None
    ) -> AbstractContextManager[None]:
        beside = [self.setup.loss] if isinstance(self.setup.loss, nn.Module) else []
        return preserved_training(self.model, optimizer, beside=beside)

    def _given_optimizer(self) -> torch.optim.Optimizer | None:
        known = self.setup.optimizer
        return known if isinstance(known, torch.optim.Optimizer) else None

    def _check_memory(self) -> None:
        size = sum(p.numel() * p.element_size() for p in self.model.parameters() if not p.is_meta)
        free = available_memory()
        if any(p.is_meta for p in self.model.parameters()):
            raise FactUnavailable("its weights have no values, they are on the meta device")
        if free is not None and size * _COPIES > free:
            raise FactUnavailable(
                f"it would take {size * _COPIES >> 20} MiB, and {free >> 20} are free"
            )

    def _run(self, limits: Limits) -> Ran:
        after = None if self.progress is None else partial(self._tell, limits.steps)
        if self.setup.train is not None:
            with self._guarded(is_own_loop=True):
                return run_loop(self.setup.train, limits, after_step=after, decided=self.decided)
        validation = meter = None
        if self.setup.train_loader is None:
            data = self._made_up
            limits = Limits(min(_MADE_UP_STEPS, limits.steps), limits.seconds)
        else:
            data = partial(self._batches, "train_loader", self.setup.train_loader)
            if self.setup.val_loader is not None:
                meter = self._meter(limits)
                if self.setup.step is None and meter is not None:
                    validation = partial(self._batches, "val_loader", self.setup.val_loader)
        with self._guarded(is_own_loop=False):
            return train(
            self.model, self._completed(), self._optimizer(), data, validation, limits,
            after_step=after, decided=self.decided, meter=meter,
        )  # fmt: skip

    def _meter(self, limits: Limits) -> Meter | None:
        try:
            with self._guarded(is_own_loop=False, share=_SHARE / 2):
                train, validation = self._pool("train_loader"), self._pool("val_loader")
        except (ProbeProblem, Stop) as problem:
            self._note = f"training and validation data were not compared: {problem}"
            return None
        return Meter(
            self.model, self.setup, train, validation, limits.seconds / 4,
            steps=limits.steps, with_linear=True,
        )  # fmt: skip

    def _pool(self, part: str) -> Pool:
        """The samples of a loader, read so that nothing of its own order changes."""
        if part not in self._pools:
            loader = getattr(self.setup, part)
            with random_states(), same_draws(loader):
                self._pools[part] = pool_of(loader, self.setup.names.get(part, part), most=MOST)
        return self._pools[part]

    def _whole(self, part: str) -> Pool:
        """The same, read on where so many samples were not all."""
        pool = self._pool(part)
        if pool.whole:
            return pool
        return pool_of(getattr(self.setup, part), pool.name, seconds=self.limits.seconds / 8)

    def _attributed(self, ran: Ran, seed: int) -> Ran:
        """With a second training where there is a gap, which tells overfitting from a shift of the data."""
        measured = ran.trace.generalization
        gap = None if measured is None else measured.gap()
        if gap is None or gap.bound <= GAP or self.setup.step is not None:
            return ran
        train, validation = self._pool("train_loader"), self._pool("val_loader")
        if self.progress is not None:
            self.progress("probe: is the gap by heart, or do the data differ?")
        optimizer = self.setup.optimizer or self._own_optimizer
        with (
            self._restored(self._given_optimizer()),
            same_draws(self.setup.train_loader, self.setup.val_loader),
            self._guarded(is_own_loop=False),
        ):
            try:
                found = without_some(
                    self.model, self.setup, optimizer, train, validation,
                    ran.trace.steps, self.limits.seconds / 2, seed,
                )  # fmt: skip
            except Exception:  # an answer is missing then, and nothing else
                return ran
        assert measured is not None
        return replace(
            ran, trace=replace(ran.trace, generalization=replace(measured, held_out=found))
        )

    @staticmethod
    def _own_optimizer(model: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ProbeProblem("none of its parameters is trainable")
        return torch.optim.Adam(parameters, _DEFAULT_RATE)

    def _guarded(self, *, is_own_loop: bool, share: float = 1.0) -> AbstractContextManager[Any]:
        if self.guard is None:
            return nullcontext()
        return self.guard(self.limits.seconds * _PATIENCE * share, is_own_loop)

    def _completed(self) -> Setup:
        """With made-up data, targets are made up as well, or there is no loss but a projection."""
        if self.setup.train_loader is not None:
            return self.setup
        return replace(self.setup, loss=lambda output, _: objective_of(output, self.loss, 0)[1])

    def _tell(self, steps: int, done: int) -> None:
        if self.progress is not None:
            self.progress(f"probe: step {done} of {steps}")

    def _batches(self, part: str, loader: Any) -> Iterator[Batch]:
        name = self.setup.names.get(part, part)
        for read in batches(loader, name):
            if self.setup.step is not None:
                yield Batch((), {}, None, read)
                continue
            batch = split(read, self.model, self.setup.loss, name)
            if part == "train_loader" and not self._first:
                self._first.append(batch)
            yield batch

    def _made_up(self) -> Iterator[Batch]:
        from trainlint.capture.batches import with_batch

        inputs = with_batch(self.inputs, 16) if not self.inputs.given else self.inputs
        placed = on_device_of(self.model, inputs)
        while True:
            yield Batch(placed.args, placed.kwargs, None)

    def _optimizer(self) -> Any:
        known = self.setup.optimizer
        if isinstance(known, torch.optim.Optimizer):
            return known
        if known is None:
            return self._own_optimizer(self.model)
        name = self.setup.names.get("optimizer", "optimizer")
        try:
            made = known(self.model)
        except Exception as error:
            raise ProbeProblem(f"{name}(model) raised {described(error)}") from error
        if not isinstance(made, torch.optim.Optimizer):
            raise ProbeProblem(f"{name}(model) makes {type(made).__name__}, not an optimizer")
        return made
