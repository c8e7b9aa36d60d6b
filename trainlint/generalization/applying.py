"""Changes of a training, made on a copy: penalties, dropout, noise and augmentation.

Comes in: a `Copy` and a `Variant`. Goes out: what `trial` takes. Nothing but the copy is written to.

    change = applied(copied(model, setup, optimizer), Variant(l2=0.1))
    trial(change.subject, pool, plan, prepared=change.prepared, before_step=change.before_step)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from trainlint.generalization.trials import trial
from trainlint.generalization.variants import AUGMENTATIONS, Variant
from trainlint.probe.batches import Batch, ProbeProblem
from trainlint.tree import map_tensors, tensors

if TYPE_CHECKING:
    from trainlint.data.pool import Pool
    from trainlint.generalization.curves import Generalization
    from trainlint.generalization.trials import Copy, Plan

# A penalty in the gradient of these is divided by its own size: decay is kept apart, as in AdamW.
_ADAPTIVE: Final = frozenset(
    {"Adam", "Adamax", "NAdam", "RAdam", "Adadelta", "Adagrad", "RMSprop", "SparseAdam"}
)
_DROPOUTS: Final = frozenset(
    {
        functional.dropout,
        functional.dropout1d,
        functional.dropout2d,
        functional.dropout3d,
        functional.alpha_dropout,
        functional.feature_alpha_dropout,
    }
)
_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LEAST_SIDE: Final = 8
_SHIFTED_BY: Final = 16


@dataclass(frozen=True)
class Applied:
    """A copy that was changed, and what `trial` has to do for it. `details` tell where, once it ran."""

    subject: Copy
    prepared: Callable[[Batch], Batch] | None = None
    before_step: Callable[[], None] | None = None
    details: list[str] = field(default_factory=list)


def varied_trial(
    subject: Copy, variant: Variant, pool: Pool, plan: Plan, **options: Any
) -> Generalization:
    """`trials.trial` of the copy with this change; `options` are those of `trial`."""
    change = applied(subject, variant)
    return trial(
        change.subject,
        pool,
        plan,
        prepared=change.prepared,
        before_step=change.before_step,
        **options,
    )


def applied(subject: Copy, variant: Variant) -> Applied:
    """Change the copy. Raises `ProbeProblem` where that is not possible; in the first step at the latest.

    Models of another width are made elsewhere.
    """
    if variant.width != 1.0:
        raise ProbeProblem("a model of another width has to be built anew")
    before: list[Callable[[], None]] = []
    prepared: list[Callable[[Batch], Batch]] = []
    details: list[str] = []
    weights = weight_matrices(subject.model)
    if variant.l2 is not None:
        before += _decayed(subject.optimizer, weights, variant.l2)
    if variant.l1:
        before.append(_penalty(weights, variant.l1, torch.sign))
    if variant.dropout is not None:
        before += _dropped(subject.model, variant.dropout, details)
    if (variant.noise or variant.augment) and subject.setup.step is not None:
        raise ProbeProblem("a training_step is given whole batches, whose inputs are not known")
    if variant.noise:
        prepared.append(_noisy(variant.noise))
    if variant.augment:
        if variant.augment not in AUGMENTATIONS:
            raise ProbeProblem(f"no augmentation {variant.augment!r}: {', '.join(AUGMENTATIONS)}")
        prepared.append(_augmented(variant.augment))
    return Applied(subject, _all_of(prepared), _one_after_another(before), details)


def _one_after_another(calls: Sequence[Callable[[], None]]) -> Callable[[], None] | None:
    if not calls:
        return None

    def run() -> None:
        for call in calls:
            call()

    return run


def _all_of(changes: Sequence[Callable[[Batch], Batch]]) -> Callable[[Batch], Batch] | None:
    if not changes:
        return None

    def changed(batch: Batch) -> Batch:
        for change in changes:
            batch = change(batch)
        return batch

    return changed


# ---------------------------------------------------------------------- penalties


def weight_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What a penalty is on: trainable weights of two axes and more, but those of normalisations."""
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if "Norm" not in type(module).__name__:
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad and parameter.dim() > 1:
                    found[id(parameter)] = parameter
    return list(found.values())


def decay_is_apart(optimizer: Any) -> bool:
    """Whether the optimizer scales each weight's step, so that L2 has to be kept out of its gradient."""
    kinds = {kind.__name__ for kind in type(optimizer).__mro__}
    groups = getattr(optimizer, "param_groups", [])
    is_apart = "AdamW" in kinds or any(group.get("decoupled_weight_decay") for group in groups)
    return bool(kinds & _ADAPTIVE) and not is_apart


