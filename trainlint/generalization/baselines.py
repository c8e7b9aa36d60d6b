"""What a model has to beat: the best constant answer, and a linear model on the inputs.

Both are fitted to training samples, on the user's own loss, and judged on validation samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from trainlint.generalization.scoring import OF_SEVERAL
from trainlint.tree import map_tensors, tensors

if TYPE_CHECKING:
    from trainlint.generalization.scoring import Judgement
    from trainlint.probe.batches import Batch

_STEPS: Final = 40
_MOST_FEATURES: Final = 4096
_MOST_OUTPUTS: Final = 256
# Multiplications in one pass over the training samples.
_MOST_WORK: Final = 2e7
_LEAST_SAMPLES: Final = 20
# Of the squared weights, in units of the constant answer's loss; inputs have deviation 1.
_RIDGES: Final = (1.0, 0.1, 0.01)
# What a loss wants instead of scores.
_LINKS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "nll_loss": lambda scores: scores.log_softmax(1),
    "kl_div": lambda scores: scores.log_softmax(-1),
    "binary_cross_entropy": lambda scores: scores.sigmoid(),
}
_OF_CLASSES: Final = ("cross_entropy", "nll_loss")
_OF_VALUES: Final = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


def constant_loss(train: Sequence[Judgement], validation: Sequence[Judgement]) -> float | None:
    """The mean loss, on validation samples, of the constant answer that suits the training samples best.

    Classes that are rare or missing are taken for a little more frequent than they are (Laplace's rule).
    None where it cannot be told, or is no positive number.
    """
    leaves = [len(_leaves(one.answer)) for one in (*train, *validation)]
    if not train or not validation or len(set(leaves)) != 1 or not leaves[0]:
        return None
    kind = train[0].kind
    if kind in OF_SEVERAL:
        return None
    try:
        start, is_best = _start(train)
        link = _LINKS.get(kind, _same)
        if not is_best:
            start = _fitted(start, lambda values: _loss(train, values, link))
        with torch.no_grad():
            loss = float(_loss(validation, start, link))
    except Exception:  # a loss that no answer of ours suits
        return None
    return loss if math.isfinite(loss) and loss > 0 else None


def _loss(
    judged: Sequence[Judgement], values: Sequence[Tensor], link: Callable[[Tensor], Tensor]
) -> Tensor:
    """The mean loss of an answer that is the same for each sample."""
    sums, weights = [], []
    for one in judged:
        total, weight = one.total(_filled(one.answer, values, link))
        sums.append(total.double().sum())
        weights.append(weight.double().sum())
    return torch.stack(sums).sum() / torch.stack(weights).sum()


def _filled(answer: Any, values: Sequence[Tensor], link: Callable[[Tensor], Tensor]) -> Any:
    left = iter(values)

    def same(_: str, leaf: Tensor) -> Tensor:
        return link(next(left)[None].expand_as(leaf)) if _is_leaf(leaf) else leaf

    return map_tensors(answer, same)


def _is_leaf(value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() > 0


def _same(scores: Tensor) -> Tensor:
    return scores


def _leaves(answer: Any) -> list[Tensor]:
    return [tensor for _, tensor in tensors(answer) if _is_leaf(tensor)]


def _start(judged: Sequence[Judgement]) -> tuple[list[Tensor], bool]:
    """Values of the shape of one sample's answer, or one that fits it; and whether none are better."""
    kind = judged[0].kind
    shapes = [leaf.shape[1:] for leaf in _leaves(judged[0].answer)]
    if kind in _OF_CLASSES:
        # Of all positions at once: what is best for one of them few samples tell.
        shapes = [torch.Size([shape[0], *[1] * (len(shape) - 1)]) for shape in shapes]
    zeros = [torch.zeros(shape) for shape in shapes]
    targets = [target for one in judged if (target := one.target) is not None]
    if len(targets) < len(judged) or len(zeros) != 1:
        return zeros, False
    values = torch.cat([t.detach().cpu() for t in targets])
    if kind in _OF_CLASSES and not values.is_floating_point():
        classes = values[(values >= 0) & (values < shapes[0][0])].reshape(-1)
        known = torch.bincount(classes, minlength=shapes[0][0]).double() + 1
        # With weights, smoothing or positions to ignore, that is where the search starts.
        return [(known / known.sum()).log().float().reshape(shapes[0])], judged[0].is_plain
    if not values.is_floating_point() or values.shape[1:].numel() != shapes[0].numel():
        return zeros, False
    mean = values.double().mean(0).reshape(shapes[0])
    if kind == "mse_loss":
        return [mean.float()], judged[0].is_plain
    if kind == "l1_loss":
        return [values.median(0).values.float().reshape(shapes[0])], judged[0].is_plain
    if kind.startswith("binary_cross_entropy"):
        share = (mean * len(values) + 0.5) / (len(values) + 1)
        if bool(((share <= 0) | (share >= 1)).any()):
            return zeros, False
        return [share.logit().float()], judged[0].is_plain
    return ([mean.float()] if kind in ("smooth_l1_loss", "huber_loss") else zeros), False


def _fitted(start: Sequence[Tensor], loss: Callable[[list[Tensor]], Tensor]) -> list[Tensor]:
    """The values of the least loss, by LBFGS."""
    with torch.enable_grad():
        values = [value.clone().requires_grad_() for value in start]
        optimizer = torch.optim.LBFGS(
            values, max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(values)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return [value.detach() for value in values]


def linear_scores(
    train: Sequence[tuple[Batch, Judgement]],
    validation: Sequence[tuple[Batch, Judgement]],
    guess: float,
) -> tuple[Tensor, Tensor] | None:
    """(sums, weights), each (N,), of the validation samples: the losses of a linear model on the inputs.

    Fitted to the training samples with a little ridge, the strength of which is chosen on a fifth of
    them. None where the inputs are no plain numbers, or it would not be cheap.
    """
    batches = [*train, *validation]
    rows = [_features(batch) for batch, _ in batches]
    if any(
        row is None or one.parts is None or not isinstance(one.answer, Tensor)
        or len(one.answer) != len(row)
        for row, (_, one) in zip(rows, batches, strict=True)
    ):  # fmt: skip
        return None
    known = [row for row in rows if row is not None]
    x = torch.cat(known[: len(train)])
    outputs = train[0][1].answer.shape[1:].numel()
    if len(x) < _LEAST_SAMPLES or x.shape[1] > _MOST_FEATURES or not 0 < outputs <= _MOST_OUTPUTS:
        return None
    if x.numel() * outputs > _MOST_WORK or len({row.shape[1] for row in known}) > 1:
        return None
    mean, deviation = x.mean(0), x.std(0)
    used = deviation > 1e-6 * (mean.abs() + 1e-12)

    def table(features: Sequence[Tensor]) -> list[Tensor]:
        return [(row[:, used] - mean[used]) / deviation[used] for row in features]

    judged = [one for _, one in batches]
    model = _Linear(table(known[: len(train)]), judged[: len(train)], guess)
    try:
        weights = model.with_best_ridge()
        with torch.no_grad():
            return model.losses(table(known[len(train) :]), judged[len(train) :], weights)
    except Exception:  # a loss that no answer of ours suits
        return None


def _features(batch: Batch) -> Tensor | None:
    """The only input, as a table of float numbers; (N, D)."""
    given = [*batch.args, *batch.kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], Tensor):
        return None
    x = given[0]
    if not x.is_floating_point() or x.dim() < 2 or not len(x):
        return None
    flat = x.detach().float().reshape(len(x), -1)
    return flat if bool(torch.isfinite(flat).all()) else None


class _Linear:
    """Weights (D + 1, outputs) under the user's loss; the last row is the intercept."""

    def __init__(self, z: Sequence[Tensor], judged: Sequence[Judgement], guess: float) -> None:
        self._z, self._judged, self._guess = z, judged, guess
        self._link = _LINKS.get(judged[0].kind, _same)
        start, _ = _start(judged)
        targets = [one.target for one in judged if one.target is not None]
        spread = 1.0
        if judged[0].kind in _OF_VALUES and targets:
            spread = float(torch.cat(targets).float().std()) or 1.0
        self._scale = spread / math.sqrt(max(1, z[0].shape[1]))
        self._start = start[0].expand(judged[0].answer.shape[1:]).reshape(1, -1).to(z[0].device)

    def losses(
        self, z: Sequence[Tensor], judged: Sequence[Judgement], weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(sums, weights) of all samples, (N,) each."""
        found = []
        for rows, one in zip(z, judged, strict=True):
            scores = self._scale * (rows @ weights[:-1]) + weights[-1]
            assert one.parts is not None
            found.append(
                one.parts(self._link(scores.reshape(one.answer.shape).to(one.answer.dtype)))
            )
        return torch.cat([sums for sums, _ in found]), torch.cat([each for _, each in found])

    def with_best_ridge(self) -> Tensor:
        """The weights with the ridge that does best on a fifth of the samples, fitted to all."""
        size = sum(len(rows) for rows in self._z)
        few = torch.zeros(size, dtype=torch.bool, device=self._z[0].device)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        few[order[: size // 5].to(few.device)] = True
        zeros = self._start.new_zeros(self._z[0].shape[1], self._start.shape[1])
        weights = torch.cat([zeros, self._start])
        best, least = (_RIDGES[0], weights), math.inf
        for ridge in _RIDGES:
            weights = self._fitted(weights, ~few, ridge)
            with torch.no_grad():
                loss = float(self._loss(weights, few))
            if loss > least:
                break
            best, least = (ridge, weights), loss
        ridge, weights = best
        return self._fitted(weights, few | ~few, ridge)

    def _fitted(self, start: Tensor, among: Tensor, ridge: float) -> Tensor:
        (weights,) = _fitted(
            [start],
            lambda values: (
                self._loss(values[0], among) / self._guess
                + ridge * values[0][:-1].square().mean(0).sum()
            ),
        )
        return weights

    def _loss(self, weights: Tensor, among: Tensor) -> Tensor:
        sums, each = self.losses(self._z, self._judged, weights)
        return sums[among].sum() / each[among].sum()
