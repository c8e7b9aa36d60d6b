"""Run the user's model once more in the user's process, so that nothing of it is noticed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from trainlint.observe.hooks import unobserved
from trainlint.observe.quiet import quiet
from trainlint.observe.sharding import has_others
from trainlint.preserve import is_lazy, preserved

_HARMLESS: Final = ("torch", "accelerate", "transformers")
_MOST_BYTES: Final = 1 << 25


@contextlib.contextmanager
def unnoticed(module: nn.Module, autocast: tuple[str, Any] | None) -> Iterator[None]:
    """What runs within leaves nothing behind. Function modes are on again: an observer runs without."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(unobserved(leaving=False))
        stack.enter_context(torch._C._EnableTorchFunction())
        stack.enter_context(quiet())
        stack.enter_context(preserved(module))
        stack.enter_context(torch.no_grad())
        for device in ("cuda", "cpu"):
            is_on = autocast is not None and autocast[0] == device
            if is_on or torch.is_autocast_enabled(device):
                kind = autocast[1] if autocast is not None and is_on else None
                stack.enter_context(
                    torch.autocast(device, kind, enabled=is_on, cache_enabled=False)
                )
        yield


def is_plain_context() -> bool:
    """Whether nobody records or changes what torch does just now."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return (
        all(isinstance(mode, DeviceContext) for mode in modes)
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._autograd._profiler_enabled()
    )


def why_not(module: nn.Module, called: nn.Module) -> str | None:
    """What makes it unsafe to run the model once more in the user's process, None if nothing does."""
    if called is not module:
        return f"the model is called through {type(called).__name__}"
    if has_others():
        return "its forward may wait for other processes"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "forward hooks are registered for all modules"
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            return "it is compiled by torch.jit"
        if getattr(part, "_compiled_call_impl", None) is not None:
            return "it is compiled"
        if part._forward_hooks or part._forward_pre_hooks:
            return "it has forward hooks"
        own = vars(part).get("forward")
        if own is not None and not str(getattr(own, "__module__", "")).startswith(_HARMLESS):
            return "the forward of one of its modules was replaced"
    return None


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    """Its weights and buffers, if they are few; none where it looks at them in another way."""
    held = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
    size = sum(0 if is_lazy(t) else t.numel() * t.element_size() for t in held.values())
    flat = any(isinstance(part, nn.RNNBase) for part in module.modules())
    if size > _MOST_BYTES or any(is_lazy(t) or (flat and not t.is_cpu) for t in held.values()):
        return {}
    return {name: t.detach().clone() for name, t in held.items()}


def versions_of(module: nn.Module) -> list[int]:
    """How often each of its weights and buffers was written to."""
    return [
        -1 if tensor.is_inference() else tensor._version
        for tensor in (*module.parameters(), *module.buffers())
    ]