def _decayed(
    optimizer: Any, weights: Sequence[nn.Parameter], strength: float
) -> list[Callable[[], None]]:
    """Set the decay of the weights in the optimizer, or do it before each step where it cannot."""
    groups: list[dict[str, Any]] | None = getattr(optimizer, "param_groups", None)
    if not groups or any("weight_decay" not in group for group in groups):
        return [_penalty(weights, strength, lambda weight: weight)]
    apart = decay_is_apart(optimizer)
    wanted = {id(weight) for weight in weights}
    ours: list[dict[str, Any]] = []
    for group in list(groups):
        own = [p for p in group["params"] if id(p) in wanted]
        if not own:
            continue
        others = [p for p in group["params"] if id(p) not in wanted]
        if others:
            rest = {**group, "params": others}
            groups.append(rest)
        # The group itself is kept, so that a scheduler would find it in its place.
        group["params"] = own
        group["weight_decay"] = 0.0 if apart else strength
        ours.append(group)
    return [shrinking(ours, strength)] if apart else []


def shrinking(groups: Sequence[Mapping[str, Any]], strength: float) -> Callable[[], None]:
    """A call before each step: Loshchilov & Hutter 2019, algorithm 2, w ← (1 − lr · λ) w."""

    @torch.no_grad()
    def shrink() -> None:
        for group in groups:
            factor = 1.0 - float(group["lr"]) * strength
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(factor)

    return shrink


def _penalty(
    weights: Sequence[nn.Parameter], strength: float, slope: Callable[[Tensor], Tensor]
) -> Callable[[], None]:
    """The gradient of a penalty, added to that of the loss."""

    @torch.no_grad()
    def add() -> None:
        for weight in weights:
            if weight.grad is not None and not weight.grad.is_sparse:
                weight.grad.add_(slope(weight.detach()), alpha=strength)

    return add


# ---------------------------------------------------------------------- dropout


def dropout_layers(model: nn.Module) -> dict[str, float]:
    """The probability of each dropout layer, by name."""
    return {name: m.p for name, m in model.named_modules() if isinstance(m, _DropoutNd)}


def _dropped(model: nn.Module, share: float, details: list[str]) -> list[Callable[[], None]]:
    layers = [module for module in model.modules() if isinstance(module, _DropoutNd)]
    if layers:
        for layer in layers:
            layer.p = share
        many = "its dropout layer" if len(layers) == 1 else f"its {len(layers)} dropout layers"
        details.append(f"in {many}")
        return []
    return [_Dropped(model, share, details).decide]


class _Dropped:
    """Dropout where there are no such layers: by hooks, in train mode alone.

    The first forward, which drops nothing, shows where. A call of `F.dropout` gets the probability; else
    hidden linear layers, or convolutions where there are none, get it before them. Hidden is what is fed
    by other trainable layers; what is called several times is a part of a recurrent cell, or shared.
    """

    def __init__(self, model: nn.Module, share: float, details: list[str]) -> None:
        self.share, self._details = share, details
        self.calls = 0
        self.is_functional = False
        self._is_decided = False
        self._mode: _Calls | None = None
        self._fed: Counter[nn.Module] = Counter()
        self._called: Counter[nn.Module] = Counter()
        self._chosen: Collection[nn.Module] = ()
        self._names = {module: name for name, module in model.named_modules()}
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._leave, always_call=True)
        for module in self._names:
            if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
                module.register_forward_pre_hook(self._before)

    def decide(self) -> None:
        """Called when the first step's gradients are there."""
        if self._is_decided:
            return
        self._is_decided = True
        if self.calls:
            self.is_functional = True
            self._details.append("in its calls of dropout")
            return
        once = [m for m, count in self._fed.items() if count == self._called[m] == 1]
        linear = {m for m in once if isinstance(m, nn.Linear) and m.in_features > 1}
        self._chosen = linear or {m for m in once if not isinstance(m, nn.Linear)}
        if not self._chosen:
            raise ProbeProblem("there is no hidden layer to put dropout before")
        names = [name for module, name in self._names.items() if module in self._chosen]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        self._details.append(f"before {shown}")

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not (module.training and torch.is_grad_enabled() and args):
            return None
        value = args[0]
        if not self._is_decided:
            self._called[module] += 1
            self._fed[module] += bool(isinstance(value, Tensor) and value.requires_grad)
            return None
        if module not in self._chosen:
            return None
        if isinstance(module, nn.Linear):
            return (functional.dropout(value, self.share), *args[1:])
        # Neighbours in a map say the same: whole channels are dropped (Tompson et al. 2015).
        kept = torch.empty(value.shape[:2], device=value.device, dtype=value.dtype)
        kept.bernoulli_(1.0 - self.share).div_(max(1.0 - self.share, 1e-6))
        return (value * kept.reshape(*kept.shape, *[1] * (value.dim() - 2)), *args[1:])

    def _enter(self, model: nn.Module, _: Any) -> None:
        if (
            model.training
            and torch.is_grad_enabled()
            and (not self._is_decided or self.is_functional)
        ):
            self._mode = _Calls(self)
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self, *_: Any) -> None:
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


