"""The losses of single samples, and accuracy or R²: one pass in eval mode over batches.

What torch's loss functions are called with is seen, also within a forward or a `training_step`, and such a
loss is asked once more with `reduction="none"`. A loss that is written out is mapped over the samples. Only
where neither adds up to the batch's loss (contrastive losses), there is one figure for each batch.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from trainlint import ops
from trainlint.generalization.curves import Scores
from trainlint.probe.batches import Batch, moved, size_of
from trainlint.tree import map_tensors, tensors

if TYPE_CHECKING:
    from trainlint.probe.setup import Setup

# Losses of single samples are taken for that if they add up to that of the batch, but for rounding.
_CLOSE: Final = 1e-3
ACCURACY: Final = "accuracy"
R_SQUARED: Final = "R²"
SAMPLE: Final = "sample"
BATCH: Final = "batch"
_OF_CLASSES: Final = ("cross_entropy", "nll_loss")
# Their answer is more than the first argument.
OF_SEVERAL: Final = (
    "gaussian_nll_loss", "ctc_loss", "triplet_margin_loss", "triplet_margin_with_distance_loss",
    "margin_ranking_loss", "cosine_embedding_loss",
)  # fmt: skip
_OF_VALUES: Final = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
# From which score on a label is predicted.
_LEAST_SCORE: Final = {"binary_cross_entropy_with_logits": 0.0, "binary_cross_entropy": 0.5}


@dataclass(frozen=True)
class Call:
    """A call of one of torch's loss functions: its name, its arguments, its result."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Tensor

    @property
    def name(self) -> str:
        """`cross_entropy`."""
        return ops.canonical_name(self.function)

    def elements(self, answer: Tensor) -> Tensor:
        """The loss of each element, had it been given this answer."""
        losses: Tensor = self.function(
            answer, *self.args[1:], **{**self.kwargs, "reduction": "none"}
        )
        return losses

    def weights(self, elements: Tensor) -> Tensor:
        """What each of them counts in the mean: the weight of its class, nothing where it is ignored."""
        target = self.args[1]
        if self.name not in _OF_CLASSES or target.is_floating_point():
            return torch.ones_like(elements)
        assert isinstance(target, Tensor)
        weight, ignored = self.kwargs.get("weight"), self.kwargs.get("ignore_index", -100)
        counts = (target != ignored).to(elements.dtype)
        if weight is not None:
            counts = counts * weight.to(elements.dtype)[target.clamp(0, len(weight) - 1)]
        weights: Tensor = counts.reshape(elements.shape)
        return weights

    def is_plain(self, weights: Tensor) -> bool:
        """Whether all elements count alike, with these weights, and targets are taken as they are."""
        options = ("weight", "pos_weight", "label_smoothing")
        return not any(_is_given(self.kwargs.get(name)) for name in options) and bool(
            (weights == 1).all()
        )


def _is_given(option: Any) -> bool:
    return isinstance(option, Tensor) or bool(option)


