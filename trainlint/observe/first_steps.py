"""The first steps that train a model: it is handed over before them, as it was made.

A step with a closure has its backward pass within, so that it is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainlint.observe.judging import Judging
from trainlint.observe.optimizers import Optimizers
from trainlint.observe.pace import FIRST_STEPS, Pace
from trainlint.observe.roots import KnownOptimizer, Roots

if TYPE_CHECKING:
    from torch import nn

    from trainlint.loss.source import LossUse

    BeforeTraining = Callable[[nn.Module, Any, Any, tuple[LossUse, ...]], None]


class FirstSteps:
    """Calls `before` once for each model that is trained.

    It gets the arguments of the model's latest forward, and the losses that were seen to judge it.
    """

    def __init__(
        self,
        before: BeforeTraining | None,
        roots: Roots,
        optimizers: Optimizers,
        pace: Pace,
        judging: Judging,
    ) -> None:
        self._before = before
        self._roots = roots
        self._optimizers = optimizers
        self._pace = pace
        self._judging = judging
        self._awaited: KnownOptimizer | None = None

    def closure_begins(self, known: KnownOptimizer) -> None:
        """A step with a closure begins."""
        if known.steps < FIRST_STEPS:
            self._optimizers.note_held(known)
            self._awaited = known

    def backward_ends(self) -> None:
        """In such a closure, nothing was changed so far."""
        if self._awaited is not None:
            self._optimizers.note_held(self._awaited)
            self.step_begins(self._awaited)
            self._awaited = None

    def step_begins(self, known: KnownOptimizer) -> None:
        """Hand over the models that this optimizer is about to train."""
        if self._before is None or known.steps >= FIRST_STEPS:
            return
        for root in self._roots:
            module = root.module()
            if root.was_shown or root.number not in known.roots or not root.trained_in:
                continue
            if module is None or root.inputs is None or not root.trained_in[module.training]:
                continue
            root.was_shown = True
            started = time.thread_time()
            args, kwargs = root.inputs
            self._before(module, args, kwargs, self._judging.uses(root))
            self._pace.leave_out(time.thread_time() - started)

    def gives_up(self) -> None:
        """The model is compiled: it is not looked into."""
        self._before = None
