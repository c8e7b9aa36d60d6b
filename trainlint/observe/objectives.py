"""The loss functions of a training loop: their values, their targets, and what they were given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from trainlint.observe.autograd import maker
from trainlint.observe.recorder import LOSS_FUNCTIONS, SiteRecord
from trainlint.observe.targets import SeenTargets
from trainlint.observe.trace import LossTrace
from trainlint.sites import Site, calling_site, place_key
from trainlint.tree import tensors

MOST_VALUES: Final = 4096
_MOST_WAITING: Final = 2**16
# What may not stand before a loss function, and how that is called.
_WRONG_BEFORE: Final = {
    ("cross_entropy", "Softmax"): "softmax-twice",
    ("binary_cross_entropy_with_logits", "Sigmoid"): "sigmoid-twice",
    ("binary_cross_entropy_with_logits", "Softmax"): "sigmoid-twice",
    ("nll_loss", "Softmax"): "no-logarithm",
    ("nll_loss", "Sigmoid"): "no-logarithm",
    ("kl_div", "Softmax"): "no-logarithm",
}
# The best constant answer to them is the mean of the targets.
_WITH_MEANS: Final = ("mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")


class _Kind(NamedTuple):
    """What targets have in common that are looked at together; `classes` is 0 where they are no classes."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    ignore: int
    classes: int
    summed: bool


@dataclass
class Objective:
    """A loss function at one place, its values and what the targets are like. On the device.

    The targets of several calls wait until they are looked at together, which takes as many operations
    as one alone.
    """

    kind: str
    site: Site | None
    values: list[tuple[int, Any]] = field(default_factory=list)
    counts: Tensor | None = None
    sums: list[Tensor] | None = None
    is_plain: bool = True
    smoothing: float = 0.0
    made_by: str = ""
    largest: Tensor | None = None
    seen: SeenTargets = field(default_factory=SeenTargets)
    waiting: dict[_Kind, list[tuple[int, Tensor]]] = field(default_factory=dict)
    elements: int = 0

    def look_at(
        self, step: int, scores: Tensor, targets: Tensor, kwargs: Mapping[str, Any]
    ) -> None:
        """Add a call. What its targets are is copied, and added up later."""
        if self.kind in ("nll_loss", "kl_div") and scores.numel():
            largest = scores.amax()
            self.largest = largest if self.largest is None else self.largest.maximum(largest)
        if (
            kwargs.get("weight") is not None
            or kwargs.get("pos_weight") is not None
            or kwargs.get("reduction", "mean") != "mean"
        ):
            self.is_plain = False
        self.smoothing = float(kwargs.get("label_smoothing") or 0.0)
        classes = 0
        if self.kind in ("cross_entropy", "nll_loss") and not targets.is_floating_point():
            classes = scores.shape[1] if scores.dim() > 1 else scores.shape[0]
        kind = _Kind(
            targets.shape, targets.dtype, targets.device, int(kwargs.get("ignore_index", -100)),
            classes, self.kind in _WITH_MEANS and scores.shape == targets.shape,
        )  # fmt: skip
        self.elements += targets.numel()
        is_full = self.elements > _MOST_WAITING
        # A loop may fill the same tensor again.
        copy = targets if is_full else targets.clone()
        self.waiting.setdefault(kind, []).append((step, copy))
        if is_full:
            self.flush()

    def flush(self) -> None:
        """Add up what waits."""
        for kind, calls in self.waiting.items():
            steps = [step for step, _ in calls]
            stacked = calls[0][1][None] if len(calls) == 1 else torch.stack([t for _, t in calls])
            self.seen.add(steps, stacked, kind.ignore)
            if kind.classes:
                self._add_classes(stacked.reshape(-1), kind.classes)
            elif kind.summed:
                self._add_sums(stacked)
        self.waiting.clear()
        self.elements = 0

    def _add_classes(self, targets: Tensor, classes: int) -> None:
        # `bincount` and a mask would wait for the device.
        index = torch.where((targets >= 0) & (targets < classes), targets, classes).long()
        ones = torch.ones_like(index)
        counts = ones.new_zeros(classes + 1).scatter_add_(0, index, ones)[:classes]
        if self.counts is not None and self.counts.shape != counts.shape:
            self.is_plain = False  # heads with different classes take turns at this place
            return
        self.counts = counts if self.counts is None else self.counts + counts

    def _add_sums(self, targets: Tensor) -> None:
        """Takes (calls, samples, …). One constant for each output: a constant answer may differ there."""
        wide = targets.to(torch.float64 if targets.device.type == "cpu" else torch.float32)
        wide = wide.flatten(0, 1) if wide.dim() > 1 else wide
        sums = [torch.full_like(wide[0], len(wide)), wide.sum(0), wide.square().sum(0)]
        if self.sums is not None and self.sums[0].shape == sums[0].shape:
            sums = [a + b for a, b in zip(self.sums, sums, strict=True)]
        self.sums = sums

    def guess(self) -> float | None:
        """The loss of the best constant answer."""
        if not self.is_plain:
            return None
        if self.counts is not None:
            shares = self.counts.double() / self.counts.sum()
            shares = (1 - self.smoothing) * shares + self.smoothing / len(shares)
            return float(torch.special.entr(shares).sum())
        if self.sums is not None:
            count, total, squares = self.sums
            means = total / count
            if self.kind == "mse_loss":
                return float((squares / count - means.square()).mean())
            if bool(((means < 0) | (means > 1)).any()):
                return None
            return float((torch.special.entr(means) + torch.special.entr(1 - means)).mean())
        return None

    def trace(self) -> LossTrace:
        """The figures, fetched from the device."""
        self.flush()
        return LossTrace(
            self.kind,
            self.site,
            [step for step, _ in self.values],
            [float(value) for _, value in self.values],
            self.guess(),
            None if self.counts is None else len(self.counts),
            self.made_by,
            None if self.largest is None else float(self.largest),
            self.is_plain,
            self.seen.trace(),
        )


