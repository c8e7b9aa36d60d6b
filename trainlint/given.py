"""What a caller hands over in Python, made sense of: a model or what makes one, its inputs, its loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainlint.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from trainlint.capture.inputs import Inputs


def instance_of(target: Any) -> nn.Module:
    """The model, or what a class or factory makes, out of its wrappers. Raises `UsageError`."""
    from torch import nn

    from trainlint.sites import recording
    from trainlint.targets.loading import required_arguments, unwrapped

    model: nn.Module
    if isinstance(target, nn.Module):
        model = unwrapped(target)
        return model
    if not callable(target):
        raise UsageError(f"{type(target).__name__} is no model, nor does it make one")
    name = getattr(target, "__name__", repr(target))
    missing = required_arguments(target)
    if missing:
        raise UsageError(
            f"{name} needs arguments ({', '.join(missing)}): give an instance, or a function that "
            f"makes one, lambda: {name}(...)"
        )
    with recording():
        made = target()
    if not isinstance(made, nn.Module):
        raise UsageError(f"{name} makes no torch.nn.Module but {type(made).__name__}")
    model = unwrapped(made)
    return model


def given_inputs(model: nn.Module, inputs: Any) -> Inputs | None:
    """Inputs that were given for a live model, as text or as they are. Raises `InputError`."""
    from trainlint.capture.inputs import from_text, from_value
    from trainlint.preserve import preserved

    if inputs is None:
        return None
    with preserved(model):
        if isinstance(inputs, str):
            return from_text(inputs, model)
        return from_value(inputs, model, "given")


def given_loss(loss: Any) -> Callable[..., Any] | None:
    """The loss as a function of (output, target); a class is made an instance. Raises `UsageError`."""
    if inspect.isclass(loss):
        from trainlint.targets.loading import required_arguments

        missing = required_arguments(loss)
        if missing:
            raise UsageError(
                f"the loss is a class, {loss.__name__}, which needs arguments ({', '.join(missing)}): "
                "give an instance of it"
            )
        loss = loss()
    if loss is not None and not callable(loss):
        raise UsageError(
            f"the loss is {type(loss).__name__} {loss!r:.60}: give a function of (output, target)"
        )
    function: Callable[..., Any] | None = loss
    return function
