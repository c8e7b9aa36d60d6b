"""The optimizer of the copy: its rates, its other options, and what it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from trainlint.generalization.applying import decay_is_apart, shrinking, weight_matrices
from trainlint.surgery.case import Case, PatchProblem

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainlint.fixes.patch import Patch

_RATES: Final = ("lr", "initial_lr")


def _number(patch: Patch, name: str) -> float:
    value = patch.values.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise PatchProblem(f"{patch.kind} needs a number for {name}, not {value!r}")
    return float(value)


def on_each_optimizer(case: Case, change: Callable[[Optimizer], None]) -> None:
    """To that of the copy when all patches are made, and to each that the training makes."""
    case.conduct.on_optimizer.append(change)


def learning_rate(case: Case, patch: Patch) -> None:
    """Rates times `factor`; to `value`; or by a range test. Groups keep their ratio."""
    given = [name for name in ("factor", "value", "range_test") if patch.values.get(name)]
    if len(given) != 1:
        raise PatchProblem("learning-rate needs one of factor, value and range_test")
    if given == ["factor"]:
        factor = _number(patch, "factor")
        on_each_optimizer(case, lambda optimizer: _scale(optimizer, factor))
        return
    if given == ["value"]:
        rate = _number(patch, "value")
    else:
        from trainlint.surgery.rates import range_test

        rate = case.rate = range_test(case, _scale_to)
        case.details.append(f"a range test chose {rate:.2g}")
    if rate <= 0:
        raise PatchProblem(f"a learning rate of {rate:g} trains nothing")
    on_each_optimizer(case, lambda optimizer: _scale_to(optimizer, rate))


def _rates(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], str]]:
    for group in optimizer.param_groups:
        for name in _RATES:
            if name in group:
                yield group, name


def _scale(optimizer: Optimizer, factor: float) -> None:
    for group, name in _rates(optimizer):
        if isinstance(group[name], Tensor):  # in place: a compiled step has it as an input
            group[name].mul_(factor)
        else:
            group[name] = group[name] * factor


def _scale_to(optimizer: Optimizer, rate: float) -> None:
    most = max((float(group["lr"]) for group in optimizer.param_groups), default=0.0)
    if most:
        _scale(optimizer, rate / most)
        return
    for group, name in _rates(optimizer):
        group[name] = rate


def options(case: Case, patch: Patch) -> None:
    """Set options in all groups."""
    if not patch.values:
        raise PatchProblem("no option of the optimizer is named")

    def change(optimizer: Optimizer) -> None:
        for name, value in patch.values.items():
            for group in optimizer.param_groups:
                if name not in group:
                    raise PatchProblem(f"{type(optimizer).__name__} has no option {name}")
                group[name] = tuple(value) if isinstance(value, list) else value

    on_each_optimizer(case, change)


def weight_decay(case: Case, patch: Patch) -> None:
    """To `value`, if given; `apart` from the gradient (AdamW); of `matrices_only`, not norms and biases."""
    value = _number(patch, "value") if patch.values.get("value") is not None else None
    matrices = bool(patch.values.get("matrices_only"))
    apart = bool(patch.values.get("apart"))

    def change(optimizer: Optimizer) -> None:
        if any("weight_decay" not in group for group in optimizer.param_groups):
            raise PatchProblem(f"{type(optimizer).__name__} has no weight decay")
        if value is not None:
            for group in optimizer.param_groups:
                group["weight_decay"] = value
        if matrices:
            _free_of_decay(optimizer, {id(w) for w in weight_matrices(case.model)})
        if apart:
            _apart(case, optimizer)

    on_each_optimizer(case, change)


def _free_of_decay(optimizer: Optimizer, decayed: set[int]) -> None:
    for group in list(optimizer.param_groups):
        rest = [p for p in group["params"] if id(p) not in decayed]
        own = [p for p in group["params"] if id(p) in decayed]
        if not own:
            group["weight_decay"] = 0.0
        elif rest:
            # The group itself is kept, so that a schedule finds it in its place.
            group["params"][:] = own
            optimizer.param_groups.append({**group, "params": rest, "weight_decay": 0.0})


def _apart(case: Case, optimizer: Optimizer) -> None:
    """Loshchilov & Hutter 2019: beside the step, not in the gradient that it scales."""
    groups = optimizer.param_groups
    if not decay_is_apart(optimizer):
        return
    if all("decoupled_weight_decay" in group for group in groups):
        for group in groups:
            group["decoupled_weight_decay"] = True
        return
    for group in groups:
        strength, group["weight_decay"] = float(group["weight_decay"]), 0.0
        shrink = shrinking([group], strength)
        case.conduct.before_step.append(lambda _, shrink=shrink: shrink())  # type: ignore[misc]


def rebuilt(case: Case, _: Patch) -> None:
    """Over all trainable parameters, with the same class and options; its state begins anew."""

    def change(optimizer: Optimizer) -> None:
        own = [p for p in case.model.parameters() if p.requires_grad]
        if not own:
            raise PatchProblem("none of the model's parameters is trainable")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missed = [p for p in own if id(p) not in held]
        first = optimizer.param_groups[0]["params"]
        if len(missed) == len(own):  # it is another model's
            for group in optimizer.param_groups:
                group["params"][:] = []
            first[:] = own
        else:
            first.extend(missed)
        optimizer.state.clear()

    on_each_optimizer(case, change)
