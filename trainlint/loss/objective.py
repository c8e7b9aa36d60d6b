"""The user's loss as the pulse's objective, with targets that are given or made up.

Comes in: the losses that judge a model from outside. Goes out: a function from the model's output to a
scalar. Targets are made for the shape of the scores: classes drawn evenly, zeros and ones, normal
numbers. Where a loss refuses all of them the function returns None, and a projection takes its place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainlint.capture.tracer import capture
from trainlint.graph import Graph
from trainlint.loss.source import LOSS_CLASSES, LOSSES, PLAIN_STEPS, Step
from trainlint.loss.uses import REGRESSIONS, Given, LossCall, Losses
from trainlint.ops import REARRANGEMENTS, canonical_name
from trainlint.sites import construction_site
from trainlint.tree import tensors

Objective = Callable[[Any], Tensor | None]
_CLASSES: Final = frozenset({"cross_entropy", "nll_loss", "multi_margin_loss"})
_BINARY: Final = frozenset(
    {"binary_cross_entropy", "binary_cross_entropy_with_logits", "multilabel_soft_margin_loss"}
)
_FUSED: Final[dict[tuple[str, ...], str]] = {
    ("log_softmax", "nll_loss"): "cross_entropy",
    ("log_softmax", "cross_entropy"): "cross_entropy",
    ("sigmoid", "binary_cross_entropy"): "binary_cross_entropy_with_logits",
}


@dataclass(frozen=True)
class _Outside:
    """The sum of the losses on different parts of the output."""

    calls: tuple[LossCall, ...]
    targets: Any
    seed: int = 0

    def __call__(self, output: Any) -> Tensor | None:
        parts = {name or "output": tensor for name, tensor in tensors(output)}
        generator = torch.Generator().manual_seed(self.seed)
        total: Tensor | None = None
        for call in self.calls:
            scores = parts.get(str(call.path))
            value = None if scores is None else self._value(call, scores, generator, parts)
            if value is None:
                return None
            total = value if total is None else total + value
        return total

    def _value(
        self, call: LossCall, scores: Tensor, generator: torch.Generator, parts: dict[str, Tensor]
    ) -> Tensor | None:
        # Flattened or with the classes moved: the file's loss takes them along the last axis.
        if call.kind in _CLASSES and call.is_rearranged and scores.dim() > 2:
            scores = scores.reshape(-1, scores.shape[-1])
        for target in self._targets(call, scores, generator, parts):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    value = _function(call)(scores, target)
            except Exception:  # a loss that wants other targets
                continue
            if isinstance(value, Tensor) and value.requires_grad:
                return value.mean()
        return None

    def _targets(
        self, call: LossCall, scores: Tensor, generator: torch.Generator, parts: dict[str, Tensor]
    ) -> Iterator[Any]:
        if self.targets is not None:
            yield _first(self.targets, scores)
            return
        if call.kind in _CLASSES:  # contrastive models return their labels beside the scores
            shape = scores.shape[:1] + scores.shape[2:]
            yield from (t for t in parts.values() if t.dtype == torch.long and t.shape == shape)
        yield from synthetic_targets(call.kind, scores, generator)


def objective_of(losses: Losses) -> Objective | None:
    """What to differentiate: the losses that come from outside, if all of them can be computed."""
    calls = {call.path: call for call in losses.calls if call.path is not None}
    if not calls or any(not _is_computable(call) for call in calls.values()):
        return None
    if losses.targets is not None and len(calls) > 1:
        return None
    return _Outside(tuple(calls.values()), losses.targets)


def loss_from_outside(losses: Losses) -> tuple[Callable[[Any, Any], Any], LossCall] | None:
    """The one loss that the file applies to the model's output, as a function of (output, target).

    The file's way from the one to the other goes with it: which part of the output, and what lies between.
    It raises what the loss raises.
    """
    calls = {call.path: call for call in losses.calls if call.path is not None}
    if len(calls) != 1 or len(calls) != len(losses.calls):
        return None
    (call,) = calls.values()
    if not _is_computable(call) or not call.certain:
        return None

    def value(output: Any, target: Any) -> Any:
        parts = {name or "output": tensor for name, tensor in tensors(output)}
        scores = parts.get(str(call.path), output)
        if call.kind in _CLASSES and call.is_rearranged and isinstance(scores, Tensor):
            if scores.dim() > 2:
                scores = scores.reshape(-1, scores.shape[-1])
            if isinstance(target, Tensor) and target.numel() == scores.shape[0]:
                target = target.reshape(-1)
        return _function(call)(scores, target)

    return value, call


def _is_computable(call: LossCall) -> bool:
    return call.function is not None or _kind_on_scores(call) is not None


def _kind_on_scores(call: LossCall) -> str | None:
    """The one loss that amounts to the file's last activation and its loss together."""
    activations = tuple(step.name for step in call.steps if step.name not in PLAIN_STEPS)
    return _FUSED.get((*activations, call.kind)) if activations else call.kind or None


