"""What becomes of gradients between a backward pass and the step that uses them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad

from trainlint.sites import replaced
from trainlint.surgery.case import Case, PatchProblem

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainlint.fixes.patch import Patch


@dataclass
class _Waiting:
    """Whether a backward pass has left gradients that no step has used, and they were clipped."""

    gradients: bool = False
    clipped: bool = False

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Know of backward passes within."""
        inner = torch.autograd.backward

        def backward(*args: Any, **kwargs: Any) -> Any:
            self.gradients, self.clipped = True, False
            return inner(*args, **kwargs)

        with replaced(torch.autograd, "backward", backward):
            yield

    def stepped(self, _: Optimizer) -> None:
        self.gradients = False


def _waiting(case: Case) -> _Waiting:
    waiting = _Waiting()
    case.conduct.seams.append(waiting.told)
    case.conduct.after_step.append(waiting.stepped)
    return waiting


def clip(case: Case, patch: Patch) -> None:
    """`clip_grad_norm_` before each step, or `clip_grad_value_` where `value` is given.

    In place of the clipping of norms that a loop does itself, at that place or after the step.
    """
    name = "value" if "value" in patch.values else "max_norm"
    limit = patch.values.get(name)
    if not isinstance(limit, (int, float)) or not 0 < limit < math.inf:
        raise PatchProblem(f"gradients cannot be clipped to {limit!r}")
    if name == "value":
        # By its name, here and below: an observer stands there.
        case.conduct.before_step.append(lambda o: nn.utils.clip_grad_value_(_parameters(o), limit))
        return
    waiting = _waiting(case)

    @contextlib.contextmanager
    def seam() -> Iterator[None]:
        inner: Any = getattr(clip_grad, "_clip_grads_with_norm_", None)
        if inner is None:
            yield
            return

        def other(parameters: Any, _: Any, total_norm: Tensor, *args: Any, **kwargs: Any) -> None:
            if waiting.gradients:
                waiting.clipped = True
                inner(parameters, limit, total_norm, *args, **kwargs)

        with replaced(clip_grad, "_clip_grads_with_norm_", other):
            yield

    def act(optimizer: Optimizer) -> None:
        if not waiting.clipped:
            nn.utils.clip_grad_norm_(_parameters(optimizer), limit)

    case.conduct.seams.append(seam)
    case.conduct.before_step.append(act)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def zero_grad(case: Case, _: Patch) -> None:
    """No gradient is left after a step, and none is cleared before it."""
    from torch.optim import Optimizer

    waiting = _waiting(case)
    own = {id(p) for p in case.model.parameters()}

    @contextlib.contextmanager
    def seam() -> Iterator[None]:
        of_optimizer, of_module = Optimizer.zero_grad, nn.Module.zero_grad

        def spares(parameters: Any) -> bool:
            return waiting.gradients and any(id(p) in own for p in parameters)

        def clear(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            if not spares(_parameters(optimizer)):
                of_optimizer(optimizer, *args, **kwargs)

        def clear_module(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            if not spares(module.parameters()):
                of_module(module, *args, **kwargs)

        with (
            replaced(Optimizer, "zero_grad", clear),
            replaced(nn.Module, "zero_grad", clear_module),
        ):
            yield

    case.conduct.seams.append(seam)
    case.conduct.after_step.append(lambda optimizer: optimizer.zero_grad())


def scaled_loss(case: Case, patch: Patch) -> None:
    """Each loss times `factor` before its backward pass: for k micro-batches of mean losses, 1/k."""
    factor = patch.values.get("factor")
    if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise PatchProblem(f"a loss cannot be scaled by {factor!r}")

    @contextlib.contextmanager
    def seam() -> Iterator[None]:
        inner = torch.autograd.backward

        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            given = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            return inner([loss * factor for loss in given], *args, **kwargs)

        with replaced(torch.autograd, "backward", backward):
            yield

    case.conduct.seams.append(seam)
