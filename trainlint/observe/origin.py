"""Which operation made the first NaN or infinity: run a forward again and look at every result.

The run is on clones of the buffers, since the graph of the step under way needs the model's own, and
leaves model and random states as they were. Dropout draws other masks than the first time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from trainlint import ops
from trainlint.preserve import preserved
from trainlint.sites import Site, calling_site
from trainlint.tree import tensors

# They put -inf where the softmax behind them shall see nothing.
_MASKS: Final = frozenset("masked_fill where full full_like new_full triu tril fill add".split())


@dataclass(frozen=True)
class Origin:
    """An operation that made a value which is not finite from values that are.

    `least` and `largest` bound what it was given.
    """

    operation: str
    site: Site | None
    value: str
    least: float
    largest: float
    backward: bool = False


def origin_in(module: nn.Module, args: Any, kwargs: Any) -> Origin | None:
    """The first such operation of `module(*args, **kwargs)`, or None where there is none to be seen."""
    if _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        return None
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    finder = _Finder()
    # An observer is called with function modes shut out.
    with torch._C._EnableTorchFunction(), preserved(module), torch.enable_grad():
        try:
            with finder:
                torch.func.functional_call(module, buffers, args, kwargs)
        except _Found:
            pass
        except Exception:  # it may be made for one call a step
            return None
    return finder.found


class _Found(Exception):  # noqa: N818 (a decision, not an error)
    """The search is over."""


class _Finder(TorchFunctionMode):
    """Ends the run at the first operation that makes a NaN, or an infinity that is no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Origin | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            self._look(ops.canonical_name(func), tensors((args, kwargs or {})), result)
        return result

    def _look(self, name: str, given: Any, result: Any) -> None:
        made = [t for _, t in tensors(result) if _is_float(t)]
        if all(bool(t.detach().isfinite().all()) for t in made):
            return
        sources = [t.detach() for _, t in given if _is_float(t)]
        if not all(bool(t.isfinite().all()) for t in sources):
            return
        is_nan = any(bool(t.detach().isnan().any()) for t in made)
        if not is_nan and name in _MASKS:
            return
        least = min((float(t.min()) for t in sources), default=math.nan)
        largest = max((float(t.max()) for t in sources), default=math.nan)
        self.found = Origin(name, calling_site(), "nan" if is_nan else "inf", least, largest)
        raise _Found


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and not tensor.is_meta