class _Calls(TorchFunctionMode):
    """Notes the calls of loss functions, which are those that can be reduced."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if "reduction" in kwargs and isinstance(result, Tensor) and len(args) > 1:
            self.seen.append(Call(func, args, kwargs, result))
        return result

    def that_made(self, loss: Tensor) -> Call | None:
        """The last call whose result is the loss, or has it as its mean or sum."""
        value = float(loss)
        for call in reversed(self.seen):
            result = call.result.float()
            if call.kwargs.get("size_average") is not None or call.kwargs.get("reduce") is not None:
                continue
            if _is_close(float(result.mean()), value) or _is_close(float(result.sum()), value):
                return call
        return None


@dataclass(frozen=True)
class Judgement:
    """How the loss judged the answer to a batch, and how it would judge another one of the same shapes.

    `answer` is the tensor, or the nested tensors, that the loss was given. `parts` takes one and gives sums
    and weights, (N,) each: the loss of all samples is sum over weight; None where samples have no losses
    of their own. `total` gives sum and weight of the batch. `kind` is torch's name of the loss, `target`
    what it compares with, `is_plain` that it has no weights, smoothing, or targets to ignore.
    """

    answer: Any
    parts: Callable[[Any], tuple[Tensor, Tensor]] | None
    total: Callable[[Any], tuple[Tensor, Tensor]]
    kind: str = ""
    target: Tensor | None = None
    is_plain: bool = False


class Scorer:
    """Scores a model, always in the same way: `unit` of a loss, `metric`, and the `kind` of the loss.

    `own_loss` finds the loss in the output of a model that computes it. The model is taken in the mode that
    it is in; nothing is observed or restored here. `judged` is how each batch of the last pass was.
    """

    def __init__(self, model: nn.Module, setup: Setup, own_loss: Callable[[Any], Any]) -> None:
        self.model, self.setup, self._own_loss = model, setup, own_loss
        self.unit = SAMPLE
        self.metric = ""
        self.kind = ""
        self.judged: list[Judgement] = []
        self._form = ""
        self._grouping: bool | None = None

    @torch.no_grad()
    def scores(self, batches: Sequence[Batch]) -> Scores:
        """What the model makes of these batches. Raises `TypeError` where the loss is no tensor."""
        sums: list[Tensor] = []
        weights: list[Tensor] = []
        whole: list[float] = []
        tally = _Tally()
        self.judged = []
        for batch in batches:
            loss, judgement, scored = self._asked(batch)
            whole.append(loss)
            if judgement is not None:
                self.judged.append(judgement)
            if judgement is None or judgement.parts is None:
                self.unit = BATCH
            elif self.unit == SAMPLE:
                total, weight = judgement.parts(judgement.answer)
                sums.append(total.double())
                weights.append(weight.double())
            tally.add(*scored)
        self.metric = tally.name
        losses = whole if self.unit == BATCH else linearised(torch.cat(sums), torch.cat(weights))
        return Scores(losses, tally.value(), dict(sorted(tally.predicted.items())))

    def placed(self, batch: Batch) -> Batch:
        """The batch on the model's device."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return Batch(*moved((batch.args, dict(batch.kwargs), batch.target, batch.whole), device))

    # ------------------------------------------------------------------

    def _asked(self, batch: Batch) -> tuple[float, Judgement | None, Any]:
        """(the batch's loss, how single samples are judged, what the metric looks at)."""
        here = self.placed(batch)
        calls = _Calls()
        output: Any = None
        if self.setup.step is not None:
            with calls:
                loss = self._own_loss(self.setup.step(here.whole, 0))
        elif self.setup.loss is None:
            with calls:
                output = self.model(*here.args, **here.kwargs)
                loss = self._own_loss(output)
        else:
            output = self.model(*here.args, **here.kwargs)
            with calls:
                loss = self.setup.loss(output, here.target)
        if not isinstance(loss, Tensor):
            raise TypeError(f"the loss is {type(loss).__name__}, not a tensor")
        loss = loss.float().mean()
        call = calls.that_made(loss)
        scored = (output, here.target, None) if call is None else (*call.args[:2], call)
        self.kind = self.kind or ("" if call is None else call.name)
        given = (here.args, dict(here.kwargs), here.target)
        size = size_of(here.whole if self.setup.step is not None else given)
        value = float(loss)
        judgement = None
        if size is not None and self.unit == SAMPLE:
            has_function = self.setup.loss is not None and self.setup.step is None
            if has_function and call is not None and call.name in OF_SEVERAL:
                judgement = self._of_function(output, here.target, size, value)
            if judgement is None and call is not None and isinstance(call.args[0], Tensor):
                judgement = self._of_call(call, size, value, here)
            if judgement is None and has_function:
                judgement = self._of_function(output, here.target, size, value)
        if judgement is None and self.setup.loss is not None and self.setup.step is None:
            whole = partial(_whole, self.setup.loss, here.target)
            judgement = Judgement(
                output, None, lambda answer: (v := whole(answer), torch.ones_like(v))
            )
        return value, judgement, scored

    def _of_call(self, call: Call, size: int, loss: float, batch: Batch) -> Judgement | None:
        """By the function's own losses of elements, as they are reduced."""
        try:
            elements = call.elements(call.args[0])
            weights = call.weights(elements)
        except Exception:  # what it was given suits no other reduction
            return None
        if not elements.dim() or elements.numel() % size:
            return None
        by_time = False
        if len(elements) != size:
            known = self._is_by_time(elements, size, batch)
            if known is None:
                return None
            by_time = known

        def grouped(values: Tensor) -> Tensor:
            return (values.reshape(-1, size).T if by_time else values.reshape(size, -1)).sum(1)

        forms: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
            "mean": lambda e: (grouped(e), grouped(weights)),
            "sum": lambda e: (grouped(e), torch.ones_like(grouped(e))),
        }
        possible = ["mean", "sum"] if call.kwargs["reduction"] in ("mean", "none") else ["sum"]
        for form in [self._form] if self._form else possible:
            if form not in forms:
                return None
            total, weight = forms[form](elements.float())
            scale = size if form == "sum" and call.kwargs["reduction"] != "batchmean" else 1
            mean = float(total.sum() / weight.sum())
            if _is_close(mean, loss) or _is_close(mean * scale, loss):
                self._form = form
                return _judgement_by(call, forms[form], weights)
        return None

    def _is_by_time(self, elements: Tensor, size: int, batch: Batch) -> bool | None:
        """Whether positions of all samples come first, those of one sample later: the first one tells.

        None where it does not.
        """
        if self._grouping is None:
            calls = _Calls()
            one = map_tensors(batch.args, lambda _, t: t[:1] if t.dim() else t)
            named = map_tensors(dict(batch.kwargs), lambda _, t: t[:1] if t.dim() else t)
            target = map_tensors(batch.target, lambda _, t: t[:1] if t.dim() else t)
            whole = map_tensors(batch.whole, lambda _, t: t[:1] if t.dim() else t)
            try:
                with calls:
                    if self.setup.step is not None:
                        self.setup.step(whole, 0)
                    elif self.setup.loss is None:
                        self.model(*one, **named)
                    else:
                        self.setup.loss(self.model(*one, **named), target)
                alone = calls.seen[-1].elements(calls.seen[-1].args[0]).float().sum()
            except Exception:
                return None
            totals = (elements.float().reshape(size, -1), elements.float().reshape(-1, size).T)
            fits = [_is_close(float(total[0].sum()), float(alone)) for total in totals]
            if not any(fits):
                return None
            self._grouping = not fits[0]
        return self._grouping

    def _of_function(self, output: Any, target: Any, size: int, loss: float) -> Judgement | None:
        """By the loss of each output with its target alone."""
        function = self.setup.loss
        assert function is not None
        for of_each in (_mapped, _one_by_one):
            try:
                values = of_each(function, output, target, size)
            except Exception:
                continue
            if values is None or values.shape != (size,):
                continue
            mean = float(values.mean())
            for form, scale in (("mean alone", 1), ("sum alone", size)):
                if self._form in ("", form) and _is_close(mean * scale, loss):
                    self._form = form
                    return self._each(of_each, output, target, size, scale)
        return None

    def _each(self, of_each: _OfEach, output: Any, target: Any, size: int, scale: int) -> Judgement:
        function = self.setup.loss
        assert function is not None

        def parts(answer: Any) -> tuple[Tensor, Tensor]:
            values = of_each(function, answer, target, size)
            assert values is not None
            return values, torch.ones_like(values)

        def total(answer: Any) -> tuple[Tensor, Tensor]:
            value = _whole(function, target, answer)
            return value * (size / scale), torch.full_like(value, size)

        return Judgement(output, parts, total)


