"""What a training does besides, while it runs: clip before each step, scale a rate, switch modes.

By seams of torch, so that it is done in the user's own loop as in ours. All are as before afterwards.
They are to be entered inside of what observes the training, which then sees the changed one.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainlint.sites import replaced

if TYPE_CHECKING:
    from torch.optim import Optimizer

_OnOptimizer = Callable[["Optimizer"], None]


@dataclass
class Conduct:
    """Steps count where the optimizer holds a parameter of `model`.

    `on_optimizer` is done once to each such optimizer, when it is made or at its first step. `before_step`
    comes when the gradients are there; of an optimizer that takes a closure, after each of its calls.
    `around_forward` is entered around each call of the model. `seams` are entered around the whole.
    """

    model: nn.Module
    on_optimizer: list[_OnOptimizer] = field(default_factory=list)
    before_step: list[_OnOptimizer] = field(default_factory=list)
    after_step: list[_OnOptimizer] = field(default_factory=list)
    around_forward: list[Callable[[], AbstractContextManager[Any]]] = field(default_factory=list)
    seams: list[Callable[[], AbstractContextManager[Any]]] = field(default_factory=list)
    _known: weakref.WeakSet[Optimizer] = field(default_factory=weakref.WeakSet)

    @property
    def is_idle(self) -> bool:
        """Whether a training is as any other."""
        return not any(
            (self.on_optimizer, self.before_step, self.after_step, self.around_forward, self.seams)
        )

    def adjust(self, optimizer: Optimizer) -> None:
        """Do to this one what is done to each, unless it was."""
        if optimizer not in self._known:
            self._known.add(optimizer)
            for change in self.on_optimizer:
                change(optimizer)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Do all of it within."""
        with contextlib.ExitStack() as stack:
            for seam in self.seams:
                stack.enter_context(seam())
            if self.around_forward:
                stack.enter_context(self._forwards())
            if self.on_optimizer:
                stack.enter_context(self._constructions())
            if self.on_optimizer or self.before_step or self.after_step:
                stack.enter_context(self._steps())
            yield

    def _is_ours(self, optimizer: Optimizer) -> bool:
        own = {id(p) for p in self.model.parameters()}
        return any(id(p) in own for group in optimizer.param_groups for p in group["params"])

    def _forwards(self) -> AbstractContextManager[None]:
        original: Any = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module is not self.model:
                return original(module, *args, **kwargs)
            with contextlib.ExitStack() as stack:
                for enter in self.around_forward:
                    stack.enter_context(enter())
                return original(module, *args, **kwargs)

        return replaced(nn.Module, "__call__", call)

    def _constructions(self) -> AbstractContextManager[None]:
        from torch.optim import Optimizer

        original = Optimizer.__init__

        # Within the constructor: what reads the options later, a schedule or an observer, reads these.
        def init(optimizer: Any, params: Any, defaults: Any) -> None:
            original(optimizer, params, defaults)
            if self._is_ours(optimizer):
                self.adjust(optimizer)

        return replaced(Optimizer, "__init__", init)

    @contextlib.contextmanager
    def _steps(self) -> Iterator[None]:
        from torch.optim.optimizer import (
            _global_optimizer_pre_hooks,
            register_optimizer_step_post_hook,
            register_optimizer_step_pre_hook,
        )

        def prepare(optimizer: Any) -> None:
            # An observer's function mode would take this for the loop's own.
            with torch._C.DisableTorchFunction():
                for act in self.before_step:
                    act(optimizer)

        def before(optimizer: Any, args: Any, kwargs: Any) -> Any:
            if not self._is_ours(optimizer):
                return None
            self.adjust(optimizer)
            given = {**kwargs}
            if len(args) > 1:
                args, given["closure"] = (args[0], *args[2:]), args[1]
            closure = given.get("closure")
            if closure is None:
                prepare(optimizer)
                return None

            def evaluated() -> Any:
                loss = closure()
                prepare(optimizer)
                return loss

            return args, {**given, "closure": evaluated}

        def after(optimizer: Any, _: Any, __: Any) -> None:
            if self._is_ours(optimizer):
                for act in self.after_step:
                    act(optimizer)

        first = register_optimizer_step_pre_hook(before)
        # Before those of an observer: it sees the gradients that the step is made of.
        hooks: Any = _global_optimizer_pre_hooks
        hooks.move_to_end(first.id, last=False)
        last = register_optimizer_step_post_hook(after)
        try:
            yield
        finally:
            first.remove()
            last.remove()
