"""Which calls hand a training to a library's own loop: told by imports and by what made the object.

A library stands here only if `trainlint run` was seen to watch a training by it: that is what is advised.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from typing import Final

from trainlint.targets.provenance import Provenance, Scope

# The library, what makes the object that trains, and its methods that do.
_TRAINERS: Final = (
    (("lightning", "pytorch_lightning"), "Trainer", ("fit",)),
    (("transformers",), r"\w*Trainer", ("train",)),
    (("skorch",), r"Neural\w+|\w+Net", ("fit", "partial_fit", "fit_loop")),
    (("ignite",), "create_supervised_trainer", ("run",)),
    (("monai",), r"\w+Trainer", ("run",)),
)
# Functions of scikit-learn that fit what they are given.
_FITTERS: Final = re.compile(r"cross_val\w+|learning_curve|validation_curve|permutation_test_score")
# Their `backward` is a step of a training: accelerator.backward(loss), fabric.backward(loss).
_BACKWARD: Final = ("accelerate", "lightning", "lightning_fabric", "pytorch_lightning", "deepspeed")


def trains_by_library(call: ast.Call, origins: Provenance, scope: Scope) -> bool:
    """Whether the call trains a model by a library's loop."""
    callee = call.func
    if isinstance(callee, ast.Attribute) and _is_method(callee.attr):
        makers = origins.makers(callee.value, scope)
        if any(_trains(maker, callee.attr) for maker in makers):
            return True
    name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
    if not _FITTERS.fullmatch(name) or not any(
        named.partition(".")[0] == "sklearn" for named in origins.named(callee, scope)
    ):
        return False
    return any(_trains(maker, "fit") for maker in origins.given(call, scope))


def is_backward_of_library(call: ast.Call, origins: Provenance, scope: Scope) -> bool:
    """`accelerator.backward(loss)`: a training, whatever takes the steps."""
    callee = call.func
    if not (isinstance(callee, ast.Attribute) and callee.attr == "backward"):
        return False
    makers = origins.makers(callee.value, scope)
    return any(maker.partition(".")[0] in _BACKWARD for maker in makers)


def is_optimizer(makers: Collection[str]) -> bool:
    """Whether something of torch.optim, a gradient scaler, or an engine that has its own, made it."""
    parts = {part for maker in makers for part in maker.split(".")}
    return bool(parts & {"optim", "GradScaler", "deepspeed"})


def _is_method(name: str) -> bool:
    return any(name in methods for _, _, methods in _TRAINERS)


def _trains(maker: str, method: str) -> bool:
    library, *parts = maker.split(".")
    return any(
        library in libraries
        and method in methods
        and any(re.fullmatch(made, part) for part in parts)
        for libraries, made, methods in _TRAINERS
    )