def _judgement_by(
    call: Call, form: Callable[[Tensor], tuple[Tensor, Tensor]], weights: Tensor
) -> Judgement:
    def parts(answer: Tensor) -> tuple[Tensor, Tensor]:
        return form(call.elements(answer).float())

    target = call.args[1] if isinstance(call.args[1], Tensor) else None
    return Judgement(call.args[0], parts, parts, call.name, target, call.is_plain(weights))


def linearised(sums: Tensor, weights: Tensor) -> list[float]:
    """Losses whose mean is Σ sums / Σ weights and whose variance is that of this ratio, to first order.

    Takes (N,) each. With equal weights these are the losses themselves; samples that do not count are left
    out. Cochran 1977, "Sampling Techniques", section 2.11.
    """
    counts = weights > 0
    sums, weights = sums[counts], weights[counts]
    ratio = sums.sum() / weights.sum()
    values: list[float] = (ratio + (sums - ratio * weights) / weights.mean()).tolist()
    return values


def _is_close(one: float, other: float) -> bool:
    if not math.isfinite(other):  # a loss that is none any more is none for each sample
        return not math.isfinite(one)
    return abs(one - other) <= _CLOSE * (abs(other) + 1e-6)


_OfEach = Callable[[Callable[..., Any], Any, Any, int], Tensor | None]


def _whole(function: Callable[..., Any], target: Any, answer: Any) -> Tensor:
    value: Tensor = function(answer, target).float().mean()
    return value


def _rows_of(value: Any, size: int) -> list[Tensor]:
    return [t for _, t in tensors(value) if t.dim() and len(t) == size]


def _mapped(function: Callable[..., Any], output: Any, target: Any, size: int) -> Tensor | None:
    """In one go, where the function takes it: (N,)."""
    both = (output, target)
    rows = _rows_of(both, size)

    def alone(*parts: Tensor) -> Tensor:
        left = iter(parts)
        one, its = map_tensors(
            both, lambda _, t: next(left)[None] if t.dim() and len(t) == size else t
        )
        value: Tensor = function(one, its).mean()
        return value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vmap(alone)(*rows) if rows else None


