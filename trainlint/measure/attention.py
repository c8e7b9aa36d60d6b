"""What a real run shows in passing: results of embeddings, masks of attention, what its losses judge."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainlint import ops
from trainlint.capture.tracer import module_calls

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTENTION: Final = ops.ATTENTION | {"softmax"}
CROSS_ENTROPIES: Final = frozenset({"cross_entropy", "nll_loss"})
REGRESSIONS: Final = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
_JUDGES: Final = CROSS_ENTROPIES | REGRESSIONS
# A mask of large negative numbers hides as well as one of -inf.
_HIDDEN: Final = -1e4


@dataclass
class Attention:
    """An attention operation of the run: its place in the capture, and whether its mask is triangular."""

    path: str
    name: str
    number: int
    causal: bool


@dataclass
class Judged:
    """What a loss of the model's own compares: scores and classes, or values and values."""

    scores: Tensor
    target: Tensor


class Watch(TorchFunctionMode):
    """Keeps the results of embeddings and what is judged, and looks at the masks of attention."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._stack: list[tuple[str, nn.Module]] = []
        self._counts: dict[tuple[str, str], int] = {}
        self.embedded: list[tuple[Tensor, Tensor]] = []
        self.attentions: list[Attention] = []
        self.judged: list[Judged] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Enter around the model's call."""
        with module_calls(self._model, self._stack), self:
            yield

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = _watched.get(func)
        if name is None:
            name = _name_if_watched(func)
        if name == "embedding" and isinstance(result, Tensor) and result.requires_grad:
            ids = kwargs.get("input", args[0] if args else None)
            if isinstance(ids, Tensor) and not ids.is_floating_point():
                self.embedded.append((ids, result))
        elif name in _JUDGES:
            scores, target = (
                kwargs.get(key, args[place] if place < len(args) else None)
                for place, key in enumerate(("input", "target"))
            )
            if isinstance(scores, Tensor) and isinstance(target, Tensor):
                self.judged.append(Judged(scores, target))
        elif name in ATTENTION:
            path = self._stack[-1][0] if self._stack else ""
            number = self._counts.get((path, name), 0)
            self._counts[path, name] = number + 1
            with torch._C.DisableTorchFunction():
                causal = _is_causal(name, args, kwargs, result)
            self.attentions.append(Attention(path, name, number, causal))
        return result


_watched: dict[Any, str] = {}


def _name_if_watched(func: Any) -> str:
    name = ops.canonical_name(func)
    name = name if name in ATTENTION | _JUDGES or name == "embedding" else ""
    with contextlib.suppress(TypeError):
        _watched[func] = name
    return name


def _is_causal(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> bool:
    """Whether no position attends to a later one."""
    if name == "softmax":
        if not isinstance(result, Tensor) or not _is_square(result):
            return False
        return not bool(result.detach().triu(1).any())
    if name == "flex_attention":
        return False
    if kwargs.get("is_causal") or (name == "scaled_dot_product_attention" and args[5:6] == (True,)):
        return True
    mask = kwargs.get("attn_mask", args[3] if name.startswith("scaled") and len(args) > 3 else None)
    if not isinstance(mask, Tensor) or not _is_square(mask):
        return False
    upper = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1)
    if mask.dtype == torch.bool:  # True is "may look" to one and "must not" to the other
        hidden = ~mask if name == "scaled_dot_product_attention" else mask
    else:
        hidden = mask <= _HIDDEN
    return bool((hidden | ~upper).all())


def _is_square(tensor: Tensor) -> bool:
    return tensor.dim() >= 2 and tensor.shape[-1] == tensor.shape[-2] > 1