def _function(call: LossCall) -> Callable[..., Any]:
    if call.function is not None:
        return call.function
    function: Callable[..., Any] = getattr(nn.functional, str(_kind_on_scores(call)))
    return function


def _first(targets: Any, scores: Tensor) -> Any:
    """As many of the targets as there are samples."""
    if isinstance(targets, Tensor) and targets.dim() and scores.dim():
        return targets[: scores.shape[0]].to(scores.device)
    return targets


def synthetic_targets(kind: str, scores: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Targets that a loss of this kind may take; for one that is not known, all sorts."""
    known = kind in _CLASSES | _BINARY | REGRESSIONS
    if (kind in _CLASSES or not known) and scores.dim():
        shape = scores.shape[:1] + scores.shape[2:] if scores.dim() > 1 else ()
        classes = scores.shape[1] if scores.dim() > 1 else scores.shape[0]
        drawn = torch.arange(max(1, int(torch.Size(shape).numel()))) % classes
        order = torch.randperm(drawn.numel(), generator=generator)
        yield drawn[order].reshape(shape).to(scores.device)
    if kind in _BINARY or not known:
        drawn = torch.randint(0, 2, scores.shape, generator=generator)
        yield drawn.to(scores.device, scores.dtype)
    if kind in REGRESSIONS or not known:
        yield torch.randn(scores.shape, generator=generator).to(scores.device, scores.dtype)


# ---------------------------------------------------------------------- a loss as an object


class _Judge(nn.Module):
    """Lets a loss be captured like a model."""

    def __init__(self, loss: Callable[..., Any]) -> None:
        super().__init__()
        self._loss = (loss,)  # in a tuple, so that a module is no part of this one

    def forward(self, scores: Tensor, target: Any) -> Any:
        return self._loss[0](scores, target)


def kind_of(loss: Any) -> str | None:
    """The kind of a loss layer or function of PyTorch's, None for any other."""
    if isinstance(loss, nn.Module):
        return LOSS_CLASSES.get(type(loss).__name__) if _is_torchs(type(loss)) else None
    name = canonical_name(loss) if callable(loss) and _is_torchs(loss) else ""
    return name if name in LOSSES else None


def _is_torchs(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("torch.")


def given_loss(loss: Callable[..., Any], model_graph: Graph | None = None) -> Given:
    """A loss that was handed over: one of PyTorch's, or a function that ends in one."""
    site = construction_site(loss) if isinstance(loss, nn.Module) else None
    kind = kind_of(loss)
    if kind is not None:
        return Given(kind, loss, site)
    if model_graph is not None and len(model_graph.outputs) == 1:
        shape = model_graph.shape(model_graph.outputs[0]) or ()
        inner = _inner_loss(loss, torch.zeros(shape))
        if inner is not None:
            return Given(inner.kind, loss, inner.site, inner.steps)
    return Given("", loss, site)


def _inner_loss(loss: Callable[..., Any], scores: Tensor) -> Given | None:
    """The loss of PyTorch's that a function computes from its first argument, and the steps before."""
    generator = torch.Generator().manual_seed(0)
    for target in synthetic_targets("", scores, generator):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of targets that we made up
            recording = capture(_Judge(loss), (scores, target))
        if recording.exception is not None or recording.faults:
            continue
        graph = Graph(recording.graph, recording.model)
        for node in graph.calls(*LOSSES):
            steps: list[Step] = []
            source: Any = node.args[0] if node.args else node.kwargs.get("input")
            while hasattr(source, "op") and source.op == "call_function":
                if graph.name(source) not in REARRANGEMENTS:
                    site: Any = graph.operation(source).site
                    steps.append(Step(graph.name(source), site))
                source = graph.data(source)
            if hasattr(source, "op") and source is graph.nodes[0]:
                return Given(graph.name(node), loss, graph.operation(node).site, tuple(steps))
    return None