class _Calls(TorchFunctionMode):
    """Sees the calls of dropout functions, and gives them another probability once that is decided."""

    def __init__(self, owner: _Dropped) -> None:
        super().__init__()
        self._owner = owner

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _DROPOUTS:
            names = ("input", "p", "training", "inplace")
            given = {**dict(zip(names, args, strict=False)), **given}
            args = (given.pop("input"),)
            if given.get("training", True):
                self._owner.calls += 1
                if self._owner.is_functional:
                    given["p"] = self._owner.share
        return func(*args, **given)


# ---------------------------------------------------------------------- inputs


def _noisy(strength: float) -> Callable[[Batch], Batch]:
    """Each column of a table, and channel of images, is measured in its own deviation within the batch."""

    def noisy(batch: Batch) -> Batch:
        if not any(_is_real(value) for _, value in tensors((batch.args, dict(batch.kwargs)))):
            raise ProbeProblem("noise: the inputs are no real numbers")
        return _with_inputs(batch, changed)

    def changed(_: str, value: Tensor) -> Tensor:
        if not _is_real(value):
            return value
        axes = [0, *range(2, value.dim())] if value.dim() > 3 else [0]
        deviation = value.std(dim=axes, keepdim=True, unbiased=False)
        return value + strength * deviation * torch.randn_like(value)

    return noisy


def _is_real(value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() > 1


def is_image(value: Tensor) -> bool:
    """Whether these are images as networks take them: (N, 1, 3 or 4 channels, H, W)."""
    return (
        value.dim() == 4
        and value.is_floating_point()
        and value.shape[1] in (1, 3, 4)
        and min(value.shape[2:]) >= _LEAST_SIDE
    )


def has_images(batch: Batch) -> bool:
    """Whether the model is given images, to say something of each as a whole, not of their pixels."""
    inputs = [value for _, value in tensors((batch.args, dict(batch.kwargs)))]
    targets = [value for _, value in tensors(batch.target)]
    return (
        sum(is_image(value) for value in inputs) == 1
        and bool(targets)
        and all(value.dim() < 3 for value in targets)
    )


def _augmented(name: str) -> Callable[[Batch], Batch]:
    change = {"shift": _shifted, "flip": _flipped}[name]

    def changed(batch: Batch) -> Batch:
        if not has_images(batch):
            raise ProbeProblem(f"{name}: the inputs are no images with a label each")
        return _with_inputs(batch, lambda _, v: change(v) if is_image(v) else v)

    return changed


def shift_of(value: Tensor) -> int:
    """By how many pixels images are shifted at most: a sixteenth of their side."""
    return max(1, min(value.shape[2:]) // _SHIFTED_BY)


def _shifted(images: Tensor) -> Tensor:
    """Each by its own few pixels, with the border repeated."""
    most, (count, _, high, wide) = shift_of(images), images.shape
    padded = functional.pad(images, (most,) * 4, mode="replicate")
    down, right = torch.randint(0, 2 * most + 1, (2, count), device=images.device)
    rows = down[:, None] + torch.arange(high, device=images.device)
    columns = right[:, None] + torch.arange(wide, device=images.device)
    which = torch.arange(count, device=images.device)[:, None, None]
    # Indices around the channels' axis put it last.
    return padded[which, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def _flipped(images: Tensor) -> Tensor:
    """Half of them, left to right."""
    chosen = torch.rand(images.shape[0], 1, 1, 1, device=images.device) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def _with_inputs(batch: Batch, change: Callable[[str, Tensor], Tensor]) -> Batch:
    return replace(
        batch, args=map_tensors(batch.args, change), kwargs=map_tensors(dict(batch.kwargs), change)
    )
