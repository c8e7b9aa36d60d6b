"""The losses of single samples, from what a loop gives its model and its loss function.

Comes in: a call of a loss function behind a forward. Goes out: how its operand came out of the model's
output, the function as it judges single samples, marks by which samples are known again, and tallies.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from trainlint.generalization.curves import Scores
from trainlint.generalization.scoring import ACCURACY, R_SQUARED
from trainlint.tree import tensors

_MOST_COLUMNS: Final = 4096
# Of the 52 bits of a mark.
_LOOSE: Final = 16
_BEHIND: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "": lambda answer: answer,
    "log_softmax": partial(torch.log_softmax, dim=1),
    "softmax": partial(torch.softmax, dim=1),
    "sigmoid": torch.sigmoid,
    "transposed": partial(torch.transpose, dim0=1, dim1=-1),
}
_AXES: Final[Mapping[str, int]] = {"log_softmax": 2, "softmax": 2, "transposed": 3}


@dataclass(frozen=True)
class Way:
    """From a model's output to what the loss function gets: a tensor in it, a function, another shape."""

    path: str
    behind: str = ""
    shape: torch.Size | None = None
    dtype: torch.dtype | None = None

    def of(self, output: Any) -> Tensor | None:
        """The same of another output, None where there is none."""
        answer = next((t for path, t in tensors(output) if path == self.path), None)
        if answer is None or self.shape is None:
            return answer
        tail = self.shape[1:]
        if answer.numel() % max(1, math.prod(tail)):
            return None
        return _BEHIND[self.behind](answer).reshape(-1, *tail).to(self.dtype)


def way_to(leaves: Sequence[tuple[str, Tensor]], given: Tensor) -> Way | None:
    """How the loss function's operand came out of the model's output, None where that is not plain."""
    for path, leaf in leaves:
        if not leaf.dim() or not given.dim() or leaf.numel() != given.numel():
            continue
        if not leaf.is_floating_point() or leaf.device != given.device:
            continue
        for behind, function in _BEHIND.items():
            if leaf.dim() < _AXES.get(behind, 1):
                continue
            made = function(leaf.detach()).reshape(given.shape).to(given.dtype)
            if torch.equal(made, given.detach()):
                return Way(path, behind, given.shape, given.dtype)
    return None


@dataclass(frozen=True)
class Judge:
    """A loss function as the loop calls it in validation, to be called for single samples."""

    name: str
    options: Mapping[str, Any]

    def losses(self, answer: Tensor, target: Tensor, samples: int) -> Tensor:
        """One loss a sample; one for all where those are not told apart."""
        function = getattr(functional, self.name)
        values: Tensor = function(answer, target, **self.options).float()
        counted = torch.ones_like(values)
        if self.name in ("cross_entropy", "nll_loss") and not target.is_floating_point():
            counted = (target != self.options.get("ignore_index", -100)).float()
        if values.dim() == 0 or len(values) != samples:
            return (values.sum() / counted.sum()).reshape(1)
        return values.reshape(samples, -1).sum(1) / counted.reshape(samples, -1).sum(1)


def judge_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Judge | None:
    """None for a loss that has no value for a single sample, or needs more than its target for it."""
    if name == "gaussian_nll_loss":
        return None
    try:
        bound = inspect.signature(getattr(functional, name)).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return None
    options = {key: value for key, value in bound.items() if key not in ("input", "target")}
    options = {k: v for k, v in options.items() if k not in ("size_average", "reduce")}
    weight = options.get("weight")
    if isinstance(weight, Tensor) and name not in ("cross_entropy", "nll_loss"):
        return None
    return Judge(name, {**options, "reduction": "none"})


def target_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a call of a loss function gives as its target."""
    return args[1] if len(args) > 1 else kwargs.get("target")


def marks_of(inputs: Any, target: Tensor | None, samples: int) -> Tensor | None:
    """A number for each sample by which it is known again, from what the model and the loss are given."""
    total: Tensor | None = None
    given = [t for _, t in tensors(inputs)] + ([] if target is None else [target])
    for number, tensor in enumerate(given):
        if tensor.dim() == 0 or len(tensor) != samples or tensor.is_complex() or tensor.is_sparse:
            continue
        flat = tensor.detach().reshape(samples, -1)
        flat = flat[:, :: -(-flat.shape[1] // _MOST_COLUMNS) or 1]
        wide = torch.float32 if tensor.device.type == "mps" else torch.float64
        places = torch.arange(1, flat.shape[1] + 1, device=tensor.device, dtype=wide)
        mark = flat.to(wide).nan_to_num(7.0) @ (places * (number + 1)).sin()
        total = mark if total is None else total + mark
    if total is None or total.dtype != torch.float64:
        return total
    # The last bits depend on how many samples are summed up at once.
    bits = total.view(torch.int64) + (1 << (_LOOSE - 1))
    return (bits >> _LOOSE << _LOOSE).view(torch.float64)


@dataclass
class Tally:
    """The losses of samples, with what the metric is made of. On their device."""

    marks: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    samples: int = 0
    unit: str = "sample"

    def add(self, marks: Tensor, losses: Tensor, answer: Any, target: Any, kind: str) -> None:
        """A batch. Where there is one loss for all of it, there is one mark for it as well."""
        self.samples += len(marks)
        if not kind or len(losses) < len(marks):
            self.unit = "batch"
        self.marks.append(marks if len(marks) == len(losses) else marks.sum().reshape(1))
        self.losses.append(losses)
        if kind in ("cross_entropy", "nll_loss") and not target.is_floating_point():
            given = answer.argmax(1) if answer.dim() > 1 else answer.argmax().reshape(1)
            self.answers.append(given.reshape(-1))
            self.right.append((given == target).float().reshape(-1))
        elif kind == "mse_loss" and answer.shape == target.shape:
            self.squares.append((answer - target).float().square().reshape(-1))
            self.targets.append(target.float().reshape(-1))

    def metric(self) -> tuple[str, float | None]:
        """Its name and value."""
        if self.right:
            return ACCURACY, float(torch.cat(self.right).mean())
        if self.squares:
            spread = torch.cat(self.targets).var(unbiased=False)
            if spread > 0:
                return R_SQUARED, float(1 - torch.cat(self.squares).mean() / spread)
        return "", None

    def by_mark(self) -> dict[float, float]:
        """The loss of each sample, once; but for those of which all targets are ignored."""
        if not self.losses:
            return {}
        marks, losses = torch.cat(self.marks).tolist(), torch.cat(self.losses).tolist()
        known = dict(zip(marks, losses, strict=True))
        return {mark: loss for mark, loss in known.items() if not math.isnan(loss)}

    def scores(self, losses: Sequence[float]) -> Scores:
        """With these losses, of all that are here."""
        predicted: dict[int, int] = {}
        if self.answers:
            predicted = dict(sorted(Counter(torch.cat(self.answers).tolist()).items()))
        return Scores(tuple(losses), self.metric()[1], predicted)


def add_judged(
    tally: Tally, judge: Judge | None, marks: Tensor, answer: Tensor, target: Tensor | None
) -> None:
    """Add the losses of a batch, which are the model's own where nobody else judges it."""
    if judge is None or target is None:
        tally.add(marks, answer.float().reshape(1), None, None, "")
    else:
        tally.add(marks, judge.losses(answer, target, len(marks)), answer, target, judge.name)
