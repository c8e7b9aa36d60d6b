"""Which parameters of a model no backward pass gives a gradient, on real weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from trainlint.capture.inputs import Inputs

_PASSES: Final = 3


def without_gradient(model: nn.Module, inputs: Inputs, loss: Callable[[Any], Tensor]) -> list[str]:
    """Names of trainable parameters whose `.grad` stays None. Whoever calls restores the model.

    A gradient of 0 is one: a zero-initialised branch gets it, and dead units do, too. Layers that a forward
    leaves out by chance are not meant: there are some passes in train mode, and one in eval mode.
    """
    model.zero_grad(set_to_none=True)
    for number in range(_PASSES + 1):
        model.train(number < _PASSES)
        with torch.enable_grad():
            value = loss(model(*inputs.args, **inputs.kwargs))
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if not missing:
            break
    return missing
