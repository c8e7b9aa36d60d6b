"""The losses of single samples, and accuracy or R²: one pass in eval mode over batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from trainlint.generalization.curves import Scores
from trainlint.probe.batches import Batch, moved, size_of
from trainlint.tree import map_tensors

if TYPE_CHECKING:
    from trainlint.probe.setup import Setup

# A loss of single samples is taken for one if these add up to that of the batch, but for rounding.
_CLOSE: Final = 1e-3
ACCURACY: Final = "accuracy"
R_SQUARED: Final = "R²"


class _Tally:
    """What the answers of several batches come to."""

    def __init__(self) -> None:
        self.kind: str | None = None
        self.right: list[Tensor] = []
        self.predicted: Counter[int] = Counter()
        self.squares: list[Tensor] = []
        self.targets: list[Tensor] = []

    def add(self, output: Any, target: Any) -> None:
        kind = _task(output, target)
        self.kind = kind if self.kind in (None, kind) else ""
        if kind == ACCURACY:
            answers = output.argmax(1)
            self.right.append((answers == target).float().reshape(-1))
            self.predicted.update(answers.reshape(-1).tolist())
        elif kind == R_SQUARED:
            self.squares.append((output - target.reshape(output.shape)).square().reshape(-1))
            self.targets.append(target.reshape(-1))

    def metric(self) -> float | None:
        if self.kind == ACCURACY:
            return float(torch.cat(self.right).mean())
        if self.kind == R_SQUARED:
            spread = torch.cat(self.targets).float().var(unbiased=False)
            if spread > 0:
                return float(1 - torch.cat(self.squares).mean() / spread)
        return None


def _task(output: Any, target: Any) -> str:
    """`accuracy` for class scores and class numbers, `R²` for real targets of the outputs' shape."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return ""
    if not output.is_floating_point():
        return ""
    if target.dtype in (torch.int64, torch.int32, torch.uint8):
        fits = output.dim() == target.dim() + 1 and output.shape[1] > 1
        return ACCURACY if fits and output.shape[2:] == target.shape[1:] else ""
    is_real = target.is_floating_point() and output.numel() == target.numel()
    if is_real and target.numel() and not bool(((target == 0) | (target == 1)).all()):
        return R_SQUARED
    return ""


@torch.no_grad()
def scored(
    model: nn.Module, setup: Setup, batches: Sequence[Batch], own_loss: Callable[[Any], Any]
) -> tuple[Scores, str, str]:
    """(scores, unit of a loss, name of the metric) of the model in the mode that it is in.

    `own_loss` finds the loss in the output of a model that computes it. A sample's loss is the loss of its
    output and target alone; where these do not add up to that of the batch (contrastive losses, losses of
    the model's own), there is one figure for each batch.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    single: list[float] | None = []
    whole: list[float] = []
    tally = _Tally()
    for batch in batches:
        here = Batch(
            moved(batch.args, device),
            moved(dict(batch.kwargs), device),
            moved(batch.target, device),
        )
        output = model(*here.args, **here.kwargs)
        loss = own_loss(output) if setup.loss is None else setup.loss(output, here.target)
        whole.append(float(loss.float().mean()))
        if single is not None:
            losses = None if setup.loss is None else _of_samples(setup.loss, output, here.target)
            single = single + losses if losses is not None and _adds_up(losses, whole[-1]) else None
        tally.add(output, here.target)
    scores = Scores(
        whole if single is None else single, tally.metric(), dict(sorted(tally.predicted.items()))
    )
    return scores, "batch" if single is None else "sample", tally.kind or ""


def _of_samples(loss: Callable[..., Any], output: Any, target: Any) -> list[float] | None:
    size = size_of((output, target))
    if size is None:
        return None
    values = []
    for row in range(size):
        one, its = _row(output, row), _row(target, row)
        value = loss(one, its)
        if not isinstance(value, Tensor):
            return None
        values.append(value.float().mean())
    return [float(value) for value in torch.stack(values).tolist()]


def _row(value: Any, row: int) -> Any:
    return map_tensors(value, lambda _, t: t[row : row + 1] if t.dim() else t)


def _adds_up(losses: Sequence[float], whole: float) -> bool:
    total = sum(losses)
    scale = _CLOSE * (abs(whole) + 1e-6)
    return abs(total / len(losses) - whole) <= scale or abs(total - whole) <= scale
