"""Train and eval mode, put right around each call of the model, and rates held or led along a schedule."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch

from trainlint.surgery.case import Case, PatchProblem

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainlint.fixes.patch import Patch


def train_mode(case: Case, _: Patch) -> None:
    """All layers are in train mode in each call of the model for which gradients are asked."""
    model = case.model

    @contextlib.contextmanager
    def enter() -> Iterator[None]:
        if torch.is_grad_enabled() and not all(module.training for module in model.modules()):
            model.train()
        yield

    case.conduct.around_forward.append(enter)


def eval_mode_in_validation(case: Case, _: Patch) -> None:
    """All layers are in eval mode in each call of the model without gradients, and only for that call."""
    model = case.model

    @contextlib.contextmanager
    def enter() -> Iterator[None]:
        if torch.is_grad_enabled():
            yield
            return
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    case.conduct.around_forward.append(enter)


# ---------------------------------------------------------------------- schedules

_SHAPES: Final[dict[str, Callable[[float], float]]] = {
    "constant": lambda _: 1.0,
    "linear": lambda part: 1.0 - part,
    "cosine": lambda part: (1.0 + math.cos(math.pi * part)) / 2,
}


def schedule(case: Case, patch: Patch) -> None:
    """The rate in each step: `shape` (constant, linear, cosine) over `steps`, after `warmup` steps.

    In place of the training's own schedules: what those set is put back after the step.
    """
    shape = _SHAPES.get(str(patch.values.get("shape", "constant")))
    if shape is None:
        raise PatchProblem(f"a schedule has the shape {', '.join(_SHAPES)}")
    steps, warmup = int(patch.values.get("steps") or 0), int(patch.values.get("warmup") or 0)
    if steps < 0 or warmup < 0 or (shape is not _SHAPES["constant"] and not steps):
        raise PatchProblem("a schedule that falls needs the number of steps")
    first: WeakKeyDictionary[Optimizer, list[Any]] = WeakKeyDictionary()
    current: WeakKeyDictionary[Optimizer, list[Any]] = WeakKeyDictionary()
    done: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return shape(min(1.0, (step - warmup) / max(1, steps - warmup)))

    def before(optimizer: Optimizer) -> None:
        if optimizer in current:  # a closure is called several times in a step
            return
        rates = [group["lr"] for group in optimizer.param_groups]
        # A schedule of the training's own may have changed the rate before the first step.
        initial = first.setdefault(
            optimizer,
            [_kept(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups],
        )
        current[optimizer] = rates
        for group, rate in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = rate * factor(done.get(optimizer, 0))

    def after(optimizer: Optimizer) -> None:
        done[optimizer] = done.get(optimizer, 0) + 1
        for group, rate in zip(optimizer.param_groups, current.pop(optimizer, []), strict=False):
            group["lr"] = rate

    case.conduct.before_step.append(before)
    case.conduct.after_step.append(after)


def _kept(rate: Any) -> Any:
    """A rate that is a tensor may be changed in place."""
    return rate.clone() if isinstance(rate, torch.Tensor) else rate