def _one_by_one(function: Callable[..., Any], output: Any, target: Any, size: int) -> Tensor | None:
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in range(size):
            value = function(*_row((output, target), row, size))
            if not isinstance(value, Tensor):
                return None
            values.append(value.float().mean())
    return torch.stack(values)


def _row(value: Any, row: int, size: int) -> Any:
    return map_tensors(value, lambda _, t: t[row : row + 1] if t.dim() and len(t) == size else t)


class _Tally:
    """What the answers of several batches come to."""

    def __init__(self) -> None:
        self.predicted: Counter[int] = Counter()
        self._names: set[str] = set()
        self._right = self._all = 0
        self._squares = 0.0
        self._sums: list[Tensor] = []

    @property
    def name(self) -> str:
        """`accuracy`, `R²`, or empty where the task is not clear."""
        return next(iter(self._names)) if len(self._names) == 1 else ""

    def add(self, answer: Any, target: Any, call: Call | None) -> None:
        """Of one batch: what the loss was given."""
        if not isinstance(answer, Tensor) or not isinstance(target, Tensor):
            self._names.add("")
            return
        name = _task(answer, target, "" if call is None else call.name)
        self._names.add(name)
        if name == R_SQUARED:
            self._add_values(answer, target.reshape(answer.shape))
        elif (name == ACCURACY and answer.dim() > target.dim()) or _are_shares(
            answer, target, call
        ):
            self._add_classes(answer, target, call)
        elif name == ACCURACY:
            self._add_labels(answer, target, "" if call is None else call.name)

    def _add_classes(self, answer: Tensor, target: Tensor, call: Call | None) -> None:
        classes = answer.argmax(1)
        true = target.argmax(1) if target.is_floating_point() else target
        ignored = -100 if call is None else call.kwargs.get("ignore_index", -100)
        counts = true != ignored
        self._right += int((classes == true)[counts].sum())
        self._all += int(counts.sum())
        self.predicted.update(classes[counts].tolist())

    def _add_labels(self, answer: Tensor, target: Tensor, kind: str) -> None:
        answers = (answer > _LEAST_SCORE[kind]).long()
        self._right += int((answers == target.reshape(answers.shape)).sum())
        self._all += answers.numel()
        if answers[0].numel() == 1:
            self.predicted.update(answers.reshape(-1).tolist())

    def _add_values(self, answer: Tensor, target: Tensor) -> None:
        wide = target.double().reshape(len(target), -1)
        self._squares += float((answer.double().reshape(wide.shape) - wide).square().sum())
        sums = [torch.full_like(wide[0], len(wide)), wide.sum(0), wide.square().sum(0)]
        if self._sums and self._sums[0].shape != sums[0].shape:
            self._names.add("")
            return
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums

    def value(self) -> float | None:
        """The accuracy, or the explained share of the targets' variance, of all outputs together."""
        if self.name == ACCURACY and self._all:
            return self._right / self._all
        if self.name == R_SQUARED:
            count, total, squares = self._sums
            spread = float((squares - total.square() / count).sum())
            return 1 - self._squares / spread if spread > 0 else None
        return None


def _are_shares(answer: Tensor, target: Tensor, call: Call | None) -> bool:
    """Whether the targets of a loss of classes are a share of each."""
    return (
        call is not None
        and call.name in _OF_CLASSES
        and target.is_floating_point()
        and answer.shape == target.shape
        and answer.dim() > 1
    )


def _task(answer: Tensor, target: Tensor, kind: str) -> str:
    """`accuracy` for scores of classes or labels, `R²` for real targets; empty where that is not clear."""
    if not answer.is_floating_point() or not answer.dim() or not target.numel():
        return ""
    if kind in _LEAST_SCORE:
        is_label = bool(((target == 0) | (target == 1)).all())
        return ACCURACY if is_label and answer.numel() == target.numel() else ""
    if kind in _OF_CLASSES and target.is_floating_point():
        return ACCURACY if answer.shape == target.shape and answer.dim() > 1 else ""
    if kind in (*_OF_CLASSES, "") and target.dtype in (torch.int64, torch.int32, torch.uint8):
        fits = answer.dim() == target.dim() + 1 and answer.shape[1] > 1
        return ACCURACY if fits and answer.shape[2:] == target.shape[1:] else ""
    is_real = target.is_floating_point() and answer.numel() == target.numel()
    if not is_real or kind not in (*_OF_VALUES, ""):
        return ""
    if not kind and bool(((target == 0) | (target == 1)).all()):
        return ""
    return R_SQUARED