class Objectives:
    """All losses, by the places in the code where they are called.

    `incident` is told of what should not be; `source_of` says which recorded operation made a tensor,
    `inputs` gives what the model was called with last, and `loader` the number of the loader that was last
    begun to be read.
    """

    def __init__(
        self,
        incident: Callable[..., None],
        source_of: Callable[[Tensor], SiteRecord | None],
        inputs: Callable[[], Any],
        loader: Callable[[], int | None],
    ) -> None:
        self._incident = incident
        self._source_of = source_of
        self._inputs = inputs
        self._loader = loader
        self._by_place: dict[Any, Objective] = {}

    def look_at(
        self,
        step: int,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        root: int | None,
    ) -> None:
        """A loss function was called, or an operation of which losses are made."""
        first = args[0] if args else kwargs.get("input")
        second = args[1] if len(args) > 1 else kwargs.get("target", kwargs.get("other"))
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return
        if name not in ("cross_entropy", "nll_loss") and (root is None or name in LOSS_FUNCTIONS):
            self._broadcast(name, first, second)
        if name not in LOSS_FUNCTIONS or not isinstance(result, Tensor) or not result.requires_grad:
            return
        weighted = len(args) > 2 and isinstance(args[2], Tensor)
        options = {**kwargs, "weight": args[2]} if weighted else kwargs
        made_by = maker(first)
        self._note(step, name, first, second, options, result, made_by)
        twice = _WRONG_BEFORE.get((name, made_by))
        if twice is not None:
            site = calling_site()
            source = self._source_of(first)
            self._incident(
                twice,
                site if source is None or source.site is None else source.site,
                loss=name,
                gets=made_by.lower(),
                classes=first.shape[1] if first.dim() > 1 else first.shape[0],
                module=None if source is None else source.place.path,
                at=None if site is None else f"{site.filename}:{site.row}",
            )

    def _note(
        self,
        step: int,
        name: str,
        scores: Tensor,
        targets: Tensor,
        kwargs: Mapping[str, Any],
        loss: Tensor,
        made_by: str,
    ) -> None:
        site = calling_site()
        key = (name, place_key(site))
        known = self._by_place.get(key)
        if known is None:
            known = self._by_place[key] = Objective(name, site)
        if loss.numel() == 1:
            known.values.append((step, loss.detach()))
        known.made_by = made_by
        if not targets.numel() or targets.is_complex() or targets.is_meta:
            return
        known.look_at(step, scores.detach(), targets.detach(), kwargs)
        given = [t for _, t in tensors(self._inputs()) if t.numel()]
        known.seen.look_at(
            targets,
            inputs=targets.data_ptr() in [t.data_ptr() for t in given],
            samples=targets.dim() > 0 and len(targets) in [len(t) for t in given if t.dim() > 1],
            loader=self._loader(),
        )

    def _broadcast(self, name: str, first: Tensor, second: Tensor) -> None:
        """(N, 1, …) with (N, …), of which one is a prediction: a table of each with each."""
        if abs(first.dim() - second.dim()) != 1 or (first.grad_fn is None) == (
            second.grad_fn is None
        ):
            return
        if first.requires_grad and second.requires_grad:
            return  # a parameter, compared with predictions
        more, fewer = (first, second) if first.dim() > second.dim() else (second, first)
        if (
            fewer.dim()
            and more.shape[1] == 1
            and more.shape[0] == fewer.shape[0] > 1
            and more.shape[2:] == fewer.shape[1:]
        ):
            self._incident("each-with-each", calling_site(), operation=name,
                           shapes=[list(first.shape), list(second.shape)],
                           prediction=0 if first.requires_grad else 1)  # fmt: skip

    def drain(self) -> None:
        """Move values to the host, and keep no more than can be used."""
        for objective in self._by_place.values():
            objective.flush()
            objective.values = [(step, float(value)) for step, value in objective.values]
            if len(objective.values) > MOST_VALUES:
                del objective.values[1::2]

    def trace(self) -> list[LossTrace]:
        """What is known of each."""
        return [objective.trace() for objective in self._by_place.values()]
